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


"""Volumes that leave Cinder's database, and come back with their data."""

from tempest.common import waiters
from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base


class ManageTest(base.LustreTest):
    volume_min_microversion = '3.8'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'manage')

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        cls.admin_manage = cls.os_admin.volume_manage_client_latest
        cls.admin_snapshots = cls.os_admin.snapshots_client_latest
        cls.admin_snapshot_manage = cls.os_admin.snapshot_manage_client_latest

    def manageable(self, kind, host):
        return self.admin_lustre.list_manageable(kind, host)[
            f'manageable-{kind}']

    def host_of(self, volume):
        return self.admin_volumes.show_volume(volume)['volume'][
            'os-vol-host-attr:host']

    def unmanage(self, volume):
        self.admin_volumes.unmanage_volume(volume)
        self.volumes.wait_for_resource_deletion(volume)

    def manage(self, host, reference):
        """Manage a volume, as the administrator's; returns its id."""
        volume = self.admin_manage.manage_volume(
            host=host, ref=reference, volume_type=self.volume_type,
            name=self.random_name('managed'))['volume']['id']
        self.addCleanup(self.delete_volume, volume, self.admin_volumes)
        self.wait_for_volume(volume, volumes=self.admin_volumes)
        return volume

    def check_managed(self, volume, expected):
        self.check_volume(volume, expected, volumes=self.admin_volumes,
                          images=self.os_admin.image_client_v2)

    @decorators.idempotent_id('60cd5d86-061c-41ad-9880-328bd7d6bb1b')
    def test_unmanage_and_manage(self):
        """What is unmanaged is offered, and is the same volume again."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        host = self.host_of(volume)
        reference, = (entry['reference']
                      for entry in self.manageable('volumes', host)
                      if entry['cinder_id'] == volume)
        self.unmanage(volume)
        entry, = (entry for entry in self.manageable('volumes', host)
                  if entry['reference'] == reference)
        self.assertTrue(entry['safe_to_manage'], entry)
        managed = self.manage(host, reference)
        self.check_managed(managed, expected)

    @decorators.idempotent_id('14ad9897-8df0-4ba0-adad-269a5ae14e74')
    def test_unmanage_and_manage_snapshot(self):
        """A snapshot without a name keeps its data for a new name."""
        self.skip_unless('volume_feature_enabled', 'snapshot')
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        host = self.host_of(volume)
        snapshot = self.create_snapshot(volume)
        reference, = (entry['reference']
                      for entry in self.manageable('snapshots', host)
                      if entry['cinder_id'] == snapshot)
        self.admin_snapshots.unmanage_snapshot(snapshot)
        self.snapshots.wait_for_resource_deletion(snapshot)
        managed = self.admin_snapshot_manage.manage_snapshot(
            volume_id=volume, ref=reference,
            name=self.random_name('managed'))['snapshot']['id']
        self.addCleanup(self.remove, self.admin_snapshots, managed,
                        self.admin_snapshots.delete_snapshot)
        waiters.wait_for_volume_resource_status(self.admin_snapshots,
                                                managed, 'available')
        self.check_managed(
            self.create_volume(snapshot_id=managed,
                               volumes=self.admin_volumes), expected)


class ManageQcow2Test(ManageTest):
    volume_format = 'qcow2'
