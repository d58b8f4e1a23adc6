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

"""One object of a backup: its file, its compression and its checksum.

Objects are those of Cinder's chunked drivers: a piece of the volume,
compressed or not, whose MD5 is that of the piece itself. A piece of zeros
costs next to nothing: its object is a sparse file, or a compressed run of
zeros that is made once.
"""

import bz2
import errno
import functools
import hashlib
import os
import site
import zlib

from cinder_lustre.backup import disk
from cinder_lustre import exception
from cinder_lustre import worker

PART = '.part'
# How much of an object is in memory at once, where its format permits it.
_PIECE = 1 << 20
_MODE = 0o660
# What bz2 needs by itself, in bytes.
_BZ2 = 8 << 20
# What is tried before all of a piece is compressed: so many bytes out of each
# so many, which no usual size of blocks is a multiple or divisor of.
_SAMPLE = 4 << 10
_SAMPLE_STEP = 31 * _SAMPLE
# Of how many such parts something can be told.
_LEAST_SAMPLES = 8
# What a sample has to become smaller by, at least: one part of so many.
_LEAST_GAIN = 64

# What Cinder's backup_compression_algorithm may be, and what that means.
ALGORITHMS = {'none': None, 'off': None, 'no': None,
              'zlib': 'zlib', 'gzip': 'zlib',
              'bz2': 'bz2', 'bzip2': 'bz2',
              'zstd': 'zstd'}


@functools.lru_cache(maxsize=64)
def zero_md5(length):
    """The MD5 of so many zeros."""
    return _md5_of(disk.zeros(length))


@functools.lru_cache(maxsize=64)
def zero_run(algorithm, length):
    """So many zeros, compressed; None where compression gains nothing."""
    kind = ALGORITHMS[algorithm]
    if kind is None:
        return None
    if kind == 'zstd':
        return _compressed(kind, bytes(length))
    return _joined(kind, disk.zeros(length))


def md5_of(data):
    """The MD5 of a buffer."""
    return _md5_of((data,))


def _md5_of(pieces):
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def compress(algorithm, data):
    """Compress a piece, where that makes it smaller.

    :param algorithm: one of ALGORITHMS
    :returns: the algorithm that was used, as Cinder calls it, and the content
    :raises: LustreException when the host cannot compress so
    """
    kind = ALGORITHMS[algorithm]
    view = memoryview(data)
    if kind is None or not _seems_compressible(kind, view):
        return 'none', data
    content = _compressed(kind, view)
    return ('none', data) if len(content) >= len(data) else (algorithm,
                                                             content)


