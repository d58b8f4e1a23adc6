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

"""Files that stand for raw volumes, and what is in them."""

from concurrent import futures
import errno
import hashlib
import os
import time
import zlib

from oslo_utils import units

_EXTENT = units.Mi
_ZEROS = bytes(_EXTENT)
_PAGE = 4096
# As the driver's objects are, and so many for each core.
_PIECE = 32 * units.Mi
_PIECES_PER_CORE = 4
_MAX_SAMPLE = units.Gi

# One extent of so many has data.
FILLS = {'empty': 0, 'tenth': 10, 'full': 1}
DATA = ('random', 'half')


def create(path, size, fill='empty', data='random'):
    """Make a volume.

    :param size: in bytes
    :param fill: one of FILLS
    :param data: one of DATA; of "half", a half of each page is zeros
    :returns: the bytes of data
    """
    with open(path, 'wb') as stream:
        stream.truncate(size)
        step = FILLS[fill] * _EXTENT
        offsets = range(0, size, step) if step else ()
        for offset in offsets:
            stream.seek(offset)
            stream.write(_extent(data))
    return len(offsets) * _EXTENT


def _extent(data):
    if data == 'random':
        return os.urandom(_EXTENT)
    half = _PAGE // 2
    noise = os.urandom(_EXTENT // 2)
    return b''.join(noise[start:start + half] + bytes(half)
                    for start in range(0, len(noise), half))


def fill_with_ones(path, size):
    """Make a volume without holes, where each bit is set."""
    with open(path, 'wb') as stream:
        for _ in range(0, size, _EXTENT):
            stream.write(b'\xff' * _EXTENT)


def _data(path):
    """The extents of a volume that are not zeros, with their offsets."""
    with open(path, 'rb', buffering=0) as stream:
        offset = 0
        while (offset := _next_data(stream.fileno(), offset)) is not None:
            content = os.pread(stream.fileno(), _EXTENT, offset)
            if content != _ZEROS[:len(content)]:
                yield offset, content
            offset += _EXTENT


def _next_data(fd, offset):
    """The first extent from an offset on that may have data."""
    try:
        return max(offset, os.lseek(fd, offset, os.SEEK_DATA)
                   // _EXTENT * _EXTENT)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return None


def fingerprint(path):
    """A checksum of a volume's size and data, however its zeros are kept."""
    digest = hashlib.sha256(b'%d' % os.path.getsize(path))
    for offset, content in _data(path):
        digest.update(b'%d' % offset)
        digest.update(content)
    return digest.hexdigest()


def compression_speed(path):
    """Bytes of a volume's data that all cores compress in a second.

    With zlib, from memory to memory.
    """
    cores = len(os.sched_getaffinity(0))
    sample = bytearray()
    limit = min(_MAX_SAMPLE, _PIECES_PER_CORE * cores * _PIECE)
    for _offset, content in _data(path):
        sample += content
        if len(sample) >= limit:
            break
    pieces = [memoryview(sample)[start:start + _PIECE]
              for start in range(0, len(sample), _PIECE)]
    started = time.monotonic()
    with futures.ThreadPoolExecutor(cores) as executor:
        list(executor.map(zlib.compress, pieces))
    return len(sample) / (time.monotonic() - started)
