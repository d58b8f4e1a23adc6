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

import errno
import hashlib
import io
import itertools
import json
import os
from unittest import mock

from cinder.backup.drivers import posix
from cinder import exception
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import test
import ddt
from oslo_config import cfg
from oslo_utils import units

from cinder_lustre.backup import disk
from cinder_lustre.backup.drivers import lustre
from cinder_lustre.backup import piece
from cinder_lustre.backup import transfer
from cinder_lustre.brick import nbd
from cinder_lustre import exception as lustre_exception
from cinder_lustre import share
from cinder_lustre.tests.unit.backup import test_manager
from cinder_lustre.tests.unit.brick import base

CONF = cfg.CONF

SHARE = '10.0.2.15@tcp:/backups/cinder'
POSIX = '%s.PosixBackupDriver' % posix.__name__
LUSTRE = '%s.LustreBackupDriver' % lustre.__name__
# Less than Cinder's smallest volume has, which takes the posix driver long.
SIZE = 8 * units.Mi


def _overwrite(path):
    with open(path, 'r+b') as stream:
        stream.write(b'\xff' * 20)


def _append(path):
    with open(path, 'ab') as stream:
        stream.write(b'more')


def _shorten(path):
    os.truncate(path, 20)


DAMAGES = (os.unlink, _overwrite, _append, _shorten)


