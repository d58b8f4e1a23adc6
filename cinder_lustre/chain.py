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

While Nova works on a volume that is attached, the intent stays and the fence
is free. What QEMU has open then tells how far it came; those functions that
judge it must not run beside the one who waits for Nova, so a lock of Cinder's
keeps all but :func:`copy` and :func:`export` of one volume apart.
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
# What Nova carries out: only who asked Nova for it may judge how it ended.
_ONLINE = ('online-snapshot', 'online-merge')
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
         thick=False, moving=False):
    """Make a volume from another one or from one of its snapshots.

    The source can be read by others meanwhile, but not be changed.

    :param snapshot: the snapshot to read, or None for the volume itself
    :param target_root: the directory of the new volume's share
    :param target: the new volume's name_id
    :param size: bytes, not less than the source has
    :param moving: the new volume counts when Cinder's database names its
                   share; until then, a copy that is made again replaces it
    :returns: the description of the new volume
    :raises: SizeMismatch, SnapshotNotFound, and what create() raises
    """
    with _reading(root, volume) as source:
        name = _source_name(source, snapshot)
        layer = source.layers[name]
        if layer['size'] > size:
            raise exception.SizeMismatch(
                path=source.path(name), actual=layer['size'], expected=size,
                reason='a copy cannot be smaller than its source.')
        with _new(target_root, target, fmt, size, thick,
                  'arrive' if moving else None) as (rec, temporary):
            _copy_contents(source, name, temporary, rec.top)
    return _description(rec)


def export(root, volume, snapshot, path, fmt):
    """Write a volume, or a snapshot of it, into a file as one flat image.

    :param path: a file outside the share
    :param fmt: any format that qemu-img can write
    """
    with _reading(root, volume) as rec:
        name = _source_name(rec, snapshot)
        qemu_img.convert(rec.path(name), rec.layers[name]['format'], path,
                         fmt)


def convert(root, volume, fmt, thick):
    """Give a volume without snapshots another format or provisioning.

    :returns: the description of the volume
    :raises: RecordError when the volume has snapshots
    """
    with _opened(root, volume) as rec:
        if (fmt, thick) == (rec.top['format'], rec.top['thick']):
            return _description(rec)
        if rec.top['parent'] is not None:
            raise exception.RecordError(
                volume=volume, reason='it has snapshots, which need its files '
                'as they are. Delete them first.')
        _checked_chain(rec, rec.active)
        layer = dict(rec.top, format=fmt, thick=thick)
        rec.begin('convert')
        with _undone_on_error(rec):
            record.remove_file(_temporary(rec))
            _copy_contents(rec, rec.active, _temporary(rec), layer)
        _switch(rec, rec.active, layer)
        return _description(rec)


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
        _switch(rec, rec.active, top)
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
        if rec.intent:
            names += rec.intent.get('obsolete', [])
            names += [rec.intent['file']] if 'file' in rec.intent else []
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
        if rec.intent and 'old' in rec.intent:
            _remove_old(rec)
        record.remove(root, volume)
        record.sync_directory(root)


def describe(root, volume):
    """Say which file a host has to open.

    :returns: ``active`` (file name), ``format``, ``size`` (bytes), ``thick``
              and ``snapshots`` (a list of ids)
    :raises: SizeMismatch when the file's virtual size is larger than the
             record's, which a guest may have brought about
    """
    if not record.load(root, volume, repair=False).unsettled:
        with record.fence(root, volume, shared=True):
            rec = record.load(root, volume, repair=False)
            if (not rec.unsettled and
                    _checked_chain(rec, rec.active) >= rec.top['size']):
                return _description(rec)
    with _opened(root, volume, mergeable=False) as rec:
        path = rec.path(rec.active)
        actual = _checked_chain(rec, rec.active)
        if actual < rec.top['size']:
            LOG.warning('Growing %(path)s from %(actual)s to %(size)s bytes.',
                        {'path': path, 'actual': actual,
                         'size': rec.top['size']})
            _grow(path, rec.top, rec.top['size'])
        return _description(rec)


