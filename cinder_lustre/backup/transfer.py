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

"""Copies a volume into the objects of a backup, and back, in a child.

Objects, metadata and hashes are in Cinder's own format, so that its posix
driver restores what is written here, and the other way round.
"""

import collections
from concurrent import futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import stat

from cinder_lustre.backup import piece
from cinder_lustre import exception
from cinder_lustre import space
from cinder_lustre import worker

# Bytes of the volume that are in memory at once, at most; their compressed
# form and what is read ahead come on top.
_IN_MEMORY = 256 << 20
# How finely holes are looked for, and how many pieces there may be.
_UNIT = 1 << 20
_MAX_UNITS = 1 << 16
# What may be written to a volume before it goes to the disk (bytes).
_FLUSH_INTERVAL = 256 << 20
_HASH_LINE = re.compile(r'\s*"([0-9a-f]{64})",?\s*')
_SIZE_LINE = re.compile(r'\s*"chunk_size": (\d+),?\s*')
METADATA = '_metadata'
HASHES = '_sha256file'


def is_writable(path):
    """Whether this user can make files in a directory."""
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True)


def make_container(path, may_create):
    """Make the directory of a backup, unless it is there.

    :param may_create: whether one that is missing may be made
    :raises: ContainerMissing, OSError
    """
    while not os.path.isdir(path):
        if not may_create:
            raise exception.ContainerMissing(path=path)
        try:
            os.makedirs(path, exist_ok=True)
            # Whatever umask the service has.
            os.chmod(path, 0o770)
        except FileNotFoundError:
            # The end of another backup has just removed the directory above.
            continue


