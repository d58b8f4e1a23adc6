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

"""Images: into volumes, and out of them."""

import itertools
import os

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites

FORMATS = ('raw', 'qcow2')
LITTLE = 16 * units.Mi


@ddt.ddt
class ImagesTestCase(base.FunctionalTestCase):

    def make_image(self, disk_format, size=64 * units.Mi):
        """Make an image with data.

        :returns: its metadata and its Content
        """
        content = base.Content(size)
        content.scatter()
        raw = os.path.join(self.directory, 'raw')
        with open(raw, 'wb') as stream:
            stream.truncate(size)
            content.write(stream)
        image = self.images.add(disk_format)
        sites.command('qemu-img', 'convert', '-f', 'raw', '-O', disk_format,
                      raw, self.images.path(image))
        os.unlink(raw)
        return image, content

    def download(self, volume, image):
        self.driver.copy_image_to_volume(
            self.context, self.load(volume), self.images, image['id'])

    @ddt.idata(itertools.product(FORMATS, FORMATS))
    @ddt.unpack
    def test_image_to_volume(self, disk_format, fmt):
        volume = self.create_volume(fmt=fmt)
        image, content = self.make_image(disk_format)
        self.download(volume, image)
        self.assert_content(content.grown(units.Gi), volume)
        self.assertLess(self.allocated(volume), LITTLE)
        self.assertEqual(fmt, self.connection(volume)['data']['format'])

    def test_image_to_thick_volume(self):
        volume = self.create_volume(provisioning='thick')
        image, content = self.make_image('qcow2')
        self.download(volume, image)
        self.assert_content(content.grown(units.Gi), volume)
        self.assertGreaterEqual(self.allocated(volume), units.Gi)

    def test_image_as_large_as_the_volume(self):
        volume = self.create_volume()
        image, content = self.make_image('qcow2', units.Gi)
        self.download(volume, image)
        self.assert_content(content, volume)

    def test_image_that_is_too_large(self):
        volume = self.create_volume()
        content = self.write(volume)
        before = self.site.listing()
        image, _content = self.make_image('qcow2', units.Gi + units.Mi)
        self.assertRaises(exception.ImageUnacceptable, self.download,
                          volume, image)
        self.assertEqual(before, self.site.listing())
        self.assert_content(content, volume)

    def test_image_that_is_no_image(self):
        volume = self.create_volume()
        content = self.write(volume)
        before = self.site.listing()
        image = self.images.add('qcow2')
        with open(self.images.path(image), 'wb') as stream:
            stream.write(b'junk' * 4096)
        self.assertRaises(exception.ImageUnacceptable, self.download,
                          volume, image)
        self.assertEqual(before, self.site.listing())
        self.assert_content(content, volume)

    def test_image_to_volume_with_snapshots(self):
        volume = self.create_volume()
        content = self.write(volume)
        self.create_snapshot(volume)
        before = self.site.listing()
        image, _content = self.make_image('raw')
        self.assertRaises(exception.VolumeBackendAPIException, self.download,
                          volume, image)
        self.assertEqual(before, self.site.listing())
        self.assert_content(content, volume)

    def upload(self, volume, disk_format):
        image = self.images.add(disk_format)
        self.driver.copy_volume_to_image(
            self.context, self.load(volume), self.images, image)
        return image

    @ddt.idata(itertools.product(FORMATS, FORMATS))
    @ddt.unpack
    def test_volume_to_image(self, fmt, disk_format):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        path = self.images.path(self.upload(volume, disk_format))
        self.assert_image(content, path, disk_format)
        self.assertLess(os.stat(path).st_blocks * 512, LITTLE)

    @ddt.idata(FORMATS)
    def test_volume_with_snapshots_to_image(self, fmt):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        self.create_snapshot(volume)
        content = self.write(volume, seed=1, over=content)
        image = self.upload(volume, 'qcow2')
        self.assert_image(content, self.images.path(image), 'qcow2')

    def test_there_and_back(self):
        volume = self.create_volume(fmt='qcow2')
        content = self.write(volume)
        image = self.upload(volume, 'qcow2')
        self.delete_volume(volume)
        volume = self.create_volume(2)
        self.download(volume, image)
        self.assert_content(content.grown(2 * units.Gi), volume)
