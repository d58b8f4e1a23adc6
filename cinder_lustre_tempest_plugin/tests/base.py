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


"""What all tests share: a volume type, resources that are cleaned up, waits.

Only public APIs are used. Data go into volumes as images or by a guest, and
come out as images.
"""

import io

from tempest.common import waiters
from tempest import config
from tempest.lib.common import api_version_utils
from tempest.lib.common.utils import data_utils
from tempest.lib.common.utils import test_utils
from tempest.lib import exceptions
from tempest import test

from cinder_lustre_tempest_plugin import content

CONF = config.CONF


class LustreTest(api_version_utils.BaseMicroversionTest, test.BaseTestCase):
    """The base of all tests; each class works with volumes of one format."""

    credentials = ['primary', 'admin']
    volume_format = 'raw'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        for service in ('cinder', 'glance'):
            if not getattr(CONF.service_available, service):
                raise cls.skipException(f'[service_available] {service} is '
                                        f'off: the tests need it')
        cls.skip_unless_format(cls.volume_format)
        api_version_utils.check_skip_with_microversion(
            cls.volume_min_microversion, cls.volume_max_microversion,
            CONF.volume.min_microversion, CONF.volume.max_microversion)

    @classmethod
    def skip_unless(cls, group, *options):
        """Skip the class unless options of a group are on."""
        for option in options:
            if not getattr(getattr(CONF, group), option):
                raise cls.skipException(
                    f'[{group.replace("_", "-")}] {option} is off')

    @classmethod
    def skip_unless_format(cls, volume_format):
        if volume_format not in CONF.lustre.volume_formats:
            raise cls.skipException(f'[lustre] volume_formats is without '
                                    f'{volume_format}')

    @classmethod
    def setup_credentials(cls):
        cls.set_network_resources()
        super().setup_credentials()

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        cls.volumes = cls.os_primary.volumes_client_latest
        cls.snapshots = cls.os_primary.snapshots_client_latest
        cls.backups = cls.os_primary.backups_client_latest
        cls.images = cls.os_primary.image_client_v2
        cls.admin_volumes = cls.os_admin.volumes_client_latest
        cls.admin_types = cls.os_admin.volume_types_client_latest
        cls.lustre = cls.os_primary.lustre_volume_v3.LustreVolumeClient()
        cls.admin_lustre = (
            cls.os_admin.lustre_volume_v3.LustreVolumeClient())

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        select = api_version_utils.select_request_microversion
        cls.setup_api_microversion_fixture(
            volume_microversion=select(cls.volume_min_microversion,
                                       CONF.volume.min_microversion),
            compute_microversion=select(cls.min_microversion,
                                        CONF.compute.min_microversion))
        if CONF.auth.use_dynamic_credentials:
            # The project is the class's own, and goes with it.
            quotas = cls.os_admin.volume_quotas_client_latest
            quotas.update_quota_set(
                cls.volumes.project_id, volumes=-1, snapshots=-1,
                gigabytes=-1, backups=-1, backup_gigabytes=-1)
            cls.addClassResourceCleanup(quotas.delete_quota_set,
                                        cls.volumes.project_id)
        cls.pools = cls.lustre_pools()
        if not cls.pools:
            raise cls.skipException('no backend reports the protocol lustre')
        cls.volume_type = cls.create_type()

    @classmethod
    def lustre_pools(cls):
        """The pools that are on Lustre: name to capabilities."""
        client = cls.os_admin.volume_scheduler_stats_client_latest
        return {pool['name']: pool['capabilities']
                for pool in client.list_pools(detail=True)['pools']
                if pool['capabilities'].get('storage_protocol') == 'lustre'}

    @classmethod
    def create_type(cls, volume_format=None, encrypted=False, **specs):
        """A volume type for the class; returns its name."""
        kind = cls.admin_types.create_volume_type(
            name=cls.random_name('type'), extra_specs={
                'storage_protocol': 'lustre',
                'lustre:format': volume_format or cls.volume_format,
                **specs})['volume_type']
        cls.addClassResourceCleanup(
            cls.remove, cls.admin_types, kind['id'],
            cls.admin_types.delete_volume_type)
        cls.addClassResourceCleanup(cls.remove_cached, kind['name'])
        if encrypted:
            client = cls.os_admin.encryption_types_client_latest
            client.create_encryption_type(
                kind['id'], provider='luks', cipher='aes-xts-plain64',
                key_size=256, control_location='front-end')
        return kind['name']

    @classmethod
    def remove_cached(cls, volume_type):
        """Delete what Cinder's image cache has of a type.

        It keeps volumes of images that are gone, and the type with them.
        """
        for volume in cls.admin_volumes.list_volumes(
                detail=True, params={'all_tenants': 1})['volumes']:
            if (volume['volume_type'] == volume_type and
                    volume['name'].startswith('image-')):
                try:
                    cls.remove(cls.admin_volumes, volume['id'],
                               cls.admin_volumes.delete_volume)
                except exceptions.BadRequest:
                    # The cache itself is deleting it.
                    cls.admin_volumes.wait_for_resource_deletion(volume['id'])

    @classmethod
    def random_name(cls, what):
        return data_utils.rand_name(f'{cls.__name__}-{what}',
                                    prefix=CONF.resource_name_prefix)

    @staticmethod
    def remove(client, resource_id, delete):
        """Delete a resource unless it has gone, and wait until it has."""
        test_utils.call_and_ignore_notfound_exc(delete, resource_id)
        client.wait_for_resource_deletion(resource_id)

    # Resources

    def new_content(self, longer=False):
        """New data; longer ones leave a trace where zeros are not written."""
        return content.Content(CONF.lustre.data_size + (8 if longer else 0))

    def create_image(self, data, images=None, **properties):
        """An image with data: bytes, or what can be read."""
        images = images or self.images
        image = images.create_image(**{
            'name': self.random_name('image'), 'disk_format': 'raw',
            'container_format': 'bare', **properties})
        self.addCleanup(self.delete_image, image['id'], images)
        images.store_image_file(
            image['id'], io.BytesIO(data) if isinstance(data, bytes)
            else data)
        waiters.wait_for_image_status(images, image['id'], 'active')
        return image['id']

    def delete_image(self, image_id, images=None):
        images = images or self.images
        self.remove(images, image_id, images.delete_image)

    def create_volume(self, size=1, wait=True, volumes=None, **source):
        """A volume of the class's type.

        :param size: in GiB
        :returns: its id
        """
        volumes = volumes or self.volumes
        volume = volumes.create_volume(
            size=size, name=self.random_name('volume'),
            **{'volume_type': self.volume_type, **source})['volume']['id']
        self.addCleanup(self.delete_volume, volume, volumes)
        if wait:
            self.wait_for_volume(volume, volumes=volumes)
        return volume

    def create_many(self, sources, size=1):
        """Volumes made at once, one for each source; returns their ids."""
        volumes = [self.create_volume(size, wait=False, **source)
                   for source in sources]
        for volume in volumes:
            self.wait_for_volume(volume)
        return volumes

    def delete_many(self, volumes):
        """Delete volumes at once, and wait until all are gone."""
        for volume in volumes:
            self.volumes.delete_volume(volume)
        for volume in volumes:
            self.volumes.wait_for_resource_deletion(volume)

    def delete_volume(self, volume, volumes=None):
        volumes = volumes or self.volumes
        self.remove(volumes, volume, volumes.delete_volume)

    def wait_for_volume(self, volume, status='available', volumes=None):
        waiters.wait_for_volume_resource_status(
            volumes or self.volumes, volume, status)

    def create_snapshot(self, volume, **options):
        snapshot = self.snapshots.create_snapshot(
            volume_id=volume, name=self.random_name('snapshot'),
            **options)['snapshot']['id']
        self.addCleanup(self.delete_snapshot, snapshot)
        waiters.wait_for_volume_resource_status(self.snapshots, snapshot,
                                                'available')
        return snapshot

    def delete_snapshot(self, snapshot):
        self.remove(self.snapshots, snapshot, self.snapshots.delete_snapshot)

    def create_backup(self, volume, **options):
        backup = self.backups.create_backup(
            volume_id=volume, name=self.random_name('backup'),
            **options)['backup']['id']
        self.addCleanup(self.delete_backup, backup)
        waiters.wait_for_volume_resource_status(self.backups, backup,
                                                'available')
        self.wait_for_volume(volume)
        return backup

    def delete_backup(self, backup):
        self.remove(self.backups, backup, self.backups.delete_backup)

    def restore(self, backup, **target):
        """Restore a backup into volume_id.

        Without, it is a new volume, of the type that the cloud gives to
        volumes for which none was asked.
        """
        volume = self.backups.restore_backup(
            backup, **target)['restore']['volume_id']
        if 'volume_id' not in target:
            self.addCleanup(self.delete_volume, volume)
        waiters.wait_for_volume_resource_status(self.backups, backup,
                                                'available')
        self.wait_for_volume(volume)
        return volume

    def create_history(self, count):
        """A volume whose snapshots differ from each other, and from it.

        Backups are what can be written to a volume that has snapshots.

        :returns: the volume, its snapshots, and the contents of all, the
            volume's last
        """
        contents = [self.new_content(longer=number % 2)
                    for number in range(count + 1)]
        backups = [self.create_backup(self.create_volume_with(each))
                   for each in contents]
        volume, snapshots = self.create_volume(), []
        for backup in backups[:-1]:
            self.restore(backup, volume_id=volume)
            snapshots.append(self.create_snapshot(volume))
        self.restore(backups[-1], volume_id=volume)
        return volume, snapshots, contents

    def extend(self, volume, size, status='available'):
        self.volumes.extend_volume(volume, new_size=size)
        self.wait_for_volume(volume, status)

    def revert(self, volume, snapshot):
        self.lustre.revert_to_snapshot(volume, snapshot)
        self.wait_for_volume(volume)
        # The volume is free before its snapshot is.
        waiters.wait_for_volume_resource_status(self.snapshots, snapshot,
                                                'available')

    def reimage(self, volume, image):
        self.lustre.reimage(volume, image)
        self.wait_for_volume(volume)

    # Data

    def upload(self, volume, disk_format='raw', volumes=None, images=None):
        """Make an image of a volume; returns its id."""
        volumes, images = volumes or self.volumes, images or self.images
        status = volumes.show_volume(volume)['volume']['status']
        image = volumes.upload_volume(
            volume, image_name=self.random_name('upload'), force=True,
            disk_format=disk_format)['os-volume_upload_image']['image_id']
        self.addCleanup(self.delete_image, image, images)
        waiters.wait_for_image_status(images, image, 'active')
        self.wait_for_volume(volume, status, volumes)
        return image

    def check_image(self, image, expected, size, images=None):
        """Download an image and see what is in it."""
        images = images or self.images
        answer = images.show_image_file(image, chunked=True)
        try:
            found = content.digest_of(answer, 'sha256')
        finally:
            answer.release_conn()
        self.assertEqual((expected.digest('sha256', size),
                          size * content.GIB), found)

    def check_volume(self, volume, expected, size=1, volumes=None,
                     images=None):
        """See through Glance's checksum what a volume has in it.

        :param size: which it must have, in GiB
        """
        images = images or self.images
        image = self.upload(volume, volumes=volumes, images=images)
        shown = images.show_image(image)
        self.assertEqual(size * content.GIB, shown['size'])
        self.assertEqual(expected.digest(shown['os_hash_algo'], size),
                         shown['os_hash_value'],
                         f'volume {volume} has other content')
        self.delete_image(image, images)

    def create_volume_with(self, expected, size=1, **options):
        """A volume with content, by way of an image."""
        image = self.create_image(expected.stream())
        volume = self.create_volume(size, imageRef=image, **options)
        self.delete_image(image)
        return volume
