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


"""Volumes that change their type or their backend, with their data."""

from tempest.common import waiters
from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base


class RetypeMixin:

    def retype(self, volume, new_type, policy='never'):
        self.admin_volumes.retype_volume(volume, new_type=new_type,
                                         migration_policy=policy)
        waiters.wait_for_volume_retype(self.volumes, volume, new_type)
        self.wait_for_volume(volume)


class RetypeTest(RetypeMixin, base.LustreTest):
    other_format = 'qcow2'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless_format(cls.other_format)

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        cls.other_type = cls.create_type(cls.other_format)
        cls.thick_type = cls.create_type(**{'provisioning:type': 'thick'})

    @decorators.idempotent_id('c07c1ab3-4b35-4bee-814e-c8425502e650')
    def test_retype_to_other_format_and_back(self):
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        for new_type in (self.other_type, self.volume_type):
            self.retype(volume, new_type)
            self.check_volume(volume, expected)

    @decorators.idempotent_id('fce5dfaf-553e-4096-9c3a-9fa7a4082c28')
    def test_retype_to_thick_and_back(self):
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        for new_type in (self.thick_type, self.volume_type):
            self.retype(volume, new_type)
            self.check_volume(volume, expected)


class RetypeQcow2Test(RetypeTest):
    volume_format = 'qcow2'
    other_format = 'raw'


class MigrationTest(RetypeMixin, base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'migration')

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        names = sorted({capabilities['volume_backend_name']
                        for capabilities in cls.pools.values()})
        if len(names) < 2:
            raise cls.skipException('there is one backend on Lustre, and a '
                                    'migration needs two')
        cls.types = [cls.create_type(volume_backend_name=name)
                     for name in names[:2]]

    def backend_of(self, volume):
        shown = self.admin_volumes.show_volume(volume)['volume']
        return shown['os-vol-host-attr:host']

    @decorators.idempotent_id('e06bf08c-d396-4564-813a-727c92c9a1c9')
    def test_migrate_there_and_back(self):
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        source = self.backend_of(volume)
        target = next(name for name, capabilities in self.pools.items()
                      if capabilities['volume_backend_name'] !=
                      self.pools[source]['volume_backend_name'])
        for host in (target, source):
            self.admin_volumes.migrate_volume(volume, host=host)
            waiters.wait_for_volume_migration(self.admin_volumes, volume,
                                              host)
            self.wait_for_volume(volume)
            self.check_volume(volume, expected)
        self.check_volume(self.create_volume(source_volid=volume), expected)

    @decorators.idempotent_id('e754b388-9f07-471f-ba5a-53c55683776d')
    def test_retype_with_migration_there_and_back(self):
        expected = self.new_content()
        volume = self.create_volume_with(expected, volume_type=self.types[0])
        for new_type in reversed(self.types):
            before = self.backend_of(volume)
            self.retype(volume, new_type, 'on-demand')
            self.assertNotEqual(before, self.backend_of(volume))
            self.check_volume(volume, expected)


class MigrationQcow2Test(MigrationTest):
    volume_format = 'qcow2'
