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

"""A client of the NBD protocol: what qemu-nbd is asked, and its answers.

It speaks the fixed newstyle with structured replies, one request at a time.
"""

import errno
import os
import socket
import struct
import threading

# The largest read or write.
PIECE = 1 << 20
# The range in which holes are looked for with one request.
_WINDOW = 1 << 30

_GREETING = struct.Struct('>8s8sH')
_OPTION = struct.Struct('>8sII')
_OPTION_REPLY = struct.Struct('>QIII')
_EXPORT = struct.Struct('>HQH')
_REQUEST = struct.Struct('>IHHQQI')
_REPLY = struct.Struct('>IIQ')
_LENGTH = struct.Struct('>I')
_OFFSET = struct.Struct('>Q')
_HOLE = struct.Struct('>QI')
_EXTENT = struct.Struct('>II')
_MAGIC, _OPTION_MAGIC = b'NBDMAGIC', b'IHAVEOPT'
_OPTION_REPLY_MAGIC = 0x3e889045565a9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_STRUCTURED_REPLY_MAGIC = 0x668e33ef
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _INFO_EXPORT = 1, 3, 4, 0
_SEND_WRITE_ZEROES = 1 << 6
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 0, 1, 2, 3, 6
_BLOCK_STATUS = 7
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_HOLE, _CHUNK_BLOCK_STATUS = 0, 1, 2, 5
_CHUNK_IS_LAST, _CHUNK_IS_ERROR = 1, 1 << 15
_CONTEXT = b'base:allocation'
_STATE_ZERO = 2


def negotiate(sock):
    """Shake hands.

    :param sock: a socket that is connected to a server with one export
    :returns: the size and the flags of the export
    :raises: OSError
    """
    if _receive(sock, _GREETING)[:2] != (_MAGIC, _OPTION_MAGIC):
        raise _protocol_error()
    sock.sendall(_LENGTH.pack(_FIXED_NEWSTYLE | _NO_ZEROES))
    _ask(sock, _OPT_STRUCTURED_REPLY)
    # The export has no name, and one context is asked for.
    if not _ask(sock, _OPT_SET_META_CONTEXT, bytes(4) + _LENGTH.pack(1) +
                _LENGTH.pack(len(_CONTEXT)) + _CONTEXT):
        raise _protocol_error()
    for content in _ask(sock, _OPT_GO, bytes(6)):
        if int.from_bytes(content[:2], 'big') == _INFO_EXPORT:
            return _EXPORT.unpack(content)[1:]
    raise _protocol_error()


def _ask(sock, option, content=b''):
    """Ask for an option; return what is said before it is acknowledged."""
    sock.sendall(_OPTION.pack(_OPTION_MAGIC, option, len(content)) + content)
    said = []
    while True:
        magic, _option, kind, length = _receive(sock, _OPTION_REPLY)
        if (magic != _OPTION_REPLY_MAGIC or
                kind not in (_REP_ACK, _REP_INFO, _REP_META_CONTEXT)):
            raise _protocol_error()
        said.append(bytearray(length))
        _receive_into(sock, said[-1])
        if kind == _REP_ACK:
            return said[:-1]


def inherited(fd, size, flags, name, timeout):
    """The connection that another process lends to this one.

    :param timeout: seconds that one request may take
    """
    sock = socket.socket(fileno=fd)
    sock.settimeout(timeout)
    return Connection(sock, size, flags, name)


