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

"""The volume driver that Nova's libvirt driver uses for Lustre."""

import nova.conf
from nova import utils
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.volume import fs
from oslo_log import log as logging

from cinder_lustre.brick import connector
from cinder_lustre import exception
from cinder_lustre.nova import client
from cinder_lustre import qemu_img
from cinder_lustre import share

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


class GuestDisk(vconfig.LibvirtConfigGuestDisk):
    """Nova's description of a disk, plus what errors do to the guest.

    :param disk: what Nova has to say of the disk
    :param error_policy: as libvirt calls it, as in 'stop'
    """

    def __init__(self, disk, error_policy):
        super().__init__()
        vars(self).update(vars(disk))
        self.error_policy = error_policy

    def format_dom(self):
        dom = super().format_dom()
        dom.find('driver').set('error_policy', self.error_policy)
        return dom


class LibvirtLustreVolumeDriver(fs.LibvirtMountedFileSystemVolumeDriver):
    """Attaches volumes that are files on Lustre to guests.

    Nova asks for the base class: it tells that a disconnect concerns one
    server's attachment, also of a volume that several servers share. Nova's
    own bookkeeping of mounts is not used, since nothing is ever unmounted:
    it could not know who else uses the share.
    """

    def __init__(self, host):
        super().__init__(host, 'lustre')
        self._client = client.ComputeClient(
            'lustre', utils.get_root_helper(),
            lustre_mount_point_base=CONF.libvirt.lustre_mount_point_base,
            lustre_mount_options=CONF.libvirt.lustre_mount_options,
            lustre_mount_timeout=CONF.libvirt.lustre_mount_timeout,
            development_fstypes=CONF.libvirt.lustre_development_fstypes)
        self.connector = connector.LustreConnector(
            utils.get_root_helper(), client=self._client)
        if CONF.libvirt.lustre_development_fstypes:
            LOG.warning('File systems of type %s are accepted as if they '
                        'were Lustre. Their locks may not reach other hosts, '
                        'so that two of them can write to one volume: this '
                        'is for development only.',
                        ', '.join(CONF.libvirt.lustre_development_fstypes))

    def _get_mount_point_base(self):
        return self._client.get_mount_base()

    def _normalize_export(self, export):
        # Nova keeps what it attached: other NIDs must not move the volume.
        return share.Share.parse(export).identity

    def _mount_options(self, connection_info):
        # The client knows them; Nova's own mount is never asked.
        return []

    def connect_volume(self, connection_info, instance):
        """Mount the volume's share, or see that it is fit for use.

        The path is not kept in the connection information, as an online
        snapshot gives the guest another file. Without a path, Nova finds the
        disk by its serial number, and can neither format a file that it does
        not find to be encrypted nor replace it by a link to dm-crypt's device.

        :raises: LustreException
        """
        data = connection_info['data']
        if data.get('format') not in qemu_img.FORMATS:
            raise exception.LustreException(
                reason='The connection information of volume %s gives "%s" '
                'as its format, which is none of %s; a format is never '
                'guessed. Detach the volume and attach it again.' % (
                    connection_info.get('serial'), data.get('format'),
                    ', '.join(qemu_img.FORMATS)))
        if data.get('encrypted') and data['format'] != 'raw':
            raise exception.LustreException(
                reason='Volume %s is encrypted, but a %s file; only raw '
                'volumes can be. Copy what you need into a volume of another '
                'type.' % (connection_info.get('serial'), data['format']))
        path, = self.connector.get_volume_paths(data)
        LOG.debug('Volume %(volume)s is %(path)s.',
                  {'volume': connection_info.get('serial'), 'path': path},
                  instance=instance)

    def disconnect_volume(self, connection_info, instance, force=False):
        """Nothing: the share stays mounted for whoever else uses it."""
        LOG.debug('Share %s stays mounted.', connection_info['data']['export'],
                  instance=instance)

    def extend_volume(self, connection_info, instance, requested_size):
        """Nothing: QEMU grows the file, or finds that Cinder has.

        :returns: the size in bytes that QEMU is to give the disk
        """
        data = connection_info['data']
        if data.get('encrypted'):
            # From this file Nova learns how long the LUKS header is.
            data['device_path'] = self._get_device_path(connection_info)
        return requested_size

    def get_config(self, connection_info, disk_info):
        """The disk as libvirt is to see it."""
        disk = super().get_config(connection_info, disk_info)
        disk.source_type = 'file'
        disk.source_path = self._get_device_path(connection_info)
        disk.driver_format = connection_info['data']['format']
        if not CONF.libvirt.use_default_aio_mode_for_volumes:
            disk.driver_io = 'native'
        return GuestDisk(disk, CONF.libvirt.lustre_error_policy)
