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

"""What a running cinder-volume makes of an OST that dies, as a table.

One volume's file on the first backend's share hangs whoever looks at it, in a
state that survives SIGKILL. The operation on that volume has to end in an
error; meanwhile, and for some minutes, the service has to go on with
everything else; and all has to be well again when the OST is back.
"""

import contextlib
import dataclasses
import datetime
import os
import re
import time
import typing

from cinder_lab import processes
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import services
from cinder_lab import storage

SICK, WELL = services.BACKENDS
# The lab keeps the default of lustre_operation_timeout.
TIMEOUT = 60
# Beyond that, for a slow machine; also what recovery may take.
PATIENCE = 60
PAUSE = 3
# The child of an operation, and the program that it may run.
CHILD = re.compile(r'cinder_lustre\.worker|^\S*qemu-img ')
# Where the kernel has a child that was kept for the next call.
KEPT = 'unix_stream_read_generic'
# A share has one worker for operations and one for mounting. A worker starts
# nothing new while a child is stuck, and one operation runs when the OST dies.
BOUND = 2


@dataclasses.dataclass
class Check:
    """What has to be true again and again while the OST is away.

    :param probe: returns a number, the highest of which is shown
    """

    name: str
    probe: typing.Callable
    show: str
    count: int = 0
    worst: float = 0
    problem: str = ''

    def __call__(self):
        try:
            self.worst = max(self.worst, self.probe())
        except report.LabError as error:
            self.problem = self.problem or str(error)
        self.count += 1


def stuck(base, age):
    """The sessions of a lab's operations that are older than some seconds.

    Returns the processes of each.
    """
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    found = {}
    for pid in processes.of(base):
        try:
            fields = processes.stat(pid)
            if processes.waits_in(pid) == KEPT:
                continue
        except OSError:
            continue
        started = int(fields[19]) / os.sysconf('SC_CLK_TCK')
        if CHILD.search(processes.command(pid)) and now - started > age:
            found.setdefault(int(fields[3]), []).append(pid)
    return found


