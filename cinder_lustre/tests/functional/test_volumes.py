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

"""Volumes: creating, deleting, extending."""

import os

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre.tests.functional import base

# Formats and provisioning.
KINDS = (('raw', 'thin'), ('raw', 'thick'), ('qcow2', 'thin'),
         ('qcow2', 'thick'))


@ddt.ddt
class VolumesTestCase(base.FunctionalTestCase):

    @ddt.idata(KINDS)
    @ddt.unpack
    def test_create_write_delete(self, fmt, provisioning):
        volume = self.create_volume(fmt=fmt, provisioning=provisioning)
        self.assertEqual(self.site.share.identity, volume.provider_location)
        self.assertEqual(fmt, self.load(volume).admin_metadata['format'])
        content = base.Content(units.Gi)
        self.assert_content(content, volume)
        content = self.write(volume)
        self.assert_content(content, volume)
        self.delete_volume(volume)
        self.assertEqual(['.cinder-lustre'], self.site.listing())

    @ddt.data('raw', 'qcow2')
    def test_thin_volume_takes_no_space(self, fmt):
        volume = self.create_volume(fmt=fmt, provisioning='thin')
        self.assertLess(self.allocated(volume), units.Mi)

    @ddt.data('raw', 'qcow2')
    def test_thick_volume_takes_its_space(self, fmt):
        volume = self.create_volume(fmt=fmt, provisioning='thick')
        self.assertGreaterEqual(self.allocated(volume), units.Gi)

    @ddt.data('raw', 'qcow2')
    def test_format_of_the_configuration(self, fmt):
        self.driver = self.make_driver(
            self.site.share, lustre_qcow2_volumes=fmt == 'qcow2')
        volume = self.create_volume()
        self.assertEqual(fmt, self.connection(volume)['data']['format'])

    def test_provisioning_of_the_configuration(self):
        self.driver = self.make_driver(self.site.share,
                                       lustre_sparsed_volumes=False)
        self.assertGreaterEqual(self.allocated(self.create_volume()),
                                units.Gi)

    @ddt.data({'fmt': 'vmdk'}, {'provisioning': 'fat'})
    def test_wrong_extra_spec(self, values):
        self.assertRaises(exception.InvalidVolumeType, self.create_volume,
                          **values)
        self.assertEqual([], self.site.listing())

    def test_files_are_not_readable_by_others(self):
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        for name in self.site.listing():
            found = os.stat(os.path.join(self.site.path, name))
            self.assertEqual(0, found.st_mode & 0o007, name)
        self.delete_snapshot(snapshot)

    def test_create_twice(self):
        volume = self.create_volume()
        content = self.write(volume)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.create_volume, volume)
        self.assert_content(content, volume)

    def test_file_that_is_in_the_way(self):
        volume = self.new_volume()
        path = os.path.join(self.site.path, 'volume-%s' % volume.id)
        with open(path, 'w') as stream:
            stream.write('precious')
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.create_volume, volume)
        with open(path) as stream:
            self.assertEqual('precious', stream.read())
        os.unlink(path)

    def test_delete_what_is_gone(self):
        volume = self.create_volume()
        self.driver.delete_volume(volume)
        self.driver.delete_volume(volume)

    def test_delete_what_was_never_made(self):
        self.driver.delete_volume(self.new_volume())

    @ddt.idata(KINDS)
    @ddt.unpack
    def test_extend(self, fmt, provisioning):
        volume = self.create_volume(fmt=fmt, provisioning=provisioning)
        content = self.write(volume)
        self.extend_volume(volume, 2)
        content = content.grown(2 * units.Gi)
        self.assert_content(content, volume)
        if provisioning == 'thick':
            self.assertGreaterEqual(self.allocated(volume), 2 * units.Gi)
        else:
            self.assertLess(self.allocated(volume), 16 * units.Mi)
        content = self.write(volume, seed=1, over=content)
        self.assert_content(content, volume)

    def test_extend_with_a_snapshot(self):
        volume = self.create_volume()
        content = self.write(volume)
        snapshot = self.create_snapshot(volume)
        self.extend_volume(volume, 2)
        grown = content.grown(2 * units.Gi)
        self.assert_content(grown, volume)
        copy = self.volume_from_snapshot(snapshot)
        self.assert_content(content, copy)
        self.delete_snapshot(snapshot)
        self.assert_content(grown, volume)

    def test_shrink(self):
        volume = self.create_volume(2)
        content = self.write(volume)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.extend_volume, volume, 1)
        self.assert_content(content, volume)
