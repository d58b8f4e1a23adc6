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


"""A volume that another project takes over."""

from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base


class TransferTest(base.LustreTest):
    credentials = ['primary', 'alt', 'admin']

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        cls.transfers = cls.os_primary.volume_transfers_client_latest
        cls.alt_transfers = cls.os_alt.volume_transfers_client_latest
        cls.alt_volumes = cls.os_alt.volumes_client_latest

    @decorators.idempotent_id('4c0f2001-42aa-4e84-80e5-c381980de4cd')
    def test_transfer(self):
        """The new owner reads and deletes it; the old one has lost it."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        transfer = self.transfers.create_volume_transfer(
            volume_id=volume, name=self.random_name('transfer'))['transfer']
        self.addCleanup(self.delete_volume, volume, self.admin_volumes)
        self.wait_for_volume(volume, 'awaiting-transfer')
        self.alt_transfers.accept_volume_transfer(
            transfer['id'], auth_key=transfer['auth_key'])
        self.wait_for_volume(volume, volumes=self.alt_volumes)
        self.assertTrue(self.volumes.is_resource_deleted(volume))
        self.check_volume(volume, expected, volumes=self.alt_volumes,
                          images=self.os_alt.image_client_v2)
        self.delete_volume(volume, self.alt_volumes)
