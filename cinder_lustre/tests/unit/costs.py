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

"""Counts what is asked of the host and of a share, in children, too.

Python itself tells of each process, each directory that is read and each file
that is opened (its audit events), whichever function was called; what it says
nothing of is counted by functions in the place of those of :mod:`os`. As a
program, this is a worker's child that writes its counts to a file.
"""

import collections
import contextlib
import json
import os
import sys
from unittest import mock

from cinder_lustre.brick import mount
from cinder_lustre import record
from cinder_lustre import worker

COUNTED = {
    'child': 'processes of the worker',
    'mnt': 'runs of mount',
    'qemu': 'runs of qemu-img',
    'cmd': 'runs of any other program',
    'rec': 'records, and mirrors of records, that were written',
    'sync': 'fsync and fdatasync, of files and of directories',
    'vfs': 'statfs: questions for the size of a share',
    'list': 'directories of a share that were read',
    'open': 'files and directories of a share that were opened',
    'stat': 'stat and lstat of what lies on a share',
}
# What this process counts now, None for nothing, and what counts as a share.
_counts = None
_base = None
_is_hooked = False


def count(what):
    """Note that something was done, one of COUNTED."""
    if _counts is not None:
        # Unlike a sum, this is safe in threads.
        _counts.append(what)


def _on_share(path):
    if isinstance(path, int):
        path = os.readlink('/proc/self/fd/%d' % path)
    return os.path.abspath(os.fsdecode(path or '.')).startswith(_base)


def _hook(event, args):
    if _counts is None:
        return
    if event == 'open':
        # What has a descriptor was opened before.
        if not isinstance(args[0], int) and _on_share(args[0]):
            count('open')
    elif event in ('os.listdir', 'os.scandir'):
        if _on_share(args[0]):
            count('list')
    elif event == 'os.rename':
        _count_rename(os.fsdecode(args[1]))
    elif event == 'subprocess.Popen':
        count(_kind_of(args[1]))
    elif event == 'os.system':
        count('cmd')


def _count_rename(path):
    directory, name = os.path.split(path)
    if name.endswith('.info') or (
            os.path.basename(directory) == record.DIRECTORY):
        count('rec')


def _kind_of(command):
    """What a command counts as, also behind a root helper or a limit."""
    words = command.split() if isinstance(command, str) else command
    for word, kind in ((worker.__name__, 'child'), ('mount', 'mnt'),
                       ('qemu-img', 'qemu')):
        if word in words:
            return kind
    return 'cmd'


def _counting(name, what, everywhere=True):
    """A function of os that is counted.

    :param everywhere: else on a share alone
    """
    original = getattr(os, name)

    def function(path, *args, **kwargs):
        # stat() of a descriptor asks no server.
        if everywhere or (not isinstance(path, int) and _on_share(path)):
            count(what)
        return original(path, *args, **kwargs)

    return mock.patch.object(os, name, function)


@contextlib.contextmanager
def counting(base, mountinfo):
    """Count what this process does.

    :param base: the directory in which the shares lie
    :param mountinfo: a file that tells what is mounted
    :returns: a list with one word for each thing that was done
    """
    global _counts, _base, _is_hooked
    if not _is_hooked:
        # For ever: such a hook cannot be removed.
        sys.addaudithook(_hook)
        _is_hooked = True
    _base = base
    with contextlib.ExitStack() as stack:
        for name, what, everywhere in (
                ('fsync', 'sync', True), ('fdatasync', 'sync', True),
                ('statvfs', 'vfs', True), ('fstatvfs', 'vfs', True),
                ('stat', 'stat', False), ('lstat', 'stat', False)):
            stack.enter_context(_counting(name, what, everywhere))
        stack.enter_context(mock.patch.object(
            mount, 'read_mounts', lambda: read_mounts(mountinfo)))
        _counts = []
        try:
            yield _counts
        finally:
            _counts = None


@contextlib.contextmanager
def paused():
    """Do something that does not count."""
    global _counts
    before, _counts = _counts, None
    try:
        yield
    finally:
        _counts = before


def read_mounts(mountinfo):
    with open(mountinfo) as stream:
        return mount.parse_mountinfo(stream.read())


def collect(found, log):
    """The sums of what this process and its children have done."""
    total = collections.Counter(found)
    with contextlib.suppress(FileNotFoundError):
        with open(log) as stream:
            for line in stream:
                total.update(json.loads(line))
        os.unlink(log)
    return total


def _main(base, mountinfo, log):
    with counting(base, mountinfo) as found:
        worker._main()
    with open(log, 'a') as stream:
        stream.write(json.dumps(found) + '\n')


if __name__ == '__main__':
    _main(*sys.argv[1:4])
