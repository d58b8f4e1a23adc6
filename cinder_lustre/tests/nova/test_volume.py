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

import os
from unittest import mock

import ddt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt.volume import mount as nova_mount
from os_brick import exception as brick_exception

from cinder_lustre import exception
from cinder_lustre.nova import volume
from cinder_lustre.tests.nova import base

DISK = {'type': 'disk', 'dev': 'vdb', 'bus': 'virtio'}
GIB = 1024 ** 3


@ddt.ddt
class VolumeDriverTestCase(base.NovaTestCase):

    def setUp(self):
        super().setUp()
        self.driver = self.make_driver()

    def _xml(self, driver=None, **data):
        config = (driver or self.driver).get_config(
            base.connection(**data), DISK)
        return etree.fromstring(config.to_xml())

    # Mounts

    def test_connect(self):
        info = base.connection(options='-o user_xattr')
        expected = base.connection(options='-o user_xattr')
        self.driver.connect_volume(info, self.instance)
        self.assertEqual(
            ('mount', '-t', 'lustre', '-o', 'flock,user_xattr', base.SHARE,
             self.path), self.execute.call_args.args)
        # Nova keeps this; a path in it would be wrong after a snapshot.
        self.assertEqual(expected, info)

    def test_options(self):
        self.set_options(lustre_mount_options='flock,user_xattr')
        self.make_driver().connect_volume(base.connection(), self.instance)
        self.assertIn('flock,user_xattr', self.execute.call_args.args)

    @ddt.data(base.IDENTITY, '192.0.2.1@o2ib,mgs2:/testfs/cinder/')
    def test_other_nids(self, export):
        """Where the share is mounted, an address that is old does no harm."""
        self.driver.connect_volume(base.connection(), self.instance)
        info = base.connection(export=export)
        self.driver.connect_volume(info, self.instance)
        self.assertEqual(1, self.execute.call_count)
        self.assertEqual(self._xml().find('source').get('file'),
                         self._xml(export=export).find('source').get('file'))

    def test_path_is_where_the_share_is_mounted(self):
        link = os.path.join(self.base, 'link')
        os.symlink(self.base, link)
        self.set_options(lustre_mount_point_base=link)
        driver = self.make_driver()
        driver.connect_volume(base.connection(), self.instance)
        self.assertEqual(self.path, self.execute.call_args.args[-1])
        self.assertEqual(os.path.join(self.path, base.NAME),
                         self._xml(driver).find('source').get('file'))

    @ddt.data(
        ({'format': None}, 'gives "None" as its format'),
        ({'format': 'vmdk'}, 'gives "vmdk" as its format'),
        ({'format': 'qcow2', 'encrypted': True}, 'only raw volumes'))
    @ddt.unpack
    def test_refused(self, data, reason):
        error = self.assertRaises(
            exception.LustreException, self.driver.connect_volume,
            base.connection(**data), self.instance)
        self.assertIn(reason, str(error))
        self.assertIn(base.VOLUME_ID, str(error))
        self.execute.assert_not_called()

    @ddt.data('../volume', '', '.cinder-lustre', '/etc/passwd')
    def test_wrong_name(self, name):
        error = self.assertRaises(
            exception.LustreException, self.driver.connect_volume,
            base.connection(name=name), self.instance)
        self.assertIn('not a plain file name', str(error))
        self.execute.assert_not_called()

    def test_unusable_mount(self):
        self.mount('mount', '-t', 'lustre', base.SHARE, self.path)
        error = self.assertRaises(
            exception.UnusableMount, self.driver.connect_volume,
            base.connection(), self.instance)
        self.assertIn('must be mounted with flock', str(error))

    def test_development_fstypes(self):
        self.mount('mount', '-t', 'ext4', base.SHARE, self.path)
        self.assertRaises(exception.UnusableMount, self.driver.connect_volume,
                          base.connection(), self.instance)
        self.set_options(lustre_development_fstypes=['ext4'])
        self.make_driver().connect_volume(base.connection(), self.instance)

    # Detaching

    def test_disconnect(self):
        self.driver.connect_volume(base.connection(), self.instance)
        os.makedirs(self.path, exist_ok=True)
        mounts = self.mounts
        self.driver.disconnect_volume(base.connection(), self.instance,
                                      force=True)
        self.assertEqual(1, self.execute.call_count)
        self.assertEqual(mounts, self.mounts)
        self.assertTrue(os.path.isdir(self.path))

    @ddt.data(True, False)
    def test_detach_through_nova(self, multiattach):
        """Nova asks for no other attachment, and unmounts nothing."""
        nova = mock.Mock(volume_drivers={'lustre': self.driver})
        nova._get_volume_driver.return_value = self.driver
        nova._should_disconnect_target = (
            lambda *args: libvirt_driver.LibvirtDriver
            ._should_disconnect_target(nova, *args))
        guest = mock.Mock(uuid=self.instance.uuid)
        guest.get_all_disks.return_value = [mock.Mock(
            source_type='file', source_path=os.path.join(self.path, name))
            for name in (base.NAME, 'volume-other')]
        self.host.list_guests.return_value = [guest]
        info = dict(base.connection(), multiattach=multiattach)
        with mock.patch('os.path.ismount', return_value=True), \
                mock.patch('nova.privsep.fs.umount') as umount, \
                mock.patch('nova.privsep.path.rmdir') as rmdir:
            # The state that Nova finds when it starts beside its guests.
            state = nova_mount._HostMountState(self.host, 0)
            self.assertEqual(
                {(base.NAME, self.instance.uuid),
                 ('volume-other', self.instance.uuid)},
                state.mountpoints[self.path].attachments)
            self.addCleanup(nova_mount.get_manager()._reset_state)
            nova_mount.get_manager().state = state
            for name in (base.NAME, 'volume-other'):
                info['data']['name'] = name
                libvirt_driver.LibvirtDriver._disconnect_volume(
                    nova, mock.sentinel.context, info, self.instance)
        umount.assert_not_called()
        rmdir.assert_not_called()
        nova._volume_api.get.assert_not_called()
        self.execute.assert_not_called()

    def test_detach_while_libvirt_is_away(self):
        nova_mount.get_manager()._reset_state()
        self.driver.disconnect_volume(base.connection(), self.instance)
        self.driver.connect_volume(base.connection(), self.instance)

    # What libvirt gets

    @ddt.data('raw', 'qcow2')
    def test_config(self, image_format):
        xml = self._xml(format=image_format)
        self.assertEqual(('file', 'disk'), (xml.get('type'),
                                            xml.get('device')))
        self.assertEqual(
            {'name': 'qemu', 'type': image_format, 'cache': 'none',
             'io': 'native', 'discard': 'unmap', 'error_policy': 'stop'},
            dict(xml.find('driver').attrib))
        self.assertEqual({'file': os.path.join(self.path, base.NAME)},
                         dict(xml.find('source').attrib))
        self.assertEqual({'dev': 'vdb', 'bus': 'virtio'},
                         dict(xml.find('target').attrib))
        self.assertEqual(base.VOLUME_ID, xml.findtext('serial'))

    def test_thick_volume_keeps_its_space(self):
        self.assertNotIn('discard',
                         self._xml(discard=False).find('driver').attrib)

    @ddt.data('report', 'enospace')
    def test_error_policy(self, policy):
        self.set_options(lustre_error_policy=policy)
        self.assertEqual(policy,
                         self._xml().find('driver').get('error_policy'))

    def test_error_policy_that_would_lose_data(self):
        self.assertRaises(ValueError, self.set_options,
                          lustre_error_policy='ignore')

    def test_default_aio_mode(self):
        self.set_options(use_default_aio_mode_for_volumes=True)
        self.assertIsNone(self._xml().find('driver').get('io'))

    def test_cache_mode(self):
        """What Nova does with the configuration of a disk works on ours."""
        nova = mock.Mock(disk_cachemodes={'file': 'writeback'})
        config = self.driver.get_config(base.connection(), DISK)
        libvirt_driver.LibvirtDriver._set_cache_mode(nova, config)
        driver = etree.fromstring(config.to_xml()).find('driver')
        self.assertEqual(('writeback', 'threads', 'stop'), (
            driver.get('cache'), driver.get('io'),
            driver.get('error_policy')))

    def test_shared_read_only_limited(self):
        info = dict(base.connection(
            access_mode='ro', qos_specs={'read_iops_sec': '200'}),
            multiattach=True)
        xml = etree.fromstring(self.driver.get_config(info, DISK).to_xml())
        self.assertIsNotNone(xml.find('shareable'))
        self.assertIsNotNone(xml.find('readonly'))
        self.assertEqual('200', xml.findtext('iotune/read_iops_sec'))

    # Extending

    def _extend(self, info, encryption=None, disk_name=base.NAME):
        guest = self.host.get_guest.return_value
        guest.get_power_state.return_value = 1
        guest.get_all_disks.return_value = [
            mock.Mock(serial='another', target_dev='vda'),
            mock.Mock(serial=base.VOLUME_ID, target_dev='vdb',
                      source_path=os.path.join(self.path, disk_name))]
        nova = mock.Mock(_host=self.host)
        for name in ('_extend_volume', '_resize_attached_volume',
                     '_resize_attached_encrypted_volume',
                     '_allow_native_luksv1'):
            method = getattr(libvirt_driver.LibvirtDriver, name)
            setattr(nova, name, method.__get__(nova))
        nova._get_volume_driver.return_value = self.driver
        with mock.patch('os_brick.encryptors.get_encryption_metadata',
                        return_value=encryption or {}):
            libvirt_driver.LibvirtDriver.extend_volume(
                nova, mock.sentinel.context, info, self.instance, 2 * GIB)
        return guest.get_block_device

    @ddt.data('raw', 'qcow2')
    def test_extend(self, image_format):
        info = base.connection(format=image_format)
        self.driver.connect_volume(info, self.instance)
        disk = self._extend(info)
        disk.assert_called_once_with('vdb')
        disk.return_value.resize.assert_called_once_with(2 * GIB)

    def test_extend_after_a_snapshot(self):
        """The guest has another file than Nova attached."""
        info = base.connection()
        self.driver.connect_volume(info, self.instance)
        self._extend(info, disk_name=base.NAME + '.snapshot'
                     ).assert_called_once_with('vdb')

    def test_extend_encrypted(self):
        info = base.connection(encrypted=True)
        self.driver.connect_volume(info, self.instance)
        with mock.patch('nova.virt.images.privileged_qemu_img_info') as read:
            read.return_value.format_specific = {
                'data': {'payload-offset': 2097152}}
            disk = self._extend(info, {'provider': 'luks'})
        read.assert_called_once_with(os.path.join(self.path, base.NAME))
        disk.return_value.resize.assert_called_once_with(2 * GIB - 2097152)

    # Encryption

    def _attach_encryptor(self, info, provider):
        nova = mock.Mock(_host=self.host)
        for name in ('_allow_native_luksv1', '_get_volume_encryptor'):
            method = getattr(libvirt_driver.LibvirtDriver, name)
            setattr(nova, name, method.__get__(nova))
        with mock.patch('nova.virt.libvirt.driver.key_manager.API') as api:
            api.return_value.get.return_value.get_encoded.return_value = b'k'
            libvirt_driver.LibvirtDriver._attach_encryptor(
                nova, mock.sentinel.context, info,
                {'provider': provider, 'encryption_key_id': 'key',
                 'control_location': 'front-end'})

    def test_encryption_by_qemu(self):
        info = base.connection(encrypted=True)
        self.driver.connect_volume(info, self.instance)
        self.execute.reset_mock()
        self._attach_encryptor(info, 'luks')
        # Neither is the file looked at nor formatted.
        self.execute.assert_not_called()
        self.host.create_secret.assert_called_once_with(
            'volume', base.VOLUME_ID, password='6b')

    def test_encryption_in_the_description(self):
        """QEMU is to read LUKS in a raw file, with the secret made above."""
        self.host.find_secret.return_value = mock.Mock(
            **{'UUIDString.return_value': 'uuid'})
        xml = self._xml(encrypted=True)
        self.assertEqual(('raw', os.path.join(self.path, base.NAME)), (
            xml.find('driver').get('type'), xml.find('source').get('file')))
        self.assertEqual('luks', xml.find('encryption').get('format'))
        self.assertEqual({'type': 'passphrase', 'uuid': 'uuid'},
                         dict(xml.find('encryption/secret').attrib))
        self.host.find_secret.assert_called_once_with('volume',
                                                      base.VOLUME_ID)

    @ddt.data('plain', 'luks2')
    def test_other_encryption_is_refused(self, provider):
        """It would replace the volume's file by a symbolic link."""
        info = base.connection(encrypted=True)
        self.driver.connect_volume(info, self.instance)
        self.execute.reset_mock()
        self.assertRaises(brick_exception.VolumeEncryptionNotSupported,
                          self._attach_encryptor, info, provider)
        self.execute.assert_not_called()


class RegistrationTestCase(base.NovaTestCase):

    def _get(self, driver_type):
        nova = mock.Mock(volume_drivers={}, _host=self.host)
        return libvirt_driver.LibvirtDriver._get_volume_driver(
            nova, {'driver_volume_type': driver_type})

    def test_nova_finds_the_driver(self):
        self.assertIsInstance(self._get('lustre'),
                              volume.LibvirtLustreVolumeDriver)

    def test_nova_without_it(self):
        with mock.patch.dict(libvirt_driver.VOLUME_DRIVERS):
            del libvirt_driver.VOLUME_DRIVERS['lustre']
            self.assertRaises(nova_exception.VolumeDriverNotFound, self._get,
                              'lustre')

    def test_options(self):
        self.assertEqual(
            ('flock', 60, 'stop', []),
            tuple(self.conf.conf.libvirt[name] for name in (
                'lustre_mount_options', 'lustre_mount_timeout',
                'lustre_error_policy', 'lustre_development_fstypes')))
        self.conf.conf.clear_override('lustre_mount_point_base', 'libvirt')
        self.assertEqual(
            os.path.join(self.conf.conf.state_path, 'mnt'),
            self.conf.conf.libvirt.lustre_mount_point_base)
