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

"""Several operations at once, in one service and on several hosts."""

import threading
import uuid

from oslo_utils import units

from cinder_lustre import chain
from cinder_lustre.tests.functional import base
from cinder_lustre import worker


class ConcurrencyTestCase(base.FunctionalTestCase):

    def run_together(self, *calls):
        """Run functions at once; the first error is raised."""
        errors = []

        def run(call):
            try:
                call()
            except Exception as exc:
                errors.append(exc)

        threads = [threading.Thread(target=run, args=(call,))
                   for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def test_different_volumes(self):
        kinds = (('raw', 'thin'), ('raw', 'thick'), ('qcow2', 'thin'),
                 ('qcow2', 'thick'))

        def live(fmt, provisioning):
            volume = self.create_volume(fmt=fmt, provisioning=provisioning)
            content = self.write(volume)
            snapshot = self.create_snapshot(volume)
            self.extend_volume(volume, 2)
            copy = self.volume_from_snapshot(snapshot, fmt=fmt)
            self.assert_content(content, copy)
            self.delete_snapshot(snapshot)
            self.assert_content(content.grown(2 * units.Gi), volume)
            self.delete_volume(volume)
            self.delete_volume(copy)

        self.run_together(*(lambda kind=kind: live(*kind) for kind in kinds))
        self.assertEqual(['.cinder-lustre'], self.site.listing())

    def test_one_volume(self):
        volume = self.create_volume()
        content = self.write(volume)
        snapshots = []
        clones = []
        self.run_together(
            lambda: snapshots.append(self.create_snapshot(volume)),
            lambda: self.extend_volume(volume, 2),
            lambda: clones.append(self.clone(volume, 2)),
            lambda: snapshots.append(self.create_snapshot(volume)))
        grown = content.grown(2 * units.Gi)
        self.assert_content(grown, volume)
        self.assert_content(grown, clones[0])
        self.run_together(*(
            lambda snapshot=snapshot: self.delete_snapshot(snapshot)
            for snapshot in snapshots))
        self.assert_content(grown, volume)

    def test_copies_of_one_snapshot(self):
        volume = self.create_volume()
        content = self.write(volume)
        snapshot = self.create_snapshot(volume)
        copies = []
        self.run_together(*(
            lambda: copies.append(self.volume_from_snapshot(snapshot))
            for _number in range(3)))
        for copy in copies:
            self.assert_content(content, copy)

    def test_one_volume_deleted_twice(self):
        volume = self.create_volume()
        self.run_together(
            lambda: self.driver.delete_volume(self.load(volume)),
            lambda: self.driver.delete_volume(self.load(volume)))
        self.assertEqual(['.cinder-lustre'], self.site.listing())

    def test_two_hosts(self):
        """Hosts without a common coordinator have the fence."""
        volume = self.create_volume()
        content = self.write(volume)
        there = self.mount(self.site.share)
        other = worker.Worker('the share on another host')
        snapshots = [str(uuid.uuid4()) for _number in range(2)]

        def elsewhere(func, *args):
            return other.run(func, there, volume.id, *args,
                             timeout=base.PATIENCE)

        mine = []
        self.run_together(
            lambda: elsewhere(chain.create_snapshot, snapshots[0]),
            lambda: mine.append(self.create_snapshot(volume)),
            lambda: elsewhere(chain.create_snapshot, snapshots[1]),
            lambda: self.extend_volume(volume, 2))
        self.assert_content(content.grown(2 * units.Gi), volume)
        self.run_together(
            lambda: elsewhere(chain.delete_snapshot, snapshots[0]),
            lambda: self.delete_snapshot(mine[0]),
            lambda: elsewhere(chain.delete_snapshot, snapshots[1]))
        data = self.connection(volume)['data']
        self.assertEqual(('volume-' + volume.id, 'raw'),
                         (data['name'], data['format']))
        self.assert_content(content.grown(2 * units.Gi), volume)
