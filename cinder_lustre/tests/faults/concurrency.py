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


"""Two processes that work on the same volumes at once, with random choices.

What each acknowledged operation has made of a volume is written down beside
the share, and compared with it. A lock of each volume is held where Cinder's
coordination holds one: by all operations but the copy of a snapshot, which
only locks what it makes.
"""

import collections
from concurrent import futures
import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import time
import traceback
import uuid

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests import share_directory

MIB = share_directory.MIB
# A guest writes one at a time.
BLOCK = MIB // 16
VOLUMES = 2
SNAPSHOTS = 3
LARGEST = 6 * MIB
# Seconds between two kills.
KILLS = (0.05, 0.6)
WORDS = ('done', 'busy', 'refused')


class Difference(Exception):
    """Something is not as it was acknowledged."""


class Model:
    """What there has to be: a file for each volume, replaced in one step.

    A state of a volume is ``fmt`` and ``thick`` of its base, ``content`` and
    ``snapshots`` (by id), where a content is a list of the bytes that fill
    its blocks; or None when there is no volume. A file also has the
    ``attempt`` at an operation, and the state ``after`` it.
    """

    def __init__(self, directory):
        self._directory = directory

    def volumes(self):
        return sorted(name[:-len('.json')]
                      for name in os.listdir(self._directory)
                      if name.endswith('.json'))

    def read(self, volume):
        """The file of a volume; None when there is none any more."""
        try:
            with open(self._path(volume, 'json')) as stream:
                return json.load(stream)
        except FileNotFoundError:
            return None

    def write(self, volume, state, attempt=None, after=None):
        path = self._path(volume, 'json')
        if state is None and attempt is None:
            os.unlink(path)
            return
        temporary = self._path(volume, 'new')
        with open(temporary, 'w') as stream:
            json.dump({'state': state, 'attempt': attempt, 'after': after},
                      stream)
        os.rename(temporary, path)

    @contextlib.contextmanager
    def lock(self, volume):
        """Hold Cinder's lock of a volume; yields its descriptor."""
        with open(self._path(volume, 'lock'), 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream.fileno()

    def _path(self, volume, kind):
        return os.path.join(self._directory, '%s.%s' % (volume, kind))


class Actor:
    """A process with operations that it chooses at random.

    :param root: the root of the share
    :param directory: where the model is
    :param seed: where the choices begin
    """

    def __init__(self, root, directory, seed):
        self._share = share_directory.ShareDirectory(root)
        self._root = root
        self._model = Model(directory)
        self._random = random.Random(seed)
        self._flat = os.path.join(directory, 'flat.%d' % os.getpid())

    def act(self):
        """Try one operation.

        :returns: its name and the word for what came of it; None when there
                  was nothing to choose
        """
        # A lock that is not free may be waited for, or not.
        record._FENCE_WAIT = self._random.choice((0, 60))
        volumes = self._model.volumes()
        if len(volumes) < VOLUMES and self._random.random() < 0.5:
            return self._create()
        if not volumes:
            return None
        volume = self._random.choice(volumes)
        operation = self._random.choices(
            list(_OPERATIONS), list(_OPERATIONS.values()))[0]
        if operation == 'clone':
            return (self._clone(volume) if len(volumes) < 2 * VOLUMES
                    else None)
        with self._model.lock(volume) as lock:
            state = self.settled(volume)
            if state is None:
                return None
            return getattr(self, '_' + operation)(volume, state, lock)

    def _create(self):
        volume = str(uuid.UUID(int=self._random.getrandbits(128)))
        fmt, thick = self._kind()
        after = {'fmt': fmt, 'thick': thick, 'snapshots': {},
                 'content': self._zeros(self._random.randint(1, 3))}
        with self._model.lock(volume):
            return self._attempt('create', volume, None, after, chain.create,
                                 fmt, _size(after), thick)

    def _clone(self, source):
        """Copy a snapshot; others may change or delete its volume."""
        found = self._model.read(source)
        state = found and found['state']
        if not state or not state['snapshots']:
            return None
        snapshot = self._random.choice(sorted(state['snapshots']))
        volume = str(uuid.UUID(int=self._random.getrandbits(128)))
        fmt, thick = self._kind()
        content = state['snapshots'][snapshot]
        after = {'fmt': fmt, 'thick': thick, 'snapshots': {},
                 'content': content + self._zeros(self._random.randint(0, 1))}
        with self._model.lock(volume):
            result = self._attempt(
                'clone', volume, None, after,
                lambda root, target, *args: chain.copy(
                    root, source, snapshot, root, target, *args),
                fmt, _size(after), thick,
                allowed=(exception.SnapshotNotFound, exception.RecordError))
        if result[1] == 'refused':
            # It must be gone, or about to go.
            now = self._model.read(source)
            states = [now['state']] if now else []
            if now and now['attempt']:
                states.append(now['after'])
            if states and all(known and snapshot in known['snapshots']
                              for known in states):
                raise Difference('snapshot %s of volume %s is there, but was '
                                 'not found' % (snapshot, source))
        return result

    def _write(self, volume, state, lock):
        block = self._random.randrange(len(state['content']))
        byte = self._random.randint(1, 255)
        after = dict(state, content=list(state['content']))
        after['content'][block] = byte
        record._FENCE_WAIT = 60
        found = chain.describe(self._root, volume)

        def write(_root, _volume):
            # A guest that outlives this process goes on holding the lock.
            subprocess.run(
                ['qemu-io', '-f', found['format'], '-c',
                 'write -q -P %d %d %d' % (byte, block * BLOCK, BLOCK),
                 self._share.path(found['active'])], check=True,
                stdout=subprocess.DEVNULL, pass_fds=(lock,))

        return self._attempt('write', volume, state, after, write)

    def _snapshot(self, volume, state, _lock):
        if len(state['snapshots']) == SNAPSHOTS:
            return None
        snapshot = str(uuid.UUID(int=self._random.getrandbits(128)))
        after = dict(state, snapshots=dict(
            state['snapshots'], **{snapshot: state['content']}))
        return self._attempt('snapshot', volume, state, after,
                             chain.create_snapshot, snapshot)

    def _delete_snapshot(self, volume, state, _lock):
        if not state['snapshots']:
            return None
        after = dict(state, snapshots=dict(state['snapshots']))
        snapshot = self._random.choice(list(state['snapshots']))
        del after['snapshots'][snapshot]
        return self._attempt('delete_snapshot', volume, state, after,
                             chain.delete_snapshot, snapshot)

    def _extend(self, volume, state, _lock):
        if _size(state) >= LARGEST:
            return None
        after = dict(state, content=state['content'] + self._zeros(1))
        return self._attempt('extend', volume, state, after, chain.extend,
                             _size(after))

    def _revert(self, volume, state, _lock):
        """Only to the latest snapshot; any other one must be refused."""
        if not state['snapshots']:
            return None
        snapshot = self._random.choice(list(state['snapshots']))
        latest = list(state['snapshots'])[-1]
        content = state['snapshots'][snapshot]
        after = dict(state, content=content + [0] * (
            len(state['content']) - len(content)))
        return self._attempt(
            'revert', volume, state, after, chain.revert, snapshot,
            refused=exception.RecordError if snapshot != latest else None)

    def _convert(self, volume, state, _lock):
        """Only without snapshots; otherwise it must be refused."""
        fmt, thick = self._kind()
        same = (fmt, thick) == (_format(state), state['thick'])
        after = dict(state, fmt=fmt, thick=thick)
        if same:
            after = state
        return self._attempt(
            'convert', volume, state, after, chain.convert, fmt, thick,
            refused=exception.RecordError if state['snapshots'] and not same
            else None)

    def _delete(self, volume, state, _lock):
        return self._attempt('delete', volume, state, None, chain.delete)

    def _attempt(self, name, volume, state, after, function, *args,
                 refused=None, allowed=()):
        """Do something that was written down before, and look at it.

        :param refused: the error that must come of it
        :param allowed: the errors that may come of it
        :returns: the name and what came of it
        """
        self._model.write(volume, state, name, after)
        try:
            function(self._root, volume, *args)
        except exception.VolumeBusy:
            word = 'busy'
        except allowed:
            word = 'refused'
        except exception.LustreException as exc:
            if refused is None or not isinstance(exc, refused):
                raise
            word = 'refused'
        else:
            if refused is not None:
                raise Difference('%s of volume %s was not refused' % (
                    name, volume))
            word = 'done'
        state = after if word == 'done' else state
        if self._random.random() < 0.3:
            self._check(volume, state)
        self._model.write(volume, state)
        return name, word

    def settled(self, volume):
        """The state of a volume, after what a killed process has left.

        Its lock must be held.
        """
        found = self._model.read(volume)
        if found is None or found['attempt'] is None:
            return found and found['state']
        record._FENCE_WAIT = 60
        states = [found['state'], found['after']]
        if found['after'] is None:
            chain.delete(self._root, volume)
            states = [None]
        elif found['state'] is None:
            # What was not created completely is deleted.
            try:
                chain.describe(self._root, volume)
            except exception.RecordError:
                chain.delete(self._root, volume)
                states = [None]
        state = self._check(volume, *states)
        self._model.write(volume, state)
        return state

    def _check(self, volume, *states):
        """See that a volume is in one of some states, which is returned."""
        if states == (None,):
            if os.path.exists(self._share.sidecar(volume)):
                raise Difference('volume %s is still there' % volume)
            return None
        record._FENCE_WAIT = 60
        description = chain.describe(self._root, volume)
        found = {'format': description['format'], 'size': description['size'],
                 'thick': description['thick'], 'contents': {
                     snapshot or '': self._digest(volume, snapshot)
                     for snapshot in [None, *description['snapshots']]}}
        expected = [state and {
            'format': _format(state), 'size': _size(state),
            'thick': state['thick'], 'contents': {
                snapshot: _hash(_bytes(content)) for snapshot, content in
                {'': state['content'], **state['snapshots']}.items()}}
            for state in states]
        if found not in expected:
            raise Difference('volume %s: found %s\nexpected %s' % (
                volume, found, '\nor '.join(map(str, expected))))
        return states[expected.index(found)]

    def _digest(self, volume, snapshot):
        """A digest of what a volume or snapshot holds, read without chain."""
        rec = self._share.record(volume)
        name = rec['active']
        if snapshot is not None:
            name = rec['layers'][rec['snapshots'][snapshot]]['parent']
        subprocess.run(['qemu-img', 'convert', '-U', '-f',
                        rec['layers'][name]['format'], '-O', 'raw',
                        self._share.path(name), self._flat], check=True)
        with open(self._flat, 'rb') as stream:
            return _hash(stream.read())

    def finish(self):
        """Compare, and delete, all volumes."""
        for volume in self._model.volumes():
            with self._model.lock(volume):
                state = self.settled(volume)
                if state is not None:
                    self._check(volume, state)
                    chain.delete(self._root, volume)
                    self._model.write(volume, None)
        left = self._share.files()
        if left:
            raise Difference('left behind: %s' % ', '.join(left))

    def _kind(self):
        return self._random.choice(('raw', 'qcow2')), (
            self._random.random() < 0.3)

    @staticmethod
    def _zeros(mib):
        return [0] * (mib * MIB // BLOCK)


# How often each of them is chosen.
_OPERATIONS = {'write': 4, 'snapshot': 4, 'clone': 4, 'delete_snapshot': 3,
               'extend': 1, 'revert': 2, 'convert': 2, 'delete': 2}


def _format(state):
    return 'qcow2' if state['snapshots'] else state['fmt']


def _size(state):
    return len(state['content']) * BLOCK


def _bytes(content):
    return b''.join(bytes([byte]) * BLOCK for byte in content)


def _hash(data):
    return hashlib.sha256(data).hexdigest()[:16]


def _act(root, directory, seed, log, stop):
    """Act until there is a file to stop; each step goes into a log."""
    logging.disable()
    record.lfs.set_dom_default = str
    try:
        actor = Actor(root, directory, seed)
        while not os.path.exists(stop):
            result = actor.act()
            if result is not None:
                _log(log, *result)
    except BaseException:
        _log(log, 'error', traceback.format_exc())
        os._exit(1)


def _log(log, *words):
    with open(log, 'a') as stream:
        stream.write(json.dumps(words) + '\n')


def run(directory, seconds, seed, killing):
    """Let two processes work at once, and print a table.

    :param directory: where there is room
    :param killing: kill one of both at random moments, and start it again
    :returns: a list of failures
    """
    context = multiprocessing.get_context('fork')
    # What outlives a killed process may still write there.
    with tempfile.TemporaryDirectory(
            dir=directory, ignore_cleanup_errors=True) as work:
        root, model, log, stop = (os.path.join(work, name) for name in (
            'share', 'model', 'log', 'stop'))
        for path in (root, model):
            os.mkdir(path)

        def start(*seeds):
            process = context.Process(target=_act, args=(
                root, model, '-'.join(map(str, seeds)), log, stop))
            process.start()
            return process

        processes = [start(seed, number) for number in range(2)]
        moments = random.Random(seed)
        deadline = time.monotonic() + seconds
        kills = 0
        while (time.monotonic() < deadline and
               all(process.is_alive() for process in processes)):
            time.sleep(moments.uniform(*KILLS))
            if killing:
                os.kill(processes[1].pid, signal.SIGKILL)
                processes[1].join()
                if processes[1].exitcode == -signal.SIGKILL:
                    kills += 1
                    processes[1] = start(seed, 1, kills)
        with open(stop, 'w'):
            pass
        for process in processes:
            process.join()
        failures = _print(log, kills)
        if not failures:
            with futures.ProcessPoolExecutor(1, context) as pool:
                failures += pool.submit(_finish, root, model).result()
        return failures


def _finish(root, directory):
    logging.disable()
    record.lfs.set_dom_default = str
    try:
        Actor(root, directory, None).finish()
    except Exception:
        return [traceback.format_exc()]
    return []


def _print(log, kills):
    """Print what was logged; returns the failures."""
    counts = collections.Counter()
    failures = []
    with open(log) as stream:
        for line in stream:
            name, word = json.loads(line)
            if name == 'error':
                failures.append(word)
            counts[name, word] += 1
    line = '%-16s %7s %7s %7s %7s'
    print(line % (('operation', 'tried') + WORDS))
    for name in ('create', *_OPERATIONS):
        found = [counts[name, word] for word in WORDS]
        print(line % (name, sum(found), *found))
    print('one process was killed %d times\n' % kills, flush=True)
    return failures
