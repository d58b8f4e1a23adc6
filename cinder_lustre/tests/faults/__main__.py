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


"""The command: kills, compares, and prints a table."""

import argparse
from concurrent import futures
import difflib
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from unittest import mock

from cinder_lustre import chain
from cinder_lustre import check
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests.faults import backups
from cinder_lustre.tests.faults import concurrency
from cinder_lustre.tests.faults import defects
from cinder_lustre.tests.faults import operations
from cinder_lustre.tests.faults import process
from cinder_lustre.tests import share_directory

NAMES = (*operations.OPERATIONS, *backups.OPERATIONS)
VOLUMES = (operations.OTHER, operations.VOLUME)


class Difference(Exception):
    """Something is not as it was acknowledged."""


def state(share):
    """All that a share holds, in a form that can be compared."""
    volumes = {}
    loose = set(os.listdir(share.root))
    for volume in VOLUMES:
        if not os.path.exists(share.sidecar(volume)):
            continue
        rec = share.record(volume)
        del rec['intent']
        loose.difference_update(rec['layers'])
        mirror = share.path('volume-%s.info' % volume)
        volumes[volume] = {
            'record': rec,
            'mirror': (share.info(volume) if os.path.exists(mirror)
                       else None),
            'content': _digest(share.content(volume)),
            'snapshots': {snapshot: _digest(share.content(volume, snapshot))
                          for snapshot in rec['snapshots']}}
    # What a killed process leaves beside a record counts at the end only.
    return {
        'volumes': volumes,
        'loose': {name: _digest_loose(share, name)
                  for name in loose if record.is_plain(name) and
                  not name.endswith('.info')},
        'modes': {name: os.stat(share.path(name)).st_mode & 0o7777
                  for name in share.files() if not name.endswith('.new')}}


def _digest_loose(share, name):
    """The content of a file that is no volume's, or not yet.

    A qemu-img that is killed may have grown an image, without any harm.
    """
    content = share.read_file(name, 'raw')
    if content.startswith(b'QFI\xfb'):
        content = share.read_file(name, 'qcow2').rstrip(b'\0')
    return _digest(content)


def _digest(content):
    return '%s bytes %s' % (len(content),
                            hashlib.sha256(content).hexdigest()[:16])


def check_files(share):
    """See that all on the share fits together.

    In qcow2 files, lost clusters are no harm.
    """
    for finding in check.check(share.root)['findings']:
        if finding['severity'] != check.NOTE:
            raise Difference('%(code)s: %(thing)s: %(cause)s' % finding)
    for volume in VOLUMES:
        if os.path.exists(share.sidecar(volume)):
            for name, layer in share.record(volume)['layers'].items():
                if layer['format'] == 'qcow2':
                    checked = subprocess.run(
                        ['qemu-img', 'check', '-q', '-f', 'qcow2',
                         share.path(name)], capture_output=True)
                    if checked.returncode not in (0, 3):
                        raise Difference('%s is corrupt: %s' % (
                            name, checked.stderr.decode()))


def recover(share, operation):
    """Use each volume once; what was not created completely is deleted.

    Or it is left alone, where Cinder does not know of it.
    """
    operation.first(share.root)
    for volume in VOLUMES:
        if _is_created(share, volume):
            chain.describe(share.root, volume)
        elif volume in operation.known:
            chain.delete(share.root, volume)


def _is_created(share, volume):
    if not os.path.exists(share.sidecar(volume)):
        return False
    rec = share.record(volume)
    started = rec['intent'] and rec['intent']['operation']
    return started != 'create' and (
        started != 'manage' or os.path.exists(share.path(rec['active'])))


def check_busy(share):
    """See that nobody changes a volume beside a living qemu-img."""
    with mock.patch.object(record, '_FENCE_WAIT', 0):
        for volume in VOLUMES:
            if os.path.exists(share.sidecar(volume)):
                try:
                    chain.settle(share.root, volume)
                except exception.VolumeBusy:
                    continue
                raise Difference('volume %s was worked on beside a living '
                                 'qemu-img' % volume)


def delete_all(share, operation):
    """Delete all volumes, and see that nothing is left."""
    operation.first(share.root)
    for volume in VOLUMES:
        chain.delete(share.root, volume)
    left = set(share.files()) - {operation.foreign}
    if left:
        raise Difference('left behind: %s' % ', '.join(sorted(left)))


