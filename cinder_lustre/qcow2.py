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

"""What the header of a qcow2 file says, read without starting a program.

Its form is that of QEMU's docs/interop/qcow2. A file is read as qcow2 only
because a record says that it is; no other file is opened.
"""

import collections
import os
import struct

from cinder_lustre import exception

_MAGIC = b'QFI\xfb'
# Magic, version, offset and length of the name below, cluster bits, size.
_HEADER = struct.Struct('>4sIQIIQ')
# Of version 3: incompatible features, and the length of the header.
_INCOMPATIBLE = struct.Struct('>Q')
_INCOMPATIBLE_AT = 72
_LENGTH = struct.Struct('>I')
_LENGTH_AT = 100
# Where the header of version 2 ends, which does not say that.
_LENGTH_2 = 72
_DATA_FILE_FEATURE = 1 << 2
_EXTENSION = struct.Struct('>II')
_END, _BACKING_FORMAT, _DATA_FILE = 0, 0xe2792aca, 0x44415441
_CLUSTER_BITS = range(9, 22)

Header = collections.namedtuple('Header',
                                'size backing backing_fmt data_file')


def read_header(path):
    """Read a file that is in qcow2 format.

    :returns: its virtual ``size`` in bytes; ``backing``, the image below it,
              and ``backing_fmt``, the format of that, as it names them, or
              None; ``data_file``, the name of another file with its data,
              '' for one without a name, or None
    :raises: RecordError when it is not in that format, or damaged
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        start = os.pread(descriptor, _LENGTH_AT + _LENGTH.size, 0)
        magic, version, offset, length, bits, size = _HEADER.unpack_from(start)
        if (magic != _MAGIC or version not in (2, 3) or
                bits not in _CLUSTER_BITS):
            raise ValueError('it begins otherwise')
        # All of it lies in the first cluster.
        cluster = os.pread(descriptor, 1 << bits, 0)
        if offset + length > len(cluster):
            raise ValueError('it ends too early')
        features, end = 0, _LENGTH_2
        if version > 2:
            features, = _INCOMPATIBLE.unpack_from(cluster, _INCOMPATIBLE_AT)
            end, = _LENGTH.unpack_from(cluster, _LENGTH_AT)
        extensions = dict(_extensions(cluster[:offset or None], end))
        data_file = extensions.get(_DATA_FILE)
        if data_file is None and features & _DATA_FILE_FEATURE:
            data_file = b''
        return Header(size, *(
            None if name is None else os.fsdecode(name) for name in (
                cluster[offset:offset + length] or None,
                extensions.get(_BACKING_FORMAT), data_file)))
    except (ValueError, struct.error) as exc:
        raise exception.RecordError(
            volume=os.path.basename(path), reason='%s is not a whole qcow2 '
            'image (%s), as its record says. Restore it from a backup of the '
            'share.' % (path, exc)) from exc
    finally:
        os.close(descriptor)


def _extensions(area, start):
    """The kinds and contents of the extensions in a part of the header."""
    while start + _EXTENSION.size <= len(area):
        kind, length = _EXTENSION.unpack_from(area, start)
        if kind == _END:
            return
        start += _EXTENSION.size
        if start + length > len(area):
            raise ValueError('an extension is cut off')
        yield kind, area[start:start + length]
        # They are aligned to eight bytes.
        start += -(-length // 8) * 8
