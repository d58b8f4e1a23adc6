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
import fcntl
import json
import os
import subprocess
from unittest import mock

import ddt
import testtools

from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests.unit import storage

VOLUME = '6a9b8f4e-3a4d-4f0e-9c43-0d9a1f0f3f61'
BASE = 'volume-' + VOLUME
SNAPSHOT = '2f1c0d9a-77a0-4c3c-8f53-5d6b7e8f9a01'
OVERLAY = '%s.%s' % (BASE, SNAPSHOT)


class RecordTestCase(storage.StorageTestCase):

    def make(self, snapshots=True):
        """Record a volume, with one snapshot, and without any file."""
        with record.fence(self.root, VOLUME, create=True):
            rec = record.Record(self.root, VOLUME, BASE, {})
            rec.add_layer(BASE, 'raw', 1024)
            if snapshots:
                rec.layers[BASE]['children'].append(OVERLAY)
                rec.add_layer(OVERLAY, 'qcow2', 2048, parent=BASE)
                rec.active = rec.snapshots[SNAPSHOT] = OVERLAY
            rec.save()
        return rec

    def load(self):
        with record.fence(self.root, VOLUME):
            return record.load(self.root, VOLUME)


# Some of the texts would make test names that no tool can print.
@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class ContentTestCase(RecordTestCase):

    def test_what_was_saved_is_loaded(self):
        saved = self.make()
        saved.begin('extend', size=4096)
        loaded = self.load()
        self.assertEqual(
            (saved.active, saved.layers, saved.snapshots, saved.intent),
            (loaded.active, loaded.layers, loaded.snapshots, loaded.intent))
        self.assertEqual(
            {'format': 'qcow2', 'size': 2048, 'parent': BASE, 'children': [],
             'thick': False}, loaded.top)
        self.assertEqual(BASE, loaded.of_snapshot(SNAPSHOT))
        self.assertRaises(exception.SnapshotNotFound, loaded.of_snapshot,
                          'other')

    def test_the_sidecar_says_everything(self):
        self.make()
        self.assertEqual(
            {'version': 1, 'volume': VOLUME, 'active': OVERLAY,
             'snapshots': {SNAPSHOT: OVERLAY}, 'intent': None,
             'layers': {
                 BASE: {'format': 'raw', 'size': 1024, 'parent': None,
                        'children': [OVERLAY], 'thick': False},
                 OVERLAY: {'format': 'qcow2', 'size': 2048, 'parent': BASE,
                           'children': [], 'thick': False}}},
            self.share.record(VOLUME))

    def test_an_intent_says_who_does_what(self):
        rec = self.make()
        rec.begin('snapshot', file=OVERLAY)
        intent = self.share.record(VOLUME)['intent']
        self.assertEqual({'operation', 'file', 'host', 'boot_id', 'pid',
                          'started'}, set(intent))
        self.assertEqual(('snapshot', OVERLAY, os.getpid()), (
            intent['operation'], intent['file'], intent['pid']))
        rec.finish()
        self.assertIsNone(self.share.record(VOLUME)['intent'])

    def test_the_mirror_has_the_form_of_remotefs(self):
        self.make()
        self.assertEqual(
            json.dumps({'active': OVERLAY, SNAPSHOT: OVERLAY}, indent=1,
                       sort_keys=True), self.share.info(VOLUME))

    def test_without_snapshots_there_is_no_mirror(self):
        rec = self.make(snapshots=False)
        self.assertNotIn(BASE + '.info', self.share.files())
        rec = self.make()
        del rec.snapshots[SNAPSHOT]
        rec.active = BASE
        rec.save()
        self.assertNotIn(BASE + '.info', self.share.files())

    @ddt.data(0o000, 0o022, 0o077)
    def test_modes(self, umask):
        os.umask(umask)
        self.make()
        self.assertEqual(0o700, self.mode('.cinder-lustre'))
        for suffix in ('.json', '.lock'):
            self.assertEqual(0o600, self.mode('.cinder-lustre',
                                              VOLUME + suffix))
        self.assertEqual(0o660, self.mode(BASE + '.info'))
        # What comes next in this process finds the umask as it was.
        self.assertEqual(umask, os.umask(umask))

    def test_the_directory_is_made_once_and_for_the_mdt(self):
        self.make()
        self.make()
        self.set_dom_default.assert_called_once_with(
            self.share.path('.cinder-lustre'))

    @ddt.data(None, b'', b'{"active": "volume-other"}', b'\xff\xfe\x00')
    def test_a_mirror_that_differs_is_written_anew(self, content):
        self.make()
        mirror = self.share.path(BASE + '.info')
        expected = self.share.info(VOLUME)
        os.unlink(mirror)
        if content is not None:
            with open(mirror, 'wb') as stream:
                stream.write(content)
        self.load()
        self.assertEqual(expected, self.share.info(VOLUME))

    def test_a_mirror_without_snapshots_is_removed(self):
        self.make(snapshots=False)
        with open(self.share.path(BASE + '.info'), 'w') as stream:
            stream.write('{"active": "%s"}' % BASE)
        self.load()
        self.assertNotIn(BASE + '.info', self.share.files())

    def test_a_mirror_that_cannot_be_written_stops_nothing(self):
        self.make()
        os.unlink(self.share.path(BASE + '.info'))
        with mock.patch.object(os, 'fsync', side_effect=OSError(
                errno.ENOSPC, 'No space left on device')):
            rec = self.load()
        self.assertNotIn(BASE + '.info', self.share.files())
        rec.save()
        self.assertIn(BASE + '.info', self.share.files())

    def test_a_newer_version_is_refused(self):
        self.make()
        with open(self.share.sidecar(VOLUME), 'w') as stream:
            json.dump({'version': 2}, stream)
        error = self.assertRaises(exception.RecordError, self.load)
        self.assertIn(self.share.sidecar(VOLUME), str(error))
        self.assertIn('version 2', str(error))
        self.assertIn('Upgrade', str(error))
        self.assertEqual({'version': 2}, self.share.record(VOLUME))

    @ddt.data(
        lambda content: content.clear(),
        lambda content: content.update(version=0),
        lambda content: content.update(version='1'),
        lambda content: content.pop('version'),
        lambda content: content.update(volume='another'),
        lambda content: content.pop('intent'),
        lambda content: content.update(active='absent'),
        lambda content: content.update(active=None),
        lambda content: content.update(layers=[]),
        lambda content: content.update(layers={}),
        lambda content: content.update(snapshots=['x']),
        lambda content: content['snapshots'].update(x='absent'),
        lambda content: content['snapshots'].update(x=BASE),
        lambda content: content['layers'].pop(BASE),
        lambda content: content['layers'][BASE].update(format='vmdk'),
        lambda content: content['layers'][BASE].update(format=None),
        lambda content: content['layers'][BASE].update(size='1024'),
        lambda content: content['layers'][BASE].update(size=-1),
        lambda content: content['layers'][BASE].update(children=[]),
        lambda content: content['layers'][BASE].update(children=None),
        lambda content: content['layers'][BASE].update(parent=OVERLAY),
        lambda content: content['layers'][BASE].pop('thick'),
        lambda content: content['layers'][OVERLAY].update(parent=None),
        lambda content: content['layers'][OVERLAY].update(parent='/etc/x'),
        lambda content: content['layers'][OVERLAY].update(parent=''),
        lambda content: content['layers'][OVERLAY].update(
            parent=OVERLAY, children=[OVERLAY]),
        lambda content: content.update(intent='snapshot'),
        lambda content: content.update(intent={}),
        lambda content: content.update(intent={'file': '../x'}),
    )
    def test_a_damaged_sidecar_is_refused_by_name(self, damage):
        self.make()
        self.share.change_record(VOLUME, damage)
        before = self.share.record(VOLUME)
        error = self.assertRaises(exception.RecordError, self.load)
        self.assertIn(self.share.sidecar(VOLUME), str(error))
        self.assertIn('Restore', str(error))
        self.assertEqual(before, self.share.record(VOLUME))

    @staticmethod
    def complete_intents():
        layer = {'format': 'qcow2', 'size': 2048, 'parent': BASE,
                 'children': [], 'thick': False}
        new = {'snapshot': 'x', 'file': BASE + '.x', 'lower': OVERLAY}
        merge = {'snapshot': SNAPSHOT, 'file': OVERLAY, 'lower': BASE}
        return {
            'snapshot': new,
            'online-snapshot': new,
            'merge': merge,
            'online-merge': merge,
            'remove': {'file': BASE + '.x'},
            'switch': {'file': OVERLAY, 'layer': layer,
                       'obsolete': [BASE + '.x']},
            'manage': {'source': 'disk'},
            'take-over': {'old': 'x'}}

    def make_with_intent(self, operation, steps):
        rec = self.make()
        if 'snapshot' in operation:
            rec.top['children'].append(steps['file'])
        rec.begin(operation, **steps)

    def test_complete_intents(self):
        for operation, steps in self.complete_intents().items():
            self.make_with_intent(operation, steps)
            self.assertEqual(steps, {step: self.load().intent[step]
                                     for step in steps})

    def test_an_intent_that_lacks_a_step_is_refused(self):
        for operation, steps in self.complete_intents().items():
            for step in steps:
                self.make_with_intent(operation, steps)
                self.share.change_record(
                    VOLUME, lambda content: content['intent'].pop(step))
                self.assert_damaged(operation, step)

    @ddt.data(None, 7, [7], {})
    def test_an_intent_with_a_wrong_step_is_refused(self, value):
        for operation, steps in self.complete_intents().items():
            for step in steps:
                if (operation, step, value) == ('merge', 'snapshot', None):
                    # It merges what deleted snapshots have left.
                    continue
                self.make_with_intent(operation, steps)
                self.share.change_record(
                    VOLUME, lambda content: content['intent'].update(
                        {step: value}))
                self.assert_damaged(operation, step)

    def test_an_intent_that_names_what_is_not_there_is_refused(self):
        for operation, step in (
                ('snapshot', 'lower'), ('online-snapshot', 'lower'),
                ('merge', 'lower'), ('merge', 'snapshot'),
                ('online-merge', 'file'), ('online-merge', 'snapshot')):
            self.make_with_intent(operation, dict(
                self.complete_intents()[operation], **{step: 'absent'}))
            self.assert_damaged(operation, step)

    @ddt.data('format', 'size', 'parent', 'children', 'thick')
    def test_a_new_layer_that_lacks_something_is_refused(self, key):
        steps = self.complete_intents()['switch']
        del steps['layer'][key]
        self.make_with_intent('switch', steps)
        self.assert_damaged('switch', key)

    def assert_damaged(self, *what):
        with testtools.ExpectedException(
                exception.RecordError, '.* is damaged .*', msg=str(what)):
            self.load()

    @ddt.data(b'', b'{', b'null', b'[]', b'7', b'\xff\xfe', bytes(100))
    def test_a_sidecar_that_is_none_is_refused_by_name(self, content):
        self.make()
        with open(self.share.sidecar(VOLUME), 'wb') as stream:
            stream.write(content)
        error = self.assertRaises(exception.RecordError, self.load)
        self.assertIn(self.share.sidecar(VOLUME), str(error))

    @ddt.data('/etc/passwd', '../x', 'a/b', '.', '..', '.hidden', '', 'a,b',
              'nbd:unix', 'a b', 'a\0b', 'a\n', '-a')
    def test_names_that_are_not_plain_are_refused(self, name):
        def rename_base(content):
            content['layers'][name] = content['layers'].pop(BASE)
            content['layers'][OVERLAY]['parent'] = name

        def rename_overlay(content):
            content['layers'][name] = content['layers'].pop(OVERLAY)
            content['layers'][BASE]['children'] = [name]
            content['active'] = content['snapshots'][SNAPSHOT] = name

        def add_child(content):
            content['layers'][OVERLAY]['children'] = [name]

        def add_intent(content):
            content['intent'] = {'operation': 'remove', 'file': name}

        for change in (rename_base, rename_overlay, add_child, add_intent):
            self.make()
            self.share.change_record(VOLUME, change)
            self.assertRaises(exception.RecordError, self.load)

    @ddt.data(errno.ENOSPC, errno.EDQUOT)
    def test_a_full_share_leaves_the_record_as_it_was(self, code):
        rec = self.make()
        before = self.share.record(VOLUME)
        files = self.share.files()
        for function in ('fsync', 'open', 'rename'):
            with mock.patch.object(os, function, side_effect=OSError(
                    code, os.strerror(code))):
                error = self.assertRaises(exception.NoSpace, rec.begin, 'x')
            self.assertEqual(os.strerror(code), error.kwargs['reason'])
            self.assertEqual(before, self.share.record(VOLUME))
            self.assertEqual(files, self.share.files())

    def test_nothing_is_written_through_a_link(self):
        rec = self.make()
        target = self.share.path('elsewhere')
        with open(target, 'w') as stream:
            stream.write('precious')
        os.symlink(target, record._temporary(self.share.sidecar(VOLUME)))
        error = self.assertRaises(OSError, rec.begin, 'x')
        self.assertEqual(errno.ELOOP, error.errno)
        with open(target) as stream:
            self.assertEqual('precious', stream.read())

    @ddt.data(errno.ENOSPC, errno.EDQUOT)
    def test_a_full_share_takes_no_new_volume(self, code):
        for function in ('mkdir', 'open'):
            with mock.patch.object(os, function, side_effect=OSError(
                    code, os.strerror(code))):
                error = self.assertRaises(exception.NoSpace, self.make)
            self.assertIn('.cinder-lustre', str(error))
            self.assertEqual([], self.share.files())
            # Next, that is there.
            os.makedirs(self.share.path('.cinder-lustre'), exist_ok=True)

    def test_another_failure_names_the_file(self):
        rec = self.make()
        before = self.share.record(VOLUME)
        files = self.share.files()
        with mock.patch.object(os, 'rename', side_effect=OSError(
                errno.EIO, 'Input/output error')):
            error = self.assertRaises(OSError, rec.begin, 'x')
        self.assertEqual((errno.EIO, self.share.sidecar(VOLUME)),
                         (error.errno, error.filename))
        self.assertEqual(before, self.share.record(VOLUME))
        self.assertEqual(files, self.share.files())

    def test_a_record_is_replaced_in_one_step(self):
        rec = self.make()
        with open(self.share.sidecar(VOLUME)) as stream:
            rec.begin('x')
            # Who had it open still reads the whole former one.
            self.assertIsNone(json.load(stream)['intent'])

    def test_remove(self):
        self.make()
        for name in (BASE + '.info', '.%s.info.new' % BASE,
                     '.cinder-lustre/.%s.json.new' % VOLUME):
            with open(self.share.path(name), 'w') as stream:
                stream.write('{')
        with record.fence(self.root, VOLUME):
            record.remove(self.root, VOLUME)
            self.assertFalse(record.exists(self.root, VOLUME))
        self.assertEqual([], self.share.files())