class Case:
    """An operation with the states between which it may be killed."""

    def __init__(self, name, directory):
        self.name = name
        self.operation = operations.OPERATIONS[name]
        self.directory = directory
        self.template = self._directory()
        self.operation.prepare(self.template)
        with self.copy() as share:
            recover(share, self.operation)
            self.before = state(share)
            self.operation.between(share.root)
            self.between = state(share)
        with self.copy() as share, self.traces() as traces:
            self.calls, self.commands = process.points(
                functools.partial(self.operation.run, share.root), traces)
            self.after = state(share)
            # What is begun only may be finished, or undone, by the next use.
            recover(share, self.operation)
            self.settled = state(share)
        with self.copy() as share:
            delete_all(share, self.operation)

    @property
    def points(self):
        """All points: the arguments of :meth:`kill`."""
        return [('process', *call) for call in self.calls] + [
            (way, number, step) for way in process.WAYS
            for number, steps in enumerate(self.commands)
            for step in range(1, steps + 1)]

    @property
    def minimum(self):
        """What is always the same, whatever threads a qemu-img uses."""
        return len(self.calls) + len(self.commands)

    def _directory(self):
        return share_directory.ShareDirectory(
            tempfile.mkdtemp(dir=self.directory))

    def copy(self, share=None):
        """A copy of a share, for a while."""
        copied = self._directory()
        subprocess.run(['cp', '-a', '--sparse=always',
                        (share or self.template).root + '/.', copied.root],
                       check=True)
        return _Removed(copied, copied.root)

    def traces(self):
        traces = tempfile.mkdtemp(dir=self.directory)
        return _Removed(traces, traces)

    def kill(self, point):
        """Kill the operation at a point, recover, and compare.

        :returns: whether it got to that point
        :raises: Difference
        """
        with self.copy() as share, self.traces() as traces:
            function = functools.partial(self.operation.run, share.root)
            kind, *where = point
            if kind == 'process':
                reached = process.kill_process(function, traces, *where)
            else:
                reached = process.kill_child(
                    function, traces, *where, kind,
                    functools.partial(check_busy, share))
            if not reached:
                self._expect(share, self.after)
                return False
            self._check_recovery(share)
        return True

    def _check_recovery(self, share):
        # An orphan ends in its own time.
        for volume in VOLUMES:
            if os.path.exists(share.sidecar(volume)):
                with record.fence(share.root, volume):
                    pass
        with self.copy(share) as killed:
            delete_all(killed, self.operation)
        with self.copy(share) as killed:
            self._check_repetition(killed)
        if self.operation.deletes:
            # What is half gone cannot be described.
            return
        recover(share, self.operation)
        found = self._expect(share, self.before, self.between, self.settled)
        check_files(share)
        if self.operation.repeatable and found == self.before:
            self.operation.run(share.root)
            self._expect(share, self.after)
        delete_all(share, self.operation)

    def _check_repetition(self, share):
        """Repeat the operation without a look at the volume before."""
        try:
            self.operation.run(share.root)
        except (exception.FileExists, exception.RecordError):
            # It was completed, or its first half must be repeated, too.
            recover(share, self.operation)
            self._expect(share, self.before, self.between, self.settled)
        else:
            self._expect(share, self.after, self.settled)
        check_files(share)
        delete_all(share, self.operation)

    def _expect(self, share, *states):
        found = state(share)
        if found not in states:
            raise Difference('\n'.join(min(
                (_difference(found, expected) for expected in states),
                key=len)))
        return found


def _difference(found, expected):
    """The lines in which two states differ, and a few around them."""
    return list(difflib.unified_diff(
        *(json.dumps(content, indent=1, sort_keys=True).splitlines()
          for content in (expected, found)), 'expected', 'found',
        lineterm=''))


class _Removed:
    """Something that has a directory, which goes in the end."""

    def __init__(self, thing, path):
        self._thing = thing
        self._path = path

    def __enter__(self):
        return self._thing

    def __exit__(self, kind, value, trace):
        shutil.rmtree(self._path)


def make_case(name, directory):
    """Prepare an operation of the storage core, or one on backups."""
    case = backups.Case if name in backups.OPERATIONS else Case
    return case(name, directory)


