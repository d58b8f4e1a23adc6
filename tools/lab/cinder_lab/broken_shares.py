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

"""What a running cinder-volume makes of bad shares, as a table.

The second backend gets another share, which is broken in one way after the
other. Each time the log has to name the cause, the backend has to go on with
its good share, and all has to be well after the cure, without a restart where
that can be.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import time
import typing

from cinder_lab import commands
from cinder_lab import lifecycle
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import services
from cinder_lab import state
from cinder_lab import storage

BACKEND = services.BACKENDS[1]
PATIENCE = 180
SHARE_SIZE = '2G'
GIB = 1 << 30


@dataclasses.dataclass
class Case:
    """One bad input.

    :param log: a regular expression for the line that the operator gets
    :param spoil: a context manager; the cure is its end
    :param offline: whether the bad share stops serving
    :param restart: whether the service is restarted under the fault, which
        it does not survive, and after the cure
    """

    name: str
    log: str
    spoil: typing.Callable
    offline: bool = True
    restart: bool = False


class Table:
    """The cases, in one lab."""

    def __init__(self, lab):
        self._lab = lab
        self._client = rest.Client(lab)
        self._log = lab.log('cinder-volume')
        self._file = lab.prefix / f'etc/shares-{BACKEND}'
        self._good = self._file.read_text()
        self._name = storage.spare_fsname(lab.base)
        digest = hashlib.md5(f'lustre:/{self._name}'.encode(),
                             usedforsecurity=False).hexdigest()
        self._point = lab.prefix / 'mnt' / BACKEND / digest
        self._failures = []

    def run(self):
        """Go through all cases; return what was not as it must be."""
        source = storage.create_standin(self._lab, self._name, SHARE_SIZE)
        try:
            self._write_shares(self._good + source + '\n')
            self._wait(lambda: len(self._serving()) == 2,
                       'the share added to the file is not used')
            for case in self._cases(source):
                self._try(case)
        finally:
            self._write_shares(self._good)
            self._wait(lambda: len(self._serving()) == 1,
                       'the share taken from the file is still used')
            storage.unmount_point(self._point)
            storage.standin('destroy', self._name)
        return self._failures

    def _cases(self, source):
        text = self._file.read_text()
        named = re.escape(f'lustre:/{self._name}')

        def file_with(content):
            return lambda: self._shares_file(content)

        return [
            Case('wrong line', r'Line 3 of \S+ is left out: .*:/',
                 file_with(text + 'nonsense\n'), offline=False),
            Case('two file systems of one name',
                 r'Line 3 of \S+ is left out: .*line 2',
                 file_with(text + f'127.9.9.9@tcp:/{self._name}/other\n'),
                 offline=False),
            Case('shares file empty', r'There is no valid share in \S+\.',
                 file_with(''), offline=False),
            Case('shares file missing', r'The shares file \S+ cannot be read',
                 self._without_file, offline=False),
            Case('mount point a plain directory',
                 named + r' is down: .*MGS',
                 self._unmountable),
            Case('mount point another file system',
                 named + r' is down: .*tmpfs', self._other_file_system),
            Case('mount covered by a second one',
                 named + r' is down: .*hidden by .*tmpfs', self._covered),
            Case('mounted read-only', named + r' is down: .*read-only',
                 self._read_only),
            Case('mounted with noflock', named + r' is down: .*noflock',
                 self._without_locks),
            Case('mount.lustre missing',
                 named + r' is down: .*(mount\.lustre|helper)',
                 self._without_helper),
            Case('share full', named + r' is full', self._full),
            Case('share not writable',
                 named + r' is down: .*cannot make a file', self._unwritable),
            Case('shares file empty at start',
                 r'There is no valid share in \S+\.', file_with(''),
                 restart=True),
        ]

    def _try(self, case):
        started = time.monotonic()
        before = self._listing()
        offset = self._log.stat().st_size
        row = [case.name]
        try:
            try:
                with case.spoil():
                    line = self._watch(case, offset)
                    row += ['%s, %s' % self._state(),
                            '%.1f GiB' % self._free()]
                    self._use(services.BACKENDS[0] if case.restart
                              else BACKEND)
            finally:
                if case.restart:
                    lifecycle.restart(self._lab, ['cinder-volume'])
            self._wait(lambda: self._state() == ('up', 'up') and
                       len(self._serving()) == 2, 'no recovery')
            if self._listing() != before:
                raise report.LabError('the files on the shares changed: '
                                      f'{self._listing() ^ before}')
        except report.LabError as error:
            self._failures.append(f'{case.name}: {error}')
            report.say(f'{case.name}: FAILED: {error}')
            return
        report.say('%s: %s, free %s (%.0f s)\n    %s' % (
            *row, time.monotonic() - started, line))

    def _watch(self, case, offset):
        """Wait until the fault shows everywhere; return the log's line."""
        if case.restart:
            lifecycle.restart(self._lab, ['cinder-volume'], wait=False)
        line = self._wait(lambda: self._find(case.log, offset),
                          f'no line like "{case.log}"')
        if case.restart:
            self._wait(lambda: self._state()[0] == 'down',
                       'the service is not reported as down')
        elif case.offline:
            self._wait(lambda: len(self._serving()) == 1,
                       'the bad share still counts as free space')
        return line

    # What the cases do

    @contextlib.contextmanager
    def _shares_file(self, content):
        text = self._file.read_text()
        self._write_shares(content)
        try:
            yield
        finally:
            self._write_shares(text)

    @contextlib.contextmanager
    def _without_file(self):
        text = self._file.read_text()
        self._file.unlink()
        try:
            yield
        finally:
            self._write_shares(text)

    @contextlib.contextmanager
    def _unmountable(self):
        """Only the bare directory is left, and the MGS does not answer."""
        storage.standin('fault', self._name, 'mgs-unreachable', 'on',
                        '--seconds', '5')
        try:
            storage.unmount_point(self._point)
            yield
            left = list(self._point.iterdir())
            if left:
                raise report.LabError(f'written to the bare directory: {left}')
        finally:
            storage.standin('fault', self._name, 'mgs-unreachable', 'off')

    @contextlib.contextmanager
    def _covered(self):
        commands.run('mount', '-t', 'tmpfs', 'tmpfs', str(self._point))
        try:
            yield
        finally:
            commands.run('umount', str(self._point))

    @contextlib.contextmanager
    def _other_file_system(self):
        with self._without_helper(), self._covered():
            yield

    @contextlib.contextmanager
    def _without_locks(self):
        source = self._file.read_text().splitlines()[-1]
        with self._without_helper() as helper:
            commands.run(helper, source, str(self._point), '-o', 'noflock')
            try:
                yield
            finally:
                storage.unmount_point(self._point)

    @contextlib.contextmanager
    def _read_only(self):
        commands.run('mount', '-o', 'remount,ro', str(self._point))
        try:
            yield
        finally:
            commands.run('mount', '-o', 'remount,rw', str(self._point))

    @contextlib.contextmanager
    def _without_helper(self):
        """Unmount the share, and keep the service from mounting it again."""
        hidden = storage.MOUNT_HELPER.with_name('.mount.lustre.hidden')
        storage.MOUNT_HELPER.rename(hidden)
        try:
            storage.unmount_point(self._point)
            yield hidden
        finally:
            hidden.rename(storage.MOUNT_HELPER)

    @contextlib.contextmanager
    def _full(self):
        filling = self._point / 'filling'
        with open(filling, 'wb') as stream:
            offset, step = 0, GIB
            while step >= 4096:
                try:
                    os.posix_fallocate(stream.fileno(), offset, step)
                    offset += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2
        try:
            yield
        finally:
            filling.unlink()

    @contextlib.contextmanager
    def _unwritable(self):
        mode = self._point.stat().st_mode
        owner = self._point.stat().st_uid
        os.chown(self._point, 0, -1)
        os.chmod(self._point, 0o555)
        try:
            yield
        finally:
            os.chown(self._point, owner, -1)
            os.chmod(self._point, mode)

    # What can be seen

    def _write_shares(self, text):
        state.write(self._file, text)

    def _find(self, pattern, offset):
        with open(self._log, errors='replace') as stream:
            stream.seek(offset)
            for line in stream:
                if re.search(pattern, line) and ' ERROR ' in line:
                    return line.strip()

    def _state(self):
        for entry in self._client.cinder('GET', '/os-services')['services']:
            if entry['host'] == f'lab@{BACKEND}':
                return entry['state'], entry['backend_state']

    def _free(self):
        """The free GiB of the backend; none if it has not started."""
        answer = self._client.cinder(
            'GET', '/scheduler-stats/get_pools?detail=True')
        return sum(pool['capabilities']['free_capacity_gb']
                   for pool in answer['pools']
                   if pool['name'].startswith(f'lab@{BACKEND}#'))

    def _serving(self):
        """The shares whose free space the scheduler knows of."""
        free = self._free()
        rooms = {}
        for point in storage.mounts(self._lab.prefix / 'mnt' / BACKEND):
            room = os.statvfs(point)
            rooms[point] = room.f_bavail * room.f_frsize / GIB
        good = max(rooms.values(), default=0)
        # The spare share is small, but not as small as rounding errors.
        return ['good', 'spare'] if free > good + 0.5 else ['good']

    def _use(self, backend):
        """Create and delete a volume while one share is bad."""
        volume = self._client.cinder('POST', '/volumes', {'volume': {
            'name': 'bad-input', 'size': 1,
            'volume_type': backend}})['volume']['id']
        self._wait(lambda: self._volume(volume)['status'] == 'available',
                   'no volume can be created on the good share')
        self._client.cinder('DELETE', f'/volumes/{volume}')
        self._wait(lambda: not self._exists(volume),
                   'the volume on the good share cannot be deleted')

    def _volume(self, volume):
        answer = self._client.cinder('GET', f'/volumes/{volume}')['volume']
        if answer['status'].startswith('error'):
            raise report.LabError(f'the volume on the good share is in state '
                                  f'{answer["status"]}')
        return answer

    def _exists(self, volume):
        return volume in [entry['id'] for entry in self._client.cinder(
            'GET', '/volumes')['volumes']]

    def _listing(self):
        """All files of both shares, but for the records' locks."""
        return {os.path.join(parent, name)
                for point in storage.mounts(self._lab.prefix / 'mnt')
                for parent, _directories, names in os.walk(point)
                for name in names}

    @staticmethod
    def _wait(probe, what):
        return report.wait_for(probe, what, PATIENCE)


def run(lab):
    """Print the table.

    :raises: LabError when something is not as it must be
    """
    if storage.has_real_client():
        raise report.LabError('faults are made on the stand-in only, and '
                              'this lab is on a real Lustre')
    failures = Table(lab).run()
    if failures:
        raise report.LabError('\n'.join(failures))
    report.say('every bad input was named, survived and cured')
