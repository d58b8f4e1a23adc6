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

"""Snapshots of volumes that a guest has open, and what may go wrong."""

import itertools
import os
import threading
from unittest import mock
import uuid

from cinder import context
from cinder import exception
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import utils as test_utils
import ddt
from oslo_utils import units
import testtools

from cinder_lustre import chain
from cinder_lustre import qemu_img
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import guest as guests
from cinder_lustre.tests.functional import site as sites
from cinder_lustre.volume.drivers import lustre

FORMATS = ('raw', 'qcow2')
STATUS = fields.SnapshotStatus


def alternating(*values):
    """Combine all values, each combination with one of the two formats.

    Every single value meets both of them.
    """
    return [(FORMATS[sum(numbers) % 2],
             *(choice[number] for choice, number in zip(values, numbers)))
            for numbers in itertools.product(*(range(len(choice))
                                               for choice in values))]


class OnlineTestCase(base.FunctionalTestCase):
    """A driver, its Nova, and a compute host with a mount of its own."""

    def prepare(self):
        super().prepare()
        self.nova = guests.FakeNova()
        self.driver._nova = self.nova
        patcher = mock.patch.object(lustre, 'time', self.nova)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.there = self.mount(self.site.share)

    def restart(self):
        """Let cinder-volume start again, after it was killed."""
        self.driver.do_setup(self.context)
        self.driver._nova = self.nova
        self.driver.get_volume_stats(refresh=True)

    # Attaching

    def make_volume(self, fmt):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        self.attach(volume)
        return volume, content

    def attach(self, volume):
        """Attach a volume to a new guest."""
        conn = self.connection(volume)
        attachment = objects.VolumeAttachment(
            context=context.get_admin_context(), volume_id=volume.id,
            instance_uuid=str(uuid.uuid4()), attached_host='functional',
            attach_status=fields.VolumeAttachStatus.ATTACHED,
            attach_mode='rw')
        attachment.create()
        attachment.connection_info = dict(conn['data'],
                                          driver_volume_type='lustre')
        attachment.save()
        self.set_attached(volume)
        self.addCleanup(self.detach, volume)
        return self.start_guest(volume)

    def set_attached(self, volume, attached=True):
        super().set_attached(volume, attached)
        volume = self.load(volume)
        volume.status = (fields.VolumeStatus.IN_USE if attached
                         else fields.VolumeStatus.AVAILABLE)
        volume.save()

    def start_guest(self, volume):
        """Start a guest as Nova does, by what stands in the attachment."""
        attachment, = self.load(volume).volume_attachment
        info = attachment.connection_info
        guest = guests.Guest(self.there, info['name'], info['format'])
        self.addCleanup(guest.crash)
        self.nova.guests[volume.id] = guest
        return guest

    def detach(self, volume):
        """Stop the guest of a volume, and let Cinder forget it."""
        guest = self.nova.guests.pop(volume.id, None)
        if guest is None:
            return
        if guest.running:
            guest.shutdown()
        attachment, = self.load(volume).volume_attachment
        attachment.destroy()
        self.set_attached(volume, False)

    # The verbs, with the states that Cinder's manager gives to the objects

    def new_snapshot(self, volume, name='snapshot'):
        return self.load(test_utils.create_snapshot(
            context.get_admin_context(), volume.id, display_name=name))

    def create_snapshot(self, volume, name='snapshot'):
        snapshot = self.new_snapshot(volume, name)
        self.call(self.driver.create_snapshot, snapshot, STATUS.ERROR)
        self.set_status(snapshot, STATUS.AVAILABLE)
        return snapshot

    def delete_snapshot(self, snapshot, driver=None):
        self.set_status(snapshot, STATUS.DELETING)
        self.call(self.driver.delete_snapshot, snapshot,
                  STATUS.ERROR_DELETING)
        self.load(snapshot).destroy()

    def call(self, verb, snapshot, failed):
        try:
            verb(self.load(snapshot))
        except exception.SnapshotIsBusy:
            self.set_status(snapshot, STATUS.AVAILABLE)
            raise
        except Exception:
            self.set_status(snapshot, failed)
            raise

    def set_status(self, snapshot, status):
        loaded = self.load(snapshot)
        loaded.status = status
        loaded.progress = '0%'
        loaded.save()

    def put(self, volume, content, offset, data):
        """Let the guest write something."""
        content.put(offset, data)
        disk = self.nova.guests[volume.id].disk
        disk.seek(offset)
        disk.write(data)
        disk.flush()

    # What must be true

    def assert_guest(self, content, volume):
        """Compare the files of a guest, and where it and Cinder see them."""
        guest = self.nova.guests[volume.id]
        data = self.connection(volume)['data']
        self.assertEqual(guest.active, data['name'])
        self.assertTrue(qemu_img.is_written(
            os.path.join(self.site.path, data['name'])))
        self.assert_live_image(content, data)
        loaded = self.load(volume)
        for attachment in loaded.volume_attachment:
            info = attachment.connection_info
            self.assertEqual((data['name'], data['format']),
                             (info['name'], info['format']))
        self.assertEqual(data['format'], loaded.admin_metadata['format'])

    def assert_live_image(self, content, data):
        """Compare an image that a guest has open, as it is on the share.

        Holes are faster to read in a raw copy than through the guest.
        """
        raw = os.path.join(self.directory, 'raw-%s' % uuid.uuid4())
        sites.command('qemu-img', 'convert', '-U', '-f', data['format'],
                      '-O', 'raw', os.path.join(self.there, data['name']),
                      raw)
        with self.open_device(raw, 'raw', read_only=True) as stream:
            self.assertIsNone(content.difference(stream))
        os.unlink(raw)

    def assert_snapshots(self, contents):
        """Compare snapshots, through a volume made from each.

        :param contents: pairs of a snapshot and its Content
        """
        for snapshot, content in contents:
            copy = self.volume_from_snapshot(snapshot)
            self.assert_content(content, copy)
            self.delete_volume(copy)

    def assert_nothing_left(self, volume):
        """See that a volume has its active file, and nothing else.

        A guest cannot leave its active file, which then has one below it.
        """
        active = self.connection(volume)['data']['name']
        expected = {active}
        if volume.id in self.nova.guests:
            expected.add('volume-' + volume.id)
        left = {name for name in self.site.listing() if volume.id in name
                and not name.startswith('.cinder-lustre')}
        if active != 'volume-' + volume.id:
            # RemoteFS drivers find the active file by it.
            left.discard('volume-%s.info' % volume.id)
        self.assertEqual(expected, left)
        self.assertEqual([], chain.pending(self.site.path))

    def assert_survives(self, content, volume):
        """Compare a volume in its guest, in the next one, and without."""
        self.assertIsNone(content.difference(
            self.nova.guests[volume.id].disk))
        self.assert_guest(content, volume)
        self.nova.guests[volume.id].crash()
        self.start_guest(volume)
        self.assert_guest(content, volume)
        self.detach(volume)
        self.assert_content(content, volume)