def sample(points, size):
    """Points that are spread evenly; always the same ones."""
    if size is None or size >= len(points):
        return points
    return [points[index * len(points) // size] for index in range(size)]


def _set_up():
    # An orphan that was stopped may need its time on a busy machine.
    record._FENCE_WAIT = 120
    logging.disable()
    record.lfs.set_dom_default = str


def try_operation(name, directory, size):
    """Kill an operation at its points.

    :returns: a row of the table, and a list of failures
    """
    _set_up()
    start = time.monotonic()
    row = {'operation': name, 'points': 0, 'tried': 0, 'survived': 0}
    failures = []
    try:
        with tempfile.TemporaryDirectory(dir=directory) as work:
            case = make_case(name, work)
            row['points'] = len(case.points)
            if case.minimum < case.operation.minimum:
                failures.append('%s: %d calls and commands, recorded are %d'
                                % (name, case.minimum,
                                   case.operation.minimum))
            _try_points(case, sample(case.points, size), row, failures)
    except Exception:
        failures.append('%s, without a kill: %s' % (name,
                                                    traceback.format_exc()))
    row['seconds'] = time.monotonic() - start
    return row, failures


def _try_points(case, points, row, failures):
    ended = set()
    for point in points:
        if point[:2] in ended:
            continue
        try:
            if not case.kill(point):
                # The command has fewer steps this time.
                ended.add(point[:2])
                continue
        except Exception as exc:
            failures.append('%s, %s: %s: %s' % (
                case.name, ' '.join(map(str, point)), type(exc).__name__,
                exc))
        else:
            row['survived'] += 1
        row['tried'] += 1


def try_defect(name, directory):
    """Kill an operation with a defect until it shows.

    :returns: how many points were tried, and what was noticed at the last
              one, or None
    """
    _set_up()
    defect = defects.DEFECTS[name]
    with tempfile.TemporaryDirectory(dir=directory) as work, defect.patch():
        case = make_case(defect.operation, work)
        points = [point for point in case.points if point[0] == defect.way]
        for tried, point in enumerate(points, 1):
            try:
                case.kill(point)
            except (Difference, backups.Difference,
                    exception.LustreException) as exc:
                return tried, '%s at %s' % (type(exc).__name__,
                                            ' '.join(map(str, point)))
    return len(points), None


def _try_defects(pool, directory):
    """Print a table; returns the exit code."""
    line = '%-26s %-22s %6s  %s'
    print(line % ('defect', 'operation', 'points', 'noticed'))
    tries = {name: pool.submit(try_defect, name, directory)
             for name in defects.DEFECTS}
    noticed = set()
    for name, attempt in tries.items():
        tried, failure = attempt.result()
        noticed.add(failure is not None)
        print(line % (name, defects.DEFECTS[name].operation, tried,
                      failure or 'NO'), flush=True)
    return 0 if all(noticed) else 1


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog='python -m cinder_lustre.tests.faults',
        description='Kill the storage core at every system call that '
                    'changes something, and see that nothing is lost.')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--all', action='store_true',
                       help='try all points (the default)')
    group.add_argument('--sample', type=int, metavar='N',
                       help='try N points of each operation, always the '
                       'same ones')
    group.add_argument('--defects', action='store_true',
                       help='see that known kinds of defects would be '
                       'noticed')
    group.add_argument('--concurrency', action='store_true',
                       help='let two processes work on the same volumes at '
                       'once, then kill one of both again and again')
    parser.add_argument('--seconds', type=float, default=10,
                        help='how long they do each (%(default)s)')
    parser.add_argument('--seed', type=int, default=1,
                        help='where their random choices begin (%(default)s)')
    parser.add_argument('--operation', action='append', metavar='X',
                        choices=NAMES,
                        help='try this operation; may be repeated')
    parser.add_argument('--list', action='store_true',
                        help='list the operations')
    parser.add_argument('--directory',
                        help='work in this directory, on any file system '
                        'with flock (in memory, by default)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='operations that are tried at once (%(default)s)')
    return parser.parse_args(arguments)


def _try_operations(pool, directory, names, size):
    """Print a table, and the failures; returns the exit code."""
    line = '%-30s %6s %6s %8s %7s'
    print(line % ('operation', 'points', 'tried', 'survived', 'seconds'))
    failures = []
    total = [0, 0, 0]
    tries = [pool.submit(try_operation, name, directory, size)
             for name in names]
    for attempt in tries:
        row, failed = attempt.result()
        numbers = [row['points'], row['tried'], row['survived']]
        total = [sum(pair) for pair in zip(total, numbers)]
        print(line % (row['operation'], *numbers, '%.0f' % row['seconds']),
              flush=True)
        failures += failed
    print(line % ('total', *total, ''))
    return _print_failures(failures)


def _print_failures(failures):
    for failure in failures:
        print('\nFAILED: %s' % failure)
    return 1 if failures else 0


def main(arguments=None):
    args = _parse(arguments)
    if args.list:
        print('\n'.join(NAMES))
        return 0
    for command in ('strace', 'qemu-img', 'qemu-io'):
        if not shutil.which(command):
            print('There is no %s. Install it first.' % command,
                  file=sys.stderr)
            return 2
    directory = args.directory or share_directory.in_memory()
    if args.concurrency:
        return _print_failures([
            failure for killing in (False, True) for failure in
            concurrency.run(directory, args.seconds, args.seed, killing)])
    with futures.ProcessPoolExecutor(
            args.jobs, multiprocessing.get_context('fork')) as pool:
        if args.defects:
            return _try_defects(pool, directory)
        return _try_operations(
            pool, directory, args.operation or NAMES, args.sample)


if __name__ == '__main__':
    sys.exit(main())