def pending(root):
    """The volumes whose last operation did not come to its end.

    :returns: a list of name_ids
    """
    found = []
    for volume in record.volumes(root):
        worker.progress(None)
        if record.intent(root, volume):
            found.append(volume)
    return found


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
        _extend(rec, size)
        return _description(rec)


def _extend(rec, size):
    path = rec.path(rec.active)
    rec.begin('extend', size=size)
    with _undone_on_error(rec):
        _grow(path, rec.top, size)
    _sync(path)
    rec.top['size'] = size
    rec.finish()


def create_snapshot(root, volume, snapshot):
    """Freeze a volume's content under the id of a snapshot.

    The active file becomes a layer that nothing writes to any more; a new
    qcow2 overlay on top of it becomes active.

    :returns: the description of the volume
    """
    with _opened(root, volume) as rec:
        _begin_snapshot(rec, snapshot)
        _adopt_overlay(rec)
        return _description(rec)


def begin_snapshot(root, volume, snapshot):
    """Make the overlay that Nova is to let a guest write to.

    :func:`settle` ends what begins here.

    :returns: the file names of the new overlay and of the layer below it
    """
    with _opened(root, volume) as rec:
        _begin_snapshot(rec, snapshot)
        # Only a complete overlay can tell whether a guest has moved to it.
        name, lower = rec.intent['file'], rec.intent['lower']
        with _undone_on_error(rec, _drop_overlay):
            rec.begin('online-snapshot', snapshot=snapshot, file=name,
                      lower=lower)
        return name, lower


def delete_snapshot(root, volume, snapshot):
    """Forget a snapshot, and merge the two layers that it kept apart.

    :returns: the description of the volume
    """
    with _opened(root, volume) as rec:
        if _mergeable(rec, snapshot):
            name = rec.snapshots[snapshot]
            above = rec.layers[name]['children']
            _checked_chain(rec, above[0] if above else name)
            rec.begin('merge', snapshot=snapshot, file=name,
                      lower=rec.layers[name]['parent'])
            _merge(rec)
        return _description(rec)


def begin_delete_snapshot(root, volume, snapshot):
    """Prepare the merge of two layers that Nova is to let a guest do.

    :func:`settle` ends what begins here.

    :returns: what Nova has to know, as RemoteFS drivers tell it; None where
              there is nothing to merge
    """
    with _opened(root, volume, mergeable=False) as rec:
        if rec.intent and rec.intent.get('snapshot') != snapshot:
            raise exception.OperationPending(
                volume=volume, operation=_named(rec.intent),
                cure='Delete that snapshot again first.')
        if not _mergeable(rec, snapshot):
            return None
        name = rec.snapshots[snapshot]
        lower = rec.layers[name]['parent']
        _checked_chain(rec, rec.active)
        # A guest cannot leave its active file: it pulls the lower one up.
        pull = name == rec.active
        rec.begin('online-merge', snapshot=snapshot, file=name, lower=lower,
                  pull=pull)
        return {'type': 'qcow2',
                'file_to_merge': rec.layers[lower]['parent'] if pull else name,
                'merge_target_file': None if pull else lower}


def settle(root, volume):
    """End what Nova was to do, by what the guest has made of it.

    :returns: the description of the volume
    :raises: OperationPending while a guest still has to finish it
    """
    with _opened(root, volume) as rec:
        return _description(rec)


def revert(root, volume, snapshot):
    """Give a volume the content of a snapshot; it keeps its size.

    :returns: the description of the volume
    :raises: RecordError when a later snapshot would be lost
    """
    with _opened(root, volume) as rec:
        lower = rec.of_snapshot(snapshot)
        overlay = rec.snapshots[snapshot]
        above = _above(rec, overlay)
        later = [other for other, name in rec.snapshots.items()
                 if name in above]
        if later:
            raise exception.RecordError(
                volume=volume, reason='snapshot %s is not the latest one. '
                'Delete the later ones first: %s.' % (
                    snapshot, ', '.join(sorted(later))))
        if any(set(rec.layers[name]['children']).difference(above)
               for name in [overlay, *above]):
            raise exception.RecordError(
                volume=volume, reason='other volumes share what was written '
                'after snapshot %s. Delete them first.' % snapshot)
        _checked_chain(rec, lower)
        rec.begin('revert')
        layer = dict(rec.layers[overlay], size=rec.top['size'], children=[])
        with _undone_on_error(rec):
            record.remove_file(_temporary(rec))
            _make_overlay(_temporary(rec), layer['size'], rec, lower)
        _switch(rec, overlay, layer, obsolete=above)
        return _description(rec)


