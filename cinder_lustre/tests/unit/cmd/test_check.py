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

"""The command, with a real child on real files and on Cinder's database."""

import contextlib
import inspect
import io
import json
import os
import re
import sys
from unittest import mock
import warnings

from cinder import context
from cinder.tests.unit import test
from cinder.tests.unit import utils as test_utils
import ddt
import fixtures
import testtools

import cinder_lustre
from cinder_lustre.brick import mount
from cinder_lustre import chain
from cinder_lustre import check
from cinder_lustre.cmd import check as command
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests.unit import storage
from cinder_lustre import worker

VOLUME = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60011'
OTHER = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60012'
SNAPSHOT = '0c7c1f5e-58d0-4d8f-8d43-3c5a7be60013'
BASE = 'volume-' + VOLUME
# As long as it takes on a busy machine.
PATIENCE = '300'

SHARE = '10.0.2.15@tcp:/testfs/cinder'
IDENTITY = 'lustre:/testfs/cinder'


class CommandMixin:
    """Runs the command in this process, and keeps what it prints."""

    def command(self, *arguments):
        """Run the command.

        :returns: its exit code
        """
        self.out, self.err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(self.out), \
                contextlib.redirect_stderr(self.err), \
                mock.patch.object(command.logging, 'basicConfig'):
            return command.main(['--timeout', PATIENCE, *arguments])

    def mounted(self, source, path, fstype='lustre'):
        """Let something be what is mounted."""
        mounts = mount.parse_mountinfo(
            '21 1 8:1 / / rw - ext4 /dev/vda1 rw\n'
            '37 21 0:45 / %s rw - %s %s rw,flock\n' % (path, fstype, source))
        self.useFixture(fixtures.MockPatchObject(mount, 'read_mounts',
                                                 lambda: mounts))