@ddt.ddt
class LustreBackupDriverTestCase(test_manager.BackupManagerTestCase):
    """Cinder's backup manager with this driver, on real files.

    The tests of the manager run as well.
    """

    def setUp(self):
        super().setUp()
        self.mount_point = share.Share.parse(SHARE).mount_point(self.base)
        os.mkdir(self.mount_point)
        for name, value in (('lustre_backup_share', SHARE),
                            ('lustre_backup_mount_point_base', self.base),
                            ('lustre_backup_object_size', 1),
                            ('backup_posix_path', self.mount_point)):
            self.override_config(name, value)
        self.use(LUSTRE)

    def use(self, driver, compression='zlib'):
        """Let another driver do what follows, in the same directory."""
        self.override_config('backup_driver', driver)
        self.override_config('backup_compression_algorithm', compression)
        self.manager = self.new_manager()
        return self.manager.service(self.context)

    def contents_of(self, volume):
        if self.formats[volume.id] != 'raw':
            return super().contents_of(volume)
        # A restore gives the file the size that the volume has by Cinder.
        with open(self.path(volume.name), 'rb') as stream:
            return stream.read(test_manager.SIZE)

    def sparse_volume(self, contents, fmt='raw'):
        """A volume with contents at its start and a hole."""
        volume = self.new_volume(fmt)
        path = self.path(volume.name)
        self.qemu_img('resize', '-f', fmt, '--shrink', path, str(SIZE))
        if contents:
            with open(self.path('contents'), 'wb') as stream:
                stream.write(contents)
                stream.truncate(SIZE)
            self.qemu_img('convert', '-n', '-f', 'raw', '-O', fmt,
                          self.path('contents'), path)
        return volume

    def resize(self, volume, size):
        os.truncate(self.path(volume.name), size)

    def files(self, backup):
        """What there is of a backup, by name."""
        return {name: os.path.join(self.container(backup), name)
                for name in os.listdir(self.container(backup))}

    def container(self, backup):
        return os.path.join(self.mount_point, backup.container)

    def metadata(self, backup):
        with open(self.files(backup)[
                backup.service_metadata + '_metadata']) as stream:
            return json.load(stream)

    def digest(self, volume):
        contents = self.contents(self.path(volume.name),
                                 self.formats[volume.id])
        return hashlib.sha256(contents[:SIZE]).hexdigest()

    def holes_and_data(self):
        """Two MiB of data with a hole of two between them."""
        return (base.noise(units.Mi + 4096) + bytes(2 * units.Mi - 4096) +
                base.noise(units.Mi))

    @ddt.data(*((fro, to, compression) for fro, to in (
        (LUSTRE, LUSTRE), (LUSTRE, POSIX), (POSIX, LUSTRE))
        for compression in ('none', 'zlib', 'bz2', 'zstd')))
    @ddt.unpack
    def test_restored_over_other_data(self, fro, to, compression):
        data = self.holes_and_data()
        self.use(fro, compression)
        source = self.sparse_volume(data)
        backup = self.back_up(source)
        self.use(to)
        target = self.sparse_volume(b'\xff' * SIZE)
        self.restore(backup, target, volume_is_new=False)
        self.assertEqual(self.digest(source), self.digest(target))

    @ddt.data(('raw', 'qcow2'), ('qcow2', 'raw'), ('qcow2', 'qcow2'))
    @ddt.unpack
    def test_qcow2_is_copied_in_a_child(self, source, target):
        source = self.sparse_volume(self.holes_and_data(), source)
        target = self.sparse_volume(b'\xff' * SIZE, target)
        with mock.patch.object(posix.PosixBackupDriver, 'backup'), \
                mock.patch.object(posix.PosixBackupDriver, 'restore'):
            self.restore(self.back_up(source), target, volume_is_new=False)
        self.assertEqual(self.digest(source), self.digest(target))

    @ddt.data(*((fro, to) for fro in (LUSTRE, POSIX)
                for to in (LUSTRE, POSIX) if LUSTRE in (fro, to)))
    @ddt.unpack
    def test_incremental_of_another_driver(self, parent_driver, driver):
        self.use(parent_driver)
        source = self.sparse_volume(self.holes_and_data())
        parent = self.back_up(source)
        with open(self.path(source.name), 'r+b') as stream:
            stream.seek(4096)
            stream.write(bytes(units.Mi))
            stream.seek(5 * units.Mi)
            stream.write(b'new')
        self.use(driver)
        backup = self.back_up(source, parent)
        stored = sum(entry['length']
                     for each in self.metadata(backup)['objects']
                     for entry in each.values())
        self.assertLess(stored, 2 * units.Mi)
        self.use(LUSTRE)
        target = self.sparse_volume(b'\xff' * units.Mi)
        self.restore(backup, target, volume_is_new=False)
        self.assertEqual(self.digest(source), self.digest(target))
        target = self.sparse_volume(b'')
        self.restore(backup, target, volume_is_new=True)
        self.assertEqual(self.digest(source), self.digest(target))

    def test_same_hashes_as_the_posix_driver(self):
        source = self.sparse_volume(self.holes_and_data())
        hashes = []
        for driver in (LUSTRE, POSIX):
            service = self.use(driver)
            hashes.append(service._read_sha256file(self.back_up(source)))
        self.assertEqual(hashes[1]['sha256s'], hashes[0]['sha256s'])
        self.assertEqual(hashes[1].keys(), hashes[0].keys())
        self.assertEqual(hashes[1]['chunk_size'], hashes[0]['chunk_size'])

    @ddt.data('none', 'zlib', 'zstd', 'bz2')
    def test_checksums_of_all_objects(self, compression):
        self.use(LUSTRE, compression)
        source = self.sparse_volume(self.holes_and_data())
        backup = self.back_up(source)
        metadata = self.metadata(backup)
        position = 0
        with open(self.path(source.name), 'rb') as stream:
            for each in metadata['objects']:
                (name, entry), = each.items()
                self.assertEqual(position, entry['offset'])
                data = stream.read(entry['length'])
                self.assertEqual(hashlib.md5(data).hexdigest(), entry['md5'])
                position += entry['length']
        self.assertEqual(SIZE, position)
        self.assertEqual(len(metadata['objects']), backup.object_count)

    def test_holes_take_no_space(self):
        for compression in ('none', 'zlib'):
            self.use(LUSTRE, compression)
            backup = self.back_up(self.sparse_volume(b''))
            used = sum(os.stat(path).st_blocks * 512 for name, path
                       in self.files(backup).items() if '_' not in name[-12:])
            self.assertLess(used, units.Mi)

    def test_restored_holes_are_holes(self):
        data = self.holes_and_data()
        backup = self.back_up(self.sparse_volume(data))
        target = self.sparse_volume(base.noise(SIZE))
        # One without any hole is taken for a thick one.
        self.resize(target, 2 * SIZE)
        self.restore(backup, target, volume_is_new=False)
        self.assertLess(os.stat(self.path(target.name)).st_blocks * 512,
                        5 * units.Mi)

    def test_thick_volume_stays_thick(self):
        backup = self.back_up(self.new_volume('raw', self.some_data()))
        target = self.new_volume('raw', b'\xff' * test_manager.SIZE)
        self.resize(target, 8 * units.Mi)
        os.posix_fallocate(os.open(self.path(target.name), os.O_RDWR), 0,
                           8 * units.Mi)
        self.restore(backup, target, volume_is_new=False)
        with open(self.path(target.name), 'rb') as stream:
            self.assertEqual(self.some_data(),
                             stream.read(test_manager.SIZE))
        self.assertGreaterEqual(
            os.stat(self.path(target.name)).st_blocks * 512, 3 * units.Mi)

    def test_truncated_target_gets_its_size(self):
        source = self.sparse_volume(self.holes_and_data())
        backup = self.back_up(source)
        target = self.sparse_volume(b'')
        self.resize(target, 0)
        self.restore(backup, target, volume_is_new=True)
        self.assertEqual(self.digest(source), self.digest(target))
        self.assertEqual(units.Gi, os.path.getsize(self.path(target.name)))

    def foreign(self, contents):
        """A handle that only this process can use, as RBD has."""
        handle = io.BytesIO(contents)
        self.assertRaises(OSError, handle.fileno)
        return handle

    def test_foreign_handles(self):
        driver = self.manager.service(self.context)
        data = self.holes_and_data() + bytes(SIZE - 4 * units.Mi)
        backup = self.back_up(self.sparse_volume(b''))
        driver.backup(backup, self.foreign(data))
        backup.status = fields.BackupStatus.RESTORING
        backup.save()
        target = self.foreign(b'\xff' * SIZE)
        driver.restore(backup, backup.volume_id, target, False)
        self.assertEqual(data, target.getvalue())

    def test_foreign_handles_and_damage(self):
        backup, name = self.damaged(DAMAGES[1])
        target = self.foreign(b'\xff' * SIZE)
        error = self.assertRaises(
            exception.InvalidBackup, self.manager.service(
                self.context).restore, backup, backup.volume_id, target, True)
        self.assertIn(name, str(error))
        self.assertEqual(b'\xff' * SIZE, target.getvalue())

    def damaged(self, damage):
        """A backup with one damaged object, and that object's name."""
        backup = self.back_up(self.sparse_volume(self.holes_and_data()))
        files = self.files(backup)
        # Objects of zeros share their file.
        name = [each for each in sorted(files)
                if os.stat(files[each]).st_nlink == 1][2]
        damage(files[name])
        return backup, name

    @ddt.data(*((damage, fmt) for damage in DAMAGES[:2]
                for fmt in ('raw', 'qcow2')))
    @ddt.unpack
    def test_damaged_object_is_named(self, damage, fmt):
        backup, name = self.damaged(damage)
        error = self.assertRaises(
            exception.InvalidBackup, self.restore, backup,
            self.sparse_volume(b'', fmt), True)
        self.assertIn(name, str(error))

    def test_missing_object_leaves_the_volume_alone(self):
        backup, _name = self.damaged(os.unlink)
        target = self.sparse_volume(b'\xff' * units.Mi)
        before = self.digest(target)
        self.assertRaises(exception.InvalidBackup, self.restore, backup,
                          target, False)
        self.assertEqual(before, self.digest(target))

    def test_delete_backup(self):
        first = self.back_up(self.sparse_volume(b''))
        second = self.back_up(self.sparse_volume(b'x'))
        driver = self.manager.service(self.context)
        driver.delete_backup(first)
        self.assertFalse(os.path.exists(self.container(first)))
        self.assertNotEqual({}, self.files(second))
        driver.delete_backup(second)
        # Of no use twice, and no error either.
        driver.delete_backup(second)
        self.assertEqual([], os.listdir(self.mount_point))

    def test_containers_of_the_operator_stay(self):
        backup = self.back_up(self.sparse_volume(b''))
        self.override_config('backup_create_containers', False)
        self.manager.service(self.context).delete_backup(backup)
        self.assertEqual([], os.listdir(self.container(backup)))

    def test_container_goes_before_it_is_used(self):
        with mock.patch.object(lustre.LustreBackupDriver, 'put_container'):
            backup = self.back_up(self.sparse_volume(b''))
        self.assertNotEqual({}, self.files(backup))

    def test_larger_hashed_block(self):
        """What would be compared with other parts of the volume."""
        self.override_config('backup_sha_block_size_bytes', 2 * units.Mi)
        error = self.assertRaises(
            exception.InvalidConfigurationValue,
            self.manager.service(self.context).check_for_setup_error)
        self.assertIn('backup_sha_block_size_bytes', str(error))

    def test_backup_that_does_not_fit(self):
        backup = self.back_up(self.sparse_volume(b'x'))
        target = self.sparse_volume(b'\xff' * units.Mi)
        before = self.digest(target)
        with mock.patch.object(units, 'Gi', SIZE - 1):
            error = self.assertRaises(exception.InvalidBackup, self.restore,
                                      backup, target, False)
        self.assertIn('larger', str(error))
        self.assertEqual(before, self.digest(target))

    def test_metadata_without_an_object(self):
        backup = self.back_up(self.sparse_volume(self.holes_and_data()))
        metadata = self.metadata(backup)
        del metadata['objects'][2]
        path = self.files(backup)[backup.service_metadata + '_metadata']
        with open(path, 'w') as stream:
            json.dump(metadata, stream)
        error = self.assertRaises(exception.InvalidBackup, self.restore,
                                  backup, self.sparse_volume(b''), True)
        self.assertIn(str(2 * units.Mi), str(error))

    def test_deleted_while_it_is_made(self):
        volume = self.sparse_volume(self.holes_and_data())
        refresh = objects.Backup.refresh

        def delete(backup):
            refresh(backup)
            backup.status = fields.BackupStatus.DELETING

        with mock.patch.object(objects.Backup, 'refresh', delete):
            self.assertRaises(
                AssertionError, self.back_up, volume)
        self.assertEqual([], os.listdir(self.mount_point))

    def test_restore_that_is_not_wanted(self):
        backup = self.back_up(self.sparse_volume(self.holes_and_data()))
        with mock.patch.object(objects.Backup, 'refresh'):
            backup.status = fields.BackupStatus.AVAILABLE
            with mock.patch.object(backup, 'save'):
                self.assertRaises(
                    exception.BackupRestoreCancel,
                    self.manager.service(self.context).restore, backup,
                    backup.volume_id,
                    open(self.path(self.sparse_volume(b'').name), 'r+b'),
                    True)

    @ddt.data((None, 'lustre_backup_share'), ('backups', 'backups'))
    @ddt.unpack
    def test_bad_share(self, value, named):
        self.override_config('lustre_backup_share', value)
        error = self.assertRaises(exception.InvalidConfigurationValue,
                                  lustre.LustreBackupDriver, self.context)
        self.assertIn(named, str(error))

    def test_share_that_others_own(self):
        driver = self.manager.service(self.context)
        with mock.patch.object(
                driver, '_call', return_value=False), mock.patch.object(
                    lustre.processutils, 'execute') as execute:
            error = self.assertRaises(exception.BackupDriverException,
                                      driver._ensure_ready)
        self.assertIn('cannot write', str(error))
        self.assertEqual(
            [mock.call('chgrp', str(os.getegid()), self.mount_point,
                       run_as_root=True, root_helper=mock.ANY),
             mock.call('chmod', 'g+rwx', self.mount_point, run_as_root=True,
                       root_helper=mock.ANY)],
            execute.call_args_list)

    def test_options_do_not_collide(self):
        ours = {option.name for option in lustre.opts.backup_opts}
        self.assertEqual({name for name in ours
                          if not name.startswith('lustre_backup_')}, set())


