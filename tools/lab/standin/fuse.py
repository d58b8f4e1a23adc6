# This is not Lustre: it is the FUSE server of a stand-in for it.
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

"""What ext4 cannot imitate: a quota, a mount without locks, and silence.

``share`` passes every request on to a directory, but for what the mount and
the registry say about locks and a quota. ``silent`` mounts nodes that take
requests and never answer: whoever asks hangs and survives SIGKILL.

This speaks the kernel's protocol (linux/fuse.h) itself: a mount helper runs
with the system's Python and nothing else, and the FUSE packages of the
distributions lack flock and fallocate.
"""

import ctypes
import errno
import fcntl
import os
import resource
import select
import stat
import struct
import sys
import time

import registry

_HEADER = struct.Struct('<IIQQIIII')
_REPLY = struct.Struct('<IiQ')
_ATTR = struct.Struct('<QQQQQQIIIIIIIIII')
_INIT = struct.Struct('<IIIIHHIIHHI28x')
_FLOCK = struct.Struct('@hhqqi4x')
_MAX_WRITE = 1 << 20
_INIT_OP = 26

# The bits of an INIT answer.
_ASYNC_READ, _POSIX_LOCKS, _BIG_WRITES = 1 << 0, 1 << 1, 1 << 5
_FLOCK_LOCKS, _AUTO_INVAL, _DIROPS = 1 << 10, 1 << 12, 1 << 18
_POSIX_ACL, _MAX_PAGES = 1 << 20, 1 << 22

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_KEEP_SIZE = 1
_LAST = 2 ** 63 - 1

_libc = ctypes.CDLL(None, use_errno=True)


class Silent:
    """Takes requests and never answers."""

    flags = 0

    def handle(self, opcode, header, body):
        return None


