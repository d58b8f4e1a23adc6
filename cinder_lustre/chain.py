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

"""The operations on a volume's files, each under the volume's fence.

They run in a worker child, take and return JSON values, and leave a volume
readable wherever they are killed: the intent is written first, new files are
made before the record switches to them, and old ones are removed last. The
next operation on the volume finishes or undoes what was left.
"""

import contextlib
import ctypes
import errno
import logging
import os
import stat

from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

_ZEROS = bytes(4 << 20)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)


def create(root, volume, fmt, size, thick=False):
    """Create an empty volume.

    :param root: the mounted share's directory
    :param volume: the volume's name_id
    :param fmt: raw or qcow2
    :param size: bytes
    :param thick: allocate the space now
    :returns: the description of the volume, see :func:`describe`
    :raises: FileExists, NoSpace, CommandFailed
    """
    with _new(root, volume, fmt, size, thick) as (rec, temporary):
        _make_image(temporary, rec.top)
    return _description(rec)


def copy(root, volume, snapshot, target_root, target, fmt, size,
         thick=False):
    """Make a volume from another one or from one of its snapshots.

    :param snapshot: the snapshot to read, or None for the volume itself
    :param target_root: the directory of the new volume's share
    :param target: the new volume's name_id
    :param size: bytes, not less than the source has
    :returns: the description of the new volume
    :raises: SizeMismatch, SnapshotNotFound, and what create() raises
    """
    with _opened(root, volume) as source:
        name = _source_name(source, snapshot)
        layer = source.layers[name]
        if layer['size'] > size:
            raise exception.SizeMismatch(
                path=source.path(name), actual=layer['size'], expected=size,
                reason='a copy cannot be smaller than its source.')
        with _new(target_root, target, fmt, size, thick) as (rec, temporary):
            _make_image(temporary, rec.top)
            qemu_img.convert(source.path(name), layer['format'], temporary,
                             fmt, empty_target=True)
            _sync(temporary)
    return _description(rec)


def export(root, volume, snapshot, path, fmt):
    """Write a volume, or a snapshot of it, into a file as one flat image.

    :param path: a file outside the share
    :param fmt: any format that qemu-img can write
    """
    with _opened(root, volume) as rec:
        name = _source_name(rec, snapshot)
        qemu_img.convert(rec.path(name), rec.layers[name]['format'], path,
                         fmt)


def prepare_load(root, volume):
    """Make an empty file in the share that becomes the volume's content.

    :returns: its path; fill it in the volume's format, then call
              :func:`finish_load` or :func:`cancel_load`
    :raises: RecordError when the volume has snapshots
    """
    with _opened(root, volume) as rec:
        if rec.top['parent'] is not None:
            raise exception.RecordError(
                volume=volume, reason='it has snapshots, which new content '
                'would damage. Delete them first.')
        rec.begin('load')
        path = _temporary(rec)
        record.remove_file(path)
        os.close(_create_file(path))
        return path


def finish_load(root, volume):
    """Let the loaded file replace the volume's content.

    :returns: the description of the volume
    :raises: SizeMismatch when the content is larger than the volume
    """
    with record.fence(root, volume):
        rec = record.load(root, volume)
        if not rec.intent or rec.intent['operation'] != 'load':
            raise exception.RecordError(
                volume=volume, reason='another operation has put an end to '
                'the loading of new content. Repeat the whole of it.')
        path = _temporary(rec)
        top = rec.top
        actual = _checked_size(path, dict(top, parent=None))
        if actual > top['size']:
            raise exception.SizeMismatch(
                path=path, actual=actual, expected=top['size'],
                reason='use a larger volume for this content.')
        _grow(path, top, top['size'])
        _sync(path)
        os.rename(path, rec.path(rec.active))
        record.sync_directory(root)
        rec.finish()
        return _description(rec)


def cancel_load(root, volume):
    """Drop a file that was to be loaded; the volume keeps its content."""
    with _opened(root, volume):
        # Opening the volume has undone the unfinished load.
        pass


