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


"""What cannot become a volume ends with an error, and with no volume."""

from tempest.common import waiters
from tempest import exceptions as tempest_exceptions
from tempest.lib import decorators
from tempest.lib import exceptions

from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin.tests import base


class BadInputTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('auth', 'use_dynamic_credentials')

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('8bc729fa-bb68-46cd-b267-cdb9ca7e1bf6')
    def test_volume_larger_than_the_share(self):
        size = 1 + max(self._limit(each) for each in self.pools.values())
        self.os_admin.volume_quotas_client_latest.update_quota_set(
            self.volumes.project_id, per_volume_gigabytes=-1)
        self._expect_error(size=size)

    @staticmethod
    def _limit(pool):
        """The size that no new volume of a pool can have, in GiB."""
        ratio = pool.get('max_over_subscription_ratio') or 1
        # Above what "auto" may come to.
        ratio = 1000 if ratio == 'auto' else max(1, float(ratio))
        return int(float(pool['total_capacity_gb']) * ratio)

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('2c8e38e4-9e4f-4b78-ba51-59a598762a15')
    def test_image_larger_than_the_volume(self):
        image = self.create_image(content.qcow2(2 * content.GIB),
                                  disk_format='qcow2')
        self._expect_error(imageRef=image)
        self.check_volume(self.create_volume(2, imageRef=image),
                          content.Content(0), 2)

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('275a8a37-60ce-430a-bc35-cd665b7120f8')
    def test_image_with_backing_file(self):
        self._expect_refusal(content.qcow2(content.GIB, '/etc/passwd'))

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('315eabfd-3fbd-441e-a70b-4bb1c9a38b94')
    def test_image_with_data_file(self):
        self._expect_refusal(content.qcow2(content.GIB,
                                           data_file='/etc/passwd'))

    @decorators.attr(type=['negative'])
    @decorators.idempotent_id('70364edb-73a6-4579-ac47-54af6896a448')
    def test_image_of_other_format_than_it_says(self):
        """An image in qcow2 that is called raw is not opened as qcow2."""
        self._expect_refusal(content.qcow2(content.GIB, '/etc/passwd'),
                             disk_format='raw')

    def _expect_refusal(self, data, disk_format='qcow2'):
        """See that Glance refuses an image, or else Cinder."""
        try:
            # Glance does not look into this container, as into a bare image.
            image = self.create_image(data, disk_format=disk_format,
                                      container_format='ovf')
        except (exceptions.BadRequest, exceptions.InvalidContentType,
                exceptions.UnexpectedContentType, exceptions.Conflict):
            return
        self._expect_error(imageRef=image)

    def _expect_error(self, size=1, **source):
        """See that no volume comes of a request, but a reason."""
        try:
            volume = self.create_volume(size, wait=False, **source)
        except exceptions.BadRequest:
            # The API itself has seen it.
            return
        self.assertRaises(
            tempest_exceptions.VolumeResourceBuildErrorException,
            waiters.wait_for_volume_resource_status, self.volumes, volume,
            'available')
        self.delete_volume(volume)
