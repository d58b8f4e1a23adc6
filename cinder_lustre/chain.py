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
import logging
import os

from cinder_lustre import exception
from cinder_lustre import layers
from cinder_lustre import qcow2
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

# What Nova carries out: only who asked Nova for it may judge how it ended.
_ONLINE = ('online-snapshot', 'online-merge')


def create(root, volume, fmt, size, thick=False, luks=None):
    """Create an empty volume.

    :param root: the mounted share's directory
    :param volume: the volume's name_id
    :param fmt: raw or qcow2
    :param size: bytes
    :param thick: allocate the space now
    :param luks: how to encrypt a raw volume, the arguments of
                 :func:`qemu_img.format_luks`
    :returns: the description of the volume, see :func:`describe`
    :raises: FileExists, NoSpace, CommandFailed
    """
    with _new(root, volume, fmt, size, thick) as (rec, temporary):
        layers.make_image(temporary, rec.top, luks)
    return description(rec)


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
    with _reading(root, volume, snapshot) as source:
        name = _source_name(source, snapshot)
        layer = source.layers[name]
        if layer['size'] > size:
            raise exception.SizeMismatch(
                path=source.path(name), actual=layer['size'], expected=size,
                reason='a copy cannot be smaller than its source.')
        with _new(target_root, target, fmt, size, thick,
                  'arrive' if moving else None) as (rec, temporary):
            layers.copy_contents(source, name, temporary, rec.top)
    return description(rec)


def export(root, volume, snapshot, path, fmt, compress=False):
    """Write a volume, or a snapshot of it, into a file as one flat image.

    :param path: a temporary file outside the share
    :param fmt: any format that qemu-img can write
    :param compress: compress the data, in a format that can have it so
    """
    with _reading(root, volume, snapshot) as rec:
        name = _source_name(rec, snapshot)
        # It is read again at once, so it need not come to the disk.
        qemu_img.convert(rec.path(name), rec.layers[name]['format'], path,
                         fmt, compress=compress)


def convert(root, volume, fmt, thick):
    """Give a volume without snapshots another format or provisioning.

    :returns: the description of the volume
    :raises: RecordError when the volume has snapshots
    """
    with opened(root, volume, patient=True) as rec:
        _collapse(rec)
        if (fmt, thick) == (rec.top['format'], rec.top['thick']):
            return description(rec)
        if rec.top['parent'] is not None:
            raise exception.RecordError(
                volume=volume, reason='it has snapshots, which need its files '
                'as they are. Delete them first.')
        layers.checked_chain(rec, rec.active)
        _refuse_guest(rec)
        layer = dict(rec.top, format=fmt, thick=thick)
        rec.begin('convert')
        with _undone_on_error(rec):
            record.remove_file(_temporary(rec))
            layers.copy_contents(rec, rec.active, _temporary(rec), layer)
        _switch(rec, rec.active, layer)
        return description(rec)


def load(root, volume, path, fmt, sparse=True, luks=None):
    """Replace a volume's content by that of an image.

    :param path: the image, a file outside the share
    :param fmt: its format, which was checked; any that qemu-img can read
    :param sparse: leave holes where the image has zeros
    :param luks: how to encrypt the content, as in :func:`create`
    :returns: the description of the volume
    :raises: RecordError when the volume has snapshots; CommandFailed or
             SizeMismatch when the image is larger than the volume
    """
    with opened(root, volume, patient=True) as rec:
        _collapse(rec)
        if rec.top['parent'] is not None:
            raise exception.RecordError(
                volume=volume, reason='it has snapshots, which new content '
                'would damage. Delete them first.')
        _refuse_guest(rec)
        rec.begin('load')
        with _undone_on_error(rec):
            record.remove_file(_temporary(rec))
            layers.fill(path, fmt, _temporary(rec), rec.top, sparse, luks)
        _switch(rec, rec.active, rec.top)
        return description(rec)


