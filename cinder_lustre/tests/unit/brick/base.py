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
import random
import signal
import subprocess
import sys
import time

import fixtures
import testtools

# How long anything may take before a test fails; none waits that long when
# all is well.
PATIENCE = 60


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


class ImageTestCase(testtools.TestCase):
    """Real images in a directory of their own."""

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path

    def path(self, name):
        return os.path.join(self.directory, name)

    def create(self, name, fmt, size, *options):
        path = self.path(name)
        self.qemu_img('create', '-q', '-f', fmt, *options, path, str(size))
        return path

    @staticmethod
    def qemu_img(*args):
        return subprocess.check_output(['qemu-img', *args],
                                       stderr=subprocess.STDOUT)

    def contents(self, path, fmt='qcow2'):
        """What a guest would see, as qemu-img sees it."""
        raw = self.path('contents.raw')
        self.qemu_img('convert', '-f', fmt, '-O', 'raw', path, raw)
        with open(raw, 'rb') as stream:
            return stream.read()

    def fill(self, path, contents, fmt='qcow2'):
        """Give an image contents, with qemu-img."""
        raw = self.path('contents.raw')
        with open(raw, 'wb') as stream:
            stream.write(contents)
        self.qemu_img('convert', '-f', 'raw', '-O', fmt, raw, path)

    def program(self, name, script):
        """Put a program of this name before all others in PATH."""
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, name)
        with open(path, 'w') as stream:
            stream.write('#!/bin/sh\n%s\n' % script)
        os.chmod(path, 0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (directory, os.environ['PATH'])))

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline,
                            'timed out waiting for %s' % what)
            time.sleep(0.05)

    def run_python(self, script, *args):
        """Run a script as a process of its own; return what it printed."""
        result = subprocess.run(
            [sys.executable, '-c', script, *args], capture_output=True,
            text=True, timeout=2 * PATIENCE,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        self.assertIn(result.returncode, (0, -signal.SIGKILL), result.stderr)
        return result.stdout
