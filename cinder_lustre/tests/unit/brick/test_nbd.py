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
import glob
import io
import json
import os
import random
import signal
from unittest import mock

import ddt
from oslo_utils import units

from cinder_lustre.brick import nbd
from cinder_lustre.brick import nbd_client
from cinder_lustre import exception
from cinder_lustre.tests.unit.brick import base

SIZE = 4 * units.Mi + 512


class OpenImageTestCase(base.ImageTestCase):

    def setUp(self):
        super().setUp()
        self.image = self.create('volume', 'qcow2', SIZE)

    def open(self, path=None, **kwargs):
        stream = nbd.open_image(path or self.image, **kwargs)
        self.addCleanup(stream.close)
        return stream

    def kill(self, stream):
        """End qemu-nbd without warning."""
        os.killpg(stream.raw._server._proc.pid, signal.SIGKILL)
        self.assertEqual(b'', stream.raw._connection.sock.recv(1))

    def freeze(self, stream):
        """Stop qemu-nbd, as a share without an answer does."""
        group = stream.raw._server._proc.pid
        os.killpg(group, signal.SIGSTOP)
        self.wait_for(lambda: self.states(group) == {'T'},
                      'the stop of qemu-nbd')

    @staticmethod
    def states(group):
        """The states of the processes of a group."""
        states = set()
        for path in glob.glob('/proc/[0-9]*/stat'):
            try:
                with open(path) as stream:
                    fields = stream.read().rpartition(') ')[2].split()
            except OSError:
                # It has ended meanwhile.
                continue
            if int(fields[2]) == group:
                states.add(fields[0])
        return states