def delete(root, volume):
    """Delete a volume with all its files; what is gone already is no error.

    :raises: RecordError while files of other volumes lie above its own
    """
    with record.fence(root, volume, create=True):
        if not record.exists(root, volume):
            path = os.path.join(root, record.base_name(volume))
            if os.path.lexists(path):
                raise exception.RecordMissing(
                    volume=volume, reason='%s has no record, so it was left '
                    'alone. Move it away, or restore its record.' % path)
            LOG.info('Volume %s is not on this share any more.', volume)
            record.remove(root, volume)
            return
        # No intent: repeating a deletion finishes it, and a full share must
        # not prevent one.
        rec = record.load(root, volume)
        _refuse_guest(rec)
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
                    layers.checked_chain(rec, rec.active) >= rec.top['size']):
                return description(rec)
    with opened(root, volume, mergeable=False) as rec:
        path = rec.path(rec.active)
        actual = layers.checked_chain(rec, rec.active)
        if actual < rec.top['size']:
            LOG.warning('Growing %(path)s from %(actual)s to %(size)s bytes.',
                        {'path': path, 'actual': actual,
                         'size': rec.top['size']})
            layers.grow(path, rec.top, rec.top['size'])
        return description(rec)


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
    with opened(root, volume, patient=True) as rec:
        _tidy(rec)
        path = rec.path(rec.active)
        if size < rec.top['size']:
            raise exception.SizeMismatch(
                path=path, actual=rec.top['size'], expected=size,
                reason='a volume cannot shrink.')
        layers.checked_chain(rec, rec.active)
        _extend(rec, size)
        return description(rec)


def _extend(rec, size):
    path = rec.path(rec.active)
    rec.begin('extend', size=size)
    with _undone_on_error(rec), layers.written_back(path):
        layers.grow(path, rec.top, size)
    rec.top['size'] = size
    rec.finish()


def create_snapshot(root, volume, snapshot):
    """Freeze a volume's content under the id of a snapshot.

    The active file becomes a layer that nothing writes to any more; a new
    qcow2 overlay on top of it becomes active.

    :returns: the description of the volume
    """
    with opened(root, volume) as rec:
        _begin_snapshot(rec, snapshot)
        _adopt_overlay(rec)
        return description(rec)


def begin_snapshot(root, volume, snapshot):
    """Make the overlay that Nova is to let a guest write to.

    :func:`settle` ends what begins here.

    :returns: the file names of the new overlay and of the layer below it
    """
    with opened(root, volume) as rec:
        _begin_snapshot(rec, snapshot, online=True)
        # Only a complete overlay can tell whether a guest has moved to it.
        name, lower = rec.intent['file'], rec.intent['lower']
        with _undone_on_error(rec, _drop_overlay):
            rec.begin('online-snapshot', snapshot=snapshot, file=name,
                      lower=lower)
        return name, lower


def confirm_snapshot(root, volume, snapshot):
    """Write down that the guest uses the new overlay, as Nova says.

    A server that is stopped has nothing open that would tell.
    """
    with record.fence(root, volume):
        rec = record.load(root, volume)
        intent = rec.intent or {}
        if (intent.get('operation') == 'online-snapshot' and
                intent['snapshot'] == snapshot):
            intent['confirmed'] = True
            rec.save()


def delete_snapshot(root, volume, snapshot):
    """Forget a snapshot, and merge the two layers that it kept apart.

    :returns: the description of the volume
    """
    with opened(root, volume) as rec:
        if _is_known(rec, snapshot):
            layers.checked_chain(rec, rec.active)
            name = rec.snapshots[snapshot]
            if _is_sole(rec, name):
                _begin_merge(rec, snapshot, name)
                _merge(rec)
            else:
                _drop(rec, snapshot)
                rec.save()
        _tidy(rec)
        return description(rec)


def begin_delete_snapshot(root, volume, snapshot):
    """Prepare the merge of two layers that Nova is to let a guest do.

    :func:`settle` ends what begins here. A guest cannot leave its active
    file, and if it pulled the layer below into that, QEMU would report the
    end before all of it is on disk. The latest snapshot just loses its name
    instead, and what lost its name before is merged downwards.

    :returns: what Nova has to know, as RemoteFS drivers tell it; None where
              there is nothing to merge
    """
    with opened(root, volume, mergeable=False) as rec:
        intent = rec.intent or {'snapshot': snapshot, 'operation': None}
        if intent.get('snapshot') != snapshot:
            raise exception.OperationPending(
                volume=volume, operation=_named(rec.intent),
                cure='Delete that snapshot again first.')
        if not _is_known(rec, snapshot):
            return None
        layers.checked_chain(rec, rec.active)
        if rec.intent is None:
            _refuse_stray_guest(rec)
        name = rec.snapshots[snapshot]
        if intent['operation'] == 'online-merge':
            name = intent['file']
        elif name == rec.active or not _is_sole(rec, name):
            # What the snapshot held may be gone if its merge was begun.
            name = None if rec.intent else next(
                (each for each in layers.below(rec, rec.active)
                 if _is_collapsible(rec, each)), None)
        if name is None:
            _drop(rec, snapshot)
            rec.finish()
            return None
        lower = rec.layers[name]['parent']
        rec.begin('online-merge', snapshot=snapshot, file=name, lower=lower)
        return {'type': 'qcow2', 'file_to_merge': name,
                'merge_target_file': lower}


