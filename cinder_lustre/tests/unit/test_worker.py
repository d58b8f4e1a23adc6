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

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import ddt
import fixtures
import testtools

import cinder_lustre
from cinder_lustre import exception
from cinder_lustre.tests.unit import worker_functions as functions
from cinder_lustre import worker

# Enough for a child on a machine that is busy with something else.
PATIENCE = 60


def wait_until(condition):
    """Wait for what happens soon, however busy the machine is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError('it did not happen in %d seconds' % PATIENCE)
        time.sleep(0.01)


@ddt.ddt
class WorkerTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.worker = worker.Worker('lustre:/testfs')
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.gate = os.path.join(self.directory, 'gate')
        os.mkfifo(self.gate)

    def _run(self, func, *args, timeout=PATIENCE, **kwargs):
        return self.worker.run(func, *args, timeout=timeout, **kwargs)

    def _fail(self, cls, func, *args, **kwargs):
        error = self.assertRaises(cls, self._run, func, *args, **kwargs)
        self.assertIs(cls, type(error))
        return error

    def test_result(self):
        self.assertEqual([['a', 1, None, ['\xe9\udce9']], {'b': {'c': 2.5}}],
                         self._run(functions.echo, 'a', 1, None,
                                   ['\xe9\udce9'], b={'c': 2.5}))
        self.assertEqual([], self.worker.stuck)

    def test_large_result(self):
        text = 'x' * (1 << 20)
        self.assertEqual([[text], {}], self._run(functions.echo, text))

    def test_child(self):
        found = self._run(functions.describe_itself)
        # Standard input, output and error, the connection and the listing.
        self.assertEqual({'locale': 'C', 'directory': '/', 'session': True,
                          'site': False, 'descriptors': 5}, found)

    def test_many_results_leave_nothing_behind(self):
        # One child is kept.
        self._run(functions.echo)
        before = len(os.listdir('/proc/self/fd'))
        for __ in range(3):
            self._run(functions.echo)
            self._fail(PermissionError, functions.raise_os_error, 1, 'x')
        # Fewer, when those of earlier tests have been collected meanwhile.
        self.assertLessEqual(len(os.listdir('/proc/self/fd')), before)

    def test_output_is_no_answer(self):
        self.assertEqual('', self._run(functions.write_to_standard_streams))

    def test_arguments_that_cannot_be_handed_over(self):
        self.assertRaises(TypeError, self._run, functions.echo, b'bytes')

    def test_functions_of_others_are_refused(self):
        self.assertIn('shutil is not a module of cinder_lustre', str(
            self._fail(exception.WorkerDied, __import__('shutil').rmtree,
                       '/nonexistent')))

    @ddt.data(
        ('UnusableMount', {'share': 's', 'path': '/p', 'reason': 'r.',
                           'cure': 'c.'}),
        ('ShareUnavailable', {'share': 's', 'reason': 'of another one.'}),
        ('CommandFailed', {'command': 'x', 'exit_code': 3, 'stderr': '%s'}),
    )
    @ddt.unpack
    def test_errors_of_ours(self, name, kwargs):
        cls = getattr(exception, name)
        error = self._fail(cls, functions.raise_ours, name, **kwargs)
        self.assertEqual(kwargs, error.kwargs)
        self.assertEqual(str(cls(**kwargs)), str(error))

    @ddt.data(
        (FileNotFoundError, errno.ENOENT, '/a'),
        (PermissionError, errno.EACCES, None),
        (OSError, errno.EDQUOT, '/a'),
        # This is what silence looks like to a socket.
        (TimeoutError, errno.ETIMEDOUT, '/a'),
        (BrokenPipeError, errno.EPIPE, None),
        (ConnectionResetError, errno.ECONNRESET, None),
    )
    @ddt.unpack
    def test_os_errors(self, cls, number, path):
        args = [number, os.strerror(number)] + ([path] if path else [])
        error = self._fail(cls, functions.raise_os_error, *args)
        self.assertEqual((number, os.strerror(number), path),
                         (error.errno, error.strerror, error.filename))
        self.assertEqual(str(OSError(*args)), str(error))

    @ddt.data(
        (functions.raise_value_error, ['what?'], 'ValueError: what?'),
        (functions.raise_shutil_error, [], 'many causes'),
        (functions.exit_at_once, [3], 'exit code 3'),
        (functions.exit_at_once, [0], 'exit code 0'),
        (functions.kill_itself, [], 'exit code -9'),
    )
    @ddt.unpack
    def test_death(self, func, args, reason):
        error = self._fail(exception.WorkerDied, func, *args)
        self.assertIn('share lustre:/testfs died', str(error))
        self.assertIn(reason, error.kwargs['reason'])
        self.assertEqual([[], {}], self._run(functions.echo))

    def test_death_before_the_request(self):
        with fixtures.MockPatchObject(sys, 'executable', '/bin/false'):
            error = self._fail(exception.WorkerDied, functions.echo,
                               'x' * (1 << 20))
        self.assertEqual('exit code 1', error.kwargs['reason'])

    def test_silence(self):
        error = self._fail(exception.ShareUnavailable, functions.wait_for,
                           self.gate, timeout=0.01)
        self.assertEqual('wait_for was silent for 0.01 seconds.',
                         error.kwargs['reason'])
        # It was killed.
        wait_until(lambda: not self.worker.stuck)
        self.assertEqual([[], {}], self._run(functions.echo))

    def test_breaker(self):
        self._fail(exception.ShareUnavailable, functions.wait_for, self.gate,
                   timeout=0.01, kill=False)
        pid, = self.worker.stuck
        self.addCleanup(self._kill, pid)
        for __ in range(2):
            error = self._fail(exception.ShareUnavailable, functions.echo)
            self.assertIn('an earlier operation still hangs on it (process '
                          '%d)' % pid, error.kwargs['reason'])
        self.assertRaises(exception.ShareUnavailable, self.worker.check)
        # Other shares are not concerned.
        other = worker.Worker('lustre:/other')
        self.assertEqual([[], {}], other.run(functions.echo,
                                             timeout=PATIENCE))
        # Opening it waits until the child reads.
        with open(self.gate, 'w') as stream:
            stream.write('go')
        wait_until(lambda: not self.worker.stuck)
        self.worker.check()
        self.assertEqual([[], {}], self._run(functions.echo))

    @staticmethod
    def _kill(pid):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _enter(self, proc=None):
        """Let a process count as one of the worker's."""
        child = worker._Child(self.worker)
        self.worker._enter(child, PATIENCE)
        child.proc = proc
        return child

    def test_breaker_knows_what_the_child_has_started(self):
        # One that no signal to the child's group reaches stands for one that
        # no signal ends.
        code = textwrap.dedent('''
            import os, subprocess, sys
            other = subprocess.Popen(['cat', sys.argv[1]],
                                     stdout=subprocess.DEVNULL,
                                     preexec_fn=os.setpgrp)
            print(other.pid, flush=True)
            other.wait()
            ''')
        child = subprocess.Popen([sys.executable, '-c', code, self.gate],
                                 stdout=subprocess.PIPE,
                                 start_new_session=True)
        with child.stdout:
            pid = int(child.stdout.readline())
        self.addCleanup(self._kill, pid)
        self.worker._give_up(self._enter(child), True)
        self.assertEqual(-signal.SIGKILL, child.poll())
        self.assertEqual([pid], self.worker.stuck)
        self._fail(exception.ShareUnavailable, functions.echo)
        with open(self.gate, 'w'):
            pass
        wait_until(lambda: not self.worker.stuck)
        self.assertEqual([[], {}], self._run(functions.echo))

    def test_child_that_does_not_end_after_its_answer(self):
        child = subprocess.Popen(['cat', self.gate],
                                 stdout=subprocess.DEVNULL)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.worker._reap(self._enter(child), 0)
        self.assertEqual([child.pid], self.worker.stuck)
        child.kill()
        wait_until(lambda: not self.worker.stuck)

    def test_progress(self):
        values = []
        self.assertEqual(3, self._run(functions.report, 1, 'two', [3],
                                      on_progress=values.append))
        self.assertEqual([1, 'two', [3]], values)
        self.assertEqual(3, self._run(functions.report, 1, 2, 3))

    def test_progress_elsewhere(self):
        self.assertEqual(1, functions.report('nobody listens'))

    @ddt.data(True, False)
    def test_progress_without_a_parent(self, all_read):
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.useFixture(fixtures.MockPatchObject(worker, '_channel', theirs))
        with ours:
            functions.report('x')
            if all_read:
                ours.recv(100)
        self.assertRaises(BrokenPipeError, functions.report, 'x')

    def test_end_of_the_caller(self):
        marker = os.path.join(self.directory, 'marker')

        def stop(value):
            raise KeyboardInterrupt(value)

        self.assertRaises(KeyboardInterrupt, self._run,
                          functions.report_until_nobody_listens, marker,
                          on_progress=stop)
        wait_until(lambda: not self.worker.stuck)
        with open(marker) as stream:
            self.assertEqual('stopped', stream.read())

    def test_timeout_of_the_caller_is_no_silence(self):

        def stop(value):
            raise TimeoutError(value)

        self.assertRaises(TimeoutError, self._run, functions.report, 1,
                          on_progress=stop)

    def test_log(self):
        logger = self.useFixture(fixtures.FakeLogger(
            name='cinder_lustre.some', format='%(name)s %(levelname)s '
            '%(message)s', level=logging.INFO))
        self._run(functions.log, 'cinder_lustre.some.part', logging.WARNING,
                  'it is 100% full')
        self._run(functions.log, 'cinder_lustre.some.part', logging.DEBUG,
                  'unimportant')
        self.assertEqual('cinder_lustre.some.part WARNING it is 100% full\n',
                         logger.output)

    def test_children_beside_each_other(self):
        # Each waits for what the test says to it alone.
        gates = [os.path.join(self.directory, 'gate%d' % number)
                 for number in range(3)]
        results = {}

        def run(gate):
            results[gate] = self._run(functions.wait_for, gate)

        threads = []
        for gate in gates:
            os.mkfifo(gate)
            threads.append(threading.Thread(target=run, args=(gate,)))
            threads[-1].start()
        for gate in reversed(gates):
            with open(gate, 'w') as stream:
                stream.write(gate)
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual({gate: gate for gate in gates}, results)