class Connection:
    """An export; several threads may use it.

    :param sock: a connection whose hands have been shaken
    :param size: the size of the export in bytes
    :param flags: its flags
    :param name: how errors name it
    :param explain: gives what the server has said about an error
    """

    def __init__(self, sock, size, flags, name, explain=str):
        self.sock = sock
        self.size = size
        self.name = name
        # Whether requests and answers may be out of step.
        self.broken = False
        self._flags = flags
        self._explain = explain
        self._requests = 0
        self._lock = threading.Lock()

    def read(self, offset, buffer):
        """Fill a buffer.

        :raises: OSError
        """
        for start, piece in pieces(offset, memoryview(buffer)):
            self._request(_READ, start, len(piece), into=piece)

    def write(self, offset, data):
        """Write a buffer; it is on the disk after a flush.

        :raises: OSError
        """
        for start, piece in pieces(offset, memoryview(data)):
            self._request(_WRITE, start, len(piece), data=piece)

    def zero(self, offset, length):
        """Write zeros, and free the space if the server may do so.

        :raises: OSError
        """
        if self._flags & _SEND_WRITE_ZEROES:
            self._request(_WRITE_ZEROES, offset, length)
            return
        for start in range(offset, offset + length, PIECE):
            self.write(start, bytes(min(PIECE, offset + length - start)))

    def flush(self):
        """Bring all that was written to the disk.

        :raises: OSError
        """
        self._request(_FLUSH)

    def data(self):
        """Where something else than zeros may be.

        :yields: start and end of each such range, in order
        :raises: OSError
        """
        position = 0
        while position < self.size:
            extents = self._request(_BLOCK_STATUS, position,
                                    min(_WINDOW, self.size - position))
            if not extents:
                raise self.error(errno.EPROTO)
            for length, state in extents:
                if not state & _STATE_ZERO:
                    yield position, position + length
                position += length

    def disconnect(self):
        """Say that this is the end."""
        self.sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0,
                                        0))

    def _request(self, command, offset=0, length=0, data=b'', into=None):
        """Ask for something, and return the extents that the answer names."""
        with self._lock:
            if self.broken:
                raise self.error(errno.EIO,
                                 'the connection to qemu-nbd was lost')
            self._requests += 1
            # Whatever interrupts a request leaves the connection out of step.
            self.broken = True
            try:
                self.sock.sendall(_REQUEST.pack(
                    _REQUEST_MAGIC, 0, command, self._requests, offset,
                    length))
                self.sock.sendall(data)
                code, extents = self._answer(offset, into)
            except TimeoutError:
                raise self.error(
                    errno.ETIMEDOUT, 'qemu-nbd was silent for %s seconds' %
                    self.sock.gettimeout()) from None
            except (OSError, ValueError, struct.error) as exc:
                raise self.error(errno.EIO, 'qemu-nbd was lost: %s %s' % (
                    exc, self._explain())) from exc
            self.broken = False
        if code:
            raise self.error(code)
        return extents

    def _answer(self, offset, into):
        """Read one answer, which may come in several chunks.

        :param into: a buffer that it is to fill, or None
        :returns: an error code or 0, and the extents that were told
        """
        code, extents, last = 0, [], False
        missing = 0 if into is None else len(into)
        while not last:
            magic, detail, number = _receive(self.sock, _REPLY)
            if number != self._requests:
                raise _protocol_error()
            if magic == _REPLY_MAGIC:
                code = detail
                break
            if magic != _STRUCTURED_REPLY_MAGIC:
                raise _protocol_error()
            last = detail >> 16 & _CHUNK_IS_LAST
            kind = detail & 0xffff
            length, = _receive(self.sock, _LENGTH)
            if kind == _CHUNK_DATA and into is not None:
                start = _receive(self.sock, _OFFSET)[0] - offset
                end = start + length - _OFFSET.size
                if not 0 <= start <= end <= len(into):
                    raise _protocol_error()
                _receive_into(self.sock, into[start:end])
                missing -= end - start
                continue
            content = bytearray(length)
            _receive_into(self.sock, content)
            if kind & _CHUNK_IS_ERROR:
                code = _LENGTH.unpack_from(content)[0]
            elif kind == _CHUNK_HOLE and into is not None:
                start, length = _HOLE.unpack(content)
                into[start - offset:][:length] = bytes(length)
                missing -= length
            elif kind == _CHUNK_BLOCK_STATUS:
                # Of the only context, whose number comes first.
                extents += _EXTENT.iter_unpack(
                    memoryview(content)[_LENGTH.size:])
            elif kind != _CHUNK_NONE:
                raise _protocol_error()
        if missing and not code:
            raise _protocol_error()
        return code, extents

    def error(self, code, reason=None):
        """An OSError that names the export."""
        return OSError(code, reason or os.strerror(code), self.name)


def pieces(offset, view):
    """The parts of a buffer that are read or written at once.

    :yields: offset and part; they end where multiples of PIECE do
    """
    view = view.cast('B')
    while view:
        length = PIECE - offset % PIECE
        yield offset, view[:length]
        view = view[length:]
        offset += length


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


def _protocol_error():
    return OSError(errno.EPROTO, os.strerror(errno.EPROTO))
