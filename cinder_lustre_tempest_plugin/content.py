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


"""What the tests write to volumes, and how they find it again."""

import functools
import hashlib
import io
import os
import struct

MIB = 1 << 20
GIB = 1 << 30
ZEROS = bytes(4 * MIB)


class Content:
    """Random data at the beginning of a volume; zeros follow.

    :param size: in MiB
    """

    def __init__(self, size):
        self.data = os.urandom(size * MIB)

    def changed(self, part):
        """The same data, without their last quarter and with a new one.

        :param part: the number of the quarter that is new, below 3
        """
        quarter = len(self.data) // 4
        copy = Content(0)
        copy.data = b''.join((
            self.data[:part * quarter], os.urandom(quarter),
            self.data[(part + 1) * quarter:3 * quarter]))
        return copy

    def stream(self):
        return io.BytesIO(self.data)

    @functools.lru_cache(maxsize=16)
    def digest(self, algorithm, size):
        """The checksum of a whole volume.

        :param size: of the volume in GiB
        """
        digest = hashlib.new(algorithm, self.data)
        left = size * GIB - len(self.data)
        while left:
            digest.update(ZEROS[:left])
            left -= min(left, len(ZEROS))
        return digest.hexdigest()


def digest_of(stream, algorithm):
    """The checksum of what can be read, and its length."""
    digest, length = hashlib.new(algorithm), 0
    while chunk := stream.read(len(ZEROS)):
        digest.update(chunk)
        length += len(chunk)
    return digest.hexdigest(), length


def qcow2(size, backing='', data_file=''):
    """An image of format qcow2 without data, also one that is not allowed.

    :param size: the virtual size in bytes
    :param backing: a backing file that it names
    :param data_file: a data file that it names, in which its data would be
    """
    cluster = 1 << 16
    # One entry of the first table is for 512 MiB.
    entries = -(-size >> 29)
    strings, extensions = b'', b''
    if data_file:
        name = data_file.encode()
        extensions += struct.pack('>II', 0x44415441, len(name)) + name
        extensions += bytes(-len(name) % 8)
    extensions += bytes(8)
    header_length = 104
    if backing:
        strings = backing.encode()
    offset = header_length + len(extensions) if backing else 0
    header = struct.pack(
        '>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, offset, len(strings), 16,
        size, 0, entries, 3 * cluster, cluster, 1, 0, 0,
        # An incompatible feature: the data are in another file.
        4 if data_file else 0, 0, 0, 4, header_length)
    table = struct.pack('>Q', 2 * cluster)
    counts = struct.pack('>4H', 1, 1, 1, 1)
    return b''.join(part.ljust(cluster, b'\0') for part in (
        header + extensions + strings, table, counts, b''))