def is_written(root, volume):
    """Whether a guest has the volume open, while Nova works on it."""
    rec = record.load(root, volume, repair=False)
    files = {rec.active}
    if rec.intent and rec.intent['operation'] == 'online-snapshot':
        files.add(rec.intent['file'])
    return any(qemu_img.is_written(rec.path(name)) for name in files)


def settle(root, volume):
    """End what Nova was to do, by what the guest has made of it.

    :returns: the description of the volume
    :raises: OperationPending while a guest still has to finish it
    """
    with opened(root, volume, patient=True) as rec:
        return description(rec)


def revert(root, volume, snapshot):
    """Give a volume the content of a snapshot; it keeps its size.

    :returns: the description of the volume
    :raises: RecordError when a later snapshot would be lost
    """
    with opened(root, volume, patient=True) as rec:
        lower = rec.of_snapshot(snapshot)
        overlay = rec.snapshots[snapshot]
        above = layers.above(rec, overlay)
        later = [other for other, name in rec.snapshots.items()
                 if name in above]
        if later:
            raise exception.RecordError(
                volume=volume, reason='snapshot %s is not the latest one. '
                'Delete the later ones first: %s.' % (
                    snapshot, ', '.join(sorted(later))))
        for name in above:
            if not rec.layers[name].get('deleted'):
                raise exception.RecordError(
                    volume=volume, reason='%s, which was unmanaged as a '
                    'snapshot of it, would be lost. Manage it again and '
                    'delete that snapshot first.' % rec.layers[name]['parent'])
        if any(set(rec.layers[name]['children']).difference(above)
               for name in [overlay, *above]):
            raise exception.RecordError(
                volume=volume, reason='other volumes share what was written '
                'after snapshot %s. Delete them first.' % snapshot)
        layers.checked_chain(rec, lower)
        _refuse_guest(rec)
        rec.begin('revert')
        layer = dict(rec.layers[overlay], size=rec.top['size'], children=[])
        with _undone_on_error(rec):
            record.remove_file(_temporary(rec))
            layers.make_overlay(_temporary(rec), layer['size'], rec, lower)
        _switch(rec, overlay, layer, obsolete=above)
        return description(rec)


def take_over(root, old, volume, size):
    """Let a new volume have the files of an old one, under their names."""
    pending = record.load(root, old, repair=False).intent
    if pending and pending['operation'] in _ONLINE:
        raise exception.OperationPending(
            volume=old, operation=_named(pending),
            cure='Let Cinder use the volume once more first.')
    with opened(root, old) as rec:
        _refuse_guest(rec)
        actual = layers.checked_chain(rec, rec.active)
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
        return description(new)


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
def _reading(root, volume, snapshot):
    """An existing volume's record, after recovery, for reading its files.

    A snapshot can be read while Nova works on the volume: no layer that it
    consists of goes meanwhile.
    """
    operation = _unfinished(root, volume, snapshot)
    if operation:
        with opened(root, volume, mergeable=operation != 'merge'):
            pass
    with record.fence(root, volume, shared=True):
        # A merge without space changes nothing but the snapshot's data.
        if _unfinished(root, volume, snapshot) not in (None, 'merge'):
            raise exception.VolumeBusy(
                volume=volume, holder='another process')
        yield record.load(root, volume, repair=False)


def _unfinished(root, volume, snapshot):
    """The operation to recover before a volume, or a snapshot, is read."""
    intent = record.load(root, volume, repair=False).intent
    if intent is None or snapshot and intent['operation'] in _ONLINE:
        return None
    return intent['operation']


