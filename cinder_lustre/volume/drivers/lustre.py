#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""Cinder volumes as files on Lustre: the verbs that Cinder calls."""

import binascii
from concurrent import futures
import contextlib
import math
import os
import shutil
import threading
import time

from castellan import key_manager
from cinder import context as cinder_context
from cinder import coordination
from cinder.db import api as db
from cinder import exception
from cinder.i18n import _
from cinder.image import image_utils
from cinder import interface
from cinder import objects
from cinder.objects import fields
from cinder import utils
from cinder.volume import configuration
from cinder.volume.drivers import remotefs
from cinder.volume import volume_types
from cinder.volume import volume_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import units
import tooz.coordination

from cinder_lustre import adoption
from cinder_lustre.brick import client
from cinder_lustre.brick import mount
from cinder_lustre import chain
from cinder_lustre import exception as lustre_exception
from cinder_lustre import lfs
from cinder_lustre import opts
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import share
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

# Seconds between two lines in the log about one copy.
_PROGRESS_INTERVAL = 10
# What the statistics begin with that tell other backends how to migrate here.
_LOCATION = 'LustreDriver:'
# What QEMU encrypts volumes with, as decode_cipher() gives it.
_CIPHER_ALGS = ('aes-128', 'aes-256')
_CIPHER_MODES = ('cbc', 'xts')
_IVGEN_ALGS = ('plain', 'plain64')
# How a file of LUKS version 1 begins; Nova lets QEMU open no other.
_LUKS1 = b'LUKS\xba\xbe\x00\x01'
_DETACHED = fields.VolumeAttachStatus.DETACHED
# The states of a volume or attachment that is about to change its file.
_MOVING = (fields.VolumeAttachStatus.RESERVED,
           fields.VolumeAttachStatus.ATTACHING,
           'detaching')
# The states of a volume that a backup is restored to, also to a new one.
_RESTORED = (fields.VolumeStatus.RESTORING_BACKUP,
             fields.VolumeStatus.CREATING)

# Seconds that Nova may take for a snapshot, as RemoteFS drivers have it.
_CREATION_WAIT = 600
_DELETION_WAIT = 7200
# Seconds between two looks at what Nova says, and at what the guest has open.
_NOVA_POLL = 1
_LOOK_INTERVAL = 10
# The progress that Nova gives to a snapshot when its part is done.
_NOVA_IS_DONE = '90%'
# Seconds that a connection waits for another operation: a little less than
# oslo.messaging's rpc_response_timeout, after which nobody listens.
_CONNECTION_WAIT = 50

