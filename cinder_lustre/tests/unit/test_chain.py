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
import fcntl
import itertools
import json
import os
import struct
import subprocess
from unittest import mock

import ddt
import fixtures

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import layers
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import space
from cinder_lustre.tests import killed
from cinder_lustre.tests import share_directory
from cinder_lustre.tests.unit import storage
from cinder_lustre import worker

MIB = share_directory.MIB
SIZE = 4 * MIB
VOLUME = '0b6f7d5c-94c1-4a34-8a0b-9b6ed0f0c3aa'
OTHER = '5d7c1c1e-1c36-4c39-8f8e-bd1b8d1f2ab4'
BASE = 'volume-' + VOLUME
ONE, TWO, THREE, FOUR = SNAPSHOTS = (
    'a1f5bfa5-0d3c-4f5b-8a53-0c6d7c9e0001',
    'b2f5bfa5-0d3c-4f5b-8a53-0c6d7c9e0002',
    'c3f5bfa5-0d3c-4f5b-8a53-0c6d7c9e0003',
    'd4f5bfa5-0d3c-4f5b-8a53-0c6d7c9e0004')

formats = ddt.data('raw', 'qcow2')
formats_and_thickness = ddt.data(('raw', False), ('raw', True),
                                 ('qcow2', False), ('qcow2', True))
full = ddt.data(errno.ENOSPC, errno.EDQUOT)


def overlay(snapshot, volume=VOLUME):
    return 'volume-%s.%s' % (volume, snapshot)


def files_of(volume, *snapshots):
    """All files that a volume with these snapshots consists of."""
    names = ['.cinder-lustre/%s.json' % volume,
             '.cinder-lustre/%s.lock' % volume, 'volume-' + volume]
    names += [overlay(snapshot, volume) for snapshot in snapshots]
    if snapshots:
        names.append('volume-%s.info' % volume)
    return sorted(names)


class ChainTestCase(storage.StorageTestCase):

    def setUp(self):
        super().setUp()
        # What every test leaves behind must be readable, and go.
        self.addCleanup(self.check_share)

    def check_share(self):
        for name in self.share.files():
            is_record = '.cinder-lustre/' in name
            self.assertEqual(0o600 if is_record else 0o660, self.mode(name),
                             name)

    def create(self, fmt='raw', size=SIZE, volume=VOLUME, thick=False):
        """A volume with some content; returns the content."""
        chain.create(self.root, volume, fmt, size, thick)
        return self.fill(7, volume=volume, offset=MIB + 4096)

    def fill(self, byte, volume=VOLUME, offset=0, length=128 * 1024):
        """Write into a volume; returns its content."""
        before = bytearray(self.share.content(volume))
        before[offset:offset + length] = bytes([byte]) * length
        self.share.write(volume, offset, length, byte)
        return bytes(before)

    def assert_content(self, expected, volume=VOLUME, snapshot=None):
        self.assert_same(expected, self.share.content(volume, snapshot))

    def assert_gone(self, volume=VOLUME):
        chain.delete(self.root, volume)
        self.assertEqual([], [name for name in self.share.files()
                              if volume in name])

    def guest(self, volume=VOLUME):
        """Open a volume's file and lock it, as a running guest does."""
        rec = self.share.record(volume)
        process = subprocess.Popen(
            ['qemu-io', '-f', rec['layers'][rec['active']]['format'],
             self.share.path(rec['active'])], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.communicate, b'quit\n')
        # The prompt comes when the image is open.
        self.assertEqual(b'qemu-io> ', process.stdout.read(9))

    def killed(self, target, attribute, count, operation, *args):
        """Run an operation in a process that is killed on its way.

        :param target: the module that has the function at which it is killed
        :param attribute: the name of that function
        :param count: the how manieth call does not happen any more
        """
        self.assertTrue(killed.run(target, attribute, count, operation,
                                   self.root, *args), 'it was not killed')

    def full_share(self, code, command):
        """Let qemu-img fail in one of its commands for want of space."""
        return self.fake_qemu_img(
            'if [ "$1" = %s ]; then echo "qemu-img: %s" >&2; exit 1; fi; '
            'exec "$REAL" "$@"' % (command, os.strerror(code)))

    def fallocate(self, code, grow=False):
        """Let fallocate fail.

        :param grow: and leave the file at its full size, as Lustre does
        """
        def fail(descriptor, mode, offset, size):
            if grow:
                os.ftruncate(descriptor, size.value)
            return -1

        self.patch(space.ctypes, 'CDLL').return_value.fallocate64 = fail
        self.patch(space.ctypes, 'get_errno', return_value=code)


@ddt.ddt
class CreateTestCase(ChainTestCase):

    @formats_and_thickness
    @ddt.unpack
    def test_create(self, fmt, thick):
        self.assertEqual(
            {'active': BASE, 'format': fmt, 'size': SIZE, 'thick': thick,
             'snapshots': []},
            chain.create(self.root, VOLUME, fmt, SIZE, thick))
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assert_content(bytes(SIZE))
        if thick:
            self.assertGreaterEqual(self.share.allocated(BASE), SIZE)
        else:
            self.assertLess(self.share.allocated(BASE), MIB)

    @ddt.data(0o000, 0o077)
    def test_modes_do_not_depend_on_the_umask(self, umask):
        os.umask(umask)
        self.create('qcow2')
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.check_share()

    @formats
    def test_create_leaves_alone_what_exists(self, fmt):
        content = self.create(fmt)
        self.assertRaises(exception.FileExists, chain.create, self.root,
                          VOLUME, fmt, SIZE)
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME), self.share.files())

    def test_create_leaves_alone_a_file_without_a_record(self):
        self.touch(BASE)
        error = self.assertRaises(exception.FileExists, chain.create,
                                  self.root, VOLUME, 'raw', SIZE)
        self.assertIn(self.share.path(BASE), str(error))
        self.assertEqual([BASE], self.share.files())

    @full
    def test_a_full_share_raw(self, code):
        self.fallocate(code, grow=True)
        error = self.assertRaises(exception.NoSpace, chain.create, self.root,
                                  VOLUME, 'raw', SIZE, thick=True)
        self.assertEqual(os.strerror(code), error.kwargs['reason'])
        self.assertEqual([], self.share.files())

    @full
    def test_a_full_share_qcow2(self, code):
        with self.full_share(code, 'create'):
            self.assertRaises(exception.NoSpace, chain.create, self.root,
                              VOLUME, 'qcow2', SIZE, thick=True)
        self.assertEqual([], self.share.files())

    def test_a_share_that_becomes_full_at_the_end(self):
        with mock.patch.object(record.Record, 'finish', autospec=True,
                               side_effect=exception.NoSpace(
                                   path=BASE, reason='full')):
            self.assertRaises(exception.NoSpace, chain.create, self.root,
                              VOLUME, 'raw', SIZE)
        self.assertEqual([], self.share.files())

    def test_another_error_of_fallocate(self):
        self.fallocate(errno.EIO)
        error = self.assertRaises(OSError, chain.create, self.root, VOLUME,
                                  'raw', SIZE, thick=True)
        self.assertEqual(errno.EIO, error.errno)
        self.assertEqual([], self.share.files())

    @ddt.data(errno.EOPNOTSUPP, errno.ENOSYS)
    def test_zeros_where_fallocate_is_not_supported(self, code):
        self.fallocate(code)
        progress = self.patch(worker, 'progress')
        size = 9 * MIB + 512
        chain.create(self.root, VOLUME, 'raw', size, thick=True)
        self.assertGreaterEqual(self.share.allocated(BASE), size)
        self.assert_content(bytes(size))
        progress.assert_called_with(100.0)
        self.assertEqual(3, progress.call_count)

    def test_zeros_where_qemu_img_cannot_allocate(self):
        with self.fake_qemu_img(
                'case "$*" in *=falloc*) echo "qemu-img: Could not '
                'preallocate data: Operation not supported" >&2; exit 1; '
                'esac; exec "$REAL" "$@"'):
            chain.create(self.root, VOLUME, 'qcow2', SIZE, thick=True)
            self.assertGreaterEqual(self.share.allocated(BASE), SIZE)
            chain.extend(self.root, VOLUME, 2 * SIZE)
            self.assertGreaterEqual(self.share.allocated(BASE), 2 * SIZE)

    @ddt.data('raw', 'qcow2')
    def test_a_killed_create_is_repeated(self, fmt):
        for target, name, count in (
                (record, '_replace', 1), (record, 'sync_directory', 2),
                (layers, 'make_image', 1), (os, 'rename', 2),
                (os, 'rename', 3)):
            self.killed(target, name, count, chain.create, VOLUME, fmt, SIZE)
            self.assertRaises(exception.RecordError, chain.describe,
                              self.root, VOLUME)
            chain.create(self.root, VOLUME, fmt, SIZE)
            self.assertEqual(files_of(VOLUME), self.share.files())
            self.assert_gone()

    @ddt.data('raw', 'qcow2')
    def test_a_killed_create_is_deleted(self, fmt):
        for target, name, count in (
                (record, '_replace', 1), (os, 'rename', 1),
                (record, 'sync_directory', 2), (layers, 'make_image', 1),
                (os, 'rename', 2), (os, 'rename', 3)):
            self.killed(target, name, count, chain.create, VOLUME, fmt, SIZE)
            self.assert_gone()


