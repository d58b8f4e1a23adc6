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
from unittest import mock

from cinder.backup.drivers import posix
from cinder import context
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import test
from cinder.tests.unit import utils
import ddt
import fixtures
from oslo_config import cfg
from oslo_service import loopingcall
from oslo_utils import importutils
from oslo_utils import units

from cinder_lustre import brick
from cinder_lustre.brick import client
from cinder_lustre.brick import connector
from cinder_lustre.brick import qemu_nbd
from cinder_lustre import share
from cinder_lustre.tests.unit.brick import base

CONF = cfg.CONF

EXPORT = '10.0.2.15@tcp:/lustre'
# Two chunks of a backup and most of a third one.
SIZE = 3 * units.Mi - 65536


@ddt.ddt
class BackupManagerTestCase(base.ImageTestCase, test.TestCase):
    """Cinder's own backup and restore, on files of a share's directory."""

    def setUp(self):
        super().setUp()
        self.base = os.path.realpath(self.directory)
        self.directory = share.Share.parse(EXPORT).mount_point(self.base)
        os.mkdir(self.directory)
        self.useFixture(fixtures.MockPatchObject(
            client.LustreRemoteFsClient, 'mount'))
        self.useFixture(fixtures.MockPatch(
            'cinder.volume.volume_utils.brick_get_connector_properties',
            return_value={}))
        self.addCleanup(brick.register)
        for name, value in (
                ('backup_driver', '%s.PosixBackupDriver' % posix.__name__),
                ('backup_manager',
                 'cinder_lustre.backup.manager.BackupManager'),
                ('backup_posix_path', os.path.join(self.base, 'backups')),
                ('backup_file_size', units.Mi)):
            self.override_config(name, value)
        self.context = context.get_admin_context()
        self.formats = {}
        self.manager = self.new_manager()

    def new_manager(self):
        # As the service does.
        manager = importutils.import_object(CONF.backup_manager)
        manager.message_api = mock.Mock()
        manager.volume_rpcapi = mock.Mock()
        manager.volume_rpcapi.initialize_connection.side_effect = (
            self.initialize_connection)
        return manager

    def initialize_connection(self, _context, volume, _properties):
        return {'driver_volume_type': 'lustre',
                'mount_point_base': self.base,
                'data': {'export': EXPORT, 'name': volume.name,
                         'format': self.formats[volume.id], 'options': None,
                         'access_mode': 'rw', 'encrypted': False}}

    def new_volume(self, fmt, contents=None):
        volume = utils.create_volume(self.context, size=1,
                                     status='backing-up')
        self.formats[volume.id] = fmt
        path = self.create(volume.name, fmt, SIZE)
        if contents is not None:
            self.fill(path, contents, fmt)
        return volume

    def contents_of(self, volume):
        return self.contents(self.path(volume.name), self.formats[volume.id])

    def back_up(self, volume, parent=None):
        backup = utils.create_backup(
            self.context, volume.id, size=1, container=None,
            parent_id=parent and parent.id)
        # As the API leaves it; the function above gives all the same one.
        backup.container = None
        backup.save()
        self.manager.continue_backup(
            self.context, backup, objects.BackupDeviceInfo.from_primitive(
                {'backup_device': volume, 'is_snapshot': False,
                 'secure_enabled': True}, self.context))
        backup.refresh()
        self.assertEqual(fields.BackupStatus.AVAILABLE, backup.status)
        return backup

    def restore(self, backup, volume, volume_is_new):
        backup.status = fields.BackupStatus.RESTORING
        backup.save()
        self.manager._run_restore(self.context, backup, volume, volume_is_new)

    def some_data(self):
        """Data, a hole, data, and zeros at the end."""
        contents = bytearray(SIZE)
        contents[4096:512 * units.Ki] = base.noise(512 * units.Ki - 4096)
        contents[units.Mi - 5:units.Mi + 5] = b'0123456789'
        return bytes(contents)

    def test_scheduler_hears_at_once_that_the_driver_is_ready(self):
        self.manager.scheduler_rpcapi = mock.Mock()
        self.assertRaises(loopingcall.LoopingCallDone,
                          self.manager._setup_backup_driver, self.context)
        told = self.manager.scheduler_rpcapi.update_service_capabilities
        self.assertIs(True, told.call_args[0][3]['backend_state'])

    @ddt.data(('raw', 'raw'), ('raw', 'qcow2'), ('qcow2', 'raw'),
              ('qcow2', 'qcow2'))
    @ddt.unpack
    def test_restore_to_a_new_volume(self, source, target):
        data = self.some_data()
        backup = self.back_up(self.new_volume(source, data))
        volume = self.new_volume(target)
        self.restore(backup, volume, volume_is_new=True)
        self.assertEqual(data, self.contents_of(volume))

    @ddt.data('raw', 'qcow2')
    def test_restore_over_other_data(self, fmt):
        data = self.some_data()
        backup = self.back_up(self.new_volume(fmt, data))
        volume = self.new_volume(fmt, b'\xff' * SIZE)
        self.restore(backup, volume, volume_is_new=False)
        self.assertEqual(data, self.contents_of(volume))

    @ddt.data('raw', 'qcow2')
    def test_restore_of_an_incremental_backup(self, fmt):
        volume = self.new_volume(fmt, b'\xff' * SIZE)
        parent = self.back_up(volume)
        data = bytearray(b'\xff' * SIZE)
        data[70000:80000] = bytes(10000)
        data[2 * units.Mi:] = self.some_data()[2 * units.Mi:]
        self.fill(self.path(volume.name), data, fmt)
        backup = self.back_up(volume, parent)
        self.fill(self.path(volume.name), base.noise(SIZE), fmt)
        self.restore(backup, volume, volume_is_new=False)
        self.assertEqual(bytes(data), self.contents_of(volume))

    def connected(self):
        """What connect_volume returns from now on, in a list."""
        devices = []
        connect = connector.LustreConnector.connect_volume

        def spy(*args):
            devices.append(connect(*args))
            return devices[-1]

        self.useFixture(fixtures.MockPatchObject(
            connector.LustreConnector, 'connect_volume', spy))
        return devices

    @ddt.data('raw', 'qcow2')
    def test_volume_is_closed_afterwards(self, fmt):
        devices = self.connected()
        volume = self.new_volume(fmt, self.some_data())
        self.restore(self.back_up(volume), volume, volume_is_new=False)
        self.assertEqual([True, True],
                         [device['path'].closed for device in devices])

    def test_data_that_may_be_lost_fails_a_restore(self):
        backup = self.back_up(self.new_volume('qcow2', self.some_data()))
        stop = qemu_nbd.Server.stop
        with mock.patch.object(qemu_nbd.Server, 'stop',
                               lambda server: stop(server) or 1):
            error = self.assertRaises(OSError, self.restore, backup,
                                      self.new_volume('qcow2'), True)
        self.assertIn('exit code 1', str(error))

    def test_settings(self):
        for name, value in (('lustre_development_fstypes', ['ext4']),
                            ('lustre_mount_options', 'flock,user_xattr'),
                            ('lustre_mount_timeout', 7),
                            ('lustre_operation_timeout', 8)):
            self.override_config(name, value, group='backend_defaults')
        self.new_manager()
        self.assertEqual(
            {'development_fstypes': ('ext4',),
             'lustre_mount_options': 'flock,user_xattr',
             'lustre_mount_timeout': 7},
            connector.LustreConnector.client_settings)
        self.assertEqual(8, connector.LustreConnector.operation_timeout)