@ddt.ddt
class CommandTestCase(CommandMixin, storage.StorageTestCase):

    def test_clean(self):
        chain.create(self.root, VOLUME, 'qcow2', 1 << 20)
        self.assertEqual(0, self.command(self.root))
        self.assertEqual('1 volumes: 0 errors, 0 warnings, 0 notes, '
                         '0 repaired\n', self.out.getvalue())
        self.assertEqual('', self.err.getvalue())

    def test_notes_do_not_count(self):
        self.assertEqual(0, self.command(self.root))
        note, counts = self.out.getvalue().splitlines()
        self.assertTrue(note.startswith('note no-records: %s/.cinder-lustre: '
                                        % self.root))
        self.assertEqual('0 volumes: 0 errors, 0 warnings, 1 notes, '
                         '0 repaired', counts)

    def test_findings(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        os.chmod(self.share.path(BASE), 0o666)
        os.truncate(self.share.path(BASE), 2 << 20)
        self.assertEqual(1, self.command(self.root))
        mode, size, counts = self.out.getvalue().splitlines()
        self.assertEqual(
            'warning mode: %(path)s: its mode 0666 lets all users in. Run '
            '"chmod o= %(path)s".' % {'path': self.share.path(BASE)}, mode)
        self.assertTrue(size.startswith('error size-larger: '), size)
        self.assertEqual('1 volumes: 1 errors, 1 warnings, 0 notes, '
                         '0 repaired', counts)
        self.assertEqual(1, self.command(self.root, '--volume', OTHER))
        self.assertIn('error volume-missing: volume ' + OTHER,
                      self.out.getvalue())

    def test_what_a_guest_wrote_steers_no_terminal(self):
        chain.create(self.root, VOLUME, 'qcow2', 1 << 20)
        worker_result = {'volumes': {}, 'skipped': [], 'findings': [
            {'severity': 'error', 'code': 'backing', 'volume': VOLUME,
             'thing': BASE, 'cause': 'it names \x1b[2J\n\udcff.',
             'cure': 'Look.', 'repaired': None}]}
        with mock.patch.object(worker.Worker, 'run',
                               return_value=worker_result):
            self.assertEqual(1, self.command(self.root))
        self.assertEqual('error backing: %s: it names ?[2J ?. Look.' % BASE,
                         self.out.getvalue().splitlines()[0])

    def test_json(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.assertEqual(0, self.command(self.root, '--json'))
        self.assertEqual(
            {'version': 1, 'share': self.root, 'volumes': 1, 'findings': [],
             'clean': True, 'error': None}, json.loads(self.out.getvalue()))
        os.unlink(self.share.path(BASE))
        self.assertEqual(1, self.command(self.root, '--json'))
        report = json.loads(self.out.getvalue())
        self.assertFalse(report['clean'])
        self.assertEqual(
            [{'severity': 'error', 'code': 'record-without-files',
              'volume': VOLUME, 'thing': 'volume ' + VOLUME,
              'cause': 'it has a record, but none of its files (%s) is '
              'there.' % BASE,
              'cure': 'Restore them from a backup of the share, or delete '
              'the volume.', 'repaired': None}], report['findings'])

    def test_repair(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        chain.create_snapshot(self.root, VOLUME, SNAPSHOT)
        path = self.share.path(BASE + '.info')
        os.unlink(path)
        self.assertEqual(1, self.command(self.root))
        self.assertEqual(0, self.command(self.root, '--repair'))
        self.assertEqual(
            'warning mirror: %s: it differs from the record of the volume. '
            'It was written anew.\n'
            '1 volumes: 0 errors, 0 warnings, 0 notes, 1 repaired\n' % path,
            self.out.getvalue())
        self.assertEqual(0, self.command(self.root))

    def test_newer_version(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.share.change_record(VOLUME,
                                 lambda content: content.update(version=2))
        self.assertEqual(1, self.command(self.root))
        self.assertEqual(
            'error record-newer: %(path)s: %(path)s has version 2, and this '
            'release knows version 1. Upgrade cinder-lustre on this host.'
            % {'path': self.share.sidecar(VOLUME)},
            self.out.getvalue().splitlines()[0])

    def test_no_directory(self):
        path = self.share.path('gone')
        self.assertEqual(2, self.command(path))
        self.assertIn(path, self.err.getvalue())
        self.assertEqual('', self.out.getvalue())
        self.assertEqual(2, self.command(path, '--json'))
        report = json.loads(self.out.getvalue())
        self.assertIn(path, report['error'])
        self.assertFalse(report['clean'])

    @ddt.data((), ('/share', '--nonsense'), ('/share', 'another'))
    def test_wrong_usage(self, arguments):
        error = self.assertRaises(SystemExit, self.command, *arguments)
        self.assertEqual(2, error.code)

    def test_relative_path(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(os.path.dirname(self.root))
        self.assertEqual(0, self.command(os.path.basename(self.root)))
        self.assertIn('1 volumes', self.out.getvalue())

    @ddt.data(SHARE, IDENTITY)
    def test_share(self, text):
        base = self.root
        # The digest of the identity.
        self.root = self.share.root = os.path.join(
            base, 'b2f4af4364f870210b08a45aef4dface')
        os.mkdir(self.root)
        self.mounted('10.0.9.9@tcp:/testfs/cinder', self.root)
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.assertEqual(0, self.command(text, '--mount-point-base', base),
                         self.err.getvalue())
        self.assertIn('1 volumes', self.out.getvalue())

    def test_share_that_is_not_mounted(self):
        self.mounted('10.0.9.9@tcp:/testfs/cinder', '/elsewhere')
        self.assertEqual(2, self.command(SHARE, '--mount-point-base',
                                         self.root))
        self.assertIn('is not mounted on', self.err.getvalue())

    def test_share_without_a_mount_point_base(self):
        self.assertEqual(2, self.command(SHARE))
        self.assertIn('Name --mount-point-base', self.err.getvalue())

    def test_text_that_is_no_share(self):
        self.assertEqual(2, self.command('10.0.2.15@tcp:/a/../b'))
        self.assertIn('Invalid Lustre share', self.err.getvalue())

    @ddt.data((SHARE, 'lustre', '/mnt/x', IDENTITY),
              (SHARE, 'lustre', '/mnt/x/a/b', IDENTITY + '/a/b'),
              ('/dev/vdb', 'ext4', '/mnt/x', None),
              (SHARE, 'lustre', '/mnt/y', None))
    @ddt.unpack
    def test_identity(self, source, fstype, path, expected):
        self.mounted(source, '/mnt/x', fstype)
        self.assertEqual(expected, command._identity(path))

    def test_share_that_stops_to_answer(self):
        finding = {'severity': 'error', 'code': 'corrupt', 'volume': VOLUME,
                   'thing': BASE, 'cause': 'it is.', 'cure': 'Look.',
                   'repaired': None}

        def hang(this, function, *args, on_progress, **kwargs):
            self.assertIs(check.check, function)
            on_progress({'volume': VOLUME, 'done': 0, 'total': 2,
                         'findings': []})
            on_progress(None)
            on_progress({'volume': OTHER, 'done': 1, 'total': 2,
                         'findings': [finding]})
            raise exception.ShareUnavailable(share=self.root,
                                             reason='it was silent.')

        with mock.patch.object(worker.Worker, 'run', hang):
            self.assertEqual(2, self.command(self.root))
            self.assertIn('error corrupt: ', self.out.getvalue())
            self.assertIn('it was silent. It was about to look at volume %s.'
                          % OTHER, self.err.getvalue())
            self.assertEqual(2, self.command(self.root, '--json'))
            self.assertEqual([finding], json.loads(self.out.getvalue())[
                'findings'])

    def test_without_a_configuration_cinder_is_not_loaded(self):
        with mock.patch.dict(sys.modules, {'cinder': None}):
            self.assertEqual(0, self.command(self.root))
            self.assertEqual(2, self.command(self.root, '--config-file',
                                             '/etc/cinder/cinder.conf'))


class DocumentationTestCase(testtools.TestCase):

    def test_codes(self):
        codes = set()
        for module in (check, command):
            codes.update(re.findall(
                r"(?:ERROR|WARNING|NOTE)(?: if \w+ else [\w.]+)?,\s*"
                r"'([a-z-]+)'", inspect.getsource(module)))
        # These are chosen by a condition.
        codes.update(('size-larger', 'record-damaged'))
        path = os.path.join(os.path.dirname(cinder_lustre.__file__),
                            '../doc/source/admin/check.rst')
        with open(path) as stream:
            documented = re.findall(r'^   \* - ``(.*)``$', stream.read(),
                                    re.MULTILINE)
        self.assertEqual(sorted(codes), sorted(documented))


@ddt.ddt
class DatabaseTestCase(CommandMixin, test.TestCase):

    def setUp(self):
        super().setUp()
        # Cinder's test base shows what its own code does.
        warnings.simplefilter('ignore', DeprecationWarning)
        self.context = context.get_admin_context()
        self.addCleanup(os.umask, os.umask(0o022))
        self.root = self.useFixture(fixtures.TempDir()).path
        # Making it would call the host's lfs, if there is one.
        os.mkdir(os.path.join(self.root, record.DIRECTORY), 0o700)
        self.mounted(SHARE, self.root)
        self.config = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'cinder.conf')
        with open(self.config, 'w') as stream:
            stream.write('[DEFAULT]\n')

    def volume(self, status='available', location=IDENTITY, fmt='raw',
               size=1, **values):
        """Make a volume in the database."""
        return test_utils.create_volume(
            self.context, status=status, provider_location=location,
            size=size, admin_metadata={'format': fmt} if fmt else {},
            **values)

    def files(self, volume, fmt='raw', size=1 << 30):
        """Make a volume on the share."""
        chain.create(self.root, volume.name_id, fmt, size)

    def find(self, *expected):
        """Compare the codes that are found with these."""
        code = self.command(self.root, '--config-file', self.config,
                            '--json')
        report = json.loads(self.out.getvalue())
        self.assertIsNone(report['error'])
        self.assertEqual(sorted(expected), sorted(
            '%(severity)s %(code)s %(volume)s' % finding
            for finding in report['findings']))
        self.assertEqual(int(any(not each.startswith('note')
                                 for each in expected)), code)
        return report['findings']

    @ddt.data('raw', 'qcow2')
    def test_clean(self, fmt):
        volume = self.volume(fmt='qcow2')
        self.files(volume, fmt)
        snapshot = test_utils.create_snapshot(self.context, volume.id,
                                              status='available')
        chain.create_snapshot(self.root, volume.id, snapshot.id)
        self.files(self.volume(fmt=None))
        self.files(self.volume(location='10.9.9.9@tcp:/testfs/cinder'))
        # These are elsewhere.
        for location in ('lustre:/other', 'iqn.2010-10:volume', None):
            self.volume(location=location)
        self.find()

    def test_volume_that_was_migrated(self):
        volume = self.volume(_name_id=OTHER)
        self.files(volume)
        self.assertIn('volume-' + OTHER, os.listdir(self.root))
        self.find()

    def test_volume_without_record(self):
        volume = self.volume()
        found, = self.find('error volume-without-record %s' % volume.id)
        self.assertIn('(available)', found['cause'])

    @ddt.data('creating', 'deleting', 'error')
    def test_volume_in_motion_without_record(self, status):
        volume = self.volume(status)
        self.find('note volume-without-record %s' % volume.id)

    def test_record_without_volume(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.find('warning record-without-volume ' + VOLUME)

    def test_volume_at_work(self):
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        with record.fence(self.root, VOLUME):
            self.find('note at-work ' + VOLUME)

    def test_size(self):
        volume = self.volume(size=2)
        self.files(volume)
        self.find('warning size-in-database %s' % volume.id)

    def test_size_while_it_is_extended(self):
        self.files(self.volume('extending', size=2))
        self.find()

    def test_format(self):
        volume = self.volume(fmt='qcow2')
        self.files(volume)
        self.find('warning format-in-database %s' % volume.id)

    def test_snapshot_without_record(self):
        volume = self.volume()
        self.files(volume)
        snapshot = test_utils.create_snapshot(self.context, volume.id,
                                              status='available')
        found, = self.find('error snapshot-without-record %s' % volume.id)
        self.assertEqual('snapshot %s of volume %s' % (snapshot.id,
                                                       volume.id),
                         found['thing'])

    def test_snapshot_in_motion_without_record(self):
        volume = self.volume()
        self.files(volume)
        test_utils.create_snapshot(self.context, volume.id, status='creating')
        self.find()

    def test_snapshot_without_row(self):
        volume = self.volume(fmt='qcow2')
        self.files(volume)
        chain.create_snapshot(self.root, volume.id, SNAPSHOT)
        found, = self.find('warning snapshot-without-row %s' % volume.id)
        self.assertIn(SNAPSHOT, found['thing'])

    def test_one_volume(self):
        volume = self.volume()
        chain.create(self.root, VOLUME, 'raw', 1 << 20)
        self.assertEqual(1, self.command(
            self.root, '--config-file', self.config, '--volume', volume.id))
        self.assertIn('volume-without-record', self.out.getvalue())
        self.assertNotIn(VOLUME, self.out.getvalue())

    @ddt.data(True, False)
    def test_what_changes_meanwhile_is_no_finding(self, before):
        volume = self.volume()
        run = worker.Worker.run

        def change(*args, **kwargs):
            result = run(*args, **kwargs)
            if before:
                # It was deleted after the look at the share.
                result['volumes'][volume.id] = {
                    'format': 'raw', 'size': 1 << 30, 'snapshots': []}
                volume.destroy()
            else:
                # It was made after the look at the share.
                self.volume()
                result['volumes'][volume.id] = {
                    'format': 'raw', 'size': 1 << 30, 'snapshots': []}
            return result

        with mock.patch.object(worker.Worker, 'run', change):
            self.find()

    def test_directory_that_is_no_share(self):
        self.mounted('/dev/vdb', self.root, 'ext4')
        self.assertEqual(2, self.command(self.root, '--config-file',
                                         self.config))
        self.assertIn('Name the share', self.err.getvalue())

    def test_missing_configuration(self):
        self.assertEqual(2, self.command(self.root, '--config-file',
                                         self.config + '.gone'))
        self.assertIn('Correct --config-file.', self.err.getvalue())
