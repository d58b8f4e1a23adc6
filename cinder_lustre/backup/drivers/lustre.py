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

"""Backups of Cinder volumes as files on a Lustre share."""

import contextlib
import os
import time

from cinder.backup.drivers import posix
from cinder import exception
from cinder.i18n import _
from cinder import interface
from cinder import objects
from cinder.objects import fields
from cinder import utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from cinder_lustre.backup import transfer
from cinder_lustre.brick import client
from cinder_lustre.brick import nbd
from cinder_lustre import exception as lustre_exception
from cinder_lustre import opts
from cinder_lustre import share
from cinder_lustre import worker

LOG = logging.getLogger(__name__)
# Seconds between two looks at whether a backup is still wanted.
_LOOK_INTERVAL = 1

CONF = cfg.CONF
CONF.register_opts(opts.backup_opts)


@interface.backupdriver
class LustreBackupDriver(posix.PosixBackupDriver):
    """Keeps backups as files on a Lustre share.

    They have the format of Cinder's posix driver, and each of the two
    restores the backups of the other. Volumes on Lustre, other files and
    block devices are copied in a child, several objects at once and without
    their holes; what else a backend connects goes through Cinder's own code.

    :raises: InvalidConfigurationValue
    """

    # One breaker for each share: Cinder makes a driver for each operation.
    # A copy that hangs may do so on the volume.
    _workers = {}
    _copiers = {}

    def __init__(self, context):
        self._share = CONF.lustre_backup_share or ''
        try:
            self._identity = share.Share.parse(self._share).identity
        except lustre_exception.InvalidShare as exc:
            raise exception.InvalidConfigurationValue(
                message=_('lustre_backup_share cannot be used: %s') % exc)
        self._root_helper = utils.get_root_helper()
        self._client = client.LustreRemoteFsClient(
            'lustre', self._root_helper,
            lustre_mount_point_base=CONF.lustre_backup_mount_point_base,
            lustre_mount_options=CONF.lustre_backup_mount_options,
            lustre_mount_timeout=CONF.lustre_backup_mount_timeout,
            development_fstypes=CONF.lustre_backup_development_fstypes)
        super().__init__(
            context, backup_path=self._client.get_mount_point(self._share))
        self.chunk_size_bytes = CONF.lustre_backup_object_size * units.Mi
        self._worker = self._workers.setdefault(
            self._identity, worker.Worker(self._identity))
        self._copier = self._copiers.setdefault(
            self._identity,
            worker.Worker(self._identity + ', or that of a volume,',
                          (self._worker,)))

    @staticmethod
    def get_driver_options():
        return opts.backup_opts + posix.posixbackup_service_opts

    def check_for_setup_error(self):
        """Refuse settings that cannot work.

        A share that is down now is logged: every operation tries to mount it.

        :raises: InvalidConfigurationValue
        """
        # Holes and objects begin at such places, and so have hashes to.
        if units.Mi % self.sha_block_size_bytes:
            raise exception.InvalidConfigurationValue(
                message=_('1 MiB is not a multiple of '
                          'backup_sha_block_size_bytes (%s). 32768 is.')
                % self.sha_block_size_bytes)
        try:
            self._ensure_ready()
        except exception.BackupDriverException as exc:
            LOG.error('Backups are not possible now: %s', exc)

    def _ensure_ready(self):
        """Mount the share, and see that the service can write to it.

        :raises: BackupDriverException
        """
        try:
            self._client.mount(self._share)
            if not self._call(transfer.is_writable, self.backup_path):
                self._open_to_group()
                if not self._call(transfer.is_writable, self.backup_path):
                    raise exception.BackupDriverException(
                        reason=_('user %(uid)s cannot write to %(path)s on '
                                 'share %(share)s. Make the directory '
                                 'belong to that user.')
                        % {'uid': os.geteuid(), 'path': self.backup_path,
                           'share': self._identity})
        except (lustre_exception.LustreException, OSError) as exc:
            raise exception.BackupDriverException(reason=str(exc)) from exc

    def _open_to_group(self):
        # The root of the share alone: what lies in it has its own owners.
        for command in (('chgrp', str(os.getegid()), self.backup_path),
                        ('chmod', 'g+rwx', self.backup_path)):
            try:
                processutils.execute(*command, run_as_root=True,
                                     root_helper=self._root_helper)
            except processutils.ProcessExecutionError as exc:
                LOG.warning('%(command)s failed: %(error)s',
                            {'command': ' '.join(command), 'error': exc})

    def _call(self, func, *args, **kwargs):
        runner = self._copier if 'pass_fds' in kwargs else self._worker
        return runner.run(
            func, *args, timeout=CONF.lustre_backup_operation_timeout,
            **kwargs)

    def _run(self, func, *args, **kwargs):
        """Run a function on the mounted share, in a child.

        :param pass_fds: descriptors of volumes that it works on
        :raises: InvalidBackup for a backup that is damaged or does not fit,
                 BackupDriverException
        """
        try:
            return self._call(func, *args, **kwargs)
        except (lustre_exception.ObjectDamaged,
                lustre_exception.ParentUnusable,
                lustre_exception.SizeMismatch) as exc:
            raise exception.InvalidBackup(reason=str(exc)) from exc
        except lustre_exception.LustreException as exc:
            raise exception.BackupDriverException(reason=str(exc)) from exc
        except OSError as exc:
            raise exception.BackupDriverException(
                reason=_('share %(share)s: %(error)s')
                % {'share': self._identity, 'error': exc}) from exc

    def put_container(self, container):
        self._run(transfer.make_container, self.backup_path,
                  self._inside(container), self.backup_create_containers)

    def get_object_writer(self, container, object_name, extra_metadata=None):
        return _Writer(self, os.path.join(self._path(container), object_name))

    def backup(self, backup, volume_file, backup_metadata=True):
        """Back up a volume.

        :param volume_file: an open file of the volume's content
        :raises: InvalidBackup, BackupDriverException
        """
        self._ensure_ready()
        try:
            with _lend(volume_file) as disk:
                if disk is None:
                    super().backup(backup, volume_file, backup_metadata)
                else:
                    self._backup(backup, disk, backup_metadata)
        except _NotWanted:
            LOG.info('Backup %s is being deleted, and is not continued.',
                     backup.id)
            self._wait_for_child()
            self.delete_backup(backup)

    def _backup(self, backup, disk, backup_metadata):
        parent = self._parent_hashes(backup)
        object_meta, _shas, extra_metadata, container, size = (
            self._prepare_backup(backup))
        progress = _Progress(self, backup, object_meta, size)
        try:
            object_meta['list'] = self._run(
                transfer.store, disk, self.backup_path,
                self._inside(container), object_meta['prefix'],
                self._hash_header(backup),
                self.backup_compression_algorithm.lower(),
                self.chunk_size_bytes, parent, self.backup_create_containers,
                pass_fds=(disk['fd'],), on_progress=progress)
        finally:
            # A deletion may also be why it failed.
            progress.look()
        self._send_progress_end(self.context, backup, object_meta)
        if backup_metadata:
            self._backup_metadata(backup, object_meta)
        # Without these there is no backup.
        self._write_metadata(backup, backup.volume_id, container,
                             object_meta['list'], object_meta['volume_meta'],
                             extra_metadata)
        backup.object_count = len(object_meta['list'])
        backup.save()

    def _parent_hashes(self, backup):
        """The file of hashes that an incremental backup builds on, or None.

        :raises: InvalidBackup
        """
        if not backup.parent_id:
            return None
        parent = objects.Backup.get_by_id(self.context, backup.parent_id)
        if backup.size > parent.size:
            raise exception.InvalidBackup(
                reason=_('the volume has been extended since backup %s. Do a '
                         'full backup.') % parent.id)
        return os.path.join(self._path(parent.container),
                            self._sha256_filename(parent))

    def _hash_header(self, backup):
        return {'version': self.DRIVER_VERSION, 'backup_id': backup.id,
                'volume_id': backup.volume_id,
                'backup_name': backup.display_name,
                'backup_description': backup.display_description,
                'created_at': str(backup.created_at),
                'chunk_size': self.sha_block_size_bytes}

    def _wait_for_child(self):
        """Let a child that was left end, so that it writes no more objects."""
        deadline = time.monotonic() + CONF.lustre_backup_operation_timeout
        while self._copier.stuck and time.monotonic() < deadline:
            time.sleep(_LOOK_INTERVAL)

    def restore(self, backup, volume_id, volume_file, volume_is_new):
        """Restore a backup, with those that it builds on, into a volume.

        Nothing is written before all objects have been found.

        :param volume_file: the volume's open file
        :param volume_is_new: whether the volume holds zeros only
        :raises: InvalidBackup for a damaged backup, BackupRestoreCancel,
                 BackupDriverException
        """
        self._ensure_ready()
        with _lend(volume_file) as disk:
            size = self.db.volume_get(self.context,
                                      volume_id)['size'] * units.Gi
            found = []
            layer = backup
            while layer:
                found.insert(0, (layer, self._check(layer, size,
                                                    disk is None)))
                layer = layer.parent_id and objects.Backup.get_by_id(
                    self.context, layer.parent_id)
            if disk is None:
                # Older series of Cinder leave old data where an incremental
                # backup has zeros, unless the volume is said to have some.
                super().restore(backup, volume_id, volume_file,
                                volume_is_new and not backup.parent_id)
            else:
                self._restore(backup, volume_id, disk, size, volume_is_new,
                              found)

    def _restore(self, backup, volume_id, disk, size, volume_is_new, found):
        progress = _RestoreProgress(backup, volume_id)
        for layer, metadata in found:
            self._run(
                transfer.restore, disk, self._path(layer.container),
                layer.service_metadata, size,
                volume_is_new and not layer.parent_id,
                pass_fds=(disk['fd'],), on_progress=progress)
            if metadata['volume_meta']:
                self._restore_metadata(volume_id, metadata['volume_meta'])

    def _check(self, backup, size, read):
        """See that the objects of a backup are there, and right if read.

        :param size: that of the volume in bytes

        :raises: InvalidBackup, BackupDriverException
        """
        metadata = self._run(
            transfer.check, self._path(backup.container),
            backup.service_metadata, size, not backup.parent_id, read)
        if metadata['version'] not in self.DRIVER_VERSION_MAPPING:
            raise exception.InvalidBackup(
                reason=_('backup %(id)s has version %(version)s, which this '
                         'driver does not know.')
                % {'id': backup.id, 'version': metadata['version']})
        return metadata

    def _restore_metadata(self, volume_id, metadata):
        try:
            self.put_metadata(volume_id, metadata)
        except exception.BackupMetadataUnsupportedVersion as exc:
            raise exception.BackupDriverException(
                reason=_('the metadata of the volume are of an unknown '
                         'version: %s') % exc) from exc

    def delete_backup(self, backup):
        """Delete a backup's objects, and its container once it is empty."""
        if backup.container is None:
            return
        try:
            container = self._inside(backup.container)
        except exception.InvalidBackup as exc:
            # Nothing was ever written there.
            LOG.warning('No files of backup %(id)s are deleted: %(error)s',
                        {'id': backup.id, 'error': exc})
            return
        self._ensure_ready()
        self._run(transfer.remove, self.backup_path, container,
                  backup.service_metadata, self.backup_create_containers)

    def _path(self, container):
        return os.path.join(self.backup_path, self._inside(container))

    @staticmethod
    def _inside(container):
        """A container's path below the root of the share.

        :raises: InvalidBackup for one that a user has put elsewhere
        """
        path = os.path.normpath(container)
        if path.startswith('/') or path.split('/')[0] in ('.', '..'):
            raise exception.InvalidBackup(
                reason=_('container "%s" would not be a directory of the '
                         'backup share. Choose a plain name, or none.')
                % container)
        return path


