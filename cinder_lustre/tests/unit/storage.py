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


"""What the tests of the storage core have in common."""

import contextlib
import os
import shutil
from unittest import mock

import fixtures
import testtools

from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre.tests import share_directory


class StorageTestCase(testtools.TestCase):
    """Has an empty share in ``self.share``, with its root in ``self.root``."""

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir(
            share_directory.in_memory())).path
        self.share = share_directory.ShareDirectory(self.root)
        # The fence changes it, for what is normally a process of its own.
        self.addCleanup(os.umask, os.umask(0o022))
        patcher = mock.patch.object(record.lfs, 'set_dom_default')
        self.set_dom_default = patcher.start()
        self.addCleanup(patcher.stop)

    def patch(self, target, attribute, *args, **kwargs):
        patcher = mock.patch.object(target, attribute, *args, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()

    @contextlib.contextmanager
    def fake_qemu_img(self, script):
        """Put a shell script in the place of qemu-img.

        :param script: its text; $REAL is the real qemu-img
        """
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, 'qemu-img')
        with open(path, 'w') as stream:
            stream.write('#!/bin/sh\nREAL=%s\n%s\n' % (
                shutil.which('qemu-img'), script))
        os.chmod(path, 0o755)
        with fixtures.EnvironmentVariable(
                'PATH', directory + os.pathsep + os.environ['PATH']):
            yield directory

    @contextlib.contextmanager
    def failing_write_back(self, function, code):
        """Let a file that qemu-img has written not come to the disk."""
        opened = []
        run, fsync = getattr(qemu_img, function), os.fsync

        def written(*args, **kwargs):
            run(*args, **kwargs)
            # Linux tells an error to those only who have the file open now.
            opened.extend(
                number for number in map(int, os.listdir('/proc/self/fd'))
                if os.path.isfile('/proc/self/fd/%d' % number))

        def fail(descriptor):
            if descriptor in opened:
                opened.clear()
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        with mock.patch.object(qemu_img, function, written), \
                mock.patch.object(os, 'fsync', fail):
            yield

    def touch(self, name):
        """Make an empty file; returns its path."""
        path = self.share.path(name)
        os.close(os.open(path, os.O_CREAT))
        os.chmod(path, 0o660)
        return path

    def assert_same(self, expected, actual):
        """Compare contents without printing them."""
        self.assertEqual(len(expected), len(actual))
        if expected != actual:
            first = next(offset for offset, (left, right) in
                         enumerate(zip(expected, actual)) if left != right)
            self.fail('contents differ at offset %s' % first)

    def mode(self, *names):
        return os.stat(self.share.path(*names)).st_mode & 0o7777