@ddt.ddt
class SnapshotsTestCase(OnlineTestCase):

    def make_chain(self, fmt, count):
        """Take snapshots of an attached volume, with new data after each.

        :returns: the volume, its Content, and pairs of a snapshot and its
                  Content
        """
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        self.attach(volume)
        snapshots = []
        for number in range(1, count + 1):
            snapshots.append((self.create_snapshot(volume),
                              content.grown(units.Gi)))
            self.assert_guest(content, volume)
            # Something of each layer stays visible in the layers above.
            self.put(volume, content, 0, b'%d' % number * 4096)
            self.put(volume, content, number * units.Mi,
                     b'%d' % number * 4096)
        return volume, content, snapshots

    @ddt.idata(itertools.product(FORMATS, (
        *itertools.permutations(range(2)), *itertools.permutations(range(3)))))
    @ddt.unpack
    def test_delete_in_any_order(self, fmt, order):
        volume, content, snapshots = self.make_chain(fmt, len(order))
        left = dict(enumerate(snapshots))
        for number in order:
            self.delete_snapshot(left.pop(number)[0])
            self.put(volume, content, 8 * units.Mi, b'%d' % number * 4096)
            self.assert_guest(content, volume)
            self.assert_snapshots(left.values())
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    @ddt.idata(FORMATS)
    def test_while_the_guest_writes(self, fmt):
        volume = self.create_volume(fmt=fmt)
        guest = self.attach(volume)
        content = base.Content(units.Gi)
        with Writer(guest) as writer:
            writer.wait_for(20)
            least = writer.count
            snapshot = self.create_snapshot(volume)
            most = writer.count + 1
            writer.wait_for(20)
            copy = self.volume_from_snapshot(snapshot)
            second = self.create_snapshot(volume)
            writer.wait_for(20)
            # One is merged, the other one stays a layer.
            self.delete_snapshot(snapshot)
            writer.wait_for(20)
            self.delete_snapshot(second)
            writer.wait_for(20)
        writer.fill(content, writer.count)
        self.assert_guest(content, volume)
        with self.connected(copy) as (path, _fmt), open(path, 'rb') as stream:
            count = writer.find(stream)
        self.assertIn(count, range(least, most + 1))
        content = base.Content(units.Gi)
        writer.fill(content, count)
        self.assert_content(content, copy)

    @ddt.idata(FORMATS)
    def test_taken_offline(self, fmt):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        snapshots = []
        for seed in (1, 2):
            snapshots.append((self.create_snapshot(volume),
                              content.grown(units.Gi)))
            content = self.write(volume, seed, over=content)
        self.attach(volume)
        while snapshots:
            self.delete_snapshot(snapshots.pop()[0])
            self.assert_guest(content, volume)
            self.assert_snapshots(snapshots)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    @ddt.idata(FORMATS)
    def test_deleted_offline(self, fmt):
        volume, content, snapshots = self.make_chain(fmt, 2)
        self.detach(volume)
        while snapshots:
            self.delete_snapshot(snapshots.pop(0)[0])
            self.assert_content(content, volume)
            self.assert_snapshots(snapshots)
        self.assert_nothing_left(volume)

    @ddt.idata(FORMATS)
    def test_some_online(self, fmt):
        """The chain is changed in turn with and without a guest."""
        volume, content, snapshots = self.make_chain(fmt, 2)
        self.detach(volume)
        self.delete_snapshot(snapshots.pop()[0])
        snapshots.append((self.create_snapshot(volume),
                          content.grown(units.Gi)))
        self.attach(volume)
        self.put(volume, content, units.Mi, b'later' * 1000)
        self.delete_snapshot(snapshots.pop(0)[0])
        self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        self.detach(volume)
        self.delete_snapshot(snapshots.pop()[0])
        self.assert_nothing_left(volume)
        self.assert_content(content, volume)

    def test_without_a_name(self):
        volume = self.create_volume()
        content = self.write(volume)
        self.attach(volume)
        snapshots = []
        for number in range(2):
            snapshots.append((self.create_snapshot(volume, name=None),
                              content.grown(units.Gi)))
            self.put(volume, content, 0, b'%d' % number * 4096)
        self.assert_snapshots(snapshots)
        for snapshot, _content in snapshots:
            self.delete_snapshot(snapshot)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    def test_what_nova_is_asked_for(self):
        volume, _content, snapshots = self.make_chain('raw', 3)
        first, second, third = (snapshot.id for snapshot, _ in snapshots)
        name = 'volume-%s' % volume.id
        self.assertEqual(
            [{'type': 'qcow2', 'new_file': '%s.%s' % (name, each),
              'snapshot_id': each} for each in (first, second, third)],
            self.nova.calls)
        del self.nova.calls[:]
        for snapshot, _content in snapshots:
            self.delete_snapshot(snapshot)
        self.assertEqual(
            [{'type': 'qcow2', 'volume_id': volume.id,
              'file_to_merge': '%s.%s' % (name, first),
              'merge_target_file': name},
             {'type': 'qcow2', 'volume_id': volume.id,
              'file_to_merge': '%s.%s' % (name, second),
              'merge_target_file': name}],
            self.nova.calls)
        # The guest stays in its file, until that is not the latest any more.
        fourth = self.create_snapshot(volume)
        del self.nova.calls[:]
        self.delete_snapshot(fourth)
        self.assertEqual(
            [{'type': 'qcow2', 'volume_id': volume.id,
              'file_to_merge': '%s.%s' % (name, third),
              'merge_target_file': name}], self.nova.calls)

    def test_deletions_leave_few_files(self):
        volume, content, _none = self.make_chain('raw', 0)
        for number in range(4):
            first = self.create_snapshot(volume)
            self.put(volume, content, 0, b'%d' % number * 4096)
            second = self.create_snapshot(volume)
            self.put(volume, content, 8192, b'%d' % number * 4096)
            for snapshot in (second, first):
                self.delete_snapshot(snapshot)
            self.assertLessEqual(
                len(self.nova.guests[volume.id].files), 3)
        self.assert_survives(content, volume)
        snapshot = self.create_snapshot(volume)
        self.delete_snapshot(snapshot)
        self.assert_nothing_left(volume)
        self.assertEqual('raw', self.load(volume).admin_metadata['format'])

    def test_locks(self):
        """The harness tells what QEMU has open as QEMU itself does."""
        volume = self.create_volume()
        lower = os.path.join(self.site.path, 'volume-' + volume.id)
        self.assertFalse(qemu_img.is_written(lower))
        guest = self.attach(volume)
        self.assertTrue(qemu_img.is_written(lower))
        snapshot = self.create_snapshot(volume)
        overlay = '%s.%s' % (lower, snapshot.id)
        self.assertFalse(qemu_img.is_written(lower))
        self.assertTrue(qemu_img.is_written(overlay))
        guest.crash()
        self.assertFalse(qemu_img.is_written(overlay))

    def test_extend(self):
        volume = self.create_volume()
        content = self.write(volume)
        guest = self.attach(volume)
        self.extend_volume(volume, 2)
        guest.resize(2 * units.Gi)
        content = content.grown(2 * units.Gi)
        self.put(volume, content, 2 * units.Gi - 4096, b'end.' * 1024)
        self.assert_survives(content, volume)

    @ddt.data(*itertools.product(FORMATS, (0, 1)))
    @ddt.unpack
    def test_extended_between(self, fmt, number):
        """The lower layer grows with what is committed into it."""
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        snapshots = [(self.create_snapshot(volume), content.grown(units.Gi))]
        self.extend_volume(volume, 2)
        content = self.write(volume, seed=1,
                             over=content.grown(2 * units.Gi))
        snapshots.append((self.create_snapshot(volume),
                          content.grown(2 * units.Gi)))
        self.attach(volume)
        self.put(volume, content, 0, b'overlay.' * 512)
        self.delete_snapshot(snapshots.pop(number)[0])
        self.assert_guest(content, volume)
        (left, before), = snapshots
        copy = self.volume_from_snapshot(left, size=2)
        self.assert_content(before.grown(2 * units.Gi), copy)
        self.delete_snapshot(left)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    def test_extend_with_a_snapshot(self):
        volume, content, _snapshots = self.make_chain('raw', 1)
        self.assertRaises(exception.InvalidVolume, self.extend_volume,
                          volume, 2)
        self.assert_guest(content, volume)


