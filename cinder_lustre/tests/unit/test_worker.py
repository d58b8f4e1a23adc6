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
        self.worker._give_up(child, True)
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
        self.worker._reap(child, 0)
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
        eventlet.sleep(0)
        while True:
            try:
                descriptor = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                eventlet.sleep(0.01)
        os.write(descriptor, b'go')
        os.close(descriptor)
        answers.append(waiting.wait())

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
             'wait_for was silent for 0.01 seconds.',
             'an earlier operation still hangs on', [[], {}]],
            json.loads(text.splitlines()[-1]))
