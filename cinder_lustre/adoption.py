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

"""Takes files and records that Cinder does not know into a volume's record.

Like those of :mod:`cinder_lustre.chain`, its functions run in a worker child.
"""

import errno
import itertools
import logging
import os
import re
import stat

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import layers
from cinder_lustre import qcow2
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

_VOLUME_NAME = re.compile(r'volume-([0-9a-f-]{36})(\.|$)')


def adopt(root, volume, active_fmt, base_fmt):
    """Write the record of a volume that a RemoteFS driver made here.

    :param active_fmt: the format of the active file, as Cinder knows it
    :param base_fmt: the format of the base, where Cinder knows it
    :returns: the description of the volume
    :raises: RecordMissing, RecordError when it cannot be known for sure
    """
    with record.fence(root, volume, create=True):
        if record.exists(root, volume):
            return chain.description(record.load(root, volume))
        info = record.read_mirror(root, volume)
        active = info.pop('active')
        rec = record.Record(root, volume, active, {}, info)
        if not _belongs(volume, active) or _volume_of(root, active):
            raise exception.RecordError(
                volume=volume, reason='its .info names %s, which is a file of '
                'another volume. Nothing was changed; check the files.'
                % active)
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
        return chain.description(rec)


def _belongs(volume, name):
    base = record.base_name(volume)
    return name == base or name.startswith(base + '.')


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
            header = qcow2.read_header(rec.path(name))
            parent = header.backing
            if not _belongs(rec.volume, parent or name):
                raise exception.RecordError(
                    volume=rec.volume, reason='%s, which refers to %s, is no '
                    'file of it. Check where the file came from.' % (
                        rec.path(name), parent))
            layer['below'] = header.backing_fmt
            if parent and (name == record.base_name(rec.volume) or
                           not record.is_plain(parent)):
                raise exception.RecordError(
                    volume=rec.volume, reason='%s refers to %s. Nothing was '
                    'read from it; check where the file came from.' % (
                        rec.path(name), parent))
        layer['parent'] = parent
        if above is not None:
            layer['children'] = [above]
        layer['size'] = _readable_size(rec.path(name), layer)
        if above is not None and rec.layers[above]['below'] != fmt:
            # QEMU would take it for what the header says.
            raise exception.RecordError(
                volume=rec.volume, reason='%s takes the format of %s for %s, '
                'but it is %s. Correct that with "qemu-img rebase -u".' % (
                    rec.path(above), name, rec.layers[above]['below'], fmt))
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
    path = _file_of(root, name)
    old = _volume_of(root, os.path.relpath(path, root))
    if old == volume:
        return chain.describe(root, volume)
    if old is not None:
        return chain.take_over(root, old, volume, size)
    actual = _readable_size(path, {'format': fmt, 'parent': None})
    if actual > size:
        raise exception.SizeMismatch(
            path=path, actual=actual, expected=size,
            reason='manage it with a larger size.')
    if qemu_img.is_written(path):
        raise exception.VolumeBusy(volume=path, holder='a guest')
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
            layers.grow(rec.path(rec.active), rec.top, size)
        except Exception as exc:
            if os.path.lexists(rec.path(rec.active)):
                os.rename(rec.path(rec.active), path)
            record.remove(root, volume)
            if getattr(exc, 'errno', None) != errno.EXDEV:
                raise
            raise exception.RecordError(
                volume=volume, reason='%s belongs to another project quota '
                'than the share. Move it into the directory of the share.'
                % path) from exc
        record.sync_directory(root)
        rec.finish()
        return chain.description(rec)


