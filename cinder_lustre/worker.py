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

"""Runs what may block on Lustre in a child process, with a deadline.

A file operation on Lustre can hang for as long as a server is away, in a
state that survives SIGKILL, so no thread of a service may enter one. A
:class:`Worker` stands for one share: it runs a function of this package in a
child, waits for its answer and gives up when the child stays silent for too
long. A child that cannot be killed opens the breaker: nothing new is started
on that share until it has gone. As all that are at work when a server goes
away may hang, only so many work at once, and none is added to a silent one.
To start Python takes longer than most functions: children are kept a while for
what comes next, without any file of the share.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

from cinder_lustre import exception

LOG = logging.getLogger(__name__)

# How many children may work on one share at once, and so how many can hang
# when one of its servers goes away; a probe comes on top.
MAX_CHILDREN = 10
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# How long a child without work is kept (seconds).
_MAX_IDLE = 300
# How long a killed child may take to go before it counts as stuck (seconds).
_KILL_GRACE = 2
# Seconds between two signs of life of a child that has to wait.
_BEAT = 5
# After so many seconds without one, a child may hang.
_SILENCE = 2 * _BEAT
# Guards the children of all workers: some need a place on two shares at once.
_changed = threading.Condition()


class _Silence(Exception):
    """A child gave no sign of life for too long."""


_CURE = ('Look for DISCONN in "lctl get_param osc.*.ost_server_uuid '
         'mdc.*.mds_server_uuid" and bring that server back; work goes on by '
         'itself then.')
# The child's end of the connection; None in any other process.
_channel = None


def _find_child(proc):
    """The id of a child, in a list, while it lives."""
    return [proc.pid] if proc.poll() is None else []


def _find_session(proc):
    """The ids of a child and of what it has started, while they live."""
    proc.poll()
    pids = []
    for name in os.listdir('/proc'):
        try:
            with open('/proc/%d/stat' % int(name),
                      errors='replace') as stream:
                fields = stream.read().rpartition(')')[2].split()
        except (ValueError, OSError):
            # Not a process, or no longer one.
            continue
        if int(fields[3]) == proc.pid and fields[0] not in 'ZX':
            pids.append(int(name))
    return pids


class _Child:
    """A process at work on one share, or on two.

    :ivar proc: the process, once it was started
    :ivar channel: the connection to it
    :ivar reusable: whether the process may work for other calls, too
    :ivar hanging: what finds its processes, once it was given up
    """

    def __init__(self, worker, probe=False):
        self.worker = worker
        self.probe = probe
        self.proc = None
        self.channel = None
        self.reusable = False
        self.hanging = None
        self._heard = time.monotonic()

    @property
    def silent(self):
        """Whether it may hang."""
        return time.monotonic() - self._heard > _SILENCE

    def hear(self):
        """Note a sign of life."""
        with _changed:
            if self.silent:
                _changed.notify_all()
            self._heard = time.monotonic()


class Worker:
    """The children that work on one share, or on a pair of shares.

    :param share: how messages name the share
    :param parts: the workers of the two shares of a pair. Its children take
                  places on both; as one that hangs does not tell on which,
                  it is no reason to do nothing else on either.
    """

    def __init__(self, share, parts=()):
        self.share = share
        self._parts = tuple(parts)
        # A share whose partner is away needs places for its own children.
        self._places = MAX_CHILDREN // 2 if parts else MAX_CHILDREN
        # Those that work on the share, of pairs too, and those given up.
        self._children = []
        # Processes that wait for work, each with the connection to it, and
        # since when.
        self._idle = []

    @property
    def _shares(self):
        return (self, *self._parts)

    @property
    def stuck(self):
        """The ids of processes that were given up and still live."""
        pids = []
        with _changed:
            for child in list(self._children):
                if not child.hanging:
                    continue
                found = child.hanging(child.proc)
                if not found:
                    child.worker._leave(child)
                elif child.worker is self:
                    pids += found
        return pids

    def check(self):
        """Say whether a new child may start.

        :raises: ShareUnavailable while the breaker is open
        """
        stuck = self.stuck
        if stuck:
            raise exception.ShareUnavailable(
                share=self.share,
                reason='an earlier operation still hangs on it (process %s). '
                '%s' % (', '.join(map(str, stuck)), _CURE))

    def _may_start(self, child):
        """Whether there is a place for a child now.

        :raises: ShareUnavailable while a breaker is open
        """
        for share in self._shares:
            share.check()
        if child.probe:
            return not any(other.probe for other in self._children)
        if any(other.silent for share in self._shares
               for other in share._children if other.worker in self._shares):
            return False
        return all(
            len([other for other in share._children if not other.probe])
            < share._places for share in self._shares)

    def _enter(self, child, timeout):
        """Wait until there is a place for a child, and take it.

        A copy may keep its place for hours, and is no reason to fail: only
        silence ends the wait.

        :raises: ShareUnavailable
        """
        with _changed:
            while not _changed.wait_for(lambda: self._may_start(child),
                                        timeout):
                silent = sorted({other.proc.pid for share in self._shares
                                 for other in share._children
                                 if other.silent and other.proc})
                if silent:
                    raise exception.ShareUnavailable(
                        share=self.share,
                        reason='process %s gives no sign of life, and '
                        'nothing new is started meanwhile. %s' % (
                            ', '.join(map(str, silent)), _CURE))
                LOG.info('A call has to wait: %(count)d operations are at '
                         'work on share %(share)s.',
                         {'count': len(self._children), 'share': self.share})
            child.hear()
            for share in self._shares:
                share._children.append(child)

    def _leave(self, child):
        with _changed:
            for share in self._shares:
                share._children.remove(child)
            _changed.notify_all()

    def run(self, func, *args, timeout, kill=True, probe=False,
            pass_fds=(), on_progress=None, **kwargs):
        """Run a function of this package in a child.

        It waits for a place while too many children work on the share, or
        one of them is silent.

        :param func: a module-level function of cinder_lustre; arguments and
                     result are JSON values
        :param timeout: seconds that the child may stay silent; a function
                        that reports :func:`progress` may run longer
        :param kill: whether a silent child is killed; one that is left alone
                     keeps the breaker open until it ends
        :param probe: whether it is a look at the share itself, which waits
                      for another such look alone
        :param pass_fds: descriptors that the child gets, with their numbers
        :param on_progress: called with what the child reports; what it raises
                            ends the call, and the child at its next report
        :returns: what the function returned
        :raises: ShareUnavailable when the child stays silent, or another one
                 does or is stuck; WorkerDied when it ends without an answer;
                 whatever LustreException or OSError the function raised
        """
        request = json.dumps({
            'module': func.__module__, 'function': func.__qualname__,
            'args': args, 'kwargs': kwargs}).encode() + b'\n'
        child = _Child(self, probe)
        self._enter(child, timeout)
        try:
            # Neither what cannot be killed nor what has descriptors of a
            # caller is used again, nor what works on two shares.
            child.reusable = kill and not pass_fds and not self._parts
            if not (child.reusable and self._take_idle(child)):
                self._start(child, pass_fds)
            answer = self._call(child, request, func.__name__, timeout, kill,
                                on_progress)
        finally:
            if not child.hanging:
                self._leave(child)
        if answer is None:
            raise exception.WorkerDied(
                share=self.share,
                reason='exit code %s' % child.proc.returncode)
        if 'error' in answer:
            raise self._rebuild(answer['error'])
        return answer['result']

    def _take_idle(self, child):
        """Let a child be a process that waits for work, if there is one."""
        while True:
            with _changed:
                if not self._idle:
                    return False
                child.proc, child.channel, _since = self._idle.pop()
            # It may have been killed; those of a parent are none of a fork.
            if child.proc.poll() is None:
                return True
            child.channel.close()

    @staticmethod
    def _start(child, pass_fds):
        child.channel, theirs = socket.socketpair()
        try:
            with theirs:
                child.proc = subprocess.Popen(
                    [sys.executable, '-S', '-m', __name__],
                    stdin=theirs.fileno(), stdout=theirs.fileno(), cwd='/',
                    env=dict(environment(), PYTHONPATH=_PACKAGE_PARENT),
                    pass_fds=pass_fds, start_new_session=True)
        except BaseException:
            child.channel.close()
            raise

    def _call(self, child, request, name, timeout, kill, on_progress):
        try:
            child.channel.settimeout(timeout)
            answer = self._converse(child, request, on_progress)
        except _Silence:
            self._hang_up(child)
            self._give_up(child, kill)
            raise exception.ShareUnavailable(
                share=self.share,
                reason='%s was silent for %s seconds.' % (
                    name, timeout)) from None
        except BaseException:
            # The caller's own end: the child stops when it finds the
            # connection closed.
            self._hang_up(child)
            self._reap(child, _KILL_GRACE)
            raise
        if not self._keep(child, answer):
            self._hang_up(child)
            # To close its files may take a child as long as to work on them.
            self._reap(child, timeout)
        return answer

    @staticmethod
    def _hang_up(child):
        # A fork may have the connection, too, and keep it open.
        child.channel.shutdown(socket.SHUT_RDWR)
        child.channel.close()

    def _keep(self, child, answer):
        """Let a process wait for the next call, if it is fit for that."""
        # An error may have left anything, as a file of the share.
        if not child.reusable or answer is None or 'error' in answer:
            return False
        with _changed:
            now = time.monotonic()
            self._idle.append((child.proc, child.channel, now))
            # The last one is taken first, so those that nobody needs are old.
            old = [each for each in self._idle if now - each[2] > _MAX_IDLE]
            del self._idle[:len(old)]
        for proc, channel, _since in old:
            self._dismiss(proc, channel)
        return True

    def _dismiss(self, proc, channel):
        """End a process that waits for work."""
        child = _Child(self)
        child.proc = proc
        with _changed:
            self._children.append(child)
        try:
            channel.close()
            proc.kill()
            self._reap(child, _KILL_GRACE)
        finally:
            if not child.hanging:
                self._leave(child)

    @staticmethod
    def _converse(child, request, on_progress):
        """Hand over the request and listen until there is an answer.

        :returns: the answer, or None when the child ends without one
        :raises: _Silence
        """
        received = b''
        while True:
            # Only what comes from the connection counts as silence.
            try:
                if request:
                    child.channel.sendall(request)
                    request = None
                chunk = child.channel.recv(65536)
            except TimeoutError:
                raise _Silence() from None
            except ConnectionError:
                chunk = b''
            if not chunk:
                return None
            child.hear()
            *lines, received = (received + chunk).split(b'\n')
            for line in lines:
                message = json.loads(line)
                if 'log' in message:
                    name, level, text = message['log']
                    logging.getLogger(name).log(level, '%s', text)
                elif 'progress' in message:
                    if on_progress:
                        on_progress(message['progress'])
                else:
                    return message

    def _rebuild(self, error):
        if error['class'] == 'OSError':
            return OSError(*error['args'])
        cls = getattr(exception, error['class'], None)
        if cls is None:
            return exception.WorkerDied(share=self.share,
                                        reason=error['traceback'])
        return cls(**error['kwargs'])

    def _give_up(self, child, kill):
        if not kill:
            self._reap(child, 0)
            return
        try:
            os.killpg(child.proc.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        # What the child has started may hang although the child has gone.
        self._reap(child, _KILL_GRACE, _find_session)

    def _reap(self, child, grace, hanging=_find_child):
        """Collect a child that is about to end, or count it as stuck."""
        deadline = time.monotonic() + grace
        pause = 0.001
        # Not proc.wait(): eventlet 0.40 has a TimeoutExpired of its own.
        while hanging(child.proc):
            if time.monotonic() >= deadline:
                LOG.warning('Process %(pid)s, working on share %(share)s, '
                            'does not end; nothing new is started on that '
                            'share until it does.',
                            {'pid': ', '.join(map(str, hanging(child.proc))),
                             'share': self.share})
                with _changed:
                    child.hanging = hanging
                    _changed.notify_all()
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.05)


def environment():
    """What commands run with, so that they are found and understood.

    A service may run without the directories of administrators' commands.
    """
    return dict(os.environ, LC_ALL='C', PATH=os.pathsep.join(
        (os.environ.get('PATH', os.defpath), '/usr/sbin', '/sbin')))


def progress(value):
    """Tell the parent that the function is alive; a no-op elsewhere.

    :param value: a JSON value for the parent's on_progress
    :raises: BrokenPipeError when the parent has gone, so that a long
             operation stops and cleans up
    """
    if _channel is not None:
        _send({'progress': value})


@contextlib.contextmanager
def patience(seconds):
    """Let a call of the body block for longer than a child may be silent.

    :param seconds: how long silence is then no sign of trouble
    """
    if _channel is None:
        yield
        return
    ended = threading.Event()

    def beat():
        deadline = time.monotonic() + seconds
        # The body finds out by itself that the parent has gone.
        with contextlib.suppress(BrokenPipeError):
            while not ended.wait(_BEAT) and time.monotonic() < deadline:
                progress(None)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _send(message):
    try:
        _channel.sendall(json.dumps(message).encode() + b'\n')
    except ConnectionResetError as exc:
        # The parent has gone before it had read all.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from exc


class _ParentHandler(logging.Handler):
    """Hands log records of a child to its parent's log."""

    def emit(self, record):
        try:
            _send({'log': [record.name, record.levelno,
                           self.format(record)]})
        except OSError:
            # The parent has gone, and nobody else reads this.
            pass


