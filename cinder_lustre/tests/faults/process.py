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


"""Runs a function in a process that strace stops or kills at one point.

A point is either a system call of the process itself, which strace replaces
by SIGKILL, or the moment after a system call of a qemu-img that it started:
then that is stopped, and

orphan
    the process is killed and qemu-img lives on
group
    both are killed
child
    qemu-img is killed, and the process sees it
"""

import contextlib
import ctypes
import logging
import os
import re
import select
import signal
import subprocess
import traceback
from unittest import mock

from cinder_lustre import qemu_img

WAYS = ('orphan', 'group', 'child')

# strace ignores those with a question mark where a machine lacks them.
_CALLS = ('write,pwrite64,?pwritev,?pwritev2,?rename,renameat,renameat2,'
          '?unlink,unlinkat,ftruncate,truncate,fallocate,fsync,fdatasync,'
          '?mkdir,mkdirat,?rmdir,?link,linkat,?symlink,symlinkat,?chmod,'
          'fchmod,fchmodat,openat')
# A write of qemu-img is no change of a file: it prints and wakes threads.
_CHILD_CALLS = ('pwrite64,?pwritev,?pwritev2,?rename,renameat,renameat2,'
                '?unlink,unlinkat,ftruncate,truncate,fallocate,fsync,'
                'fdatasync')
_CALL = re.compile(r'(?:\d+ +)?([a-z]\w+)\(')
_PR_SET_PTRACER = 0x59616d61
# Seconds for what takes milliseconds on an idle machine.
_PATIENCE = 120


class Process:
    """A process that is about to run a function.

    :param function: what it runs
    :param directory: where the traces go
    :param wrap: gives the words before the command of the qemu-img with a
                 number, from 0
    """

    def __init__(self, function, directory, wrap=lambda number: []):
        self.directory = directory
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._go)
                os.setsid()
                # Some systems let only a parent trace.
                ctypes.CDLL(None).prctl(_PR_SET_PTRACER, -1, 0, 0, 0)
                logging.disable()
                os.read(go, 1)
                with _wrapped(wrap):
                    function()
                status = 0
            except BaseException:
                with open(self.path('error'), 'w') as stream:
                    traceback.print_exc(file=stream)
            finally:
                os._exit(status)
        os.close(go)

    def path(self, name):
        return os.path.join(self.directory, name)

    @contextlib.contextmanager
    def traced(self, *options):
        """Trace the process itself, from before its first step."""
        with subprocess.Popen(
                ['strace', '-o', self.path('process'), *options,
                 '-p', str(self.pid)],
                stderr=subprocess.PIPE) as strace:
            line = strace.stderr.readline()
            if b'attached' not in line:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
                raise RuntimeError('strace cannot trace a process: %s'
                                   % line.decode())
            yield

    def start(self):
        os.close(self._go)

    def wait(self):
        """Wait for the end; returns its wait status."""
        return os.waitpid(self.pid, 0)[1]

    def error(self):
        """The traceback of a process that failed."""
        with open(self.path('error')) as stream:
            return stream.read()


@contextlib.contextmanager
def _wrapped(wrap):
    real = subprocess.Popen
    numbers = iter(range(1000))

    def popen(command, **kwargs):
        return real(wrap(next(numbers)) + command, **kwargs)

    with mock.patch.object(qemu_img.subprocess, 'Popen', popen):
        yield


def _calls(path):
    """The system calls of a trace, in order, with the text of each."""
    with open(path, errors='replace') as stream:
        for line in stream:
            match = _CALL.match(line)
            if match:
                yield match.group(1), line


def points(function, directory):
    """Run a function undisturbed, and find its points.

    :returns: two lists: (system call, how manieth) of the process, and the
              number of points of each command that it starts
    """
    def trace(number):
        return ['strace', '-f', '-qq', '-o',
                os.path.join(directory, 'child.%d' % number),
                '-e', 'trace=' + _CHILD_CALLS]

    process = Process(function, directory, trace)
    with process.traced('-e', 'trace=' + _CALLS):
        process.start()
        if process.wait():
            raise RuntimeError(process.error())
    counts = {}
    found = []
    for name, line in _calls(process.path('process')):
        counts[name] = counts.get(name, 0) + 1
        if name != 'openat' or 'O_CREAT' in line or 'O_TRUNC' in line:
            found.append((name, counts[name]))
    children = []
    while os.path.exists(process.path('child.%d' % len(children))):
        calls = list(_calls(process.path('child.%d' % len(children))))
        # And one where it has just begun.
        children.append(len(calls) + 1)
    return found, children


def kill_process(function, directory, name, count):
    """Kill a process at one of its system calls.

    :returns: whether it got there
    """
    process = Process(function, directory)
    with process.traced('-e', 'trace=' + name, '-e',
                        'inject=%s:signal=KILL:when=%d' % (name, count)):
        process.start()
        status = process.wait()
    return _was_killed(process, status)


def fail_process(function, directory, name, count, error):
    """Let one of the system calls of a process fail.

    :param error: the name of the error
    :returns: what became of it: the traceback of the process, or nothing
              when it succeeded; None when it did not get there
    """
    process = Process(function, directory)
    with process.traced('-e', 'trace=' + name, '-e',
                        'inject=%s:error=%s:when=%d' % (name, error, count)):
        process.start()
        status = process.wait()
    with open(process.path('process'), errors='replace') as stream:
        if '(INJECTED)' not in stream.read():
            return None
    return process.error() if status else ''


def kill_child(function, directory, number, step, way, meanwhile):
    """Stop the command with a number after one of its steps, then kill.

    :param meanwhile: called while the orphan is stopped
    :returns: whether it got there
    """
    pipe = os.path.join(directory, 'steps')
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = Process(function, directory, lambda started: [
        'strace', '-f', '-qq', '-o', pipe, '-e',
        'trace=openat,' + _CHILD_CALLS, '-e',
        'inject=openat:signal=STOP:when=1', '-e',
        'inject=%s:signal=STOP' % _CHILD_CALLS] if started == number else [])
    process.start()
    try:
        child = _step_to(reader, step)
        if child is None:
            return _was_killed(process, process.wait())
        return _kill(process, child, way, meanwhile)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        os.unlink(pipe)


def _step_to(reader, step):
    """Let a command go on until it has stopped so many times.

    :returns: its process id, or None when it ended before
    """
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    received = b''
    child = None
    while True:
        events = poll.poll(_PATIENCE * 1000)
        if not events:
            raise RuntimeError('nothing happens any more')
        chunk = os.read(reader, 65536)
        if not chunk:
            return None
        *lines, received = (received + chunk).split(b'\n')
        for line in lines:
            thread, event = line.split(None, 1)
            child = child or int(thread)
            # Calls of several threads at once make one stop.
            if (int(thread) == child and
                    event.startswith(b'--- stopped by SIGSTOP')):
                step -= 1
                if not step:
                    return child
                os.kill(child, signal.SIGCONT)


def _kill(process, child, way, meanwhile):
    with open('/proc/%d/status' % child) as stream:
        strace = int(re.search(r'^TracerPid:\s*(\d+)', stream.read(),
                               re.MULTILINE).group(1))
    if way == 'child':
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(process.wait()):
            raise RuntimeError('the process was killed as well')
        return True
    if way == 'group':
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        meanwhile()
    finally:
        os.kill(strace, signal.SIGKILL)
        # Without strace it does not stop again.
        os.kill(child, signal.SIGCONT)
    return True


def _was_killed(process, status):
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise RuntimeError(process.error())
    return False