@ddt.ddt
class IdleTestCase(testtools.TestCase):
    """Which children are kept for the next call."""

    def setUp(self):
        super().setUp()
        self.worker = worker.Worker('lustre:/testfs')

    def _pid(self, **kwargs):
        return self.worker.run(functions.own_pid, timeout=PATIENCE, **kwargs)

    @staticmethod
    def _ends(pid):
        # One that was killed stays for its parent to collect.
        try:
            with open('/proc/%d/stat' % pid) as stream:
                return stream.read().rpartition(')')[2].split()[0] == 'Z'
        except FileNotFoundError:
            return True

    def test_next_call_finds_it(self):
        pid = self._pid()
        self.assertEqual(pid, self._pid(probe=True))

    def test_others_do_not(self):
        self.assertNotEqual(self._pid(), worker.Worker('other').run(
            functions.own_pid, timeout=PATIENCE))

    def test_killed_one_is_replaced(self):
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self._ends(pid))
        self.assertNotEqual(pid, self._pid())

    @ddt.data({'kill': False}, {'pass_fds': (1,)})
    def test_not_kept(self, how):
        idle = self._pid()
        pid = self._pid(**how)
        self.assertNotEqual(idle, pid)
        wait_until(lambda: self._ends(pid))
        self.assertEqual(idle, self._pid())

    def test_not_kept_for_two_shares(self):
        pair = worker.Worker('both', [self.worker, worker.Worker('other')])
        pid = pair.run(functions.own_pid, timeout=PATIENCE)
        wait_until(lambda: self._ends(pid))
        self.assertNotEqual(pid, self._pid())

    @ddt.data(
        (exception.WorkerDied, functions.raise_value_error, '?'),
        (FileNotFoundError, functions.raise_os_error, 2, 'x'),
    )
    @ddt.unpack
    def test_error_ends_it(self, error, func, *args):
        pid = self._pid()
        self.assertRaises(error, self.worker.run, func, *args,
                          timeout=PATIENCE)
        wait_until(lambda: self._ends(pid))
        self.assertNotEqual(pid, self._pid())

    def _keep(self, number):
        """Let so many children be kept, and return their ids."""
        directory = self.useFixture(fixtures.TempDir()).path
        threads = []
        for each in range(number):
            gate = os.path.join(directory, str(each))
            os.mkfifo(gate)
            thread = threading.Thread(target=self.worker.run, args=(
                functions.wait_for, gate), kwargs={'timeout': PATIENCE})
            thread.start()
            threads.append((thread, gate))
        # Each works until its own is closed; all are open first.
        for stream in [open(gate, 'w') for _thread, gate in threads]:
            stream.close()
        for thread, _gate in threads:
            thread.join(PATIENCE)
        return [proc.pid for proc, *_ in self.worker._idle]

    def test_all_that_were_at_work(self):
        pids = self._keep(worker.MAX_CHILDREN)
        self.assertEqual(worker.MAX_CHILDREN, len(pids))
        self.assertEqual(sorted(pids), sorted(self._keep(len(pids))))

    def test_unused_one_ends(self):
        first, last = self._keep(2)
        self.useFixture(fixtures.MockPatchObject(worker, '_MAX_IDLE', 0))
        self.assertEqual(last, self._pid())
        self.assertFalse(os.path.exists('/proc/%d' % first))
        self.assertEqual(last, self._pid())

    def test_end_with_their_parent(self):
        pid = self._pid()
        self.worker = None
        wait_until(lambda: self._ends(pid))

    def test_end_although_a_fork_has_the_connection(self):
        self._pid()
        fork = os.fork()
        if not fork:
            signal.pause()
        self.addCleanup(os.waitpid, fork, 0)
        self.addCleanup(os.kill, fork, signal.SIGKILL)
        self.assertRaises(FileNotFoundError, self.worker.run,
                          functions.raise_os_error, 2, 'x', timeout=PATIENCE)
        self.assertEqual([], self.worker.stuck)

    def test_none_of_a_parent_in_a_fork(self):
        pid = self._pid()
        fork = os.fork()
        if not fork:
            # Only the exit code tells the test.
            found = pid
            try:
                found = self._pid()
            finally:
                os._exit(found == pid)
        self.assertEqual(0, os.waitpid(fork, 0)[1])
        self.assertEqual(pid, self._pid())


