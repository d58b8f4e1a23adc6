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

"""Where a lab lives and how labs are told apart."""

import pathlib
import socket
from unittest import mock

import fixtures
import testtools

from cinder_lab import report
from cinder_lab import state

FREE = state.free


class LabTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        # A temporary directory is closed to others.
        self.useFixture(fixtures.MockPatchObject(
            state, 'open_to_others', lambda path: True))
        self.useFixture(fixtures.MockPatchObject(
            state, 'REGISTRY', self.top / 'registry'))
        self.useFixture(fixtures.MockPatchObject(
            state, 'BASES', range(18000, 18200, 100)))
        self.useFixture(fixtures.MockPatchObject(
            state, 'free', lambda base: not (
                state.REGISTRY / str(base)).is_symlink()))
        for name in ('LAB_PORT_BASE', 'LAB_PREFIX', 'LAB_BACKEND'):
            self.useFixture(fixtures.EnvironmentVariable(name))

    def _lab(self, name='one'):
        lab = state.Lab(self.top / name)
        lab.create()
        return lab

    def test_labs_get_bases_of_their_own_and_keep_them(self):
        self.assertEqual([18000, 18100],
                         [self._lab('one').base, self._lab('two').base])
        self.assertEqual([18000, 18100],
                         [self._lab('one').base, self._lab('two').base])
        error = self.assertRaises(report.LabError, self._lab, 'three')
        self.assertIn('LAB_PORT_BASE', str(error))

    def test_port_base_of_the_environment(self):
        with mock.patch.dict('os.environ', LAB_PORT_BASE='20000'):
            self.assertEqual(20000, self._lab().base)
        for wrong in ('x', '80', '70000', '20000'):
            with mock.patch.dict('os.environ', LAB_PORT_BASE=wrong):
                self.assertRaises(report.LabError, self._lab, 'two')
        with mock.patch.dict('os.environ', LAB_PORT_BASE='21000'):
            self.assertRaises(report.LabError, self._lab)

    def test_lost_state_file_finds_its_base_again(self):
        self._lab('one')
        self._lab('two')
        (self.top / 'two/state.json').unlink()
        self.assertEqual(18100, self._lab('two').base)

    def test_moved_lab_can_only_be_cleaned(self):
        self._lab().prefix.rename(self.top / 'moved')
        error = self.assertRaises(report.LabError, self._lab, 'moved')
        self.assertIn('lab clean', str(error))
        state.Lab(self.top / 'moved').check()

    def test_copied_lab_is_refused(self):
        lab = self._lab()
        (self.top / 'copy').mkdir()
        (self.top / 'copy/state.json').write_bytes(
            (lab.prefix / 'state.json').read_bytes())
        error = self.assertRaises(report.LabError, self._lab, 'copy')
        self.assertIn('is a copy of the lab in', str(error))

    def test_secrets_stay(self):
        secret = self._lab().secret('x')
        self.assertEqual(secret, self._lab().secret('x'))
        self.assertNotEqual(secret, self._lab().secret('y'))
        self.assertEqual(0o600, (self.top / 'one/state.json').stat().st_mode
                         & 0o777)

    def test_backend_is_chosen_once(self):
        lab = self._lab()
        with mock.patch.dict('os.environ', LAB_BACKEND='nfs'):
            self.assertEqual('nfs', lab.backend)
        self.assertEqual('lustre', lab.backend)
        lab.put('backend', 'nfs')
        self.assertEqual('nfs', lab.backend)
        for wrong in 'lustre', 'lvm':
            with mock.patch.dict('os.environ', LAB_BACKEND=wrong):
                error = self.assertRaises(report.LabError, lambda: lab.backend)
                self.assertIn(f'LAB_BACKEND={wrong}', str(error))

    def test_closed_directory_is_refused(self):
        with mock.patch.object(state, 'open_to_others', lambda path: False):
            error = self.assertRaises(report.LabError, self._lab)
            self.assertIn('LAB_PREFIX', str(error))
            self.assertEqual(pathlib.Path('/var/lib'),
                             state.default_prefix().parent)

    def test_base_is_free_only_with_all_of_its_ports(self):
        with socket.socket() as used:
            used.bind(('127.0.0.1', 0))
            used.listen()
            port = used.getsockname()[1]
            for base in (port, port - len(state.PORTS) + 1):
                self.assertFalse(FREE(base))
