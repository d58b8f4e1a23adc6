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

import threading
from unittest import mock

import ddt
import fixtures
from oslo_concurrency import processutils

from cinder_lustre.brick import mount
from cinder_lustre import exception
from cinder_lustre.nova import client
from cinder_lustre.tests.nova import base

# Far longer than anything here takes, so that only a defect meets it.
PATIENCE = 60


@ddt.ddt
class ComputeClientTestCase(base.NovaTestCase):

    def _client(self, timeout=PATIENCE):
        return client.ComputeClient(
            'lustre', 'sudo helper', lustre_mount_point_base=self.base,
            lustre_mount_timeout=timeout)

    def test_mount(self):
        self._client().mount(base.SHARE, ['-o', 'user_xattr'])
        self.execute.assert_called_once_with(
            'mount', '-t', 'lustre', '-o', 'flock,user_xattr', base.SHARE,
            self.path, env_variables=mock.ANY)
        environment = self.execute.call_args.kwargs['env_variables']
        # Messages are recognized by their English text.
        self.assertEqual('C', environment['LC_ALL'])
        self.assertIn('/sbin', environment['PATH'].split(':'))

    def test_mount_again(self):
        found = self._client()
        found.mount(base.SHARE)
        found.mount(base.SHARE)
        self.assertEqual(1, self.execute.call_count)
        # What somebody has unmounted meanwhile is mounted again.
        self.mounts = self.mounts[:-1]
        found.mount(base.SHARE)
        self.assertEqual(2, self.execute.call_count)

    @ddt.data(
        (processutils.ProcessExecutionError(
            exit_code=2, stderr='No such file or directory'),
         'has no file system "testfs"'),
        (processutils.ProcessExecutionError(
            exit_code=1, stderr='mount: only root can do that'),
         "mounting needs root's rights"),
        (FileNotFoundError(2, 'No such file or directory', 'mount'),
         'exit code 127: [Errno 2] No such file or directory'))
    @ddt.unpack
    def test_failure(self, error, reason):
        self.execute.side_effect = error
        found = self._client()
        error = self.assertRaises(exception.MountFailed, found.mount,
                                  base.SHARE)
        self.assertIn(reason, error.kwargs['reason'])
        # It leaves nothing behind that would stop the next attempt.
        self.execute.side_effect = self.mount
        found.mount(base.SHARE)

    def test_what_was_mounted_is_checked(self):
        self.execute.side_effect = lambda *command, **kwargs: self.mount(
            *command[:4], 'noflock', *command[5:])
        self.assertRaises(exception.UnusableMount, self._client().mount,
                          base.SHARE)

    def test_slow_mount(self):
        begun, gate = threading.Event(), threading.Event()
        self.addCleanup(gate.set)

        def wait(*command, **kwargs):
            begun.set()
            gate.wait(PATIENCE)
            return self.mount(*command)

        self.execute.side_effect = wait
        attempts = self.useFixture(fixtures.MockPatchObject(
            mount, 'mount', mock.Mock(side_effect=mount.mount))).mock
        found = self._client(timeout=0.01)
        error = self.assertRaises(exception.ShareUnavailable, found.mount,
                                  base.SHARE)
        self.assertIn('takes longer than 0.01 seconds', str(error))
        self.assertTrue(begun.wait(PATIENCE))
        # The next attachment joins that attempt and starts none of its own.
        self.assertRaises(exception.ShareUnavailable, found.mount, base.SHARE)
        self.assertEqual(1, attempts.call_count)
        # Another share is not concerned.
        self.execute.side_effect = self.mount
        found._mount_timeout = PATIENCE
        found.mount('10.0.2.15@tcp:/testfs/other')
        gate.set()
        found.mount(base.SHARE)
        self.assertEqual(2, self.execute.call_count)
