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
import tempfile

import fixtures

from cinder_lustre.brick import nbd
from cinder_lustre.brick import qemu_nbd
from cinder_lustre import exception
from cinder_lustre.tests.unit.brick import base

SIZE = 1 << 20


class ServerTestCase(base.ImageTestCase):

    def setUp(self):
        super().setUp()
        self.image = self.create('volume', 'qcow2', SIZE)
        self.useFixture(fixtures.NestedTempfile())
        self.tempdir = tempfile.gettempdir()
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', self.tempdir))

    def _is_free(self):
        try:
            nbd.open_image(self.image).close()
        except exception.VolumeBusy:
            return False
        return True

    def _assert_ends(self):
        self.wait_for(self._is_free, 'the end of qemu-nbd')
        self.assertEqual([], os.listdir(self.tempdir))

    def test_service_is_killed_while_it_uses_a_volume(self):
        self.run_python(
            'import os, signal, sys\n'
            'from cinder_lustre.brick import nbd\n'
            'stream = nbd.open_image(sys.argv[1])\n'
            'stream.write(b"x" * 4096)\n'
            'stream.flush()\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n', self.image)
        self._assert_ends()
        self.assertEqual(b'x' * 4096, self.contents(self.image)[:4096])

    def test_service_is_killed_while_it_opens_a_volume(self):
        self.run_python(
            'import os, signal, sys\n'
            'from cinder_lustre.brick import qemu_nbd\n'
            'qemu_nbd.END_TIMEOUT = 1\n'
            'server = qemu_nbd.Server(sys.argv[1], False)\n'
            # The image is open when the server speaks.
            'server.sock.recv(1)\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n', self.image)
        self._assert_ends()

    def test_nobody_else_can_connect(self):
        server = qemu_nbd.Server(self.image, False)
        self.addCleanup(server.stop, 0)
        self.assertTrue(server.sock.recv(1))
        self.assertEqual([], os.listdir(self.tempdir))
