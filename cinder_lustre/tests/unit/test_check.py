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


import fcntl
import json
import os
import subprocess
import time
from unittest import mock

import ddt

from cinder_lustre import adoption
from cinder_lustre import chain
from cinder_lustre import check
from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre.tests import killed
from cinder_lustre.tests import share_directory
from cinder_lustre.tests.unit import storage

MIB = share_directory.MIB
VOLUME = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60001'
OTHER = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60002'
SNAPSHOT = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60003'
LATER = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60004'
BASE = 'volume-' + VOLUME
OVERLAY = '%s.%s' % (BASE, SNAPSHOT)
INFO = BASE + '.info'
HOUR = 3600


class CheckTestCase(storage.StorageTestCase):

    def create(self, fmt='raw', *snapshots, volume=VOLUME):
        chain.create(self.root, volume, fmt, MIB)
        for snapshot in snapshots:
            chain.create_snapshot(self.root, volume, snapshot)

    def change_intent(self, **values):
        """Change the intent of the volume, as time does."""
        self.share.change_record(
            VOLUME, lambda content: content['intent'].update(values))

    def interrupt(self, operation, *args, target=record,
                  attribute='sync_directory', count=1):
        """Let an operation on the volume be killed on its way."""
        self.assertTrue(killed.run(target, attribute, count, operation,
                                   self.root, VOLUME, *args))

    def interrupt_merge(self):
        self.interrupt(chain.delete_snapshot, SNAPSHOT, target=qemu_img,
                       attribute='commit')

    def check(self, **kwargs):
        """Check the share; without repair, that changes nothing."""
        before = None if kwargs.get('repair') else self.all_files()
        found = check.check(self.root, **kwargs)
        if before is not None:
            self.assertEqual(before, self.all_files())
        return found['findings']

    def all_files(self):
        files = {}
        for name in self.share.files():
            with open(self.share.path(name), 'rb') as stream:
                files[name] = (os.fstat(stream.fileno()).st_mode,
                               stream.read())
        return files

    def find(self, *expected, **kwargs):
        """Check the share, and compare severities, codes and things.

        :param expected: severity, code, and a part of the whole text
        """
        findings = self.check(**kwargs)
        self.assertEqual([each[:2] for each in expected],
                         [(each['severity'], each['code'])
                          for each in findings])
        for (_severity, _code, text), found in zip(expected, findings):
            self.assertIn(text, '%(thing)s: %(cause)s %(cure)s' % found)
            self.assertTrue(found['cause'].endswith('.'), found)
            self.assertTrue(found['cure'].endswith('.'), found)
        return findings

    def repair(self, *codes, left=()):
        """Repair the share; a second look finds only what is left."""
        self.assertEqual(
            list(codes), [each['code'] for each in self.check(repair=True)
                          if each['repaired']])
        self.assertEqual(list(left), [each['code'] for each in self.check()])


