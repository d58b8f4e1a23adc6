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

from unittest import mock

from cinder.tests.unit import test
from cinder.volume import manager as cinder_manager
from oslo_config import cfg
from oslo_utils import importutils

from cinder_lustre import brick
from cinder_lustre.brick import connector

CONF = cfg.CONF


class VolumeManagerTestCase(test.TestCase):

    def setUp(self):
        super().setUp()
        self.override_config('volume_manager',
                             'cinder_lustre.volume.manager.VolumeManager')
        self.addCleanup(brick.register)

    def test_is_cinders_own(self):
        manager = importutils.import_object(CONF.volume_manager)
        self.assertIsInstance(manager, cinder_manager.VolumeManager)

    def test_knows_the_connector_before_the_driver_loads(self):
        for name, value in (('lustre_development_fstypes', ['ext4']),
                            ('lustre_mount_options', 'flock,user_xattr'),
                            ('lustre_mount_timeout', 7),
                            ('lustre_operation_timeout', 8)):
            self.override_config(name, value, group='backend_defaults')
        settings = {}

        def load_driver(*args, **kwargs):
            settings.update(connector.LustreConnector.client_settings)

        with mock.patch.object(cinder_manager.VolumeManager, '__init__',
                               side_effect=load_driver,
                               return_value=None) as load:
            importutils.import_object(CONF.volume_manager, 'driver',
                                      service_name='lustre')
        load.assert_called_once_with('driver', service_name='lustre')
        self.assertEqual(
            {'development_fstypes': ('ext4',),
             'lustre_mount_options': 'flock,user_xattr',
             'lustre_mount_timeout': 7}, settings)
        self.assertEqual(8, connector.LustreConnector.operation_timeout)
