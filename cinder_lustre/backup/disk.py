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

"""The volume that is backed up or restored: a file, a device or an export.

A child opens it by terms that are JSON values: the descriptor that it has
inherited, and what else it takes to use that.
"""

import errno
import os
import stat

from cinder_lustre.brick import nbd_client
from cinder_lustre import space

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


def open_disk(fd, **terms):
    """The disk with a descriptor that this process has inherited.

    :param terms: nothing for a file or a block device; what
                  :func:`nbd_client.inherited` takes for a connection
    """
    if terms:
        return _Export(nbd_client.inherited(fd, **terms))
    return _File(fd)


def is_zero(data):
    """Whether there is nothing but zeros in a buffer."""
    view = memoryview(data)
    # Bytes are compared much faster than views of them.
    return all(bytes(view[start:start + _PIECE]) == _ZEROS[:len(view) - start]
               for start in range(0, len(view), _PIECE))


def zeros(length):
    """So many zeros, in buffers of no more than a MiB."""
    for start in range(0, length, _PIECE):
        yield memoryview(_ZEROS)[:length - start]


class _File:
    """A file or a block device, of its size in bytes."""

    def __init__(self, fd):
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)
        info = os.fstat(fd)
        self._is_file = stat.S_ISREG(info.st_mode)
        # Holes would take away the space of a thick volume.
        self._may_punch = self._is_file and (
            not info.st_size or info.st_blocks * 512 < info.st_size)

    def data(self, unit):
        """Where something else than zeros may be.

        :param unit: what is closer to each other than so many bytes may be
                     given as one
        :yields: start and end of each range, in order
        :raises: OSError
        """
        end = 0
        while (start := self._seek(end, os.SEEK_DATA)) < self.size:
            end = self._seek(start, os.SEEK_HOLE)
            # All data of this unit.
            end = min(self.size, -(-end // unit) * unit)
            yield start, end

    def _seek(self, position, whence):
        try:
            return min(self.size, os.lseek(self._fd, position, whence))
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return self.size
            if exc.errno == errno.EINVAL:
                # All of it is data where the file system cannot tell.
                return position if whence == os.SEEK_DATA else self.size
            raise

    def read(self, offset, buffer):
        """Fill a buffer.

        :raises: OSError
        """
        view = memoryview(buffer)
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                raise OSError(
                    errno.EIO, 'the volume ends at %s bytes, before the size '
                    'that it had' % offset)
            view = view[count:]
            offset += count

    def write(self, offset, data):
        """Write a buffer; it is on the disk after a flush.

        :raises: OSError
        """
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view = view[count:]
            offset += count

    def zero(self, offset, length):
        """Write zeros; a file that has holes gets another one.

        :raises: OSError
        """
        if self._may_punch:
            try:
                space.punch(self._fd, offset, length)
                return
            except OSError as exc:
                if exc.errno not in space.UNSUPPORTED:
                    raise
                self._may_punch = False
        for content in zeros(length):
            self.write(offset, content)
            offset += len(content)

    def flush(self):
        """Bring all that was written to the disk.

        :raises: OSError
        """
        os.fdatasync(self._fd)

    def grow(self, size):
        """See that it has a size: who opened it may have truncated it.

        :raises: OSError
        """
        if self._is_file and os.fstat(self._fd).st_size < size:
            os.ftruncate(self._fd, size)


class _Export:
    """What qemu-nbd gives; see _File."""

    def __init__(self, connection):
        self.size = connection.size
        self.read = connection.read
        self.write = connection.write
        self.zero = connection.zero
        self.flush = connection.flush
        self._connection = connection

    def data(self, _unit):
        return self._connection.data()

    def grow(self, _size):
        """Nothing: it has the size of its image."""
