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

"""Looks into a share for the doctor; all of it may block.

These functions run in a worker's child. Those that make a file remove it
again. As root, they act as the users whom they are told, so that what root
may do hides nothing.
"""

import contextlib
import errno
import fcntl
import os
import re
import struct
import tempfile

from cinder_lustre import exception
from cinder_lustre import lfs
from cinder_lustre import worker

# As cinder-lustre-check knows what was left behind.
_PREFIX = '.tmp-'
# How drivers make volumes: for the user and the group.
_MODE = 0o660
# struct flock of 64-bit systems: type, whence, start, length, pid.
_FLOCK = struct.Struct('hhqqi4x')
# linux/posix_acl_xattr.h: the version, then tag, permissions and id.
_ACL_VERSION = struct.Struct('<I')
_ACL_ENTRY = struct.Struct('<HHI')
_ACL_USER, _ACL_MASK = 2, 16
# How many files one command looks at.
_BATCH = 200
_IMAGE = re.compile(r'volume-.*(?<!\.info)|base-.*', re.DOTALL)


def real_paths(paths):
    """Paths without their symbolic links."""
    return [os.path.realpath(path) for path in paths]


def directory(path):
    """Whose the share's directory is.

    :returns: uid, gid, mode, and 'users': permissions by uid in its default
              ACL as far as the mask lets them through; None without ACLs
    """
    found = os.stat(path)
    return {'uid': found.st_uid, 'gid': found.st_gid,
            'mode': found.st_mode & 0o7777, 'users': _default_acl(path)}


def lock(path, identity):
    """Make a file, and see that two openings of it exclude each other.

    :param identity: uid, gid and groups of whom to act as, or None
    :returns: the kinds of locks that do not
    """
    broken = []
    with _acting_as(identity), _file(path) as one, open(one.name, 'r+b') as (
            other):
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_refused(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB):
            broken.append('flock')
        # On Lustre the two kinds exclude each other.
        for stream in one, other:
            fcntl.flock(stream, fcntl.LOCK_UN)
        byte = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, byte)
        if not _is_refused(fcntl.fcntl, other, fcntl.F_OFD_SETLK, byte):
            broken.append('OFD')
    return broken


def root(path):
    """The uid that a file made by root has, or None if root may make none."""
    try:
        with _file(path) as stream:
            return os.fstat(stream.fileno()).st_uid
    except PermissionError:
        return None


def visit(path, owner, visitor):
    """See what one user may do with another one's volume.

    :param owner: uid, gid and groups of who makes a file as drivers do
    :param visitor: uid, gid and groups of who visits
    :returns: 'search', whether the visitor may search the directory, and
              'open', whether the file may be written to
    """
    with _acting_as(owner):
        stream = _file(path)
    try:
        with _acting_as(visitor):
            # Not access(), which knows no ACLs on older kernels.
            return {'search': _is_permitted(os.path.join(path, '.'),
                                            os.O_PATH),
                    'open': _is_permitted(stream.name, os.O_RDWR)}
    finally:
        with _acting_as(owner):
            stream.close()


def hsm(path):
    """Which volume files HSM has taken hold of.

    :returns: 'files', how many were looked at, and names: 'released',
              'archived', and 'unseen' for those that lfs said nothing about;
              None without lfs
    """
    left = sorted(filter(_IMAGE.fullmatch, os.listdir(path)))
    found = {'files': 0, 'released': [], 'archived': [], 'unseen': []}
    while left:
        batch, left = left[:_BATCH], left[_BATCH:]
        states = _hsm_states(path, batch)
        if states is None:
            return None
        found['files'] += len(states)
        for name, flags in states.items():
            for flag in 'released', 'archived':
                if flag in flags:
                    found[flag].append(name)
                    break
        unseen = [name for name in batch if name not in states]
        if unseen:
            # lfs stops at the first file that it cannot open.
            left = unseen[1:] + left
            if _is_listed(path, unseen[0]):
                found['unseen'].append(unseen[0])
        worker.progress(None)
    return found


def _hsm_states(path, names):
    try:
        states = lfs.hsm_states([os.path.join(path, name) for name in names])
    except exception.CommandFailed:
        if _is_listed(path, names[0]):
            raise
        return {}
    return states and {os.path.basename(each): flags
                       for each, flags in states.items()}


def _is_listed(path, name):
    # A look at the file itself hangs when its OST is dead.
    return name in os.listdir(path)


def _file(path):
    stream = tempfile.NamedTemporaryFile(dir=path, prefix=_PREFIX)
    os.fchmod(stream.fileno(), _MODE)
    return stream


@contextlib.contextmanager
def _acting_as(identity):
    """Let the kernel, and Lustre, see another user than root."""
    if identity is None:
        yield
        return
    uid, gid, groups = identity
    before = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def _is_permitted(path, flags):
    try:
        os.close(os.open(path, flags))
    except PermissionError:
        return False
    return True


def _is_refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return True
        raise
    return False


def _default_acl(path):
    try:
        value = os.getxattr(path, 'system.posix_acl_default')
    except OSError as exc:
        if exc.errno == errno.ENODATA:
            return {}
        if exc.errno == errno.EOPNOTSUPP:
            return None
        raise
    entries = list(_ACL_ENTRY.iter_unpack(value[_ACL_VERSION.size:]))
    mask = next((permissions for tag, permissions, _id in entries
                 if tag == _ACL_MASK), 7)
    # Keys of JSON are strings.
    return {str(number): permissions & mask
            for tag, permissions, number in entries if tag == _ACL_USER}
