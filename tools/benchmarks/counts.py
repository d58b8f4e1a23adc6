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

"""Counts processes and fsyncs of a driver, and measures what one fsync is."""

import os
import statistics
import sys
import time
import types
from unittest import mock

from cinder_lustre.tests.unit import costs
from cinder_lustre import worker

_MOUNTINFO = '/proc/self/mountinfo'
_FSYNCS = 20


def count(directory, func, *args):
    """Call a function.

    :param directory: a local one, for what is needed
    :returns: how many processes it starts if it finds none that wait for
              work, and how many fsyncs it and the children of the driver make
    """
    program = os.path.join(directory, 'counting-python')
    log = os.path.join(directory, 'counts')
    with open(program, 'w') as stream:
        stream.write('#!/bin/sh\nexec %s -S -m %s / %s %s\n' % (
            sys.executable, costs.__name__, _MOUNTINFO, log))
    os.chmod(program, 0o700)
    # What is kept for later calls does not count, and writes no counts.
    with (mock.patch.object(worker.Worker, '_keep', return_value=False),
          mock.patch.object(worker.Worker, '_take_idle', return_value=False),
          mock.patch.object(worker, 'sys', types.SimpleNamespace(
              executable=program))):
        with costs.counting('/', _MOUNTINFO) as found:
            func(*args)
    total = costs.collect(found, log)
    return {'processes': sum(total[kind] for kind in (
        'child', 'mnt', 'qemu', 'cmd')), 'fsyncs': total['sync']}


def fsync_seconds(directory):
    """The median time to bring a small file and its name to the disk, halved.

    :param directory: on the file system in question
    """
    path = os.path.join(directory, 'fsync')
    parent = os.open(directory, os.O_RDONLY)
    taken = []
    for _ in range(_FSYNCS):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, bytes(1024))
        started = time.monotonic()
        os.fsync(descriptor)
        os.fsync(parent)
        taken.append((time.monotonic() - started) / 2)
        os.close(descriptor)
        os.unlink(path)
    os.close(parent)
    return statistics.median(taken)
