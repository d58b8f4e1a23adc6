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


"""Encrypted volumes: raw files whose content is LUKS version 1."""

import errno
import json
import os
import subprocess

import ddt
import fixtures

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import layers
from cinder_lustre import qemu_img
from cinder_lustre.tests import share_directory
from cinder_lustre.tests.unit import storage
from cinder_lustre.tests.unit import test_chain

MIB = share_directory.MIB
SIZE = test_chain.SIZE
VOLUME, OTHER = test_chain.VOLUME, test_chain.OTHER
LUKS = {'cipher_alg': 'aes-256', 'cipher_mode': 'xts',
        'ivgen_alg': 'plain64', 'passphrase': '0123456789abcdef' * 4}
WRONG = 'f' * 64
HEADER = b'LUKS\xba\xbe\x00\x01'
_header = []
# What nobody may find on the share.
PLAIN = b'in clear ' * 10000


def _layer(size):
    return {'format': 'raw', 'size': size, 'parent': None, 'thick': False}


class EncryptedTestCase(storage.StorageTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(self.assert_nothing_in_clear)
        self.outside = self.useFixture(
            fixtures.TempDir(share_directory.in_memory())).path

    def assert_nothing_in_clear(self):
        for name in self.share.files():
            self.assertEqual(0, self.mode(name) & 0o007)
            with open(self.share.path(name), 'rb') as stream:
                content = stream.read()
            for secret in (PLAIN[:32], LUKS['passphrase'].encode()):
                self.assertNotIn(secret, content, name)

    def create(self, size=SIZE, volume=VOLUME, thick=False):
        return chain.create(self.root, volume, 'raw', size, thick, luks=LUKS)

    def format_once(self):
        """Let all headers of a process be one, for QEMU takes long to make it.

        A second header is of use only where the test is about headers.
        """
        if not _header:
            path = os.path.join(self.outside, 'header')
            layers.make_image(path, _layer(0), LUKS)
            with open(path, 'rb') as stream:
                _header.append(stream.read())

        def format_luks(path, **kwargs):
            self.assertEqual(LUKS, kwargs)
            with open(path, 'r+b') as stream:
                stream.write(_header[0])

        self.patch(qemu_img, 'format_luks', format_luks)

    def source(self, content=PLAIN, fmt='raw'):
        """An image with a content, outside the share."""
        path = os.path.join(self.outside, 'image')
        with open(path, 'wb') as stream:
            stream.write(content)
        if fmt == 'raw':
            return path
        target = '%s.%s' % (path, fmt)
        subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', fmt, path,
                        target], check=True)
        return target

    def load(self, content=PLAIN, fmt='raw', volume=VOLUME):
        return chain.load(self.root, volume, self.source(content, fmt), fmt,
                          luks=LUKS)

    def opened(self, path, passphrase=LUKS['passphrase']):
        """Decrypt an image, as QEMU does for Nova.

        :returns: what qemu-img says, and the content
        """
        flat = os.path.join(self.outside, 'flat')
        done = subprocess.run(
            ['qemu-img', 'convert', '-O', 'raw', '--object',
             'secret,id=key,data=%s' % passphrase, '--image-opts',
             'driver=luks,key-secret=key,file.filename=%s' % path, flat],
            stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return done.stderr, None
        with open(flat, 'rb') as stream:
            return done.stderr, stream.read()

    def assert_plain(self, expected, volume=VOLUME):
        """See what an encrypted volume begins with."""
        path = self.share.path('volume-' + volume)
        _stderr, content = self.opened(path)
        self.assert_same(expected, content[:len(expected)])

    def header(self, volume=VOLUME):
        with open(self.share.path('volume-' + volume), 'rb') as stream:
            return stream.read(8)


@ddt.ddt
class EncryptedChainTestCase(EncryptedTestCase):

    @ddt.data(False, True)
    def test_create(self, thick):
        described = self.create(thick=thick)
        self.assertEqual(('raw', SIZE, thick), (
            described['format'], described['size'], described['thick']))
        path = self.share.path('volume-' + VOLUME)
        # The header is a part of the size, and of version 1.
        self.assertEqual(SIZE, os.stat(path).st_size)
        self.assertEqual(HEADER, self.header())
        self.assertEqual(0o660, self.mode('volume-' + VOLUME))
        if thick:
            self.assertGreaterEqual(self.share.allocated('volume-' + VOLUME),
                                    SIZE)
        info = json.loads(subprocess.check_output(
            ['qemu-img', 'info', '-f', 'luks', '--output=json', path]))
        data = info['format-specific']['data']
        self.assertEqual(('aes-256', 'xts', 'plain64'), (
            data['cipher-alg'], data['cipher-mode'], data['ivgen-alg']))
        self.assertEqual(SIZE - data['payload-offset'], info['virtual-size'])

    def test_wrong_key(self):
        self.create()
        stderr, content = self.opened(self.share.path('volume-' + VOLUME),
                                      WRONG)
        self.assertIn('Invalid password', stderr)
        self.assertIsNone(content)

    def test_key_is_in_no_file_and_on_no_command_line(self):
        with self.fake_qemu_img(
                'echo "$@" >> {0}; ls -l /proc/self/fd >> {0}; '
                'exec "$REAL" "$@"'.format(
                    os.path.join(self.outside, 'seen'))):
            self.create()
            self.load()
        with open(os.path.join(self.outside, 'seen')) as stream:
            seen = stream.read()
        # QEMU may have had to try more than once.
        self.assertLessEqual(3, seen.count('--object'))
        self.assertIn('/memfd:secret (deleted)', seen)
        self.assertNotIn(LUKS['passphrase'], seen)
        self.assertEqual([], [name for name in os.listdir('/proc/self/fd')
                              if 'memfd' in self.link_of(name)])

    @staticmethod
    def link_of(name):
        try:
            return os.readlink('/proc/self/fd/' + name)
        except FileNotFoundError:
            return ''

    def test_cipher_that_qemu_does_not_know(self):
        error = self.assertRaises(
            exception.CommandFailed, chain.create, self.root, VOLUME, 'raw',
            SIZE, luks=dict(LUKS, cipher_alg='aes-512'))
        self.assertNotIn(LUKS['passphrase'], str(error))
        self.assertEqual([], self.share.files())

    @ddt.data('raw', 'qcow2', 'vmdk')
    def test_load(self, fmt):
        self.format_once()
        self.create()
        self.load(fmt=fmt)
        self.assert_plain(PLAIN)
        self.assertEqual(SIZE, os.stat(
            self.share.path('volume-' + VOLUME)).st_size)

    def test_load_zeros(self):
        """Where nothing is written, what is decrypted is noise."""
        self.format_once()
        self.create()
        self.load(PLAIN + bytes(MIB) + PLAIN)
        self.assert_plain(PLAIN + bytes(MIB) + PLAIN)

    def test_load_thick(self):
        self.format_once()
        self.create(thick=True)
        self.load()
        self.assert_plain(PLAIN)
        self.assertGreaterEqual(self.share.allocated('volume-' + VOLUME),
                                SIZE)

    def test_load_what_only_the_whole_volume_has_room_for(self):
        self.format_once()
        self.create()
        self.load()
        before = self.share.content(VOLUME)
        error = self.assertRaises(exception.SizeMismatch, self.load,
                                  bytes(SIZE))
        self.assertIn('Choose a larger volume.', str(error))
        self.assert_same(before, self.share.content(VOLUME))
        self.assertIsNone(self.share.record(VOLUME)['intent'])

    def test_load_what_is_encrypted_already(self):
        """As an image that was made of such a volume."""
        self.create(volume=OTHER)
        self.load(volume=OTHER)
        content = self.share.content(OTHER)
        self.create(2 * SIZE)
        chain.load(self.root, VOLUME, self.source(content), 'raw')
        self.assert_plain(PLAIN)
        self.assertEqual(2 * SIZE, len(self.share.content(VOLUME)))

    @ddt.data(False, True)
    def test_copy(self, thick):
        self.format_once()
        self.create()
        self.load()
        chain.copy(self.root, VOLUME, None, self.root, OTHER, 'raw',
                   SIZE + MIB, thick)
        self.assert_plain(PLAIN, OTHER)
        self.assert_same(self.share.content(VOLUME) + bytes(MIB),
                         self.share.content(OTHER))

    def test_extend(self):
        self.format_once()
        self.create()
        self.load()
        chain.extend(self.root, VOLUME, 2 * SIZE)
        self.assert_plain(PLAIN)
        _stderr, content = self.opened(self.share.path('volume-' + VOLUME))
        # The header has stayed as long as it was.
        self.assertEqual(2 * SIZE - len(_header[0]), len(content))

    def test_export(self):
        self.format_once()
        self.create()
        self.load()
        path = os.path.join(self.outside, 'exported')
        chain.export(self.root, VOLUME, None, path, 'raw')
        self.assert_same(PLAIN, self.opened(path)[1][:len(PLAIN)])

    def test_convert_to_thick(self):
        self.format_once()
        self.create()
        self.load()
        chain.convert(self.root, VOLUME, 'raw', True)
        self.assert_plain(PLAIN)

    @ddt.data((1, 'Unable to get accurate CPU usage', None),
              (99, 'Unable to get accurate CPU usage',
               exception.CommandFailed),
              (1, 'No space left on device', exception.NoSpace))
    @ddt.unpack
    def test_create_fails(self, times, reason, error):
        """Only what is no fault of the share is tried again."""
        # The path comes before the size; it goes with the failure.
        script = ('echo >> "$0.log"; if [ $(wc -l < "$0.log") -le %d ]; then '
                  'shift $(($# - 2)); rm "$1"; echo "qemu-img: %s" >&2; '
                  'exit 1; fi; exec "$REAL" "$@"' % (times, reason))
        with self.fake_qemu_img(script):
            if error is None:
                self.create()
                self.assertEqual(HEADER, self.header())
                self.assertEqual(SIZE, len(self.share.content(VOLUME)))
                self.assertEqual(0o660, self.mode('volume-' + VOLUME))
                return
            self.assertRaises(error, self.create)
        self.assertEqual([], self.share.files())

    def test_a_header_that_cannot_be_written_back(self):
        self.format_once()
        with self.failing_write_back('format_luks', errno.EIO):
            error = self.assertRaises(OSError, self.create)
        self.assertEqual(errno.EIO, error.errno)
        self.assertIn(self.root, str(error))
        self.assertEqual([], self.share.files())


class EncryptedQemuImgTestCase(EncryptedTestCase):

    def test_comma_in_a_path(self):
        path = self.share.path('a,b')
        layers.make_image(path, _layer(SIZE), LUKS)
        qemu_img.encrypt(self.source(), 'raw', path, LUKS['passphrase'])
        stderr, content = self.opened(path.replace(',', ',,'))
        self.assertEqual('', stderr)
        self.assert_same(PLAIN, content[:len(PLAIN)])
