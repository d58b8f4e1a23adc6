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

"""The command: what it is asked, what it prints, and its exit code."""

import contextlib
import io
import json
import os
from unittest import mock

import ddt
import fixtures
import testtools

from cinder_lustre.cmd import doctor as command
from cinder_lustre import doctor
from cinder_lustre.doctor import verdict

DOCUMENTATION = os.path.join(os.path.dirname(__file__), *['..'] * 4, 'doc',
                             'source', 'admin', 'doctor.rst')


@ddt.ddt
class CommandTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        # Whatever this host has.
        self.useFixture(fixtures.MockPatchObject(
            command.cfg, 'find_config_files', lambda *args, **kwargs: []))
        self.cinder = self.write(
            'cinder.conf', '[DEFAULT]\nenabled_backends = lustre\n'
            '[backend_defaults]\nlustre_mount_point_base = %s\n'
            '[lustre]\nlustre_shares = 10.0.2.15@tcp:/testfs\nvolume_driver = '
            'cinder_lustre.volume.drivers.lustre.LustreDriver\n'
            % self.directory)
        self.empty = self.write('empty.conf', '')
        self.nova = self.write('nova.conf', '[libvirt]\n'
                               'lustre_mount_point_base = %s\n'
                               % self.directory)

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, 'w') as stream:
            stream.write(text)
        return path

    def command(self, *arguments, **checks):
        """Run the command.

        :param checks: verdicts of checks in place of all real ones
        :returns: its exit code
        """
        self.hosts = []

        def note(host):
            self.hosts.append(host)
            return verdict.ok('seen.')

        table = [('first', doctor.ROLES, note)]
        table += [(name, doctor.ROLES, lambda host, found=found: found)
                  for name, found in checks.items()]
        self.out, self.err = io.StringIO(), io.StringIO()
        with mock.patch.object(doctor, 'HOST_CHECKS', table), \
                mock.patch.object(doctor, 'SHARE_CHECKS', ()), \
                mock.patch.object(command.logging, 'basicConfig'), \
                contextlib.redirect_stdout(self.out), \
                contextlib.redirect_stderr(self.err):
            return command.main(list(arguments))

    def test_text(self):
        code = self.command('--config-file', self.cinder,
                            bad=verdict.failure('It is\x1b bad.', 'Mend it.'),
                            odd=verdict.unknown('Who knows.'))
        self.assertEqual(command.FAILURES, code)
        self.assertEqual(['ok first: host: seen.',
                          'failure bad: host: It is? bad. Mend it.',
                          'unknown odd: host: Who knows.',
                          '1 ok, 0 warnings, 1 failures, 1 unknown'],
                         self.out.getvalue().splitlines())

    def test_json(self):
        code = self.command('--json', '--config-file', self.cinder,
                            bad=verdict.failure('Bad.', 'Mend it.'))
        self.assertEqual(command.FAILURES, code)
        self.assertEqual(
            {'version': 1, 'roles': ['volume'], 'healthy': False,
             'error': None, 'results': [
                 {'check': 'first', 'thing': 'host', 'status': 'ok',
                  'message': 'seen.', 'cure': ''},
                 {'check': 'bad', 'thing': 'host', 'status': 'failure',
                  'message': 'Bad.', 'cure': 'Mend it.'}]},
            json.loads(self.out.getvalue()))

    def test_what_is_no_failure(self):
        self.assertEqual(command.HEALTHY, self.command(
            '--config-file', self.cinder, one=verdict.warning('Old.', 'New.'),
            two=verdict.unknown('Who knows.')))

    @ddt.data((['--config-file', '/nowhere'], '/nowhere'),
              (['--config-file', 'EMPTY'], '--role'),
              (['--config-file', 'EMPTY', '--role', 'volume', 'x:/'], 'x:/'))
    @ddt.unpack
    def test_wrong_usage(self, arguments, word):
        arguments = [self.empty if each == 'EMPTY' else each
                     for each in arguments]
        self.assertEqual(command.UNUSABLE, self.command(*arguments))
        self.assertIn(word, self.err.getvalue())
        self.assertEqual(command.UNUSABLE, self.command('--json', *arguments))
        self.assertIn(word, json.loads(self.out.getvalue())['error'])

    @ddt.data(['--expect-uid', 'cinder'], ['--expect-uid', 'cinder=x'],
              ['--expect-uid', '=1'], ['--role', 'another'],
              ['--timeout', '0'], ['--timeout=-1'])
    def test_wrong_arguments(self, arguments):
        with contextlib.redirect_stderr(io.StringIO()):
            error = self.assertRaises(SystemExit, command.main, arguments)
        self.assertEqual(command.UNUSABLE, error.code)

    def host(self, *arguments):
        """What the command knows about the host."""
        self.command(*arguments)
        host, = self.hosts
        return host

    def test_roles(self):
        files = ['--config-file', self.cinder, '--nova-config-file', self.nova]
        self.assertEqual({'volume', 'compute'}, self.host(*files).roles)
        self.assertEqual({'volume'}, self.host(*files[:2]).roles)
        self.assertEqual({'compute'}, self.host(
            *files, '--role', 'compute').roles)
        with open(self.cinder, 'a') as stream:
            stream.write('[DEFAULT]\nbackup_manager = '
                         'cinder_lustre.backup.manager.BackupManager\n')
        self.assertEqual({'volume', 'backup'}, self.host(*files[:2]).roles)

    def test_shares(self):
        files = ['--config-file', self.cinder, '--nova-config-file', self.nova]
        target, = self.host(*files).targets
        self.assertEqual('lustre:/testfs', target.name)
        self.assertEqual(target.share.mount_point(self.directory), target.path)
        # Nova has nothing mounted.
        self.assertEqual({'volume'}, target.roles)
        host = self.host(*files, '--role', 'compute')
        self.assertEqual([], host.targets)
        self.assertEqual([self.directory], host.nova_bases)
        self.assertEqual('unknown', host.problems[0][1].status)

    def test_shares_that_are_named(self):
        files = ['--config-file', self.cinder]
        one, two = self.host(*files, 'lustre:/other', '/mnt').targets
        self.assertEqual(one.share.mount_point(self.directory), one.path)
        self.assertEqual('/mnt', two.path)
        target, = self.host(*files, 'lustre:/other', '--mount-point-base',
                            '/base').targets
        self.assertEqual(target.share.mount_point('/base'), target.path)

    def test_options(self):
        host = self.host('--config-file', self.cinder, '--service-user', 'me',
                         '--expect-uid', 'me=7', '--expect-uid', 'you=8',
                         '--timeout', '9', '--qemu-conf', '/q')
        self.assertEqual(
            ('me', {'me': 7, 'you': 8}, 9, '/q'),
            (host.service_user, host.expected_uids, host.timeout,
             host.qemu_conf))

    def test_documentation_has_all_checks(self):
        with open(DOCUMENTATION, encoding='utf-8') as stream:
            text = stream.read()
        for name, _roles, _check in doctor.HOST_CHECKS + doctor.SHARE_CHECKS:
            self.assertIn('* - ``%s``\n' % name, text)