class PlacesTestCase(testtools.TestCase):
    """How many children there are, whatever hangs."""

    def setUp(self):
        super().setUp()
        self.gate = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'gate')
        os.mkfifo(self.gate)
        self.addCleanup(self._end_all)
        # Those that asked for a place, and those that did not get it at once.
        self.children = set()
        self.refused = set()
        may_start = worker.Worker._may_start

        def watch(this, child):
            self.children.add(child)
            result = may_start(this, child)
            if not result:
                self.refused.add(child)
            return result

        self._patch(worker.Worker, '_may_start', watch)

    def _patch(self, target, name, value):
        self.useFixture(fixtures.MockPatchObject(target, name, value))

    def _end_all(self):
        for child in self.children:
            if child.proc:
                WorkerTestCase._kill(child.proc.pid)
                wait_until(lambda: child.proc.poll() is not None)

    def _limit(self, count):
        self._patch(worker, 'MAX_CHILDREN', count)
        return worker.Worker('lustre:/testfs')

    def _start(self, target, func, *args, timeout=PATIENCE, **kwargs):
        """Run a function in a thread.

        :returns: what waits for its result, or the reason of its error
        """
        results = []

        def run():
            try:
                results.append(target.run(func, *args, timeout=timeout,
                                          **kwargs))
            except exception.LustreException as exc:
                results.append(exc.kwargs['reason'])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def wait():
            thread.join(PATIENCE)
            return results[0]

        return wait

    def _hang(self, target, **kwargs):
        """Start a child that says nothing until the gate opens."""
        before = self._processes()
        wait = self._start(target, functions.wait_for, self.gate, **kwargs)
        wait_until(lambda: self._processes() - before)
        pid, = self._processes() - before
        return pid, wait

    def _processes(self):
        return {child.proc.pid for child in self.children if child.proc}

    def _queue(self, target, *args, **kwargs):
        """Run a function in a thread, where it has to wait for its place."""
        before = set(self.children)
        wait = self._start(target, *args, **kwargs)
        wait_until(lambda: self.refused - before)
        return wait

    def test_all_hang_at_once(self):
        one = worker.Worker('lustre:/testfs')
        calls = [self._start(one, functions.wait_for, self.gate, timeout=1,
                             kill=False)
                 for __ in range(worker.MAX_CHILDREN + 4)]
        reasons = [wait() for wait in calls]
        self.assertEqual(worker.MAX_CHILDREN, len(self._processes()))
        self.assertEqual(self._processes(), set(one.stuck))
        self.assertEqual(4, len([reason for reason in reasons
                                 if 'still hangs on it' in reason]))

    def test_calls_wait_for_a_place(self):
        one = self._limit(2)
        hanging = [self._hang(one) for __ in range(2)]
        third = self._queue(one, functions.echo, 3)
        self.assertEqual(2, len(self._processes()))
        # Neither statistics nor other shares are concerned.
        self.assertEqual([['x'], {}], one.run(
            functions.echo, 'x', timeout=PATIENCE, probe=True))
        self.assertEqual([['y'], {}], worker.Worker('lustre:/other').run(
            functions.echo, 'y', timeout=PATIENCE))
        pid, wait = hanging[0]
        WorkerTestCase._kill(pid)
        self.assertEqual('exit code -9', wait())
        self.assertEqual([[3], {}], third())

    def test_probes_take_turns(self):
        one = worker.Worker('lustre:/testfs')
        pid, wait = self._hang(one, probe=True)
        second = self._queue(one, functions.echo, 2, probe=True)
        self.assertEqual([[1], {}], one.run(functions.echo, 1,
                                            timeout=PATIENCE))
        WorkerTestCase._kill(pid)
        self.assertEqual([[2], {}], second())

    def test_nothing_is_added_to_a_silent_child(self):
        one = worker.Worker('lustre:/testfs')
        pid, first = self._hang(one)
        self._patch(worker, '_SILENCE', 0.1)
        wait_until(lambda: all(child.silent for child in self.children))
        second = self._queue(one, functions.echo, 2)
        # It waits for its own timeout, not for that of the silent one.
        error = self.assertRaises(exception.ShareUnavailable, one.run,
                                  functions.echo, timeout=0.01)
        self.assertIn('process %d gives no sign of life' % pid, str(error))
        self.assertIn('bring that server back', str(error))
        self.assertEqual([['x'], {}], one.run(
            functions.echo, 'x', timeout=PATIENCE, probe=True))
        with open(self.gate, 'w') as stream:
            stream.write('go')
        self.assertEqual('go', first())
        self.assertEqual([[2], {}], second())

    def test_breaker_ends_the_wait(self):
        one = worker.Worker('lustre:/testfs')
        self._check_breaker_ends_the_wait(one, one)

    def _check_breaker_ends_the_wait(self, one, waiting):
        """Let a call wait for a child that hangs on a share."""
        self._patch(worker, '_SILENCE', 0.1)
        pid, first = self._hang(one, timeout=3, kill=False)
        wait_until(lambda: all(child.silent for child in self.children))
        second = self._queue(waiting, functions.echo, timeout=10 * PATIENCE)
        self.assertIn('was silent for 3 seconds', first())
        self.assertIn('still hangs on it (process %d)' % pid, second())

    def test_sign_of_life_ends_the_wait(self):
        one = worker.Worker('lustre:/testfs')
        child = worker._Child(one)
        # To wait for a place is no silence.
        child._heard -= 2 * PATIENCE
        one._enter(child, PATIENCE)
        self.assertFalse(child.silent)
        child._heard -= 2 * PATIENCE
        second = self._queue(one, functions.echo, 2)
        child.hear()
        self.assertEqual([[2], {}], second())

    def test_child_that_reports_is_not_silent(self):
        one = worker.Worker('lustre:/testfs')
        self._patch(worker, '_SILENCE', 1)
        heard = threading.Event()
        stop = threading.Event()
        begin = time.monotonic()

        def on_progress(value):
            if time.monotonic() - begin > 3:
                heard.set()
            if stop.is_set():
                raise exception.LustreException(reason='stopped')

        first = self._start(one, functions.report_until_nobody_listens,
                            self.gate + '.marker', on_progress=on_progress)
        self.assertTrue(heard.wait(PATIENCE))
        self.assertEqual([[2], {}], one.run(functions.echo, 2,
                                            timeout=PATIENCE))
        stop.set()
        self.assertEqual('stopped', first())

    def test_pair_takes_places_on_both(self):
        one = self._limit(2)
        two = worker.Worker('lustre:/two')
        pair = worker.Worker('both', [one, two])
        first, wait = self._hang(pair)
        # A pair leaves its shares places of their own.
        more = self._queue(pair, functions.echo, 'pair')
        for each in one, two:
            own, __ = self._hang(each)
            queued = self._queue(each, functions.echo, 'own')
            WorkerTestCase._kill(own)
            self.assertEqual([['own'], {}], queued())
        WorkerTestCase._kill(first)
        self.assertEqual('exit code -9', wait())
        self.assertEqual([['pair'], {}], more())

    def test_pair_that_hangs(self):
        one = self._limit(2)
        two = worker.Worker('lustre:/two')
        pair = worker.Worker('both', [one, two])
        pid, wait = self._hang(pair, timeout=1, kill=False)
        self.assertIn('silent for 1 seconds', wait())
        self.assertEqual(([pid], [], []), (pair.stuck, one.stuck, two.stuck))
        self.assertRaises(exception.ShareUnavailable, pair.check)
        # It may hang on the other share, but it keeps its place on both.
        self._patch(worker, '_SILENCE', 0.9)
        self.assertEqual([[1], {}], one.run(functions.echo, 1,
                                            timeout=PATIENCE))
        self._hang(two)
        self._queue(two, functions.echo)
        self._patch(worker, '_SILENCE', -1)
        error = self.assertRaises(exception.ShareUnavailable, two.run,
                                  functions.echo, timeout=0.01)
        self.assertIn(str(pid), str(error))
        WorkerTestCase._kill(pid)
        wait_until(lambda: not pair.stuck)
        self.assertNotIn(pid, [child.proc.pid for child in two._children])

    def test_pair_waits_for_its_shares(self):
        one = worker.Worker('lustre:/testfs')
        self._check_breaker_ends_the_wait(one, worker.Worker(
            'both', [worker.Worker('lustre:/two'), one]))