def adopt(root, volume, active_fmt, base_fmt):
    """Write the record of a volume that a RemoteFS driver made here.

    :param active_fmt: the format of the active file, as Cinder knows it
    :param base_fmt: the format of the base, where Cinder knows it
    :returns: the description of the volume
    :raises: RecordMissing, RecordError when it cannot be known for sure
    """
    with record.fence(root, volume, create=True):
        if record.exists(root, volume):
            return _description(record.load(root, volume))
        info = record.read_mirror(root, volume)
        active = info.pop('active')
        rec = record.Record(root, volume, active, {}, info)
        if not os.path.lexists(rec.path(active)):
            raise exception.RecordMissing(
                volume=volume, reason='neither it nor %s is there. Restore '
                'them from a backup of the share.' % rec.path(active))
        _adopt_layers(rec, active_fmt, base_fmt)
        try:
            record.check(rec)
        except (KeyError, ValueError) as exc:
            raise exception.RecordError(
                volume=volume, reason='its .info and its files do not fit '
                'together (%s). Nothing was changed; check the files.' % exc
            ) from exc
        strange = [name for name in os.listdir(root)
                   if name.startswith(record.base_name(volume) + '.') and
                   not name.endswith('.info') and name not in rec.layers]
        if strange:
            raise exception.RecordError(
                volume=volume, reason='%s is there, but not in its .info. '
                'Restore that from a backup of the share.' % min(strange))
        rec.save()
        LOG.info('Took over volume %(volume)s with its files %(names)s.',
                 {'volume': volume, 'names': ', '.join(rec.layers)})
        return _description(rec)


def _adopt_layers(rec, active_fmt, base_fmt):
    name, above = rec.active, None
    while name is not None:
        if name in rec.layers:
            raise exception.RecordError(
                volume=rec.volume, reason='%s lies below itself. Nothing was '
                'changed; check the files.' % name)
        # Only overlays, which the driver made, say what lies below them.
        parent, fmt = None, active_fmt if above is None else 'qcow2'
        if name == record.base_name(rec.volume):
            fmt = fmt if above is None else base_fmt or rec.layers[above][
                'below']
        elif above is None:
            fmt = 'qcow2'
        if fmt not in qemu_img.FORMATS:
            raise exception.RecordError(
                volume=rec.volume, reason='the format of %s is not known, and '
                'a format is never guessed. Set the admin metadata "format" '
                'of the volume to raw or qcow2.' % rec.path(name))
        rec.add_layer(name, fmt, 0)
        layer = rec.layers[name]
        if fmt == 'qcow2':
            image = qemu_img.info(rec.path(name), fmt)
            parent = image.get('backing-filename')
            layer['below'] = image.get('backing-filename-format')
            if parent and (name == record.base_name(rec.volume) or
                           not record.is_plain(parent)):
                raise exception.RecordError(
                    volume=rec.volume, reason='%s refers to %s. Nothing was '
                    'read from it; check where the file came from.' % (
                        rec.path(name), parent))
        layer['parent'] = parent
        if above is not None:
            layer['children'] = [above]
        layer['size'] = _checked_size(rec.path(name), layer)
        name, above = parent, name
    for layer in rec.layers.values():
        layer.pop('below', None)