@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class ObjectTestCase(base.ImageTestCase, test.TestCase):
    """One object, without a driver."""

    def content(self, entry):
        return b''.join(
            bytes(each) for each in piece.read(
                self.path('object'), entry['compression'], units.Mi,
                entry['md5']))

    def store(self, algorithm, data):
        return transfer._store_object(self.path('object'), algorithm, data,
                                      units.Mi, {})

    @ddt.data(*itertools.product(
        piece.ALGORITHMS, (None, bytes(units.Mi - 1) + b'x',
                           base.noise(units.Mi))))
    @ddt.unpack
    def test_content(self, algorithm, data):
        entry = self.store(algorithm, data)
        self.assertEqual(data or bytes(units.Mi), self.content(entry))
        self.assertEqual(['object'], os.listdir(self.directory))

    @ddt.data('zlib', 'bz2', 'zstd')
    def test_sample(self, algorithm):
        noise = base.noise(units.Mi)
        mixed = noise[:units.Mi // 2] + b'x' * (units.Mi // 2)
        with mock.patch.object(piece, '_compressed',
                               wraps=piece._compressed) as compressed:
            self.assertEqual(('none', noise),
                             piece.compress(algorithm, noise))
            (_kind, sample), = (call.args for call in
                                compressed.call_args_list)
            self.assertLess(len(sample), len(noise) // 16)
            used, content = piece.compress(algorithm, mixed)
        self.assertEqual(algorithm, used)
        self.assertLess(len(content), 2 * len(mixed) // 3)

    @ddt.data(*itertools.product(('zlib', 'bz2', 'zstd'), (
        # Too short for a sample, however it begins.
        base.noise(4096) + b'x' * 28672,
        # Half of each 64 KiB; and less than a sixth of it all.
        b''.join(base.noise(32768) + b'x' * 32768 for _ in range(64)),
        base.noise(4 * units.Mi) + b'x' * (units.Mi // 2))))
    @ddt.unpack
    def test_worth_the_effort(self, algorithm, data):
        used, content = piece.compress(algorithm, data)
        self.assertEqual(algorithm, used)
        self.assertLess(len(content), 19 * len(data) // 20)

    @ddt.data((None, 1), (OSError(errno.EMLINK, 'no more'), 2),
              (OSError(errno.EPERM, 'none at all'), 2),
              (OSError(errno.EXDEV, 'another project'), 2))
    @ddt.unpack
    def test_zeros_again(self, error, files):
        zeros = {}
        with mock.patch.object(os, 'link', wraps=os.link, side_effect=error):
            for name in ('one', 'two'):
                entry = transfer._store_object(
                    self.path(name), 'none', None, units.Mi, zeros)
        transfer._store_object(self.path('short'), 'none', None, 1, zeros)
        self.assertEqual(1, os.path.getsize(self.path('short')))
        self.assertEqual(files, len({os.stat(self.path(name)).st_ino
                                     for name in ('one', 'two')}))
        os.unlink(self.path('one'))
        os.rename(self.path('two'), self.path('object'))
        self.assertEqual(bytes(units.Mi), self.content(entry))

    def test_zeros_that_are_not_on_the_disk(self):
        zeros = {}
        with mock.patch.object(piece, 'write',
                               side_effect=OSError(errno.ENOSPC, 'full')):
            self.assertRaises(OSError, transfer._store_object,
                              self.path('object'), 'none', None, 1, zeros)
        self.assertEqual({}, zeros)

    def test_zeros_of_one_backup(self):
        with open(self.path('volume'), 'w+b') as stream:
            stream.truncate(64 * units.Mi)
            transfer.store({'fd': stream.fileno()}, self.directory, 'c', 'o',
                           {'chunk_size': 32768}, 'none', units.Mi)
        # Those that were begun before the first was there have their own.
        self.assertLess(1, max(
            each.stat().st_nlink for each in os.scandir(self.path('c'))))

    @ddt.data(*itertools.product(
        DAMAGES, ('none', 'zlib', 'bz2', 'zstd'),
        (None, bytes(units.Mi - 1) + b'x', base.noise(units.Mi))))
    @ddt.unpack
    def test_damage(self, damage, algorithm, data):
        entry = self.store(algorithm, data)
        damage(self.path('object'))
        error = self.assertRaises(lustre_exception.ObjectDamaged,
                                  self.content, entry)
        self.assertIn(self.path('object'), str(error))


class FileTestCase(base.ImageTestCase, test.TestCase):
    """A volume that is a file."""

    def open(self, mode):
        stream = open(self.path('file'), mode)
        self.addCleanup(stream.close)
        return stream, disk.open_disk(stream.fileno())

    def test_zeros_in_a_truncated_file(self):
        stream, target = self.open('wb')
        target.write(0, b'x' * units.Mi)
        target.zero(units.Mi, 8 * units.Mi)
        target.grow(10 * units.Mi)
        info = os.fstat(stream.fileno())
        self.assertEqual(10 * units.Mi, info.st_size)
        self.assertEqual(units.Mi, info.st_blocks * 512)

    def test_object_where_holes_cannot_be_told(self):
        path = self.path('object')
        entry = transfer._store_object(path, 'none', None, units.Mi, {})
        with mock.patch.object(os, 'lseek', side_effect=OSError(22, 'no')):
            content = b''.join(map(bytes, piece.read(
                path, entry['compression'], units.Mi, entry['md5'])))
        self.assertEqual(bytes(units.Mi), content)


class RunsTestCase(base.ImageTestCase, test.TestCase):
    """The data and the holes of a file."""

    def runs(self, *parts, size=8 * units.Mi):
        path = self.path('file')
        with open(path, 'wb') as stream:
            stream.truncate(size)
            for offset, length in parts:
                os.pwrite(stream.fileno(), b'x' * length, offset)
        fd = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        source = disk.open_disk(fd)
        return list(transfer._runs(source.data(units.Mi), size, units.Mi))

    def test_empty(self):
        self.assertEqual([(0, 8 * units.Mi, False)], self.runs())

    def test_neighbours_are_one(self):
        self.assertEqual(
            [(0, units.Mi, False), (units.Mi, 3 * units.Mi, True),
             (3 * units.Mi, 8 * units.Mi, False)],
            self.runs((units.Mi + 8192, 4096), (2 * units.Mi + 4096, 1)))

    def test_data_to_the_end(self):
        size = 2 * units.Mi + 5
        self.assertEqual([(0, 2 * units.Mi, False), (2 * units.Mi, size,
                                                     True)],
                         self.runs((size - 1, 1), size=size))

    def test_qcow2(self):
        path = self.create('volume', 'qcow2', 8 * units.Mi)
        with nbd.open_image(path) as stream:
            stream.seek(2 * units.Mi + 5)
            stream.write(b'x')
            stream.flush()
            with stream.raw.lend() as terms:
                source = disk.open_disk(**dict(terms,
                                               fd=os.dup(terms['fd'])))
                self.assertEqual(
                    [(0, 2 * units.Mi, False),
                     (2 * units.Mi, 3 * units.Mi, True),
                     (3 * units.Mi, 8 * units.Mi, False)],
                    list(transfer._runs(source.data(units.Mi), source.size,
                                        units.Mi)))

    def test_file_system_that_cannot_tell(self):
        lseek = os.lseek

        def refuse(fd, position, whence):
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                raise OSError(22, 'no')
            return lseek(fd, position, whence)

        with mock.patch.object(os, 'lseek', refuse):
            self.assertEqual([(0, 8 * units.Mi, True)], self.runs())