def store(volume, container, prefix, header, algorithm, object_size,
          parent=None):
    """Copy a volume into objects; only its metadata are not written.

    :param volume: the descriptor of the volume's file in this process
    :param container: the directory of the backup
    :param prefix: what the names of its objects begin with
    :param header: what the file of hashes begins with; its ``chunk_size`` is
                   the number of bytes of each hash
    :param algorithm: how to compress
    :param object_size: bytes of the volume in one object, at most
    :param parent: the path of the hashes of the backup to build on
    :returns: the objects as in Cinder's metadata
    :raises: ParentUnusable, OSError
    """
    size = os.lseek(volume, 0, os.SEEK_END)
    block = header['chunk_size']
    store_piece = functools.partial(
        _store_piece, volume, os.path.join(container, prefix), algorithm,
        block, itertools.count(1))
    hashes = parent and _parent_hashes(parent, block)
    pieces = ((*extent, hashes and _take(hashes, -(-extent[1] // block)))
              for extent in _extents(volume, size, object_size))
    objects = []
    with _writing(os.path.join(container, prefix + HASHES),
                  header) as add_hashes:
        for digests, entries in _beside_each_other(
                store_piece, pieces, _IN_MEMORY // object_size):
            add_hashes(digests)
            objects += entries
            done = objects and sum(next(iter(objects[-1].values()))[key]
                                   for key in ('offset', 'length'))
            worker.progress([done or 0, size])
    return objects


def _extents(fd, size, object_size):
    """Pieces of a file: offset, length, and whether it has data there."""
    unit = _UNIT
    while size // unit > _MAX_UNITS:
        unit *= 2
    for start, end, has_data in _runs(fd, size, unit):
        while start < end:
            length = min(end - start, object_size)
            yield start, length, has_data
            start += length


def _runs(fd, size, unit):
    """Data and holes of a file by turns; they begin at multiples of a unit."""
    position = 0
    while position < size:
        data = max(position, _seek(fd, position, os.SEEK_DATA, size) // unit
                   * unit)
        if data > position:
            yield position, data, False
        end = data
        # A hole that does not reach the next unit is read with the data.
        while (start := _seek(fd, end, os.SEEK_DATA, size)) < end + unit:
            end = min(size, -(-_seek(fd, start, os.SEEK_HOLE, size) // unit)
                      * unit)
            if end == size:
                break
        if end > data:
            yield data, end, True
        position = end


def _seek(fd, position, whence, size):
    try:
        return min(size, os.lseek(fd, position, whence))
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return size
        if exc.errno == errno.EINVAL:
            # All of it is data where the file system cannot tell.
            return position if whence == os.SEEK_DATA else size
        raise


def _take(hashes, count):
    return list(itertools.islice(hashes, count))


def _beside_each_other(func, items, limit):
    """Call a function for each item, several at once; results in order."""
    threads = max(1, min(len(os.sched_getaffinity(0)), limit))
    calls = collections.deque()
    with futures.ThreadPoolExecutor(threads) as executor:
        try:
            for item in items:
                calls.append(executor.submit(func, *item))
                if len(calls) > threads:
                    yield calls.popleft().result()
            while calls:
                yield calls.popleft().result()
        finally:
            for call in calls:
                call.cancel()


def _store_piece(fd, path, algorithm, block, numbers, offset, length,
                 has_data, before):
    """Write what differs from the parent in one piece of the volume.

    :param before: its hashes in the parent, or None
    :returns: its hashes now, and the objects that were written
    """
    data = _read(fd, offset, length) if has_data else None
    if data is not None and piece.is_zero(data):
        data = None
    digests = list(_digests(data, length, block))
    if before is None:
        changes = [(0, length)]
    else:
        changes = _changes(digests, before, block, length)
    entries = []
    for start, end in changes:
        number = next(numbers)
        name = '%s-%05d' % (path, number)
        entries.append({os.path.basename(name): dict(
            _store_object(name, algorithm,
                          data and memoryview(data)[start:end], end - start),
            offset=offset + start, length=end - start)})
    return digests, entries


def _read(fd, offset, length):
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise OSError(errno.EIO, 'the volume ends at %s bytes, before the '
                          'size that it had' % offset)
        view = view[count:]
        offset += count
    return data


def _digests(data, length, block):
    if data is None:
        yield from itertools.repeat(_zero_hash(block), length // block)
        if length % block:
            yield _zero_hash(length % block)
        return
    view = memoryview(data)
    for start in range(0, length, block):
        yield hashlib.sha256(view[start:start + block]).hexdigest()


@functools.lru_cache
def _zero_hash(length):
    return hashlib.sha256(bytes(length)).hexdigest()


def _changes(digests, before, block, length):
    """The runs of blocks that differ, as start and end in bytes."""
    if len(before) != len(digests):
        raise exception.ParentUnusable(
            reason='its file of hashes is shorter than the volume. Take a '
            'full backup.')
    changed = (old != new for old, new in zip(before, digests))
    position = 0
    for differs, run in itertools.groupby(changed):
        end = min(length, position + block * len(list(run)))
        if differs:
            yield position, end
        position = end


def _store_object(name, algorithm, data, length):
    if data is None:
        run = piece.zero_run(algorithm, length)
        piece.write(name, [run] if run else [], None if run else length)
        return {'compression': algorithm if run else 'none',
                'md5': piece.zero_md5(length)}
    used, content = piece.compress(algorithm, data)
    piece.write(name, [content])
    return {'compression': used, 'md5': piece.md5_of(data)}


@contextlib.contextmanager
def _writing(path, header):
    """Write a file of hashes, however many there are.

    :yields: a function that takes the next hashes
    """
    part = path + piece.PART
    with open(part, 'w', encoding='utf-8') as stream:
        os.fchmod(stream.fileno(), 0o660)
        # What ends an object of JSON is written after the hashes.
        stream.write(json.dumps(header, indent=2)[:-2])
        stream.write(',\n  "sha256s": [')
        separator = '\n'

        def add(digests):
            nonlocal separator
            for digest in digests:
                stream.write('%s    "%s"' % (separator, digest))
                separator = ',\n'

        yield add
        stream.write('\n  ]\n}')
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(part, path)


def _parent_hashes(path, block):
    """The hashes of a backup, one by one, as Cinder's drivers write them.

    :raises: ParentUnusable
    """
    try:
        stream = open(path, encoding='utf-8')
    except FileNotFoundError:
        raise exception.ParentUnusable(
            reason='%s is missing. Take a full backup.' % path) from None
    with stream:
        for line in stream:
            found = _SIZE_LINE.fullmatch(line)
            if found and int(found[1]) != block:
                raise exception.ParentUnusable(
                    reason='its hashes are those of blocks of %s bytes, but '
                    'backup_sha_block_size_bytes is %s. Take a full backup.'
                    % (found[1], block))
            found = _HASH_LINE.fullmatch(line)
            if found:
                yield found[1]


def check(container, prefix):
    """Look whether all objects of a backup are there.

    :returns: the metadata without the list of objects
    :raises: ObjectDamaged
    """
    metadata = _metadata(container, prefix)
    there = set(os.listdir(container))
    for entry in metadata['objects']:
        for name in entry.keys() - there:
            raise exception.ObjectDamaged(
                path=os.path.join(container, name), reason='it is missing')
    return {key: metadata.get(key) for key in ('version', 'volume_meta')}


def _metadata(container, prefix):
    path = os.path.join(container, prefix + METADATA)
    try:
        with open(path, encoding='utf-8') as stream:
            return json.load(stream)
    except FileNotFoundError:
        reason = 'it is missing'
    except ValueError as exc:
        reason = 'it is no JSON (%s)' % exc
    raise exception.ObjectDamaged(path=path, reason=reason)


def restore(volume, container, prefix, size, is_new):
    """Copy the objects of one backup into a volume.

    :param volume: the descriptor of the volume's file in this process
    :param size: the volume's size in bytes
    :param is_new: whether the volume is known to have zeros only
    :raises: ObjectDamaged, SizeMismatch, OSError
    """
    target = _Target(volume, size, is_new)
    for done in _beside_each_other(
            functools.partial(_restore_object, target, container),
            ((entry,) for entry in _metadata(container, prefix)['objects']),
            _IN_MEMORY // _UNIT):
        target.flush(_FLUSH_INTERVAL)
        worker.progress([done, size])
    target.finish()


def _restore_object(target, container, entry):
    (name, found), = entry.items()
    position = found['offset']
    for content in piece.read(os.path.join(container, name),
                              found['compression'], found['length'],
                              found['md5']):
        position = target.put(position, content)
    return position


class _Target:
    """The volume that a backup is restored to.

    :param is_new: whether it is known to have zeros only
    """

    def __init__(self, fd, size, is_new):
        self._fd = fd
        self._size = size
        self._is_new = is_new
        info = os.fstat(fd)
        # Holes would take away the space of a thick volume.
        self._may_punch = (stat.S_ISREG(info.st_mode) and
                           info.st_blocks * 512 < info.st_size)
        self._unflushed = 0

    def put(self, position, content):
        """Write at a position.

        :param content: a buffer, or a number of zeros
        :returns: the position behind it
        :raises: SizeMismatch, OSError
        """
        if not isinstance(content, int) and piece.is_zero(content):
            content = len(content)
        zeros = isinstance(content, int)
        end = position + (content if zeros else len(content))
        if end > self._size:
            raise exception.SizeMismatch(
                path='the backup', actual=end, expected=self._size,
                reason='restore it to a larger one.')
        if zeros:
            self._clear(position, end)
        else:
            self._write(position, content)
        return end

    def _write(self, position, content):
        view = memoryview(content)
        self._unflushed += len(view)
        while view:
            count = os.pwrite(self._fd, view, position)
            view = view[count:]
            position += count

    def _clear(self, position, end):
        if self._is_new:
            return
        if self._may_punch:
            try:
                space.punch(self._fd, position, end - position)
                return
            except OSError as exc:
                if exc.errno not in space.UNSUPPORTED:
                    raise
                self._may_punch = False
        for content in piece.zeros(end - position):
            self._write(position, content)
            position += len(content)

    def flush(self, limit=0):
        """Bring what was written to the disk, once it is a lot."""
        if self._unflushed > limit:
            self._unflushed = 0
            os.fdatasync(self._fd)

    def finish(self):
        """End the volume where it should, and bring it to the disk."""
        # Whoever opened it may have truncated it.
        if (stat.S_ISREG(os.fstat(self._fd).st_mode) and
                os.fstat(self._fd).st_size < self._size):
            os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)


def remove(path, container, prefix):
    """Remove a backup's objects, and its container if nothing is left in it.

    :param path: the directory of all containers
    :returns: the number of files
    """
    directory = os.path.join(path, container)
    try:
        names = [name for name in os.listdir(directory)
                 if name.startswith(prefix)]
    except FileNotFoundError:
        names = []
    for number, name in enumerate(names):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
        worker.progress([number, len(names)])
    # Also those above it, which Cinder makes from the backup's id.
    while container:
        try:
            os.rmdir(os.path.join(path, container))
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
            break
        container = os.path.dirname(container)
    return len(names)