def manage(root, name, volume, fmt, size):
    """Make a file of the share a volume.

    :param name: the file, relative to the share; a volume that has a record
                 is taken over with all its files, as its record describes it
    :param volume: the new volume's name_id
    :param fmt: raw or qcow2, for a file without a record
    :param size: bytes, at least the file's virtual size; it grows to that
    :returns: the description of the volume
    """
    old = _volume_of(root, name)
    if old == volume:
        return describe(root, volume)
    if old is not None:
        return _take_over(root, old, volume, size)
    path = _file_of(root, name)
    actual = _checked_size(path, {'format': fmt, 'parent': None})
    if actual > size:
        raise exception.SizeMismatch(
            path=path, actual=actual, expected=size,
            reason='manage it with a larger size.')
    if qemu_img.is_written(path):
        raise exception.RecordError(
            volume=volume, reason='a guest has %s open. Stop it first.' % path)
    with record.fence(root, volume, create=True):
        rec = record.Record(root, volume, record.base_name(volume), {})
        rec.add_layer(rec.active, fmt, size)
        if (record.exists(root, volume) or
                os.path.lexists(rec.path(rec.active))):
            raise exception.FileExists(path=rec.path(rec.active))
        # Killed before the rename, the volume has no file: delete it.
        rec.begin('manage', source=name)
        try:
            # Who may not do this must hear of it before the name changes.
            os.chmod(path, 0o660)
            os.rename(path, rec.path(rec.active))
        except OSError as exc:
            record.remove(root, volume)
            if exc.errno != errno.EXDEV:
                raise
            raise exception.RecordError(
                volume=volume, reason='%s belongs to another project quota '
                'than the share. Move it into the directory of the share.'
                % path) from exc
        _grow(rec.path(rec.active), rec.top, size)
        record.sync_directory(root)
        rec.finish()
        return _description(rec)


def _take_over(root, old, volume, size):
    """Let a new volume have the files of an old one, under their names."""
    with _opened(root, old) as rec:
        actual = _checked_chain(rec, rec.active)
        if max(actual, rec.top['size']) > size:
            raise exception.SizeMismatch(
                path=rec.path(rec.active), actual=rec.top['size'],
                expected=size, reason='manage it with a larger size.')
        with record.fence(root, volume, create=True):
            if record.exists(root, volume):
                raise exception.FileExists(path=rec.path(volume))
            if rec.top['size'] < size:
                _extend(rec, size)
            new = record.Record(root, volume, rec.active, rec.layers)
            new.begin('take-over', old=old)
    # The old fence goes before the new record stops saying that it may be
    # there.
    with record.fence(root, volume):
        new = record.load(root, volume)
        if new.intent:
            _recover(new)
        return _description(new)


def manageable(root):
    """The volumes on a share, and files that could become volumes.

    :returns: dictionaries with ``name`` (of the active file), ``volume`` (the
              name_id of the record, or None), ``size`` (bytes; of the file
              where there is no record) and ``layers``, a list of ``name``,
              ``size`` and ``snapshot`` (an id or None) of each layer below
              the active file
    """
    found = []
    files = set(os.listdir(root))
    for volume in record.volumes(root):
        worker.progress(None)
        try:
            rec = record.load(root, volume, repair=False)
        except exception.RecordError as exc:
            LOG.warning('Volume %(volume)s is left out: %(error)s',
                        {'volume': volume, 'error': exc})
            continue
        files.difference_update(rec.layers)
        names = {rec.layers[overlay]['parent']: snapshot
                 for snapshot, overlay in rec.snapshots.items()}
        found.append({'name': rec.active, 'volume': volume,
                      'size': rec.top['size'], 'layers': [
                          {'name': name, 'size': rec.layers[name]['size'],
                           'snapshot': names.get(name)}
                          for name in _below(rec, rec.active)]})
    for name in sorted(files):
        path = os.path.join(root, name)
        if (record.is_plain(name) and not name.endswith('.info') and
                stat.S_ISREG(os.lstat(path).st_mode)):
            found.append({'name': name, 'volume': None, 'layers': [],
                          'size': os.lstat(path).st_size})
    return found


def look_up(root, name, fmt):
    """What :func:`manage` would take over.

    :param fmt: the format of a file without a record
    :returns: ``size`` (bytes) and ``volume`` (the name_id of the record, or
              None)
    """
    old = _volume_of(root, name)
    if old is not None:
        size = describe(root, old)['size']
    else:
        size = _checked_size(_file_of(root, name),
                             {'format': fmt, 'parent': None})
    return {'size': size, 'volume': old}


