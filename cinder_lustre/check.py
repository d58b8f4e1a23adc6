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

"""Compares the files and the records of a share.

It runs in a worker child. Nothing that a guest wrote is interpreted: only
headers of files that are qcow2 by their record are read. Without repair,
nothing is changed.
"""

import fcntl
import json
import logging
import os
import re
import stat
import time

from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

ERROR, WARNING, NOTE = 'error', 'warning', 'note'

# Where a lock is tried, Lustre may first have to evict a dead host (seconds).
_EVICTION = 180
# What does not hold the fence may be at work for so long (seconds).
_SETTLING = 3 * 3600
# Operations that leave the fence while Nova does its part; only the driver,
# under its own lock, can tell how they ended.
_UNFENCED = ('online-snapshot', 'online-merge')
# Before these end, there may be no file.
_FILELESS = ('create', 'manage')

# The files that are the driver's; any others are the operator's. The first
# match counts.
_KINDS = [(kind, re.compile(pattern)) for kind, pattern in (
    ('temporary', r'\.tmp-(?P<volume>.+)'),
    ('new', r'\.volume-(?P<volume>[^.]+)\.info\.new'),
    ('new', r'\.cinder-lustre/\.(?P<volume>[^.]+)\.json\.new'),
    ('lock', r'\.cinder-lustre/(?P<volume>[^.]+)\.lock'),
    ('mirror', r'volume-(?P<volume>[^.]+)\.info'),
    ('file', r'volume-(?P<volume>[^.]+)(\..+)?'),
    ('file', r'base-[0-9a-f-]{36}(?P<volume>)'))]
_VOLUME_ID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')

_RESTORE = 'Restore it from a backup of the share.'
_REMOVE = 'Remove it; --repair does.'


def check(root, volume=None, repair=False):
    """Compare what lies on a share.

    The parent is told of each volume, as ``volume`` (None at the end),
    ``done``, ``total`` and ``findings`` (those since the last time).

    :param root: the share's directory
    :param volume: the name_id of the only volume to look at
    :param repair: put right what can be without any loss
    :returns: ``findings`` (a list of dictionaries with ``severity``,
              ``code``, ``volume``, ``thing``, ``cause``, ``cure``, and
              ``repaired``, which says what was done or is None),
              ``skipped`` (the volumes that are at work, or have a record
              that cannot be read) and ``volumes`` (``format``, ``size`` and
              ``snapshots`` of all others, by name_id)
    :raises: LustreException when this user must not repair
    """
    if repair:
        _check_user(os.path.join(root, record.DIRECTORY))
    return _Check(root, repair).run(volume)