class Table:
    """One death and resurrection, in one lab."""

    def __init__(self, lab, minutes):
        self._lab = lab
        self._seconds = minutes * 60
        self._client = rest.Client(lab)
        self._log = lab.log('cinder-volume')
        self._fsname = storage.fsnames(lab.base)[0]
        self._share = f'lustre:/{self._fsname}'
        self._rows = []
        # When the operation on the dead file ended.
        self._ended = None
        self._hung = set()

    def run(self):
        """Go through it; return whether all is as it must be."""
        before = self._listing()
        offset = self._log.stat().st_size
        try:
            with self._row('two volumes on the share'):
                victim, neighbour = (self._create(SICK) for _ in range(2))
            try:
                with self._row('the OST dies'):
                    self._kill_ost(victim)
                self._watch(victim, neighbour)
                with self._row('the log names what hangs') as notes:
                    notes.append(self._reported(offset))
            finally:
                storage.standin('fault', self._fsname, 'recover')
            self._recover(victim, neighbour)
        finally:
            try:
                with self._row('everything is deleted'):
                    self._clear()
                    self._wait(lambda: self._listing() == before,
                               'the files on the shares changed')
            finally:
                self._print()
        return all(row[1] == 'ok' for row in self._rows)

    @contextlib.contextmanager
    def _row(self, name):
        """A row of the table; what is put into the list is shown in it."""
        started = time.monotonic()
        notes, result = [], 'FAILED'
        try:
            yield notes
            result = 'ok'
        except report.LabError as error:
            notes.append(str(error))
            raise
        finally:
            self._add(name, result, time.monotonic() - started,
                      ' '.join(notes))

    def _add(self, name, result, seconds, note):
        self._rows.append((name, result, seconds, note))
        report.say(f'{name}: {result} ({seconds:.1f} s) {note}')

    def _print(self):
        print(f'\n{"row":42} {"result":7} {"seconds":>8}  notes')
        for name, result, seconds, note in self._rows:
            print(f'{name:42} {result:7} {seconds:8.1f}  {note}')
        print(flush=True)

    # What is done

    def _kill_ost(self, victim):
        name = f'volume-{victim}'
        paths = [point / name for point in self._points(SICK)]
        storage.standin('fault', self._fsname, 'dead-ost', next(
            str(path) for path in paths if path.exists()))
        self._died = time.monotonic()
        self._act(victim, 'os-extend', {'new_size': 2})

    def _watch(self, victim, neighbour):
        checks = [
            Check('cinder-volume is up', self._check_services,
                  'last report at most {:.0f} s ago'),
            Check('statistics arrive', self._check_statistics,
                  'at most {:.0f} s old'),
            Check('volumes on the other share come and go',
                  self._check_volumes, 'at most {:.1f} s for both'),
            Check('abandoned operations are few', self._check_stuck,
                  f'at most {{:.0f}}; bound: {BOUND}'),
        ]
        refusals = Check(
            'work on the share is refused at once',
            lambda: self._check_refusal(neighbour), 'at most {:.1f} s')
        due = 0
        while not self._over():
            self._observe(victim)
            for check in checks:
                check()
            if self._ended and time.monotonic() > due:
                refusals()
                due = time.monotonic() + 20
            time.sleep(PAUSE)
        took = time.monotonic() - self._died
        for check in (*checks, refusals):
            self._add(check.name, 'FAILED' if check.problem else 'ok', took,
                      check.problem or f'{check.count} times, ' +
                      check.show.format(check.worst))

    def _over(self):
        """Whether the watch has seen enough."""
        now = time.monotonic()
        return (now > self._died + self._seconds and
                self._ended is not None and now > self._ended + 30)

    def _observe(self, victim):
        """Notice how the operation on the dead file ends."""
        if self._ended:
            return
        status = self._get('volumes', victim)['status']
        took = time.monotonic() - self._died
        problem = ''
        if status == 'extending':
            if took < TIMEOUT + PATIENCE:
                return
            problem = 'it goes on'
        elif status != 'error_extending':
            problem = f'it ended in state {status}'
        self._ended = time.monotonic()
        self._add('extending the volume ends in an error',
                  'FAILED' if problem else 'ok', took, problem)

    def _recover(self, victim, neighbour):
        with self._row('no operation is stuck any more'):
            self._wait(lambda: not self._hung.intersection(
                stuck(self._lab.base, 0)), 'processes are still stuck')
        with self._row('the share is up, with its space'):
            self._wait(self._serving, 'the share is not reported up')
        with self._row('that volume: extend, snapshot, clone'):
            self._act(victim, 'os-reset_status', {'status': 'available'})
            self._act(victim, 'os-extend', {'new_size': 2})
            self._settle('volumes', victim)
            self._settle('snapshots', self._snapshot(victim))
            self._create(SICK, source_volid=victim, size=2)
        with self._row('other volumes on the share'):
            self._settle('snapshots', self._snapshot(neighbour))
            self._create(SICK)

    # What is looked at while the OST is away

    def _check_services(self):
        ages = []
        for entry in self._client.cinder('GET', '/os-services')['services']:
            if entry['state'] != 'up':
                raise report.LabError(f'{entry["binary"]} on '
                                      f'{entry["host"]} is {entry["state"]}')
            if entry['binary'] == 'cinder-volume':
                ages.append(age_of(entry['updated_at']))
        return max(ages)

    def _check_statistics(self):
        ages = {pool['name']: age_of(pool['capabilities']['timestamp'])
                for pool in self._pools()}
        if len(ages) != len(services.BACKENDS):
            raise report.LabError(f'only for {", ".join(ages) or "none"}')
        if max(ages.values()) > PATIENCE:
            raise report.LabError(f'they are old: {ages}')
        return max(ages.values())

    def _check_volumes(self):
        started = time.monotonic()
        self._delete('volumes', self._create(WELL))
        return time.monotonic() - started

    def _check_stuck(self):
        found = stuck(self._lab.base, TIMEOUT + 10)
        self._hung.update(found)
        if len(found) > BOUND:
            raise report.LabError(f'there are {len(found)}: {found}')
        return len(found)

    def _check_refusal(self, neighbour):
        """What needs the share ends in an error, and in no new child."""
        started = time.monotonic()
        snapshot = self._snapshot(neighbour)
        self._wait(lambda: self._get('snapshots', snapshot)['status']
                   in ('error', 'available'), 'a snapshot hangs')
        return time.monotonic() - started

    def _reported(self, offset):
        """Find the hanging processes in the log."""
        if not self._hung:
            raise report.LabError('nothing hung, so this has shown nothing')
        with open(self._log, errors='replace') as stream:
            stream.seek(offset)
            lines = [line.strip() for line in stream
                     if re.search(r' (ERROR|WARNING) ', line)
                     and self._share in line]
        for session in self._hung:
            if not any(re.search(rf'\b{session}\b', line.partition(
                    self._share)[2]) or re.search(
                        rf'rocess(es)? [^:]*\b{session}\b', line)
                    for line in lines):
                raise report.LabError(f'not process {session}')
        return ', '.join(f'process {session}' for session in self._hung)

    def _serving(self):
        states = {entry['host']: (entry['state'], entry['backend_state'])
                  for entry in self._client.cinder(
                      'GET', '/os-services')['services']
                  if entry['binary'] == 'cinder-volume'}
        free = [pool['capabilities']['free_capacity_gb']
                for pool in self._pools()
                if pool['name'].startswith(f'lab@{SICK}#')]
        return states[f'lab@{SICK}'] == ('up', 'up') and sum(free) > 1

    def _pools(self):
        return self._client.cinder(
            'GET', '/scheduler-stats/get_pools?detail=True')['pools']

    def _points(self, backend):
        """Where the shares of a backend are mounted."""
        return [point for point
                in storage.mounts(self._lab.prefix / 'mnt' / backend)
                if point.parent.name == backend]

    def _listing(self):
        """The volumes' files on both shares."""
        return {name for backend in services.BACKENDS
                for point in self._points(backend)
                for name in os.listdir(point)
                if name.startswith('volume-')}

    # Volumes and snapshots

    def _create(self, backend, size=1, **source):
        volume = self._client.cinder('POST', '/volumes', {'volume': {
            'name': 'dead-ost', 'size': size, 'volume_type': backend,
            **source}})['volume']['id']
        self._settle('volumes', volume)
        return volume

    def _snapshot(self, volume):
        return self._client.cinder('POST', '/snapshots', {'snapshot': {
            'name': 'dead-ost', 'volume_id': volume}})['snapshot']['id']

    def _act(self, volume, action, arguments):
        self._client.cinder('POST', f'/volumes/{volume}/action',
                            {action: arguments})

    def _get(self, kind, identifier):
        return self._client.cinder('GET', f'/{kind}/{identifier}')[kind[:-1]]

    def _settle(self, kind, identifier):
        def available():
            status = self._get(kind, identifier)['status']
            if status.startswith('error'):
                raise report.LabError(f'{kind[:-1]} {identifier} is in state '
                                      f'{status}')
            return status == 'available'
        self._wait(available, f'{kind[:-1]} {identifier} is not available')

    def _delete(self, kind, identifier):
        self._client.cinder('DELETE', f'/{kind}/{identifier}')
        self._wait(lambda: identifier not in self._ours(kind),
                   f'{kind[:-1]} {identifier} is not deleted')

    def _ours(self, kind):
        return [entry['id'] for entry in self._client.cinder(
            'GET', f'/{kind}?name=dead-ost')[kind]]

    def _clear(self):
        """Delete what the rows have made, whatever came of it."""
        for kind in ('snapshots', 'volumes'):
            for identifier in self._ours(kind):
                self._client.cinder(
                    'POST', f'/{kind}/{identifier}/action',
                    {'os-reset_status': {'status': 'error'}})
                self._delete(kind, identifier)

    @staticmethod
    def _wait(probe, what):
        return report.wait_for(probe, what, PATIENCE)


def age_of(timestamp):
    """The seconds since a moment in universal time, as the APIs give it."""
    moment = datetime.datetime.fromisoformat(timestamp).replace(
        tzinfo=datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc)
            - moment).total_seconds()


def run(lab, minutes):
    """Print the table.

    :raises: LabError when something is not as it must be
    """
    if storage.has_real_client():
        raise report.LabError('faults are made on the stand-in only, and '
                              'this lab is on a real Lustre')
    if not Table(lab, minutes).run():
        raise report.LabError('a dead OST did harm: see the table')
    report.say('the dead OST harmed nothing but its own volume')
