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

"""What the lab tells its user: steps with their times, and failures."""

import contextlib
import sys
import time

STARTED = time.monotonic()


class LabError(Exception):
    """A failure with its cause and cure; ends the command with status 1."""


def say(text):
    print(f'[{time.monotonic() - STARTED:6.1f} s] {text}', flush=True)


@contextlib.contextmanager
def step(title):
    """Announce a step and say how long it took.

    Yields a list; what is put into it is shown beside the time.
    """
    notes = []
    started = time.monotonic()
    say(f'{title} ...')
    yield notes
    took = time.monotonic() - started
    say(f'{title}: {" ".join(notes) or "done"} ({took:.1f} s)')


def tail(path, lines=15):
    """The last lines of a log, as a block that names it."""
    try:
        with open(path, errors='replace') as log:
            last = log.readlines()[-lines:]
    except OSError as error:
        return f'{path}: {error.strerror}'
    return f'last lines of {path}:\n' + ''.join(f'    {x}' for x in last)


def wait_for(probe, what, seconds):
    """Poll until the probe is true and return what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > deadline:
            raise LabError(f'{what}: not within {seconds} seconds')
        time.sleep(0.1)


def warn(text):
    print(f'lab: {text}', file=sys.stderr, flush=True)
