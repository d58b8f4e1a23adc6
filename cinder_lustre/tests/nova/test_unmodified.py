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

"""What unmodified Nova makes of a mount, and what keeps it alive."""

import json
import os
import subprocess
import sys

import fixtures
import testtools

from cinder_lustre.tests.nova import base

# A mount namespace, and root's rights in it for whoever runs the tests.
NAMESPACE = ('unshare', '--user', '--map-root-user', '--mount')


class UnmodifiedNovaTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        allowed = subprocess.run(NAMESPACE + ('true',), capture_output=True)
        if allowed.returncode:
            self.skipTest('user namespaces are not allowed: %s'
                          % allowed.stderr.decode())
        self.base = os.path.realpath(
            self.useFixture(fixtures.TempDir()).path)

    def _run(self, hold):
        result = subprocess.run(
            NAMESPACE + (sys.executable, '-W', 'ignore', '-m',
                         'cinder_lustre.tests.nova.unmodified', self.base,
                         hold), text=True, capture_output=True)
        self.assertEqual(0, result.returncode, result.stderr)
        steps = json.loads(result.stdout)
        # Nova looks for the volume where we say that it does.
        self.assertEqual(os.path.join(self.base, base.DIRECTORY, 'volume-0'),
                         steps.pop('path'))
        return steps

    def test_last_detach_takes_the_mount_away(self):
        self.assertEqual({'after detach 1': True, 'after detach 2': False,
                          'directory': False, 'attach again': False},
                         self._run('leave'))

    def test_a_process_in_the_share_keeps_the_mount(self):
        self.assertEqual({'after detach 1': True, 'after detach 2': True,
                          'directory': True, 'attach again': True},
                         self._run('hold'))