def name_snapshot(root, volume, snapshot, name):
    """Let a layer without a snapshot's name be a snapshot of its volume.

    :param name: the file that holds the snapshot's data
    :returns: the virtual size of the snapshot in bytes
    """
    with _opened(root, volume) as rec:
        overlay = _overlay_over(rec, name)
        rec.snapshots[snapshot] = overlay
        rec.save()
        return rec.layers[name]['size']


def snapshot_size(root, volume, name):
    """The virtual size in bytes of a layer that could become a snapshot."""
    with _opened(root, volume, mergeable=False) as rec:
        _overlay_over(rec, name)
        return rec.layers[name]['size']


def forget_snapshot(root, volume, snapshot):
    """Drop the name of a snapshot, and keep its data where they are."""
    with _opened(root, volume) as rec:
        if snapshot in rec.snapshots:
            del rec.snapshots[snapshot]
            rec.save()


def _overlay_over(rec, name):
    """The active chain's overlay on a layer; no snapshot has its name."""
    chain = [rec.active, *_below(rec, rec.active)]
    if name not in chain[1:]:
        raise exception.RecordError(
            volume=rec.volume, reason='%s is no layer below its active file. '
            'List what can be managed.' % name)
    overlay = chain[chain.index(name) - 1]
    if overlay in rec.snapshots.values():
        raise exception.RecordError(
            volume=rec.volume, reason='%s already is one of its snapshots.'
            % name)
    return overlay


def _file_of(root, name):
    """The path of a file by its name relative to the share."""
    path = os.path.normpath(os.path.join(root, name))
    directory = os.path.realpath(os.path.dirname(path))
    if (os.path.commonpath([directory, os.path.realpath(root)]) !=
            os.path.realpath(root) or
            record.DIRECTORY in os.path.relpath(path, root).split(os.sep)):
        raise exception.LustreException(
            reason='%s is not a file of the share.' % name)
    return path


def _volume_of(root, name):
    """The name_id of the volume that has a file active, or None."""
    if not record.is_plain(name):
        return None
    found = None
    for volume in record.volumes(root):
        worker.progress(None)
        try:
            rec = record.load(root, volume, repair=False)
        except exception.RecordMissing:
            # It has been deleted meanwhile.
            continue
        if name == rec.active:
            if rec.intent and 'old' in rec.intent:
                # It counts, although the record of the old one is there.
                return volume
            found = volume
        elif name in rec.layers:
            raise exception.RecordError(
                volume=volume, reason='%s is a layer of it below %s, and '
                'cannot be a volume on its own.' % (name, rec.active))
    return found


@contextlib.contextmanager
def _new(root, volume, fmt, size, thick, arrival=None):
    """A new volume's record and temporary file, which becomes its base.

    Nothing stays behind when the body fails.

    :param arrival: the intent that stays when the files are complete
    """
    rec = record.Record(root, volume, record.base_name(volume), {})
    rec.add_layer(rec.active, fmt, size, thick=thick)
    with record.fence(root, volume, create=True):
        if record.exists(root, volume):
            # Left by a creation that was killed; anything else is kept.
            old = record.load(root, volume)
            if not (old.intent and
                    old.intent['operation'] in ('create', arrival)):
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
            if arrival:
                rec.begin(arrival)
            else:
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
def _reading(root, volume):
    """An existing volume's record, after recovery, for reading its files.

    What Nova is doing may go on: no layer that can be read goes meanwhile.
    """
    if (not record.exists(root, volume) or
            _recoverable(record.load(root, volume, repair=False))):
        with _opened(root, volume):
            pass
    with record.fence(root, volume, shared=True):
        rec = record.load(root, volume, repair=False)
        if _recoverable(rec):
            raise exception.VolumeBusy(
                volume=volume, holder='another process')
        yield rec


def _recoverable(rec):
    return rec.unsettled and not (
        rec.intent and rec.intent['operation'] in _ONLINE)


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
            except (exception.NoSpace, exception.CommandFailed,
                    exception.OperationPending) as exc:
                if mergeable or rec.intent['operation'] not in (
                        'merge', 'online-merge'):
                    raise
                LOG.warning('Going on with volume %(volume)s as it is: '
                            '%(error)s', {'volume': volume, 'error': exc})
        yield rec


