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


"""Quotas: what exceeds one is refused, and nothing stays behind."""

from tempest.lib import decorators
from tempest.lib import exceptions

from cinder_lustre_tempest_plugin.tests import base


class QuotaTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('auth', 'use_dynamic_credentials')
        cls.skip_unless('volume_feature_enabled', 'snapshot')

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        cls.os_admin.volume_quotas_client_latest.update_quota_set(
            cls.volumes.project_id, volumes=2, snapshots=1, gigabytes=3)

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('bbdbcf37-69aa-4e33-9eae-10f5bb6e497c')
    def test_over_each_quota(self):
        volume = self.create_volume()
        self.create_snapshot(volume)
        for refused in (
                lambda: self.create_snapshot(volume),
                lambda: self.create_volume(3),
                lambda: self.extend(volume, 3)):
            self.assertRaises(exceptions.OverLimit, refused)
        self.create_volume()
        self.assertRaises(exceptions.OverLimit, self.create_volume)
        shown = self.volumes.show_volume(volume)['volume']
        self.assertEqual(('available', 1), (shown['status'], shown['size']))