@ddt.ddt
class CleanTestCase(CheckTestCase):

    @ddt.data('raw', 'qcow2')
    def test_volumes(self, fmt):
        self.create(fmt)
        self.create(fmt, SNAPSHOT, LATER, volume=OTHER)
        self.find()
        self.assertEqual(
            {'findings': [], 'skipped': [], 'volumes': {
                VOLUME: {'format': fmt, 'size': MIB, 'snapshots': []},
                OTHER: {'format': 'qcow2', 'size': MIB,
                        'snapshots': [SNAPSHOT, LATER]}}},
            check.check(self.root))

    @ddt.data('raw', 'qcow2')
    def test_after_every_operation(self, fmt):
        self.create(fmt, SNAPSHOT)
        chain.extend(self.root, VOLUME, 2 * MIB)
        self.find()
        chain.create_snapshot(self.root, VOLUME, LATER)
        chain.copy(self.root, VOLUME, SNAPSHOT, self.root, OTHER, fmt,
                   4 * MIB)
        self.find()
        chain.delete_snapshot(self.root, VOLUME, SNAPSHOT)
        self.find()
        chain.revert(self.root, VOLUME, LATER)
        self.find()
        chain.delete_snapshot(self.root, VOLUME, LATER)
        self.find()
        chain.delete(self.root, VOLUME)
        chain.delete(self.root, OTHER)
        self.find()

    def test_operators_files_are_left_alone(self):
        self.create()
        for name in ('image.raw', '.hidden', 'base', 'base-camp', 'info'):
            self.touch(name)
        os.mkdir(self.share.path('lost+found'))
        self.find()

    def test_a_record_without_a_lock(self):
        self.create('raw', SNAPSHOT)
        os.unlink(self.share.path('.cinder-lustre', VOLUME + '.lock'))
        self.find()

    def test_a_volume_that_a_guest_has_open(self):
        self.create('qcow2', SNAPSHOT)
        process = subprocess.Popen(
            ['qemu-io', '-f', 'qcow2', self.share.path(OVERLAY)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.communicate, b'quit\n')
        self.assertEqual(b'qemu-io> ', process.stdout.read(9))
        self.find()

    def test_a_directory_that_never_had_volumes(self):
        self.find(('note', 'no-records', 'is not mounted'))
        self.find(('note', 'no-records', 'is not mounted'), repair=True)

    def test_no_directory(self):
        self.assertRaises(FileNotFoundError, check.check,
                          self.share.path('gone'))

    def test_contents_are_not_interpreted(self):
        """What a guest writes into a raw volume is nobody's business."""
        self.create('raw', SNAPSHOT)
        self.create('raw', volume=OTHER)
        for name in (BASE, 'volume-' + OTHER):
            subprocess.run(
                ['qemu-img', 'create', '-q', '-u', '-f', 'qcow2', '-b',
                 '/etc/passwd', '-F', 'raw', self.share.path('header'),
                 '1M'], check=True)
            with open(self.share.path('header'), 'rb') as stream, open(
                    self.share.path(name), 'r+b') as volume:
                volume.write(stream.read())
            os.truncate(self.share.path(name), MIB)
            os.unlink(self.share.path('header'))
        with self.fake_qemu_img(
                'case "$*" in *%s) ;; *) exit 1;; esac; exec "$REAL" "$@"'
                % OVERLAY):
            self.find()

    def test_progress(self):
        self.create()
        self.create(volume=OTHER)
        os.chmod(self.share.path('volume-' + OTHER), 0o666)
        reports = []
        with mock.patch.object(check.worker, 'progress', reports.append):
            findings = self.check()
        reports = [report for report in reports if report]
        self.assertEqual([(VOLUME, 0, 2), (OTHER, 1, 2), (None, 2, 2)],
                         [(report['volume'], report['done'], report['total'])
                          for report in reports][:3])
        self.assertEqual(findings, sum((report['findings']
                                        for report in reports), []))
        self.assertEqual('mode', reports[2]['findings'][0]['code'])


@ddt.ddt
class RecordTestCase(CheckTestCase):

    @ddt.data('', '{', '[]', '{"version": 1}')
    def test_damaged(self, text):
        self.create('raw', SNAPSHOT)
        with open(self.share.sidecar(VOLUME), 'w') as stream:
            stream.write(text)
        self.find(('error', 'record-damaged', VOLUME + '.json: '))
        self.repair(left=['record-damaged'])

    def test_newer(self):
        self.create('raw', SNAPSHOT)
        self.share.change_record(VOLUME,
                                 lambda content: content.update(version=2))
        found, = self.find(('error', 'record-newer', 'has version 2'))
        self.assertEqual('Upgrade cinder-lustre on this host.', found['cure'])
        self.repair(left=['record-newer'])

    def test_without_files(self):
        self.create('raw', SNAPSHOT)
        os.unlink(self.share.path(BASE))
        os.unlink(self.share.path(OVERLAY))
        self.find(('error', 'record-without-files', VOLUME))
        self.repair(left=['record-without-files'])

    @ddt.data(BASE, OVERLAY)
    def test_without_a_layer(self, name):
        self.create('raw', SNAPSHOT)
        os.unlink(self.share.path(name))
        self.find(('error', 'layer-missing', self.share.path(name)))

    @ddt.data(None, '{', '{"active": "%s"}' % BASE)
    def test_mirror(self, text):
        self.create('raw', SNAPSHOT)
        expected = self.share.info(VOLUME)
        os.unlink(self.share.path(INFO))
        if text is not None:
            with open(self.touch(INFO), 'w') as stream:
                stream.write(text)
        self.find(('warning', 'mirror', INFO))
        self.repair('mirror')
        self.assertEqual(expected, self.share.info(VOLUME))

    def test_mirror_that_is_not_needed(self):
        self.create()
        self.touch(INFO)
        self.find(('warning', 'mirror', INFO))
        self.repair('mirror')
        self.assertNotIn(INFO, self.share.files())

    def test_mirror_on_a_full_share(self):
        self.create('raw', SNAPSHOT)
        os.unlink(self.share.path(INFO))
        with mock.patch.object(record.Record, '_save_mirror',
                               side_effect=exception.NoSpace(
                                   path=INFO, reason='full')):
            found, = self.check(repair=True)
        self.assertIsNone(found['repaired'])

    def test_two_volumes_with_one_file(self):
        self.create()
        with open(self.share.sidecar(OTHER), 'w') as stream:
            json.dump(dict(self.share.record(VOLUME), volume=OTHER), stream)
        self.find(('error', 'file-shared', VOLUME),
                  ('warning', 'mirror', OTHER))

    def test_child_that_is_not_there(self):
        self.create('raw')
        self.share.change_record(
            VOLUME, lambda content: content['layers'][BASE][
                'children'].append('volume-' + OTHER))
        self.find(('warning', 'child-missing', OTHER))
        self.create('raw', volume=OTHER)
        self.find()


@ddt.ddt
class ImageTestCase(CheckTestCase):

    def overlay(self, *options):
        """Make the overlay anew."""
        subprocess.run(['qemu-img', 'create', '-q', '-u', '-f', 'qcow2',
                        *options, self.share.path(OVERLAY), '1M'],
                       check=True)

    @ddt.data('raw', 'qcow2')
    def test_larger(self, fmt):
        self.create(fmt)
        subprocess.run(['qemu-img', 'resize', '-q', '-f', fmt,
                        self.share.path(BASE), '2M'], check=True)
        self.find(('error', 'size-larger', '%d bytes' % (2 * MIB)))
        self.repair(left=['size-larger'])

    @ddt.data('raw', 'qcow2')
    def test_smaller(self, fmt):
        self.create(fmt)
        subprocess.run(['qemu-img', 'resize', '-q', '--shrink', '-f', fmt,
                        self.share.path(BASE), '512K'], check=True)
        self.find(('warning', 'size-smaller', '%d bytes' % (MIB // 2)))

    def test_lower_layer_that_was_cut(self):
        self.create('raw', SNAPSHOT)
        os.truncate(self.share.path(BASE), MIB // 2)
        self.find(('warning', 'size-smaller', self.share.path(BASE)))

    @ddt.data((), ('-b', '/etc/passwd', '-F', 'raw'),
              ('-b', BASE, '-F', 'qcow2'))
    def test_backing(self, options):
        self.create('raw', SNAPSHOT)
        self.overlay(*options)
        self.find(('error', 'backing', OVERLAY))
        self.repair(left=['backing'])

    def test_base_that_refers_to_a_file(self):
        self.create('qcow2')
        subprocess.run(['qemu-img', 'rebase', '-q', '-u', '-f', 'qcow2', '-b',
                        '/etc/passwd', '-F', 'raw', self.share.path(BASE)],
                       check=True)
        self.find(('error', 'backing', '/etc/passwd (raw)'))

    def test_data_file(self):
        self.create('qcow2')
        os.unlink(self.share.path(BASE))
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'data_file=%s'
             % self.share.path('data'), self.share.path(BASE), '1M'],
            check=True)
        os.chmod(self.share.path(BASE), 0o660)
        self.find(('error', 'data-file', self.share.path('data')))

    def test_unreadable(self):
        self.create('qcow2')
        os.truncate(self.share.path(BASE), 0)
        self.find(('error', 'unreadable', 'as qcow2'))

    def test_corrupt(self):
        self.create('qcow2')
        with open(self.share.path(BASE), 'r+b') as stream:
            # The lowest byte of the incompatible features of version 3.
            stream.seek(79)
            stream.write(b'\2')
        self.find(('error', 'corrupt', BASE))

    def test_link(self):
        self.create('qcow2')
        os.rename(self.share.path(BASE), self.share.path('image'))
        os.symlink('image', self.share.path(BASE))
        self.find(('error', 'file-type', BASE))

    @ddt.data(0o664, 0o606, 0o661)
    def test_mode(self, mode):
        self.create('raw', SNAPSHOT)
        for name in (BASE, OVERLAY, INFO, '.cinder-lustre'):
            before = self.mode(name)
            os.chmod(self.share.path(name), mode)
            self.find(('warning', 'mode', self.share.path(name)))
            os.chmod(self.share.path(name), before)
        self.find()


@ddt.ddt
class LeftoverTestCase(CheckTestCase):

    @ddt.data(BASE, OVERLAY, INFO,
              'base-0c7c1f5e-58d0-4d8f-8d43-3c5a7be60005')
    def test_file_without_a_record(self, name):
        self.create(volume=OTHER)
        self.touch(name)
        self.find(('warning', 'file-without-record', self.share.path(name)))
        self.repair(left=['file-without-record'])

    def test_file_beside_a_volume(self):
        self.create()
        self.touch(OVERLAY)
        self.find(('warning', 'file-without-record', OVERLAY))

    def test_files_of_a_volume_that_lost_its_record(self):
        self.create('raw', SNAPSHOT)
        os.unlink(self.share.sidecar(VOLUME))
        self.find(*[('warning', 'file-without-record', name)
                    for name in (BASE, OVERLAY)],
                  ('warning', 'file-without-record', INFO))

    def test_files_that_another_volume_has_taken_over_meanwhile(self):
        self.create('raw', SNAPSHOT)
        listdir = os.listdir

        def take_over(path):
            found = listdir(path)
            if path.endswith('.cinder-lustre'):
                adoption.manage(self.root, OVERLAY, OTHER, 'raw', MIB)
            return found

        with mock.patch.object(check.os, 'listdir', take_over):
            self.assertEqual([], check.check(self.root)['findings'])
        self.find()

    def test_temporary(self):
        self.create()
        for volume in (VOLUME, OTHER):
            self.touch('.tmp-' + volume)
        self.find(('warning', 'temporary', '.tmp-'),
                  ('warning', 'temporary', '.tmp-'))
        self.repair('temporary', 'temporary')
        self.assertIn(BASE, self.share.files())

    def test_temporary_whose_volume_is_at_work(self):
        self.create()
        path = self.touch('.tmp-' + OTHER)
        with record.fence(self.root, OTHER, create=True):
            self.find(repair=True)
            self.assertTrue(os.path.exists(path))

    def test_temporary_that_statistics_made(self):
        self.create()
        path = self.touch('.tmp-abcd_123')
        self.find()
        then = time.time() - 4 * HOUR
        os.utime(path, (then, then))
        self.find(('warning', 'temporary', path))
        self.repair('temporary')

    @ddt.data('.%s.new' % INFO, '.cinder-lustre/.%s.json.new' % VOLUME)
    def test_what_was_not_written_completely(self, name):
        self.create()
        self.touch(name)
        self.find(('note', 'temporary', name))
        self.repair('temporary')

    def test_lock_without_a_record(self):
        self.create(volume=OTHER)
        name = '.cinder-lustre/%s.lock' % VOLUME
        self.touch(name)
        self.find(('warning', 'lock-without-record', name))
        self.repair('lock-without-record')
        self.assertNotIn(name, self.share.files())

    def test_lock_of_a_volume_that_is_being_made(self):
        self.create(volume=OTHER)
        with record.fence(self.root, VOLUME, create=True):
            self.find(repair=True)

    def test_lock_of_a_volume_that_was_made_meanwhile(self):
        self.touch('.lock')
        listdir = os.listdir

        def create(path):
            found = listdir(path)
            if path.endswith('.cinder-lustre'):
                self.create()
                found.append(VOLUME + '.lock')
            return found

        self.create(volume=OTHER)
        with mock.patch.object(check.os, 'listdir', create):
            self.assertEqual([], check.check(self.root)['findings'])

    def test_one_volume(self):
        self.create()
        self.create(volume=OTHER)
        for volume in (VOLUME, OTHER):
            os.chmod(self.share.path('volume-' + volume), 0o666)
            self.touch('.tmp-' + volume)
        self.touch('base-0c7c1f5e-58d0-4d8f-8d43-3c5a7be60005')
        self.find(('warning', 'mode', VOLUME),
                  ('warning', 'temporary', VOLUME), volume=VOLUME)
        self.find(('error', 'volume-missing', LATER), volume=LATER)


@ddt.ddt
class PendingTestCase(CheckTestCase):

    def test_unfinished_creation(self):
        self.create(volume=OTHER)
        self.interrupt(chain.create, 'raw', MIB)
        found, = self.find(('warning', 'unfinished-creation', '"create"'))
        self.assertIn(os.uname().nodename, found['cause'])
        self.repair('unfinished-creation')
        self.assertEqual([], [name for name in self.share.files()
                              if VOLUME in name])

    def test_creation_that_was_repeated_meanwhile(self):
        self.create(volume=OTHER)
        self.interrupt(chain.create, 'raw', MIB)

        def repeat(*args):
            chain.create(self.root, VOLUME, 'raw', MIB)
            return remove(*args)

        remove = check._remove_creation
        with mock.patch.object(check, '_remove_creation', repeat):
            found, = self.check(repair=True)
        self.assertIsNone(found['repaired'])
        self.find()

    @ddt.data('raw', 'qcow2')
    def test_unfinished_snapshot(self, fmt):
        self.create(fmt)
        self.interrupt(chain.create_snapshot, SNAPSHOT, count=2)
        self.change_intent(started=int(time.time()) - 3 * HOUR,
                           host='elsewhere')
        self.find(('warning', 'pending', '"snapshot" on host elsewhere, begun '
                   '3 hours ago'))
        self.repair('pending')
        self.assertEqual([BASE], [name for name in self.share.files()
                                  if name.startswith('volume-')])

    def test_unfinished_merge(self):
        self.create('raw', SNAPSHOT)
        self.interrupt_merge()
        self.find(('warning', 'pending', '"merge"'))
        self.repair('pending')
        self.assertEqual([], self.check())

    def test_merge_that_cannot_be_ended(self):
        self.create('raw', SNAPSHOT)
        self.interrupt_merge()
        with self.fake_qemu_img(
                'if [ "$1" = commit ]; then echo no >&2; exit 1; fi; '
                'exec "$REAL" "$@"'):
            self.repair(left=['pending'])
        self.repair('pending')

    @ddt.data('online-snapshot', 'online-merge')
    def test_operation_that_leaves_the_fence(self, operation):
        self.create('raw', SNAPSHOT)
        with record.fence(self.root, VOLUME):
            record.load(self.root, VOLUME).begin(
                operation, file=OVERLAY, lower=BASE, snapshot=SNAPSHOT)
        self.find(('note', 'at-work', '"%s"' % operation))
        self.find(('note', 'at-work', '"%s"' % operation), repair=True)
        self.change_intent(started=int(time.time()) - 4 * HOUR)
        self.find(('warning', 'pending', '"%s"' % operation))
        # Whether a guest still works on it, the driver alone can tell.
        before = self.all_files()
        self.find(('warning', 'pending', '"%s"' % operation), repair=True)
        self.assertEqual(before, self.all_files())

    def test_copy_of_a_migration(self):
        self.create(volume=OTHER)
        chain.copy(self.root, OTHER, None, self.root, VOLUME, 'raw', MIB,
                   moving=True)
        self.find(('note', 'arrived', VOLUME), repair=True)

    def test_operation_of_another_release(self):
        self.create()
        with record.fence(self.root, VOLUME):
            record.load(self.root, VOLUME).begin('invented')
        self.share.change_record(
            VOLUME, lambda content: content['intent'].update(started='?'))
        self.find(('warning', 'pending', '"invented"'))
        self.repair(left=['pending'])

    def test_layers_of_a_pending_volume(self):
        self.create()
        self.interrupt(chain.create_snapshot, SNAPSHOT, count=2)
        os.unlink(self.share.path(BASE))
        self.find(('error', 'record-without-files', VOLUME),
                  ('warning', 'pending', '"snapshot"'))

    @ddt.data('raw', 'qcow2')
    def test_at_work(self, fmt):
        self.create(fmt, SNAPSHOT)
        os.chmod(self.share.path(BASE), 0o666)
        self.touch('.tmp-' + VOLUME)
        with record.fence(self.root, VOLUME):
            record.load(self.root, VOLUME).begin('convert')
            self.find(('note', 'at-work', '"convert" on host'), repair=True)
            self.assertEqual([VOLUME], check.check(self.root)['skipped'])

    def test_being_read(self):
        self.create()
        with record.fence(self.root, VOLUME, shared=True):
            self.find()

    def test_at_work_without_a_readable_record(self):
        self.create()
        with open(self.share.sidecar(VOLUME), 'w') as stream:
            stream.write('{')
        with open(self.share.path('.cinder-lustre',
                                  VOLUME + '.lock')) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.find(('note', 'at-work', VOLUME))

    def test_deleted_meanwhile(self):
        self.create()
        load = record.load

        def delete(root, volume, **kwargs):
            os.unlink(self.share.sidecar(volume))
            os.unlink(self.share.path(BASE))
            os.unlink(self.share.path('.cinder-lustre', VOLUME + '.lock'))
            return load(root, volume, **kwargs)

        with mock.patch.object(check.record, 'load', delete):
            self.assertEqual([], check.check(self.root)['findings'])

    def test_repair_as_another_user(self):
        self.create()
        self.touch('.tmp-' + VOLUME)
        with mock.patch.object(os, 'geteuid', return_value=4711):
            error = self.assertRaises(exception.LustreException, self.check,
                                      repair=True)
        self.assertIn('user 4711', str(error))
        self.assertIn('.tmp-' + VOLUME, self.share.files())