@ddt.ddt
class CopiesTestCase(OnlineTestCase):
    """Copies of an attached volume, by way of a snapshot that goes again."""

    def make_volume(self, fmt):
        volume, content = super().make_volume(fmt)
        self.put(volume, content, 5 * units.Mi, b'guest' * 1000)
        return volume, content

    def assert_as_before(self, content, volume):
        self.assertEqual([], list(objects.SnapshotList.get_all_for_volume(
            self.context, volume.id)))
        self.assert_guest(content, volume)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    @ddt.idata(FORMATS)
    def test_clone(self, fmt):
        volume, content = self.make_volume(fmt)
        copy = self.clone(volume)
        self.assert_content(content, copy)
        self.assert_as_before(content, volume)

    @ddt.idata(FORMATS)
    def test_upload(self, fmt):
        volume, content = self.make_volume(fmt)
        image = self.images.add('raw')
        self.driver.copy_volume_to_image(
            self.context, self.load(volume), self.images, image)
        self.assert_image(content, self.images.path(image), 'raw')
        self.assert_as_before(content, volume)

    @ddt.idata(FORMATS)
    def test_backup(self, fmt):
        volume, content = self.make_volume(fmt)
        loaded = self.load(volume)
        loaded.status = fields.VolumeStatus.BACKING_UP
        loaded.previous_status = fields.VolumeStatus.IN_USE
        loaded.save()
        backup = test_utils.create_backup(self.context, volume.id)
        device, is_snapshot = self.driver.get_backup_device(self.context,
                                                            backup)
        self.assertFalse(is_snapshot)
        self.assertEqual(device.id, backup.temp_volume_id)
        self.assert_content(content, device)
        self.delete_volume(device)
        self.assert_as_before(content, volume)

    def test_clone_without_nova(self):
        volume, content = self.make_volume('raw')
        self.nova.behave('never', 'raise')
        self.assertRaises(exception.APITimeout, self.clone, volume)
        self.nova.behave()
        self.assert_as_before(content, volume)


