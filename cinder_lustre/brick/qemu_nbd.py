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

"""The only place that runs qemu-nbd: one process for one connection.

qemu-nbd gets a unix socket that has no name any more when it starts: nobody
else can reach it, and nothing is left to clean up. It ends with its
connection. It would wait for ever for another one, with the image locked,
when the service is killed before the two have shaken hands, so a supervisor
(this module as a program) ends it then.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from cinder_lustre import exception

# How long qemu-nbd may take to write its last metadata and end (seconds).
END_TIMEOUT = 60

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


class Server:
    """A qemu-nbd process and the connection to it.

    :param path: absolute path of a qcow2 image
    :param read_only: open the image for reading only
    :param discard: give back the space of what is overwritten with zeros
    :raises: CommandFailed when qemu-nbd is not installed
    """

    def __init__(self, path, read_only, discard=True):
        program = shutil.which('qemu-nbd')
        if program is None:
            raise exception.CommandFailed(
                command='qemu-nbd', exit_code=127,
                stderr='it is not in %s. Install the package qemu-utils '
                '(Debian, Ubuntu) or qemu-img (RPM).' % os.environ.get('PATH'))
        self.command = [program, '-f', 'qcow2', '--shared=1',
                        '--cache=writeback',
                        '--discard=' + ('unmap' if discard else 'ignore'),
                        '--detect-zeroes=' + ('unmap' if discard else 'on'),
                        path]
        if read_only:
            self.command.insert(1, '-r')
        self._stderr = tempfile.TemporaryFile()
        self.sock = socket.socket(socket.AF_UNIX)
        with tempfile.TemporaryDirectory(prefix='nbd-') as directory, \
                socket.socket(socket.AF_UNIX) as listener:
            name = os.path.join(directory, 'socket')
            listener.bind(name)
            listener.listen(1)
            self.sock.connect(name)
            self._proc = subprocess.Popen(
                [sys.executable, '-S', '-m', __name__, str(END_TIMEOUT),
                 str(listener.fileno())] + self.command,
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=self._stderr, cwd='/',
                env=dict(os.environ, LC_ALL='C', PYTHONPATH=_PACKAGE_PARENT),
                start_new_session=True)

    def errors(self):
        """What qemu-nbd has said."""
        if not self._stderr.closed:
            self._stderr.seek(0)
            self._said = self._stderr.read().decode(errors='replace').strip()
        return self._said

    def stop(self, grace=END_TIMEOUT):
        """Close the connection, and kill qemu-nbd if it does not end.

        :param grace: seconds that it may take to end by itself
        :returns: its exit code, or None if it had to be killed
        """
        self.sock.close()
        self._proc.stdin.close()
        deadline = time.monotonic() + grace
        try:
            # Not wait(): eventlet 0.40 has a TimeoutExpired of its own.
            while self._proc.poll() is None:
                if time.monotonic() >= deadline:
                    os.killpg(self._proc.pid, signal.SIGKILL)
                    return None
                time.sleep(0.01)
            return self._proc.returncode
        finally:
            self.errors()
            self._stderr.close()


def _supervise(grace, listener, *command):
    """Run qemu-nbd until it or the service, which holds stdin, has gone."""
    pid = os.fork()
    if not pid:
        try:
            # Socket activation: descriptor 3 is the socket to listen on.
            os.dup2(int(listener), 3)
            os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
            os.execv(command[0], command)
        except OSError as exc:
            print('%s: %s' % (command[0], exc), file=sys.stderr, flush=True)
        finally:
            os._exit(127)
    # A listening socket nobody accepts from would keep the client waiting.
    os.close(int(listener))
    poll = select.poll()
    poll.register(os.pidfd_open(pid))
    poll.register(0)
    poll.poll()
    poll.unregister(0)
    if not poll.poll(int(grace) * 1000):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == '__main__':
    sys.exit(_supervise(*sys.argv[1:]))