class FenceTestCase(RecordTestCase):

    def setUp(self):
        super().setUp()
        self.patch(record, '_FENCE_WAIT', 0)
        self.lock = self.share.path('.cinder-lustre', VOLUME + '.lock')

    def hold(self):
        """Take the lock, as a process of another host would."""
        descriptor = os.open(self.lock, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def test_busy(self):
        self.make().begin('extend')
        descriptor = self.hold()
        error = self.assertRaises(exception.VolumeBusy, self.load)
        self.assertIn('"extend" of process %s' % os.getpid(), str(error))
        os.close(descriptor)
        self.load()

    def test_busy_without_an_intent(self):
        self.make()
        descriptor = self.hold()
        self.addCleanup(os.close, descriptor)
        error = self.assertRaises(exception.VolumeBusy, self.load)
        self.assertIn('another process', str(error))

    def test_busy_within_one_process(self):
        self.make()
        with record.fence(self.root, VOLUME):
            self.assertRaises(exception.VolumeBusy, self.load)
        self.load()

    def test_it_waits(self):
        self.make()
        self.patch(record, '_FENCE_WAIT', 60)
        descriptor = self.hold()
        waited = self.patch(record.time, 'sleep', side_effect=[
            None, None, None])
        waited.side_effect = lambda seconds: (
            waited.call_count == 3 and os.close(descriptor))
        self.load()
        self.assertEqual(3, waited.call_count)

    def test_a_child_that_lives_on_keeps_it(self):
        self.make()
        with record.fence(self.root, VOLUME):
            child = subprocess.Popen(['sleep', '600'], close_fds=False)
        try:
            self.assertRaises(exception.VolumeBusy, self.load)
        finally:
            child.kill()
            child.wait()
        self.load()

    def test_readers_share_it(self):
        self.make()
        with record.fence(self.root, VOLUME, shared=True):
            with record.fence(self.root, VOLUME, shared=True):
                self.assertRaises(exception.VolumeBusy, self.load)
        self.load()
        descriptor = self.hold()
        try:
            with testtools.ExpectedException(exception.VolumeBusy):
                with record.fence(self.root, VOLUME, shared=True):
                    pass
        finally:
            os.close(descriptor)

    def test_it_is_free_after_an_error(self):
        self.make()
        try:
            with record.fence(self.root, VOLUME):
                raise ValueError()
        except ValueError:
            pass
        self.load()

    def test_an_unknown_volume(self):
        error = self.assertRaises(exception.RecordError, self.load)
        self.assertIn(self.lock, str(error))
        self.make()
        os.unlink(self.share.sidecar(VOLUME))
        error = self.assertRaises(exception.RecordError, self.load)
        self.assertIn(self.share.sidecar(VOLUME), str(error))

    def test_a_lock_that_was_lost_is_made_again(self):
        self.make()
        os.unlink(self.lock)
        self.load()
        self.assertEqual(0o600, self.mode('.cinder-lustre',
                                          VOLUME + '.lock'))

    def test_it_goes_with_the_record(self):
        self.make()
        with record.fence(self.root, VOLUME):
            self.assertTrue(os.path.exists(self.lock))
            record.remove(self.root, VOLUME)
        self.assertEqual([], self.share.files())

    def test_the_lock_of_a_deleted_volume_counts_for_nothing(self):
        self.make()
        real = fcntl.flock

        def delete_first(descriptor, operation):
            # As if a deletion ended between opening and locking.
            if os.path.exists(self.lock):
                os.unlink(self.lock)
                os.unlink(self.share.sidecar(VOLUME))
            real(descriptor, operation)

        with mock.patch.object(fcntl, 'flock', side_effect=delete_first):
            self.assertRaises(exception.RecordError, self.load)
        self.assertNotIn('.cinder-lustre/%s.lock' % VOLUME,
                         self.share.files())

    def test_a_lock_that_was_made_after_a_deletion_goes(self):
        self.make()
        real = record.exists
        found = []

        def delete_then(root, volume):
            # As if a deletion ended just after this.
            found.append(real(root, volume))
            if len(found) == 1:
                record.remove(root, volume)
                os.unlink(self.lock)
            return found[-1]

        self.patch(record, 'exists', delete_then)
        self.assertRaises(exception.RecordMissing, self.load)
        self.assertEqual([], self.share.files())

    def test_the_lock_of_a_deleted_volume_is_made_anew(self):
        self.make()
        real = fcntl.flock
        locked = []

        def delete_first(descriptor, operation):
            if not locked:
                os.unlink(self.lock)
            real(descriptor, operation)
            locked.append(os.fstat(descriptor).st_ino)

        with mock.patch.object(fcntl, 'flock', side_effect=delete_first):
            with record.fence(self.root, VOLUME, create=True):
                self.assertEqual(locked[-1], os.stat(self.lock).st_ino)
        self.assertEqual(2, len(locked))

    def test_no_descriptor_stays_open(self):
        self.make()
        before = os.listdir('/proc/self/fd')
        self.load()
        descriptor = self.hold()
        self.assertRaises(exception.VolumeBusy, self.load)
        os.close(descriptor)
        self.assertEqual(before, os.listdir('/proc/self/fd'))
