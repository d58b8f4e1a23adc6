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

"""The os-brick connector: a volume's file for this host's services."""

import io
import os

from os_brick import initiator
from os_brick.initiator.connectors import remotefs
from os_brick import utils
from oslo_log import log as logging

from cinder_lustre.brick import client
from cinder_lustre.brick import nbd
from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre import share
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

# What a read tells whether a volume answers.
_PROBE_SIZE = 4096


class LustreConnector(remotefs.RemoteFsConnector):
    """Attaches volumes that are files on Lustre.

    Connection properties are ``export`` (a share string, or an identity where
    the share is mounted), ``name`` (a file in the share's directory),
    ``format`` (raw or qcow2), ``options`` (mount options), ``access_mode``,
    and ``discard`` (false where the file is to keep all its space).

    :param conn: the connection information, for its mount_point_base
    :param expect_raw_disk: connect volumes as file-like objects that have the
                            contents of the disk, whatever the file's format
    :param client: what mounts the shares; one with this process's settings
                   by default
    """

    # What brick.register() sets for this process.
    client_settings = {}
    operation_timeout = 60
    # Whether this process copies what connect_volume gives it byte by byte.
    copies_contents = False
    # One breaker for each mount point; a connector serves one attachment.
    _workers = {}

    def __init__(self, root_helper, driver=None, execute=None,
                 device_scan_attempts=initiator.DEVICE_SCAN_ATTEMPTS_DEFAULT,
                 *args, **kwargs):
        base = (kwargs.get('lustre_mount_point_base') or
                (kwargs.get('conn') or {}).get('mount_point_base'))
        self._remotefsclient = (
            kwargs.pop('client', None) or client.LustreRemoteFsClient(
                'lustre', root_helper, execute=execute,
                lustre_mount_point_base=base, **self.client_settings))
        self._expect_raw_disk = kwargs.get('expect_raw_disk', False)
        # The parent's own constructor makes a client that refuses Lustre.
        super(remotefs.RemoteFsConnector, self).__init__(
            root_helper, driver=driver, execute=execute,
            device_scan_attempts=device_scan_attempts, *args, **kwargs)

    @utils.trace
    @utils.connect_volume_prepare_result
    def connect_volume(self, connection_properties):
        """Mount the share and give the volume's path or contents.

        :returns: a dict whose 'path' is a path, or, for expect_raw_disk, an
                  open file of the volume's full size; disconnect_volume
                  closes it
        :raises: UnusableMount, MountFailed, ShareUnavailable, VolumeBusy,
                 CommandFailed, OSError
        """
        path = self._get_volume_path(connection_properties)
        image_format = connection_properties.get('format')
        thick = connection_properties.get('discard') is False
        # To a path, Cinder copies sparsely; that of an encrypted volume is a
        # link, which root makes in a directory that not every host has.
        if not (self._expect_raw_disk or self.copies_contents and (
                image_format == 'qcow2' or thick or
                connection_properties.get('encrypted'))):
            return {'path': path}
        # What hangs is to hang in a child, not in this process.
        self._virtual_size(path, connection_properties)
        read_only = connection_properties.get('access_mode') == 'ro'
        if image_format == 'qcow2':
            handle = nbd.open_image(path, read_only, self.operation_timeout,
                                    discard=not thick)
        elif read_only:
            handle = open(path, 'rb')
        else:
            handle = _RawDisk(open(path, 'r+b', buffering=0))
        return {'path': handle}

    @utils.trace
    @utils.connect_volume_undo_prepare_result(unlink_after=True)
    def disconnect_volume(self, connection_properties, device_info=None,
                          force=False, ignore_errors=False):
        """Close what connect_volume opened; the share stays mounted.

        :raises: OSError when data that was written may be lost, unless
                 errors are to be ignored
        """
        handle = (device_info or {}).get('path')
        if handle is None or isinstance(handle, str):
            return
        try:
            handle.close()
        except Exception:
            if not (force and ignore_errors):
                raise
            LOG.exception('Closing %s failed, which is ignored as asked.',
                          handle.name)

    def extend_volume(self, connection_properties):
        """The size of the disk in bytes, as this host sees it now."""
        return self._virtual_size(self._get_volume_path(connection_properties),
                                  connection_properties)

    def check_valid_device(self, path, run_as_root=True):
        """Whether a volume can be read.

        :param path: what connect_volume gave
        :param run_as_root: ignored: volumes belong to the service's user
        """
        if not path:
            return False
        try:
            if isinstance(path, str):
                # As raw, because only the file is of interest here.
                self._run(path, qemu_img.info, path, 'raw')
            else:
                offset = path.tell()
                path.seek(0)
                path.read(_PROBE_SIZE)
                path.seek(offset)
        except (exception.LustreException, OSError, ValueError) as exc:
            LOG.error('Volume %(path)s cannot be read: %(error)s',
                      {'path': path, 'error': exc})
            return False
        return True

    def get_all_available_volumes(self, connection_properties=None):
        """None: files neither appear nor vanish with an attachment."""
        return []

    def _get_volume_path(self, connection_properties):
        name = connection_properties['name']
        if not name or name.startswith('.') or '/' in name:
            raise exception.LustreException(
                reason='"%s" cannot be the file of a volume: it is not a '
                'plain file name. The connection information is damaged; '
                'detach the volume and attach it again.' % name)
        path = super()._get_volume_path(connection_properties)
        identity = share.Share.parse(connection_properties['export']).identity
        self._workers.setdefault(os.path.dirname(path),
                                 worker.Worker(identity))
        return path

    def _virtual_size(self, path, connection_properties):
        image_format = connection_properties.get('format')
        if image_format not in qemu_img.FORMATS:
            raise exception.LustreException(
                reason='The connection information of %s gives "%s" as its '
                'format, which is none of %s; a format is never guessed.' % (
                    path, image_format, ', '.join(qemu_img.FORMATS)))
        return self._run(path, qemu_img.info, path,
                         image_format)['virtual-size']

    def _run(self, path, func, *args):
        directory = os.path.dirname(path)
        child = self._workers.setdefault(directory, worker.Worker(directory))
        return child.run(func, *args, timeout=self.operation_timeout)


class _RawDisk(io.BufferedRandom):
    """Makes flush reach the disk: Cinder deletes the source of a copy then."""

    def flush(self):
        super().flush()
        os.fsync(self.fileno())
