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

"""Locks: what one mount of a share holds, another one sees."""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading

from cinder import exception
import ddt
from oslo_utils import units
import testtools

from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites

FORMATS = ('raw', 'qcow2')

# Holds the fence of a volume, through the code that the driver runs.
HOLDER = '''
import sys
from cinder_lustre import record
with record.fence(*sys.argv[1:]):
    print("held", flush=True)
    sys.stdin.readline()
'''


@ddt.ddt
class LocksTestCase(base.FunctionalTestCase):

    def prepare(self):
        super().prepare()
        self.here = self.directory_of(self.driver)
        self.there = self.mount(self.site.share)

    def open_lock(self, directory, volume):
        stream = open(os.path.join(directory, '.cinder-lustre',
                                   volume.id + '.lock'))
        self.addCleanup(stream.close)
        return stream

    @ddt.data(fcntl.flock, fcntl.lockf)
    def test_locks_between_mounts(self, lock):
        with open(os.path.join(self.here, 'file'), 'w') as one, \
                open(os.path.join(self.there, 'file'), 'w') as other:
            lock(one, fcntl.LOCK_EX)
            # Locks of fcntl's kind are between processes.
            done = subprocess.run(
                [sys.executable, '-c', 'import fcntl; fcntl.%s(0, '
                 'fcntl.LOCK_EX | fcntl.LOCK_NB)' % lock.__name__],
                stdin=other, stderr=subprocess.PIPE, text=True)
            self.assertIn('BlockingIOError', done.stderr)
            lock(one, fcntl.LOCK_UN)
            lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(os.path.join(self.site.path, 'file'))

    def test_fence_is_seen_elsewhere(self):
        volume = self.create_volume()
        with self.held_fence(self.here, volume):
            stream = self.open_lock(self.there, volume)
            with testtools.ExpectedException(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @contextlib.contextmanager
    def held_fence(self, directory, volume):
        parent = os.path.abspath(os.path.join(os.path.dirname(sites.__file__),
                                              '../../..'))
        with subprocess.Popen(
                [sys.executable, '-c', HOLDER, directory, volume.id],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=dict(os.environ, PYTHONPATH=parent)) as holder:
            self.assertEqual(b'held\n', holder.stdout.readline())
            yield holder
            holder.stdin.close()

    def test_operation_waits_for_another_host(self):
        volume = self.create_volume()
        content = self.write(volume)
        thread = threading.Thread(target=self.extend_volume,
                                  args=(volume, 2))
        with self.held_fence(self.there, volume):
            thread.start()
            # Long enough for an operation that does not look.
            thread.join(3)
            self.assertTrue(thread.is_alive())
            path = os.path.join(self.site.path, 'volume-' + volume.id)
            self.assertEqual(units.Gi, os.stat(path).st_size)
        thread.join()
        self.assert_content(content.grown(2 * units.Gi), volume)

    def test_operation_gives_up(self):
        """Another host takes longer than an operation waits."""
        volume = self.create_volume()
        before = self.site.listing()
        with self.held_fence(self.there, volume):
            error = self.assertRaises(
                exception.VolumeIsBusy, self.driver.extend_volume, volume, 2)
        self.assertIn('is still being worked on', str(error))
        self.assertEqual(before, self.site.listing())
        self.extend_volume(volume, 2)

    def test_other_volumes_do_not_wait(self):
        volume, other = self.create_volume(), self.create_volume()
        with self.held_fence(self.there, volume):
            self.extend_volume(other, 2)
            self.delete_volume(other)

    def info(self, path, fmt, *options):
        return subprocess.run(
            ['qemu-img', 'info', '-f', fmt, *options, path],
            capture_output=True, text=True)

    @contextlib.contextmanager
    def opened_by_qemu(self, path):
        """Keep a qcow2 image open for writing, as a guest does."""
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', path],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE
                              ) as process:
            # To look at the image meanwhile would be in its way.
            process.stdin.write(b'read 0 512\n')
            process.stdin.flush()
            self.assertIn(b'read 512/512', process.stdout.readline())
            yield
            process.stdin.close()

    def test_image_that_is_open_elsewhere(self):
        volume = self.create_volume(fmt='qcow2')
        name = 'volume-' + volume.id
        there = os.path.join(self.there, name)
        self.assertEqual(0, self.info(there, 'qcow2').returncode)
        with self.opened_by_qemu(os.path.join(self.here, name)):
            done = self.info(there, 'qcow2')
            self.assertEqual(1, done.returncode)
            self.assertIn('Is another process using the image', done.stderr)
            self.assertEqual(0, self.info(there, 'qcow2', '-U').returncode)
        self.assertEqual(0, self.info(there, 'qcow2').returncode)

    @ddt.idata(FORMATS)
    def test_attached_image_is_locked(self, fmt):
        """Our own connector keeps others away from a qcow2 image."""
        volume = self.create_volume(fmt=fmt)
        there = os.path.join(self.there, 'volume-' + volume.id)
        with self.attached(volume):
            self.assertEqual(1 if fmt == 'qcow2' else 0,
                             self.info(there, fmt).returncode)

    @ddt.idata(FORMATS)
    def test_snapshot_of_a_volume_that_is_open_elsewhere(self, fmt):
        """Cinder takes the volume for detached, but a guest has it."""
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        snapshot = self.create_snapshot(volume)
        content = self.write(volume, seed=1, over=content)
        name = 'volume-%s.%s' % (volume.id, snapshot.id)
        with self.opened_by_qemu(os.path.join(self.there, name)):
            error = self.assertRaises(
                exception.VolumeBackendAPIException,
                self.driver.delete_snapshot, snapshot)
            self.assertIn('Is another process using the image', str(error))
            self.assertRaises(exception.VolumeBackendAPIException,
                              self.clone, volume)
        self.assert_content(content, volume)
        self.delete_snapshot(snapshot)
        self.assert_content(content, volume)