def manageable(root):
    """The volumes on a share, and files that could become volumes.

    :returns: dictionaries with ``name`` (of the active file), ``volume`` (the
              name_id of the record, or None), ``owner`` (the name_id that the
              name of a file without a record stands for, or None), ``size``
              (bytes; of the file where there is no record) and ``layers``, a
              list of ``name``, ``size`` and ``snapshot`` (an id or None) of
              each layer below the active file
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
        files.difference_update(_names(rec))
        names = {overlay: snapshot
                 for snapshot, overlay in rec.snapshots.items()}
        chained = [rec.active, *layers.below(rec, rec.active)]
        found.append({'name': rec.active, 'volume': volume, 'owner': volume,
                      'size': rec.top['size'], 'layers': [
                          {'name': name, 'size': rec.layers[name]['size'],
                           'snapshot': names.get(overlay)}
                          for overlay, name in itertools.pairwise(chained)
                          if not rec.layers[overlay].get('deleted')]})
    for name in sorted(files):
        worker.progress(None)
        if not record.is_plain(name) or name.endswith('.info'):
            continue
        try:
            status = os.lstat(os.path.join(root, name))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append({'name': name, 'volume': None, 'layers': [],
                          'owner': _owner(name), 'size': status.st_size})
    return found


def look_up(root, name, fmt):
    """What :func:`manage` would take over.

    :param fmt: the format of a file without a record
    :returns: ``size`` (bytes), ``volume`` (the name_id of the record, or
              None) and ``owner`` (the name_id that the name of a file stands
              for, or None)
    """
    path = _file_of(root, name)
    name = os.path.relpath(path, root)
    old = _volume_of(root, name)
    if old is not None:
        rec = record.load(root, old, repair=False)
        return {'size': rec.top['size'], 'volume': old, 'owner': old}
    return {'size': _readable_size(path, {'format': fmt, 'parent': None}),
            'volume': None, 'owner': _owner(name)}


def _readable_size(path, layer):
    """The virtual size of an image that others made, once QEMU reads it."""
    size = layers.checked_size(path, layer)
    if layer['format'] != 'raw':
        # Not before that: it would open another file that the image names.
        qemu_img.info(path, layer['format'])
    return size


def _owner(name):
    found = _VOLUME_NAME.match(name)
    return found and found[1]


def _names(rec):
    """All files that a record speaks of."""
    intent = rec.intent or {}
    return {*rec.layers, *intent.get('obsolete', ()),
            *(intent[role] for role in ('file', 'lower') if role in intent),
            *(child for layer in rec.layers.values()
              for child in layer['children'])}


def name_snapshot(root, volume, snapshot, name):
    """Let a layer without a snapshot's name be a snapshot of its volume.

    :param name: the file that holds the snapshot's data, or the id that
        the snapshot had before it was unmanaged
    :returns: the virtual size of the snapshot in bytes
    """
    with chain.opened(root, volume) as rec:
        overlay, lower = _overlay_over(rec, name)
        if snapshot in rec.snapshots:
            raise exception.RecordError(
                volume=volume, reason='it has a snapshot %s already.'
                % snapshot)
        rec.snapshots[snapshot] = overlay
        rec.save()
        return rec.layers[lower]['size']


def snapshot_size(root, volume, name):
    """The virtual size in bytes of a layer that could become a snapshot."""
    with chain.opened(root, volume, mergeable=False) as rec:
        _overlay, lower = _overlay_over(rec, name)
        return rec.layers[lower]['size']


def forget_snapshot(root, volume, snapshot):
    """Drop the name of a snapshot, and keep its data where they are."""
    with chain.opened(root, volume) as rec:
        if snapshot in rec.snapshots:
            del rec.snapshots[snapshot]
            rec.save()


def _overlay_over(rec, name):
    """The active chain's overlay on a layer, and that layer.

    :param name: of the layer, or the id that its snapshot had
    :raises: RecordError when it is no layer, or is a snapshot
    """
    chain = [rec.active, *layers.below(rec, rec.active)]
    former = '%s.%s' % (record.base_name(rec.volume), name)
    if former in chain[:-1]:
        name = chain[chain.index(former) + 1]
    if name not in chain[1:]:
        raise exception.RecordError(
            volume=rec.volume, reason='%s is no layer below its active file. '
            'List what can be managed.' % name)
    overlay = chain[chain.index(name) - 1]
    if overlay in rec.snapshots.values():
        raise exception.RecordError(
            volume=rec.volume, reason='%s already is one of its snapshots.'
            % name)
    if rec.layers[overlay].get('deleted'):
        raise exception.RecordError(
            volume=rec.volume, reason='%s is what a deleted snapshot has '
            'left, and is soon merged.' % name)
    return overlay, name


def _file_of(root, name):
    """The path of a file by its name relative to the share.

    :raises: LustreException when it cannot be a volume
    """
    path = os.path.normpath(os.path.join(root, name))
    directory, last = os.path.split(path)
    top = os.path.realpath(root)
    parts = os.path.relpath(os.path.realpath(directory), top).split(os.sep)
    if os.pardir in parts or record.DIRECTORY in parts:
        problem = 'it is not on the share'
    elif directory != root and os.path.lexists(
            os.path.join(directory, record.DIRECTORY)):
        problem = 'its directory is a share of its own'
    elif last.startswith('.') or last.endswith('.info'):
        problem = 'it is a file of the driver'
    elif os.path.lexists(path) and os.lstat(path).st_nlink > 1:
        problem = 'it is a hard link, or a directory'
    else:
        return path
    raise exception.LustreException(
        reason='%s cannot be managed: %s.' % (name, problem))


def _volume_of(root, name):
    """The name_id of the volume that has a file active, or None."""
    found = None
    for volume in record.volumes(root):
        worker.progress(None)
        try:
            rec = record.load(root, volume, repair=False)
        except exception.RecordError as exc:
            # It was deleted meanwhile, or is for others to repair.
            if _owner(name) == volume:
                raise
            LOG.debug('Volume %(volume)s is left out: %(error)s',
                      {'volume': volume, 'error': exc})
            continue
        if name == rec.active:
            if rec.intent and 'old' in rec.intent:
                # It counts, although the record of the old one is there.
                return volume
            found = volume
        elif name in _names(rec):
            raise exception.RecordError(
                volume=volume, reason='%s is a layer of it, and cannot be a '
                'volume on its own; %s is its active file.' % (
                    name, rec.active))
    return found
