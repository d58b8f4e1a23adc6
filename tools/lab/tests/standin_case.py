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

"""What the tests of the stand-in share: a file system and transcripts."""

import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import uuid

import testtools

STANDIN = os.path.join(os.path.dirname(os.path.dirname(__file__)),
                       'standin', 'standin')
_TRANSCRIPTS = os.path.join(
    os.path.dirname(__file__), *3 * [os.pardir],
    'cinder_lustre', 'tests', 'fixtures', 'real-lustre')
TRANSCRIPTS = sorted(name[:-len('.txt')] for name in os.listdir(_TRANSCRIPTS)
                     if name.endswith('.txt'))
# The names that the transcripts use.
_FSNAME, _NID, _CLIENT = 'testfs', '10.0.2.15@tcp', '/mnt/lustre-direct'
_REAL_COMMANDS = ('/sbin/mount.lustre', '/usr/bin/lfs', '/usr/sbin/lctl')

# Generous: a loaded machine must not fail a test.
PATIENCE = 60


class Command:
    """A command of a transcript, with what it printed and how it ended."""

    def __init__(self, line):
        self.line = line
        self.output = []
        # None when the transcript does not show it.
        self.exit_code = None

    def close(self):
        """Separate what the shell printed from what the command did."""
        text = '\n'.join(self.output)
        text = re.sub(r'\n*\n?real\t\S+\nuser\t\S+\nsys\t\S+', '', text)
        text, self.exit_code = split_exit_code(text)
        self.output = text.split('\n') if text else []


def split_exit_code(text):
    """Take the exit code off that a shell printed last; None without one."""
    found = re.search(r'(?:^|\n)(?:\S.* )?rc=(\d+)\n?$', text)
    if not found:
        return text, None
    return text[:found.start()], int(found.group(1))


def transcript(name):
    """The commands of a transcript, in their order."""
    commands = []
    with open(os.path.join(_TRANSCRIPTS, name + '.txt')) as stream:
        for line in stream.read().splitlines():
            found = re.match(r'[$+] (.*)', line)
            if (found and re.match(r'head -\d+$', found.group(1)) and
                    not commands[-1].output):
                # The two ends of a pipe.
                commands[-1].line += ' | ' + found.group(1)
            elif found:
                commands.append(Command(found.group(1)))
            elif commands:
                commands[-1].output.append(line)
    for command, after in zip(commands, commands[1:] + [None]):
        command.close()
        if after and re.match("echo '?.*rc=", after.line) and after.output:
            found = re.search(r'rc=(\d+)$', after.output[0])
            command.exit_code = int(found.group(1)) if found else None
    return commands


def probes(name):
    """The probes of a transcript ('>>> [command] ...') and their outputs."""
    result = {}
    output = []
    with open(os.path.join(_TRANSCRIPTS, name + '.txt')) as stream:
        for line in stream.read().splitlines():
            found = re.match(r'>>> \[(.*)\] ', line)
            if found:
                result[found.group(1)] = output
            output = [] if found else output + [line]
    return result


def normalised(text):
    """A text without what differs from one Lustre to the next."""
    text = re.sub(r'\bff[0-9a-f]{14}\b', 'INSTANCE', text)
    text = re.sub(r'\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b', 'UUID',
                  text)
    text = re.sub(r'\b0x[0-9a-f]+\b', 'N', text)
    text = re.sub(r'(?<![\w.-])\d+(?![\w.])', 'N', text)
    return [re.sub(r'[ \t]+', ' ', line).strip()
            for line in text.strip('\n').split('\n')]


class StandinCase(testtools.TestCase):
    """A test with names and directories of its own."""

    def setUp(self):
        super().setUp()
        if os.geteuid() or not os.path.exists('/dev/loop-control'):
            self.skipTest('Making file systems needs root and loop devices.')
        for path in _REAL_COMMANDS:
            if os.path.exists(path) and 'standin' not in os.path.realpath(
                    path):
                self.skipTest('This machine has a real Lustre client.')
        self.directory = os.path.realpath(tempfile.mkdtemp())
        os.chmod(self.directory, 0o755)
        self.addCleanup(shutil.rmtree, self.directory)
        self.fsname = 't' + uuid.uuid4().hex[:7]
        self.nid = '127.%d.%d.%d@tcp' % tuple(
            random.SystemRandom().randrange(1, 255) for _each in range(3))
        self.share = '%s:/%s' % (self.nid, self.fsname)

    def standin(self, *arguments, check=True):
        done = subprocess.run([STANDIN] + list(arguments), text=True,
                              capture_output=True)
        if check and done.returncode:
            raise AssertionError('standin %s: exit code %d, %s' % (
                ' '.join(arguments), done.returncode, done.stderr))
        return done

    def create(self, *arguments):
        """Make this test's file system."""
        self.addCleanup(self.clean)
        return self.standin('create', '--fsname', self.fsname, '--size',
                            '256M', '--dir', self.path('images'), '--nid',
                            self.nid, *arguments).stdout.strip()

    def clean(self):
        """Remove it, and with the last one the commands too."""
        self.standin('destroy', self.fsname, check=False)
        self.standin('uninstall')

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def mount(self, name, *arguments, sub=''):
        """Mount the file system on a directory of this test."""
        target = self.path(name)
        os.makedirs(target, exist_ok=True)
        done = self.run_command('mount', '-t', 'lustre', *arguments,
                                self.share + sub, target)
        self.assertEqual((0, ''), done)
        return target

    def run_command(self, *arguments, cwd=None):
        """Run a command that cannot hang; its exit code and its output."""
        done = subprocess.run(arguments, text=True, cwd=cwd or '/',
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT,
                              env=dict(os.environ, LC_ALL='C'))
        return done.returncode, done.stdout

    def mounts(self):
        """This test's lines of /proc/mounts, in fields."""
        with open('/proc/mounts') as stream:
            return [line.split() for line in stream
                    if self.directory in line or self.fsname in line]

    def servers(self):
        """The FUSE servers of this test's file system."""
        result = []
        for name in os.listdir('/proc'):
            try:
                with open('/proc/%s/cmdline' % name, 'rb') as stream:
                    words = stream.read().decode().split('\0')
            except OSError:
                # Not a process, or no longer.
                continue
            if self.fsname in words and any(word.endswith('fuse.py')
                                            for word in words):
                result.append(int(name))
        return result

    def wait_for(self, condition, what):
        """Wait until something is the case."""
        deadline = time.monotonic() + PATIENCE
        while True:
            result = condition()
            if result:
                return result
            if time.monotonic() > deadline:
                self.fail('Waited in vain: ' + what)
            time.sleep(0.05)

    def localised(self, line):
        """A line of a transcript with this test's names."""
        # What lists all file systems of the machine is narrowed to ours.
        line = re.sub(r'\b(osc|mdc|llite)\.\*\.', r'\1.testfs*.', line)
        line = line.replace('mgc.*.', 'mgc.MGC%s.' % _NID)
        line = line.replace('/mnt/', '/MNT/').replace(
            '/tmp', self.path('tmp')).replace('/MNT', self.directory)
        line = line.replace(_NID, self.nid).replace(_FSNAME, self.fsname)
        line = line.replace(_NID.split('@')[0] + ':',
                            self.nid.split('@')[0] + ':')
        return line.replace(_NID.split('@')[0], self.nid.split('@')[0])

    def globalised(self, text):
        """What a command printed with the names of the transcripts."""
        return (text.replace(self.path('tmp'), '/tmp')
                .replace(self.directory, '/mnt')
                .replace(self.nid.split('@')[0], _NID.split('@')[0])
                .replace(self.fsname, _FSNAME))
