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


"""Backups, full and incremental, restored to new and to old volumes."""

from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base


class BackupTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'backup')

    @decorators.idempotent_id('9822d31f-ebf2-401e-b1b4-b7eae56fd7ed')
    def test_restore_to_new_and_existing_volume(self):
        """All of a volume comes back, also its zeros at the end."""
        expected, other = self.new_content(), self.new_content(longer=True)
        volume = self.create_volume_with(expected)
        backup = self.create_backup(volume)
        existing = self.create_volume_with(other)
        self.delete_volume(volume)
        self.check_volume(self.restore(backup), expected)
        self.restore(backup, volume_id=existing)
        self.check_volume(existing, expected)

    @decorators.idempotent_id('e6a79174-8681-488f-b016-c7a372e043e6')
    def test_backup_of_snapshot(self):
        self.skip_unless('volume_feature_enabled', 'snapshot')
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        snapshot = self.create_snapshot(volume)
        backup = self.create_backup(volume, snapshot_id=snapshot)
        self.delete_snapshot(snapshot)
        self.check_volume(self.restore(backup), expected)


class BackupQcow2Test(BackupTest):
    volume_format = 'qcow2'


class IncrementalBackupTest(base.LustreTest):
    volume_min_microversion = '3.68'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'backup')
        # Only so is there new content without a server.
        cls.skip_unless('lustre', 'reimage')

    @decorators.idempotent_id('16d2f3d6-bac7-4481-8403-eda7d6b4561b')
    def test_incremental(self):
        """Each backup of a chain has what the volume had at its time."""
        contents = [self.new_content()]
        volume = self.create_volume_with(contents[0])
        backups = [self.create_backup(volume)]
        for part in (0, 1):
            contents.append(contents[-1].changed(part))
            self._reimage(volume, contents[-1])
            backups.append(self.create_backup(volume, incremental=True))
        target = self.create_volume()
        for expected, backup in reversed(list(zip(contents, backups))):
            self.restore(backup, volume_id=target)
            self.check_volume(target, expected)
            self.delete_backup(backup)

    def _reimage(self, volume, expected):
        image = self.create_image(expected.stream())
        self.reimage(volume, image)
        self.delete_image(image)


class IncrementalBackupQcow2Test(IncrementalBackupTest):
    volume_format = 'qcow2'
