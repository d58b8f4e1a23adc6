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

"""What is seen of, and done to, the services of a lab."""

import os
import pathlib
import signal
import subprocess

import fixtures
import testtools

from cinder_lab import outage
from cinder_lab import processes
from cinder_lab import report
from cinder_lab import state


class ServicesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.EnvironmentVariable(
            'LAB_PREFIX', str(self.top)))
        state.Lab().put('port_base', 18000)
        self.services = outage.Services()

    def test_what_guests_write_to(self):
        self.useFixture(fixtures.MockPatchObject(
            self.services, '_guests', lambda: [os.getpid()]))
        modes = {'lower': 'rb', 'active': 'rb+', 'log': 'ab'}
        for name, mode in modes.items():
            path = self.top / name
            path.touch()
            self.addCleanup(open(path, mode).close)
        found = {path: written
                 for path, written in self.services.files_of_guests()}
        self.assertEqual(
            {'lower': False, 'active': True, 'log': True},
            {name: found[str(self.top / name)] for name in modes})

    def test_frozen_service_goes_on_afterwards(self):
        child = subprocess.Popen(['sleep', '600'])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.useFixture(fixtures.MockPatchObject(
            self.services, '_pid', lambda name: child.pid))
        try:
            with self.services.frozen('sleep'):
                os.waitid(os.P_PID, child.pid, os.WSTOPPED)
                self.assertEqual('T', processes.stat(child.pid)[0])
                raise ZeroDivisionError
        except ZeroDivisionError:
            os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        self.assertIsNone(child.poll())

    def test_service_is_killed_with_what_it_started(self):
        child = subprocess.Popen(
            ['sh', '-c', 'sleep 600 & echo; wait'],
            stdout=subprocess.PIPE, start_new_session=True)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        child.stdout.readline()
        self.useFixture(fixtures.MockPatchObject(
            self.services, '_control', FakeSupervisor(child.pid)))
        self.services.kill('service')
        self.assertEqual(-signal.SIGKILL, child.wait())
        # Its end comes with that of the last one who could write there.
        self.assertEqual(b'', child.stdout.read())

    def test_family_is_held_and_killed_whatever_its_session(self):
        base = f'{os.getpid()}3'
        child = subprocess.Popen(
            ['sh', '-c', 'setsid sleep 600 & echo; wait'],
            stdout=subprocess.PIPE, start_new_session=True,
            env={'PATH': os.environ['PATH'], processes.MARK: base})
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        child.stdout.readline()
        state.Lab().put('port_base', int(base))
        services = outage.Services()
        self.useFixture(fixtures.MockPatchObject(
            services, '_pid', lambda name: child.pid))
        self.useFixture(fixtures.MockPatchObject(
            services, '_control', FakeSupervisor(child.pid)))
        report.wait_for(lambda: len(services.family('service')) == 2,
                        'both have started', 60)
        family = services.family('service')
        with services.held('service', lambda: True):
            report.wait_for(
                lambda: [processes.stat(pid)[0] for pid in family] == [
                    'T', 'T'], 'both have stopped', 60)
            services.kill_family('service')
        child.wait()
        # Its end comes with that of the last one who could write there.
        self.assertEqual(b'', child.stdout.read())
        report.wait_for(lambda: not services.alive(family),
                        'both have ended', 60)


class FakeSupervisor:
    """One that starts the service anew before it can be told not to."""

    def __init__(self, pid):
        self._pid = pid
        self._states = ['RUNNING', 'STARTING', 'STOPPED']

    def states(self):
        return {'service': {'pid': self._pid, 'statename':
                            self._states.pop(0)}}

    def stop(self, name):
        pass