class Share:
    """A directory, passed on.

    :param name: the file system, whose entry tells the quota
    :param root: the directory
    :param locks: flock, noflock or localflock
    """

    def __init__(self, name, root, locks):
        self.entry = os.path.join(registry.ROOT, name + '.json')
        self.name = name
        self.locks = locks
        self.quota_read = self.quota_value = None
        self.nodes = {1: [os.open(root, os.O_PATH), 1]}
        self.numbers = {}
        self.directories = {}
        self.last = 1
        self.flags = (_ASYNC_READ | _BIG_WRITES | _AUTO_INVAL | _DIROPS |
                      _POSIX_ACL | _MAX_PAGES)
        if locks != 'localflock':
            self.flags |= _POSIX_LOCKS | _FLOCK_LOCKS

    def handle(self, opcode, header, body):
        """Carry a request out.

        :returns: the bytes to answer with, or None for no answer
        :raises: OSError, BlockingIOError when a lock must be waited for
        """
        if opcode in (2, 36, 42):
            if opcode != 36:
                self.forget(opcode, header, body)
            return None
        method = self.METHODS.get(opcode)
        if method is None:
            raise OSError(errno.ENOSYS, 'unknown')
        return method(self, header, body)

    # Nodes

    def fd(self, header):
        return self.nodes[header[3]][0]

    def path(self, header):
        """A path to a node, whatever its names have become."""
        return '/proc/self/fd/%d' % self.fd(header)

    def entry_of(self, parent, name):
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        found = os.fstat(descriptor)
        key = found.st_dev, found.st_ino
        number = self.numbers.get(key)
        if number is None:
            self.last += 1
            number = self.numbers[key] = self.last
            self.nodes[number] = [descriptor, 0]
        else:
            os.close(descriptor)
        self.nodes[number][1] += 1
        return struct.pack('<QQQQII', number, 0, 0, 0, 0, 0) + attr(found)

    def forget(self, opcode, header, body):
        pairs = [(header[3], *struct.unpack_from('<Q', body))]
        if opcode == 42:
            count, = struct.unpack_from('<I', body)
            pairs = [struct.unpack_from('<QQ', body, 8 + 16 * index)
                     for index in range(count)]
        for number, count in pairs:
            node = self.nodes[number]
            node[1] -= count
            if node[1] <= 0 and number != 1:
                found = os.fstat(node[0])
                del self.numbers[found.st_dev, found.st_ino]
                os.close(node[0])
                del self.nodes[number]

    def made(self, header, name):
        """Give what was just made to whoever asked for it."""
        parent = self.fd(header)
        setgid = os.fstat(parent).st_mode & stat.S_ISGID
        os.chown(name, header[4], -1 if setgid else header[5],
                 dir_fd=parent, follow_symlinks=False)
        return self.entry_of(parent, name)

    def lookup(self, header, body):
        return self.entry_of(self.fd(header), text(body)[0])

    def getattr(self, header, body):
        return struct.pack('<QII', 0, 0, 0) + attr(os.fstat(self.fd(header)))

    def setattr(self, header, body):
        (valid, _fh, size, atime, mtime, atime_ns, mtime_ns, mode, uid,
         gid) = struct.unpack_from('<I4xQQ8xQQ8xII4xI4xII', body)
        path = self.path(header)
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        if valid & 0x30:
            now = os.stat(path)
            times = [now.st_atime_ns, now.st_mtime_ns]
            clock = time.time_ns()
            if valid & 16:
                times[0] = clock if valid & 128 else atime * 10**9 + atime_ns
            if valid & 32:
                times[1] = clock if valid & 256 else mtime * 10**9 + mtime_ns
            os.utime(path, ns=tuple(times))
        return self.getattr(header, body)

    def readlink(self, header, body):
        return os.fsencode(os.readlink('', dir_fd=self.fd(header)))

    def symlink(self, header, body):
        name, target = text(body)
        os.symlink(target, name, dir_fd=self.fd(header))
        return self.made(header, name)

    def mknod(self, header, body):
        mode, device = struct.unpack_from('<II', body)
        name, = text(body[16:])
        os.mknod(name, mode, device, dir_fd=self.fd(header))
        return self.made(header, name)

    def mkdir(self, header, body):
        mode, = struct.unpack_from('<I', body)
        name, = text(body[8:])
        os.mkdir(name, mode, dir_fd=self.fd(header))
        return self.made(header, name)

    def unlink(self, header, body):
        os.unlink(text(body)[0], dir_fd=self.fd(header))
        return b''

    def rmdir(self, header, body):
        os.rmdir(text(body)[0], dir_fd=self.fd(header))
        return b''

    def rename(self, header, body, skip=8):
        target, = struct.unpack_from('<Q', body)
        old, new = text(body[skip:])
        os.rename(old, new, src_dir_fd=self.fd(header),
                  dst_dir_fd=self.nodes[target][0])
        return b''

    def rename2(self, header, body):
        if struct.unpack_from('<I', body, 8)[0]:
            # As Lustre: neither "no replace" nor "exchange".
            raise OSError(errno.EINVAL, 'flags')
        return self.rename(header, body, skip=16)

    def link(self, header, body):
        old, = struct.unpack_from('<Q', body)
        name, = text(body[8:])
        os.link('/proc/self/fd/%d' % self.nodes[old][0], name,
                dst_dir_fd=self.fd(header), follow_symlinks=True)
        return self.entry_of(self.fd(header), name)

    # Files

    def open(self, header, body):
        flags, = struct.unpack_from('<I', body)
        handle = os.open(self.path(header), usable(flags))
        return struct.pack('<QII', handle, 0, 0)

    def create(self, header, body):
        flags, mode = struct.unpack_from('<II', body)
        name, = text(body[16:])
        existed = os.path.lexists('%s/%s' % (self.path(header),
                                             os.fsdecode(name)))
        handle = os.open(name, usable(flags) | os.O_CREAT |
                         flags & os.O_EXCL, mode, dir_fd=self.fd(header))
        entry = (self.entry_of(self.fd(header), name) if existed else
                 self.made(header, name))
        return entry + struct.pack('<QII', handle, 0, 0)

    def read(self, header, body):
        handle, offset, size = struct.unpack_from('<QQI', body)
        return os.pread(handle, size, offset)

    def write(self, header, body):
        handle, offset, size = struct.unpack_from('<QQI', body)
        if header[4] and self.over_quota(size) and not allocated(
                handle, offset, size):
            raise OSError(errno.EDQUOT, 'quota')
        written = os.pwrite(handle, body[40:40 + size], offset)
        return struct.pack('<II', written, 0)

    def fallocate(self, header, body):
        handle, offset, length, mode = struct.unpack_from('<QQQI', body)
        blocks = os.fstat(handle).st_blocks
        if mode in (0, _KEEP_SIZE) and self.over_quota(
                min(length, offset + length - blocks * 512)):
            # As Lustre: the size without the blocks, and root too.
            if mode == 0 and os.fstat(handle).st_size < offset + length:
                os.ftruncate(handle, offset + length)
            raise OSError(errno.EDQUOT, 'quota')
        if _libc.fallocate(ctypes.c_int(handle), ctypes.c_int(mode),
                           ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), 'fallocate')
        return b''

    def lseek(self, header, body):
        handle, offset, whence = struct.unpack_from('<QQI', body)
        return struct.pack('<Q', os.lseek(handle, offset, whence))

    def release(self, header, body):
        os.close(struct.unpack_from('<Q', body)[0])
        return b''

    def flush(self, header, body):
        return b''

    def fsync(self, header, body):
        os.fsync(struct.unpack_from('<Q', body)[0])
        return b''

    def over_quota(self, more):
        limit = self.quota()
        return limit is not None and self.used() + more > limit

    def used(self):
        found = os.fstatvfs(self.nodes[1][0])
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def quota(self):
        found = os.stat(self.entry)
        version = found.st_ino, found.st_mtime_ns
        if version != self.quota_read:
            self.quota_read = version
            self.quota_value = registry.load(self.name)['quota']
        return self.quota_value

    def statfs(self, header, body):
        found = os.fstatvfs(self.nodes[1][0])
        blocks, free, available = (found.f_blocks, found.f_bfree,
                                   found.f_bavail)
        limit = self.quota()
        if limit is not None:
            blocks = limit // found.f_frsize
            free = min(free, max(limit - self.used(), 0) // found.f_frsize)
            available = min(available, free)
        return struct.pack('<QQQQQIII28x', blocks, free, available,
                           found.f_files, found.f_ffree, found.f_bsize,
                           found.f_namemax, found.f_frsize)

    # Directories

    def opendir(self, header, body):
        number = os.open(self.path(header), os.O_RDONLY | os.O_DIRECTORY)
        listing = [(b'.', 1, 4), (b'..', 1, 4)]
        with os.scandir(number) as found:
            for each in found:
                kind = 4 if each.is_dir(follow_symlinks=False) else 0
                listing.append((os.fsencode(each.name), each.inode(), kind))
        self.directories[number] = listing
        return struct.pack('<QII', number, 0, 0)

    def readdir(self, header, body):
        handle, offset, size = struct.unpack_from('<QQI', body)
        result = b''
        for name, inode, kind in self.directories[handle][offset:]:
            offset += 1
            each = struct.pack('<QQII', inode, offset, len(name), kind) + name
            each += b'\0' * (-len(each) % 8)
            if len(result) + len(each) > size:
                break
            result += each
        return result

    def releasedir(self, header, body):
        handle, = struct.unpack_from('<Q', body)
        del self.directories[handle]
        return self.release(header, body)

    # Extended attributes

    def setxattr(self, header, body):
        size, flags = struct.unpack_from('<II', body)
        name, value = body[8:].tobytes().split(b'\0', 1)
        os.setxattr(self.path(header), name, value[:size], flags)
        return b''

    def getxattr(self, header, body):
        return self.sized(body, os.getxattr(self.path(header),
                                            text(body[8:])[0]))

    def listxattr(self, header, body):
        return self.sized(body, b''.join(
            os.fsencode(name) + b'\0'
            for name in os.listxattr(self.path(header))))

    def sized(self, body, value):
        size, = struct.unpack_from('<I', body)
        if size == 0:
            return struct.pack('<II', len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, 'size')
        return value

    def removexattr(self, header, body):
        os.removexattr(self.path(header), text(body)[0])
        return b''

    # Locks

    def lock(self, header, body):
        if self.locks == 'noflock':
            raise OSError(errno.ENOSYS, 'locks')
        handle, _owner, start, end, kind, _pid, flags = struct.unpack_from(
            '<QQQQIII', body)
        if flags & 1:
            names = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK:
                     fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
            fcntl.flock(handle, names[kind] | fcntl.LOCK_NB)
            return b''
        length = 0 if end >= _LAST else end - start + 1
        request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        if header[1] == 31:
            kind, _whence, start, length, _pid = _FLOCK.unpack(
                fcntl.fcntl(handle, _F_OFD_GETLK, request))
            end = start + length - 1 if length else _LAST
            return struct.pack('<QQII', start, end, kind, 0)
        fcntl.fcntl(handle, _F_OFD_SETLK, request)
        return b''

    METHODS = {1: lookup, 3: getattr, 4: setattr, 5: readlink, 6: symlink,
               8: mknod, 9: mkdir, 10: unlink, 11: rmdir, 12: rename,
               13: link, 14: open, 15: read, 16: write, 17: statfs,
               18: release, 20: fsync, 21: setxattr, 22: getxattr,
               23: listxattr, 24: removexattr, 25: flush, 27: opendir,
               28: readdir, 29: releasedir, 30: fsync, 31: lock, 32: lock,
               33: lock, 35: create, 43: fallocate, 45: rename2, 46: lseek}


def attr(found):
    times = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    return _ATTR.pack(found.st_ino, found.st_size, found.st_blocks,
                      *(time // 10**9 for time in times),
                      *(time % 10**9 for time in times),
                      found.st_mode, found.st_nlink, found.st_uid,
                      found.st_gid, found.st_rdev, 4096, 0)


def text(body):
    """The strings that a request ends with."""
    return bytes(body).rstrip(b'\0').split(b'\0')


def usable(flags):
    """Flags for a server that writes at offsets, from its own memory."""
    return flags & ~(os.O_DIRECT | os.O_APPEND | os.O_NOFOLLOW | os.O_CREAT |
                     os.O_EXCL) & 0o7777777


def allocated(handle, offset, size):
    """Whether a write needs no new blocks."""
    found = os.fstat(handle)
    if found.st_blocks * 512 >= max(found.st_size, offset + size):
        return True
    try:
        return (os.lseek(handle, offset, os.SEEK_DATA) == offset and
                os.lseek(handle, offset, os.SEEK_HOLE) >= offset + size)
    except OSError:
        # Past the end.
        return False


def attach(source, target, fstype, flags=0, permissions=False):
    """Mount a node; the file descriptor that its requests come from."""
    device = os.open('/dev/fuse', os.O_RDWR)
    mode = stat.S_IFDIR if os.path.isdir(target) else stat.S_IFREG
    registry.mount(source, target, fstype, flags,
                   'fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other%s' % (
                       device, mode,
                       ',default_permissions' if permissions else ''))
    return device


class Connection:
    """One mount, as seen from the kernel.

    :param device: the file descriptor that its requests come from
    :param served: what carries them out
    """

    _buffer = bytearray(_MAX_WRITE + 65536)

    def __init__(self, device, served):
        self.device = device
        self.served = served
        # Requests that wait for a lock, by their number.
        self.waiting = {}

    def take(self):
        """Take one request; False when the mount has gone."""
        try:
            size = os.readv(self.device, [self._buffer])
        except OSError as exc:
            # Whoever sent it may have been interrupted meanwhile.
            return exc.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)
        request = memoryview(self._buffer)[:size]
        header = _HEADER.unpack_from(request)
        body = request[_HEADER.size:]
        if header[1] == _INIT_OP:
            self.answer(header[2], self.init(body))
        elif header[1] == 36:
            interrupted = self.waiting.pop(*struct.unpack('<Q', body), None)
            if interrupted:
                self.answer(interrupted[0][2], number=errno.EINTR)
        else:
            self.carry_out(header, body)
        return True

    def init(self, body):
        _major, minor, readahead, flags = struct.unpack_from('<IIII', body)
        return _INIT.pack(7, min(minor, 31), readahead,
                          flags & self.served.flags, 16, 12, _MAX_WRITE, 1,
                          _MAX_WRITE // 4096, 0, 0)

    def carry_out(self, header, body):
        try:
            result = self.served.handle(header[1], header, body)
        except BlockingIOError as exc:
            if header[1] == 33:
                self.waiting[header[2]] = header, bytes(body)
                return
            self.answer(header[2], number=exc.errno)
        except OSError as exc:
            self.answer(header[2], number=exc.errno)
        else:
            self.waiting.pop(header[2], None)
            if result is not None:
                self.answer(header[2], result)

    def retry(self):
        for header, body in list(self.waiting.values()):
            self.carry_out(header, body)

    def answer(self, unique, data=b'', number=0):
        self.waiting.pop(unique, None)
        try:
            os.writev(self.device, [_REPLY.pack(
                _REPLY.size + len(data), -number, unique), data])
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def main(name, kind, *arguments):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.umask(0)
    connections = []
    try:
        if kind == 'silent':
            for target, source, fstype in zip(*[iter(arguments)] * 3):
                connections.append(Connection(
                    attach(source, target, fstype), Silent()))
        else:
            target, source, root, locks, flags = arguments
            share = Share(name, root, locks)
            connections.append(Connection(
                attach(source, target, 'fuse.lustre', int(flags), True),
                share))
        answer = 'mounted'
    except OSError as exc:
        answer = str(exc.errno)
    os.write(1, answer.encode())
    os.dup2(0, 1)
    poll = select.poll()
    open_ones = {each.device: each for each in connections}
    for device in open_ones:
        poll.register(device, select.POLLIN)
    while open_ones:
        waiting = any(each.waiting for each in open_ones.values())
        for device, _event in poll.poll(50 if waiting else None):
            if not open_ones[device].take():
                poll.unregister(device)
                del open_ones[device]
        for each in open_ones.values():
            each.retry()


if __name__ == '__main__':
    main(*sys.argv[1:])
