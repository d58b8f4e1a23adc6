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

import os

import ddt
import fixtures
import testtools

from cinder_lustre import exception
from cinder_lustre import lfs
from cinder_lustre.tests.unit import transcripts


def parameters(name, *kinds):
    """What lctl prints of some parameters in a transcript."""
    return '\n'.join(line for line in transcripts.read(name).splitlines()
                     if line.partition('=')[0].rpartition('.')[2] in kinds)


@ddt.ddt
class LfsTestCase(testtools.TestCase):
    """With commands of the test's own in place of lfs and lctl."""

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        # Nothing else is found, whatever this host has.
        self.useFixture(fixtures.MockPatchObject(
            lfs.worker, 'environment', lambda: {'PATH': self.directory}))

    def _command(self, name, stdout='', stderr='', exit_code=0):
        for suffix, text in (('.out', stdout), ('.err', stderr)):
            with open(os.path.join(self.directory, name + suffix),
                      'w') as stream:
                stream.write(text)
        path = os.path.join(self.directory, name)
        with open(path, 'w') as stream:
            stream.write('''#!/bin/sh
PATH=/usr/bin:/bin
printf '%%s\\n' "$@" > %(path)s.args
cat %(path)s.out
cat %(path)s.err >&2
exit %(code)d
''' % {'path': path, 'code': exit_code})
        os.chmod(path, 0o755)

    def _arguments(self, name):
        with open(os.path.join(self.directory, name + '.args')) as stream:
            return stream.read().splitlines()

    def test_target_states(self):
        text = parameters('second-client', 'ost_server_uuid',
                          'mds_server_uuid', 'mgs_server_uuid').splitlines()
        # The transcript has them before and after the server went away.
        before, after = text[:6], text[6:]
        self.assertEqual(6, len(after))
        self._command('lctl', '\n'.join(before))
        names = ['testfs-OST%04x' % number for number in range(4)]
        self.assertEqual(
            dict.fromkeys([*names, 'testfs-MDT0000'], 'FULL'),
            lfs.target_states('testfs'))
        self.assertEqual(['get_param', 'osc.*.ost_server_uuid',
                          'mdc.*.mds_server_uuid'], self._arguments('lctl'))
        self._command('lctl', '\n'.join(after))
        self.assertEqual(
            dict(dict.fromkeys(names, 'IDLE'), **{'testfs-MDT0000':
                                                  'DISCONN'}),
            lfs.target_states('testfs'))
        self.assertEqual({}, lfs.target_states('test'))

    def test_target_states_on_a_server(self):
        # The MDT's own connection is no client's.
        self._command('lctl', parameters('dead-ost-and-recovery',
                                         'ost_server_uuid'))
        self.assertEqual({'testfs-OST0001': 'DISCONN'},
                         lfs.target_states('testfs'))
        self._command('lctl', 'osc.testfs-OST0001-osc-MDT0000.ost_server_uuid='
                      'testfs-OST0001_UUID\tDISCONN\n'
                      'osc.testfs-OST0001-osc-ff1c6183d55d8800.'
                      'ost_server_uuid=testfs-OST0001_UUID\tFULL\n')
        self.assertEqual({'testfs-OST0001': 'FULL'},
                         lfs.target_states('testfs'))

    @ddt.data(
        (['FULL', 'DISCONN', 'IDLE'], 'DISCONN'),
        (['FULL', 'IDLE'], 'IDLE'),
        (['IDLE', 'CONNECTING', 'FULL'], 'CONNECTING'),
        (['FULL\tDEACTIVATED', 'DISCONN'], 'DEACTIVATED'),
    )
    @ddt.unpack
    def test_target_states_of_several_mounts(self, states, expected):
        self._command('lctl', '\n'.join(
            'osc.a-b-OST000f-osc-ff%014x.ost_server_uuid=a-b-OST000f_UUID\t%s'
            % (number, state) for number, state in enumerate(states)))
        self.assertEqual({'a-b-OST000f': expected}, lfs.target_states('a-b'))

    def test_nothing_is_mounted(self):
        # How lctl reports a parameter that no module has.
        error, = [lines[0] for command, lines in
                  transcripts.commands('second-client')
                  if command == "lctl get_param 'mdt.*.job_stats'"]
        self._command('lctl', stderr=error, exit_code=2)
        self.assertEqual({}, lfs.target_states('testfs'))
        self.assertEqual({}, lfs.ost_free('testfs'))
        self.assertEqual({}, lfs.mgs_states())
        self.assertIsNone(lfs.version())

    def test_ost_free(self):
        # Four values of a client and of an MDT, and one that is away.
        error, = [line for line in
                  transcripts.read('fence-acl-dom').splitlines()
                  if line.startswith('error: read_param')]
        self._command(
            'lctl',
            'osc.testfs-OST0000-osc-MDT0000.kbytesavail=5168192\n'
            'osc.testfs-OST0000-osc-ff1c6183d55d8800.kbytesavail=5168464\n'
            'osc.testfs-OST0000-osc-ff1c6183d55d9900.kbytesavail=5168460\n'
            'osc.testfs-OST0002-osc-ff1c6183d55d8800.kbytesavail=2735208\n'
            'osc.other-OST0000-osc-ff1c6183d55d8800.kbytesavail=1\n',
            error, 107)
        self.assertEqual({'testfs-OST0000': 5168460 << 10,
                          'testfs-OST0002': 2735208 << 10},
                         lfs.ost_free('testfs'))
        self.assertEqual(['get_param', 'osc.*.kbytesavail'],
                         self._arguments('lctl'))

    def test_version(self):
        self._command('lctl', '2.17.0_dirty\n')
        self.assertEqual('2.17.0_dirty', lfs.version())
        self.assertEqual(['get_param', '-n', 'version'],
                         self._arguments('lctl'))

    def test_mgs_states(self):
        lines = parameters('second-client', 'mgs_server_uuid').splitlines()
        # The transcript has it before and after the server went away.
        for line, state in zip(lines, ('FULL', 'DISCONN'), strict=True):
            self._command('lctl', line + '\n')
            self.assertEqual({'10.0.2.15@tcp': state}, lfs.mgs_states())
        self.assertEqual(['get_param', 'mgc.*.mgs_server_uuid'],
                         self._arguments('lctl'))

    @ddt.data(('lfs project -d p1', (1234, True)),
              ('lfs project p1/f', (1234, False)))
    @ddt.unpack
    def test_project(self, shown, expected):
        line = next(lines[-1] for command, lines in
                    transcripts.commands('project-quota')
                    if command == shown)
        self._command('lfs', line + '\n')
        self.assertEqual(expected, lfs.project('/share'))
        self.assertEqual(['project', '-d', '/share'], self._arguments('lfs'))

    def test_project_quota(self):
        quotas = [(command, '\n'.join(lines)) for command, lines in
                  transcripts.commands('project-quota')
                  if command == 'lfs quota -p 1234 /mnt/lustre-direct']
        self._command('lfs', quotas[0][1])
        self.assertEqual({'used': 8192, 'limit': 102400 << 10, 'files': 3,
                          'files_limit': 100},
                         lfs.project_quota(1234, '/mnt/lustre-direct'))
        self.assertEqual(quotas[0][0].split()[1:], self._arguments('lfs'))
        # Over the limit, which Lustre marks.
        self._command('lfs', quotas[1][1])
        self.assertEqual({'used': 153612 << 10, 'limit': 102400 << 10,
                          'files': 4, 'files_limit': 100},
                         lfs.project_quota(1234, '/mnt/lustre-direct'))

    def test_project_quota_with_a_target_away(self):
        lines = next(lines for command, lines in
                     transcripts.commands('project-quota-root')
                     if command.startswith('lfs quota'))
        self.assertIn('[4]', lines[2])
        self._command('lfs', '\n'.join(lines))
        self.assertEqual({'used': None, 'limit': 65536 << 10, 'files': 2,
                          'files_limit': 0}, lfs.project_quota(777, '/share'))

    def test_project_quota_elsewhere(self):
        lines, = [lines for command, lines in
                  transcripts.commands('project-quota')
                  if command == 'lfs quota -p 1234 /tmp']
        self._command('lfs', '\n'.join(lines[:-1]), lines[-1], 19)
        error = self.assertRaises(exception.CommandFailed, lfs.project_quota,
                                  1234, '/tmp')
        self.assertIn('not on a mounted Lustre', str(error))
        self.assertEqual(19, error.kwargs['exit_code'])

    def test_hsm_states(self):
        # No transcript has it; Lustre's manual shows it so.
        self._command('lfs', '/s/a: (0x00000000)\n'
                      '/s/b: (0x00000009) exists archived, archive_id:1\n'
                      '/s/c: (0x0000000d) released exists archived, '
                      'archive_id:1\n', "can't get hsm state for /s/d", 2)
        self.assertEqual({'/s/a': [], '/s/b': ['exists', 'archived'],
                          '/s/c': ['released', 'exists', 'archived']},
                         lfs.hsm_states(['/s/a', '/s/b', '/s/c', '/s/d']))
        self.assertEqual(['hsm_state', '/s/a', '/s/b', '/s/c', '/s/d'],
                         self._arguments('lfs'))
        self._command('lfs', stderr='no', exit_code=95)
        self.assertRaises(exception.CommandFailed, lfs.hsm_states, ['/s/a'])

    def test_set_dom_default(self):
        self._command('lfs')
        self.assertTrue(lfs.set_dom_default('/share/.cinder-lustre'))
        self.assertEqual(
            ['setstripe', '-E', '1M', '-L', 'mdt', '-E', '-1', '-c', '1',
             '/share/.cinder-lustre'], self._arguments('lfs'))

    def test_set_dom_default_elsewhere(self):
        stderr, = [lines[0] for command, lines in
                   transcripts.commands('layout')
                   if command == 'lfs setstripe -c 2 /tmp/x']
        self._command('lfs', stderr=stderr, exit_code=25)
        logger = self.useFixture(fixtures.FakeLogger())
        self.assertFalse(lfs.set_dom_default('/tmp/x'))
        self.assertIn('Inappropriate ioctl for device', logger.output)

    def test_no_lustre(self):
        self.assertIsNone(lfs.target_states('testfs'))
        self.assertIsNone(lfs.ost_free('testfs'))
        self.assertIsNone(lfs.version())
        self.assertFalse(lfs.set_dom_default(self.directory))
        self.assertIsNone(lfs.mgs_states())
        self.assertIsNone(lfs.project(self.directory))
        self.assertIsNone(lfs.project_quota(1, self.directory))
        self.assertIsNone(lfs.hsm_states([self.directory]))

    def test_commands_are_shown_in_transcripts(self):
        # Options and order as a real Lustre took them; parameters and files
        # are this module's own.
        shown = [part.replace("'", '').split()
                 for name in ('identity', 'layout', 'project-quota',
                              'second-client')
                 for command, __ in transcripts.commands(name)
                 for part in command.split(';')]
        # The file system of the transcripts has no HSM.
        shown.append(['lfs', 'hsm_state'])
        for command in lfs.COMMANDS:
            words = [word for word in command if '*' not in word]
            self.assertTrue(any(words == known[:len(words)]
                                for known in shown), command)
