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

import subprocess
import sys
from unittest import mock

import ddt
from os_brick import exception as brick_exception
from os_brick.initiator import connector as brick_connector
import testtools

from cinder_lustre import brick
from cinder_lustre.brick import connector

PATH = 'cinder_lustre.brick.connector.LustreConnector'


@ddt.ddt
class RegisterTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.mapping = {}
        patcher = mock.patch.object(brick_connector, 'get_connector_mapping',
                                    return_value=self.mapping)
        patcher.start()
        self.addCleanup(brick.register)
        self.addCleanup(patcher.stop)

    def _factory(self):
        return brick_connector.InitiatorConnector.factory(
            'lustre', '', conn={'mount_point_base': '/mnt'})

    def test_os_brick_does_not_know_lustre(self):
        self.assertRaises(brick_exception.InvalidConnectorProtocol,
                          self._factory)
        brick.register()
        self.assertIsInstance(self._factory(), connector.LustreConnector)

    def test_may_be_called_again(self):
        brick.register(development_fstypes=['ext4'])
        brick.register(operation_timeout=5)
        self.assertEqual({'LUSTRE': PATH}, self.mapping)
        self.assertEqual(5, connector.LustreConnector.operation_timeout)
        self.assertEqual(
            {'development_fstypes': (), 'lustre_mount_options': 'flock',
             'lustre_mount_timeout': 60},
            connector.LustreConnector.client_settings)

    def test_os_brick_may_bring_its_own(self):
        self.mapping['LUSTRE'] = 'theirs'
        brick.register()
        self.assertEqual({'LUSTRE': 'theirs'}, self.mapping)

    def test_package_loads_without_os_brick(self):
        loaded = subprocess.check_output(
            [sys.executable, '-c', 'import sys, cinder_lustre.brick\n'
             'print([name for name in sys.modules if "os_brick" in name])'],
            text=True, env={'PYTHONPATH': ':'.join(sys.path)})
        self.assertEqual('[]\n', loaded)


@ddt.ddt
class MappingTestCase(testtools.TestCase):

    @ddt.data('x86_64', 'aarch64', 's390x', 'ppc64le')
    def test_every_machine(self, machine):
        with mock.patch('platform.machine', return_value=machine):
            mapping = brick_connector.get_connector_mapping()
            with mock.patch.dict(mapping):
                brick.register()
                self.assertEqual(PATH, mapping['LUSTRE'])
