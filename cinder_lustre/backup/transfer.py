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
import threading

from cinder_lustre.backup import disk
from cinder_lustre.backup import piece
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre import worker

# Bytes that are in memory at once, at most.
_IN_MEMORY = 512 << 20
# How many objects are worked on at once, or one for each core if these are
# more: each waits for the disk while another one is compressed.
_AT_ONCE = 16
# How finely holes are looked for, and how many pieces there may be.
_UNIT = 1 << 20
_MAX_UNITS = 1 << 16
# What may be written to a volume before it goes to the disk (bytes).
_FLUSH_INTERVAL = 256 << 20
# A file has a limited number of them, and some file systems permit only one.
# Lustre keeps the files of two projects apart (EXDEV).
_NO_MORE_NAMES = (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV)
_HASH_LINE = re.compile(r'\s*"([0-9a-f]{64})",?\s*')
_SIZE_LINE = re.compile(r'\s*"chunk_size": (\d+),?\s*')
_thread = threading.local()
METADATA = '_metadata'
HASHES = '_sha256file'


def is_writable(path):
    """Whether this user can make files in a directory."""
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True)


def make_container(root, container, may_create):
    """Make the directory of a backup, unless it is there.

    :param root: the directory of all containers
    :param may_create: whether one that is missing may be made
    :returns: its path
    :raises: ContainerMissing, OSError
    """
    path = os.path.join(root, container)
    while not os.path.isdir(path):
        if not may_create:
            raise exception.ContainerMissing(path=path)
        # The end of another backup may remove a directory before the next
        # one is made in it.
        with contextlib.suppress(FileNotFoundError):
            _make_directories(root, container)
    return path


