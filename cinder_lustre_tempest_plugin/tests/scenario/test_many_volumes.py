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


"""Many volumes at once, of one source and of many."""

from tempest import config
from tempest.lib import decorators

from cinder_lustre_tempest_plugin.tests import base

CONF = config.CONF


class ManyVolumesTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'snapshot', 'clone')

    @decorators.idempotent_id('520f4f57-f732-468f-a04b-16e063875a83')
    def test_many_of_one_image_and_one_snapshot(self):
        expected = self.new_content()
        image = self.create_image(expected.stream())
        count = CONF.lustre.volume_count
        volumes = self.create_many([{'imageRef': image}] * count)
        snapshot = self.create_snapshot(volumes[0])
        copies = self.create_many([{'snapshot_id': snapshot}] * count)
        self.delete_snapshot(snapshot)
        self.delete_many(volumes)
        for copy in copies[::2]:
            self.check_volume(copy, expected)
        self.delete_many(copies)

    @decorators.idempotent_id('8802106d-ad04-4f65-8bfe-c896c1f5581a')
    def test_many_clones_of_one_volume_and_of_each_other(self):
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        clones = self.create_many(
            [{'source_volid': volume}] * CONF.lustre.volume_count)
        seconds = self.create_many(
            [{'source_volid': clone} for clone in clones])
        self.delete_many([volume, *clones])
        for second in seconds[::2]:
            self.check_volume(second, expected)


class ManyVolumesQcow2Test(ManyVolumesTest):
    volume_format = 'qcow2'