def _seems_compressible(kind, view):
    """Whether a sample becomes smaller; encrypted and media data do not."""
    if len(view) < _LEAST_SAMPLES * _SAMPLE_STEP:
        return True
    sample = b''.join(view[start:start + _SAMPLE]
                      for start in range(0, len(view), _SAMPLE_STEP))
    return (len(_compressed(kind, sample)) <
            len(sample) - len(sample) // _LEAST_GAIN)


def _compressed(kind, data):
    if kind == 'zstd':
        # The pieces are compressed beside each other: one thread for each.
        return _zstd().compress(bytes(data), 3, 1)
    return _joined(kind, (data[start:start + _PIECE]
                          for start in range(0, len(data), _PIECE)))


def _joined(kind, pieces):
    engine = {'zlib': zlib.compressobj, 'bz2': bz2.BZ2Compressor}[kind]()
    content = []
    for each in pieces:
        # All of them may take long.
        worker.progress(None)
        content.append(engine.compress(each))
    return b''.join((*content, engine.flush()))


@functools.cache
def _zstd():
    # The child that this runs in was started without installed packages.
    site.main()
    try:
        import zstd
    except ImportError:
        raise exception.LustreException(
            reason='This host cannot handle zstd. Install the Python package '
            'zstd, or choose another backup_compression_algorithm.') from None
    return zstd


def memory_to_write(algorithm, length):
    """How many bytes it may take to write an object.

    It is there as it was read and compressed, for zstd also as it is given to
    that; and what is freed is kept for the next one.
    """
    kind = ALGORITHMS[algorithm]
    return {'zstd': 6 * length, 'bz2': 3 * length + _BZ2}.get(kind, 3 * length)


def memory_to_read(algorithm, length):
    """How many bytes it may take to read an object."""
    return length * 4 if ALGORITHMS.get(algorithm) == 'zstd' else 4 * _PIECE


def write(path, pieces, length=None):
    """Write a file so that it is there as a whole or not at all.

    :param path: its name; an existing one is replaced
    :param pieces: buffers with its content
    :param length: its size in bytes, if more than the content
    """
    part = path + PART
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
    with open(fd, 'wb', buffering=0) as stream:
        # Whatever umask the service has.
        os.fchmod(fd, _MODE)
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[stream.write(view):]
        if length is not None:
            os.ftruncate(fd, length)
        os.fsync(fd)
    os.rename(part, path)


def read(path, algorithm, length, md5):
    """Read an object, and see that it is what was written.

    :param algorithm: what compressed it, as its metadata say
    :param length: bytes of the volume that it holds
    :param md5: their checksum
    :yields: the content piece by piece, and the number of bytes instead where
             all of it is zeros
    :raises: ObjectDamaged, also after pieces have been given
    """
    try:
        with open(path, 'rb') as stream:
            if _is_zero_object(stream, algorithm, length):
                if zero_md5(length) != md5:
                    raise _damaged(path, 'its checksum is another one')
                yield length
                return
            digest = hashlib.md5(usedforsecurity=False)
            left = length
            for piece in _decompressed(path, stream, algorithm):
                digest.update(piece)
                left -= len(piece)
                if left < 0:
                    break
                if piece:
                    yield piece
    except FileNotFoundError:
        raise _damaged(path, 'it is missing') from None
    if left:
        raise _damaged(path, 'it holds %s bytes than the %s that were '
                       'written' % ('less' if left > 0 else 'more', length))
    if digest.hexdigest() != md5:
        raise _damaged(path, 'its checksum is another one')


def _is_zero_object(stream, algorithm, length):
    size = os.fstat(stream.fileno()).st_size
    if ALGORITHMS.get(algorithm) is None:
        return size == length and _is_hole(stream.fileno())
    # Only a short file can be a compressed run of zeros.
    run = size < length and size <= _PIECE and zero_run(algorithm, length)
    if not run or size != len(run):
        return False
    content = stream.read()
    stream.seek(0)
    return content == run


def _is_hole(fd):
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as exc:
        # Some file systems cannot tell.
        if exc.errno not in (errno.ENXIO, errno.EINVAL):
            raise
        return exc.errno == errno.ENXIO
    os.lseek(fd, 0, os.SEEK_SET)
    return False


def _decompressed(path, stream, algorithm):
    """The content of an object, piece by piece where its format permits."""
    try:
        kind = ALGORITHMS[algorithm]
    except KeyError:
        raise _damaged(path, 'nothing here decompresses "%s"'
                       % algorithm) from None
    try:
        if kind == 'zstd':
            content = memoryview(_zstd().decompress(stream.read()))
            for start in range(0, len(content), _PIECE):
                yield content[start:start + _PIECE]
            return
        engine = {'zlib': zlib.decompressobj, 'bz2': bz2.BZ2Decompressor,
                  None: _Plain}[kind]()
        # A compressed piece can become a thousand times as long.
        while piece := stream.read(_PIECE >> (4 if kind else 0)):
            yield engine.decompress(piece)
        if not engine.eof:
            raise _damaged(path, 'its end is missing')
        if engine.unused_data:
            raise _damaged(path, 'something follows its end')
    except (exception.LustreException, MemoryError):
        raise
    # A damaged file raises zlib.error, OSError without a number (bz2) or
    # zstd.Error, which has no name when the module is not there.
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise _damaged(path, 'it cannot be decompressed (%s)' % exc) from exc


class _Plain:
    """Takes what is not compressed as it is."""

    eof = True
    unused_data = b''

    @staticmethod
    def decompress(data):
        return data


def _damaged(path, reason):
    return exception.ObjectDamaged(path=path, reason=reason)