class EventletTestCase(testtools.TestCase):
    """In a process whose sockets and threads are eventlet's, as Cinder's."""

    CODE = '''
        import eventlet
        eventlet.monkey_patch()
        import json, os, sys
        from cinder_lustre import exception, worker
        from cinder_lustre.tests.unit import worker_functions as functions

        gate = sys.argv[1]
        one = worker.Worker('lustre:/testfs')
        answers = [one.run(functions.echo, 'x' * 300000, timeout=60)[0][0]
                   == 'x' * 300000]
        for func, *args in ((functions.raise_os_error, 110, 'x'),
                            (functions.raise_ours, 'LustreException'),
                            (functions.exit_at_once, 3)):
            kwargs = {'reason': 'r'} if len(args) == 1 and args != [3] else {}
            try:
                one.run(func, *args, timeout=60, **kwargs)
            except (OSError, exception.LustreException) as exc:
                answers.append(type(exc).__name__)

        # The service goes on while a child waits.
        waiting = eventlet.spawn(one.run, functions.wait_for, gate,
                                 timeout=60)
        eventlet.sleep(0.2)
        # Another one does, too, while the child is silent.
        worker._SILENCE = 0.1
        second = eventlet.spawn(one.run, functions.echo, 2, timeout=60)
        eventlet.sleep(0)
        while True:
            try:
                descriptor = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                eventlet.sleep(0.01)
        os.write(descriptor, b'go')
        os.close(descriptor)
        answers += [waiting.wait(), second.wait()]

        try:
            one.run(functions.wait_for, gate, timeout=0.01, kill=False)
        except exception.ShareUnavailable as exc:
            answers.append(exc.kwargs['reason'])
        try:
            one.run(functions.echo, timeout=60)
        except exception.ShareUnavailable as exc:
            answers.append(exc.kwargs['reason'][:35])
        while True:
            try:
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
                break
            except OSError:
                eventlet.sleep(0.01)
        while one.stuck:
            eventlet.sleep(0.01)
        answers.append(one.run(functions.echo, timeout=60))
        print(json.dumps(answers))
        '''

    def test_patched_service(self):
        gate = os.path.join(self.useFixture(fixtures.TempDir()).path, 'gate')
        os.mkfifo(gate)
        # A file, not a pipe: children that go wrong would keep that open.
        output = gate + '.output'
        with open(output, 'w') as stream:
            result = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 textwrap.dedent(self.CODE), gate], stdout=stream,
                stderr=stream, timeout=5 * PATIENCE, cwd=os.path.dirname(
                    os.path.dirname(cinder_lustre.__file__)))
        with open(output) as stream:
            text = stream.read()
        self.assertEqual(0, result.returncode, text)
        self.assertEqual(
            [True, 'TimeoutError', 'LustreException', 'WorkerDied', 'go',
             [[2], {}], 'wait_for was silent for 0.01 seconds.',
             'an earlier operation still hangs on', [[], {}]],
            json.loads(text.splitlines()[-1]))
