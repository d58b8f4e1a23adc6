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

"""Services of a lab that die, hang and come back, while others go on."""

import contextlib
import datetime
import os
import signal
import time

from cinder_lab import openstack
from cinder_lab import processes
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import state
from cinder_lab import supervisor


class Services:
    """The services of the lab that the environment names."""

    def __init__(self):
        self._lab = state.Lab()
        self._control = supervisor.Supervisor(self._lab)
        self._client = rest.Client(self._lab)

    @property
    def guest_user(self):
        return self._lab.guest_user

    def log(self, name):
        return self._lab.log(name)

    def kill(self, *names):
        """End services with SIGKILL, and keep them from coming back."""
        for name in names:
            os.killpg(self._pid(name), signal.SIGKILL)

            def gone():
                # It may just be starting anew.
                self._control.stop(name)
                return self._control.states()[name]['statename'] == 'STOPPED'
            report.wait_for(gone, f'{name} has ended', 60)

    def family(self, name):
        """The processes of a service, and all that they have started."""
        pid = self._pid(name)
        return [each for each in processes.of(self._lab.base)
                if pid in processes.ancestors(each)]

    def alive(self, pids):
        """Which of a lab's processes have not ended."""
        return set(pids).intersection(processes.of(self._lab.base))

    def kill_family(self, name):
        """End a service and all that it has started with SIGKILL."""
        pids = self.family(name)
        self.kill(name)
        _signal(signal.SIGKILL, pids)

    @contextlib.contextmanager
    def held(self, name, begun):
        """Stop a service and what it has started, in the middle of its work.

        :param begun: tells that it is at work
        """
        report.wait_for(begun, f'{name} is at work', 60)
        stopped = set()
        try:
            while new := set(self.family(name)) - stopped:
                _signal(signal.SIGSTOP, new)
                stopped |= new
            yield
        finally:
            _signal(signal.SIGCONT, stopped)

    def start(self, *names):
        """Start services, and wait until they say that they work."""
        since = int(time.time()) + 1
        # Another one, which has not seen that they started before.
        control = supervisor.Supervisor(self._lab)
        control.launch(*names)
        for name in names:
            control.wait(name, lambda: self._works(name, since))

    @contextlib.contextmanager
    def frozen(self, name):
        """Let a service answer nobody for a while."""
        pid = self._pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_guests(self):
        """End every QEMU with SIGKILL."""
        pids = self._guests()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        report.wait_for(lambda: not set(pids).intersection(self._guests()),
                        'QEMU has ended', 60)

    def files_of_guests(self):
        """What QEMU has open: paths, and whether it can write there."""
        for pid in self._guests():
            for number in os.listdir(f'/proc/{pid}/fd'):
                try:
                    path = os.readlink(f'/proc/{pid}/fd/{number}')
                    with open(f'/proc/{pid}/fdinfo/{number}') as stream:
                        fields = dict(line.split(':', 1) for line in stream
                                      if line.startswith('flags:'))
                except OSError:
                    # It has been closed meanwhile.
                    continue
                flags = int(fields['flags'], 8)
                yield path, flags & os.O_ACCMODE != os.O_RDONLY

    def _guests(self):
        return [pid for pid in processes.of(self._lab.base)
                if processes.is_guest(pid)]

    def _pid(self, name):
        return self._control.states()[name]['pid']

    def _works(self, name, since):
        if name == 'nova':
            return rest.answers(self._lab.url(name) + '/')()
        if name == 'nova-compute':
            return any(
                entry['binary'] == name and entry['updated_at'] and
                _timestamp(entry['updated_at']) >= since
                for entry in self._client.nova(
                    'GET', '/os-services')['services'])
        if name in ('cinder-volume', 'cinder-backup'):
            return not any(
                key.startswith(name)
                for key in openstack.silent(self._client, since))
        return True


def _signal(number, pids):
    """Send a signal to those that have not ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _timestamp(text):
    return datetime.datetime.fromisoformat(text).replace(
        tzinfo=datetime.timezone.utc).timestamp()
