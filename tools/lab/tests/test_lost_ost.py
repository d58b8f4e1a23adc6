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

"""What is noticed while an OST is dead."""

import datetime
import os
import socket
import subprocess
import time

import testtools

from cinder_lab import lost_ost
from cinder_lab import processes
from cinder_lab import report


class StuckTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        # No lab has such a number, and no other run of this test.
        self.base = f'{os.getpid()}2'

    def _start(self, name, stdin=subprocess.PIPE):
        child = subprocess.Popen(
            ['sh', '-c', 'echo; read line', name], stdin=stdin,
            stdout=subprocess.PIPE, start_new_session=True,
            env={'PATH': os.environ['PATH'], processes.MARK: self.base})
        self.addCleanup(child.communicate)
        # It has its environment once it speaks.
        child.stdout.readline()
        return child.pid

    def test_only_operations_count(self):
        self._start('another service')
        self.assertEqual({}, lost_ost.stuck(self.base, -1))
        pid = self._start('cinder_lustre.worker')
        self.assertEqual({pid: [pid]}, lost_ost.stuck(self.base, -1))

    def test_those_that_wait_for_a_call_do_not_count(self):
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._start('cinder_lustre.worker', theirs)
        # It ends with this.
        self.addCleanup(ours.close)
        deadline = time.monotonic() + 60
        while processes.waits_in(pid) != lost_ost.KEPT:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        self.assertEqual({}, lost_ost.stuck(self.base, -1))

    def test_only_old_ones_count(self):
        self._start('cinder_lustre.worker')
        self.assertEqual({}, lost_ost.stuck(self.base, 24 * 3600))


class CheckTestCase(testtools.TestCase):

    def test_the_worst_of_all_is_kept(self):
        values = [1, 3, 2]
        check = lost_ost.Check('name', lambda: values.pop(0), '')
        for _ in range(3):
            check()
        self.assertEqual((3, 3, ''), (check.count, check.worst,
                                      check.problem))

    def test_the_first_problem_is_kept(self):
        problems = ['first', 'second']

        def probe():
            raise report.LabError(problems.pop(0))
        check = lost_ost.Check('name', probe, '')
        check()
        check()
        self.assertEqual('first', check.problem)

    def test_both_forms_of_time(self):
        then = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
        age = (datetime.datetime.now(datetime.timezone.utc)
               - then).total_seconds()
        for text in ('2000-01-01T00:00:00.000000', '2000-01-01T00:00:00'):
            self.assertLessEqual(age, lost_ost.age_of(text))
