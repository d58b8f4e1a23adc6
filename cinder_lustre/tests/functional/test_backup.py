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

"""Backup: which volume cinder-backup gets to read."""

from cinder.tests.unit import utils as test_utils
import ddt

from cinder_lustre.tests.functional import base


@ddt.ddt
class BackupTestCase(base.FunctionalTestCase):

    def make_backup(self, volume, **values):
        return test_utils.create_backup(self.context, volume.id, **values)

    def get_device(self, backup):
        device, is_snapshot = self.driver.get_backup_device(self.context,
                                                            backup)
        self.assertFalse(is_snapshot)
        return device

    def test_volume(self):
        volume = self.create_volume()
        self.assertEqual(volume.id,
                         self.get_device(self.make_backup(volume)).id)

    @ddt.data('raw', 'qcow2')
    def test_snapshot(self, fmt):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        snapshot = self.create_snapshot(volume)
        self.write(volume, seed=1, over=content)
        backup = self.make_backup(volume, snapshot_id=snapshot.id)
        device = self.get_device(backup)
        self.assertNotEqual(volume.id, device.id)
        self.assert_content(content, device)
        self.delete_volume(device)
