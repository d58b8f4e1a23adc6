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

"""Finding and ending what a lab has started."""

import os
import subprocess

import testtools

from cinder_lab import processes


class ProcessesTestCase(testtools.TestCase):

    def _start(self, mark):
        child = subprocess.Popen(
            ['sh', '-c', 'echo; exec sleep 600'], stdout=subprocess.PIPE,
            env={'PATH': os.environ['PATH'], processes.MARK: mark})
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        # It has its environment once it speaks.
        child.stdout.readline()
        child.stdout.close()
        return child

    def test_only_the_labs_own_are_ended(self):
        # No lab has such a number, and no other run of this test.
        mine, other = f'{os.getpid()}0', f'{os.getpid()}1'
        first, second = self._start(mine), self._start(other)
        self.assertEqual([first.pid], processes.of(mine))
        processes.end(mine, patience=0)
        self.assertEqual([], processes.of(mine))
        self.assertEqual([second.pid], processes.of(other))

    def test_memory_and_ancestors_of_this_process(self):
        self.assertLess(0, processes.memory(os.getpid()))
        self.assertEqual([os.getpid(), os.getppid()],
                         list(processes.ancestors(os.getpid()))[:2])
