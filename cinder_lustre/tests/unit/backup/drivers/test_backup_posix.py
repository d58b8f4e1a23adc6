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

"""Cinder's own tests of the posix backup driver, run against this one.

Those that look at mocked calls of the operating system, which happen in a
child here, have a test of the same name with real files in their place.
"""

import os
import stat

from cinder import exception
from cinder.tests.unit.backup.drivers import test_backup_posix
import fixtures
from oslo_config import cfg

from cinder_lustre.backup.drivers import lustre
from cinder_lustre.brick import client
from cinder_lustre import share

CONF = cfg.CONF
SHARE = '10.0.2.15@tcp:/backups/cinder'


class LustreBackupDriverMixin:
    """Puts a driver with a directory in place of the share."""

    def make_driver(self):
        self.base = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MockPatchObject(
            client.LustreRemoteFsClient, 'mount'))
        self.override_config('lustre_backup_share', SHARE)
        self.override_config('lustre_backup_mount_point_base', self.base)
        driver = lustre.LustreBackupDriver(self.ctxt)
        os.makedirs(driver.backup_path)
        return driver


class LustrePosixTestCase(LustreBackupDriverMixin,
                          test_backup_posix.PosixBackupDriverTestCase):

    def setUp(self):
        super().setUp()
        self.driver = self.make_driver()
        self.path = self.driver.backup_path
        # Cinder's tests compare paths with this one.
        self.driver.backup_path = test_backup_posix.FAKE_BACKUP_POSIX_PATH

    def in_share(self):
        self.driver.backup_path = self.path
        return os.path.join(self.path, test_backup_posix.FAKE_CONTAINER)

    def test_init(self):
        self.assertEqual(share.Share.parse(SHARE).mount_point(self.base),
                         self.path)

    def test_put_container(self):
        path = self.in_share()
        self.driver.put_container(test_backup_posix.FAKE_CONTAINER)
        self.assertEqual(0o770, stat.S_IMODE(os.stat(path).st_mode))

    def test_put_container_disabled(self):
        self.in_share()
        self.driver.backup_create_containers = False
        error = self.assertRaises(
            exception.BackupDriverException, self.driver.put_container, 'new')
        self.assertIn(os.path.join(self.path, 'new'), str(error))
        self.assertEqual([], os.listdir(self.path))

    def test_put_container_already_exists(self):
        path = self.in_share()
        os.makedirs(path, mode=0o700)
        for may_create in (True, False):
            self.driver.backup_create_containers = may_create
            self.driver.put_container(test_backup_posix.FAKE_CONTAINER)
        self.assertEqual(0o700, stat.S_IMODE(os.stat(path).st_mode))

    def test_put_container_exception(self):
        path = os.path.dirname(self.in_share())
        with open(path, 'w'):
            pass
        error = self.assertRaises(
            exception.BackupDriverException, self.driver.put_container,
            test_backup_posix.FAKE_CONTAINER)
        self.assertIn(path, str(error))

    def test_get_object_writer(self):
        path = self.in_share()
        os.makedirs(path)
        with self.driver.get_object_writer(
                test_backup_posix.FAKE_CONTAINER, 'object') as writer:
            writer.write(b'con')
            writer.write(b'tent')
            self.assertEqual([], os.listdir(path))
        path = os.path.join(path, 'object')
        self.assertEqual(0o660, stat.S_IMODE(os.stat(path).st_mode))
        with open(path, 'rb') as stream:
            self.assertEqual(b'content', stream.read())


class LustrePosixWithDataTestCase(LustreBackupDriverMixin,
                                  test_backup_posix.PosixBackupTestWithData):

    def setUp(self):
        super().setUp()
        self.driver = self.make_driver()