@contextlib.contextmanager
def _lend(volume_file):
    """Let a child use a volume while the body runs.

    :yields: what :func:`disk.open_disk` takes; None for what only this
             process can use
    """
    try:
        descriptor = volume_file.fileno()
    except OSError:
        # What has a socket or a library behind it says so in this way.
        descriptor = None
    raw = getattr(volume_file, 'raw', None)
    if descriptor is not None:
        yield {'fd': descriptor}
    elif isinstance(raw, nbd.Export):
        with raw.lend() as terms:
            yield terms
    else:
        yield None


class _NotWanted(Exception):
    """A backup is being deleted while it is made."""


class _Progress:
    """Tells Cinder how far a backup is, and whether it is still wanted."""

    def __init__(self, driver, backup, object_meta, size):
        self._driver = driver
        self._backup = backup
        self._meta = object_meta
        self._size = size
        self._done = 0
        self._next_look = 0
        self._next_word = time.monotonic() + driver.backup_timer_interval

    def __call__(self, progress):
        # Without one, the child is just alive.
        self._done = progress[0] if progress else self._done
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_INTERVAL
        self.look()
        if now >= self._next_word and self._driver.enable_progress_timer:
            self._next_word = now + self._driver.backup_timer_interval
            self._driver._send_progress_notification(
                self._driver.context, self._backup, self._meta, self._done,
                self._size)

    def look(self):
        """See that the backup is not being deleted.

        :raises: _NotWanted
        """
        with self._backup.as_read_deleted():
            self._backup.refresh()
        if self._backup.status in (fields.BackupStatus.DELETING,
                                   fields.BackupStatus.DELETED):
            raise _NotWanted()


class _RestoreProgress:
    """Ends a restore when Cinder does not want it any more."""

    def __init__(self, backup, volume_id):
        self._backup = backup
        self._volume_id = volume_id
        self._next_look = 0

    def __call__(self, _progress):
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_INTERVAL
        with self._backup.as_read_deleted():
            self._backup.refresh()
        if self._backup.status != fields.BackupStatus.RESTORING:
            raise exception.BackupRestoreCancel(back_id=self._backup.id,
                                                vol_id=self._volume_id)


class _Writer:
    """Writes an object when it is complete, and not at all otherwise."""

    def __init__(self, driver, path):
        self._driver = driver
        self._path = path

    def __enter__(self):
        self._content = open(os.memfd_create('object'), 'wb')
        return self

    def __exit__(self, error, *_args):
        with self._content:
            if error is None:
                self._content.flush()
                descriptor = self._content.fileno()
                self._driver._run(transfer.write, descriptor, self._path,
                                  pass_fds=(descriptor,))

    def write(self, data):
        self._content.write(data)