def delete(root, volume):
    """Delete a volume with all its files; what is gone already is no error.

    :raises: RecordError while files of other volumes lie above its own
    """
    with record.fence(root, volume, create=True):
        if not record.exists(root, volume):
            path = os.path.join(root, record.base_name(volume))
            if os.path.lexists(path):
                raise exception.RecordError(
                    volume=volume, reason='%s has no record, so it was left '
                    'alone. Move it away, or restore its record.' % path)
            LOG.info('Volume %s is not on this share any more.', volume)
            record.remove(root, volume)
            return
        # No intent: repeating a deletion finishes it, and a full share must
        # not prevent one.
        rec = record.load(root, volume)
        names = [rec.active, *rec.layers]
        if rec.intent and 'file' in rec.intent:
            names.append(rec.intent['file'])
        for name, layer in rec.layers.items():
            foreign = set(layer['children']).difference(names)
            if foreign:
                raise exception.RecordError(
                    volume=volume, reason='%s lies below %s of another '
                    'volume. Delete that volume first.' % (
                        name, ', '.join(sorted(foreign))))
        record.remove_file(_temporary(rec))
        for name in names:
            record.remove_file(rec.path(name))
        record.remove(root, volume)
        record.sync_directory(root)


def describe(root, volume):
    """Say which file a host has to open.

    :returns: ``active`` (file name), ``format``, ``size`` (bytes), ``thick``
              and ``snapshots`` (a list of ids)
    :raises: SizeMismatch when the file's virtual size is larger than the
             record's, which a guest may have brought about
    """
    with _opened(root, volume, mergeable=False) as rec:
        path = rec.path(rec.active)
        actual = _checked_chain(rec, rec.active)
        if actual < rec.top['size']:
            LOG.warning('Growing %(path)s from %(actual)s to %(size)s bytes.',
                        {'path': path, 'actual': actual,
                         'size': rec.top['size']})
            _grow(path, rec.top, rec.top['size'])
        return _description(rec)


def extend(root, volume, size):
    """Grow a volume.

    :param size: the new size in bytes
    :returns: the description of the volume
    :raises: SizeMismatch when it is smaller than the volume
    """
    with _opened(root, volume) as rec:
        path = rec.path(rec.active)
        if size < rec.top['size']:
            raise exception.SizeMismatch(
                path=path, actual=rec.top['size'], expected=size,
                reason='a volume cannot shrink.')
        _checked_chain(rec, rec.active)
        rec.begin('extend', size=size)
        with _undone_on_error(rec):
            _grow(path, rec.top, size)
        _sync(path)
        rec.top['size'] = size
        rec.finish()
        return _description(rec)


def create_snapshot(root, volume, snapshot):
    """Freeze a volume's content under the id of a snapshot.

    The active file becomes a layer that nothing writes to any more; a new
    qcow2 overlay on top of it becomes active.

    :returns: the description of the volume
    """
    with _opened(root, volume) as rec:
        name = '%s.%s' % (record.base_name(volume), snapshot)
        path = rec.path(name)
        if os.path.lexists(path):
            raise exception.FileExists(path=path)
        _checked_chain(rec, rec.active)
        lower = rec.top
        # A child is recorded before its overlay exists.
        lower['children'].append(name)
        rec.begin('snapshot', file=name, lower=rec.active)
        with _undone_on_error(rec):
            _make_overlay(path, lower['size'], rec, rec.active)
            record.sync_directory(root)
        rec.add_layer(name, 'qcow2', lower['size'], parent=rec.active,
                      thick=lower['thick'])
        rec.active = rec.snapshots[snapshot] = name
        rec.finish()
        return _description(rec)


def delete_snapshot(root, volume, snapshot):
    """Forget a snapshot, and merge the two layers that it kept apart.

    :returns: the description of the volume
    """
    with _opened(root, volume) as rec:
        if snapshot not in rec.snapshots:
            LOG.info('Snapshot %(snapshot)s of volume %(volume)s is not on '
                     'this share any more.',
                     {'snapshot': snapshot, 'volume': volume})
            return _description(rec)
        name = rec.snapshots[snapshot]
        lower = rec.layers[name]['parent']
        above = rec.layers[name]['children']
        if (rec.layers[lower]['children'] != [name] or len(above) > 1 or
                not set(above) <= set(rec.layers)):
            LOG.info('%(lower)s stays below %(name)s, as other files share '
                     'them.', {'lower': lower, 'name': name})
            del rec.snapshots[snapshot]
            rec.save()
            return _description(rec)
        _checked_chain(rec, above[0] if above else name)
        rec.begin('merge', snapshot=snapshot, file=name, lower=lower)
        _merge(rec)
        return _description(rec)


def revert(root, volume, snapshot):
    """Give a volume the content of its latest snapshot; it keeps its size.

    :returns: the description of the volume
    :raises: RecordError when a later snapshot would be lost
    """
    with _opened(root, volume) as rec:
        lower = rec.of_snapshot(snapshot)
        if rec.snapshots[snapshot] != rec.active:
            raise exception.RecordError(
                volume=volume, reason='snapshot %s is not the latest one. '
                'Delete the later ones first.' % snapshot)
        _checked_chain(rec, lower)
        rec.begin('revert')
        temporary = _temporary(rec)
        with _undone_on_error(rec):
            record.remove_file(temporary)
            _make_overlay(temporary, rec.top['size'], rec, lower)
        os.rename(temporary, rec.path(rec.active))
        record.sync_directory(root)
        rec.finish()
        return _description(rec)