@contextlib.contextmanager
def opened(root, volume, mergeable=True, patient=False):
    """An existing volume's record, after recovery, under its fence.

    :param patient: wait for as long as others only read the volume
    :param mergeable: whether an unfinished merge must be finished; without
                      space for that, or while a guest has the volume open,
                      the volume itself can still be read
    """
    with record.fence(root, volume, patient=patient):
        rec = record.load(root, volume)
        if rec.intent:
            # What Nova does always ends in this way.
            LOG.log(logging.INFO if rec.intent['operation'] in _ONLINE
                    else logging.WARNING,
                    'Recovering volume %(volume)s from the interrupted '
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
    layers.set_size(rec.path(rec.active), rec.top)
    rec.finish()


def _recover_manage(rec):
    path = rec.path(rec.active)
    if not os.path.lexists(path):
        _refuse(rec)
    layers.grow(path, rec.top, rec.top['size'])
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


def _refuse_guest(rec):
    """See that no guest writes to the volume, whatever Cinder thinks."""
    for name in [rec.active, *layers.below(rec, rec.active)]:
        path = rec.path(name)
        if (os.path.isfile(path) and not os.path.islink(path) and
                qemu_img.is_written(path)):
            raise exception.VolumeBusy(volume=rec.volume, holder='a guest')


def _refuse_stray_guest(rec):
    """See that no guest writes below the active file.

    A hard reboot, or the end of nova-compute, may come before Nova has noted
    the file that a snapshot made; it then starts the server with the old one.
    """
    for name in layers.below(rec, rec.active):
        path = rec.path(name)
        if qemu_img.is_written(path):
            raise exception.RecordError(
                volume=rec.volume, reason='a server writes to %s, below the '
                'active file %s, so that one of both lacks what is in the '
                'other. Stop the server, and decide which to keep.' % (
                    path, rec.active))


def _begin_snapshot(rec, snapshot, online=False):
    name = '%s.%s' % (record.base_name(rec.volume), snapshot)
    path = rec.path(name)
    if os.path.lexists(path):
        raise exception.FileExists(path=path)
    layers.checked_chain(rec, rec.active)
    if online:
        _refuse_stray_guest(rec)
    else:
        _refuse_guest(rec)
    # A child is recorded before its overlay exists.
    rec.top['children'].append(name)
    rec.begin('snapshot', snapshot=snapshot, file=name, lower=rec.active)
    with _undone_on_error(rec, _drop_overlay):
        layers.make_overlay(path, rec.top['size'], rec, rec.active)
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

    An empty overlay can go while Nova has not confirmed it: the volume has the
    same content without it, and nobody was told that there is a snapshot.
    """
    overlay, lower = (rec.path(rec.intent[role]) for role in ('file', 'lower'))
    if not os.path.lexists(overlay):
        return _drop_overlay(rec)
    # Nova may be late: the guest must not move to what is being removed.
    with qemu_img.not_written(overlay):
        if qemu_img.is_written(lower):
            if qemu_img.is_written(overlay):
                raise exception.OperationPending(
                    volume=rec.volume, operation=_named(rec.intent),
                    cure='Wait until the server has moved to the new file.')
            if qemu_img.has_data(overlay):
                raise exception.OperationPending(
                    volume=rec.volume, operation=_named(rec.intent),
                    cure='A server has written to %s and now writes to %s, '
                    'below it. Stop the server, and decide which to keep.' % (
                        overlay, lower))
            _drop_overlay(rec)
        elif (rec.intent.get('confirmed') or qemu_img.is_written(overlay) or
              qemu_img.has_data(overlay)):
            LOG.info('The guest of volume %(volume)s has moved to '
                     '%(overlay)s.',
                     {'volume': rec.volume, 'overlay': overlay})
            _adopt_overlay(rec)
        else:
            _drop_overlay(rec)


def _settle_merge(rec):
    """Find out, by what refers to which file, if the guest merged layers."""
    name, lower = rec.intent['file'], rec.intent['lower']
    upper, = rec.layers[name]['children']
    backing = qcow2.read_header(rec.path(upper)).backing
    if backing not in (name, lower):
        raise exception.RecordError(
            volume=rec.volume, reason='%s refers to %s, its record to %s. '
            'Check where the file came from.' % (rec.path(upper), backing,
                                                 name))
    if not qemu_img.is_written(rec.path(rec.active)):
        # A guest that was killed may have left it half done.
        layers.checked_chain(rec, name)
        _begin_merge(rec, rec.intent['snapshot'], name)
        _merge(rec)
    elif backing == name or qemu_img.is_written(rec.path(lower)):
        raise exception.OperationPending(
            volume=rec.volume, operation=_named(rec.intent),
            cure='Wait until it ends. If it has failed, delete the snapshot '
            'again, or stop the server.')
    else:
        layers.checked_size(rec.path(lower), rec.layers[lower])
        _drop_layer(rec)


def _is_known(rec, snapshot):
    if snapshot in rec.snapshots:
        return True
    LOG.info('Snapshot %(snapshot)s of volume %(volume)s is not on this '
             'share any more.', {'snapshot': snapshot, 'volume': rec.volume})
    return False


def _is_sole(rec, name):
    """Whether no other file shares a layer, or the one below it."""
    above = rec.layers[name]['children']
    lower = rec.layers[name]['parent']
    return (rec.layers[lower]['children'] == [name] and len(above) <= 1 and
            set(above) <= set(rec.layers))


def _is_collapsible(rec, name):
    return bool(rec.layers[name].get('deleted')) and _is_sole(rec, name)


def _drop(rec, snapshot):
    """Let a snapshot lose its name; its layer is merged when that is safe."""
    overlay = rec.snapshots.pop(snapshot)
    rec.layers[overlay]['deleted'] = True


def _collapse(rec):
    """Merge what deleted snapshots have left; no guest has the volume."""
    for name in [rec.active, *layers.below(rec, rec.active)]:
        if _is_collapsible(rec, name):
            _refuse_guest(rec)
            layers.checked_chain(rec, rec.active)
            _begin_merge(rec, None, name)
            # Until the files refer to each other anew, nothing has changed.
            with _undone_on_error(rec, record.Record.finish):
                _commit(rec)
            _finish_merge(rec)


def _tidy(rec):
    """Merge what deleted snapshots have left, as far as that is possible."""
    try:
        _collapse(rec)
    except exception.LustreException as exc:
        if rec.intent:
            raise
        LOG.warning('What deleted snapshots of volume %(volume)s have left '
                    'stays for now: %(error)s',
                    {'volume': rec.volume, 'error': exc})


def _begin_merge(rec, snapshot, name):
    rec.begin('merge', snapshot=snapshot, file=name,
              lower=rec.layers[name]['parent'])


def _merge(rec):
    """Write a layer into the one below it; every step can be repeated."""
    if not rec.intent.get('committed'):
        if rec.intent['snapshot'] is None:
            # No snapshot is concerned, and the layer above has it all.
            return rec.finish()
        _commit(rec)
    _finish_merge(rec)


def _commit(rec):
    name, lower = rec.intent['file'], rec.intent['lower']
    layer, below = rec.layers[name], rec.layers[lower]
    with layers.written_back(rec.path(lower)):
        qemu_img.commit(rec.path(name))
        if below['thick']:
            layers.grow(rec.path(lower), below, layer['size'])


def _finish_merge(rec):
    name, lower = rec.intent['file'], rec.intent['lower']
    layer, below = rec.layers[name], rec.layers[lower]
    # From here on it ends without more space.
    rec.intent['committed'] = True
    rec.save()
    for child in layer['children']:
        with layers.written_back(rec.path(child)):
            qemu_img.rebase(rec.path(child), lower, below['format'])
    _drop_layer(rec)


def _drop_layer(rec):
    """Record that a layer is merged into the one below it, and remove it."""
    name, lower = rec.intent['file'], rec.intent['lower']
    if rec.intent['snapshot'] is not None:
        # Another layer may have been merged in place of its own.
        _drop(rec, rec.intent['snapshot'])
    layer, below = rec.layers.pop(name), rec.layers[lower]
    for child in layer['children']:
        rec.layers[child]['parent'] = lower
    below['children'] = layer['children']
    below['size'] = layer['size']
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


def description(rec):
    return {'active': rec.active, 'format': rec.top['format'],
            'size': rec.top['size'], 'thick': rec.top['thick'],
            'snapshots': list(rec.snapshots)}


def _source_name(rec, snapshot):
    name = rec.active if snapshot is None else rec.of_snapshot(snapshot)
    intent = rec.intent or {}
    if (snapshot and snapshot == intent.get('snapshot') and
            intent.get('file') == rec.snapshots.get(snapshot)):
        raise exception.OperationPending(
            volume=rec.volume, operation=_named(intent),
            cure='What that snapshot held may be overwritten already.')
    layers.checked_chain(rec, name)
    return name


def _temporary(rec):
    return rec.path('.tmp-' + rec.volume)