@ddt.ddt
class ContentsTestCase(OpenImageTestCase):

    @ddt.data(*range(4))
    def test_behaves_like_a_file(self, seed):
        chance = random.Random(seed)
        with self.open() as stream, open(self.path('peer'), 'w+b') as peer:
            peer.truncate(SIZE)
            for _ in range(60):
                offset = chance.randrange(SIZE)
                length = min(chance.choice((1, 511, 70000, 2 * units.Mi)),
                             SIZE - offset)
                data = chance.choice((bytes, chance.randbytes))(length)
                action = chance.randrange(3)
                for each in (stream, peer):
                    each.seek(offset)
                if action == 0:
                    self.assertEqual(peer.read(length), stream.read(length))
                elif action == 1:
                    self.assertEqual(length, peer.write(data))
                    self.assertEqual(length, stream.write(data))
                else:
                    stream.flush()
                self.assertEqual(peer.tell(), stream.tell())
            peer.seek(0)
            expected = peer.read()
            stream.seek(0)
            self.assertEqual(expected, stream.read())
        self.assertEqual(expected, self.contents(self.image))

    def test_reads_to_the_end(self):
        self.fill(self.image, base.noise(SIZE))
        with self.open() as stream:
            self.assertEqual(SIZE, stream.raw._connection.size)
            self.assertEqual(SIZE - 1, stream.seek(-1, os.SEEK_END))
            self.assertEqual(base.noise(SIZE)[-1:], stream.read(4096))
            self.assertEqual(b'', stream.read(4096))
            self.assertEqual(SIZE + 10, stream.seek(10, os.SEEK_CUR))
            self.assertEqual(b'', stream.read())

    def test_refuses_what_a_disk_cannot_do(self):
        stream = self.open()
        self.assertRaises(io.UnsupportedOperation, stream.fileno)
        self.assertRaises(io.UnsupportedOperation, stream.truncate, 0)
        self.assertRaises(OSError, stream.raw.seek, -1)
        stream.seek(SIZE - 1)
        error = self.assertRaises(OSError, stream.write,
                                  bytes(2 * units.Mi))
        self.assertEqual(errno.ENOSPC, error.errno)
        self.assertIn(str(SIZE), str(error))

    def test_writes_beyond_the_end_are_not_lost_silently(self):
        stream = self.open()
        stream.seek(SIZE)
        stream.write(b'x')
        self.assertRaises(OSError, stream.flush)
        self.assertRaises(OSError, stream.close)

    def _map(self):
        return json.loads(self.qemu_img('map', '-f', 'qcow2', '--output=json',
                                        self.image))

    def test_zeros_free_space(self):
        with self.open() as stream:
            stream.write(base.noise(3 * units.Mi))
            stream.flush()
            full = os.stat(self.image).st_blocks
            # Most of the space is where requests meet whole clusters.
            stream.seek(units.Mi - 4096)
            with mock.patch.object(stream.raw, '_connection',
                                   wraps=stream.raw._connection) as requests:
                requests.size = SIZE
                stream.write(bytes(4096 + units.Mi))
                stream.flush()
            self.assertEqual([mock.call.zero(units.Mi - 4096, 4096),
                              mock.call.zero(units.Mi, units.Mi),
                              mock.call.flush()], requests.mock_calls)
        self.assertLess(os.stat(self.image).st_blocks, full)
        data = [each for each in self._map() if each['data']]
        self.assertEqual([(0, units.Mi), (2 * units.Mi, units.Mi)],
                         [(each['start'], each['length']) for each in data])

    def test_zeros_keep_space_on_request(self):
        with self.open(discard=False) as stream:
            stream.write(base.noise(SIZE))
            stream.flush()
            full = os.stat(self.image).st_blocks
            stream.seek(0)
            stream.write(bytes(SIZE))
        self.assertGreaterEqual(os.stat(self.image).st_blocks, full)
        self.assertEqual(bytes(SIZE), self.contents(self.image))

    def test_zeros_are_sent_as_such_only_where_offered(self):
        with self.open() as stream, mock.patch.object(
                stream.raw._connection, '_flags', 0), mock.patch.object(
                stream.raw._connection, '_request',
                wraps=stream.raw._connection._request) as request:
            stream.write(base.noise(SIZE))
            stream.seek(0)
            stream.write(bytes(SIZE))
            stream.flush()
            self.assertNotIn(nbd_client._WRITE_ZEROES,
                             [call.args[0] for call in request.mock_calls])
        # qemu-nbd finds them then.
        self.assertFalse([each for each in self._map() if each['data']])
        self.assertEqual(bytes(SIZE), self.contents(self.image))

    def test_images_below(self):
        below = self.create('below', 'raw', SIZE)
        with open(below, 'r+b') as stream:
            stream.write(b'\xff' * SIZE)
        overlay = self.create('overlay', 'qcow2', SIZE, '-b', 'below',
                              '-F', 'raw')
        with self.open(overlay) as stream:
            self.assertEqual(b'\xff' * SIZE, stream.read(SIZE))
            stream.seek(100)
            stream.write(bytes(2 * units.Mi))
        expected = bytearray(b'\xff' * SIZE)
        expected[100:100 + 2 * units.Mi] = bytes(2 * units.Mi)
        self.assertEqual(expected, self.contents(overlay))
        self.assertEqual(b'\xff' * SIZE, self.contents(below, 'raw'))

    def test_read_only(self):
        self.fill(self.image, base.noise(SIZE))
        os.chmod(self.image, 0o440)
        with open(self.image, 'rb') as stream:
            before = stream.read()
        with self.open(read_only=True) as stream:
            self.assertFalse(stream.raw.writable())
            self.assertEqual(base.noise(SIZE), stream.read(SIZE))
            self.assertRaises(io.UnsupportedOperation, stream.write, b'x')
            # The server refuses as well.
            self.assertRaises(OSError, stream.raw.write, b'x')
        with open(self.image, 'rb') as stream:
            self.assertEqual(before, stream.read())

    def test_flush_reaches_the_image(self):
        stream = self.open()
        stream.write(base.noise(SIZE))
        stream.flush()
        # Nothing but the image's file knows of the data then.
        self.kill(stream)
        self.assertRaises(OSError, stream.close)
        self.assertEqual(base.noise(SIZE), self.contents(self.image))


