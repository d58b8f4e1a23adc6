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

"""Statistics: what the scheduler is told."""

import os

from oslo_utils import units

from cinder_lustre.tests.functional import base


class StatisticsTestCase(base.FunctionalTestCase):

    def test_statistics(self):
        self.create_volume(1)
        self.create_volume(2, fmt='qcow2')
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('lustre', stats['volume_backend_name'])
        self.assertEqual('lustre', stats['storage_protocol'])
        self.assertEqual('up', stats['backend_state'])
        self.assertEqual(self.driver.get_version(), stats['driver_version'])
        self.assertEqual(3, stats['provisioned_capacity_gb'])
        for feature in ('thin_provisioning_support', 'sparse_copy_volume',
                        'thick_provisioning_support',
                        'online_extend_support'):
            self.assertIs(True, stats[feature], feature)

    def test_capacity(self):
        found = os.statvfs(self.site.path)
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(found.f_blocks * found.f_frsize,
                         stats['total_capacity_gb'] * units.Gi)
        # Other tests use the file system, too.
        self.assertGreater(stats['free_capacity_gb'], 0)
        self.assertLess(stats['free_capacity_gb'],
                        stats['total_capacity_gb'])

    def test_two_shares(self):
        one = self.driver.get_volume_stats(refresh=True)
        other = self.make_site()
        driver = self.make_driver(self.site.share, other.share)
        both = driver.get_volume_stats(refresh=True)
        self.assertEqual(2 * one['total_capacity_gb'],
                         both['total_capacity_gb'])

    def test_statistics_are_kept(self):
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(stats, self.driver.get_volume_stats(refresh=False))
