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

"""Snapshots: making them, deleting them in any order, what they hold."""

import itertools
import json
import os

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites


@ddt.ddt
class SnapshotsTestCase(base.FunctionalTestCase):

    def make_chain(self, fmt, count):
        """Make a volume and snapshots of it, with new data after each.

        :returns: the volume, the snapshots, and the contents of all of them,
                  the volume's last
        """
        volume = self.create_volume(fmt=fmt)
        contents = [self.write(volume)]
        snapshots = []
        for number in range(1, count + 1):
            snapshots.append(self.create_snapshot(volume))
            content = contents[-1].grown(units.Gi)
            # Something of each layer stays visible in the layers above.
            content.put(number * 4096, b'%d' % number * 4096)
            with self.attached(volume) as stream:
                content.write(stream)
            contents.append(content)
        return volume, snapshots, contents

    def assert_snapshot(self, content, snapshot):
        copy = self.volume_from_snapshot(snapshot)
        self.assert_content(content, copy)
        self.delete_volume(copy)

    @ddt.idata(itertools.product(('raw', 'qcow2'),
                                 itertools.permutations(range(3))))
    @ddt.unpack
    def test_delete_in_any_order(self, fmt, order):
        volume, snapshots, contents = self.make_chain(fmt, 3)
        left = dict(enumerate(snapshots))
        for number in order:
            self.delete_snapshot(left.pop(number))
            for other, snapshot in left.items():
                self.assert_snapshot(contents[other], snapshot)
        self.assert_content(contents[-1], volume)
        self.assertEqual(fmt, self.connection(volume)['data']['format'])
        # Nothing is left of the layers.
        self.assertEqual(
            ['volume-' + volume.id],
            [name for name in self.site.listing() if volume.id in name
             and not name.startswith('.cinder-lustre')])

    @ddt.data('raw', 'qcow2')
    def test_snapshot_between_deletions(self, fmt):
        volume, (first, second), contents = self.make_chain(fmt, 2)
        self.delete_snapshot(first)
        third = self.create_snapshot(volume)
        self.delete_snapshot(second)
        self.assert_snapshot(contents[2], third)
        self.delete_snapshot(third)
        self.assert_content(contents[2], volume)

    def test_snapshot_takes_no_space(self):
        volume = self.create_volume()
        self.write(volume)
        before = self.allocated(volume)
        self.create_snapshot(volume)
        self.assertLess(self.allocated(volume) - before, units.Mi)

    def test_mirror(self):
        volume = self.create_volume()
        name = 'volume-%s' % volume.id
        path = os.path.join(self.site.path, name + '.info')
        self.assertFalse(os.path.exists(path))
        snapshot = self.create_snapshot(volume)
        overlay = '%s.%s' % (name, snapshot.id)
        with open(path) as stream:
            self.assertEqual({'active': overlay, snapshot.id: overlay},
                             json.load(stream))
        data = self.connection(volume)['data']
        self.assertEqual((overlay, 'qcow2'), (data['name'], data['format']))
        self.delete_snapshot(snapshot)
        self.assertFalse(os.path.exists(path))

    def test_mirror_is_written_anew(self):
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        path = os.path.join(self.site.path, 'volume-%s.info' % volume.id)
        with open(path) as stream:
            expected = stream.read()
        with open(path, 'w') as stream:
            stream.write('{"active": "/etc/passwd"}')
        data = self.connection(volume)['data']
        self.assertEqual('volume-%s.%s' % (volume.id, snapshot.id),
                         data['name'])
        with open(path) as stream:
            self.assertEqual(expected, stream.read())

    def test_delete_what_is_gone(self):
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        self.driver.delete_snapshot(snapshot)
        self.driver.delete_snapshot(snapshot)

    def test_overlay_that_refers_elsewhere(self):
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        name = 'volume-%s' % volume.id
        path = os.path.join(self.site.path, '%s.%s' % (name, snapshot.id))
        self.rebase(path, '/etc/passwd')
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.connection, volume)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.clone, volume)
        self.rebase(path, name)
        self.assertEqual(os.path.basename(path),
                         self.connection(volume)['data']['name'])

    @staticmethod
    def rebase(path, backing):
        sites.command('qemu-img', 'rebase', '-u', '-f', 'qcow2', '-F', 'raw',
                      '-b', backing, path)

    @ddt.data('raw', 'qcow2')
    def test_revert(self, fmt):
        volume, (first, second), contents = self.make_chain(fmt, 2)
        self.extend_volume(volume, 2)
        self.revert(volume, second)
        self.assert_content(contents[1].grown(2 * units.Gi), volume)
        self.assertRaises(exception.VolumeBackendAPIException, self.revert,
                          volume, first)
        self.delete_snapshot(second)
        self.revert(volume, first)
        self.assert_content(contents[0].grown(2 * units.Gi), volume)
        self.delete_snapshot(first)
        self.assert_content(contents[0].grown(2 * units.Gi), volume)