class _Check:
    """One look at a share."""

    def __init__(self, root, repair):
        self.root = root
        self.repair = repair
        self.findings = []
        self.volumes = {}
        self.skipped = set()
        # Names of files that belong to a volume, whatever they look like.
        self._claimed = set()
        # The volumes that write to a file, by its name.
        self._writers = {}
        self._foreign_children = []
        self._reported = 0

    def run(self, only):
        # The files first: what is made meanwhile is in a later list, too.
        files = os.listdir(self.root)
        records = self._list_records()
        names = sorted(match['volume'] for match in (
            re.fullmatch(r'(?P<volume>[^.].*)\.json', name)
            for name in records) if match)
        if only is not None:
            names = [name for name in names if name == only]
        self._check_directory()
        for done, volume in enumerate(names):
            self._report(volume, done, len(names))
            self._check_volume(volume)
        self._report(None, len(names), len(names))
        self._check_children()
        self._check_leftovers(files, records, set(names), only)
        if only is not None and not names and not any(
                finding['volume'] == only for finding in self.findings):
            self._add(ERROR, 'volume-missing', only, None,
                      'it has neither a record nor files on this share.',
                      'Look for it on the other shares.')
        self._report(None, len(names), len(names))
        return {'findings': self.findings, 'volumes': self.volumes,
                'skipped': sorted(self.skipped)}

    def _list_records(self):
        try:
            return os.listdir(self._path(record.DIRECTORY))
        except FileNotFoundError:
            self._add(NOTE, 'no-records', None,
                      self._path(record.DIRECTORY), 'it is not there.',
                      'No volume was ever made here, or the share is not '
                      'mounted.')
            return []

    def _path(self, *names):
        return os.path.join(self.root, *names)

    def _report(self, volume, done, total):
        worker.progress({'volume': volume, 'done': done, 'total': total,
                         'findings': self.findings[self._reported:]})
        self._reported = len(self.findings)

    def _add(self, severity, code, volume, path, cause, cure):
        finding = {'severity': severity, 'code': code,
                   'volume': volume or None,
                   'thing': path or 'volume %s' % volume, 'cause': cause,
                   'cure': cure, 'repaired': None}
        self.findings.append(finding)
        return finding

    def _offer(self, function, severity, code, volume, path, *texts):
        """Add a finding, and put it right where that is wanted.

        :param function: says what it has done, or None where it cannot
        """
        finding = self._add(severity, code, volume, path, *texts)
        if not self.repair:
            return
        try:
            finding['repaired'] = function(self.root, volume, path)
        except (exception.LustreException, OSError) as exc:
            LOG.warning('%(thing)s was left as it is: %(error)s',
                        {'thing': finding['thing'], 'error': exc})

    # One volume

    def _check_volume(self, volume):
        with _SharedFence(self.root, volume) as fence:
            if not fence.free:
                self._skip_busy(volume)
                return
            rec = self._load(volume)
            if rec is None:
                return
            self._claim(rec)
            mirror = False
            if rec.intent is None:
                self.volumes[volume] = {
                    'format': rec.top['format'], 'size': rec.top['size'],
                    'snapshots': sorted(rec.snapshots)}
                self._check_layers(rec)
                mirror = self._is_mirror_wrong(rec)
            elif rec.intent['operation'] not in _FILELESS:
                self._check_layers(rec, settled=False)
        # Whoever repairs needs the fence alone.
        if rec.intent is not None:
            self.skipped.add(volume)
            self._check_pending(rec)
        elif mirror:
            self._offer(_rewrite_mirror, WARNING, 'mirror', volume,
                        self._mirror(volume),
                        'it differs from the record of the volume.',
                        'The driver writes it anew at its next use, and '
                        '--repair does.')

    def _skip_busy(self, volume):
        self.skipped.add(volume)
        try:
            rec = record.load(self.root, volume, repair=False)
        except exception.RecordError:
            # It has just been deleted, or whoever holds the fence is told.
            rec = None
        if rec:
            self._claim(rec)
        self._add(NOTE, 'at-work', volume, None, 'it is being worked on%s, '
                  'and was not looked at.' % (
                      ' (%s)' % _describe(rec.intent)
                      if rec and rec.intent else ''),
                  'Check it again later.')

    def _load(self, volume):
        try:
            return record.load(self.root, volume, repair=False)
        except exception.RecordMissing:
            # It was deleted while others were looked at.
            return None
        except exception.RecordError as exc:
            self.skipped.add(volume)
            cause, _dot, cure = exc.kwargs['reason'].rpartition('. ')
            self._add(ERROR, 'record-newer' if self._is_newer(volume)
                      else 'record-damaged', volume,
                      self._path(record.DIRECTORY, volume + '.json'),
                      cause + '.', cure)
            return None

    def _is_newer(self, volume):
        try:
            with open(self._path(record.DIRECTORY, volume + '.json')) as file:
                return json.load(file)['version'] > record.VERSION
        except (KeyError, OSError, TypeError, ValueError):
            return False

    def _claim(self, rec):
        self._claimed.update(rec.layers)
        intent = rec.intent or {}
        self._claimed.update(intent.get('obsolete', ()))
        self._claimed.update(intent[role] for role in ('file', 'source')
                             if role in intent)
        if rec.intent is None:
            other = self._writers.setdefault(rec.active, rec.volume)
            if other != rec.volume:
                self._add(ERROR, 'file-shared', rec.volume,
                          rec.path(rec.active),
                          'it is the active file of volume %s and of volume '
                          '%s.' % (other, rec.volume),
                          'Do not attach both; remove the record of the one '
                          'that Cinder does not know.')

    def _check_layers(self, rec, settled=True):
        missing = []
        for name, layer in rec.layers.items():
            worker.progress(None)
            try:
                status = os.lstat(rec.path(name))
            except FileNotFoundError:
                missing.append(name)
                continue
            if not stat.S_ISREG(status.st_mode):
                self._add(ERROR, 'file-type', rec.volume, rec.path(name),
                          'it is not a regular file, so nothing was read '
                          'from it.', 'Check where it came from.')
                continue
            self._check_mode(rec.volume, rec.path(name), status)
            if settled:
                self._check_image(rec, name, layer, status)
            for child in layer['children']:
                if child not in rec.layers:
                    self._foreign_children.append((rec, name, child))
        if len(missing) == len(rec.layers):
            self._add(ERROR, 'record-without-files', rec.volume, None,
                      'it has a record, but none of its files (%s) is there.'
                      % ', '.join(sorted(missing)),
                      'Restore them from a backup of the share, or delete '
                      'the volume.')
            return
        for name in missing:
            self._add(ERROR, 'layer-missing', rec.volume, rec.path(name),
                      'it is not there, and the volume cannot be read '
                      'without it.', _RESTORE)

    def _check_image(self, rec, name, layer, status):
        path = rec.path(name)
        size = status.st_size
        if layer['format'] != 'raw':
            try:
                image = qemu_img.info(path, layer['format'])
            except exception.CommandFailed as exc:
                self._add(ERROR, 'unreadable', rec.volume, path,
                          'qemu-img cannot read it as %s: %s.' % (
                              layer['format'], exc.kwargs['stderr']),
                          'Run the check as the user of the service; if that '
                          'does not help, restore it from a backup of the '
                          'share.')
                return
            size = image['virtual-size']
            self._check_references(rec, path, layer, image)
        if size != layer['size']:
            small = size < layer['size']
            self._add(WARNING if small else ERROR,
                      'size-smaller' if small else 'size-larger', rec.volume,
                      path, 'its virtual size is %d bytes, its record says '
                      '%d.' % (size, layer['size']),
                      'The driver grows the active file at its next use; '
                      'look for what cut it.' if small else
                      'Something else than Cinder changed it; compare it '
                      'with a backup of the share.')

    def _check_references(self, rec, path, layer, image):
        details = image.get('format-specific', {}).get('data', {})
        parent = layer['parent']
        expected = (parent, parent and rec.layers[parent]['format'])
        found = (image.get('backing-filename'),
                 image.get('backing-filename-format'))
        if found != expected:
            self._add(ERROR, 'backing', rec.volume, path,
                      'it says that %s (%s) lies below it, its record names '
                      '%s (%s).' % (found + expected),
                      'Do not open it with any program; check where it came '
                      'from.')
        if 'data-file' in details or 'data-file-raw' in details:
            self._add(ERROR, 'data-file', rec.volume, path,
                      'it refers to the data file %s.'
                      % details.get('data-file'),
                      'Do not open it with any program; check where it came '
                      'from.')
        if details.get('corrupt'):
            self._add(ERROR, 'corrupt', rec.volume, path,
                      'QEMU has marked it as corrupt.',
                      'Detach the volume and run "qemu-img check -f qcow2" '
                      'on a copy of it.')

    def _mirror(self, volume):
        return self._path(record.base_name(volume) + '.info')

    def _is_mirror_wrong(self, rec):
        path = self._mirror(rec.volume)
        try:
            with open(path, 'rb') as stream:
                content = stream.read()
        except FileNotFoundError:
            return rec.info is not None
        self._check_mode(rec.volume, path, os.lstat(path))
        try:
            return json.loads(content) != rec.info
        except ValueError:
            return True

    def _check_pending(self, rec):
        operation = rec.intent['operation']
        told = _describe(rec.intent)
        if operation == 'arrive':
            self._add(NOTE, 'arrived', rec.volume, None,
                      'it was copied here by a migration (%s).' % told,
                      'It counts once Cinder names this share as its place; '
                      'otherwise delete it.')
        elif operation in _UNFENCED and _age(rec.intent) < _SETTLING:
            self._add(NOTE, 'at-work', rec.volume, None,
                      'it may be at work (%s), and was not looked at.' % told,
                      'Check it again later.')
        elif operation in _UNFENCED:
            self._add(WARNING, 'pending', rec.volume, None,
                      'an operation did not end (%s).' % told,
                      'The driver ends or undoes it at the next use of the '
                      'volume.')
        elif operation == 'create':
            self._offer(_remove_creation, WARNING, 'unfinished-creation',
                        rec.volume, None,
                        'its creation did not end (%s).' % told,
                        'Delete the volume; --repair removes its files.')
        else:
            self._offer(_settle, WARNING, 'pending', rec.volume, None,
                        'an operation did not end (%s).' % told,
                        'The driver ends or undoes it at the next use of the '
                        'volume, and --repair does.')

    # What belongs together

    def _check_directory(self):
        path = self._path(record.DIRECTORY)
        try:
            self._check_mode(None, path, os.lstat(path))
        except FileNotFoundError:
            # There is a note about it.
            pass

    def _check_mode(self, volume, path, status):
        if status.st_mode & stat.S_IRWXO:
            self._add(WARNING, 'mode', volume, path,
                      'its mode %04o lets all users in.' % stat.S_IMODE(
                          status.st_mode), 'Run "chmod o= %s".' % path)

    def _check_children(self):
        for rec, name, child in self._foreign_children:
            if child not in self._claimed and not os.path.lexists(
                    rec.path(child)):
                self._add(WARNING, 'child-missing', rec.volume,
                          rec.path(name), 'its record says that %s lies '
                          'above it, which is not there.' % child,
                          'It does no harm, but what is below cannot be '
                          'merged.')

    # What belongs to nothing

    def _check_leftovers(self, files, records, known, only):
        leftovers = {}
        for name in [*files, *(os.path.join(record.DIRECTORY, name)
                               for name in records)]:
            kind, volume = _kind(name)
            if kind and name not in self._claimed and not (
                    volume in known and kind in ('lock', 'mirror')) and (
                    only in (None, volume) and volume not in self.skipped):
                leftovers.setdefault(volume, []).append((kind, name))
        if leftovers:
            self._claim_others(known)
        for volume, found in sorted(leftovers.items()):
            worker.progress(None)
            self._check_leftover(volume, sorted(found), volume in known)

    def _claim_others(self, known):
        """Claim what belongs to volumes that were not looked at."""
        for volume in set(record.volumes(self.root)) - known:
            worker.progress(None)
            try:
                self._claim(record.load(self.root, volume, repair=False))
            except exception.RecordError:
                # It tells nothing about files.
                continue

    def _check_leftover(self, volume, found, recorded):
        """Look at files that no record explains."""
        with _SharedFence(self.root, volume) as fence:
            # One that was made meanwhile is somebody's work.
            if not fence.free or (not recorded and
                                  record.exists(self.root, volume)):
                return
            pending = record.intent(self.root, volume)
        kinds = {kind for kind, _name in found}
        for kind, name in found:
            path = self._path(name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if name in self._claimed:
                continue
            if kind == 'lock':
                if kinds == {'lock'}:
                    self._offer(_remove_lock, WARNING, 'lock-without-record',
                                volume, path,
                                'there is no record of its volume.', _REMOVE)
            elif kind == 'new':
                # The next record takes its place.
                self._offer(_remove_file, NOTE, 'temporary', volume, path,
                            'whoever wrote it has ended before it was '
                            'complete.', _REMOVE)
            elif kind in ('file', 'mirror'):
                self._add(WARNING, 'file-without-record', volume, path,
                          'no record names it.', 'If Cinder knows the '
                          'volume, the driver records it at its next use '
                          'where it can; otherwise manage the file, or move '
                          'it away.')
            elif pending is None and (
                    _VOLUME_ID.fullmatch(volume) or
                    time.time() - status.st_mtime > _SETTLING):
                # Statistics make files that live for a moment.
                self._offer(_remove_file, WARNING, 'temporary', volume, path,
                            'no operation needs it any more.', _REMOVE)


class _SharedFence:
    """A try to keep those away who would change a volume.

    :ivar free: whether nobody was at work; a volume without a lock is
                nobody's work
    """

    def __init__(self, root, volume):
        self._path = os.path.join(root, record.DIRECTORY, volume + '.lock')
        self._descriptor = None
        self.free = True

    def __enter__(self):
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return self
        try:
            with worker.patience(_EVICTION):
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.free = False
        return self

    def __exit__(self, *exc_info):
        if self._descriptor is not None:
            os.close(self._descriptor)


def _check_user(path):
    """See that the service can read what is written here."""
    try:
        owner = os.stat(path).st_uid
    except FileNotFoundError:
        # There is nothing to repair.
        return
    if owner != os.geteuid():
        raise exception.LustreException(
            reason='%s belongs to user %d, and what user %d repairs would be '
            'closed to the service. Run the repair as user %d.' % (
                path, owner, os.geteuid(), owner))


def _kind(name):
    """What a name in a share stands for, and the volume it belongs to.

    :returns: None and None for what is not the driver's; the volume of a
              layer that is no volume's own is ''
    """
    for kind, pattern in _KINDS:
        match = pattern.fullmatch(name)
        if match:
            return kind, match['volume']
    return None, None


def _describe(intent):
    return '"%s" on host %s, begun %s ago' % (
        intent['operation'], intent.get('host'), _duration(_age(intent)))


def _age(intent):
    started = intent.get('started')
    return time.time() - (started if isinstance(started, int) else 0)


def _duration(seconds):
    for unit, length in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * length:
            return '%d %s' % (seconds // length, unit)
    return '%d seconds' % max(seconds, 0)


# Repairs. Each takes the fence and looks again: others may have been there.

def _rewrite_mirror(root, volume, _path):
    with record.fence(root, volume):
        record.load(root, volume)
        if record.load(root, volume, repair=False).unsettled:
            return None
    return 'It was written anew.'


def _remove_creation(root, volume, _path):
    with record.fence(root, volume, create=True):
        rec = record.load(root, volume, repair=False)
        if rec.intent is None or rec.intent['operation'] != 'create':
            return None
        record.remove_file(rec.path('.tmp-' + volume))
        record.remove_file(rec.path(rec.active))
        record.remove(root, volume)
    return 'What it left was removed.'


def _settle(root, volume, _path):
    chain.describe(root, volume)
    if record.intent(root, volume) is not None:
        return None
    return 'It was ended or undone.'


def _remove_lock(root, volume, _path):
    # A fence goes with its lock where there is no record.
    with record.fence(root, volume, create=True):
        pass
    return None if record.exists(root, volume) else 'It was removed.'


def _remove_file(root, volume, path):
    if not _VOLUME_ID.fullmatch(volume):
        record.remove_file(path)
        return 'It was removed.'
    with record.fence(root, volume, create=True):
        if record.intent(root, volume) is not None:
            return None
        record.remove_file(path)
    return 'It was removed.'
