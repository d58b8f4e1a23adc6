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


"""Backups, restores and deletions that are killed, or fail, on their way.

Each system call that changes something is a point in two ways:

process
    the process is killed in place of the call
error
    the call fails, as on a file system that is full
"""

from concurrent import futures
import contextlib
import functools
import hashlib
import json
import os
import random
import subprocess
import tempfile
from unittest import mock

from cinder_lustre.backup import piece
from cinder_lustre.backup import transfer
from cinder_lustre import exception
from cinder_lustre.tests.faults import process
from cinder_lustre.tests import share_directory

MIB = share_directory.MIB
SIZE = 6 * MIB
# Larger than the backup.
TARGET_SIZE = 8 * MIB
BLOCK = 64 << 10
PREFIX = 'volume_backup'
# Containers as Cinder makes them, below two common directories.
FULL, INCREMENTAL, OTHER = (os.path.join('8f', '1c', '8f1c%d' % number)
                            for number in range(3))
VOLUME, TARGET, BACKUPS = 'volume', 'target', 'backups'


class Difference(Exception):
    """A backup or a volume is not as it has to be."""


class _OneByOne(futures.Executor):
    """Runs calls in the process itself: strace follows no threads."""

    def __init__(self, _threads):
        pass

    def submit(self, function, /, *args, **kwargs):
        call = futures.Future()
        try:
            call.set_result(function(*args, **kwargs))
        except Exception as exc:
            call.set_exception(exc)
        return call


def _in_order(function):
    """Let a function do one thing after the other."""
    @functools.wraps(function)
    def run(root):
        with mock.patch.object(transfer.futures, 'ThreadPoolExecutor',
                               _OneByOne):
            return function(root)

    return run


def _container(root, backup):
    return os.path.join(root, BACKUPS, backup)


def _write_volume(root):
    """Data, a hole, data, and a hole at the end."""
    rand = random.Random(0)
    with open(os.path.join(root, VOLUME), 'wb') as stream:
        stream.truncate(SIZE)
        stream.write(rand.randbytes(MIB + BLOCK))
        stream.seek(4 * MIB + 512)
        stream.write(b'data' * BLOCK)


def _change_volume(root):
    """Other data, new data, and zeros in the place of data."""
    with open(os.path.join(root, VOLUME), 'r+b') as stream:
        for offset, data in ((4096, b'other'), (MIB // 2, bytes(2 * BLOCK)),
                             (2 * MIB + BLOCK, b'new' * BLOCK)):
            stream.seek(offset)
            stream.write(data)


def _write_target(root, hole):
    """A volume of other data, with a hole of so many bytes at its end."""
    with open(os.path.join(root, TARGET), 'wb') as stream:
        stream.write(b'\xff' * (TARGET_SIZE - hole))
        stream.truncate(TARGET_SIZE)


def _back_up(root, backup, parent=None, algorithm='zlib'):
    """What the service and its child do for one backup."""
    container = _container(root, backup)
    transfer.make_container(os.path.join(root, BACKUPS), backup, True)
    with open(os.path.join(root, VOLUME), 'rb') as volume:
        objects = transfer.store(
            {'fd': volume.fileno()}, os.path.join(root, BACKUPS), backup,
            PREFIX, {'chunk_size': BLOCK},
            algorithm, MIB,
            parent and os.path.join(_container(root, parent),
                                    PREFIX + transfer.HASHES))
    piece.write(os.path.join(container, PREFIX + transfer.METADATA),
                [json.dumps({'version': '1.0.0', 'volume_meta': None,
                             'objects': objects}).encode()])


def _restore(root, *backups):
    """Restore a chain of backups, as the service and its child do."""
    for backup in backups:
        transfer.check(_container(root, backup), PREFIX, TARGET_SIZE,
                       backup is backups[0])
    with open(os.path.join(root, TARGET), 'r+b') as volume:
        for backup in backups:
            transfer.restore({'fd': volume.fileno()},
                             _container(root, backup), PREFIX, TARGET_SIZE,
                             False)


def _delete(root, backup):
    transfer.remove(os.path.join(root, BACKUPS), backup, PREFIX)


def files(root):
    """The digests of all files below a directory, and its directories."""
    found = {}
    for parent, directories, names in os.walk(root):
        for name in directories:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, root)] = None
        for name in names:
            path = os.path.join(parent, name)
            with open(path, 'rb') as stream:
                found[os.path.relpath(path, root)] = hashlib.sha256(
                    stream.read()).hexdigest()
    return found


def _read(root, name):
    with open(os.path.join(root, name), 'rb') as stream:
        return stream.read()