@contextlib.contextmanager
def _undone_on_error(rec, undo=None):
    """Undo the operation that the record has begun when the body fails."""
    try:
        yield
    except Exception:
        (undo or _recover)(rec)
        raise


def _recover(rec):
    """Undo an unfinished operation, or finish it where that is safer."""
    operation = rec.intent['operation']
    if operation not in _RECOVERIES:
        raise exception.RecordError(
            volume=rec.volume, reason='its operation "%s" is unknown to this '
            'release. Upgrade cinder-lustre on this host.' % operation)
    _RECOVERIES[operation](rec)


def _refuse(rec):
    raise exception.RecordError(
        volume=rec.volume, reason='its creation was interrupted. Delete '
        'the volume and create it again.')


def _drop_temporary(rec):
    record.remove_file(_temporary(rec))
    rec.finish()


def _recover_extend(rec):
    _set_size(rec.path(rec.active), rec.top)
    rec.finish()


def _recover_manage(rec):
    path = rec.path(rec.active)
    if not os.path.lexists(path):
        _refuse(rec)
    _grow(path, rec.top, rec.top['size'])
    rec.finish()


def _recover_take_over(rec):
    _remove_old(rec)
    rec.finish()


def _remove_old(rec):
    """Remove the record, and the fence, of a volume that was taken over."""
    with record.fence(rec.root, rec.intent['old'], create=True):
        record.remove(rec.root, rec.intent['old'])


def _remove_obsolete(rec):
    record.remove_file(rec.path(rec.intent['file']))
    rec.finish()


def _begin_snapshot(rec, snapshot):
    name = '%s.%s' % (record.base_name(rec.volume), snapshot)
    path = rec.path(name)
    if os.path.lexists(path):
        raise exception.FileExists(path=path)
    _checked_chain(rec, rec.active)
    # A child is recorded before its overlay exists.
    rec.top['children'].append(name)
    rec.begin('snapshot', snapshot=snapshot, file=name, lower=rec.active)
    with _undone_on_error(rec, _drop_overlay):
        _make_overlay(path, rec.top['size'], rec, rec.active)
        record.sync_directory(rec.root)


def _adopt_overlay(rec):
    name, lower = rec.intent['file'], rec.intent['lower']
    below = rec.layers[lower]
    rec.add_layer(name, 'qcow2', below['size'], parent=lower,
                  thick=below['thick'])
    rec.active = rec.snapshots[rec.intent['snapshot']] = name
    rec.finish()


def _drop_overlay(rec):
    rec.layers[rec.intent['lower']]['children'].remove(rec.intent['file'])
    record.remove_file(rec.path(rec.intent['file']))
    rec.finish()


def _settle_snapshot(rec):
    """Find out whether the guest has moved to the overlay.

    An empty overlay can always go: the volume has the same content without
    it, and nobody was told that there is a snapshot.
    """
    overlay, lower = (rec.path(rec.intent[role]) for role in ('file', 'lower'))
    if not os.path.lexists(overlay):
        return _drop_overlay(rec)
    # Nova may be late: the guest must not move to what is being removed.
    with qemu_img.not_written(overlay):
        if qemu_img.is_written(overlay) or (
                not qemu_img.is_written(lower) and
                qemu_img.has_data(overlay)):
            LOG.info('The guest of volume %(volume)s has moved to '
                     '%(overlay)s.',
                     {'volume': rec.volume, 'overlay': overlay})
            _adopt_overlay(rec)
        else:
            _drop_overlay(rec)


def _settle_merge(rec):
    """Find out, by what refers to which file, if the guest merged layers."""
    intent = rec.intent
    name, lower = intent['file'], intent['lower']
    if intent['pull']:
        upper, goal, gone = name, rec.layers[lower]['parent'], lower
    else:
        upper, goal, gone = rec.layers[name]['children'][0], lower, name
    backing = qemu_img.info(rec.path(upper),
                            'qcow2').get('backing-filename')
    if backing == goal:
        _relink(rec, upper, goal, gone)
    elif backing != gone:
        raise exception.RecordError(
            volume=rec.volume, reason='%s refers to %s, its record to %s. '
            'Check where the file came from.' % (rec.path(upper), backing,
                                                 gone))
    elif qemu_img.is_written(rec.path(rec.active)):
        raise exception.OperationPending(
            volume=rec.volume, operation=_named(intent),
            cure='Wait until it ends. If it has failed, delete the snapshot '
            'again, or stop the server.')
    elif intent['pull']:
        # What was pulled so far is in both layers, and harms nobody.
        rec.finish()
    else:
        rec.begin('merge', snapshot=intent['snapshot'], file=name,
                  lower=lower)
        _merge(rec)