@ddt.ddt
class CopyTestCase(ChainTestCase):

    @ddt.data(*itertools.product(('raw', 'qcow2'), ('raw', 'qcow2'),
                                 (False, True), (SIZE, SIZE + MIB)))
    @ddt.unpack
    def test_copy(self, source, target, thick, size):
        content = self.create(source)
        self.assertEqual(
            {'active': 'volume-' + OTHER, 'format': target, 'size': size,
             'thick': thick, 'snapshots': []},
            chain.copy(self.root, VOLUME, None, self.root, OTHER, target,
                       size, thick))
        self.assert_content(content + bytes(size - SIZE), OTHER)
        self.assert_content(content)
        self.assertEqual(sorted(files_of(VOLUME) + files_of(OTHER)),
                         self.share.files())
        if thick:
            self.assertGreaterEqual(
                self.share.allocated('volume-' + OTHER), size)
        # What is copied does not depend on its source any more.
        self.assert_gone()
        self.assert_content(content + bytes(size - SIZE), OTHER)

    @ddt.data(*itertools.product(('raw', 'qcow2'), repeat=2))
    @ddt.unpack
    def test_copies_stay_sparse(self, source, target):
        self.create(source, size=64 * MIB)
        chain.copy(self.root, VOLUME, None, self.root, OTHER, target,
                   80 * MIB)
        self.assertLess(self.share.allocated('volume-' + OTHER), 4 * MIB)

    @ddt.data(*itertools.product(('raw', 'qcow2'), repeat=2))
    @ddt.unpack
    def test_copy_of_a_snapshot(self, source, target):
        contents = {}
        contents[ONE] = self.create(source)
        chain.create_snapshot(self.root, VOLUME, ONE)
        contents[TWO] = self.fill(2)
        chain.create_snapshot(self.root, VOLUME, TWO)
        chain.extend(self.root, VOLUME, SIZE + MIB)
        contents[None] = self.fill(3, offset=SIZE)
        for snapshot, content in contents.items():
            chain.copy(self.root, VOLUME, snapshot, self.root, OTHER, target,
                       len(content) + MIB)
            self.assert_content(content + bytes(MIB), OTHER)
            self.assert_gone(OTHER)

    def test_copy_to_another_share(self):
        content = self.create()
        target = self.share.path('other')
        os.mkdir(target)
        chain.copy(self.root, VOLUME, None, target, OTHER, 'qcow2', SIZE)
        other = share_directory.ShareDirectory(target)
        self.assert_same(content, other.content(OTHER))
        self.assertEqual(files_of(OTHER), other.files())

    @formats
    def test_a_smaller_copy_is_refused(self, fmt):
        content = self.create(fmt)
        error = self.assertRaises(
            exception.SizeMismatch, chain.copy, self.root, VOLUME, None,
            self.root, OTHER, fmt, SIZE - MIB)
        self.assertEqual((SIZE, SIZE - MIB), (error.kwargs['actual'],
                                              error.kwargs['expected']))
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assert_content(content)

    def test_a_short_file_is_copied_with_zeros_behind_it(self):
        content = self.create()
        os.truncate(self.share.path(BASE), 2 * MIB)
        chain.copy(self.root, VOLUME, None, self.root, OTHER, 'qcow2', SIZE)
        self.assert_content(content[:2 * MIB] + bytes(SIZE - 2 * MIB), OTHER)

    def test_an_unknown_snapshot(self):
        self.create()
        self.assertRaises(exception.SnapshotNotFound, chain.copy, self.root,
                          VOLUME, ONE, self.root, OTHER, 'raw', SIZE)
        self.assertRaises(exception.SnapshotNotFound, chain.export,
                          self.root, VOLUME, ONE, self.share.path('x'),
                          'raw')
        self.assertEqual(files_of(VOLUME), self.share.files())

    def test_a_target_that_exists_is_left_alone(self):
        self.create()
        content = self.create(volume=OTHER)
        self.fill(1)
        self.assertRaises(exception.FileExists, chain.copy, self.root,
                          VOLUME, None, self.root, OTHER, 'raw', SIZE)
        self.assert_content(content, OTHER)

    @full
    def test_a_full_share(self, code):
        content = self.create()
        with self.full_share(code, 'convert'):
            self.assertRaises(exception.NoSpace, chain.copy, self.root,
                              VOLUME, None, self.root, OTHER, 'raw', SIZE)
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assert_content(content)

    def test_a_copy_ends_when_nobody_waits_any_more(self):
        self.create()
        self.patch(worker, 'progress', side_effect=BrokenPipeError)
        self.assertRaises(BrokenPipeError, chain.copy, self.root, VOLUME,
                          None, self.root, OTHER, 'raw', SIZE)
        self.assertEqual(files_of(VOLUME), self.share.files())

    @formats
    def test_a_volume_in_use(self, fmt):
        self.create(fmt)
        self.guest()
        self.assertRaises(exception.CommandFailed, chain.copy, self.root,
                          VOLUME, None, self.root, OTHER, 'raw', SIZE)
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])

    @ddt.data(*itertools.product(('raw', 'qcow2'),
                                 ('raw', 'qcow2', 'vmdk', 'vpc', 'vdi')))
    @ddt.unpack
    def test_export(self, source, target):
        contents = {ONE: self.create(source)}
        chain.create_snapshot(self.root, VOLUME, ONE)
        contents[None] = self.fill(1)
        for snapshot, content in contents.items():
            path = self.touch('image')
            chain.export(self.root, VOLUME, snapshot, path, target)
            exported = self.share.read_file('image', target)
            # Some formats round the size up.
            self.assert_same(content, exported[:SIZE])
            self.assertEqual(b'', exported[SIZE:].strip(b'\0'))
            self.assertNotIn('backing-filename', json.loads(
                subprocess.check_output([
                    'qemu-img', 'info', '--output=json', '-f', target,
                    path])))
            os.unlink(path)

    @formats
    def test_a_killed_copy(self, fmt):
        content = self.create(fmt)
        for target, name, count in (
                (qemu_img, 'convert', 1), (os, 'rename', 2),
                (os, 'rename', 3)):
            self.killed(target, name, count, chain.copy, VOLUME, None,
                        self.root, OTHER, fmt, SIZE)
            chain.describe(self.root, VOLUME)
            self.assert_content(content)
            chain.copy(self.root, VOLUME, None, self.root, OTHER, fmt, SIZE)
            self.assert_content(content, OTHER)
            self.assert_gone(OTHER)
            self.assertEqual(files_of(VOLUME), self.share.files())