class _Operation:
    """One operation on a chain of backups; the last one is at stake.

    :param minimum: how many points there are at least, for each way
    :param chain: the backups, the full one first
    :param run: what is killed, given the directory of the case
    :param hole: bytes that are free in the volume that is restored to
    """

    #: What the system calls fail with, and how that is reported.
    error = 'ENOSPC'
    report = 'OSError: [Errno 28] No space left on device'
    #: Whether the last backup is there before.
    is_prepared = True

    def __init__(self, minimum, chain, run, hole=MIB):
        self.minimum = minimum
        self.chain = chain
        self.run = _in_order(run)
        self.hole = hole

    def prepare(self, root):
        """Make the volumes, another backup and those of the chain."""
        os.mkdir(os.path.join(root, BACKUPS))
        _write_volume(root)
        _write_target(root, self.hole)
        _back_up(root, OTHER)
        for backup, parent in zip(self.chain, (None, *self.chain)):
            if parent:
                _change_volume(root)
            if backup != self.chain[-1] or self.is_prepared:
                _back_up(root, backup, parent)

    def check(self, root, before, after):
        """See what it has left, and repeat it.

        :param before: what files() found before it
        :param after: what it finds after one that was not disturbed
        :raises: Difference
        """
        raise NotImplementedError()

    def check_restore(self, root):
        """See that the chain is restored as it should be."""
        end = _read(root, TARGET)[SIZE:]
        _restore(root, *self.chain)
        content = _read(root, TARGET)
        if content[:SIZE] != _read(root, VOLUME):
            raise Difference('what is restored is not what was backed up')
        if content[SIZE:] != end:
            raise Difference('the end of the larger volume was changed')

    def check_deletion(self, root, before):
        """Delete what is at stake, and see that nothing else goes."""
        backup = self.chain[-1]
        for _again in range(2):
            _delete(root, backup)
        _compare({name: digest for name, digest in before.items()
                  if not name.startswith(os.path.join(BACKUPS, backup))},
                 files(root))


def _compare(expected, found):
    """Compare what files() found, but for the volume of a restore."""
    names = sorted(name for name in expected.keys() | found.keys()
                   if name != TARGET and
                   expected.get(name, 0) != found.get(name, 0))
    if names:
        raise Difference('not as it was: %s' % ', '.join(names))


class BackUp(_Operation):
    """Nothing is claimed, or the backup is complete."""

    is_prepared = False

    def check(self, root, before, after):
        # After an error, another piece may have had the next number.
        complete = set(after.values())
        wrong = [name for name, digest in files(root).items()
                 if not name.endswith(piece.PART) and digest not in complete]
        if wrong:
            raise Difference('not complete: %s' % ', '.join(wrong))
        if os.path.exists(os.path.join(_container(root, self.chain[-1]),
                                       PREFIX + transfer.METADATA)):
            self.check_restore(root)
        self.check_deletion(root, before)


class Restore(_Operation):
    """The backups are untouched, and restored again."""

    def check(self, root, before, _after):
        _compare(before, files(root))
        self.check_restore(root)
        self.check_deletion(root, before)


class Delete(_Operation):
    """What is left is restored rightly, or called damaged; it is deleted."""

    error = 'EIO'
    report = 'OSError: [Errno 5] Input/output error'

    def check(self, root, before, _after):
        with contextlib.suppress(exception.ObjectDamaged):
            self.check_restore(root)
        self.check_deletion(root, before)


OPERATIONS = {
    'back up': BackUp(
        38, (FULL,), lambda root: _back_up(root, FULL)),
    'back up uncompressed': BackUp(
        38, (FULL,), lambda root: _back_up(root, FULL, algorithm='none')),
    'back up incrementally': BackUp(
        27, (FULL, INCREMENTAL),
        lambda root: _back_up(root, INCREMENTAL, FULL)),
    'restore': Restore(
        8, (FULL,), lambda root: _restore(root, FULL)),
    'restore to thick': Restore(
        8, (FULL,), lambda root: _restore(root, FULL), hole=0),
    'restore incremental': Restore(
        12, (FULL, INCREMENTAL),
        lambda root: _restore(root, FULL, INCREMENTAL)),
    'delete backup': Delete(
        10, (FULL,), lambda root: _delete(root, FULL)),
}


class Case:
    """An operation that is killed, or fails, at one point after the other."""

    def __init__(self, name, directory):
        self.name = name
        self.operation = OPERATIONS[name]
        self.directory = directory
        self.template = tempfile.mkdtemp(dir=directory)
        self.operation.prepare(self.template)
        self.before = files(self.template)
        with self._copy() as root, self._directory() as traces:
            self.calls, _commands = process.points(
                functools.partial(self.operation.run, root), traces)
            self.after = files(root)
            self.operation.check(root, self.before, self.after)

    @property
    def points(self):
        """All points: the arguments of :meth:`kill`."""
        return [(way, *call) for way in ('process', 'error')
                for call in self.calls]

    @property
    def minimum(self):
        return len(self.calls)

    @contextlib.contextmanager
    def _copy(self):
        with self._directory() as root:
            subprocess.run(['cp', '-a', '--sparse=always',
                            self.template + '/.', root], check=True)
            yield root

    def _directory(self):
        return tempfile.TemporaryDirectory(dir=self.directory)

    def kill(self, point):
        """Kill the operation at a point, or let it fail, and repeat it.

        :returns: whether it got to that point
        :raises: Difference
        """
        way, *where = point
        with self._copy() as root, self._directory() as traces:
            function = functools.partial(self.operation.run, root)
            if way == 'process':
                reached = process.kill_process(function, traces, *where)
            else:
                error = process.fail_process(function, traces, *where,
                                             self.operation.error)
                reached = error is not None
                if reached and self.operation.report not in error:
                    raise Difference('this became of the error: %s'
                                     % (error or 'success'))
            self.operation.check(root, self.before, self.after)
        return reached
