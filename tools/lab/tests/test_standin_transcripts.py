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

"""The stand-in speaks as the transcripts of a real Lustre do."""

import ast
import os
import re
import shlex
import subprocess

import ddt

from cinder_lustre import lfs
from tools.lab.tests import standin_case

# What the stand-in answers to what it does not know.
_UNKNOWN = 95
_NOT_LUSTRE = 'This is not Lustre'
_MOUNTS = [command for command in standin_case.transcript('mount-errors')
           if re.match(r'(timeout \d+ |su nobody .*)?mount -t lustre',
                       command.line)]


def _name(index, command):
    words = re.sub(r'[^a-z]+', '_', command.line.lower()).strip('_')
    return '%02d_%s' % (index, words[:50])


class _Named(str):
    """A value that names its test."""


def _cases():
    result = []
    for index, command in enumerate(_MOUNTS):
        case = _Named(index)
        case.__name__ = _name(index, command)
        result.append(case)
    return result


def _without_usage(lines):
    """The message alone: the stand-in's usage is shorter."""
    for index, line in enumerate(lines):
        if not line or line.startswith(('Usage:', 'Create a file with')):
            return lines[:index]
    return lines


@ddt.ddt
class MountTestCase(standin_case.StandinCase):
    """Every mount of mount-errors.txt, each on a file system of its own."""

    def test_transcript_has_mounts(self):
        self.assertLess(15, len(_MOUNTS))

    @ddt.data(*_cases())
    def test_mount(self, index):
        command = _MOUNTS[int(index)]
        self.create()
        for name in ('i1', 'def'):
            os.mkdir(self.path(name))
        client = self.mount('lustre-direct')
        self.mount('def')
        os.makedirs(os.path.join(client, 'sub'))
        os.makedirs(os.path.join(client, 'd'))
        with open(os.path.join(client, 'd', 'big'), 'w'):
            pass
        line = command.line
        if command.exit_code == 110:
            # 162 seconds, there.
            line = re.sub(r'10\.0\.2\.(77|2)@', '10.0.2.15@', line)
            self.standin('fault', self.fsname, 'mgs-unreachable', 'on',
                         '--seconds', '1')
        before = len(self.mounts())
        code, output = self.run_command('bash', '-c', self.localised(line))
        if line.startswith('su '):
            # Its last words are the exit code of mount.
            output, code = standin_case.split_exit_code(output)
        expected = '\n'.join(command.output).replace(
            '10.0.2.77@', '10.0.2.15@' if line != command.line else
            '10.0.2.77@').replace('10.0.2.2@', '10.0.2.15@')
        self.assertEqual(command.exit_code or 0, code, output)
        self.assertEqual(
            _without_usage(standin_case.normalised(expected)),
            _without_usage(standin_case.normalised(
                self.globalised(output))))
        added = self.mounts()[before:]
        if code or 'remount' in line:
            self.assertEqual([], added)
        else:
            source, target = shlex.split(self.localised(line))[-2:]
            self.assertEqual([[source, target]],
                             [fields[:2] for fields in added])


# Redirections, which the trace of a shell does not show.
_REDIRECTED = {'echo hello': ['plain'], ':': ['empty'], 'echo y':
               ['dd/subd/new'], 'echo x': ['dd/new', 'dp/new']}
_PREPARATIONS = ('mkdir ', 'cp ', 'mv ', 'chmod ', 'qemu-img create',
                 "python3 -c 'import os;", 'truncate ',
                 'dd if=/dev/urandom of=big ')
# The stand-in has no objects: a file made with mknod is like any other.
_DIFFERENT = re.compile(r'lfs [gs]etstripe (-c \d? ?)?mk$')