@ddt.ddt
class LoadTestCase(ChainTestCase):

    def make_image(self, fmt, size):
        """Make an image; returns its path and its content."""
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        self.run_qemu_img('create', '-q', '-f', fmt, path, str(size))
        subprocess.run(['qemu-io', '-f', fmt, '-c', 'write -q -P 9 0 1M',
                        path], check=True, stdout=subprocess.DEVNULL)
        return path, b'\x09' * MIB + bytes(size - MIB)

    @staticmethod
    def run_qemu_img(*arguments):
        subprocess.run(['qemu-img', *arguments], check=True)

    @ddt.data(*itertools.product(('raw', 'qcow2'), (False, True),
                                 ('raw', 'qcow2', 'vmdk')))
    @ddt.unpack
    def test_load(self, fmt, thick, image_fmt):
        self.create(fmt, thick=thick)
        path, content = self.make_image(image_fmt, 2 * MIB)
        self.assertEqual(
            {'active': BASE, 'format': fmt, 'size': SIZE, 'thick': thick,
             'snapshots': []}, chain.load(self.root, VOLUME, path, image_fmt))
        self.assert_content(content + bytes(SIZE - 2 * MIB))
        self.assertEqual(files_of(VOLUME), self.share.files())
        if thick:
            self.assertGreater(self.share.allocated(BASE), 2 * MIB)
        else:
            self.assertLess(self.share.allocated(BASE), 2 * MIB)

    @formats
    def test_load_without_holes(self, fmt):
        self.create(fmt)
        path, content = self.make_image('raw', 2 * MIB)
        chain.load(self.root, VOLUME, path, 'raw', sparse=False)
        self.assert_content(content + bytes(SIZE - 2 * MIB))
        self.assertGreaterEqual(self.share.allocated(BASE), 2 * MIB)

    @formats
    def test_what_cannot_be_loaded_changes_nothing(self, fmt):
        content = self.create(fmt)
        path, _content = self.make_image('raw', SIZE + MIB)
        for image_fmt in ('raw', 'qcow2'):
            self.assertRaises(exception.CommandFailed, chain.load, self.root,
                              VOLUME, path, image_fmt)
            self.assertEqual(files_of(VOLUME), self.share.files())
            self.assertIsNone(self.share.record(VOLUME)['intent'])
            self.assert_content(content)

    def test_a_volume_with_snapshots_is_refused(self):
        content = self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.assertRaises(exception.RecordError, chain.load, self.root,
                          VOLUME, '/dev/zero', 'raw')
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME, ONE), self.share.files())

    @formats
    def test_a_volume_of_a_guest_is_refused(self, fmt):
        content = self.create(fmt)
        path, _content = self.make_image('raw', MIB)
        self.guest()
        error = self.assertRaises(exception.VolumeBusy, chain.load,
                                  self.root, VOLUME, path, 'raw')
        self.assertIn('a guest', str(error))
        self.assert_content(content)

    @full
    def test_a_full_share(self, code):
        content = self.create(thick=True)
        path, _content = self.make_image('raw', MIB)
        self.fallocate(code)
        self.assertRaises(exception.NoSpace, chain.load, self.root, VOLUME,
                          path, 'raw')
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME), self.share.files())

    @ddt.data((errno.ENOSPC, exception.NoSpace),
              (errno.EDQUOT, exception.NoSpace), (errno.EIO, OSError))
    @ddt.unpack
    def test_what_cannot_be_written_back(self, code, error):
        content = self.create()
        path, _content = self.make_image('raw', SIZE)
        dropped = self.patch(os, 'posix_fadvise')
        with self.failing_write_back('convert', code):
            raised = self.assertRaises(error, chain.load, self.root, VOLUME,
                                       path, 'raw')
        self.assertIn(self.root, str(raised))
        dropped.assert_called_once_with(mock.ANY, 0, 0,
                                        os.POSIX_FADV_DONTNEED)
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME), self.share.files())

    @formats
    def test_a_killed_load(self, fmt):
        content = self.create(fmt)
        path, image = self.make_image('raw', SIZE)
        for target, function, count in (
                (layers, 'create_file', 1), (qemu_img, 'convert', 1),
                # The time before is for the empty image.
                (layers, '_write_back', 2)):
            self.killed(target, function, count, chain.load, VOLUME, path,
                        'raw')
            self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
            self.assert_content(content)
            self.assertEqual(files_of(VOLUME), self.share.files())
        # Two records, then the file itself.
        self.killed(os, 'rename', 3, chain.load, VOLUME, path, 'raw')
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(image)
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.killed(qemu_img, 'convert', 1, chain.load, VOLUME, path, 'raw')
        self.assert_gone()


