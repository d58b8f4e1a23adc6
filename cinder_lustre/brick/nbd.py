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

"""A qcow2 volume as a raw file-like object, whose disk qemu-nbd gives."""

import contextlib
import errno
import io
import os

from cinder_lustre.brick import nbd_client
from cinder_lustre.brick import qemu_nbd
from cinder_lustre import exception

# How long one request may take (seconds): a flush writes what a whole chunk
# of a backup left in the host's page cache.
_IO_TIMEOUT = 300
# The unit in which zeros are found.
_PIECE = nbd_client.PIECE
_ZEROS = bytes(_PIECE)


def open_image(path, read_only=False, timeout=60, discard=True):
    """Open a qcow2 image, with the images below it, as a raw file.

    :param path: absolute path of the image
    :param timeout: seconds that opening it may take
    :param discard: give back the space of what is overwritten with zeros
    :returns: a buffered file-like object without a file descriptor
    :raises: VolumeBusy when QEMU has the image open elsewhere, CommandFailed,
             ShareUnavailable
    """
    server = qemu_nbd.Server(path, read_only, discard)
    try:
        server.sock.settimeout(timeout)
        size, flags = nbd_client.negotiate(server.sock)
    except TimeoutError:
        server.stop(0)
        raise exception.ShareUnavailable(
            share=os.path.dirname(path), reason='qemu-nbd did not open %s '
            'within %s seconds.' % (path, timeout)) from None
    except OSError:
        code = server.stop()
        if 'Is another process using the image' in server.errors():
            raise exception.VolumeBusy(
                volume=path, holder='a guest or a QEMU tool') from None
        raise exception.CommandFailed(
            command=' '.join(server.command), exit_code=code,
            stderr=server.errors()) from None
    except BaseException:
        server.stop(0)
        raise
    server.sock.settimeout(_IO_TIMEOUT)
    buffered = _Reader if read_only else _Random
    return buffered(Export(path, server, size, flags, read_only), _PIECE)


class Export(io.RawIOBase):
    """The unbuffered file; it reads and writes all that it is asked to."""

    def __init__(self, path, server, size, flags, read_only):
        self.name = path
        self._server = server
        self._connection = nbd_client.Connection(server.sock, size, flags,
                                                 path, server.errors)
        self._flags = flags
        self._read_only = read_only
        self._offset = 0
        self._dirty = False

    def readable(self):
        return True

    def writable(self):
        return not self._read_only

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        offset += {os.SEEK_SET: 0, os.SEEK_CUR: self._offset,
                   os.SEEK_END: self._connection.size}[whence]
        if offset < 0:
            raise self._connection.error(errno.EINVAL)
        self._offset = offset
        return offset

    def readinto(self, buffer):
        view = memoryview(buffer).cast('B')
        view = view[:max(0, self._connection.size - self._offset)]
        self._connection.read(self._offset, view)
        self._offset += len(view)
        return len(view)

    def readall(self):
        return self.read(max(0, self._connection.size - self._offset))

    def write(self, data):
        view = memoryview(data).cast('B')
        if self._offset + len(view) > self._connection.size:
            raise self._connection.error(
                errno.ENOSPC, 'it ends at %s bytes' % self._connection.size)
        self._dirty = True
        for offset, piece in nbd_client.pieces(self._offset, view):
            if bytes(piece) == _ZEROS[:len(piece)]:
                self._connection.zero(offset, len(piece))
            else:
                self._connection.write(offset, piece)
        self._offset += len(view)
        return len(view)

    def flush(self):
        super().flush()
        if self._dirty:
            self._connection.flush()
            self._dirty = False

    @contextlib.contextmanager
    def lend(self):
        """Let a child use the connection while the body runs.

        :yields: what :func:`nbd_client.inherited` takes there
        :raises: OSError
        """
        connection = self._connection
        if connection.broken:
            raise connection.error(errno.EIO)
        # A body that fails may leave a request without its answer.
        connection.broken = True
        yield {'fd': connection.sock.fileno(), 'size': connection.size,
               'flags': self._flags, 'name': self.name,
               'timeout': connection.sock.gettimeout()}
        connection.broken = False

    def close(self):
        if self.closed:
            return
        try:
            # This flushes, and leaves the file closed in any case.
            super().close()
        finally:
            self._disconnect()

    def _disconnect(self):
        if self._connection.broken:
            self._server.stop(0)
            return
        # It ends without this as well, and has an exit code if it is gone.
        with contextlib.suppress(OSError):
            self._connection.disconnect()
        code = self._server.stop()
        if code is None:
            raise self._connection.error(
                errno.ETIMEDOUT, 'qemu-nbd did not end within %s seconds'
                % qemu_nbd.END_TIMEOUT)
        if code:
            raise self._connection.error(
                errno.EIO, 'qemu-nbd ended with exit code %s: %s'
                % (code, self._server.errors()))


class _Flushed:
    """Makes flush reach the disk, as fsync would."""

    def flush(self):
        super().flush()
        self.raw.flush()


class _Random(_Flushed, io.BufferedRandom):
    pass


class _Reader(_Flushed, io.BufferedReader):
    pass