class ReplayTestCase(standin_case.StandinCase):
    """Commands of a transcript, in their order, on one file system."""

    def setUp(self):
        super().setUp()
        self.create()
        os.makedirs(self.path('tmp'))
        self.client = self.mount('lustre-direct')
        self.compared = []

    def compare(self, command, cwd=None):
        """Run a command and compare it, unless the stand-in refuses it."""
        line = self.localised(command.line)
        code, output = self.run_command('bash', '-c', line, cwd=cwd)
        if code == _UNKNOWN or _NOT_LUSTRE in output:
            return False
        if line.startswith('su '):
            output, code = standin_case.split_exit_code(output)
        expected = command.output
        actual = output.split('\n')
        if command.line in ('lfs df', 'lfs df -i', 'lfs getname',
                            'lfs check all'):
            # Others use the machine too.
            ours = self.fsname, self.directory, self.nid
            actual = [each for each in actual if each.startswith('UUID ') or
                      any(name in each for name in ours)]
        actual = self.globalised('\n'.join(actual)).split('\n')
        expected, actual = (
            _without_usage([each for each in standin_case.normalised(
                '\n'.join(lines)) if each]) for lines in (expected, actual))
        if command.line == 'lfs getstripe dd':
            # The order of a directory.
            expected, actual = sorted(expected), sorted(actual)
        self.assertEqual((command.line, expected), (command.line, actual))
        if command.exit_code is not None:
            self.assertEqual((command.line, command.exit_code),
                             (command.line, code))
        self.compared.append(command.line)
        return True

    def test_layout(self):
        cwd = os.path.join(self.client, 'd')
        os.mkdir(cwd)
        redirected = {line: list(names)
                      for line, names in _REDIRECTED.items()}
        refused = set()
        for command in standin_case.transcript('layout'):
            line = command.line
            last = os.path.basename(line.split()[-1])
            if redirected.get(line):
                self.run_command('bash', '-c', '%s > %s' % (
                    line, redirected[line].pop(0)), cwd=cwd)
            elif line.startswith(_PREPARATIONS):
                self.run_command('bash', '-c', self.localised(
                    line.replace('count=64', 'count=1')), cwd=cwd)
            elif (re.match('lfs |lctl |su ', line) and last not in refused and
                    not _DIFFERENT.match(line)):
                if not self.compare(command, cwd):
                    refused.add(last)
        self.assertLess(55, len(self.compared))

    def test_identity(self):
        for command in standin_case.transcript('identity'):
            # Its "lfs check" and the like are those of a server.
            if re.match(r'(lfs|lctl|mount\.lustre) (--version|df|getname|'
                        r"get_param (version|-n 'llite))", command.line):
                self.assertTrue(self.compare(command), command.line)
        self.assertLess(10, len(self.compared))

    def test_second_client(self):
        for command in standin_case.transcript('second-client'):
            if re.match(r'lctl pool_list|lfs check all|lctl get_param '
                        r"'(osd|mdt)", command.line):
                if 'pool_list' in command.line:
                    self.run_command('lctl', 'pool_new',
                                     self.fsname + '.fast')
                self.assertTrue(self.compare(command), command.line)
        self.assertEqual(4, len(self.compared))

    def test_mounts_of_a_node(self):
        os.mkdir(os.path.join(self.client, 'sub'))
        for name, sub in (('def', ''), ('noflock', ''), ('localflock', ''),
                          ('sub', '/sub')):
            self.mount(name, sub=sub)
        command, = (each for each in standin_case.transcript('qemu-img')
                    if each.line == 'lfs getname')
        self.assertTrue(self.compare(command))

    def test_unknown_commands_say_so(self):
        for line in ('lfs find .', 'lctl set_param jobid_var=session',
                     'lfs getstripe -y x', 'lfs'):
            code, output = self.run_command(*line.split(), cwd=self.client)
            self.assertEqual(_UNKNOWN, code)
            self.assertIn(_NOT_LUSTRE, output)


class FaultTranscriptTestCase(standin_case.StandinCase):
    """What targets say while they do not answer."""

    def setUp(self):
        super().setUp()
        self.create()
        self.client = self.mount('lustre-direct')

    def lctl(self, *arguments):
        done = subprocess.run(
            ['lctl', 'get_param', *map(self.localised, arguments)],
            text=True, capture_output=True)
        return (done.returncode,
                standin_case.normalised(self.globalised(done.stdout)),
                standin_case.normalised(self.globalised(done.stderr)))

    def dead_ost(self, ost):
        path = os.path.join(self.client, 'file')
        self.run_command('lfs', 'setstripe', '-i', str(ost), path)
        self.standin('fault', self.fsname, 'dead-ost', path)

    def test_dead_ost(self):
        self.dead_ost(1)
        lines = [line for command in standin_case.transcript('fence-acl-dom')
                 if 'ost_server_uuid' in command.line
                 for line in command.output]
        # The transcript's host has the MDS's own connections besides.
        client = ['testfs-OST0000_UUID\tFULL', 'testfs-OST0001_UUID\tDISCONN',
                  'testfs-OST0002_UUID\tFULL', 'testfs-OST0003_UUID\tFULL',
                  'testfs-MDT0000_UUID\tFULL']
        self.assertEqual(set(), set(client) - set(lines))
        self.assertEqual(
            (0, [line.replace('\t', ' ') for line in client], ['']),
            self.lctl('-n', 'osc.*.ost_server_uuid', 'mdc.*.mds_server_uuid'))

    def test_dead_ost_has_no_space(self):
        self.dead_ost(1)
        command, = (command for command
                    in standin_case.transcript('fence-acl-dom')
                    if 'kbytesavail' in command.line)
        error, = standin_case.normalised(command.output[0])
        _code, output, errors = self.lctl('-n', 'osc.*.kbytesavail')
        self.assertEqual([error], errors)
        self.assertEqual(['N'] * 3, output)

    def test_frozen_server(self):
        self.standin('fault', self.fsname, 'frozen')
        line = ('lctl get_param osc.*.ost_server_uuid mdc.*.mds_server_uuid '
                'mgc.*.mgs_server_uuid')
        expected = standin_case.probes('second-client')[line]
        self.assertEqual(
            (0, standin_case.normalised('\n'.join(expected)), ['']),
            self.lctl(*line.split()[2:]))
        self.standin('fault', self.fsname, 'recover')
        _code, output, _errors = self.lctl('osc.*.ost_server_uuid')
        self.assertTrue(all(line.endswith(' FULL') for line in output))


