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


"""Encrypted volumes, with the key manager of Cinder that has one fixed key."""

import os
import subprocess
from unittest import mock

from castellan.common import exception as castellan_exception
from cinder import exception
from cinder.keymgr import conf_key_mgr
from cinder.objects import fields
from cinder.tests.unit import fake_constants as fake
from cinder.tests.unit import utils as test_utils
import ddt
from oslo_utils import units

from cinder_lustre import qemu_img
from cinder_lustre.tests.unit.volume.drivers import test_lustre

CONF = test_lustre.CONF
KEY = 'c0de' * 16
KEY_ID = '00000000-0000-0000-0000-000000000000'
ENCRYPTION = {'provider': 'luks', 'cipher': 'aes-xts-plain64',
              'key_size': 256, 'control_location': 'front-end'}
PLAIN = b'in clear ' * 10000
_headers = []


class EncryptionTestCase(test_lustre.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.override_config(
            'backend', 'cinder.keymgr.conf_key_mgr.ConfKeyManager',
            'key_manager')
        CONF.register_opts(conf_key_mgr.key_mgr_opts, 'key_manager')
        self.override_config('fixed_key', KEY, 'key_manager')
        self.run_in_process()
        self._format_once()

    def _format_once(self):
        """Let QEMU make one header, which takes it long."""
        original = qemu_img.format_luks

        def format_luks(path, **kwargs):
            self.assertEqual({'cipher_alg': 'aes-256', 'cipher_mode': 'xts',
                              'ivgen_alg': 'plain64', 'passphrase': KEY},
                             kwargs)
            if not _headers:
                original(path, **kwargs)
                with open(path, 'rb') as stream:
                    _headers.append(stream.read())
            with open(path, 'r+b') as stream:
                stream.write(_headers[0])

        self.patch('cinder_lustre.qemu_img.format_luks', format_luks)

    def new_encrypted(self, size=1, specs=None, encryption=None, **values):
        volume = self.new_volume(size, specs, encryption_key_id=KEY_ID,
                                 **values)
        self.encrypt_type(volume, encryption or ENCRYPTION)
        return volume

    def encrypt_type(self, volume, encryption):
        test_utils.create_encryption(self.context, volume.volume_type_id,
                                     self, **encryption)

    def create_encrypted(self, *args, **kwargs):
        volume = self.new_encrypted(*args, **kwargs)
        volume.update(self.driver.create_volume(volume))
        volume.save()
        return volume

    def images(self, name='image', content=PLAIN, fmt='raw'):
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as stream:
            stream.write(content)
        if fmt != 'raw':
            self.run_command('qemu-img', 'convert', '-f', 'raw', '-O', fmt,
                             path, path + '.' + fmt)
            path += '.' + fmt
        return test_lustre.FakeImageService(path, fmt)

    def fill(self, volume, **kwargs):
        self.driver.copy_image_to_encrypted_volume(
            self.context, volume, self.images(**kwargs), fake.IMAGE_ID)

    def plain(self, path, key=KEY):
        """What an encrypted file begins with, as QEMU decrypts it."""
        flat = os.path.join(self.directory, 'flat')
        subprocess.run(
            ['qemu-img', 'dd', '-O', 'raw', 'count=1', 'bs=%d' % len(PLAIN),
             '--object', 'secret,id=key,data=%s' % key, '--image-opts',
             'if=driver=luks,key-secret=key,file.filename=' + path,
             'of=' + flat], check=True, stderr=subprocess.PIPE)
        with open(flat, 'rb') as stream:
            return stream.read(len(PLAIN))

    def assert_plain(self, volume):
        path = self.driver.local_path(volume)
        self.assertEqual(volume.size * units.Gi, os.path.getsize(path))
        self.assertEqual(PLAIN, self.plain(path))
        with open(path, 'rb') as stream:
            self.assertNotIn(PLAIN[:32], stream.read(8 * units.Mi))

    def refused(self, error, word, function, *args):
        """See that something is refused and leaves nothing."""
        before = self.files()
        raised = self.assertRaises(error, function, *args)
        self.assertIn(word, str(raised))
        self.assertEqual(before, self.files())

    def clone(self, source, size=1, **values):
        volume = self.new_volume(size, encryption_key_id=KEY_ID, **values)
        self.encrypt_type(volume, ENCRYPTION)
        volume.update(self.driver.create_cloned_volume(volume, source))
        volume.save()
        return volume


@ddt.ddt
class EncryptedVolumeTestCase(EncryptionTestCase):

    @ddt.data('thin', 'thick')
    def test_create(self, provisioning):
        self.patch('cinder_lustre.layers._fallocate',
                   lambda descriptor, start, size:
                   os.ftruncate(descriptor, size))
        volume = self.create_encrypted(
            specs={'provisioning:type': provisioning})
        path = self.driver.local_path(volume)
        self.assertEqual(units.Gi, os.path.getsize(path))
        with open(path, 'rb') as stream:
            self.assertEqual(test_lustre.lustre._LUKS1, stream.read(8))
        self.assertEqual('raw', self.connection(volume)['format'])
        self.assertEqual('raw', self.format_in_database(volume))
        self.assertRaises(subprocess.CalledProcessError, self.plain, path,
                          'f' * 64)
        self.driver.delete_volume(volume)
        self.assertEqual(set(), self.files())

    def test_provider_by_its_old_name(self):
        self.create_encrypted(encryption=dict(
            ENCRYPTION, provider='nova.volume.encryptors.luks.LuksEncryptor'))

    @ddt.data({'provider': 'luks2'}, {'provider': 'plain'},
              {'control_location': 'back-end'}, {'key_size': 512},
              {'cipher': 'aes-xts'}, {'cipher': 'twofish-xts-plain64'},
              {'cipher': None})
    def test_other_encryption(self, change):
        volume = self.new_encrypted(encryption=dict(ENCRYPTION, **change))
        self.refused(exception.InvalidVolumeType, 'aes-xts-plain64'
                     if 'control_location' not in change else 'front-end',
                     self.driver.create_volume, volume)
        self.assertIsNone(volume.provider_location)

    def test_qcow2(self):
        volume = self.new_encrypted(specs={'lustre:format': 'qcow2'})
        self.refused(exception.InvalidVolumeType, 'set lustre:format to raw',
                     self.driver.create_volume, volume)

    def test_nfs(self):
        """With a path, Nova formats what it cannot read."""
        volume = self.create_encrypted()
        self.set_options(lustre_connection_type='nfs')
        for function, *args in (
                (self.driver.create_volume, self.new_encrypted()),
                (self.driver.initialize_connection, volume, {})):
            self.refused(exception.InvalidVolumeType,
                         'lustre_connection_type', function, *args)

    def test_key_that_is_not_there(self):
        volume = self.new_volume(encryption_key_id=fake.ENCRYPTION_KEY_ID)
        self.encrypt_type(volume, ENCRYPTION)
        self.refused(KeyError, fake.ENCRYPTION_KEY_ID,
                     self.driver.create_volume, volume)

    def test_qcow2_file_of_another_driver(self):
        volume = self.create_volume(fmt='qcow2')
        volume.encryption_key_id = KEY_ID
        volume.save()
        self.refused(exception.InvalidVolumeType, 'only raw',
                     self.driver.initialize_connection, volume, {})

    def test_clone(self):
        source = self.create_encrypted()
        self.fill(source)
        self.assert_plain(self.clone(source, 2))

    def test_clone_that_is_not_encrypted(self):
        source = self.create_encrypted()
        self.refused(exception.InvalidVolume, 'within a server',
                     self.driver.create_cloned_volume, self.new_volume(),
                     source)

    def test_encrypted_clone_of_one_that_is_not(self):
        source = self.create_volume()
        volume = self.new_encrypted()
        self.refused(exception.InvalidVolume, 'within a server',
                     self.driver.create_cloned_volume, volume, source)
        self.refused(exception.InvalidVolume, 'within a server',
                     self.driver.create_volume_from_snapshot, volume,
                     self.create_snapshot(source))

    def test_snapshot(self):
        volume = self.create_encrypted()
        for _ in range(2):
            self.refused(exception.InvalidVolume, 'Clone',
                         self.driver.create_snapshot,
                         test_utils.create_snapshot(self.context, volume.id))
            self.set_attached(volume)

    def test_clone_of_an_attached_one(self):
        volume = self.create_encrypted()
        self.set_attached(volume)
        self.refused(exception.InvalidVolume, 'while it is detached',
                     self.clone, volume)

    @ddt.data(False, True)
    def test_extend(self, attached):
        volume = self.create_encrypted()
        self.fill(volume)
        if attached:
            self.set_attached(volume)
        self.driver.extend_volume(volume, 3)
        volume.size = 3
        self.assert_plain(volume)

    def retype(self, volume, specs, encryption=None):
        new = self.new_volume(specs=specs)
        self.encrypt_type(new, encryption or ENCRYPTION)
        return self.driver.retype(self.context, volume, new.volume_type, {},
                                  {})

    def test_retype(self):
        volume = self.create_encrypted()
        self.fill(volume)
        self.patch('cinder_lustre.layers._fallocate',
                   lambda descriptor, start, size:
                   os.ftruncate(descriptor, size))
        self.assertTrue(self.retype(volume, {'provisioning:type': 'thick'}))
        self.assert_plain(volume)
        self.refused(exception.InvalidVolumeType, 'only raw', self.retype,
                     volume, {'lustre:format': 'qcow2'})

    def test_manage(self):
        volume = self.new_volume()
        self.encrypt_type(volume, ENCRYPTION)
        reference = {'source-name': test_lustre.IDENTITY + '/disk'}
        with open(os.path.join(self.root, 'disk'), 'wb') as stream:
            stream.truncate(units.Gi)
        self.refused(exception.ManageExistingVolumeTypeMismatch,
                     'Use a type without encryption.',
                     self.driver.manage_existing, volume, reference)

    def target(self, source, **encryption):
        """What Cinder copies a volume to that it gives another type."""
        return self.new_encrypted(
            encryption=dict(ENCRYPTION, **encryption),
            migration_status='target:' + source.id)

    def test_migration_to_another_encryption(self):
        """Cinder would copy it through dm-crypt."""
        source = self.create_encrypted()
        for source, target in (
                (source, self.target(source, key_size=128)),
                (self.create_volume(), None)):
            self.refused(exception.InvalidVolume, 'within a server',
                         self.driver.create_volume,
                         target or self.target(source))

    def test_migration_to_another_driver(self):
        source = self.create_encrypted()
        self.target(source)
        self.connection(source)
        self.target(source, key_size=128)
        self.refused(exception.InvalidVolume, 'within a server',
                     self.driver.initialize_connection, source, {})

    def test_migration_between_backends(self):
        """Barbican gives no administrator the keys of other projects."""
        source = self.create_encrypted()
        target = self.target(source)
        self.patch('cinder.keymgr.conf_key_mgr.ConfKeyManager.get',
                   mock.Mock(side_effect=castellan_exception.Forbidden))
        self.assertRaises(castellan_exception.Forbidden,
                          self.driver.create_volume, self.new_encrypted())
        target.update(self.driver.create_volume(target))
        self.assertEqual(units.Gi, os.path.getsize(
            self.driver.local_path(target)))
        self.connection(target)


@ddt.ddt
class EncryptedImageTestCase(EncryptionTestCase):

    @ddt.data('raw', 'qcow2')
    def test_load(self, fmt):
        volume = self.create_encrypted()
        self.fill(volume, fmt=fmt)
        self.assert_plain(volume)
        self.assertEqual({volume.name}, self.files())

    def test_load_what_has_no_room(self):
        self.shrink_gib()
        volume = self.create_encrypted(4)
        self.refused(exception.VolumeBackendAPIException,
                     'Choose a larger volume.', lambda: self.fill(
                         volume, content=bytes(4 * units.Mi)))

    def upload(self, volume, disk_format='raw', container_format='bare'):
        images = test_lustre.FakeImageService(
            os.path.join(self.directory, 'uploaded'), disk_format,
            container_format)
        self.driver.copy_volume_to_image(self.context, volume, images,
                                         images.meta)
        return images

    def test_upload_and_load(self):
        volume = self.create_encrypted()
        self.fill(volume)
        images = self.upload(volume)
        self.assertEqual(PLAIN, self.plain(images.path))
        copy = self.create_encrypted(2)
        self.driver.copy_image_to_volume(self.context, copy, images,
                                         fake.IMAGE_ID)
        self.assert_plain(copy)

    @ddt.data(('qcow2', 'bare'), ('raw', 'compressed'))
    @ddt.unpack
    def test_upload_converted(self, disk_format, container_format):
        volume = self.create_encrypted()
        self.override_config('allow_compression_on_image_upload', True)
        self.refused(exception.ImageUnacceptable, 'raw and bare',
                     self.upload, volume, disk_format, container_format)

    def test_upload_of_an_attached_one(self):
        volume = self.create_encrypted()
        self.set_attached(volume)
        self.refused(exception.InvalidVolume, 'while it is detached',
                     self.upload, volume)

    @ddt.data((b'LUKS\xba\xbe\x00\x02' + bytes(512), 'raw'), (PLAIN, 'raw'),
              (PLAIN, 'qcow2'))
    @ddt.unpack
    def test_load_as_encrypted_what_is_not(self, content, fmt):
        volume = self.create_encrypted()
        self.refused(exception.ImageUnacceptable, 'LUKS version 1',
                     self.driver.copy_image_to_volume, self.context, volume,
                     self.images(content=content, fmt=fmt), fake.IMAGE_ID)


@ddt.ddt
class EncryptedBackupTestCase(EncryptionTestCase):

    def restoring(self, volume, key_id, status='restoring-backup'):
        volume.status = status
        volume.save()
        return test_utils.create_backup(
            self.context, volume.id, restore_volume_id=volume.id,
            encryption_key_id=key_id, status=fields.BackupStatus.RESTORING)

    def test_restore(self):
        for volume, key_id in ((self.create_encrypted(), KEY_ID),
                               (self.create_volume(), None)):
            self.restoring(volume, key_id)
            self.connection(volume)

    @ddt.data('restoring-backup', 'creating')
    def test_restore_to_the_other_kind(self, status):
        for volume, key_id in ((self.create_encrypted(), None),
                               (self.create_volume(), KEY_ID)):
            backup = self.restoring(volume, key_id, status)
            self.refused(exception.InvalidVolume, backup.id,
                         self.driver.initialize_connection, volume, {})
            # What was restored before does not matter.
            backup.status = fields.BackupStatus.AVAILABLE
            backup.save()
            self.connection(volume)

    def test_backups_are_read_for_a_restore_only(self):
        volume = self.create_volume()
        volume.status = 'reserved'
        volume.save()
        self.patch('cinder.objects.BackupList.get_all', None)
        self.connection(volume)

    def test_backup_of_an_attached_one(self):
        volume = self.create_encrypted()
        self.set_attached(volume)
        volume.update({'status': 'backing-up', 'previous_status': 'in-use'})
        volume.save()
        backup = test_utils.create_backup(self.context, volume.id)
        self.refused(exception.InvalidVolume, 'while it is detached',
                     self.driver.get_backup_device, self.context, backup)
        backup.refresh()
        self.assertIn('while it is detached', backup.fail_reason)

    def test_backup(self):
        volume = self.create_encrypted()
        backup = test_utils.create_backup(self.context, volume.id)
        device, _is_snapshot = self.driver.get_backup_device(self.context,
                                                             backup)
        self.assertEqual(volume.id, device.id)