@contextlib.contextmanager
def _new(root, volume, fmt, size, thick):
    """A new volume's record and temporary file, which becomes its base.

    Nothing stays behind when the body fails.
    """
    rec = record.Record(root, volume, record.base_name(volume), {})
    rec.add_layer(rec.active, fmt, size, thick=thick)
    with record.fence(root, volume, create=True):
        if record.exists(root, volume):
            # Left by a creation that was killed; anything else is kept.
            old = record.load(root, volume)
            if not (old.intent and old.intent['operation'] == 'create'):
                raise exception.FileExists(path=old.path(old.active))
            _forget(rec)
        path = rec.path(rec.active)
        if os.path.lexists(path):
            raise exception.FileExists(path=path)
        rec.begin('create')
        try:
            yield rec, _temporary(rec)
            os.rename(_temporary(rec), path)
            record.sync_directory(root)
            rec.finish()
        except BaseException:
            _forget(rec)
            raise


def _forget(rec):
    """Remove all that an unfinished creation has made."""
    record.remove_file(_temporary(rec))
    record.remove_file(rec.path(rec.active))
    record.remove(rec.root, rec.volume)


@contextlib.contextmanager
def _opened(root, volume, mergeable=True):
    """An existing volume's record, after recovery, under its fence.

    :param mergeable: whether an unfinished merge must be finished; without
                      space for that, or while a guest has the volume open,
                      the volume itself can still be read
    """
    with record.fence(root, volume):
        rec = record.load(root, volume)
        if rec.intent:
            LOG.warning('Recovering volume %(volume)s from the interrupted '
                        'operation %(intent)s.',
                        {'volume': volume, 'intent': rec.intent})
            try:
                _recover(rec)
            except (exception.NoSpace, exception.CommandFailed) as exc:
                if mergeable or rec.intent['operation'] != 'merge':
                    raise
                LOG.warning('Going on with volume %(volume)s as it is: '
                            '%(error)s', {'volume': volume, 'error': exc})
        yield rec


@contextlib.contextmanager
def _undone_on_error(rec):
    """Undo the operation that the record has begun when the body fails."""
    try:
        yield
    except Exception:
        _recover(rec)
        raise


def _recover(rec):
    """Undo an unfinished operation, or finish it where that is safer."""
    intent = rec.intent
    operation = intent['operation']
    if operation == 'create':
        raise exception.RecordError(
            volume=rec.volume, reason='its creation was interrupted. Delete '
            'the volume and create it again.')
    if operation in ('load', 'revert'):
        record.remove_file(_temporary(rec))
    elif operation == 'extend':
        _set_size(rec.path(rec.active), rec.top)
    elif operation == 'snapshot':
        rec.layers[intent['lower']]['children'].remove(intent['file'])
        record.remove_file(rec.path(intent['file']))
    elif operation == 'merge':
        return _merge(rec)
    elif operation == 'remove':
        record.remove_file(rec.path(intent['file']))
    else:
        raise exception.RecordError(
            volume=rec.volume, reason='its operation "%s" is unknown to this '
            'release. Upgrade cinder-lustre on this host.' % operation)
    rec.finish()


def _merge(rec):
    """Write a layer into the one below it; every step can be repeated."""
    name, lower = rec.intent['file'], rec.intent['lower']
    layer, below = rec.layers[name], rec.layers[lower]
    qemu_img.commit(rec.path(name))
    if below['thick']:
        _grow(rec.path(lower), below, layer['size'])
    _sync(rec.path(lower))
    for child in layer['children']:
        qemu_img.rebase(rec.path(child), lower, below['format'])
        _sync(rec.path(child))
        rec.layers[child]['parent'] = lower
    below['children'] = layer['children']
    below['size'] = layer['size']
    del rec.layers[name]
    del rec.snapshots[rec.intent['snapshot']]
    if rec.active == name:
        rec.active = lower
    rec.begin('remove', file=name)
    record.remove_file(rec.path(name))
    rec.finish()


def _description(rec):
    return {'active': rec.active, 'format': rec.top['format'],
            'size': rec.top['size'], 'thick': rec.top['thick'],
            'snapshots': list(rec.snapshots)}


def _source_name(rec, snapshot):
    name = rec.active if snapshot is None else rec.of_snapshot(snapshot)
    _checked_chain(rec, name)
    return name