@ddt.ddt
class FailuresTestCase(OnlineTestCase):
    """Nova fails, before or after the guest has done what it is to do."""

    TROUBLES = (('never', 'raise'), ('now', 'raise'),
                ('never', 'error'), ('now', 'error'),
                ('never', 'never'), ('now', 'never'))

    def make_volume(self, fmt, count=0, left=False):
        """Make an attached volume with snapshots.

        :param left: whether a snapshot before the latest has left a layer,
                     which is merged when the latest is deleted
        :returns: the volume, its Content, and pairs of a snapshot and its
                  Content
        """
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        self.attach(volume)
        snapshots = []
        for number in range(count):
            snapshots.append((self.create_snapshot(volume),
                              content.grown(units.Gi)))
            self.put(volume, content, 0, b'%d' % number * 4096)
            self.put(volume, content, (2 + number) * units.Mi,
                     b'%d' % number * 4096)
            if left and number == count - 2:
                self.delete_snapshot(self.create_snapshot(volume))
                self.put(volume, content, 7 * units.Mi, b'left' * 1024)
        return volume, content, snapshots

    @ddt.idata(alternating(TROUBLES, (True, False)))
    @ddt.unpack
    def test_create(self, fmt, trouble, online):
        volume, content, _none = self.make_volume(fmt)
        self.nova.behave(*trouble)
        self.assertRaises(exception.CinderException, self.create_snapshot,
                          volume)
        self.assert_guest(content, volume)
        self.put(volume, content, units.Mi, b'later' * 1000)
        snapshot, = objects.SnapshotList.get_all_for_volume(self.context,
                                                            volume.id)
        self.assertEqual(STATUS.ERROR, snapshot.status)
        self.nova.behave()
        if not online:
            self.detach(volume)
        self.delete_snapshot(snapshot)
        self.assert_nothing_left(volume)
        if online:
            self.assert_survives(content, volume)
        self.assert_content(content, volume)

    @ddt.idata(FORMATS)
    def test_create_of_a_stopped_server(self, fmt):
        """Nobody has the files open, so that Nova's word counts."""
        volume, content, _none = self.make_volume(fmt)
        self.nova.guests[volume.id].shutdown()
        with mock.patch.object(guests.Guest, 'pivot'):
            snapshot = self.create_snapshot(volume)
        before = content.grown(units.Gi)
        self.start_guest(volume)
        self.put(volume, content, units.Mi, b'later' * 1000)
        self.assert_snapshots([(snapshot, before)])
        self.assert_survives(content, volume)

    @ddt.idata(FORMATS)
    def test_server_goes_while_cinder_waits(self, fmt):
        volume, content, snapshots = self.make_volume(fmt, 2)
        snapshot = snapshots.pop(0)[0]
        self.nova.behave('later')
        self.nova.PATIENCE = 10 ** 6
        self.nova.guests[volume.id].crash()
        with mock.patch.object(lustre, '_LOOK_INTERVAL', 0):
            error = self.assertRaises(exception.RemoteFSException,
                                      self.delete_snapshot, snapshot)
        self.assertIn('no server', str(error))
        self.start_guest(volume)
        self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        self.delete_snapshot(snapshot)

    @ddt.idata(FORMATS)
    def test_create_late(self, fmt):
        """Cinder gives up, and only then the guest is to pivot."""
        volume, content, _none = self.make_volume(fmt)
        self.nova.behave('later', 'never')
        self.assertRaises(exception.CinderException, self.create_snapshot,
                          volume)
        self.nova.catch_up()
        self.assert_guest(content, volume)
        self.put(volume, content, units.Mi, b'later' * 1000)
        snapshot, = objects.SnapshotList.get_all_for_volume(self.context,
                                                            volume.id)
        self.nova.behave()
        self.delete_snapshot(snapshot)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    @ddt.idata(FORMATS)
    def test_slow(self, fmt):
        """Nova takes its time, and Cinder waits for it."""
        volume, content, _none = self.make_volume(fmt)
        self.nova.behave('later')
        snapshots = []
        for number in range(2):
            self.nova.behave('later')
            snapshots.append((self.create_snapshot(volume),
                              content.grown(units.Gi)))
            self.put(volume, content, 0, b'%d' % number * 4096)
            self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        for snapshot, _content in snapshots:
            self.nova.behave('later')
            self.delete_snapshot(snapshot)
            self.assert_guest(content, volume)
        self.assert_nothing_left(volume)

    @ddt.idata(alternating((*TROUBLES, ('half', 'done')), (0, 1)))
    @ddt.unpack
    def test_delete(self, fmt, trouble, number):
        """A layer is merged: of the snapshot itself, or of an earlier one."""
        # The same trouble ends with a guest in one case of the two.
        online = number == (fmt == 'raw')
        volume, content, snapshots = self.make_volume(fmt, 2, left=number)
        self.nova.behave(*trouble)
        snapshot = snapshots.pop(number)[0]
        self.assertRaises(exception.CinderException, self.delete_snapshot,
                          snapshot)
        self.assert_guest(content, volume)
        self.put(volume, content, 9 * units.Mi, b'later' * 1000)
        self.nova.behave()
        self.assert_snapshots(snapshots)
        if not online:
            self.detach(volume)
        self.delete_snapshot(snapshot)
        if online:
            self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        self.delete_snapshot(snapshots[0][0])
        self.assert_nothing_left(volume)
        if online:
            self.assert_survives(content, volume)
        self.assert_content(content, volume)

    @ddt.idata(itertools.product(FORMATS, (0, 1), (False, True)))
    @ddt.unpack
    def test_crash_after_delete(self, fmt, number, left):
        """QEMU is killed before the guest has flushed anything again."""
        volume, content, snapshots = self.make_volume(fmt, 2, left)
        self.delete_snapshot(snapshots.pop(number)[0])
        self.nova.guests[volume.id].crash()
        self.assert_snapshots(snapshots)
        # The next operation on the volume, as Nova starts the guest anew.
        self.connection(volume)
        self.start_guest(volume)
        self.assert_guest(content, volume)

    @ddt.idata(FORMATS)
    def test_overlay_is_only_open(self, fmt):
        """QEMU has opened the overlay, but the guest is not in it yet."""
        volume, content, _none = self.make_volume(fmt)
        guest = self.nova.guests[volume.id]
        before = content.grown(units.Gi)
        snapshot = self.new_snapshot(volume)
        overlay, lower = self.driver._run_on(
            chain.begin_snapshot, self.load(volume), snapshot.id)
        guest.open_overlay(overlay)
        with testtools.ExpectedException(exception.VolumeIsBusy):
            self.driver._run_on(chain.settle, self.load(volume))
        with testtools.ExpectedException(exception.VolumeIsBusy):
            self.connection(volume)
        self.put(volume, content, units.Mi, b'early' * 1000)
        before = content.grown(units.Gi)
        guest.enter_overlay()
        self.put(volume, content, 2 * units.Mi, b'later' * 1000)
        self.assert_guest(content, volume)
        self.assert_snapshots([(snapshot, before)])

    def test_read_what_is_half_merged(self):
        """A commit destroys the snapshot from its first byte on."""
        volume, content, snapshots = self.make_volume('raw', 2)
        self.nova.behave('half')
        snapshot = snapshots.pop(0)[0]
        self.assertRaises(exception.CinderException, self.delete_snapshot,
                          snapshot)
        self.assertRaises(exception.CinderException,
                          self.volume_from_snapshot, snapshot)
        self.assertEqual(STATUS.ERROR_DELETING, self.load(snapshot).status)
        self.assert_snapshots(snapshots)
        self.assert_guest(content, volume)

    @ddt.idata(itertools.product(FORMATS, (0, 1)))
    @ddt.unpack
    def test_delete_late(self, fmt, number):
        """Cinder gives up, and only then the guest merges."""
        volume, content, snapshots = self.make_volume(fmt, 2, left=number)
        self.nova.behave('later', 'never')
        snapshot = snapshots.pop(number)[0]
        self.assertRaises(exception.CinderException, self.delete_snapshot,
                          snapshot)
        self.assert_guest(content, volume)
        self.nova.catch_up()
        self.assert_guest(content, volume)
        self.nova.behave()
        self.assert_snapshots(snapshots)
        self.delete_snapshot(snapshot)
        self.delete_snapshot(snapshots[0][0])
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)