@ddt.ddt
class DeleteTestCase(ChainTestCase):

    @formats_and_thickness
    @ddt.unpack
    def test_delete(self, fmt, thick):
        self.create(fmt, thick=thick)
        for snapshot in SNAPSHOTS:
            chain.create_snapshot(self.root, VOLUME, snapshot)
        self.create(volume=OTHER)
        chain.delete(self.root, VOLUME)
        self.assertEqual(files_of(OTHER), self.share.files())
        chain.delete(self.root, VOLUME)
        self.assertEqual(files_of(OTHER), self.share.files())

    def test_delete_on_an_empty_share(self):
        chain.delete(self.root, VOLUME)
        self.assertEqual([], self.share.files())

    def test_what_is_gone_already_is_no_error(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        os.unlink(self.share.path(BASE))
        chain.delete(self.root, VOLUME)
        self.assertEqual([], self.share.files())

    def test_a_file_without_a_record_is_left_alone(self):
        self.create()
        os.unlink(self.share.sidecar(VOLUME))
        error = self.assertRaises(exception.RecordError, chain.delete,
                                  self.root, VOLUME)
        self.assertIn(self.share.path(BASE), str(error))
        self.assertIn(BASE, self.share.files())

    def test_files_of_other_volumes_above_are_named(self):
        content = self.create()
        self.share.change_record(VOLUME, lambda content: content['layers'][
            BASE]['children'].append('volume-' + OTHER))
        error = self.assertRaises(exception.RecordError, chain.delete,
                                  self.root, VOLUME)
        self.assertIn('volume-' + OTHER, str(error))
        self.assert_content(content)
        self.share.change_record(VOLUME, lambda content: content['layers'][
            BASE]['children'].clear())
        self.assert_gone()

    def test_a_killed_delete_is_repeated(self):
        for count in range(1, 8):
            self.create()
            chain.create_snapshot(self.root, VOLUME, ONE)
            self.killed(record, 'remove_file', count, chain.delete, VOLUME)
            self.assert_gone()

    def test_a_full_share_can_be_emptied(self):
        self.create()
        with mock.patch.object(os, 'open', wraps=os.open) as opened:
            chain.delete(self.root, VOLUME)
        for call in opened.call_args_list:
            self.assertFalse(call.args[1] & os.O_TRUNC, call)


@ddt.ddt
class DescribeTestCase(ChainTestCase):

    @formats_and_thickness
    @ddt.unpack
    def test_describe(self, fmt, thick):
        self.create(fmt, thick=thick)
        self.assertEqual(
            {'active': BASE, 'format': fmt, 'size': SIZE, 'thick': thick,
             'snapshots': []}, chain.describe(self.root, VOLUME))
        for snapshot in (ONE, TWO):
            chain.create_snapshot(self.root, VOLUME, snapshot)
        self.assertEqual(
            {'active': overlay(TWO), 'format': 'qcow2', 'size': SIZE,
             'thick': thick, 'snapshots': [ONE, TWO]},
            chain.describe(self.root, VOLUME))

    @formats
    def test_a_larger_file_is_refused(self, fmt):
        self.create(fmt)
        qemu_img.resize(self.share.path(BASE), fmt, SIZE + MIB)
        error = self.assertRaises(exception.SizeMismatch, chain.describe,
                                  self.root, VOLUME)
        self.assertEqual(
            (self.share.path(BASE), SIZE + MIB, SIZE),
            (error.kwargs['path'], error.kwargs['actual'],
             error.kwargs['expected']))
        for operation in (
                lambda: chain.extend(self.root, VOLUME, 2 * SIZE),
                lambda: chain.create_snapshot(self.root, VOLUME, ONE),
                lambda: chain.copy(self.root, VOLUME, None, self.root, OTHER,
                                   'raw', 2 * SIZE),
                lambda: chain.export(self.root, VOLUME, None,
                                     self.share.path('x'), 'raw')):
            self.assertRaises(exception.SizeMismatch, operation)
        self.assertEqual(files_of(VOLUME), self.share.files())

    @formats_and_thickness
    @ddt.unpack
    def test_a_smaller_file_grows(self, fmt, thick):
        content = self.create(fmt, thick=thick)
        qemu_img.resize(self.share.path(BASE), fmt, 2 * MIB, shrink=True)
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(content[:2 * MIB] + bytes(2 * MIB))
        if thick:
            self.assertGreaterEqual(self.share.allocated(BASE), SIZE)

    def test_a_smaller_overlay_grows(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        qemu_img.resize(self.share.path(overlay(ONE)), 'qcow2', MIB,
                        shrink=True)
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assertEqual(SIZE, len(self.share.content(VOLUME)))

    def test_a_missing_file_is_named(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        os.rename(self.share.path(BASE), self.share.path('elsewhere'))
        error = self.assertRaises(exception.RecordError, chain.describe,
                                  self.root, VOLUME)
        self.assertIn(self.share.path(BASE), str(error))
        self.assertIn('Restore', str(error))
        os.unlink(self.share.path('elsewhere'))

    @ddt.data('describe', 'extend', 'create_snapshot', 'delete_snapshot',
              'revert', 'load', 'export', 'copy')
    def test_a_volume_that_is_unknown(self, operation):
        error = self.assertRaises(exception.RecordError,
                                  self.operations()[operation])
        self.assertIn(VOLUME, str(error))
        self.assertEqual([], self.share.files())

    def operations(self):
        return {
            'create': lambda: chain.create(self.root, VOLUME, 'raw', SIZE),
            'copy': lambda: chain.copy(self.root, VOLUME, None, self.root,
                                       OTHER, 'raw', 2 * SIZE),
            'copy to': lambda: chain.copy(self.root, OTHER, None, self.root,
                                          VOLUME, 'raw', 2 * SIZE),
            'export': lambda: chain.export(self.root, VOLUME, None,
                                           self.share.path('x'), 'raw'),
            'load': lambda: chain.load(self.root, VOLUME, '/dev/zero', 'raw'),
            'delete': lambda: chain.delete(self.root, VOLUME),
            'describe': lambda: chain.describe(self.root, VOLUME),
            'extend': lambda: chain.extend(self.root, VOLUME, 2 * SIZE),
            'create_snapshot': lambda: chain.create_snapshot(
                self.root, VOLUME, ONE),
            'delete_snapshot': lambda: chain.delete_snapshot(
                self.root, VOLUME, ONE),
            'revert': lambda: chain.revert(self.root, VOLUME, ONE)}

    def test_no_operation_works_beside_another_process(self):
        content = self.create()
        self.create(volume=OTHER)
        files = self.share.files()
        self.patch(record, '_FENCE_WAIT', 0)
        descriptor = os.open(self.share.path(
            '.cinder-lustre', VOLUME + '.lock'), os.O_RDWR)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for name, operation in self.operations().items():
            self.assertRaises(exception.VolumeBusy, operation)
            self.assertEqual(files, self.share.files(), name)
        self.assert_content(content)

    def test_recovery_does_not_work_beside_an_orphan(self):
        content = self.create()
        gate = self.share.path('gate')
        os.mkfifo(gate)
        chain.create_snapshot(self.root, VOLUME, ONE)
        # qemu-img waits at the gate after the death of who started it.
        with self.fake_qemu_img(
                'case $1 in commit) read line < %s; esac; '
                'exec "$REAL" "$@"' % gate):
            self.killed(qemu_img, '_watch', 1, chain.delete_snapshot, VOLUME,
                        ONE)
        with mock.patch.object(record, '_FENCE_WAIT', 0):
            error = self.assertRaises(exception.VolumeBusy, chain.describe,
                                      self.root, VOLUME)
        self.assertIn('"merge"', str(error))
        with open(gate, 'w') as stream:
            stream.write('go\n')
        os.unlink(gate)
        self.assertEqual([], chain.describe(self.root, VOLUME)['snapshots'])
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME), self.share.files())

    def test_an_unknown_intent(self):
        content = self.create()
        self.share.change_record(VOLUME, lambda content: content.update(
            intent={'operation': 'of a later release'}))
        error = self.assertRaises(exception.RecordError, chain.describe,
                                  self.root, VOLUME)
        self.assertIn('Upgrade', str(error))
        self.assert_content(content)


@ddt.ddt
class ExtendTestCase(ChainTestCase):

    @formats_and_thickness
    @ddt.unpack
    def test_extend(self, fmt, thick):
        content = self.create(fmt, thick=thick)
        self.assertEqual(2 * SIZE, chain.extend(self.root, VOLUME, 2 * SIZE)[
            'size'])
        self.assert_content(content + bytes(SIZE))
        self.assertEqual(2 * SIZE, chain.describe(self.root, VOLUME)['size'])
        if thick:
            self.assertGreaterEqual(self.share.allocated(BASE), 2 * SIZE)
        else:
            self.assertLess(self.share.allocated(BASE), MIB)
        self.assertEqual(2 * SIZE, chain.extend(self.root, VOLUME, 2 * SIZE)[
            'size'])
        self.assert_content(content + bytes(SIZE))

    @formats
    def test_extend_with_snapshots(self, fmt):
        content = self.create(fmt)
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.extend(self.root, VOLUME, 2 * SIZE)
        self.assert_content(content + bytes(SIZE))
        self.assert_content(content, snapshot=ONE)
        content = self.fill(4, offset=2 * SIZE - 128 * 1024)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.assertEqual(2 * SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(content)

    @formats
    def test_a_volume_cannot_shrink(self, fmt):
        content = self.create(fmt)
        self.assertRaises(exception.SizeMismatch, chain.extend, self.root,
                          VOLUME, SIZE - MIB)
        self.assert_content(content)

    @full
    def test_a_full_share_raw(self, code):
        content = self.create(thick=True)
        self.fallocate(code, grow=True)
        self.assertRaises(exception.NoSpace, chain.extend, self.root, VOLUME,
                          2 * SIZE)
        self.assertEqual(SIZE, os.path.getsize(self.share.path(BASE)))
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(content)

    @full
    def test_a_full_share_qcow2(self, code):
        content = self.create('qcow2')
        with self.full_share(code, 'resize'):
            self.assertRaises(exception.NoSpace, chain.extend, self.root,
                              VOLUME, 2 * SIZE)
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(content)

    @formats_and_thickness
    @ddt.unpack
    def test_a_killed_extend_is_undone(self, fmt, thick):
        content = self.create(fmt, thick=thick)
        for target, name, count in ((layers, 'grow', 1),
                                    (layers, '_write_back', 1),
                                    (os, 'rename', 2)):
            self.killed(target, name, count, chain.extend, VOLUME, 2 * SIZE)
            self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
            self.assert_content(content)
        self.killed(target, name, count, chain.extend, VOLUME, 2 * SIZE)
        chain.extend(self.root, VOLUME, 3 * SIZE)
        self.assert_content(content + bytes(2 * SIZE))


@ddt.ddt
class SnapshotTestCase(ChainTestCase):

    def chain_of(self, fmt, *snapshots):
        """A volume with these snapshots; returns all contents."""
        contents = {}
        content = self.create(fmt)
        for number, snapshot in enumerate(snapshots):
            contents[snapshot] = content
            chain.create_snapshot(self.root, VOLUME, snapshot)
            content = self.fill(20 + number, offset=number * 96 * 1024)
        contents[None] = content
        return contents

    def assert_contents(self, contents):
        for snapshot, content in contents.items():
            self.assert_content(content, snapshot=snapshot)
        snapshots = [key for key in contents if key is not None]
        self.assertEqual(set(snapshots), set(self.share.record(VOLUME)[
            'snapshots']))
        if snapshots:
            rec = self.share.record(VOLUME)
            self.assertEqual(dict(rec['snapshots'], active=rec['active']),
                             json.loads(self.share.info(VOLUME)))

    @formats_and_thickness
    @ddt.unpack
    def test_create_and_delete(self, fmt, thick):
        content = self.create(fmt, thick=thick)
        self.assertEqual(
            {'active': overlay(ONE), 'format': 'qcow2', 'size': SIZE,
             'thick': thick, 'snapshots': [ONE]},
            chain.create_snapshot(self.root, VOLUME, ONE))
        self.assertEqual(files_of(VOLUME, ONE), self.share.files())
        info = qemu_img.info(self.share.path(overlay(ONE)), 'qcow2')
        self.assertEqual(
            (BASE, fmt), (info['backing-filename'],
                          info['backing-filename-format']))
        later = self.fill(1)
        self.assert_contents({ONE: content, None: later})
        self.assertEqual(
            {'active': BASE, 'format': fmt, 'size': SIZE, 'thick': thick,
             'snapshots': []},
            chain.delete_snapshot(self.root, VOLUME, ONE))
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assert_content(later)
        if not thick:
            self.assertLess(self.share.allocated(BASE), 2 * MIB)

    @ddt.data(*enumerate(itertools.permutations(SNAPSHOTS)))
    @ddt.unpack
    def test_delete_in_every_order(self, number, order):
        contents = self.chain_of(('raw', 'qcow2')[number % 2], *SNAPSHOTS)
        for snapshot in order:
            chain.delete_snapshot(self.root, VOLUME, snapshot)
            del contents[snapshot]
            self.assert_contents(contents)
        self.assertEqual(files_of(VOLUME), self.share.files())

    def test_a_deep_chain(self):
        contents = self.chain_of('raw', *('%s-%s' % (ONE, number)
                                          for number in range(12)))
        self.assert_contents(contents)
        self.assertEqual(12, len(chain.describe(self.root, VOLUME)[
            'snapshots']))
        self.assert_gone()

    def test_sizes_of_layers(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.extend(self.root, VOLUME, 2 * SIZE)
        chain.create_snapshot(self.root, VOLUME, TWO)
        chain.extend(self.root, VOLUME, 3 * SIZE)
        content = self.fill(5, offset=3 * SIZE - 128 * 1024)
        self.assertEqual(2 * SIZE, len(self.share.content(VOLUME, TWO)))
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.assertEqual(2 * SIZE, len(self.share.content(VOLUME, TWO)))
        self.assert_content(content)
        chain.delete_snapshot(self.root, VOLUME, TWO)
        self.assert_content(content)
        self.assertEqual(3 * SIZE, os.path.getsize(self.share.path(BASE)))

    def test_a_thick_volume_stays_thick(self):
        self.create(thick=True)
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.extend(self.root, VOLUME, 2 * SIZE)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.assertGreaterEqual(self.share.allocated(BASE), 2 * SIZE)

    def test_delete_of_an_unknown_snapshot(self):
        contents = self.chain_of('raw', ONE)
        description = chain.describe(self.root, VOLUME)
        self.assertEqual(description, chain.delete_snapshot(
            self.root, VOLUME, TWO))
        self.assert_contents(contents)

    def test_create_leaves_alone_what_exists(self):
        contents = self.chain_of('raw', ONE)
        self.assertRaises(exception.FileExists, chain.create_snapshot,
                          self.root, VOLUME, ONE)
        self.touch(overlay(TWO))
        self.assertRaises(exception.FileExists, chain.create_snapshot,
                          self.root, VOLUME, TWO)
        self.assert_contents(contents)
        self.assertIn(overlay(TWO), self.share.files())

    def add_foreign_child(self, name):
        """Let another volume's file lie above a layer; returns its path."""
        self.share.change_record(VOLUME, lambda content: content['layers'][
            name]['children'].append('volume-' + OTHER))
        fmt = self.share.record(VOLUME)['layers'][name]['format']
        path = self.touch('volume-' + OTHER)
        qemu_img.create(path, 'qcow2', SIZE, backing=name, backing_fmt=fmt)
        return self.share.read_file('volume-' + OTHER, 'qcow2')

    @ddt.data(*itertools.product(('raw', 'qcow2'),
                                 (BASE, overlay(ONE), overlay(TWO)),
                                 (ONE, TWO)))
    @ddt.unpack
    def test_layers_that_are_shared_are_kept(self, fmt, shared, snapshot):
        contents = self.chain_of(fmt, ONE, TWO)
        lower = {ONE: BASE, TWO: overlay(ONE)}[snapshot]
        content = self.add_foreign_child(shared)
        files = self.share.files()
        chain.delete_snapshot(self.root, VOLUME, snapshot)
        del contents[snapshot]
        self.assert_contents(contents)
        self.assert_same(content, self.share.read_file('volume-' + OTHER,
                                                       'qcow2'))
        if shared in (lower, overlay(snapshot)):
            # The name is gone, and the layers are as they were.
            self.assertEqual(files, self.share.files())
        else:
            self.assertNotIn(overlay(snapshot), self.share.files())
        chain.describe(self.root, VOLUME)
        error = self.assertRaises(exception.RecordError, chain.delete,
                                  self.root, VOLUME)
        self.assertIn('volume-' + OTHER, str(error))

    def test_a_volume_above_a_shared_layer(self):
        self.chain_of('raw', ONE)
        self.add_foreign_child(BASE)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.assertEqual({'active': overlay(ONE)},
                         json.loads(self.share.info(VOLUME)))
        self.assertEqual(overlay(ONE), chain.describe(self.root, VOLUME)[
            'active'])
        # New content would cut the volume off from what lies below it.
        self.assertRaises(exception.RecordError, chain.load, self.root,
                          VOLUME, '/dev/zero', 'raw')
        chain.create_snapshot(self.root, VOLUME, TWO)
        chain.delete_snapshot(self.root, VOLUME, TWO)
        self.assertEqual(overlay(ONE), chain.describe(self.root, VOLUME)[
            'active'])

    @full
    def test_a_full_share_at_create(self, code):
        contents = self.chain_of('raw', ONE)
        files = self.share.files()
        with self.full_share(code, 'create'):
            self.assertRaises(exception.NoSpace, chain.create_snapshot,
                              self.root, VOLUME, TWO)
        self.assert_contents(contents)
        self.assertEqual(files, self.share.files())
        chain.create_snapshot(self.root, VOLUME, TWO)

    def test_a_guest_after_a_merge_that_had_no_space(self):
        self.chain_of('qcow2', ONE, TWO)
        with self.full_share(errno.ENOSPC, 'commit'):
            self.assertRaises(exception.NoSpace, chain.delete_snapshot,
                              self.root, VOLUME, ONE)
        self.guest()
        # A second host can attach it, as a live migration does.
        self.assertEqual(overlay(TWO), chain.describe(
            self.root, VOLUME)['active'])
        self.assertRaises(exception.CommandFailed, chain.create_snapshot,
                          self.root, VOLUME, THREE)

    @full
    def test_a_full_share_at_delete(self, code):
        contents = self.chain_of('qcow2', ONE, TWO)
        with self.full_share(code, 'commit'):
            self.assertRaises(exception.NoSpace, chain.delete_snapshot,
                              self.root, VOLUME, ONE)
            # The volume can still be attached and read, but not changed.
            self.assertEqual(overlay(TWO), chain.describe(
                self.root, VOLUME)['active'])
            self.assertRaises(exception.NoSpace, chain.create_snapshot,
                              self.root, VOLUME, THREE)
            self.assertRaises(exception.OperationPending, chain.copy,
                              self.root, VOLUME, ONE, self.root, OTHER, 'raw',
                              SIZE)
            for snapshot in (None, TWO):
                chain.copy(self.root, VOLUME, snapshot, self.root, OTHER,
                           'raw', SIZE)
                self.assert_content(contents[snapshot], volume=OTHER)
                chain.delete(self.root, OTHER)
        self.assert_contents(contents)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        del contents[ONE]
        self.assert_contents(contents)
        self.assertEqual(files_of(VOLUME, TWO), self.share.files())

    @formats
    def test_a_killed_create(self, fmt):
        contents = self.chain_of(fmt, ONE)
        files = self.share.files()
        for target, name, count in (
                (os, 'rename', 1), (layers, 'create_file', 1),
                (qemu_img, 'create', 1), (layers, '_write_back', 1),
                (record, '_replace', 2)):
            self.killed(target, name, count, chain.create_snapshot, VOLUME,
                        TWO)
            chain.describe(self.root, VOLUME)
            self.assert_contents(contents)
            self.assertEqual(files, [name for name in self.share.files()
                                     if not name.endswith('.new')])
        # Only the mirror is missing.
        self.killed(record, '_replace', 3, chain.create_snapshot, VOLUME, TWO)
        self.assertEqual(overlay(TWO), chain.describe(self.root, VOLUME)[
            'active'])
        contents[TWO] = contents[None]
        self.assert_contents(contents)

    @ddt.data((os, 'rename', 1), (layers, 'create_file', 1),
              (qemu_img, 'create', 1), (record, '_replace', 2))
    @ddt.unpack
    def test_a_killed_create_does_not_prevent_a_delete(self, target, name,
                                                       count):
        self.create()
        self.killed(target, name, count, chain.create_snapshot, VOLUME, ONE)
        self.assert_gone()

    @formats
    def test_a_merge_that_cannot_be_written_back(self, fmt):
        contents = self.chain_of(fmt, ONE, TWO)
        for function in ('commit', 'rebase'):
            with self.failing_write_back(function, errno.EIO):
                self.assertRaises(OSError, chain.delete_snapshot, self.root,
                                  VOLUME, ONE)
            self.assertEqual(
                function == 'rebase',
                'committed' in self.share.record(VOLUME)['intent'])
            self.assertIn(overlay(ONE), self.share.files())
        chain.delete_snapshot(self.root, VOLUME, ONE)
        del contents[ONE]
        self.assert_contents(contents)

    @ddt.data(('raw', ONE), ('qcow2', TWO), ('raw', TWO))
    @ddt.unpack
    def test_a_killed_delete(self, fmt, snapshot):
        # The fault tests find many more points.
        after = None
        for target, name, count in (
                (os, 'rename', 1), (qemu_img, 'commit', 1),
                (qemu_img, 'rebase', 1), (layers, '_write_back', 2),
                (record, '_replace', 3), (os, 'unlink', 1)):
            contents = self.chain_of(fmt, ONE, TWO, THREE)
            self.killed(target, name, count, chain.delete_snapshot, VOLUME,
                        snapshot)
            if name == 'rename':
                # The intent was not written: nothing has happened.
                self.assert_contents(contents)
                chain.delete_snapshot(self.root, VOLUME, snapshot)
            del contents[snapshot]
            chain.describe(self.root, VOLUME)
            self.assert_contents(contents)
            rec = self.share.record(VOLUME)
            self.assertIsNone(rec['intent'])
            self.assertEqual(after or rec['layers'], rec['layers'])
            after = rec['layers']
            self.assert_gone()

    @ddt.data((qemu_img, 'commit', 1), (record, '_replace', 3),
              (os, 'unlink', 1))
    @ddt.unpack
    def test_a_killed_merge_does_not_prevent_a_delete(self, target, name,
                                                      count):
        self.chain_of('qcow2', ONE, TWO)
        self.killed(target, name, count, chain.delete_snapshot, VOLUME, ONE)
        self.assert_gone()

    def test_a_volume_in_use(self):
        contents = self.chain_of('raw', ONE)
        self.guest()
        self.assertRaises(exception.CommandFailed, chain.delete_snapshot,
                          self.root, VOLUME, ONE)
        self.assert_contents(contents)


@ddt.ddt
class RevertTestCase(ChainTestCase):

    @formats_and_thickness
    @ddt.unpack
    def test_revert(self, fmt, thick):
        before = self.create(fmt, thick=thick)
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.fill(1)
        chain.extend(self.root, VOLUME, 2 * SIZE)
        for _attempt in range(2):
            self.assertEqual(
                {'active': overlay(ONE), 'format': 'qcow2',
                 'size': 2 * SIZE, 'thick': thick, 'snapshots': [ONE]},
                chain.revert(self.root, VOLUME, ONE))
            self.assert_content(before + bytes(SIZE))
        self.assert_content(before, snapshot=ONE)
        self.assertEqual(files_of(VOLUME, ONE), self.share.files())
        content = self.fill(2)
        self.assert_content(before, snapshot=ONE)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.assert_content(content)

    def test_only_the_latest(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.fill(1)
        chain.create_snapshot(self.root, VOLUME, TWO)
        content = self.fill(2)
        error = self.assertRaises(exception.RecordError, chain.revert,
                                  self.root, VOLUME, ONE)
        self.assertIn(ONE, str(error))
        self.assertRaises(exception.SnapshotNotFound, chain.revert,
                          self.root, VOLUME, THREE)
        self.assert_content(content)

    @full
    def test_a_full_share(self, code):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        content = self.fill(1)
        with self.full_share(code, 'create'):
            self.assertRaises(exception.NoSpace, chain.revert, self.root,
                              VOLUME, ONE)
        self.assert_content(content)
        self.assertEqual(files_of(VOLUME, ONE), self.share.files())

    @formats
    def test_a_killed_revert(self, fmt):
        before = self.create(fmt)
        chain.create_snapshot(self.root, VOLUME, ONE)
        content = self.fill(1)
        for target, name, count in ((layers, 'create_file', 1),
                                    (qemu_img, 'create', 1),
                                    (os, 'rename', 2), (os, 'rename', 3)):
            self.killed(target, name, count, chain.revert, VOLUME, ONE)
            chain.describe(self.root, VOLUME)
            self.assertEqual(files_of(VOLUME, ONE), self.share.files())
            self.assert_content(before if count == 3 else content)
            self.assert_content(before, snapshot=ONE)
        content = self.fill(1)
        self.killed(qemu_img, 'create', 1, chain.revert, VOLUME, ONE)
        self.assert_gone()


@ddt.ddt
class TrustTestCase(ChainTestCase):
    """Nothing that a guest or a stranger wrote is followed."""

    SECRET = b'a secret of the host' * 1000

    def setUp(self):
        super().setUp()
        self.secret = os.path.join(self.useFixture(
            storage.fixtures.TempDir()).path, 'secret')
        with open(self.secret, 'wb') as stream:
            stream.write(self.SECRET.ljust(SIZE, b'!'))

    def header(self, kind):
        """What a guest may write to the beginning of its volume."""
        if kind == 'vmdk':
            return (
                '# Disk DescriptorFile\nversion=1\nCID=fffffffe\n'
                'parentCID=ffffffff\ncreateType="monolithicFlat"\n'
                'RW %d FLAT "%s" 0\nddb.geometry.cylinders = "8"\n'
                % (SIZE // 512, self.secret)).encode()
        path = self.secret + '.qcow2'
        options = {
            'plain': ['-f', 'qcow2'],
            'backing': ['-f', 'qcow2', '-u', '-F', 'raw', '-b',
                        '/etc/passwd'],
            'secret': ['-f', 'qcow2', '-F', 'raw', '-b', self.secret],
            'data file': ['-f', 'qcow2', '-o', 'data_file=%s,'
                          'data_file_raw=on' % (self.secret + '.data')]}[kind]
        subprocess.run(['qemu-img', 'create', '-q', *options, path,
                        str(SIZE)], check=True)
        if kind == 'data file':
            os.rename(self.secret, self.secret + '.data')
        with open(path, 'rb') as stream:
            return stream.read()

    @ddt.data('plain', 'backing', 'secret', 'data file', 'vmdk')
    def test_what_a_guest_writes_is_never_interpreted(self, kind):
        header = self.header(kind)
        content = header.ljust(SIZE, b'\0')[:SIZE]
        chain.create(self.root, VOLUME, 'raw', SIZE)
        with open(self.share.path(BASE), 'r+b') as stream:
            stream.write(content)
        self.assertEqual(SIZE, chain.describe(self.root, VOLUME)['size'])
        self.assert_content(content)

        def check_copies(snapshot):
            for fmt in ('raw', 'qcow2'):
                chain.copy(self.root, VOLUME, snapshot, self.root, OTHER,
                           fmt, SIZE)
                self.assert_content(content, OTHER)
                self.assert_gone(OTHER)
                chain.export(self.root, VOLUME, snapshot,
                             self.touch('image'), fmt)
                self.assert_same(content, self.share.read_file('image', fmt))
                os.unlink(self.share.path('image'))

        check_copies(None)
        for snapshot in (ONE, TWO):
            chain.create_snapshot(self.root, VOLUME, snapshot)
            self.assert_content(content)
            # The same once more, into the overlay.
            self.share.write(VOLUME, 0, 65536, 1)
            chain.revert(self.root, VOLUME, snapshot)
            self.assert_content(content)
            check_copies(None)
            check_copies(snapshot)
        for snapshot in (ONE, TWO):
            chain.delete_snapshot(self.root, VOLUME, snapshot)
            self.assert_content(content)
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        with open(path, 'wb') as stream:
            stream.write(header)
        chain.load(self.root, VOLUME, path, 'raw')
        self.assert_content(content)
        chain.extend(self.root, VOLUME, 2 * SIZE)
        content += bytes(SIZE)
        self.assert_content(content)
        self.assertEqual(
            {'active': BASE, 'format': 'raw', 'size': 2 * SIZE,
             'thick': False, 'snapshots': []},
            chain.describe(self.root, VOLUME))
        self.assertEqual(files_of(VOLUME), self.share.files())
        self.assert_gone()

    def assert_refused(self, path):
        """No operation reads a file; every error names it."""
        files = self.share.files()
        before = self.share.record(VOLUME)
        for operation in (
                lambda: chain.describe(self.root, VOLUME),
                lambda: chain.copy(self.root, VOLUME, None, self.root, OTHER,
                                   'raw', SIZE),
                lambda: chain.export(self.root, VOLUME, None,
                                     self.share.path('x'), 'raw'),
                lambda: chain.extend(self.root, VOLUME, 2 * SIZE),
                lambda: chain.create_snapshot(self.root, VOLUME, THREE),
                lambda: chain.delete_snapshot(self.root, VOLUME, TWO)):
            error = self.assertRaises(exception.RecordError, operation)
            self.assertIn(path, str(error))
            self.assertEqual(files, self.share.files())
            self.assertEqual(before, self.share.record(VOLUME))

    def make_chain(self, fmt):
        self.create(fmt)
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.create_snapshot(self.root, VOLUME, TWO)

    @ddt.data(*itertools.product((BASE, overlay(ONE), overlay(TWO)),
                                 ('/etc/passwd', 'volume-' + OTHER, '')))
    @ddt.unpack
    def test_a_backing_file_that_is_not_recorded(self, name, backing):
        self.make_chain('qcow2')
        if name == BASE and not backing:
            # What that one has.
            chain.describe(self.root, VOLUME)
            return
        command = ['qemu-img', 'rebase', '-u', '-f', 'qcow2', '-b', backing]
        if backing:
            command += ['-F', 'raw']
        subprocess.run(command + [self.share.path(name)], check=True)
        self.assert_refused(self.share.path(name))
        self.assert_gone()

    @ddt.data(overlay(ONE), overlay(TWO))
    def test_a_backing_format_that_is_not_recorded(self, name):
        """A guest has written the header of another format into the base."""
        self.make_chain('raw')
        subprocess.run(['qemu-img', 'rebase', '-u', '-f', 'qcow2', '-b',
                        {overlay(ONE): BASE}.get(name, overlay(ONE)), '-F',
                        {overlay(ONE): 'qcow2'}.get(name, 'raw'),
                        self.share.path(name)], check=True)
        self.assert_refused(self.share.path(name))
        self.assert_gone()

    @ddt.data(BASE, overlay(ONE), overlay(TWO))
    def test_a_data_file(self, name):
        self.make_chain('qcow2')
        below = {overlay(ONE): BASE, overlay(TWO): overlay(ONE)}.get(name)
        options = ['-u', '-b', below, '-F', 'qcow2'] if below else []
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                        'data_file=%s' % self.secret, *options,
                        self.share.path(name), str(SIZE)], check=True)
        self.assert_refused(self.share.path(name))
        self.assert_gone()

    @ddt.data(*itertools.product(('raw', 'qcow2'), (BASE, overlay(ONE),
                                                    overlay(TWO))))
    @ddt.unpack
    def test_a_link(self, fmt, name):
        self.make_chain(fmt)
        os.unlink(self.share.path(name))
        os.symlink(self.secret, self.share.path(name))
        os.chmod(self.secret, 0o660)
        self.assert_refused(self.share.path(name))
        self.assert_gone()
        self.assertTrue(os.path.exists(self.secret))

    @ddt.data('../secret', '/etc/passwd')
    def test_a_record_that_names_files_elsewhere(self, name):
        self.make_chain('raw')
        self.share.change_record(VOLUME, lambda content: content.update(
            intent={'operation': 'remove', 'file': name}))
        for operation in (chain.describe, chain.delete):
            error = self.assertRaises(exception.RecordError, operation,
                                      self.root, VOLUME)
            self.assertIn(self.share.sidecar(VOLUME), str(error))

    def test_the_format_is_the_recorded_one(self):
        content = self.create('qcow2')
        # A file that is no qcow2 any more is not read as something else.
        with open(self.share.path(BASE), 'r+b') as stream:
            stream.write(b'raw content')
        self.assertRaises(exception.RecordError, chain.describe, self.root,
                          VOLUME)
        with open(self.share.path(BASE), 'r+b') as stream:
            stream.write(b'QFI\xfb\x00\x00\x00\x03\x00\x00\x00')
        self.assert_content(content)


@ddt.ddt
class AccessListTestCase(ChainTestCase):
    """Other users of a file, such as QEMU's, keep what the share gives them.

    The rights of a new file's group are the mask of its entries, which
    check_share() sees.
    """

    USER = 64055
    # What <linux/posix_acl_xattr.h> defines.
    VERSION, ENTRY = struct.pack('<I', 2), struct.Struct('<HHI')
    OWNER, NAMED, GROUP, MASK, REST = 0x01, 0x02, 0x04, 0x10, 0x20

    def setUp(self):
        super().setUp()
        os.setxattr(self.root, 'system.posix_acl_default',
                    self.VERSION + b''.join(
                        self.ENTRY.pack(tag, rights, user) for
                        tag, rights, user in (
                            (self.OWNER, 7, -1 % (1 << 32)),
                            (self.NAMED, 6, self.USER),
                            (self.GROUP, 0, -1 % (1 << 32)),
                            (self.MASK, 6, -1 % (1 << 32)),
                            (self.REST, 0, -1 % (1 << 32)))))

    def check_share(self):
        super().check_share()
        for name in self.share.files():
            value = os.getxattr(self.share.path(name),
                                'system.posix_acl_access')
            entries = list(self.ENTRY.iter_unpack(value[len(self.VERSION):]))
            self.assertIn((self.NAMED, 6, self.USER), entries, name)

    @formats_and_thickness
    @ddt.unpack
    def test_after_all_operations(self, fmt, thick):
        def step(operation, *args):
            operation(self.root, *args)
            self.check_share()
            self.assertEqual(0o700, self.mode(record.DIRECTORY))

        step(chain.create, VOLUME, fmt, SIZE, thick)
        step(chain.extend, VOLUME, 2 * SIZE)
        step(chain.create_snapshot, VOLUME, ONE)
        step(chain.begin_snapshot, VOLUME, TWO)
        step(chain.confirm_snapshot, VOLUME, TWO)
        step(chain.settle, VOLUME)
        step(chain.copy, VOLUME, None, self.root, OTHER, fmt, 2 * SIZE, thick)
        step(chain.revert, VOLUME, TWO)
        step(chain.delete_snapshot, VOLUME, ONE)
        step(chain.delete_snapshot, VOLUME, TWO)
        step(chain.convert, VOLUME, 'qcow2' if fmt == 'raw' else 'raw', thick)
        step(chain.load, VOLUME, self.share.path('volume-' + OTHER), fmt)


@ddt.ddt
class ConvertTestCase(ChainTestCase):

    @ddt.data(('raw', False, 'qcow2', False), ('qcow2', False, 'raw', False),
              ('raw', False, 'raw', True), ('raw', True, 'raw', False),
              ('qcow2', False, 'qcow2', True))
    @ddt.unpack
    def test_convert(self, fmt, thick, new_fmt, new_thick):
        content = self.create(fmt, thick=thick)
        files = self.share.files()
        self.assertEqual(
            {'active': BASE, 'format': new_fmt, 'size': SIZE,
             'thick': new_thick, 'snapshots': []},
            chain.convert(self.root, VOLUME, new_fmt, new_thick))
        self.assert_content(content)
        self.assertEqual(files, self.share.files())
        allocated = self.share.allocated(BASE)
        (self.assertGreaterEqual if new_thick else self.assertLess)(
            allocated, SIZE)

    def test_with_snapshots(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.assertRaises(exception.RecordError, chain.convert, self.root,
                          VOLUME, 'raw', True)

    @ddt.data((1, 'raw'), (2, 'raw'), (3, 'qcow2'), (4, 'qcow2'))
    @ddt.unpack
    def test_killed(self, count, expected):
        content = self.create()
        files = self.share.files()
        self.killed(os, 'rename', count, chain.convert, VOLUME, 'qcow2',
                    False)
        self.assertEqual(expected, chain.describe(self.root, VOLUME)[
            'format'])
        self.assert_content(content)
        self.assertEqual(files, [name for name in self.share.files()
                                 if not name.endswith('.new')])


class MoveTestCase(ChainTestCase):
    """A copy that counts once the database names its share."""

    def setUp(self):
        super().setUp()
        self.content = self.create()
        self.target = share_directory.ShareDirectory(
            self.useFixture(fixtures.TempDir()).path)
        self.move()

    def move(self):
        chain.copy(self.root, VOLUME, None, self.target.root, VOLUME, 'raw',
                   SIZE, moving=True)

    def test_accepted(self):
        self.assertEqual([VOLUME], chain.pending(self.target.root))
        chain.settle(self.target.root, VOLUME)
        self.assertEqual([], chain.pending(self.target.root))
        self.assert_same(self.content, self.target.content(VOLUME))
        self.assertRaises(exception.FileExists, self.move)

    def test_again(self):
        """The service was killed before the database knew of it."""
        self.content = self.fill(3, offset=8192)
        self.move()
        self.assert_same(self.content, self.target.content(VOLUME))


class SharingTestCase(ChainTestCase):
    """What goes on while a volume is being copied."""

    def test_readers(self):
        content = self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.patch(record, '_FENCE_WAIT', 0)
        with record.fence(self.root, VOLUME, shared=True):
            chain.describe(self.root, VOLUME)
            chain.copy(self.root, VOLUME, ONE, self.root, OTHER, 'raw', SIZE)
            for function, *args in (
                    (chain.delete, ), (chain.delete_snapshot, ONE),
                    (chain.create_snapshot, TWO), (chain.revert, ONE),
                    (chain.extend, 2 * SIZE)):
                self.assertRaises(exception.VolumeBusy, function, self.root,
                                  VOLUME, *args)
        self.assert_content(content, volume=OTHER)
        self.assert_content(content)
