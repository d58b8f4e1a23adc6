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


"""Snapshots that are deleted in every order, with volumes made of them."""

from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base


class SnapshotTreeTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'snapshot', 'clone',
                        'backup')

    def _delete_in_order(self, *order):
        """Delete three snapshots; each has a volume, that has a snapshot."""
        volume, snapshots, contents = self.create_history(3)
        copies = [self.create_volume(snapshot_id=snapshot)
                  for snapshot in snapshots]
        branch = self.create_snapshot(copies[1])
        for number in order:
            self.delete_snapshot(snapshots[number])
        for each, expected in zip((*copies, volume), contents):
            self.check_volume(each, expected)
        self.delete_volume(volume)
        leaf = self.create_volume(snapshot_id=branch)
        self.delete_snapshot(branch)
        for copy in copies:
            self.delete_volume(copy)
        self.check_volume(leaf, contents[1])

    @decorators.idempotent_id('f5f487d6-552e-4cd0-91b6-13ec0669d892')
    def test_first_to_last(self):
        self._delete_in_order(0, 1, 2)

    @decorators.idempotent_id('2ed4a61d-d4e8-44c7-88b9-cc7ed3e308d7')
    def test_first_last_middle(self):
        self._delete_in_order(0, 2, 1)

    @decorators.idempotent_id('f8dc1e2f-c652-4c5d-aeea-113455d32e7b')
    def test_middle_first_last(self):
        self._delete_in_order(1, 0, 2)

    @decorators.idempotent_id('2ce9f83b-4bcc-4a22-bd5a-8cd9e9e8a6ae')
    def test_middle_last_first(self):
        self._delete_in_order(1, 2, 0)

    @decorators.idempotent_id('ff02244e-ca42-4b6f-8437-ab1e4038bf5e')
    def test_last_first_middle(self):
        self._delete_in_order(2, 0, 1)

    @decorators.idempotent_id('25f84477-6b18-411b-94ad-6407904e1881')
    def test_last_to_first(self):
        self._delete_in_order(2, 1, 0)

    @decorators.idempotent_id('aa44be15-ce4d-4210-88b0-62f6efff21fc')
    def test_cascade(self):
        """A volume goes with its snapshots; what was made of them stays."""
        volume, snapshots, contents = self.create_history(3)
        copy = self.create_volume(snapshot_id=snapshots[1])
        self.volumes.delete_volume(volume, cascade=True)
        self.volumes.wait_for_resource_deletion(volume)
        self.check_volume(copy, contents[1])


class SnapshotTreeQcow2Test(SnapshotTreeTest):
    volume_format = 'qcow2'
