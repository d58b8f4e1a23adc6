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

"""Measures functions in processes of their own."""

from concurrent import futures
import dataclasses
import multiprocessing
import os
import platform
import subprocess
import time

import psutil

# Seconds between two looks at the memory of a process.
_INTERVAL = 0.2
_FORK = multiprocessing.get_context('fork')


@dataclasses.dataclass
class Measured:
    """What an operation took.

    :ivar stored: bytes on the disk afterwards
    :ivar result: what the operation has made
    :ivar peak: bytes of memory
    """

    seconds: float
    stored: int
    result: object = None
    peak: int = 0


def facts():
    """What the figures depend on."""
    return {'cores': len(os.sched_getaffinity(0)),
            'memory_mib': psutil.virtual_memory().total >> 20,
            'kernel': platform.release(), 'python': platform.python_version()}


def drop_caches():
    """Forget what the kernel keeps of files, and has written.

    :returns: whether that is permitted
    """
    try:
        with open('/proc/sys/vm/drop_caches', 'w') as stream:
            stream.write('3')
    except OSError:
        return False
    return True


def sync(*directories):
    """Write what their file systems have in memory to the disk."""
    subprocess.run(('sync', '--file-system', *directories), check=True)


def timed(directory, func, *args):
    """The seconds until a function has ended and its files are on the disk.

    :param directory: one of the file system that the files lie on
    """
    started = time.monotonic()
    func(*args)
    sync(directory)
    return time.monotonic() - started


def allocated(path):
    """The bytes that a file, or all files below a directory, take."""
    if not os.path.isdir(path):
        return os.stat(path).st_blocks * 512
    return sum(os.stat(os.path.join(parent, name)).st_blocks * 512
               for parent, _directories, names in os.walk(path)
               for name in names)


def in_child(func, *args):
    """Call a function in a new process.

    :returns: what it returned, and the bytes of memory that its process and
              those below it had at most
    """
    peak = 0
    with futures.ProcessPoolExecutor(1, mp_context=_FORK) as executor:
        call = executor.submit(func, *args)
        waiting = True
        while waiting:
            peak = max(peak, sum(
                _peak(child.pid)
                for child in psutil.Process().children(recursive=True)))
            waiting = futures.wait((call,), _INTERVAL).not_done
        return call.result(), peak


def _peak(pid):
    try:
        with open('/proc/%d/status' % pid) as stream:
            return sum(int(line.split()[1]) << 10 for line in stream
                       if line.startswith('VmHWM:'))
    except OSError:
        # It has gone meanwhile.
        return 0