CONF = cfg.CONF
CONF.register_opts(opts.mount_opts + opts.volume_opts,
                   group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class LustreDriver(remotefs.RemoteFSSnapDriverDistributed):
    """Stores volumes as raw or qcow2 files on Lustre.

    Version history:

    .. code-block:: none

        1.0.0 - Initial driver
    """

    VERSION = '1.0.0'
    # ThirdPartySystems wiki page
    CI_WIKI_NAME = 'Lustre_CI'
    SUPPORTS_ACTIVE_ACTIVE = True

    driver_volume_type = 'lustre'
    driver_prefix = 'lustre'
    volume_backend_name = 'Lustre'

    def __init__(self, execute=processutils.execute, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(opts.mount_opts +
                                                opts.volume_opts)
        # What os-brick calls the mount point base; never on Lustre itself.
        self.base = os.path.realpath(
            self.configuration.lustre_mount_point_base)
        self._remotefsclient = client.LustreRemoteFsClient(
            'lustre', utils.get_root_helper(), execute=execute,
            lustre_mount_point_base=self.base,
            lustre_mount_options=self.configuration.lustre_mount_options,
            lustre_mount_timeout=self.configuration.lustre_mount_timeout,
            development_fstypes=(
                self.configuration.lustre_development_fstypes))
        # The full share strings by identity; self.shares has the options.
        self._sources = {}
        self._workers = {}
        # The shares on which nothing is left of a service that was killed.
        self._recovered = set()
        # The last known sizes of the shares in bytes.
        self._totals = {}
        # What is being found out about shares now.
        self._surveys = {}
        self._surveys_lock = threading.Lock()

    @staticmethod
    def get_driver_options():
        return opts.mount_opts + opts.volume_opts

    def do_setup(self, context):
        """Load the shares and mount them.

        A share that cannot be mounted is logged and tried again with every
        collection of statistics.

        :raises: VolumeBackendAPIException without any valid share
        """
        super().do_setup(context)
        self._recovered.clear()
        self.set_nas_security_options(self._is_voldb_empty_at_startup)
        for option in ('nas_host', 'nas_share_path', 'nas_mount_options'):
            if getattr(self.configuration, option):
                LOG.warning('%s is ignored. Name the shares in '
                            'lustre_shares_config or lustre_shares.', option)
        if self.configuration.lustre_development_fstypes:
            LOG.warning('lustre_development_fstypes is set to %s: shares of '
                        'these types are no Lustre. Never set it where data '
                        'matter.', self.configuration.
                        lustre_development_fstypes)
        self._ensure_shares_mounted()

    def check_for_setup_error(self):
        """Refuse settings that cannot work.

        :raises: VolumeBackendAPIException
        """
        if not shutil.which('qemu-img'):
            raise exception.VolumeBackendAPIException(
                data=_('There is no qemu-img on this host. Install '
                       'qemu-utils.'))
        if (self.cluster_name and
                CONF.coordination.backend_url.startswith('file:')):
            raise exception.VolumeBackendAPIException(
                data=_('The option cluster needs locks between hosts, but '
                       '[coordination] backend_url is a directory of this '
                       'host. Set it to etcd or another service that all '
                       'hosts share.'))

    def set_nas_security_options(self, is_new_cinder_install):
        """Files belong to the service's user, who works without root."""
        for option in ('nas_secure_file_operations',
                       'nas_secure_file_permissions'):
            if getattr(self.configuration, option) == 'false':
                LOG.warning('%s = false is ignored: volume files on Lustre '
                            'are never open to everyone, nor handled as '
                            'root.', option)
            setattr(self.configuration, option, 'true')
        self._execute_as_root = False

    # Shares

    def _load_shares_config(self, share_file=None):
        """Read which shares there are, in self.shares by identity.

        :raises: VolumeBackendAPIException without any valid share
        """
        lines = self.configuration.lustre_shares
        origin = 'lustre_shares'
        if not lines:
            origin = share_file
            try:
                lines = self._read_config_file(share_file)
            except OSError as exc:
                raise exception.VolumeBackendAPIException(
                    data=_('The shares file %(file)s cannot be read '
                           '(%(error)s). Create it, or set '
                           'lustre_shares_config.')
                    % {'file': share_file, 'error': exc.strerror})
        shares, errors = share.parse_lines(lines)
        for number, line, reason in errors:
            LOG.error('Line %(number)s of %(origin)s is left out: %(reason)s',
                      {'number': number, 'origin': origin, 'reason': reason})
        if not shares:
            raise exception.VolumeBackendAPIException(
                data=_('There is no valid share in %s. Name at least one, in '
                       'the form <nid>:/<fsname>[/<subdir>].') % origin)
        self._sources = {found.identity: found.source for found in shares}
        self.shares = {
            found.identity: '-o ' + found.options if found.options else None
            for found in shares}

    def _read_config_file(self, config_file):
        # What is not text becomes a line that is named as wrong.
        with open(config_file, encoding='utf-8',
                  errors='backslashreplace') as stream:
            return stream.readlines()

    def _ensure_shares_mounted(self):
        """Mount what is not mounted, all shares at once."""
        share_file = self.configuration.lustre_shares_config
        try:
            self._load_shares_config(share_file)
        except exception.VolumeBackendAPIException:
            # A file that is being edited must not take down a backend.
            with excutils.save_and_reraise_exception() as ctxt:
                if self.shares:
                    ctxt.reraise = False
                    LOG.exception('Going on with the shares known so far.')
        self._mounted_shares = list(
            self._for_each(self._ensure_share_mounted, self.shares))
        LOG.debug('Available shares: %s', self._mounted_shares)

    @staticmethod
    def _for_each(func, identities):
        """Call a function for several shares at once.

        :returns: its results by share, without those that are down
        """
        results = {}
        with futures.ThreadPoolExecutor(max(1, len(identities))) as executor:
            calls = {identity: executor.submit(func, identity)
                     for identity in identities}
        for identity, call in calls.items():
            try:
                results[identity] = call.result()
            except exception.VolumeBackendAPIException as exc:
                LOG.error('Share %(share)s is down: %(error)s',
                          {'share': identity, 'error': exc})
        return results

    def _ensure_share_mounted(self, lustre_share):
        """Mount a share, or see that what is mounted there is that share.

        :param lustre_share: an identity, or a share string with NIDs
        :raises: VolumeBackendAPIException
        """
        try:
            identity = self._identity(lustre_share)
            self._remotefsclient.mount(
                self._sources.get(identity, lustre_share),
                (self.shares.get(identity) or '').split())
        except (lustre_exception.LustreException, OSError) as exc:
            raise exception.VolumeBackendAPIException(data=str(exc)) from exc

    @staticmethod
    def _identity(lustre_share):
        return share.Share.parse(lustre_share).identity

    def _get_mount_point_for_share(self, path):
        return self._remotefsclient.get_mount_point(path)

    def _worker(self, identity, other=None):
        """What works on a share, or on two."""
        if other in (None, identity):
            return self._workers.setdefault(identity, worker.Worker(identity))
        pair = sorted((identity, other))
        name = '%s and %s' % tuple(pair)
        return self._workers.setdefault(name, worker.Worker(
            name, [self._worker(each) for each in pair]))

    def _run(self, func, lustre_share, *args, other=None, **kwargs):
        """Run a function on the root of a mounted share, in a child.

        :param other: another share that the function works on
        :raises: VolumeBackendAPIException; VolumeIsBusy while another
                 process, or Nova, works on the volume
        """
        self._ensure_share_mounted(lustre_share)
        identity = self._identity(lustre_share)
        try:
            child = self._worker(identity, other and self._identity(other))
            return child.run(
                func, self._get_mount_point_for_share(identity), *args,
                timeout=self.configuration.lustre_operation_timeout,
                # Statistics must not wait for what volumes are doing.
                probe=func is mount.survey,
                on_progress=_Progress(func, args), **kwargs)
        except (lustre_exception.VolumeBusy,
                lustre_exception.OperationPending) as exc:
            raise exception.VolumeIsBusy(message=str(exc)) from exc
        except lustre_exception.RecordMissing as exc:
            raise _NoRecord(data=str(exc)) from exc
        except (lustre_exception.LustreException, OSError) as exc:
            raise exception.VolumeBackendAPIException(data=str(exc)) from exc

    def _run_on(self, func, volume, *args, **kwargs):
        """Run a function on a volume's files.

        A volume that a RemoteFS driver wrote here gets a record first.
        """
        try:
            return self._run(func, volume.provider_location, volume.name_id,
                             *args, **kwargs)
        except _NoRecord:
            # Users who are not administrators do not see these.
            formats = db.volume_admin_metadata_get(
                cinder_context.get_admin_context(), volume.id)
            if not formats.get('format'):
                raise
            self._run(adoption.adopt, volume.provider_location, volume.name_id,
                      formats['format'], formats.get('base_format'))
            return self._run(func, volume.provider_location, volume.name_id,
                             *args, **kwargs)

    # Capacity

    def _get_available_capacity(self, lustre_share):
        """Free and total bytes of a share, as its project quota shows."""
        capacity = self._survey(self._identity(lustre_share))
        if not capacity['available']:
            LOG.error('Share %s is full. Free space, or raise its quota.',
                      self._identity(lustre_share))
        return capacity['available'], capacity['total']

    def _survey(self, identity):
        """What there is on a share.

        Only one at a time may look. Many volumes that are created at once
        take what it finds, instead of looking one after the other.
        """
        with self._surveys_lock:
            survey = self._surveys.get(identity)
            is_first = survey is None
            if is_first:
                survey = self._surveys[identity] = futures.Future()
        if is_first:
            try:
                survey.set_result(self._run(mount.survey, identity, identity))
            except BaseException as exc:
                survey.set_exception(exc)
            finally:
                with self._surveys_lock:
                    del self._surveys[identity]
        return survey.result()

    def _get_provisioned_capacity(self):
        """GiB that Cinder has promised on this backend, from its database."""
        admin = cinder_context.get_admin_context()
        if self.cluster_name:
            # The hosts of a cluster speak for the volumes of all of them.
            _count, size, _metadata = db.get_volume_summary(
                admin, False, {'cluster_name': self.cluster_name})
        else:
            _count, size = db.volume_data_get_for_host(admin, self.host)
        return float(size)

    def _find_share(self, volume):
        """The mounted share with the most room for a volume.

        :raises: RemoteFSNoSharesMounted, RemoteFSNoSuitableShareFound
        """
        if not self._mounted_shares:
            self._ensure_shares_mounted()
        if not self._mounted_shares:
            raise exception.RemoteFSNoSharesMounted()
        _format, thick = self._layout_of(volume)
        return self._roomiest(self._mounted_shares, volume.size, thick)

    def _roomiest(self, shares, size, thick):
        """The share with the most room for a volume.

        :param size: GiB
        :raises: RemoteFSNoSuitableShareFound
        """
        capacities = self._for_each(self._get_available_capacity, shares)
        room = {
            identity: (available -
                       total * self.configuration.reserved_percentage / 100)
            for identity, (available, total) in capacities.items()}
        best = max(room, key=room.get, default=None)
        if best is None or room[best] <= (size * units.Gi if thick else 0):
            raise exception.RemoteFSNoSuitableShareFound(volume_size=size)
        return best

    def _update_volume_stats(self):
        """Collect the statistics; a share that is down offers no space."""
        self._ensure_shares_mounted()
        capacities = self._for_each(self._get_available_capacity,
                                    self._mounted_shares)
        self._mounted_shares = list(capacities)
        for identity in set(self._mounted_shares) - self._recovered:
            self._recover_share(identity)
            self._recovered.add(identity)
        free = sum(available for available, _total in capacities.values())
        self._totals.update({identity: total for identity, (_available, total)
                             in capacities.items()})
        total = sum(self._totals.get(identity, 0) for identity in self.shares)
        for identity in self.shares:
            self._report_targets(identity)
        self._stats = {
            'volume_backend_name': (
                self.configuration.safe_get('volume_backend_name') or
                self.volume_backend_name),
            'vendor_name': self.vendor_name,
            'driver_version': self.get_version(),
            'storage_protocol': 'lustre',
            'backend_state': 'up' if capacities else 'down',
            'total_capacity_gb': total / units.Gi,
            'free_capacity_gb': free / units.Gi,
            'provisioned_capacity_gb': self._get_provisioned_capacity(),
            'reserved_percentage': self.configuration.reserved_percentage,
            'max_over_subscription_ratio': (
                volume_utils.get_max_over_subscription_ratio(
                    self.configuration.max_over_subscription_ratio,
                    supports_auto=True)),
            # A type that does not say which one gets what the option says.
            'thin_provisioning_support': (
                self.configuration.lustre_sparsed_volumes),
            'thick_provisioning_support': True,
            'sparse_copy_volume': True,
            'online_extend_support': True,
            'multiattach': True,
            'QoS_support': False,
            'location_info': _LOCATION + '|'.join(
                sorted(self._sources.values())),
        }

    def _report_targets(self, identity):
        """Log which targets of a share are down or nearly full."""
        fsname = share.Share.parse(identity).fsname
        down = [target for target, state in
                (lfs.target_states(fsname) or {}).items()
                if state == lfs.DISCONNECTED]
        if down:
            LOG.error('%(targets)s of share %(share)s do not answer. Volumes '
                      'on them cannot be used until their servers are back.',
                      {'targets': ', '.join(sorted(down)), 'share': identity})
        reserved = self.configuration.lustre_ost_reserved_percentage
        free = lfs.ost_free(fsname) or {}
        # No command that never blocks tells the size of one OST.
        size = self._totals.get(identity, 0) / max(1, len(free))
        full = ['%s (%.1f GiB)' % (target, available / units.Gi)
                for target, available in free.items()
                if available * 100 < size * reserved]
        if full:
            LOG.warning('Less than %(reserved)s %% of an average OST are free '
                        'on %(targets)s of share %(share)s: guests get errors '
                        'when one is full, whatever the others have. Move '
                        'files with "lfs migrate", or add OSTs.',
                        {'reserved': reserved, 'share': identity,
                         'targets': ', '.join(sorted(full))})

    # Volumes

    def _layout_of(self, volume):
        """The format of a new volume, and whether it is thick.

        :raises: InvalidVolumeType
        """
        return self._layout_of_type(volume.volume_type)

    def _layout_of_type(self, volume_type):
        specs = (volume_type and volume_type.extra_specs) or {}
        default = 'qcow2' if self.configuration.lustre_qcow2_volumes else 'raw'
        fmt = specs.get('lustre:format', default)
        if fmt not in qemu_img.FORMATS:
            raise exception.InvalidVolumeType(
                reason=_('lustre:format is "%s"; it can be raw or qcow2.')
                % fmt)
        default = ('thin' if self.configuration.lustre_sparsed_volumes
                   else 'thick')
        provisioning = specs.get('provisioning:type', default)
        if provisioning not in ('thin', 'thick'):
            raise exception.InvalidVolumeType(
                reason=_('provisioning:type is "%s"; it can be thin or '
                         'thick.') % provisioning)
        return fmt, provisioning == 'thick'

    def _place(self, volume):
        """Choose where a new volume goes.

        :returns: its layout; volume.provider_location is set
        """
        # Another backend may have failed to make it before, on its own share.
        volume.provider_location = None
        layout = self._layout_of(volume)
        if volume.encryption_key_id:
            self._check_encrypted_file(layout[0])
            self._cipher_of(volume)
            if volume.is_migration_target():
                self._check_same_encryption(objects.Volume.get_by_id(
                    cinder_context.get_admin_context(),
                    volume.migration_status.partition(':')[2]), volume)
        if volume.multiattach and layout[0] != 'raw':
            raise exception.InvalidVolumeType(
                reason=_('only raw volumes can be attached to several '
                         'servers; set lustre:format to raw.'))
        volume.provider_location = self._find_share(volume)
        # Before there are files: a deletion after a crash must find them.
        volume.save()
        return layout

    @staticmethod
    def _publish(volume, layout):
        """Let the database say which file is active, and its format."""
        # Not through the object, which may be old, or a user's.
        admin = cinder_context.get_admin_context()
        db.volume_admin_metadata_update(
            admin, volume.id, {'format': layout['format']}, False)
        current = {'name': layout['active'], 'format': layout['format']}
        for attachment in objects.VolumeAttachmentList.get_all_by_volume_id(
                admin, volume.id):
            known = attachment.connection_info
            if known and 'name' in known and not (
                    current.items() <= known.items()):
                # Nova starts a server again with what stands here.
                attachment.connection_info = dict(known, **current)
                attachment.save()

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def create_volume(self, volume):
        """Create an empty volume.

        :returns: its provider_location, the identity of its share
        """
        fmt, thick = self._place(volume)
        self._publish(volume, self._run_on(
            chain.create, volume, fmt, volume.size * units.Gi, thick,
            luks=self._luks_of(volume)))
        return {'provider_location': volume.provider_location}

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def delete_volume(self, volume):
        """Delete a volume with all files that belong to it."""
        if not volume.provider_location:
            LOG.warning('Volume %s has no provider_location, so it has no '
                        'files either.', volume.name)
            return
        self._run_on(chain.delete, volume)

    def _extend_volume(self, volume, size_gb):
        if (self._is_volume_attached(volume) and
                self._run_on(chain.describe, volume)['format'] != 'raw'):
            raise exception.InvalidVolume(
                reason=_('a volume in qcow2 format, or that has or had '
                         'snapshots, cannot be extended while it is attached. '
                         'Detach it first.'))
        self._publish(volume, self._run_on(chain.extend, volume,
                                           size_gb * units.Gi))

    def _copy_volume(self, source, snapshot_id, volume):
        """Make a volume from the content of another one."""
        if bool(source.encryption_key_id) != bool(volume.encryption_key_id):
            raise exception.InvalidVolume(
                reason=_('a copy of volume %s has to be encrypted as that is. '
                         'Copy what you need within a server.') % source.id)
        fmt, thick = self._place(volume)
        self._publish(volume, self._copy(
            source, snapshot_id, volume.provider_location, volume.name_id,
            fmt, volume.size, thick))
        return {'provider_location': volume.provider_location}

    def _copy(self, source, snapshot_id, target_share, target, fmt, size,
              thick, **kwargs):
        self._ensure_share_mounted(target_share)
        return self._run_on(
            chain.copy, source, snapshot_id,
            self._get_mount_point_for_share(target_share), target, fmt,
            size * units.Gi, thick, other=target_share, **kwargs)

    # The source's own fence keeps the snapshot as it is.
    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def create_volume_from_snapshot(self, volume, snapshot):
        """Create a volume with the content of a snapshot."""
        return self._create_volume_from_snapshot(volume, snapshot)

    def _create_volume_from_snapshot(self, volume, snapshot):
        return self._copy_volume(snapshot.volume, snapshot.id, volume)

    def _create_cloned_volume(self, volume, src_vref, context):
        with self._frozen(context, src_vref) as snapshot_id:
            return self._copy_volume(src_vref, snapshot_id, volume)

    @contextlib.contextmanager
    def _frozen(self, context, volume):
        """Keep a volume as it is now, also while a server writes to it.

        :returns: the id of a temporary snapshot to read, or None for the
                  volume itself
        """
        if not self._check_attachments(volume):
            yield None
            return
        self._refuse_snapshot_of_encrypted(volume)
        snapshot = objects.Snapshot(
            context=context.elevated(), volume_id=volume.id,
            user_id=context.user_id, project_id=context.project_id,
            status=fields.SnapshotStatus.CREATING, progress='0%',
            volume_size=volume.size, display_name='tmp-snap-%s' % volume.id,
            volume_type_id=volume.volume_type_id, use_quota=False)
        snapshot.create()
        try:
            self._create_snapshot(snapshot)
            # Nova waits for another state; nobody may delete it meanwhile.
            snapshot.status = fields.SnapshotStatus.BACKING_UP
            snapshot.save()
            yield snapshot.id
        finally:
            snapshot.status = fields.SnapshotStatus.DELETING
            snapshot.save()
            try:
                self._delete_snapshot(snapshot)
                snapshot.destroy()
            except Exception:
                # What was read from it is good.
                LOG.exception('Temporary snapshot %(snapshot)s of volume '
                              '%(volume)s is left. Delete it.',
                              {'snapshot': snapshot.id, 'volume': volume.id})
                snapshot.status = fields.SnapshotStatus.ERROR
                snapshot.save()

    def get_backup_device(self, context, backup):
        """What cinder-backup reads: a volume, or a copy of a snapshot."""
        try:
            return super().get_backup_device(context, backup)
        except Exception as exc:
            # Nobody waits for an answer: cinder-backup goes on when called.
            with excutils.save_and_reraise_exception():
                volume_utils.update_backup_error(backup, str(exc))
                volume = objects.Volume.get_by_id(context, backup.volume_id)
                source, status = volume, volume.previous_status
                if backup.snapshot_id:
                    source = objects.Snapshot.get_by_id(context,
                                                        backup.snapshot_id)
                    status = fields.SnapshotStatus.AVAILABLE
                source.status = status
                source.save()

    # Encryption

    def _check_encrypted_file(self, fmt):
        """See that Nova will let QEMU open a file of LUKS, and no more.

        :raises: InvalidVolumeType
        """
        if fmt != 'raw':
            raise exception.InvalidVolumeType(
                reason=_('only raw volumes can be encrypted; set '
                         'lustre:format to raw.'))
        if self.configuration.lustre_connection_type != 'lustre':
            raise exception.InvalidVolumeType(
                reason=_('with lustre_connection_type = %s Nova would format '
                         'an encrypted volume whose header it cannot read. '
                         'Set it to lustre, or use a type without '
                         'encryption.')
                % self.configuration.lustre_connection_type)

    @staticmethod
    def _cipher_of(volume):
        """What QEMU is to encrypt a volume with, as its type says.

        :raises: InvalidVolumeType
        """
        admin = cinder_context.get_admin_context()
        try:
            specs = volume_utils.check_encryption_provider(volume, admin)
            cipher = image_utils.decode_cipher(str(specs['cipher']),
                                               specs['key_size'])
        except (exception.VolumeDriverException,
                exception.InvalidVolumeType) as exc:
            raise exception.InvalidVolumeType(
                reason=_('%s Set the provider of its encryption to luks, the '
                         'cipher to aes-xts-plain64 and the key size to 256.')
                % exc.msg) from exc
        if specs['control_location'] != 'front-end':
            raise exception.InvalidVolumeType(
                reason=_('its encryption is not by the front end, which is '
                         'Nova. Set the control location to front-end.'))
        if (cipher['cipher_alg'] not in _CIPHER_ALGS or
                cipher['cipher_mode'] not in _CIPHER_MODES or
                cipher['ivgen_alg'] not in _IVGEN_ALGS):
            raise exception.InvalidVolumeType(
                reason=_('the cipher %(cipher)s with a key size of %(size)s '
                         'cannot be used on Lustre. Use aes-xts-plain64 with '
                         '256.')
                % {'cipher': specs['cipher'], 'size': specs['key_size']})
        return cipher

    def _luks_of(self, volume):
        """How QEMU is to encrypt a volume, None if it is not.

        A migration overwrites its target with what is encrypted already, and
        whoever moves the volumes of others cannot read their keys.

        :returns: the arguments of qemu_img.format_luks()
        """
        if not volume.encryption_key_id or volume.is_migration_target():
            return None
        key = key_manager.API(CONF).get(volume.obj_context,
                                        volume.encryption_key_id)
        # Nova makes the passphrase of a key in the same way.
        return dict(self._cipher_of(volume),
                    passphrase=binascii.hexlify(key.get_encoded()).decode())

    @staticmethod
    def _check_same_encryption(source, target):
        """See that Cinder does not copy a volume through dm-crypt.

        Where it finds zeros it writes nothing, and what is decrypted there is
        noise; and what it cannot read it takes for a volume without header.

        :raises: InvalidVolume
        """
        if volume_types.volume_types_encryption_changed(
                cinder_context.get_admin_context(), source.volume_type_id,
                target.volume_type_id):
            raise exception.InvalidVolume(
                reason=_('the encryption of volume %s cannot be changed. '
                         'Copy what you need to a volume of the other type '
                         'within a server.') % source.id)

    @staticmethod
    def _check_restored(volume):
        """See that a backup does not change what an encrypted volume is.

        Cinder itself finds that out when it has overwritten the volume.

        :raises: InvalidVolume
        """
        # The table of backups is long, and has no index for what follows.
        if volume.status not in _RESTORED:
            return
        for backup in objects.BackupList.get_all(
                cinder_context.get_admin_context(), filters={
                    'restore_volume_id': volume.id,
                    'status': fields.BackupStatus.RESTORING}):
            if bool(backup.encryption_key_id) != bool(
                    volume.encryption_key_id):
                raise exception.InvalidVolume(
                    reason=_('backup %(backup)s cannot be restored to volume '
                             '%(volume)s, for only one of them is encrypted. '
                             'Restore it to a volume of the type that it was '
                             'made of.')
                    % {'backup': backup.id, 'volume': volume.id})

    # Images

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def copy_image_to_volume(self, context, volume, image_service, image_id,
                             disable_sparse=False):
        """Fill a volume with an image, in the volume's own format.

        If the volume is encrypted, the image is so already.
        """
        with self._fetched(context, volume, image_service,
                           image_id) as (path, fmt):
            if volume.encryption_key_id:
                self._check_luks(path, fmt, image_id)
            self._publish(volume, self._run_on(
                chain.load, volume, path, fmt, not disable_sparse))

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def copy_image_to_encrypted_volume(self, context, volume, image_service,
                                       image_id, disable_sparse=False):
        """Fill an encrypted volume with an image that is not."""
        luks = self._luks_of(volume)
        with self._fetched(context, volume, image_service,
                           image_id) as (path, fmt):
            self._publish(volume, self._run_on(
                chain.load, volume, path, fmt, luks=luks))

    @staticmethod
    def _check_luks(path, fmt, image_id):
        with open(path, 'rb') as stream:
            header = stream.read(len(_LUKS1))
        if fmt != 'raw' or header != _LUKS1:
            raise exception.ImageUnacceptable(
                image_id=image_id,
                reason=_('it has the key of an encrypted volume, and is not '
                         'an image of one in LUKS version 1. Remove the '
                         'property cinder_encryption_key_id if it was never '
                         'encrypted.'))

    @contextlib.contextmanager
    def _fetched(self, context, volume, image_service, image_id):
        """An image in a file of this host, checked as Cinder checks images.

        Cinder's own conversion would write to the share from this process.

        :returns: the path of the file, and its format
        :raises: ImageUnacceptable, ImageConversionNotAllowed
        """
        fmt = self._run_on(chain.describe, volume)['format']
        meta = image_service.show(context, image_id)
        if (meta.get('container_format') == 'compressed' or
                image_utils.is_xenserver_format(meta)):
            # Cinder unpacks these only on their way to a volume.
            with image_utils.temporary_file(
                    prefix='image_unpack_%s_' % image_id) as path:
                image_utils.fetch_to_volume_format(
                    context, image_service, image_id, path, fmt,
                    self.configuration.volume_dd_blocksize, size=volume.size,
                    run_as_root=False)
                yield path, fmt
            return
        image_utils.check_image_conversion_disable(meta['disk_format'], fmt,
                                                   image_id)
        with contextlib.ExitStack() as stack:
            # The manager may have fetched it already.
            images = image_utils.TemporaryImages
            path = (images.for_image_service(image_service).get(
                context, image_id) or stack.enter_context(
                    images.fetch(image_service, context, image_id)))
            data = image_utils.qemu_img_info(path, run_as_root=False)
            image_utils.check_virtual_size(data.virtual_size, volume.size,
                                           image_id)
            image_utils.check_image_format(
                path, image_utils.fixup_disk_format(meta['disk_format']),
                image_id, data, run_as_root=False)
            yield path, data.file_format

    def _copy_volume_to_image(self, context, volume, image_service,
                              image_meta, store_id=None):
        """Upload a volume, flattened straight into the image's format."""
        layout = self._run_on(chain.describe, volume)
        image_utils.check_image_conversion_disable(
            image_meta['disk_format'], layout['format'], image_meta['id'],
            upload=True)
        compressed = image_meta.get('container_format') == 'compressed'
        if volume.encryption_key_id and (
                compressed or image_meta['disk_format'] != 'raw'):
            raise exception.ImageUnacceptable(
                image_id=image_meta['id'],
                reason=_('an encrypted volume can be uploaded as it is only, '
                         'in the formats raw and bare.'))
        # Cinder converts once more while it compresses, and must not find
        # what a guest wrote where it expects an image.
        fmt = 'qcow2' if compressed else image_meta['disk_format']
        if (fmt == layout['format'] == 'raw' and
                not self._is_volume_attached(volume)):
            self._upload(context, image_service, image_meta, volume,
                         os.path.join(self._local_volume_dir(volume),
                                      layout['active']), fmt)
            return
        with image_utils.temporary_file(prefix='%s.%s' % (
                volume.id, image_meta['id'])) as path:
            with self._frozen(context, volume) as snapshot_id:
                self._run_on(
                    chain.export, volume, snapshot_id, path,
                    image_utils.fixup_disk_format(fmt),
                    compress=CONF.image_compress_on_upload and
                    not compressed and
                    fmt in image_utils.COMPRESSIBLE_IMAGE_FORMATS)
            self._upload(context, image_service, image_meta, volume, path,
                         fmt)

    @staticmethod
    def _upload(context, image_service, image_meta, volume, path, fmt):
        volume_utils.upload_volume(context, image_service, image_meta, path,
                                   volume, volume_format=fmt,
                                   run_as_root=False)

    # Snapshots

    def _check_attachments(self, volume):
        """See that no attachment is about to open or to leave a file.

        :returns: whether a server has the volume
        :raises: InvalidVolume
        """
        # The caller may have waited for the lock, and its object is older.
        volume = self._as_it_is(volume)
        states = [attachment.attach_status for attachment
                  in volume.volume_attachment
                  if attachment.attach_status != _DETACHED]
        if volume.status in _MOVING or set(states) & set(_MOVING):
            raise exception.InvalidVolume(
                reason=_('volume %s is just being attached or detached. '
                         'Repeat the operation when that has ended.')
                % volume.id)
        if not self._is_volume_attached(volume):
            return False
        if len(states) > 1:
            raise exception.InvalidVolume(
                reason=_('volume %s is attached to several servers, of which '
                         'none can take its snapshots. Detach it from all '
                         'but one.') % volume.id)
        return True

    @staticmethod
    def _as_it_is(volume):
        return objects.Volume.get_by_id(cinder_context.get_admin_context(),
                                        volume.id)

    @staticmethod
    def _refuse_snapshot_of_encrypted(volume):
        if volume.encryption_key_id:
            raise exception.InvalidVolume(
                reason=_('volume %s is encrypted and can have no snapshots, '
                         'also while it is copied: Nova could not open the '
                         'qcow2 file above its own. Clone, upload or back it '
                         'up while it is detached.') % volume.id)

    def _create_snapshot(self, snapshot):
        volume = snapshot.volume
        self._refuse_snapshot_of_encrypted(volume)
        if not self._check_attachments(volume):
            self._publish(volume, self._run_on(chain.create_snapshot, volume,
                                               snapshot.id))
            return
        # What a killed service left is settled first: the guest has one file.
        self._run_on(chain.settle, volume)
        new_file, _lower = self._run_on(chain.begin_snapshot, volume,
                                        snapshot.id)
        try:
            self._nova.create_volume_snapshot(
                snapshot.obj_context, volume.id,
                {'type': 'qcow2', 'new_file': new_file,
                 'snapshot_id': snapshot.id})
            self._wait_for_nova(snapshot, fields.SnapshotStatus.CREATING,
                                _CREATION_WAIT)
            self._run_on(chain.confirm_snapshot, volume, snapshot.id)
        finally:
            self._publish(volume, self._run_on(chain.settle, volume))

    def _wait_for_nova(self, snapshot, status, patience):
        """Wait until Nova says, by the snapshot's progress, that it is done.

        :param status: what the snapshot has until then
        :param patience: seconds
        :raises: RemoteFSException when Nova has failed, or its server is gone
        """
        start = looked = time.monotonic()
        volume = snapshot.volume
        while True:
            # Nova changes the database, not this object.
            found = db.snapshot_get(snapshot.obj_context, snapshot.id)
            waited = time.monotonic() - start
            if found.status != status:
                problem = _('its status is "%s"') % found.status
            elif found.progress == _NOVA_IS_DONE:
                return
            elif waited > patience:
                problem = _('Nova has not answered for %d seconds') % waited
            else:
                problem = None
            if problem is None and time.monotonic() > looked + _LOOK_INTERVAL:
                looked = time.monotonic()
                if not self._run_on(chain.is_written, volume):
                    problem = _('no server has its volume open')
            if problem is not None:
                raise exception.RemoteFSException(
                    _('Snapshot %(id)s was not completed by Nova: '
                      '%(problem)s. See the log of nova-compute, then delete '
                      'the snapshot; if its state is "error_deleting", set '
                      'it to "error" first.')
                    % {'id': snapshot.id, 'problem': problem})
            time.sleep(_NOVA_POLL)

    def _delete_snapshot(self, snapshot):
        volume = snapshot.volume
        try:
            if not self._check_attachments(volume):
                self._publish(volume, self._run_on(
                    chain.delete_snapshot, volume, snapshot.id))
                return
            delete_info = self._run_on(chain.begin_delete_snapshot, volume,
                                       snapshot.id)
        except (exception.VolumeIsBusy, exception.InvalidVolume) as exc:
            # Nothing is wrong with the snapshot: it is to stay available.
            raise exception.SnapshotIsBusy(message=str(exc)) from exc
        if delete_info is not None:
            self._delete_snapshot_of_guest(volume, snapshot, delete_info)

    def _delete_snapshot_of_guest(self, volume, snapshot, delete_info):
        delete_info['volume_id'] = volume.id
        # What stands here from its creation would be taken for the answer.
        snapshot.progress = '0%'
        snapshot.save()
        try:
            self._nova.delete_volume_snapshot(snapshot.obj_context,
                                              snapshot.id, delete_info)
            self._wait_for_nova(snapshot, fields.SnapshotStatus.DELETING,
                                _DELETION_WAIT)
        except Exception:
            # A snapshot that is merged in part is not available any more.
            with excutils.save_and_reraise_exception():
                try:
                    self._publish(volume, self._run_on(chain.settle, volume))
                except exception.CinderException as exc:
                    LOG.error('The deletion of snapshot %(snapshot)s has not '
                              'come to an end: %(error)s',
                              {'snapshot': snapshot.id, 'error': exc})
        self._publish(volume, self._run_on(chain.settle, volume))

    def _revert_to_snapshot(self, context, volume, snapshot):
        if self._is_volume_attached(volume):
            raise exception.InvalidVolume(
                reason=_('volume %s is attached and cannot be reverted. '
                         'Detach it first.') % volume.id)
        self._publish(volume, self._run_on(chain.revert, volume, snapshot.id))

    def backup_use_temp_snapshot(self):
        """Volumes are backed up through temporary volumes alone."""
        return False

    @classmethod
    def clean_volume_file_locks(cls, volume_id):
        coordination.synchronized_remove('%s-%s' % (cls.driver_prefix,
                                                    volume_id))

    # Other types, other shares, other hosts

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def retype(self, context, volume, new_type, diff, host):
        """Give a volume the format and provisioning of another type.

        :returns: False where only a migration can do that
        """
        wanted = fmt, thick = self._layout_of_type(new_type)
        if volume.encryption_key_id:
            self._check_encrypted_file(fmt)
        layout = self._run_on(chain.describe, volume)
        attached = self._is_volume_attached(self._as_it_is(volume))
        if attached or layout['snapshots']:
            if wanted == self._layout_of(volume):
                return True
            LOG.warning('Volume %s keeps its format and provisioning while '
                        'it is attached or has snapshots.', volume.id)
            return False
        self._publish(volume, self._run_on(chain.convert, volume, fmt, thick))
        return True

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def migrate_volume(self, context, volume, host):
        """Move a volume to another backend on Lustre, share to share.

        :returns: whether it was moved, and the update of the model
        """
        location = host['capabilities'].get('location_info') or ''
        if (not location.startswith(_LOCATION) or
                self._check_attachments(volume)):
            return False, None
        sources = {self._identity(source): source for source
                   in location[len(_LOCATION):].split('|') if source}
        old = self._identity(volume.provider_location)
        if old in sources:
            return True, {}
        layout = self._run_on(chain.describe, volume)
        if layout['snapshots']:
            return False, None
        try:
            new = self._identity(self._roomiest(
                list(sources.values()), volume.size, layout['thick']))
        except exception.RemoteFSNoSuitableShareFound:
            # Perhaps its own host can reach them.
            return False, None
        self._copy(volume, None, sources[new], volume.name_id,
                   layout['format'], volume.size, layout['thick'],
                   moving=True)
        volume.update({'provider_location': new, 'host': host['host'],
                       'cluster_name': host.get('cluster_name')})
        volume.save()
        try:
            self._run(chain.settle, sources[new], volume.name_id)
            self._run(chain.delete, old, volume.name_id)
        except exception.CinderException as exc:
            LOG.error('Volume %(volume)s has moved to %(new)s, but its old '
                      'files on %(old)s could not be removed: %(error)s '
                      'Remove them there.', {
                          'volume': volume.id, 'new': new, 'old': old,
                          'error': exc})
        return True, {'provider_location': new}

    def update_migrated_volume(self, ctxt, volume, new_volume,
                               original_volume_status):
        """Let a migrated volume keep the name that its files have.

        The old files may lie on the same share until they are deleted.
        """
        return {'_name_id': new_volume.name_id,
                'provider_location': new_volume.provider_location}

    # Volumes and snapshots that Cinder does not know yet

    def _locate(self, existing_ref):
        """The share and the file on it that a reference means.

        :raises: ManageExistingInvalidReference
        """
        name = existing_ref.get('source-name') or ''
        for identity in sorted(self._mounted_shares, key=len, reverse=True):
            for prefix in (identity, self._sources.get(identity, identity)):
                rest = name.removeprefix(prefix + '/')
                if rest and rest != name:
                    return identity, rest
        raise exception.ManageExistingInvalidReference(
            existing_ref=existing_ref,
            reason=_('"source-name" has to be the path of a file on a share '
                     'of this backend, as in %s/volume-1.')
            % min(self._mounted_shares, default='lustre:/testfs'))

    def _look_up(self, volume, existing_ref):
        identity, name = self._locate(existing_ref)
        fmt = existing_ref.get('source-format', self._layout_of(volume)[0])
        if fmt not in qemu_img.FORMATS:
            raise exception.ManageExistingInvalidReference(
                existing_ref=existing_ref,
                reason=_('"source-format" can be raw or qcow2.'))
        try:
            found = self._run(adoption.look_up, identity, name, fmt)
        except exception.VolumeBackendAPIException as exc:
            raise exception.ManageExistingInvalidReference(
                existing_ref=existing_ref, reason=str(exc)) from exc
        if (found['owner'] != volume.name_id and
                self._known(found['owner'])):
            raise exception.ManageExistingAlreadyManaged(
                volume_ref=existing_ref['source-name'])
        return identity, name, fmt, found['size']

    @classmethod
    def _known(cls, name_id):
        """Whether a volume of any backend has files of that name."""
        return name_id is not None and bool(cls._volumes_of(name_id))

    @staticmethod
    def _volumes_of(name_id):
        """The volumes whose files have a name."""
        admin = cinder_context.get_admin_context()
        return [volume for key in ('id', '_name_id')
                for volume in objects.VolumeList.get_all(
                    admin, filters={key: name_id})
                if volume.name_id == name_id]

    def manage_existing_get_size(self, volume, existing_ref):
        """The size that a volume of a file will have, in GiB.

        :raises: ManageExistingInvalidReference, ManageExistingAlreadyManaged
        """
        return math.ceil(self._look_up(volume, existing_ref)[-1] / units.Gi)

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def manage_existing(self, volume, existing_ref):
        """Make a file, or a volume that was unmanaged, a volume of Cinder.

        :param existing_ref: ``source-name``, the share and the file on it;
            ``source-format``, raw or qcow2, for a file that was never a
            volume (default: what the volume's type says)
        :raises: ManageExistingInvalidReference, ManageExistingAlreadyManaged
        """
        # Nobody knows the key; Cinder refuses to unmanage them, too.
        if volume_types.is_encrypted(cinder_context.get_admin_context(),
                                     volume.volume_type_id):
            raise exception.ManageExistingVolumeTypeMismatch(
                reason=_('encrypted volumes cannot be managed. Use a type '
                         'without encryption.'))
        identity, name, fmt, size = self._look_up(volume, existing_ref)
        volume.provider_location = identity
        # Cinder gives the volume its size afterwards.
        self._publish(volume, self._run(
            adoption.manage, identity, name, volume.name_id, fmt,
            math.ceil(size / units.Gi) * units.Gi))
        return {'provider_location': identity}

    def unmanage(self, volume):
        """Leave the files and their record for a later manage_existing."""

    def _listing(self, known):
        """What lies on the shares, with the volume that each one is.

        :param known: Cinder's volumes on this backend
        """
        by_name = {volume.name_id: volume for volume in known}
        for identity, found in self._for_each(
                lambda each: self._run(adoption.manageable, each),
                self._mounted_shares).items():
            for entry in found:
                yield identity, entry, by_name.get(entry['volume'])

    def get_manageable_volumes(self, cinder_volumes, marker, limit, offset,
                               sort_keys, sort_dirs):
        """List the files that can become volumes, and those that are some."""
        entries = []
        for identity, found, volume in self._listing(cinder_volumes):
            reason = None
            if volume:
                reason = _('already managed')
            elif self._known(found['owner']):
                reason = _('managed by another backend, or not used since '
                           'another driver made it')
            entries.append({
                'reference': {'source-name': '%s/%s' % (identity,
                                                        found['name'])},
                'size': math.ceil(found['size'] / units.Gi),
                'safe_to_manage': reason is None,
                'reason_not_safe': reason,
                'cinder_id': volume.id if volume else None,
                'extra_info': None if found['volume'] else _(
                    'the format is what source-format or the type says')})
        return volume_utils.paginate_entries_list(
            entries, marker, limit, offset, sort_keys, sort_dirs)

    def get_manageable_snapshots(self, cinder_snapshots, marker, limit,
                                 offset, sort_keys, sort_dirs):
        """List the layers of volumes that can become snapshots."""
        volumes = objects.VolumeList.get_all(
            cinder_context.get_admin_context(),
            filters=({'cluster_name': self.cluster_name}
                     if self.cluster_name else {'host': self.host}))
        known = {snapshot.id for snapshot in cinder_snapshots}
        entries = []
        for identity, found, volume in self._listing(volumes):
            for layer in found['layers'] if volume else ():
                managed = layer['snapshot'] in known
                entries.append({
                    'reference': {'source-name': layer['name']},
                    'size': math.ceil(layer['size'] / units.Gi),
                    'safe_to_manage': layer['snapshot'] is None,
                    'reason_not_safe': layer['snapshot'] and (
                        _('already managed') if managed else
                        _('a snapshot that Cinder does not know')),
                    'cinder_id': layer['snapshot'] if managed else None,
                    'extra_info': None,
                    'source_reference': {'source-name': '%s/%s' % (
                        identity, found['name'])}})
        return volume_utils.paginate_entries_list(
            entries, marker, limit, offset, sort_keys, sort_dirs)

    def _run_on_layer(self, func, snapshot, existing_ref, *args):
        try:
            return self._run_on(func, snapshot.volume, *args,
                                existing_ref.get('source-name') or '')
        except exception.VolumeBackendAPIException as exc:
            raise exception.ManageExistingInvalidReference(
                existing_ref=existing_ref, reason=str(exc)) from exc

    def manage_existing_snapshot_get_size(self, snapshot, existing_ref):
        """The size of a layer that is to be a snapshot, in GiB.

        :raises: ManageExistingInvalidReference
        """
        return math.ceil(self._run_on_layer(
            adoption.snapshot_size, snapshot, existing_ref) / units.Gi)

    @coordination.synchronized('{self.driver_prefix}-{snapshot.volume.id}')
    def manage_existing_snapshot(self, snapshot, existing_ref):
        """Make a layer of a volume one of its snapshots.

        :param existing_ref: ``source-name``, the layer's file name, or the
            id that the snapshot had before it was unmanaged
        :raises: ManageExistingInvalidReference
        """
        self._run_on_layer(adoption.name_snapshot, snapshot, existing_ref,
                           snapshot.id)

    @coordination.synchronized('{self.driver_prefix}-{snapshot.volume.id}')
    def unmanage_snapshot(self, snapshot):
        """Leave the snapshot's data where they are, without its name."""
        self._run_on(adoption.forget_snapshot, snapshot.volume, snapshot.id)

    # Attaching

    def ensure_export(self, ctx, volume):
        """See that a volume's share is mounted, when the service starts.

        A share that is down then is no reason to call its volumes broken.
        """
        try:
            self._ensure_share_mounted(volume.provider_location)
        except exception.VolumeBackendAPIException as exc:
            LOG.error('Volume %(volume)s cannot be used now: %(error)s',
                      {'volume': volume.id, 'error': exc})

    def _recover_share(self, identity):
        """Settle what a killed service left on a share, once it is there."""
        for name_id in self._run(chain.pending, identity):
            for volume in self._volumes_of(name_id):
                if volume.host.partition('#')[0] == self.host:
                    try:
                        self._recover(volume)
                    except (exception.CinderException,
                            tooz.coordination.LockAcquireFailed) as exc:
                        LOG.warning('Volume %(volume)s is not recovered '
                                    'now: %(error)s',
                                    {'volume': volume.id, 'error': exc})

    def _recover(self, volume):
        # Whoever has the lock is at work on it, and recovers it first.
        with self._lock(volume, False):
            self._publish(volume, self._run_on(chain.settle, volume))

    def _lock(self, volume, blocking):
        """The lock of a volume, if it is free in time.

        coordination.synchronized() goes on without it when it is not.

        :param blocking: seconds to wait, or False
        :raises: LockAcquireFailed
        """
        lock = coordination.COORDINATOR.get_lock(
            '%s-%s' % (self.driver_prefix, volume.id))
        return lock(blocking)

    def initialize_connection(self, volume, connector):
        """Say which file on which share a host has to open.

        :raises: InvalidVolume when the file is larger than the volume;
                 VolumeIsBusy while something else works on the volume
        """
        try:
            with self._lock(volume, _CONNECTION_WAIT):
                return self._connect(volume)
        except tooz.coordination.LockAcquireFailed as exc:
            raise exception.VolumeIsBusy(
                message=_('volume %s is being worked on. Attach it again '
                          'when that has ended.') % volume.id) from exc

    def _connect(self, volume):
        layout = self._run_on(chain.describe, volume)
        current = self._as_it_is(volume)
        self._check_restored(current)
        if volume.encryption_key_id:
            self._check_encrypted_file(layout['format'])
            for target in objects.VolumeList.get_all(
                    cinder_context.get_admin_context(), filters={
                        'migration_status': 'target:%s' % volume.id}):
                self._check_same_encryption(volume, target)
        self._publish(volume, layout)
        self._check_sharing(current, layout)
        size = volume.size * units.Gi
        if layout['size'] > size:
            raise exception.InvalidVolume(
                reason=_('its file has %(actual)s bytes, more than the '
                         '%(size)s GiB that Cinder knows of. If extending it '
                         'failed, extend it to that size again; otherwise '
                         'check what changed it.')
                % {'actual': layout['size'], 'size': volume.size})
        if layout['size'] < size:
            LOG.warning('Growing volume %(volume)s to the %(size)s GiB that '
                        'Cinder knows of.',
                        {'volume': volume.id, 'size': volume.size})
            layout = self._run_on(chain.extend, volume, size)
            self._publish(volume, layout)
        identity = self._identity(volume.provider_location)
        connection_type = self.configuration.lustre_connection_type
        export = identity
        if connection_type == 'lustre':
            export = self._sources.get(identity, identity)
        return {
            'driver_volume_type': connection_type,
            'data': {'export': export,
                     'name': layout['active'],
                     'format': layout['format'],
                     'options': self.shares.get(identity),
                     # It would take away the space of a thick volume.
                     'discard': not layout['thick']},
            'mount_point_base': self._get_mount_point_base(),
        }

    @staticmethod
    def _check_sharing(volume, layout):
        """Refuse to let a second server write to a qcow2 file."""
        instances = {attachment.instance_uuid for attachment
                     in volume.volume_attachment
                     if attachment.attach_status != _DETACHED}
        # One server that migrates has two attachments.
        if layout['format'] != 'raw' and len(instances) > 1:
            raise exception.InvalidVolume(
                reason=_('volume %s is in qcow2 format, as its type says so '
                         'or it has or had snapshots, and can be attached to '
                         'one server only. Detach it there first; without '
                         'snapshots, extending or retyping it makes it raw '
                         'again.') % volume.id)

    # What the base class reads from files, the record says

    def local_path(self, volume):
        return os.path.join(self._local_volume_dir(volume),
                            record.base_name(volume.name_id))

    def get_active_image_from_info(self, volume):
        return self._run_on(chain.describe, volume)['active']

    def _qemu_img_info_base(self, path, volume_name, basedir, **kwargs):
        raise exception.VolumeDriverException(
            message=_('The format of %s was about to be probed. This is a '
                      'defect of the driver; please report it.') % path)

    def _qemu_img_info(self, path, volume_name, **kwargs):
        return self._qemu_img_info_base(path, volume_name, self.base)


class _NoRecord(exception.VolumeBackendAPIException):
    """A volume has no record on its share."""


class _Progress:
    """Writes how far a long operation is into the log, now and then."""

    def __init__(self, func, args):
        self._operation = '%s of volume %s' % (func.__name__,
                                               args[0] if args else '')
        self._next = time.monotonic() + _PROGRESS_INTERVAL

    def __call__(self, percent):
        if percent is not None and time.monotonic() > self._next:
            self._next = time.monotonic() + _PROGRESS_INTERVAL
            LOG.info('%(operation)s: %(percent).0f %%',
                     {'operation': self._operation, 'percent': percent})
