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

"""Runs the plugin in the simulated DevStack, and reads what it recorded."""

import os
import pathlib
import shutil
import subprocess

import fixtures

PLUGIN = pathlib.Path(__file__).parent.parent
# What of a host the plugin may use, besides what "simulation" defines.
COMMANDS = ('awk', 'bash', 'cat', 'chmod', 'cut', 'dirname', 'find', 'grep',
            'head', 'ls', 'mkdir', 'mv', 'numfmt', 'realpath', 'rm', 'rmdir',
            'sed', 'sha256sum', 'sort', 'tee', 'touch', 'tr', 'xargs')


class Simulation(fixtures.Fixture):
    """A host with a DevStack.

    :param host: what the host is, as in the file "simulation": DISTRO,
                 KERNEL, LUSTRE and others
    :param localrc: the user's settings, as text or as a dict
    :ivar plugin: the directory of the plugin
    """

    def __init__(self, host, localrc=''):
        self.host = host
        self.plugin = PLUGIN
        if isinstance(localrc, dict):
            localrc = ''.join(f'{name}="{value}"\n'
                              for name, value in localrc.items())
        self.localrc = localrc

    def _setUp(self):
        self.top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (self.top / 'bin').mkdir()
        for name in COMMANDS:
            (self.top / 'bin' / name).symlink_to(shutil.which(name))
        # What a distribution brings along.
        for path in ('apt/sources.list.d', 'modprobe.d', 'yum.repos.d'):
            self.path(f'/etc/{path}').mkdir(parents=True)
        for path in ('mounts', 'record'):
            (self.top / path).touch()
        self.tell(**self.host)
        (self.top / 'localrc').write_text(self.localrc)

    def tell(self, **host):
        """Say what the host is from now on."""
        self.host = dict(self.host, **host)
        (self.top / 'host').write_text(''.join(
            f'{name}="{value}"\n' for name, value in self.host.items()))

    def run(self, script):
        """Run stack, unstack or clean.

        :returns: what it has recorded
        """
        before = len(self._lines())
        done = subprocess.run(
            [shutil.which('bash'), str(self.plugin / 'tests/simulation'),
             script],
            env={'SIMULATION': str(self.top)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors='replace')
        return Record(self._lines()[before:], done.returncode, done.stdout)

    def _lines(self):
        return (self.top / 'record').read_text().splitlines()

    @property
    def mounts(self):
        """Pairs of a source and the directory that it is mounted on."""
        return [tuple(line.split('\t')) for line in
                (self.top / 'mounts').read_text().splitlines()]

    def path(self, path):
        """Where a path of the host is."""
        return self.top / 'root' / path.lstrip('/')

    @property
    def files(self):
        """All files of the host."""
        root = self.top / 'root'
        return {'/' + os.path.relpath(path, root)
                for path in root.rglob('*') if path.is_file()}


class Record:
    """What a script did.

    :ivar calls: tuples of a function, or of sudo, and its arguments
    :ivar code: the exit code of the script
    """

    def __init__(self, lines, code, output):
        self.calls = [tuple(line.split('\t')) for line in lines]
        self.code = code
        self.output = output

    def of(self, *start):
        """The arguments of the calls that begin like this."""
        return [call[len(start):] for call in self.calls
                if call[:len(start)] == start]

    @property
    def options(self):
        """The options that were set: file, section and name to value."""
        found = {}
        for call in self.calls:
            if call[0] == 'iniset':
                path, section, name, value = call[1:]
                found[os.path.basename(path), section, name] = value
            elif call[0] == 'remove':
                name = os.path.basename(call[1])
                found = {key: value for key, value in found.items()
                         if key[0] != name}
        return found

    @property
    def packages(self):
        return [name for call in self.of('install_package') for name in call]

    @property
    def death(self):
        """Why the script died, or None."""
        found = self.of('die')
        return found[0][1] if found else None