def _temporary(rec):
    return rec.path('.tmp-' + rec.volume)


def _checked_chain(rec, name):
    """The virtual size of a layer; every layer from it down is checked.

    :raises: SizeMismatch when it is larger than the record says, which a
             guest may have brought about, and what _checked_size() raises
    """
    path = rec.path(name)
    layer = rec.layers[name]
    actual = _checked_size(path, layer)
    if actual > layer['size']:
        raise exception.SizeMismatch(
            path=path, actual=actual, expected=layer['size'],
            reason='it was changed by something else than Cinder, so it is '
            'not used. Check the file.')
    while layer['parent'] is not None:
        path = rec.path(layer['parent'])
        layer = rec.layers[layer['parent']]
        _checked_size(path, layer)
    return actual


def _checked_size(path, layer):
    """The virtual size of an image that refers to nothing unexpected.

    :raises: RecordError when there is no such file, or it names another file
             below it than its record does, or a data file
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise exception.RecordError(
            volume=os.path.basename(path), reason='there is no %s. Restore '
            'it from a backup of the share.' % path) from None
    if not stat.S_ISREG(status.st_mode):
        raise exception.RecordError(
            volume=os.path.basename(path), reason='%s is not a regular file. '
            'Nothing was read from it; check where it came from.' % path)
    if layer['format'] == 'raw':
        return status.st_size
    image = qemu_img.info(path, layer['format'])
    details = image.get('format-specific', {}).get('data', {})
    if (image.get('backing-filename') != layer['parent'] or
            'data-file' in details or 'data-file-raw' in details):
        raise exception.RecordError(
            volume=os.path.basename(path), reason='%s refers to %s, its '
            'record to %s. Nothing was read from it; check where the file '
            'came from.' % (path, details.get('data-file') or
                            image.get('backing-filename'), layer['parent']))
    return image['virtual-size']


def _create_file(path):
    """Create a file that only the service and its group can open."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)


def _make_image(path, layer):
    descriptor = _create_file(path)
    try:
        if layer['format'] == 'raw':
            _grow_raw(descriptor, path, 0, layer)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if layer['format'] != 'raw':
        _allocate(lambda allocation: qemu_img.create(
            path, layer['format'], layer['size'], preallocation=allocation),
            layer)
        _sync(path)


def _make_overlay(path, size, rec, lower):
    """Create an empty qcow2 overlay on top of a layer."""
    os.close(_create_file(path))
    qemu_img.create(path, 'qcow2', size, backing=lower,
                    backing_fmt=rec.layers[lower]['format'])
    _sync(path)


def _grow(path, layer, size):
    """Grow an image to a virtual size; one that has it stays as it is."""
    layer = dict(layer, size=size)
    if layer['format'] == 'raw':
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            _grow_raw(descriptor, path, os.fstat(descriptor).st_size, layer)
        finally:
            os.close(descriptor)
    elif _checked_size(path, layer) < size:
        _allocate(lambda allocation: qemu_img.resize(
            path, layer['format'], size, preallocation=allocation), layer)


def _grow_raw(descriptor, path, start, layer):
    try:
        if layer['thick']:
            _fallocate(descriptor, start, layer['size'])
        elif start < layer['size']:
            os.ftruncate(descriptor, layer['size'])
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise exception.NoSpace(path=path, reason=exc.strerror) from exc
        raise


def _allocate(run, layer):
    """Run a qemu-img command with the preallocation that a layer needs."""
    if not layer['thick'] or layer['parent']:
        return run('off')
    try:
        run('falloc')
    except exception.CommandFailed as exc:
        # Lustre on ZFS cannot allocate without writing.
        if os.strerror(errno.EOPNOTSUPP) not in exc.kwargs['stderr']:
            raise
        run('full')


def _fallocate(descriptor, start, size):
    """Allocate a file's space, by writing zeros where nothing else works."""
    # os.posix_fallocate would hide that the file system cannot do it.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(descriptor, 0, ctypes.c_int64(0),
                        ctypes.c_int64(size)) == 0:
        return
    code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    LOG.info('The share cannot allocate space without writing: writing '
             '%s bytes of zeros.', size - start)
    while start < size:
        start += os.pwrite(descriptor, _ZEROS[:size - start], start)
        worker.progress(100.0 * start / size)


def _set_size(path, layer):
    """Give an image exactly its recorded size, after an unfinished extend."""
    actual = _checked_size(path, layer)
    if actual <= layer['size']:
        return
    if layer['format'] == 'raw':
        os.truncate(path, layer['size'])
    else:
        qemu_img.resize(path, layer['format'], layer['size'], shrink=True)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
