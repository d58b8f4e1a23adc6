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


import contextlib
import os
import subprocess
import threading

import ddt
import fixtures

from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre.tests import share_directory
from cinder_lustre.tests.unit import storage
from cinder_lustre import worker

MIB = share_directory.MIB


@ddt.ddt
class QemuImgTestCase(storage.StorageTestCase):

    def setUp(self):
        super().setUp()
        self.progress = self.patch(worker, 'progress')

    @ddt.data('raw', 'qcow2')
    def test_create(self, fmt):
        path = self.share.path('image')
        qemu_img.create(path, fmt, 4 * MIB)
        self.assertEqual(4 * MIB, qemu_img.info(path, fmt)['virtual-size'])
        self.assert_same(bytes(4 * MIB), self.share.read_file('image', fmt))

    def test_create_keeps_the_mode_of_a_file_that_exists(self):
        path = self.share.path('image')
        os.close(os.open(path, os.O_CREAT, 0o640))
        qemu_img.create(path, 'qcow2', MIB)
        self.assertEqual(0o640, self.mode('image'))

    def test_create_does_not_open_what_lies_below(self):
        path = self.share.path('overlay')
        qemu_img.create(path, 'qcow2', MIB, backing='absent',
                        backing_fmt='raw')
        info = qemu_img.info(path, 'qcow2')
        self.assertEqual(('absent', 'raw'), (info['backing-filename'],
                                             info['backing-filename-format']))

    def test_create_allocates(self):
        qemu_img.create(self.share.path('image'), 'qcow2', 4 * MIB,
                        preallocation='falloc')
        self.assertGreaterEqual(self.share.allocated('image'), 4 * MIB)

    @ddt.data('vmdk', 'luks', '', None)
    def test_only_formats_of_volume_files_are_read(self, fmt):
        path = self.share.path('image')
        self.assertRaises(ValueError, qemu_img.create, path, fmt, MIB)
        self.assertRaises(ValueError, qemu_img.info, path, fmt)
        self.assertRaises(ValueError, qemu_img.resize, path, fmt, MIB)
        self.assertRaises(ValueError, qemu_img.rebase, path, 'below', fmt)
        self.assertRaises(ValueError, qemu_img.create, path, 'qcow2', MIB,
                          backing='below', backing_fmt=fmt)
        self.assertEqual([], self.share.files())

    @ddt.data(('raw', 'raw'), ('raw', 'qcow2'), ('qcow2', 'raw'),
              ('qcow2', 'vmdk'))
    @ddt.unpack
    def test_convert(self, source, target):
        qemu_img.create(self.share.path('source'), source, 8 * MIB)
        self.share.write_file('source', source, 2 * MIB, 100000, 7)
        self.touch('target')
        qemu_img.convert(self.share.path('source'), source,
                         self.share.path('target'), target)
        self.assert_same(self.share.read_file('source', source),
                         self.share.read_file('target', target))
        self.assertLess(self.share.allocated('target'), 2 * MIB)
        self.progress.assert_called_with(100.0)

    def test_convert_into_an_image_that_is_larger(self):
        qemu_img.create(self.share.path('source'), 'qcow2', MIB)
        self.share.write_file('source', 'qcow2', 0, MIB, 3)
        qemu_img.create(self.share.path('target'), 'raw', 2 * MIB)
        qemu_img.convert(self.share.path('source'), 'qcow2',
                         self.share.path('target'), 'raw', empty_target=True)
        self.assert_same(b'\3' * MIB + bytes(MIB),
                         self.share.read_file('target', 'raw'))

    def test_convert_does_not_look_at_what_a_raw_image_holds(self):
        qemu_img.create(self.share.path('source'), 'qcow2', 8 * MIB)
        os.truncate(self.share.path('source'), MIB)
        self.touch('target')
        qemu_img.convert(self.share.path('source'), 'raw',
                         self.share.path('target'), 'raw')
        with open(self.share.path('source'), 'rb') as stream:
            content = stream.read()
        self.assert_same(content, self.share.read_file('target', 'raw'))

    def test_tables_that_were_not_written(self):
        with self.fake_qemu_img('echo "qemu-img: Failed to flush the L2 table '
                                'cache: Input/output error" >&2'):
            self.assertRaises(exception.CommandFailed, qemu_img.convert,
                              'source', 'raw', 'target', 'qcow2')

    @ddt.data('raw', 'qcow2')
    def test_resize(self, fmt):
        path = self.share.path('image')
        qemu_img.create(path, fmt, MIB)
        qemu_img.resize(path, fmt, 2 * MIB)
        self.assertEqual(2 * MIB, qemu_img.info(path, fmt)['virtual-size'])
        self.assertRaises(exception.CommandFailed, qemu_img.resize, path,
                          fmt, MIB)
        qemu_img.resize(path, fmt, MIB, shrink=True)
        self.assertEqual(MIB, qemu_img.info(path, fmt)['virtual-size'])

    def test_commit_and_rebase(self):
        for name, below in (('base', None), ('middle', 'base'),
                            ('top', 'middle')):
            qemu_img.create(self.share.path(name), 'qcow2', MIB,
                            backing=below,
                            backing_fmt='qcow2' if below else None)
        self.share.write_file('middle', 'qcow2', 0, MIB, 1)
        self.share.write_file('top', 'qcow2', 65536, 65536, 2)
        before = self.share.read_file('top', 'qcow2')
        qemu_img.commit(self.share.path('middle'))
        # The overlay is not emptied: whoever reads it sees no difference.
        self.assert_same(b'\1' * MIB, self.share.read_file('middle', 'qcow2'))
        self.assert_same(b'\1' * MIB, self.share.read_file('base', 'qcow2'))
        qemu_img.rebase(self.share.path('top'), 'base', 'qcow2')
        os.unlink(self.share.path('middle'))
        self.assert_same(before, self.share.read_file('top', 'qcow2'))

    def test_version(self):
        shown = subprocess.run(['qemu-img', '--version'], capture_output=True,
                               encoding='utf-8').stdout
        self.assertIn('version %s' % qemu_img.version(), shown)
        with self.fake_qemu_img('echo qemu-img version 10.0.2 "(Debian 1)"'):
            self.assertEqual('10.0.2', qemu_img.version())
        with fixtures.EnvironmentVariable('PATH', self.root):
            self.assertIsNone(qemu_img.version())

    def test_a_failure_names_the_command_and_its_reason(self):
        path = self.share.path('absent')
        error = self.assertRaises(exception.CommandFailed, qemu_img.info,
                                  path, 'raw')
        self.assertIn(path, error.kwargs['command'])
        self.assertIn('No such file', error.kwargs['stderr'])
        self.assertEqual(1, error.kwargs['exit_code'])

    @ddt.data('No space left on device', 'Disk quota exceeded')
    def test_a_full_share(self, reason):
        with self.fake_qemu_img('echo "qemu-img: oh: %s" >&2; exit 1'
                                % reason):
            error = self.assertRaises(
                exception.NoSpace, qemu_img.create,
                self.share.path('image'), 'raw', MIB)
        self.assertEqual({'path': self.share.path('image'),
                          'reason': reason}, error.kwargs)

    def test_much_output_is_read_to_its_end(self):
        with self.fake_qemu_img(
                'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); '
                'echo "number $i"; echo "error $i" >&2; done; exit 3'):
            error = self.assertRaises(exception.CommandFailed,
                                      qemu_img.commit, 'image')
        self.assertTrue(error.kwargs['stderr'].startswith('error 1\n'))
        self.assertTrue(error.kwargs['stderr'].endswith('error 20000'))

    def test_a_silent_command_that_moves_is_reported(self):
        self.patch(qemu_img, '_BEAT', 0.01)
        with self.fake_qemu_img(
                'i=0; while [ ! -e "$0.seen" -a $i -lt 1200 ]; do '
                'i=$((i + 1)); sleep 0.05; done') as directory:
            self.progress.side_effect = lambda value: open(
                os.path.join(directory, 'qemu-img.seen'), 'w').close()
            qemu_img.commit('image')
        self.progress.assert_called_with(None)

    @contextlib.contextmanager
    def guest(self, path, fmt):
        """Have an image open for writing, as a guest does."""
        with subprocess.Popen(['qemu-io', '-f', fmt, path],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as process:
            self.assertEqual(b'qemu-io> ', process.stdout.read(9))
            yield
            process.stdin.close()

    @ddt.data('raw', 'qcow2')
    def test_is_written(self, fmt):
        path = self.share.path('image')
        qemu_img.create(path, fmt, MIB)
        self.assertFalse(qemu_img.is_written(path))
        with self.guest(path, fmt):
            self.assertTrue(qemu_img.is_written(path))
        self.assertFalse(qemu_img.is_written(path))

    def test_is_written_through_an_overlay(self):
        """The layer below is only read."""
        base, overlay = map(self.share.path, ('base', 'overlay'))
        qemu_img.create(base, 'raw', MIB)
        qemu_img.create(overlay, 'qcow2', MIB, 'base', 'raw')
        with self.guest(overlay, 'qcow2'):
            self.assertTrue(qemu_img.is_written(overlay))
            self.assertFalse(qemu_img.is_written(base))

    @ddt.data('raw', 'qcow2')
    def test_not_written(self, fmt):
        path = self.share.path('image')
        qemu_img.create(path, fmt, MIB)
        command = ['qemu-io', '-f', fmt, '-c', 'write -q 0 512', path]
        with qemu_img.not_written(path):
            done = subprocess.run(command, capture_output=True)
        self.assertIn(b'"write" lock', done.stderr)
        subprocess.run(command, check=True)

    def test_has_data(self):
        base, overlay = map(self.share.path, ('base', 'overlay'))
        qemu_img.create(base, 'raw', MIB)
        self.share.write_file('base', 'raw', 0, 4096, 1)
        qemu_img.create(overlay, 'qcow2', MIB, 'base', 'raw')
        self.assertFalse(qemu_img.has_data(overlay))
        self.share.write_file('overlay', 'qcow2', 0, 4096, 1)
        self.assertTrue(qemu_img.has_data(overlay))

    def test_the_command_ends_when_nobody_waits_any_more(self):
        self.progress.side_effect = BrokenPipeError
        with self.fake_qemu_img('echo $$ > "$0.pid"; echo "(1.00/100%)"; '
                                'exec sleep 600') as directory:
            self.assertRaises(BrokenPipeError, qemu_img.commit, 'image')
            with open(os.path.join(directory, 'qemu-img.pid')) as stream:
                pid = int(stream.read())
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_no_shell_reads_the_arguments(self):
        path = self.share.path('a b; touch $(echo c) "d\'')
        qemu_img.create(path, 'raw', MIB)
        self.assertEqual([os.path.basename(path)], self.share.files())

    def test_two_at_once_do_not_mix(self):
        def create(name):
            qemu_img.create(self.share.path(name), 'qcow2', MIB)

        threads = [threading.Thread(target=create, args=(name,))
                   for name in 'ab']
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(['a', 'b'], self.share.files())