def _relink(rec, upper, goal, gone):
    """Record that an image lies on another one, and remove what is between."""
    layers = rec.layers
    layers[upper]['parent'] = goal
    if goal is not None:
        layers[goal]['children'] = [
            upper if child == gone else child
            for child in layers[goal]['children'] if child != upper]
        layers[goal]['size'] = max(layers[goal]['size'], _checked_size(
            rec.path(goal), layers[goal]))
    del rec.snapshots[rec.intent['snapshot']]
    for snapshot, overlay in rec.snapshots.items():
        if overlay == gone:
            rec.snapshots[snapshot] = upper
    del layers[gone]
    rec.begin('remove', file=gone)
    _remove_obsolete(rec)


def _mergeable(rec, snapshot):
    """Whether a snapshot's layer can be merged; otherwise it is dropped."""
    if snapshot not in rec.snapshots:
        LOG.info('Snapshot %(snapshot)s of volume %(volume)s is not on '
                 'this share any more.',
                 {'snapshot': snapshot, 'volume': rec.volume})
        return False
    name = rec.snapshots[snapshot]
    lower = rec.layers[name]['parent']
    above = rec.layers[name]['children']
    if (rec.layers[lower]['children'] == [name] and len(above) <= 1 and
            set(above) <= set(rec.layers)):
        return True
    LOG.info('%(lower)s stays below %(name)s, as other files share '
             'them.', {'lower': lower, 'name': name})
    del rec.snapshots[snapshot]
    rec.save()
    return False


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
    _remove_obsolete(rec)


def _switch(rec, name, layer, obsolete=()):
    """Let the temporary file, as a layer, take the place of the top one.

    :param obsolete: names of layers that go
    """
    rec.begin('switch', file=name, layer=layer, obsolete=list(obsolete))
    _finish_switch(rec)


def _finish_switch(rec):
    intent = rec.intent
    try:
        os.rename(_temporary(rec), rec.path(intent['file']))
    except FileNotFoundError:
        # It was killed after this step.
        pass
    record.sync_directory(rec.root)
    rec.active = intent['file']
    rec.layers[rec.active] = intent['layer']
    for name in intent['obsolete']:
        rec.layers.pop(name, None)
    rec.save()
    for name in intent['obsolete']:
        record.remove_file(rec.path(name))
    rec.finish()


_RECOVERIES = {
    'create': _refuse,
    # Who asks for the volume has found its new share in the database.
    'arrive': record.Record.finish,
    'load': _drop_temporary,
    'revert': _drop_temporary,
    'convert': _drop_temporary,
    'switch': _finish_switch,
    'extend': _recover_extend,
    'snapshot': _drop_overlay,
    'online-snapshot': _settle_snapshot,
    'merge': _merge,
    'online-merge': _settle_merge,
    'remove': _remove_obsolete,
    'manage': _recover_manage,
    'take-over': _recover_take_over,
}


def _named(intent):
    return '"%(operation)s" of snapshot %(snapshot)s' % dict(
        {'snapshot': None}, **intent)


def _below(rec, name):
    """The layers below one, from top to bottom."""
    names = []
    while rec.layers[name]['parent'] is not None:
        name = rec.layers[name]['parent']
        names.append(name)
    return names


def _above(rec, name):
    """The layers of the active chain above one."""
    chain = [rec.active, *_below(rec, rec.active)]
    return chain[:chain.index(name)]


def _copy_contents(rec, name, path, layer):
    """Write a chain's contents into a new image that looks like a layer."""
    _make_image(path, layer)
    qemu_img.convert(rec.path(name), rec.layers[name]['format'], path,
                     layer['format'], empty_target=True)
    _sync(path)


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