def _describe(exc):
    if isinstance(exc, exception.LustreException):
        return {'class': type(exc).__name__, 'kwargs': exc.kwargs}
    if isinstance(exc, OSError) and exc.errno is not None:
        args = [exc.errno, exc.strerror]
        if exc.filename is not None:
            args.append(exc.filename)
        return {'class': 'OSError', 'args': args}
    return {'class': '', 'traceback': ''.join(traceback.format_exception(exc))}


def _main():
    global _channel
    _channel = socket.socket(fileno=os.dup(0))
    # An eventlet parent leaves its sockets non-blocking.
    _channel.setblocking(True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    root = logging.getLogger()
    root.addHandler(_ParentHandler())
    root.setLevel(logging.DEBUG)
    with _channel.makefile('rb') as requests:
        # The parent that gives up, and says so, breaks the connection.
        with contextlib.suppress(ConnectionError):
            for request in requests:
                _send(_answer(json.loads(request)))


def _answer(request):
    try:
        module = request['module']
        if not module.startswith('cinder_lustre.'):
            raise ValueError('%s is not a module of cinder_lustre' % module)
        func = getattr(importlib.import_module(module), request['function'])
        return {'result': func(*request['args'], **request['kwargs'])}
    except Exception as exc:
        return {'error': _describe(exc)}


if __name__ == '__main__':
    # Functions import this module by its name; they must find the channel.
    importlib.import_module('cinder_lustre.worker')._main()
