# This is not Lustre: it is part of a stand-in for it.
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

"""The stand-in's file systems: what is registered, and what it is made of.

Each file system has one entry ``/run/cinder-lustre-lab/NAME.json``, a copy of
it beside its image, and a directory ``NAME.d`` for what runs. The registry is
one per machine, as mount.lustre is.
"""

import collections
import contextlib
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import re
import struct

ROOT = '/run/cinder-lustre-lab'
TYPES = ('ext4', 'fuse.lustre')
# The node over a file on a dead OST; its source names the file system.
DEAD_TYPE = 'fuse.dead-ost'

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND = 32, 4096
MNT_FORCE, MNT_DETACH = 1, 2

_SOURCE = re.compile(r'(?P<nids>[^/]+):/(?P<fsname>[^/]+)(?P<sub>(/.*)?)$')

_F_OFD_SETLKW = 38

_libc = ctypes.CDLL(None, use_errno=True)

Mount = collections.namedtuple(
    'Mount', 'id root target options fstype source')


class Error(Exception):
    """Something that the user has to know and can mend."""


class Failure(Exception):
    """What a command says on stderr, and its exit code."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


# The registry

def state(name, *parts):
    """A path in the run-time directory of a file system."""
    return os.path.join(ROOT, name + '.d', *parts)


def load(name):
    """The entry of a file system, or None."""
    try:
        with open(os.path.join(ROOT, name + '.json')) as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None


def entries():
    """All entries, by name."""
    names = sorted(os.path.basename(path)[:-len('.json')]
                   for path in glob.glob(os.path.join(ROOT, '*.json')))
    return [entry for entry in map(load, names) if entry]


def save(entry):
    """Write an entry, beside the image too: /run is empty after a reboot."""
    for path in (record_of(entry['image']),
                 os.path.join(ROOT, entry['fsname'] + '.json')):
        if os.path.isdir(os.path.dirname(path)):
            with open(path + '.new', 'w') as stream:
                json.dump(entry, stream, indent=1, sort_keys=True)
            os.rename(path + '.new', path)


def record_of(image):
    """The copy of an entry that lies beside its image."""
    return image[:-len('.img')] + '.json'


@contextlib.contextmanager
def locked(name=''):
    """Keep other processes away from one file system, or from the commands.

    A lock is a byte of one file, so none is left behind. Nobody waits for
    another file system, which may hang.
    """
    os.makedirs(ROOT, mode=0o755, exist_ok=True)
    # The descriptor is not inherited, so no daemon keeps the lock.
    with open(os.path.join(ROOT, '.lock'), 'w') as lock:
        byte = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        # The lock is the descriptor's: locks of other names are not lost
        # when one is given back.
        fcntl.fcntl(lock, _F_OFD_SETLKW, struct.pack(
            '@hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        yield


# Mounts

def mount(source, target, fstype, flags=0, data=''):
    """mount(2)."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target),
                       fstype and fstype.encode(), ctypes.c_ulong(flags),
                       data.encode()), target)


def umount(target, flags=0):
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def _check(result, path):
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mounts():
    """What is mounted, in the order of mounting."""
    result = []
    with open('/proc/self/mountinfo') as table:
        for line in table:
            fields = [re.sub(r'\\([0-7]{3})',
                             lambda code: chr(int(code.group(1), 8)), field)
                      for field in line.split(' ')]
            rest = fields[fields.index('-') + 1:]
            result.append(Mount(int(fields[0]), fields[3], fields[4],
                                fields[5], rest[0], rest[1]))
    return result


def parse(source):
    """Split a share into NIDs, fsname and subdirectory; None if it is none."""
    found = _SOURCE.match(source)
    return found and (found['nids'], found['fsname'],
                      found['sub'].rstrip('/'))


def client_mounts(name=None, covers=False):
    """The mounts of one or all registered file systems, as clients have them.

    mount.lustre never mounts the same share twice on a directory, so a second
    one is the node that hides a frozen file system.

    :param covers: list these nodes instead
    :returns: pairs of an entry and a mount
    """
    known = {entry['fsname']: entry for entry in entries()}
    seen = set()
    result = []
    for each in mounts():
        parsed = each.fstype in TYPES and parse(each.source)
        if (not parsed or parsed[1] not in known or
                name not in (None, parsed[1]) or
                each.target.startswith(ROOT + '/')):
            continue
        if covers == ((each.source, each.target) in seen):
            result.append((known[parsed[1]], each))
        seen.add((each.source, each.target))
    return result


def is_up(entry):
    """Whether the server's side of a file system is mounted."""
    root = state(entry['fsname'], 'root')
    return any(each.target == root for each in mounts())


def locate(path):
    """Find a path on a file system, without touching the path itself.

    :returns: entry, mount and path below the file system's root; or None
    """
    parent, name = os.path.split(os.path.abspath(path))
    path = os.path.join(os.path.realpath(parent), name)
    best = None
    for each in mounts():
        if each.fstype == DEAD_TYPE or best and (
                len(each.target) < len(best.target) or
                # The node over a frozen file system is not its own mount.
                (each.source, each.target) == (best.source, best.target)):
            continue
        if (path + '/').startswith(each.target.rstrip('/') + '/'):
            best = each
    parsed = best and best.fstype in TYPES and parse(best.source)
    entry = parsed and load(parsed[1])
    if not entry:
        return None
    below = os.path.relpath(path, best.target)
    return entry, best, os.path.normpath(
        '%s/%s' % (parsed[2] or '/.', below))


def instance(each):
    """The number by which Lustre tells the mounts of a node apart."""
    digest = hashlib.sha256(b'%d' % each.id).hexdigest()
    return 'ff' + digest[:14]
