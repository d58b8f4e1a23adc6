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
on that share until it has gone.
"""

import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback

from cinder_lustre import exception

LOG = logging.getLogger(__name__)

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# How long a killed child may take to go before it counts as stuck (seconds).
_KILL_GRACE = 2

# The child's end of the connection; None in any other process.
_channel = None


class Worker:
    """The children that work on one share.

    :param share: how messages name the share
    """

    def __init__(self, share):
        self.share = share
        self._stuck = []

    @property
    def stuck(self):
        """The process ids of children that were given up and still live."""
        self._stuck = [proc for proc in self._stuck if proc.poll() is None]
        return [proc.pid for proc in self._stuck]

    def check(self):
        """Say whether a new child may start.

        :raises: ShareUnavailable while the breaker is open
        """
        stuck = self.stuck
        if stuck:
            raise exception.ShareUnavailable(
                share=self.share,
                reason='an earlier operation still hangs on it (process %s). '
                'Look for DISCONN in "lctl get_param osc.*.ost_server_uuid '
                'mdc.*.mds_server_uuid" and bring that server back; work '
                'goes on by itself then.' % ', '.join(map(str, stuck)))

    def run(self, func, *args, timeout, kill=True, on_progress=None,
            **kwargs):
        """Run a function of this package in a child.

        :param func: a module-level function of cinder_lustre; arguments and
                     result are JSON values
        :param timeout: seconds that the child may stay silent; a function
                        that reports :func:`progress` may run longer
        :param kill: whether a silent child is killed; one that is left alone
                     keeps the breaker open until it ends
        :param on_progress: called with what the child reports
        :returns: what the function returned
        :raises: ShareUnavailable when the child stays silent, or another one
                 is stuck; WorkerDied when it ends without an answer; whatever
                 LustreException or OSError the function raised
        """
        self.check()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                proc = subprocess.Popen(
                    [sys.executable, '-S', '-m', __name__],
                    stdin=theirs.fileno(), stdout=theirs.fileno(), cwd='/',
                    env=dict(os.environ, LC_ALL='C',
                             PYTHONPATH=_PACKAGE_PARENT),
                    start_new_session=True)
            try:
                return self._converse(ours, proc, func, args, kwargs, timeout,
                                      on_progress)
            except TimeoutError:
                self._give_up(proc, kill)
                raise exception.ShareUnavailable(
                    share=self.share,
                    reason='%s was silent for %s seconds.' % (
                        func.__name__, timeout)) from None
            except BaseException:
                # An answer, or the caller's own end: the child has stopped,
                # or stops when it finds the connection closed.
                ours.close()
                self._reap(proc)
                raise
        finally:
            ours.close()

    def _converse(self, ours, proc, func, args, kwargs, timeout, on_progress):
        request = {'module': func.__module__, 'function': func.__qualname__,
                   'args': args, 'kwargs': kwargs}
        ours.settimeout(timeout)
        ours.sendall(json.dumps(request).encode() + b'\n')
        received = b''
        while True:
            chunk = ours.recv(65536)
            if not chunk:
                raise exception.WorkerDied(
                    share=self.share,
                    reason='exit code %s' % proc.wait(timeout))
            *lines, received = (received + chunk).split(b'\n')
            for line in lines:
                message = json.loads(line)
                if 'log' in message:
                    name, level, text = message['log']
                    logging.getLogger(name).log(level, '%s', text)
                elif 'progress' in message:
                    if on_progress:
                        on_progress(message['progress'])
                elif 'error' in message:
                    raise self._rebuild(message['error'])
                else:
                    self._reap(proc)
                    return message['result']

    def _rebuild(self, error):
        if error['class'] == 'OSError':
            return OSError(*error['args'])
        cls = getattr(exception, error['class'], None)
        if cls is None:
            return exception.WorkerDied(share=self.share,
                                        reason=error['traceback'])
        return cls(**error['kwargs'])

    def _give_up(self, proc, kill):
        if kill:
            try:
                os.killpg(proc.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._reap(proc, _KILL_GRACE if kill else 0)

    def _reap(self, proc, grace=_KILL_GRACE):
        """Collect a child that is about to end, or count it as stuck."""
        try:
            proc.wait(grace)
        except subprocess.TimeoutExpired:
            LOG.warning('Process %(pid)s, working on share %(share)s, does '
                        'not end; nothing new is started on that share until '
                        'it does.', {'pid': proc.pid, 'share': self.share})
            self._stuck.append(proc)


def progress(value):
    """Tell the parent that the function is alive; a no-op elsewhere.

    :param value: a JSON value for the parent's on_progress
    :raises: BrokenPipeError when the parent has gone, so that a long
             operation stops and cleans up
    """
    if _channel is not None:
        _send({'progress': value})


def _send(message):
    _channel.sendall(json.dumps(message).encode() + b'\n')


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
    if isinstance(exc, OSError):
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
    with _channel.makefile('rb') as stream:
        request = json.loads(stream.readline())
    try:
        module = request['module']
        if not module.startswith('cinder_lustre.'):
            raise ValueError('%s is not a module of cinder_lustre' % module)
        func = getattr(importlib.import_module(module), request['function'])
        answer = {'result': func(*request['args'], **request['kwargs'])}
    except Exception as exc:
        answer = {'error': _describe(exc)}
    _send(answer)


if __name__ == '__main__':
    # Functions import this module by its name; they must find the channel.
    importlib.import_module('cinder_lustre.worker')._main()