def _commands_in(source):
    """The command lines of lfs, lctl and mount that a module builds.

    :returns: lists of words; one that is computed has its text before the
              formatting, or None
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        words = []
        if isinstance(node, (ast.List, ast.Tuple)):
            words = [_word(each) for each in node.elts]
        elif isinstance(node, ast.Call):
            words = [_word(each) for each in node.args]
        for index, word in enumerate(words[:-1]):
            following = words[index + 1]
            if (word in ('lfs', 'lctl') and following or
                    word == 'mount' and following == '-t'):
                found.append(words[index:])
    return found


def _word(node):
    if isinstance(node, ast.BinOp):
        node = node.left
    value = getattr(node, 'value', None)
    return value if isinstance(value, str) else None


def _is_option(word):
    return word.startswith('-') and not word[1:].isdigit()


def _parameter(word):
    return word.split('=')[0].split('.')[-1]


# The file system of the transcripts has no HSM; Lustre's manual shows it.
_WITHOUT_TRANSCRIPT = (['lfs', 'hsm_state'],)
# The doctor asks these, and says where they are not answered.
_NOT_OF_THE_STANDIN = (['lfs', 'hsm_state'], ['lfs', 'project'],
                       ['lfs', 'quota'])


class ProductionTestCase(standin_case.StandinCase):
    """What the package runs is what a real Lustre was seen to answer."""

    def commands(self):
        package = os.path.join(os.path.dirname(__file__), *3 * [os.pardir],
                               'cinder_lustre')
        result = []
        for directory, _names, files in os.walk(package):
            if os.path.basename(directory) == 'tests':
                _names.clear()
                continue
            for name in files:
                if name.endswith('.py'):
                    with open(os.path.join(directory, name)) as stream:
                        result += _commands_in(stream.read())
        return result

    def shown(self):
        """The words of every command of the transcripts."""
        lines = []
        for name in standin_case.TRANSCRIPTS:
            lines += [command.line for command
                      in standin_case.transcript(name)]
            lines += standin_case.probes(name)
        return [re.split(r'[\s\';]+', line) for line in lines]

    def test_commands_are_found(self):
        self.assertEqual(
            [['lctl', 'get_param', 'osc.%s.active'], ['lfs', 'df', None],
             ['mount', '-t', None]],
            sorted(_commands_in(
                "run(['lfs', 'df', path])\n"
                "run('lctl', 'get_param', 'osc.%s.active' % name)\n"
                "[*helper, 'mount', '-t', LUSTRE]\n"
                "LOG.debug('mount %s', 'lfs')"), key=lambda each: each[0]))
        found = self.commands()
        for words in lfs.COMMANDS:
            self.assertIn(list(words), found)
        self.assertIn('mount', [words[0] for words in found])

    def test_transcripts_show_each_command(self):
        shown = self.shown()
        for words in self.commands():
            if words in _WITHOUT_TRANSCRIPT:
                continue
            needed = {word for word in words[:2] if word}
            needed |= {word for word in words[2:] if word and
                       _is_option(word)}
            parameters = {_parameter(word) for word in words[2:] if word and
                          not _is_option(word)
                          } if words[1].endswith('_param') else set()
            self.assertTrue(
                any(needed <= set(line) and
                    parameters <= set(map(_parameter, line))
                    for line in shown),
                'No transcript shows %s. Record it on a real Lustre, or use '
                'another command.' % words)

    def test_standin_knows_each_command(self):
        self.create()
        client = self.mount('client')
        for words in self.commands():
            if words[0] == 'mount' or words[:2] in _NOT_OF_THE_STANDIN:
                continue
            code, output = self.run_command(*(
                client if word is None else word.replace('%s', '*')
                for word in words))
            self.assertNotEqual(_UNKNOWN, code, output)
