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

"""A qcow2 volume as a raw file-like object: a client of qemu-nbd.

It speaks the fixed newstyle of the NBD protocol, one request at a time.
"""

import contextlib
import errno
import io
import os
import struct

from cinder_lustre.brick import qemu_nbd
from cinder_lustre import exception

# How long one request may take (seconds): a flush writes what a whole chunk
# of a backup left in the host's page cache.
_IO_TIMEOUT = 300
# The largest request, and the unit in which zeros are found.
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)

_GREETING = struct.Struct('>8s8sH')
_OPTION = struct.Struct('>I8sIIIH')
_OPTION_REPLY = struct.Struct('>QIII')
_EXPORT = struct.Struct('>HQH')
_REQUEST = struct.Struct('>IHHQQI')
_REPLY = struct.Struct('>IIQ')
_MAGIC, _OPTION_MAGIC = b'NBDMAGIC', b'IHAVEOPT'
_OPTION_REPLY_MAGIC = 0x3e889045565a9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO = 7
_REP_ACK, _REP_INFO, _INFO_EXPORT = 1, 3, 0
_SEND_WRITE_ZEROES = 1 << 6
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 0, 1, 2, 3, 6


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
        size, flags = _negotiate(server.sock)
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
    return buffered(_Export(path, server, size, flags, read_only), _PIECE)


class _Export(io.RawIOBase):
    """The unbuffered file; it reads and writes all that it is asked to."""

    def __init__(self, path, server, size, flags, read_only):
        self.name = path
        self.size = size
        self._server = server
        self._sock = server.sock
        self._flags = flags
        self._read_only = read_only
        self._offset = 0
        self._requests = 0
        self._dirty = False
        self._broken = False

    def readable(self):
        return True

    def writable(self):
        return not self._read_only

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        offset += {os.SEEK_SET: 0, os.SEEK_CUR: self._offset,
                   os.SEEK_END: self.size}[whence]
        if offset < 0:
            raise self._error(errno.EINVAL)
        self._offset = offset
        return offset

    def readinto(self, buffer):
        view = memoryview(buffer).cast('B')
        view = view[:max(0, self.size - self._offset)]
        for piece in self._pieces(view):
            self._request(_READ, len(piece), into=piece)
            self._offset += len(piece)
        return len(view)

    def readall(self):
        return self.read(max(0, self.size - self._offset))

    def write(self, data):
        view = memoryview(data).cast('B')
        if self._offset + len(view) > self.size:
            raise self._error(errno.ENOSPC, 'it ends at %s bytes' % self.size)
        self._dirty = True
        for piece in self._pieces(view):
            if (self._flags & _SEND_WRITE_ZEROES and
                    bytes(piece) == _ZEROS[:len(piece)]):
                self._request(_WRITE_ZEROES, len(piece))
            else:
                self._request(_WRITE, len(piece), data=piece)
            self._offset += len(piece)
        return len(view)

    def flush(self):
        super().flush()
        if self._dirty:
            self._request(_FLUSH)
            self._dirty = False

    def close(self):
        if self.closed:
            return
        try:
            # This flushes, and leaves the file closed in any case.
            super().close()
        finally:
            self._disconnect()

    def _disconnect(self):
        if self._broken:
            self._server.stop(0)
            return
        # It ends without this as well, and has an exit code if it is gone.
        with contextlib.suppress(OSError):
            self._sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT,
                                             0, 0, 0))
        code = self._server.stop()
        if code is None:
            raise self._error(errno.ETIMEDOUT, 'qemu-nbd did not end within '
                              '%s seconds' % qemu_nbd.END_TIMEOUT)
        if code:
            raise self._error(errno.EIO, 'qemu-nbd ended with exit code %s: '
                              '%s' % (code, self._server.errors()))

    def _pieces(self, view):
        while view:
            length = _PIECE - self._offset % _PIECE
            yield view[:length]
            view = view[length:]

    def _request(self, command, length=0, data=b'', into=b''):
        if self._broken:
            raise self._error(errno.EIO, 'the connection to qemu-nbd was lost')
        self._requests += 1
        offset = 0 if command == _FLUSH else self._offset
        # Whatever interrupts a request leaves the connection out of step.
        self._broken = True
        try:
            self._sock.sendall(_REQUEST.pack(
                _REQUEST_MAGIC, 0, command, self._requests, offset, length))
            self._sock.sendall(data)
            magic, code, number = _receive(self._sock, _REPLY)
            if (magic, number) != (_REPLY_MAGIC, self._requests):
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
            if not code:
                _receive_into(self._sock, into)
        except TimeoutError:
            raise self._error(errno.ETIMEDOUT, 'qemu-nbd was silent for %s '
                              'seconds' % _IO_TIMEOUT) from None
        except OSError as exc:
            raise self._error(errno.EIO, 'qemu-nbd was lost: %s %s' % (
                exc, self._server.errors())) from exc
        self._broken = False
        if code:
            raise self._error(code)

    def _error(self, code, reason=None):
        return OSError(code, reason or os.strerror(code), self.name)


class _Flushed:
    """Makes flush reach the disk, as fsync would."""

    def flush(self):
        super().flush()
        self.raw.flush()


class _Random(_Flushed, io.BufferedRandom):
    pass


class _Reader(_Flushed, io.BufferedReader):
    pass


def _negotiate(sock):
    """Shake hands; return the size and the flags of the export."""
    if _receive(sock, _GREETING)[:2] != (_MAGIC, _OPTION_MAGIC):
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    # The export has no name, and no further information is wanted.
    sock.sendall(_OPTION.pack(_FIXED_NEWSTYLE | _NO_ZEROES, _OPTION_MAGIC,
                              _OPT_GO, 6, 0, 0))
    export = None
    while True:
        magic, _option, kind, length = _receive(sock, _OPTION_REPLY)
        content = bytearray(length)
        _receive_into(sock, content)
        if (magic != _OPTION_REPLY_MAGIC or
                kind not in (_REP_INFO, _REP_ACK)):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        if kind == _REP_ACK:
            return export
        if int.from_bytes(content[:2], 'big') == _INFO_EXPORT:
            export = _EXPORT.unpack(content)[1:]


def _receive(sock, layout):
    content = bytearray(layout.size)
    _receive_into(sock, content)
    return layout.unpack(content)


def _receive_into(sock, buffer):
    view = memoryview(buffer)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        view = view[count:]
