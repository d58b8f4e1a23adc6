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

import os
import struct
import subprocess

import ddt

from cinder_lustre import exception
from cinder_lustre import qcow2
from cinder_lustre import qemu_img
from cinder_lustre.tests import share_directory
from cinder_lustre.tests.unit import storage

MIB = share_directory.MIB


@ddt.ddt
class Qcow2TestCase(storage.StorageTestCase):
    """The header is what qemu-img says of the same file."""

    def _create(self, *arguments):
        path = self.share.path('image')
        subprocess.run(['qemu-img', 'create', '-q', '-u', '-f', 'qcow2',
                        *arguments, path, str(3 * MIB)], check=True)
        return path

    def _change(self, path, offset, content):
        with open(path, 'r+b') as stream:
            stream.seek(offset)
            stream.write(content)

    @ddt.data(
        ('compat=1.1', None, None),
        ('compat=0.10', None, None),
        ('cluster_size=512', 'a', 'raw'),
        ('cluster_size=2M', 'a', 'qcow2'),
        ('compat=0.10', 'a', 'raw'),
        ('lazy_refcounts=on', 'a' * 1023, 'raw'),
        ('cluster_size=64k', 'b\xe9\udce9', 'raw'),
        ('compression_type=zstd', 'json:{"driver": "file"}', 'raw'),
    )
    @ddt.unpack
    def test_header(self, options, backing, backing_fmt):
        arguments = ['-o', options]
        if backing:
            arguments += ['-b', backing, '-F', backing_fmt]
        path = self._create(*arguments)
        self.assertEqual((3 * MIB, backing, backing_fmt, None),
                         qcow2.read_header(path))

    def test_backing_without_a_format(self):
        path = self._create('-b', 'a', '-F', 'raw')
        # As old releases of qemu-img wrote it.
        content = open(path, 'rb').read(4096)
        self._change(path, content.index(struct.pack('>II', 0xe2792aca, 3)),
                     struct.pack('>I', 0x12345678))
        self.assertEqual((3 * MIB, 'a', None, None), qcow2.read_header(path))

    def test_header_is_that_of_now(self):
        path = self._create('-b', 'a', '-F', 'raw')
        qemu_img.rebase(path, 'other', 'qcow2')
        self.assertEqual((3 * MIB, 'other', 'qcow2', None),
                         qcow2.read_header(path))
        subprocess.run(['qemu-img', 'rebase', '-q', '-u', '-f', 'qcow2',
                        '-b', '', path], check=True)
        self.assertEqual((3 * MIB, None, None, None), qcow2.read_header(path))
        qemu_img.resize(path, 'qcow2', 5 * MIB)
        self.assertEqual(5 * MIB, qcow2.read_header(path).size)

    @ddt.data('off', 'on')
    def test_data_file(self, raw):
        data = self.share.path('data')
        path = self._create('-o', 'data_file=%s,data_file_raw=%s' % (data,
                                                                     raw))
        self.assertEqual(data, qcow2.read_header(path).data_file)

    def test_data_file_without_a_name(self):
        path = self._create()
        # The third of the incompatible features.
        self._change(path, 72, struct.pack('>Q', 1 << 2))
        self.assertEqual('', qcow2.read_header(path).data_file)

    @ddt.data(
        (0, b'raw '),
        (4, struct.pack('>I', 1)),
        (4, struct.pack('>I', 4)),
        # Where the name of the image below is, and how long it is.
        (8, struct.pack('>Q', 1 << 40)),
        (8, struct.pack('>Q', 0xffffffffffffffff)),
        (16, struct.pack('>I', 0x7fffffff)),
        # The bits of a cluster.
        (20, struct.pack('>I', 8)),
        (20, struct.pack('>I', 63)),
        # The first extension.
        (116, struct.pack('>I', 0x7fffffff)),
    )
    @ddt.unpack
    def test_damage(self, offset, content):
        path = self._create('-b', 'a', '-F', 'raw')
        self._change(path, offset, content)
        error = self.assertRaises(exception.RecordError, qcow2.read_header,
                                  path)
        self.assertIn('%s is not a whole qcow2 image' % path, str(error))

    @ddt.data(0, 3, 71, 103)
    def test_cut_off(self, size):
        path = self._create()
        os.truncate(path, size)
        self.assertRaises(exception.RecordError, qcow2.read_header, path)

    def test_links_are_not_followed(self):
        path = self._create()
        link = self.share.path('link')
        os.symlink(path, link)
        self.assertRaises(OSError, qcow2.read_header, link)
