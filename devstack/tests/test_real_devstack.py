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

"""Runs the plugin through the real DevStack, where a checkout of it is."""

import os
import subprocess
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      'real-devstack')


class RealDevStackTestCase(unittest.TestCase):

    def setUp(self):
        super().setUp()
        if not os.environ.get('DEVSTACK_DIR'):
            self.skipTest('DEVSTACK_DIR is not set to a checkout of '
                          'openstack/devstack')
        if os.geteuid():
            self.skipTest('mounts and chroot need root')

    def test_stack_unstack_and_clean(self):
        done = subprocess.run([SCRIPT], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        self.assertEqual(0, done.returncode, done.stdout)
