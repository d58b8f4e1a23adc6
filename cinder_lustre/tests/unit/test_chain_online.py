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

import errno
import subprocess
from unittest import mock

import ddt

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests.unit import test_chain
from cinder_lustre.tests.unit.test_chain import formats
from cinder_lustre.tests.unit.test_chain import ONE
from cinder_lustre.tests.unit.test_chain import overlay
from cinder_lustre.tests.unit.test_chain import TWO
from cinder_lustre.tests.unit.test_chain import VOLUME

BASE = test_chain.BASE


class OnlineTestCase(test_chain.ChainTestCase):
    """A guest is a qemu-io that has a file open; it moves by being restarted.

    What it does on Nova's behalf, qemu-img does in its place.
    """

    def rebase(self, name, backing, *options):
        subprocess.run(
            ['qemu-img', 'rebase', '-q', *options, '-f', 'qcow2', '-b',
             backing, *(['-F', 'raw' if backing == BASE and self.fmt == 'raw'
                         else 'qcow2'] if backing else []), name],
            cwd=self.root, check=True)

    def intent(self):
        return self.share.record(VOLUME)['intent']

    def _open(self, name, fmt):
        process = subprocess.Popen(
            ['qemu-io', '-f', fmt, self.share.path(name)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.communicate, b'quit\n')
        self.assertEqual(b'qemu-io> ', process.stdout.read(9))


@ddt.ddt
class CreateTestCase(OnlineTestCase):

    def setUp(self):
        super().setUp()
        self.fmt = 'raw'
        self.content = self.create('raw')
        self.files = self.share.files()
        self.names = chain.begin_snapshot(self.root, VOLUME, ONE)

    def test_begin(self):
        self.assertEqual((overlay(ONE), BASE), self.names)
        self.assertEqual('online-snapshot', self.intent()['operation'])
        self.assertEqual(BASE, self.share.record(VOLUME)['active'])

    def test_guest_has_moved(self):
        self.share.write_file(overlay(ONE), 'qcow2', 0, 4096, 9)
        self._open(overlay(ONE), 'qcow2')
        self.assertEqual(overlay(ONE), chain.settle(self.root, VOLUME)[
            'active'])
        self.assert_content(self.content, snapshot=ONE)
        self.assert_content(b'\x09' * 4096 + self.content[4096:])

    def test_guest_has_moved_and_written_nothing(self):
        self._open(overlay(ONE), 'qcow2')
        self.assertEqual([ONE], chain.settle(self.root, VOLUME)['snapshots'])

    def test_guest_has_stayed(self):
        self.guest()
        self.assertEqual(BASE, chain.settle(self.root, VOLUME)['active'])
        self.assertEqual(self.files, self.share.files())

    def test_guest_has_gone_after_it_wrote(self):
        self.share.write_file(overlay(ONE), 'qcow2', 0, 4096, 9)
        self.assertEqual([ONE], chain.settle(self.root, VOLUME)['snapshots'])
        self.assert_content(self.content, snapshot=ONE)

    def test_guest_has_gone_before_it_wrote(self):
        self.assertEqual([], chain.settle(self.root, VOLUME)['snapshots'])
        self.assertEqual(self.files, self.share.files())
        self.assert_content(self.content)

    def test_next_operation_settles(self):
        self.share.write_file(overlay(ONE), 'qcow2', 0, 4096, 9)
        self.assertEqual(overlay(ONE), chain.describe(self.root, VOLUME)[
            'active'])

    def test_delete(self):
        self.assert_gone()

    def test_pending(self):
        self.create('raw', volume=test_chain.OTHER)
        self.assertEqual([VOLUME], chain.pending(self.root))
        chain.settle(self.root, VOLUME)
        self.assertEqual([], chain.pending(self.root))


@ddt.ddt
class StrayGuestTestCase(OnlineTestCase):
    """Nova has started a server with the file that it had before."""

    def setUp(self):
        super().setUp()
        self.create('raw')
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.files = self.share.files()
        self._open(BASE, 'raw')

    @ddt.data((chain.begin_snapshot, TWO), (chain.begin_delete_snapshot, ONE))
    @ddt.unpack
    def test_online(self, operation, snapshot):
        error = self.assertRaises(exception.RecordError, operation, self.root,
                                  VOLUME, snapshot)
        self.assertIn('%s, below the active file %s' % (
            self.share.path(BASE), overlay(ONE)), str(error))
        self.assertEqual(self.files, self.share.files())
        self.assertIsNone(self.intent())

    @ddt.data((chain.create_snapshot, TWO), (chain.revert, ONE),
              (chain.delete,))
    def test_offline(self, operation):
        self.assertRaises(exception.VolumeBusy, operation[0], self.root,
                          VOLUME, *operation[1:])
        self.assertEqual(self.files, self.share.files())
        self.assertIsNone(self.intent())


@ddt.ddt
class DeleteTestCase(OnlineTestCase):

    def prepare(self, fmt):
        self.fmt = fmt
        self.contents = {ONE: self.create(fmt)}
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.contents[TWO] = self.fill(8)
        chain.create_snapshot(self.root, VOLUME, TWO)
        self.contents[None] = self.fill(9, offset=4096)

    def merge(self, name, lower, upper):
        """Do what QEMU does to merge a layer downwards."""
        subprocess.run(['qemu-img', 'commit', '-q', '-d', '-f', 'qcow2',
                        name], cwd=self.root, check=True)
        self.rebase(upper, lower, '-u')

    def check(self, *snapshots, extra=0):
        for snapshot in (None, *snapshots):
            self.assert_content(self.contents[snapshot], snapshot=snapshot)
        self.assertEqual(set(snapshots), set(chain.settle(
            self.root, VOLUME)['snapshots']))
        self.assertEqual(
            len(snapshots) + 1 + extra,
            len([name for name in self.share.files() if
                 name.startswith('volume-') and
                 not name.endswith('.info')]))

    @formats
    def test_commit(self, fmt):
        self.prepare(fmt)
        self.assertEqual(
            {'type': 'qcow2', 'file_to_merge': overlay(ONE),
             'merge_target_file': BASE},
            chain.begin_delete_snapshot(self.root, VOLUME, ONE))
        self.merge(overlay(ONE), BASE, overlay(TWO))
        self.guest()
        chain.settle(self.root, VOLUME)
        self.check(TWO)

    @formats
    def test_latest(self, fmt):
        """A guest cannot leave its active file, so the layers stay."""
        self.prepare(fmt)
        self.guest()
        files = self.share.files()
        self.assertIsNone(chain.begin_delete_snapshot(self.root, VOLUME, TWO))
        self.assertEqual([ONE], chain.settle(self.root, VOLUME)['snapshots'])
        self.assertEqual(files, self.share.files())
        self.assertIsNone(chain.begin_delete_snapshot(self.root, VOLUME, TWO))

    @formats
    def test_latest_of_all(self, fmt):
        """What was deleted before is merged in place of the latest one."""
        self.prepare(fmt)
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        chain.create_snapshot(self.root, VOLUME, test_chain.THREE)
        self.contents[None] = self.fill(10, offset=8192)
        self.assertEqual(
            {'type': 'qcow2', 'file_to_merge': overlay(TWO),
             'merge_target_file': overlay(ONE)},
            chain.begin_delete_snapshot(self.root, VOLUME, test_chain.THREE))
        self.merge(overlay(TWO), overlay(ONE), overlay(test_chain.THREE))
        self.guest()
        chain.settle(self.root, VOLUME)
        # The latest one is what is left now.
        self.check(ONE, extra=1)

    @formats
    def test_merged_offline(self, fmt):
        """The next deletion without a guest leaves no layer behind."""
        self.prepare(fmt)
        for snapshot in (TWO, ONE):
            chain.begin_delete_snapshot(self.root, VOLUME, snapshot)
            chain.settle(self.root, VOLUME)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        self.check()
        self.assertEqual(
            fmt, chain.describe(self.root, VOLUME)['format'])

    @formats
    def test_merged_by_extend(self, fmt):
        self.prepare(fmt)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        described = chain.extend(self.root, VOLUME, 2 * test_chain.SIZE)
        self.assertEqual((BASE, fmt), (described['active'],
                                       described['format']))
        self.contents[None] += bytes(test_chain.SIZE)
        self.check()

    @formats
    def test_merged_by_convert(self, fmt):
        self.prepare(fmt)
        chain.delete_snapshot(self.root, VOLUME, ONE)
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        chain.convert(self.root, VOLUME, fmt, True)
        self.check()

    def test_no_space_for_what_is_left(self):
        """A deletion succeeds although the share is too full to tidy up."""
        self.prepare('qcow2')
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        with mock.patch.object(chain.qemu_img, 'commit', side_effect=[
                exception.NoSpace(path='x', reason='full')]):
            chain.delete_snapshot(self.root, VOLUME, 'unknown')
        self.assertIsNone(self.intent())
        self.check(ONE, extra=1)

    def leave(self, **kwargs):
        """Delete the latest snapshot of a volume that has one more."""
        self.fmt = 'raw'
        self.create('raw', **kwargs)
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.fill(8)
        chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        chain.create_snapshot(self.root, VOLUME, TWO)
        self.contents = {TWO: self.share.content(VOLUME, TWO),
                         None: self.fill(9, offset=4096)}

    def test_no_space_for_a_thick_base(self):
        self.leave(thick=True)
        with mock.patch.object(chain.layers, 'grow', side_effect=[
                exception.NoSpace(path='x', reason='full')]):
            chain.delete_snapshot(self.root, VOLUME, 'unknown')
        self.assertIsNone(self.intent())
        self.check(TWO, extra=1)

    @ddt.data((chain.qemu_img, 'commit', 1), (chain.qemu_img, 'rebase', 1),
              (chain, '_drop_layer', 1), (record, 'remove_file', 1))
    @ddt.unpack
    def test_killed_and_no_space_for_what_is_left(self, target, name, count):
        """However far it came, the volume goes on on a full share."""
        self.leave()
        self.killed(target, name, count, chain.delete_snapshot, VOLUME,
                    'unknown')
        with self.full_share(errno.ENOSPC, 'commit'):
            chain.describe(self.root, VOLUME)
            chain.extend(self.root, VOLUME, test_chain.SIZE)
            self.assertIsNone(self.intent())
        chain.delete_snapshot(self.root, VOLUME, 'unknown')
        self.check(TWO)

    def test_guest_after_a_killed_tidying(self):
        self.leave()
        self.killed(chain.qemu_img, 'commit', 1, chain.delete_snapshot,
                    VOLUME, 'unknown')
        with self.full_share(errno.ENOSPC, 'commit'):
            chain.describe(self.root, VOLUME)
        self.guest()
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)

    def test_no_space_to_write_down_what_was_merged(self):
        self.leave()
        begin = record.Record.begin

        def fail(rec, operation, **steps):
            if operation == 'remove':
                raise exception.NoSpace(path='x', reason='full')
            begin(rec, operation, **steps)

        with mock.patch.object(record.Record, 'begin', fail):
            self.assertRaises(exception.NoSpace, chain.extend, self.root,
                              VOLUME, 2 * test_chain.SIZE)
        self.check(TWO)

    def test_a_deletion_with_an_unknown_guest(self):
        self.leave()
        self.guest()
        chain.delete_snapshot(self.root, VOLUME, 'unknown')
        self.assertIsNone(self.intent())
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)

    def test_guest_has_yet_to_do_it(self):
        self.prepare('raw')
        info = chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        self.guest()
        self.assertRaises(exception.OperationPending, chain.settle,
                          self.root, VOLUME)
        self.assertRaises(exception.OperationPending, chain.create_snapshot,
                          self.root, VOLUME, 'three')
        # The guest can still be attached elsewhere, and Nova asked again.
        self.assertEqual(overlay(TWO), chain.describe(self.root, VOLUME)[
            'active'])
        self.assertEqual(info, chain.begin_delete_snapshot(
            self.root, VOLUME, ONE))
        self.assertRaises(exception.OperationPending,
                          chain.begin_delete_snapshot, self.root, VOLUME, TWO)

    def test_guest_has_gone(self):
        """Part of it may lie in the lower layer, so it is finished."""
        self.prepare('raw')
        chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        chain.settle(self.root, VOLUME)
        self.check(TWO)

    def test_guest_was_killed_at_the_end(self):
        """The files refer to each other already, but data may be missing."""
        self.prepare('raw')
        chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        self.rebase(overlay(TWO), BASE, '-u')
        chain.settle(self.root, VOLUME)
        self.check(TWO)

    def left(self):
        """Let the latest snapshot leave its layer, below another one."""
        self.prepare('raw')
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        chain.create_snapshot(self.root, VOLUME, test_chain.THREE)
        self.contents[test_chain.THREE] = self.contents[None]
        self.contents[None] = self.fill(10, offset=8192)

    def test_latest_that_is_half_merged(self):
        """What it held may be overwritten, so nothing else is merged."""
        self.left()
        with self.full_share(errno.ENOSPC, 'commit'):
            self.assertRaises(exception.NoSpace, chain.delete_snapshot,
                              self.root, VOLUME, test_chain.THREE)
        self.guest()
        self.assertIsNone(chain.begin_delete_snapshot(
            self.root, VOLUME, test_chain.THREE))
        self.assertRaises(exception.SnapshotNotFound, chain.copy, self.root,
                          VOLUME, test_chain.THREE, self.root,
                          test_chain.OTHER, 'raw', test_chain.SIZE)

    def test_no_space_after_a_killed_merge_of_what_is_left(self):
        self.left()
        self.killed(chain, '_drop_layer', 1, chain.delete_snapshot, VOLUME,
                    'unknown')
        with self.full_share(errno.ENOSPC, 'commit'):
            chain.describe(self.root, VOLUME)
        self.check(ONE, test_chain.THREE)

    @ddt.data((chain.convert, 'raw', True), (chain.load, '/dev/null', 'raw'))
    def test_a_guest_has_what_is_left(self, call):
        self.prepare('raw')
        chain.delete_snapshot(self.root, VOLUME, ONE)
        chain.begin_delete_snapshot(self.root, VOLUME, TWO)
        self.guest()
        self.assertRaises(exception.VolumeBusy, call[0], self.root, VOLUME,
                          *call[1:])
        self.assertIsNone(self.intent())

    def test_strange_chain(self):
        self.prepare('raw')
        chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        self.rebase(overlay(TWO), 'volume-of-another', '-u')
        self.assertRaises(exception.RecordError, chain.settle, self.root,
                          VOLUME)

    def test_nothing_to_merge(self):
        self.prepare('raw')
        self.assertIsNone(chain.begin_delete_snapshot(self.root, VOLUME,
                                                      'unknown'))