def _make_directories(root, container):
    path = root
    for name in container.split('/'):
        parent, path = path, os.path.join(path, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            # Whatever umask the service has.
            os.chmod(path, 0o770)
            record.sync_directory(parent)


def store(volume, root, container, prefix, header, algorithm, object_size,
          parent=None, may_create=True):
    """Copy a volume into objects; only its metadata are not written.

    :param volume: the terms of the volume's disk, see :func:`disk.open_disk`
    :param root: the directory of all containers
    :param container: that of the backup
    :param prefix: what the names of its objects begin with
    :param header: what the file of hashes begins with; its ``chunk_size`` is
                   the number of bytes of each hash
    :param algorithm: how to compress
    :param object_size: bytes of the volume in one object, at most
    :param parent: the path of the hashes of the backup to build on
    :param may_create: whether a container may be made
    :returns: the objects as in Cinder's metadata
    :raises: ParentUnusable, ContainerMissing, OSError
    """
    source = disk.open_disk(**volume)
    size = source.size
    block = header['chunk_size']
    path = os.path.join(root, container, prefix)
    store_piece = functools.partial(_store_piece, source, path, algorithm,
                                    block, itertools.count(1), {})
    hashes = parent and _parent_hashes(parent, block)
    pieces = ((piece.memory_to_write(algorithm, length) if has_data else 0,
               (offset, length, has_data,
                hashes and _take(hashes, -(-length // block))))
              for offset, length, has_data in _extents(source, object_size))
    objects = []
    with _writing(_open_first(root, container, path + HASHES, may_create),
                  path + HASHES, header) as add_hashes:
        for done, digests, entries in _beside_each_other(
                store_piece, pieces,
                piece.memory_to_write(algorithm, object_size)):
            add_hashes(digests)
            objects += entries
            worker.progress([done, size])
    record.sync_directory(os.path.dirname(path))
    return objects


def _open_first(root, container, path, may_create):
    """Open a container's first file, with which it cannot go any more."""
    while True:
        make_container(root, container, may_create)
        with contextlib.suppress(FileNotFoundError):
            return open(path + piece.PART, 'w', encoding='utf-8')


def _extents(source, object_size):
    """Pieces of a disk: offset, length, and whether it has data there."""
    unit = _UNIT
    while source.size // unit > _MAX_UNITS:
        unit *= 2
    for start, end, has_data in _runs(source.data(unit), source.size, unit):
        while start < end:
            length = min(end - start, object_size)
            yield start, length, has_data
            start += length


def _runs(data, size, unit):
    """Data and holes by turns; they begin at multiples of a unit.

    :param data: start and end of each range of data, in order
    :yields: start, end, and whether it has data there
    """
    start = end = 0
    for first, last in data:
        first = first // unit * unit
        if first > end:
            if end > start:
                yield start, end, True
            yield end, first, False
            start = first
        end = min(size, -(-last // unit) * unit)
    if end > start:
        yield start, end, True
    if size > end:
        yield end, size, False


def _take(hashes, count):
    return list(itertools.islice(hashes, count))


def _beside_each_other(func, items, kept):
    """Call a function for each item, several at once; results in order.

    :param items: pairs of the bytes that a call may take, and its arguments
    :param kept: bytes that each thread may keep
    """
    threads = max(1, min(max(_AT_ONCE, len(os.sched_getaffinity(0))),
                         _IN_MEMORY // kept))
    calls = collections.deque()
    in_memory = 0
    with futures.ThreadPoolExecutor(threads) as executor:
        try:
            for size, arguments in items:
                while calls and (len(calls) > threads or
                                 in_memory + size > _IN_MEMORY):
                    in_memory -= calls[0][0]
                    yield calls.popleft()[1].result()
                calls.append((size, executor.submit(func, *arguments)))
                in_memory += size
            while calls:
                yield calls.popleft()[1].result()
        finally:
            for _size, call in calls:
                call.cancel()


def _store_piece(source, path, algorithm, block, numbers, zeros, offset,
                 length, has_data, before):
    """Write what differs from the parent in one piece of the volume.

    :param zeros: the last object of zeros, by its length
    :param before: its hashes in the parent, or None
    :returns: where it ends, its hashes now, and the objects that were written
    """
    data = None
    if has_data:
        data = _buffer(length)
        source.read(offset, data)
        if disk.is_zero(data):
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
            _store_object(name, algorithm, data and data[start:end],
                          end - start, zeros),
            offset=offset + start, length=end - start)})
    return offset + length, digests, entries


def _buffer(length):
    """Memory of this thread, the same again: new pages take longer."""
    if len(getattr(_thread, 'buffer', b'')) < length:
        _thread.buffer = bytearray(length)
    return memoryview(_thread.buffer)[:length]


def _digests(data, length, block):
    if data is None:
        yield from itertools.repeat(_zero_hash(block), length // block)
        if length % block:
            yield _zero_hash(length % block)
        return
    for start in range(0, length, block):
        yield hashlib.sha256(data[start:start + block]).hexdigest()


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


def _store_object(name, algorithm, data, length, zeros):
    if data is None:
        run = piece.zero_run(algorithm, length)
        if not _linked(zeros.get(length), name):
            piece.write(name, [run] if run else [], None if run else length)
            zeros[length] = name
        return {'compression': algorithm if run else 'none',
                'md5': piece.zero_md5(length)}
    used, content = piece.compress(algorithm, data)
    piece.write(name, [content])
    return {'compression': used, 'md5': piece.md5_of(data)}


def _linked(existing, name):
    """Give a file one more name, if there is one and it may have more.

    That needs neither space nor an fsync of the file.
    """
    if existing is None:
        return False
    try:
        os.link(existing, name)
    except OSError as exc:
        if exc.errno not in _NO_MORE_NAMES:
            raise
        return False
    return True


@contextlib.contextmanager
def _writing(stream, path, header):
    """Write a file of hashes, however many there are.

    :param stream: that of the part of the file

    :yields: a function that takes the next hashes
    """
    with stream:
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
    os.rename(stream.name, path)


def _parent_hashes(path, block):
    """The hashes of a backup, one by one, as Cinder's drivers write them.

    :raises: ParentUnusable
    """
    try:
        stream = open(path, encoding='utf-8', errors='replace')
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


def check(container, prefix, size, is_full, read=False):
    """Look whether all objects of a backup are there, and fit.

    :param size: bytes of the volume that they are to be restored to
    :param is_full: whether they have to cover the volume by themselves
    :param read: whether to read them, and to compare their checksums
    :returns: the metadata without the list of objects
    :raises: ObjectDamaged, SizeMismatch, OSError
    """
    metadata = _metadata(container, prefix)
    there = set(os.listdir(container))
    end = 0
    for entry in metadata['objects']:
        (name, found), = entry.items()
        if name not in there:
            raise exception.ObjectDamaged(
                path=os.path.join(container, name), reason='it is missing')
        if is_full and found['offset'] != end:
            raise exception.ObjectDamaged(
                path=os.path.join(container, prefix + METADATA),
                reason='no object has what begins at byte %s' % end)
        end = found['offset'] + found['length']
        if end > size:
            raise exception.SizeMismatch(
                path='the backup', actual=end, expected=size,
                reason='restore it to a larger one.')
        if read:
            for _content in _contents(container, entry):
                worker.progress(None)
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

    :param volume: the terms of the volume's disk, see :func:`disk.open_disk`
    :param size: the volume's size in bytes
    :param is_new: whether the volume is known to have zeros only
    :raises: ObjectDamaged, OSError
    """
    target = disk.open_disk(**volume)
    entries = _metadata(container, prefix)['objects']
    unflushed = 0
    for done, written in _beside_each_other(
            functools.partial(_restore_object, target, container, is_new),
            ((piece.memory_to_read(found['compression'], found['length']),
              (entry,)) for entry in entries for found in entry.values()),
            _UNIT):
        unflushed += written
        if unflushed > _FLUSH_INTERVAL:
            unflushed = 0
            target.flush()
        worker.progress([done, size])
    target.grow(size)
    target.flush()


def _restore_object(target, container, is_new, entry):
    """Write an object to its place.

    :returns: where it ends, and how many bytes were written
    """
    position = next(iter(entry.values()))['offset']
    written = 0
    for content in _contents(container, entry):
        is_zeros = isinstance(content, int) or disk.is_zero(content)
        length = content if isinstance(content, int) else len(content)
        if not is_zeros:
            target.write(position, content)
            written += length
        elif not is_new:
            target.zero(position, length)
        position += length
        worker.progress(None)
    return position, written


def _contents(container, entry):
    (name, found), = entry.items()
    return piece.read(os.path.join(container, name), found['compression'],
                      found['length'], found['md5'])


def write(content, path):
    """Write a file so that it is there as a whole or not at all.

    :param content: the descriptor of an unnamed file in this process
    :raises: OSError
    """
    with open(content, 'rb', buffering=0) as stream:
        stream.seek(0)
        piece.write(path, iter(lambda: stream.read(_UNIT), b''))
    record.sync_directory(os.path.dirname(path))


def remove(root, container, prefix, with_container=True):
    """Remove a backup's objects, and its container if nothing is left in it.

    :param root: the directory of all containers
    :param prefix: what their names begin with; None if there are none
    :param with_container: whether to remove directories at all
    :returns: the number of files
    """
    directory = os.path.join(root, container)
    try:
        names = [name for name in os.listdir(directory)
                 if prefix and name.startswith(prefix)]
    except FileNotFoundError:
        names = []
    for number, name in enumerate(names):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
        worker.progress([number, len(names)])
    # Also those above it, which Cinder makes from the backup's id.
    while with_container and container:
        try:
            os.rmdir(os.path.join(root, container))
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
            break
        container = os.path.dirname(container)
    return len(names)
