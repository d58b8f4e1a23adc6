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

"""Running a command to its end, with its output in an error or a log."""

import subprocess

from cinder_lab import report
from cinder_lab import state


def run(*command, **options):
    """Run a short command and return its output."""
    if 'input' not in options:
        options['stdin'] = subprocess.DEVNULL
    result = subprocess.run(command, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode:
        raise report.LabError(
            f'{" ".join(map(str, command))} failed with status '
            f'{result.returncode}: {result.stdout.strip()}')
    return result.stdout


class Logged:
    """A long command, started; its output goes to a log.

    It keeps the lab's locks: if this process is killed, the next one waits
    until what it started has ended.
    """

    def __init__(self, log, *command, **options):
        self._log = log
        self._command = ' '.join(map(str, command))
        with open(log, 'ab') as output:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, pass_fds=tuple(state.HELD), **options)

    def wait(self):
        if self._child.wait():
            raise report.LabError(
                f'{self._command} failed; ' + report.tail(self._log))
