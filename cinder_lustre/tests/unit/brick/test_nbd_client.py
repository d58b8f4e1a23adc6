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

import errno
import os
import socket
import struct

import ddt
from oslo_utils import units
import testtools

from cinder_lustre.brick import nbd
from cinder_lustre.brick import nbd_client
from cinder_lustre.tests.unit.brick import base

SIZE = 4 * units.Mi + 512


def chunk(kind, content=b'', last=True, number=1):
    """One chunk of an answer."""
    return struct.pack('>IHHQI', nbd_client._STRUCTURED_REPLY_MAGIC, last,
                       kind, number, len(content)) + content


def data(offset, content, last=True):
    return chunk(nbd_client._CHUNK_DATA,
                 struct.pack('>Q', offset) + content, last)


def hole(offset, length, last=True):
    return chunk(nbd_client._CHUNK_HOLE, struct.pack('>QI', offset, length),
                 last)


def simple(code=0, number=1):
    return struct.pack('>IIQ', nbd_client._REPLY_MAGIC, code, number)


class PeerTestCase(testtools.TestCase):

    def peer(self, *replies):
        """A socket whose other end has said this, and no more."""
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            # Not its method, which does not keep eventlet's own class.
            self.addCleanup(lambda each: each.close(), each)
        theirs.sendall(b''.join(replies))
        theirs.shutdown(socket.SHUT_WR)
        return ours


@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class NegotiateTestCase(PeerTestCase):

    GREETING = nbd_client._GREETING.pack(nbd_client._MAGIC,
                                         nbd_client._OPTION_MAGIC, 3)
    ACK = (nbd_client._REP_ACK,)
    CONTEXT = (nbd_client._REP_META_CONTEXT, b'\0\0\0\1base:allocation')
    EXPORT = (nbd_client._REP_INFO,
              nbd_client._EXPORT.pack(nbd_client._INFO_EXPORT, SIZE, 77))

    def negotiate(self, *replies):
        return nbd_client.negotiate(self.peer(*(
            each if isinstance(each, bytes) else self.reply(*each)
            for each in replies)))

    @staticmethod
    def reply(kind, content=b'', magic=nbd_client._OPTION_REPLY_MAGIC):
        return nbd_client._OPTION_REPLY.pack(
            magic, nbd_client._OPT_GO, kind, len(content)) + content

    def test_information_that_was_not_asked_for(self):
        self.assertEqual((SIZE, 77), self.negotiate(
            self.GREETING, self.ACK, self.CONTEXT, self.ACK,
            (nbd_client._REP_INFO, b'\0\3' + bytes(12)), self.EXPORT,
            self.ACK))

    @ddt.data(
        (b'HTTP/1.1 400 Bad Request',),
        (GREETING,),
        (GREETING, (1 << 31 | 6,)),
        (GREETING, (nbd_client._REP_ACK, b'', 4711)),
        # No context, and no export.
        (GREETING, ACK, ACK, EXPORT, ACK),
        (GREETING, ACK, CONTEXT, ACK, ACK),
        (nbd_client._GREETING.pack(nbd_client._MAGIC, b'OLDSTYLE', 3), ACK,
         CONTEXT, ACK, EXPORT, ACK),
    )
    def test_other_servers(self, replies):
        self.assertRaises(OSError, self.negotiate, *replies)


@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class AnswerTestCase(PeerTestCase):

    def connection(self, *replies):
        return nbd_client.Connection(self.peer(*replies), SIZE, 0, 'volume')

    @ddt.data(
        (data(4, b'abcdefgh'),),
        (data(8, b'efgh', False), data(4, b'abcd')),
        (data(4, b'abcdefgh', False), chunk(nbd_client._CHUNK_NONE)))
    def test_data_in_any_order(self, replies):
        buffer = bytearray(8)
        self.connection(*replies).read(4, buffer)
        self.assertEqual(b'abcdefgh', buffer)

    def test_hole_between_data(self):
        buffer = bytearray(b'xxxxxxxx')
        self.connection(data(4, b'ab', False), data(10, b'cd', False),
                        hole(6, 4)).read(4, buffer)
        self.assertEqual(b'ab\0\0\0\0cd', buffer)

    @ddt.data(
        # Too little, somewhere else, too much.
        (data(4, b'abcdefg'),), (simple(),), (data(3, b'abcdefgh'),),
        (data(4, b'abcdefghi'),), (hole(4, 7),),
        # Another question's answer, and none at all.
        (simple(number=2),), (chunk(0, number=2),), (bytes(16),),
        (chunk(4711),), (data(4, b'abcd', False),),
        (chunk(nbd_client._CHUNK_HOLE, b'x'),))
    def test_answer_that_is_none(self, replies):
        connection = self.connection(*replies)
        error = self.assertRaises(OSError, connection.read, 4, bytearray(8))
        self.assertEqual((errno.EIO, 'volume'), (error.errno, error.filename))
        # Nothing is asked any more.
        self.assertRaises(OSError, connection.flush)
        self.assertTrue(connection.broken)

    @ddt.data(
        (simple(errno.ENOSPC),),
        (chunk(0x8001, struct.pack('>IH', errno.ENOSPC, 2) + b'no'),),
        (chunk(0x8002, struct.pack('>IHQ', errno.ENOSPC, 0, 5), False),
         chunk(nbd_client._CHUNK_NONE)))
    def test_errors_of_the_disk(self, replies):
        connection = self.connection(*replies)
        error = self.assertRaises(OSError, connection.write, 0, b'x')
        self.assertEqual(errno.ENOSPC, error.errno)
        self.assertFalse(connection.broken)

    def test_no_extents(self):
        connection = self.connection(chunk(
            nbd_client._CHUNK_BLOCK_STATUS, bytes(4)))
        self.assertRaises(OSError, list, connection.data())


class ExportTestCase(base.ImageTestCase):
    """With a real qemu-nbd."""

    def setUp(self):
        super().setUp()
        self.image = self.create('volume', 'qcow2', SIZE)
        self.stream = nbd.open_image(self.image)
        self.addCleanup(self.stream.close)
        self.connection = self.stream.raw._connection

    def test_data(self):
        self.assertEqual([], list(self.connection.data()))
        self.connection.write(units.Mi, b'x' * units.Mi)
        self.connection.write(SIZE - 512, b'x' * 512)
        self.assertEqual([(units.Mi, 2 * units.Mi), (4 * units.Mi, SIZE)],
                         list(self.connection.data()))
        self.connection.zero(units.Mi, units.Mi)
        self.assertEqual([(4 * units.Mi, SIZE)], list(self.connection.data()))

    def test_lent(self):
        content = base.noise(2 * units.Mi + 1)
        with self.stream.raw.lend() as terms:
            borrower = nbd_client.inherited(
                **dict(terms, fd=os.dup(terms['fd'])))
            borrower.write(5, content)
            borrower.flush()
            self.assertRaises(OSError, self.stream.read, 1)
        self.stream.seek(5)
        self.assertEqual(content, self.stream.read(len(content)))

    def test_lent_and_not_returned(self):
        def fail():
            with self.stream.raw.lend():
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assertRaises(OSError, self.stream.read, 1)
        self.assertRaises(OSError, self.stream.raw.lend().__enter__)