@ddt.ddt
class KilledDriverTestCase(OnlineTestCase):
    """The driver is killed while it waits for Nova."""

    def find_out(self, volume, how):
        """Let the driver find out what the guest has done."""
        if how == 'restart':
            self.restart()
        else:
            self.connection(volume)
        self.assertEqual([], chain.pending(self.site.path))

    @ddt.idata(alternating(
        ('base', 'overlay', 'gone-base', 'gone-overlay', 'gone-empty'),
        ('restart', 'connection')))
    @ddt.unpack
    def test_create(self, fmt, where, how):
        volume, content = self.make_volume(fmt)
        guest = self.nova.guests[volume.id]
        before = content.grown(units.Gi)
        snapshot = self.new_snapshot(volume)
        overlay, _lower = self.driver._run_on(
            chain.begin_snapshot, self.load(volume), snapshot.id)
        if not where.endswith('base'):
            guest.pivot(overlay)
        if not where.endswith('empty'):
            self.put(volume, content, units.Mi, b'later' * 1000)
        if where.startswith('gone'):
            guest.crash()
        self.find_out(volume, how)
        if where.startswith('gone'):
            self.start_guest(volume)
        self.assert_guest(content, volume)
        if where.endswith('overlay'):
            self.assertEqual(overlay, self.nova.guests[volume.id].active)
            self.assert_snapshots([(snapshot, before)])
        # Cinder calls it broken, as it has not come to an end.
        self.set_status(snapshot, STATUS.ERROR)
        self.delete_snapshot(snapshot)
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)

    @ddt.idata(alternating(
        ('before', 'after', 'gone-before', 'gone-amid', 'gone-after'), (0, 1)))
    @ddt.unpack
    def test_delete(self, fmt, when, number):
        how = 'restart' if number == (fmt == 'raw') else 'connection'
        volume, content = self.make_volume(fmt)
        guest = self.nova.guests[volume.id]
        snapshots = []
        for each in range(2):
            snapshots.append((self.create_snapshot(volume),
                              content.grown(units.Gi)))
            self.put(volume, content, 0, b'%d' % each * 4096)
            if number and not each:
                # What it leaves is merged when the latest one is deleted.
                self.delete_snapshot(self.create_snapshot(volume))
                self.put(volume, content, 8192, b'left' * 1024)
        snapshot = snapshots.pop(number)[0]
        self.set_status(snapshot, STATUS.DELETING)
        info = self.driver._run_on(chain.begin_delete_snapshot,
                                   self.load(volume), snapshot.id)
        self.nova.behave({'after': 'now', 'amid': 'half'}.get(
            when.split('-')[-1], 'never'))
        self.nova.delete_volume_snapshot(
            self.context, snapshot.id, dict(info, volume_id=volume.id))
        self.put(volume, content, units.Mi, b'later' * 1000)
        if when.startswith('gone'):
            guest.crash()
        if when == 'before':
            # The guest may still be about to begin.
            self.restart()
            self.assertEqual([volume.id], chain.pending(self.site.path))
        else:
            self.find_out(volume, how)
        if when.startswith('gone'):
            self.start_guest(volume)
        self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        self.set_status(snapshot, STATUS.ERROR_DELETING)
        self.nova.behave()
        self.delete_snapshot(snapshot)
        self.assert_guest(content, volume)
        self.assert_snapshots(snapshots)
        self.delete_snapshot(snapshots[0][0])
        self.assert_nothing_left(volume)
        self.assert_survives(content, volume)


class Writer:
    """Writes block after block in a guest, in a thread.

    :ivar count: how many blocks have reached the disk
    """

    BLOCK = 4096

    def __init__(self, guest):
        self.count = 0
        self._disk = guest.disk
        self._stopped = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stopped.set()
        self._thread.join()
        if self._error and exc_info[0] is None:
            raise self._error

    def _run(self):
        try:
            while not self._stopped.is_set():
                self._disk.seek(self.count * self.BLOCK)
                self._disk.write(self.block(self.count))
                self._disk.flush()
                self.count += 1
        except Exception as exc:
            self._error = exc

    def block(self, number):
        return b'%7d\n' % number * (self.BLOCK // 8)

    def wait_for(self, more):
        """Wait until so many more blocks have been written."""
        goal = self.count + more
        base.wait_for(lambda: self.count >= goal or self._error,
                      'the guest writes')

    def fill(self, content, count):
        """Put the first blocks into a Content."""
        for number in range(count):
            content.put(number * self.BLOCK, self.block(number))

    def find(self, stream):
        """How many blocks there are on a disk."""
        count = 0
        while stream.read(self.BLOCK) == self.block(count):
            count += 1
        return count
