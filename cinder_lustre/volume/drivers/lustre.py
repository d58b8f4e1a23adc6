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

from concurrent import futures
import os
import shutil
import time

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
from cinder.volume import volume_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import units

from cinder_lustre.brick import client
from cinder_lustre.brick import mount
from cinder_lustre import chain
from cinder_lustre import exception as lustre_exception
from cinder_lustre import opts
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import share
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

# Seconds between two lines in the log about one copy.
_PROGRESS_INTERVAL = 10

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
        # The last known sizes of the shares in bytes.
        self._totals = {}

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
                self._sources.get(identity, identity),
                (self.shares.get(identity) or '').split())
        except (lustre_exception.LustreException, OSError) as exc:
            raise exception.VolumeBackendAPIException(data=str(exc)) from exc

    @staticmethod
    def _identity(lustre_share):
        return share.Share.parse(lustre_share).identity

    def _get_mount_point_for_share(self, path):
        return self._remotefsclient.get_mount_point(path)

    def _worker(self, identity):
        return self._workers.setdefault(identity, worker.Worker(identity))

    def _run(self, func, lustre_share, *args, **kwargs):
        """Run a function on the root of a mounted share, in a child.

        :raises: VolumeBackendAPIException
        """
        self._ensure_share_mounted(lustre_share)
        identity = self._identity(lustre_share)
        try:
            return self._worker(identity).run(
                func, self._get_mount_point_for_share(identity), *args,
                timeout=self.configuration.lustre_operation_timeout,
                on_progress=_Progress(func, args), **kwargs)
        except (lustre_exception.LustreException, OSError) as exc:
            raise exception.VolumeBackendAPIException(data=str(exc)) from exc

    def _run_on(self, func, volume, *args, **kwargs):
        return self._run(func, volume.provider_location, volume.name_id,
                         *args, **kwargs)

    # Capacity

    def _get_available_capacity(self, lustre_share):
        """Free and total bytes of a share, as its project quota shows."""
        capacity = self._run(mount.survey, lustre_share,
                             self._identity(lustre_share))
        if not capacity['available']:
            LOG.error('Share %s is full. Free space, or raise its quota.',
                      self._identity(lustre_share))
        return capacity['available'], capacity['total']

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
        capacities = self._for_each(self._get_available_capacity,
                                    self._mounted_shares)
        room = {
            identity: (available -
                       total * self.configuration.reserved_percentage / 100)
            for identity, (available, total) in capacities.items()}
        wanted = volume.size * units.Gi if thick else 0
        best = max(room, key=room.get, default=None)
        if best is None or room[best] <= wanted:
            raise exception.RemoteFSNoSuitableShareFound(
                volume_size=volume.size)
        return best

    def _update_volume_stats(self):
        """Collect the statistics; a share that is down offers no space."""
        self._ensure_shares_mounted()
        capacities = self._for_each(self._get_available_capacity,
                                    self._mounted_shares)
        self._mounted_shares = list(capacities)
        free = sum(available for available, _total in capacities.values())
        self._totals.update({identity: total for identity, (_available, total)
                             in capacities.items()})
        total = sum(self._totals.get(identity, 0) for identity in self.shares)
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
            'thin_provisioning_support': True,
            'thick_provisioning_support': True,
            'sparse_copy_volume': True,
            'online_extend_support': True,
            'QoS_support': False,
        }

    # Volumes

    def _layout_of(self, volume):
        """The format of a new volume, and whether it is thick.

        :raises: InvalidVolumeType
        """
        specs = volume.volume_type.extra_specs if volume.volume_type else {}
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
        if volume.encryption_key_id:
            raise exception.VolumeDriverException(
                message=_('Encrypted volumes are not supported on Lustre '
                          'yet. Use a volume type without encryption.'))
        layout = self._layout_of(volume)
        volume.provider_location = self._find_share(volume)
        # Before there are files: a deletion after a crash must find them.
        volume.save()
        return layout

    @staticmethod
    def _save_format(volume, fmt):
        """Mirror the format of the active file in the database."""
        # Users who are not administrators create volumes too.
        with volume.obj_as_admin():
            if volume.admin_metadata.get('format') != fmt:
                volume.admin_metadata['format'] = fmt
                volume.save()

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def create_volume(self, volume):
        """Create an empty volume.

        :returns: its provider_location, the identity of its share
        """
        fmt, thick = self._place(volume)
        self._run_on(chain.create, volume, fmt, volume.size * units.Gi, thick)
        self._save_format(volume, fmt)
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
                reason=_('a volume in qcow2 format, or with snapshots, '
                         'cannot be extended while it is attached. Detach it '
                         'first.'))
        self._run_on(chain.extend, volume, size_gb * units.Gi)

    def _refuse_attached(self, volume, verb):
        if self._is_volume_attached(volume):
            raise exception.InvalidVolume(
                reason=_('volume %(volume)s is attached and cannot be '
                         '%(verb)s. Detach it first.')
                % {'volume': volume.id, 'verb': verb})

    def _copy_volume(self, source, snapshot_id, volume):
        """Make a volume from the content of another one."""
        fmt, thick = self._place(volume)
        self._ensure_share_mounted(volume.provider_location)
        self._run_on(
            chain.copy, source, snapshot_id,
            self._get_mount_point_for_share(volume.provider_location),
            volume.name_id, fmt, volume.size * units.Gi, thick)
        self._save_format(volume, fmt)
        return {'provider_location': volume.provider_location}

    # Deleting the snapshot meanwhile would change what is being copied.
    @coordination.synchronized('{self.driver_prefix}-{snapshot.volume.id}')
    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def create_volume_from_snapshot(self, volume, snapshot):
        """Create a volume with the content of a snapshot."""
        return self._create_volume_from_snapshot(volume, snapshot)

    def _create_volume_from_snapshot(self, volume, snapshot):
        return self._copy_volume(snapshot.volume, snapshot.id, volume)

    def _create_cloned_volume(self, volume, src_vref, context):
        self._refuse_attached(src_vref, _('cloned'))
        return self._copy_volume(src_vref, None, volume)

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

    # Images

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def copy_image_to_volume(self, context, volume, image_service, image_id,
                             disable_sparse=False):
        """Fill a volume with an image, in the volume's own format."""
        fmt = self._run_on(chain.describe, volume)['format']
        path = self._run_on(chain.prepare_load, volume)
        try:
            image_utils.fetch_to_volume_format(
                context, image_service, image_id, path, fmt,
                self.configuration.volume_dd_blocksize, size=volume.size,
                run_as_root=False, disable_sparse=disable_sparse)
            self._run_on(chain.finish_load, volume)
        except Exception:
            with excutils.save_and_reraise_exception():
                self._run_on(chain.cancel_load, volume)

    def _copy_volume_to_image(self, context, volume, image_service,
                              image_meta, store_id=None):
        """Upload a volume, flattened straight into the image's format."""
        self._refuse_attached(volume, _('uploaded'))
        layout = self._run_on(chain.describe, volume)
        image_utils.check_image_conversion_disable(
            image_meta['disk_format'], layout['format'], image_meta['id'],
            upload=True)
        compressed = image_meta.get('container_format') == 'compressed'
        # Cinder converts once more while it compresses, and must not find
        # what a guest wrote where it expects an image.
        fmt = 'qcow2' if compressed else image_meta['disk_format']
        if fmt == layout['format'] == 'raw':
            self._upload(context, image_service, image_meta, volume,
                         os.path.join(self._local_volume_dir(volume),
                                      layout['active']), fmt)
            return
        with image_utils.temporary_file(prefix='%s.%s' % (
                volume.id, image_meta['id'])) as path:
            self._run_on(chain.export, volume, None, path,
                         image_utils.fixup_disk_format(fmt))
            self._upload(context, image_service, image_meta, volume, path,
                         fmt)

    @staticmethod
    def _upload(context, image_service, image_meta, volume, path, fmt):
        volume_utils.upload_volume(context, image_service, image_meta, path,
                                   volume, volume_format=fmt,
                                   run_as_root=False)

    # Snapshots

    def _create_snapshot(self, snapshot):
        volume = snapshot.volume
        self._refuse_attached(volume, _('given a snapshot'))
        layout = self._run_on(chain.create_snapshot, volume, snapshot.id)
        self._save_format(volume, layout['format'])

    def _delete_snapshot(self, snapshot):
        volume = snapshot.volume
        if self._is_volume_attached(volume):
            # Nothing is wrong with the snapshot: it is to stay available.
            raise exception.SnapshotIsBusy(
                _('snapshot %(snapshot)s cannot be deleted while volume '
                  '%(volume)s is attached. Detach it first.')
                % {'snapshot': snapshot.id, 'volume': volume.id})
        layout = self._run_on(chain.delete_snapshot, volume, snapshot.id)
        self._save_format(volume, layout['format'])

    def _revert_to_snapshot(self, context, volume, snapshot):
        self._refuse_attached(volume, _('reverted'))
        self._run_on(chain.revert, volume, snapshot.id)

    def backup_use_temp_snapshot(self):
        """Volumes are backed up through temporary volumes alone."""
        return False

    @classmethod
    def clean_volume_file_locks(cls, volume_id):
        coordination.synchronized_remove('%s-%s' % (cls.driver_prefix,
                                                    volume_id))

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

    @coordination.synchronized('{self.driver_prefix}-{volume.id}')
    def initialize_connection(self, volume, connector):
        """Say which file on which share a host has to open.

        :raises: InvalidVolume when the file is larger than the volume
        """
        layout = self._run_on(chain.describe, volume)
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
            self._run_on(chain.extend, volume, size)
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
                     'options': self.shares.get(identity)},
            'mount_point_base': self._get_mount_point_base(),
        }

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