# Names of tests from scripts would be too long.
@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class FailureTestCase(OpenImageTestCase):

    def test_image_in_use(self):
        with self.open():
            error = self.assertRaises(exception.VolumeBusy, nbd.open_image,
                                      self.image)
            self.assertIn(self.image, str(error))
            self.assertRaises(exception.VolumeBusy, nbd.open_image,
                              self.image, read_only=True)
        self.open()

    def test_missing_program(self):
        with mock.patch.dict(os.environ, PATH=self.directory):
            error = self.assertRaises(exception.CommandFailed,
                                      nbd.open_image, self.image)
        self.assertIn('qemu-utils', str(error))

    def test_missing_image(self):
        error = self.assertRaises(exception.CommandFailed, nbd.open_image,
                                  self.path('absent'))
        self.assertIn('No such file or directory', str(error))

    def test_contents_do_not_choose_the_format(self):
        raw = self.create('raw', 'raw', SIZE)
        error = self.assertRaises(exception.CommandFailed, nbd.open_image,
                                  raw)
        self.assertIn('not in qcow2 format', str(error))

    @ddt.data('exit 0', 'echo no >&2; exit 3',
              # A server that says something else.
              'exec python3 -c "import socket; '
              'socket.socket(fileno=3).accept()[0].send(b\'x\' * 64)"')
    def test_strange_program(self, script):
        self.program('qemu-nbd', script)
        self.assertRaises(exception.CommandFailed, nbd.open_image, self.image)

    def test_silence_while_opening(self):
        self.program('qemu-nbd', 'exec sleep 3600')
        with mock.patch('os.killpg', side_effect=os.killpg) as kill:
            self.assertRaises(exception.ShareUnavailable, nbd.open_image,
                              self.image, timeout=1)
        kill.assert_called_once_with(mock.ANY, signal.SIGKILL)

    def test_silence_later(self):
        with mock.patch.object(nbd, '_IO_TIMEOUT', 1):
            stream = self.open()
        self.assertEqual(1, stream.raw._connection.sock.gettimeout())
        stream.write(base.noise(units.Mi))
        self.freeze(stream)
        error = self.assertRaises(TimeoutError, stream.flush)
        self.assertEqual(errno.ETIMEDOUT, error.errno)
        # An answer that comes late is not taken for that of another request.
        error = self.assertRaises(OSError, stream.read, 1)
        self.assertEqual(errno.EIO, error.errno)
        self.assertRaises(OSError, stream.close)
        self.assertTrue(stream.closed)
        self.wait_for(lambda: stream.raw._server._proc.poll() is not None,
                      'the end of qemu-nbd')

    @ddt.data(True, False)
    def test_server_is_lost(self, dirty):
        stream = self.open()
        if dirty:
            stream.write(b'x')
        self.kill(stream)
        if dirty:
            # Data is lost.
            error = self.assertRaises(OSError, stream.close)
            self.assertEqual(errno.EIO, error.errno)
        else:
            error = self.assertRaises(OSError, stream.read, 1)
            self.assertEqual(errno.EIO, error.errno)
            stream.close()
        self.assertTrue(stream.closed)
        stream.close()

    def test_error_of_the_image(self):
        stream = self.open()
        # A table entry that points beyond all reason.
        with open(self.image, 'r+b') as image:
            image.seek(40)
            table = int.from_bytes(image.read(8), 'big')
            image.seek(table)
            image.write(b'\x80\xff\xff\xff\xff\xff\xfe\x00')
        stream.close()
        stream = self.open()
        error = self.assertRaises(OSError, stream.read, 1)
        self.assertEqual(errno.EIO, error.errno)
        # The connection goes on.
        self.assertEqual(0, stream.seek(0))
        self.assertRaises(OSError, stream.read, 1)
        self.assertFalse(stream.raw._connection.broken)

    def test_program_ends_badly(self):
        stream = self.open()
        with mock.patch.object(stream.raw._server, 'stop', return_value=1):
            error = self.assertRaises(OSError, stream.close)
        self.assertEqual(errno.EIO, error.errno)
        stream.raw._server.stop()

    def test_program_does_not_end(self):
        stream = self.open()
        with mock.patch.object(stream.raw._server, 'stop', return_value=None):
            self.assertRaises(TimeoutError, stream.close)
        stream.raw._server.stop()


class EventletTestCase(OpenImageTestCase):

    SCRIPT = """
import eventlet
eventlet.monkey_patch()
import os, signal, sys
from eventlet import tpool
from cinder_lustre.brick import nbd
from cinder_lustre.brick import nbd_client

data = bytes(range(256)) * 8192

def wake():
    os.killpg(group, signal.SIGCONT)

stream = nbd.open_image(sys.argv[1])
group = stream.raw._server._proc.pid
# As Cinder does its I/O, in a native thread.
proxy = tpool.Proxy(stream)
proxy.write(data)
proxy.flush()
# Directly: while qemu-nbd is silent, other greenthreads work.
os.killpg(group, signal.SIGSTOP)
eventlet.spawn(wake)
stream.seek(0)
assert stream.read(len(data)) == data
proxy.seek(0)
assert proxy.read(len(data)) == data
stream.write(data)
os.killpg(group, signal.SIGSTOP)
eventlet.spawn(wake)
stream.close()
print('done')
"""

    def test_native_and_green_threads(self):
        self.assertEqual('done\n', self.run_python(self.SCRIPT, self.image))
        data = bytes(range(256)) * 8192
        self.assertEqual(data * 2, self.contents(self.image)[:2 * len(data)])
