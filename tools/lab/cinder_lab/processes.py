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

"""The processes of a lab, whoever their parent is now."""

import os
import pathlib
import pwd
import signal
import time

from cinder_lab import report
from cinder_lab import state

# In the environment of everything that the lab's supervisor starts.
MARK = 'CINDER_LUSTRE_LAB'
PROC = pathlib.Path('/proc')


def of(base):
    """The lab's processes: its users', and those that sudo made root's.

    A process that overwrote its environment to set a title still has the
    user; sudo replaces the environment, but says on whose behalf.
    """
    user = state.user_name(base)
    uids = [entry.pw_uid for entry in pwd.getpwall()
            if entry.pw_name in (user, state.guest_user_name(base))]
    # A container's user may have the same number, or even the same name.
    root = os.stat('/')
    marks = {f'{MARK}={base}'.encode(), f'SUDO_USER={user}'.encode()}
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            ours = entry.stat().st_uid in uids or marks.intersection(
                (entry / 'environ').read_bytes().split(b'\0'))
            if ours and stat(entry.name)[0] != 'Z' and os.path.samestat(
                    (entry / 'root').stat(), root):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def stat(pid):
    """The fields of /proc/PID/stat after the name, state first."""
    return (PROC / str(pid) / 'stat').read_text().rpartition(')')[2].split()


def waits_in(pid):
    """The function of the kernel in which a process sleeps."""
    return (PROC / str(pid) / 'wchan').read_text()


def command(pid):
    try:
        words = (PROC / str(pid) / 'cmdline').read_bytes().split(b'\0')
    except OSError:
        return '(ended)'
    return b' '.join(words).decode(errors='replace').strip()[:100]


def is_guest(pid):
    return 'qemu-system' in command(pid).split(' ')[0]


def end(base, patience=20, which=lambda pid: True):
    """Wait for all of them, then ask, then kill; fail if any stays."""
    def remaining():
        return [pid for pid in of(base) if which(pid)]
    for number, seconds in ((None, patience), (signal.SIGTERM, 10),
                            (signal.SIGKILL, 60)):
        pids = remaining()
        if number and pids:
            report.say(f'still running, sending {number.name}: '
                       + ', '.join(f'{p} {command(p)}' for p in pids))
        for pid in pids if number else ():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + seconds
        while remaining():
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return
    raise report.LabError('these processes survive SIGKILL: ' + ', '.join(
        f'{pid} ({stat(pid)[0]}) {command(pid)}' for pid in remaining()))


def memory(pid):
    """Proportional set size in KiB; shared pages are divided."""
    try:
        text = (PROC / str(pid) / 'smaps_rollup').read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines()
               if line.startswith('Pss:'))


def ancestors(pid):
    """The process and its parents, nearest first."""
    while pid > 1:
        yield pid
        try:
            pid = int(stat(pid)[1])
        except OSError:
            return
