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

"""A volume's record on its share: the sidecar, its mirror and the fence.

The sidecar ``.cinder-lustre/<name_id>.json`` is the truth about a volume's
files; ``volume-<name_id>.info`` mirrors it in the form of Cinder's RemoteFS
drivers. The fence is a flock on ``.cinder-lustre/<name_id>.lock``, which
Lustre honours between hosts.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import time

from cinder_lustre import exception
from cinder_lustre import lfs
from cinder_lustre import qemu_img
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

VERSION = 1
DIRECTORY = '.cinder-lustre'

# Seconds that an operation waits for another one's children to end.
_FENCE_WAIT = 30
_FENCE_POLL = 0.1
# Seconds that the servers take to evict a dead host that holds a lock (seen:
# 110), and some more.
_EVICTION = 180
# What qemu-img takes for a file name wherever it stands.
_PLAIN_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]*')
# What an intent says besides its operation, for whoever ends that; where an
# operation is not listed, the record itself says all.
_OVERLAY = {'snapshot': str, 'file': str, 'lower': str}
_STEPS = {
    'snapshot': _OVERLAY,
    'online-snapshot': _OVERLAY,
    'merge': dict(_OVERLAY, snapshot=(str, type(None))),
    'online-merge': _OVERLAY,
    'remove': {'file': str},
    'switch': {'file': str, 'layer': dict, 'obsolete': list},
    'manage': {'source': str},
    'take-over': {'old': str},
}


class Record:
    """What the sidecar of one volume says.

    Layers are the volume's image files by name: ``format``, virtual ``size``
    in bytes, ``parent`` (the file below) and ``children`` (the files above),
    ``thick``, and ``deleted`` where the snapshot that made the file is deleted
    and the file still to be merged into its parent. ``snapshots`` maps a
    snapshot id to the overlay that it made, as RemoteFS does: the snapshot's
    data lie in that overlay's parent.

    :param root: the mounted share's directory
    :param volume: the volume's name_id
    """

    def __init__(self, root, volume, active, layers, snapshots=None,
                 intent=None):
        self.root = root
        self.volume = volume
        self.active = active
        self.layers = layers
        self.snapshots = snapshots or {}
        self.intent = intent
        self._mirrored = None
        # Whether something is left for the next operation to do.
        self.unsettled = False

    @property
    def top(self):
        """The layer that guests write to."""
        return self.layers[self.active]

    @property
    def info(self):
        """The content of the mirror, or None when there is none."""
        if (not self.snapshots and self.top['parent'] is None and
                self.active == base_name(self.volume)):
            return None
        return dict(self.snapshots, active=self.active)

    def path(self, name):
        """The full path of a file of this volume."""
        return os.path.join(self.root, name)

    def of_snapshot(self, snapshot):
        """The file that holds a snapshot's data.

        :raises: SnapshotNotFound
        """
        overlay = self.snapshots.get(snapshot)
        if overlay is None:
            raise exception.SnapshotNotFound(volume=self.volume,
                                             snapshot=snapshot)
        return self.layers[overlay]['parent']

    def add_layer(self, name, fmt, size, parent=None, thick=False):
        self.layers[name] = {'format': fmt, 'size': size, 'parent': parent,
                             'children': [], 'thick': thick}

    def begin(self, operation, **steps):
        """Write down what is about to happen, before it does."""
        self.intent = dict(steps, operation=operation,
                           host=socket.gethostname(), boot_id=_boot_id(),
                           pid=os.getpid(), started=int(time.time()))
        self.save()

    def finish(self):
        """Write down that nothing is left to do."""
        self.intent = None
        self.save()

    def save(self):
        """Replace the sidecar, then the mirror, each in one step."""
        _replace(_sidecar(self.root, self.volume),
                 {'version': VERSION, 'volume': self.volume,
                  'active': self.active, 'snapshots': self.snapshots,
                  'layers': self.layers, 'intent': self.intent}, 0o600)
        if self.info != self._mirrored:
            self._save_mirror()

    def _save_mirror(self):
        path = _mirror(self.root, self.volume)
        if self.info is None:
            remove_file(path)
        else:
            _replace(path, self.info, 0o660)
        self._mirrored = self.info


def load(root, volume, repair=True):
    """Read and check the record of a volume; the fence must be held.

    A mirror that differs is written anew: the sidecar is the truth.

    :param repair: write the mirror; not under a shared fence
    :raises: RecordMissing; RecordError when it is damaged, or of a newer
             release
    """
    path = _sidecar(root, volume)
    content = _read(path)
    if content is None:
        raise exception.RecordMissing(
            volume=volume, reason='there is no %s. Restore it from a backup '
            'of the share before using the volume.' % path)
    try:
        data = json.loads(content)
        version = data['version']
        if version > VERSION:
            raise exception.RecordError(
                volume=volume, reason='%s has version %s, and this release '
                'knows version %s. Upgrade cinder-lustre on this host.' % (
                    path, version, VERSION))
        if version < 1 or data['volume'] != volume:
            raise ValueError('version %r of volume %r' % (
                version, data['volume']))
        record = Record(root, volume, data['active'], data['layers'],
                        data['snapshots'], data['intent'])
        check(record)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _damage(volume, path, exc) from exc
    mirror = _read(_mirror(root, volume))
    record._mirrored = record.info
    outdated = mirror != (record.info and _serialise(record.info))
    record.unsettled = outdated or record.intent is not None
    if outdated and repair:
        LOG.info('Writing %s anew from the record of the volume.',
                 _mirror(root, volume))
        try:
            record._save_mirror()
        except exception.NoSpace as exc:
            # Nothing of ours reads it, and the next change writes it again.
            record._mirrored = None
            LOG.warning('The mirror of the record of volume %(volume)s stays '
                        'outdated: %(error)s',
                        {'volume': volume, 'error': exc})
    return record


def remove(root, volume):
    """Remove the mirror, the sidecar and what a killed process left of them.

    The sidecar goes last: as long as it is there, a deletion can be repeated.
    """
    for path in (_mirror(root, volume), _sidecar(root, volume)):
        remove_file(_temporary(path))
        remove_file(path)


def base_name(volume):
    """The name of a volume's first file."""
    return 'volume-' + volume


def exists(root, volume):
    """Whether a volume has a record."""
    return os.path.lexists(_sidecar(root, volume))


def read_mirror(root, volume):
    """The names of files by snapshot id in what RemoteFS drivers wrote.

    :returns: also the active file, by 'active'; without a mirror, the base
    :raises: RecordError when it is damaged
    """
    path = _mirror(root, volume)
    content = _read(path)
    if content is None:
        return {'active': base_name(volume)}
    try:
        info = json.loads(content)
        info['active']
        for name in info.values():
            _check_name(name)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _damage(volume, path, exc) from exc
    return info


def volumes(root):
    """The name_ids of the volumes that have a record, in no order."""
    try:
        with os.scandir(os.path.join(root, DIRECTORY)) as entries:
            return [entry.name[:-len('.json')] for entry in entries
                    if entry.name.endswith('.json')]
    except FileNotFoundError:
        return []


def intent(root, volume):
    """The intent of a volume, read without its fence; None without one."""
    try:
        return json.loads(_read(_sidecar(root, volume)) or '{}').get('intent')
    except (AttributeError, ValueError):
        # Whoever uses the volume is told that its record is damaged.
        return None


def _damage(volume, path, error):
    return exception.RecordError(
        volume=volume, reason='%s is damaged (%r). Restore it from a backup '
        'of the share before using the volume.' % (path, error))


def check(record):
    """Raise ValueError unless names are plain and the chain is one."""
    for name, layer in record.layers.items():
        _check_layer(record, name, layer)
    if record.intent is not None:
        _check_intent(record, record.intent)
    seen = set()
    name = record.active
    while name is not None:
        if name in seen:
            raise ValueError('%s lies below itself' % name)
        seen.add(name)
        name = record.layers[name]['parent']
    if len(set(record.snapshots.values())) < len(record.snapshots):
        raise ValueError('two snapshots have one file')
    for snapshot, name in record.snapshots.items():
        if name not in seen or record.layers[name]['parent'] is None:
            raise ValueError('snapshot %s has no file below %s' % (
                snapshot, name))


def _check_layer(record, name, layer):
    _check_name(name)
    if layer['format'] not in qemu_img.FORMATS:
        raise ValueError('%r is not a format' % layer['format'])
    if not isinstance(layer['size'], int) or layer['size'] < 0:
        raise ValueError('%r is not a size' % layer['size'])
    for value in (layer['thick'], layer.get('deleted', False)):
        if not isinstance(value, bool):
            raise ValueError('%r is not yes or no' % (value,))
    parent = layer['parent']
    if parent is not None and name not in record.layers[parent]['children']:
        raise ValueError('%s does not list its child %s' % (parent, name))
    for child in layer['children']:
        _check_name(child)
        if record.layers.get(child, {'parent': name})['parent'] != name:
            raise ValueError('%s is no child of %s' % (child, name))


def _check_intent(record, intent):
    operation = intent.get('operation')
    if not isinstance(operation, str):
        raise ValueError('%r is no intent' % intent)
    steps = _STEPS.get(operation, {})
    for step, kind in steps.items():
        if not isinstance(intent[step], kind):
            raise ValueError('%r is no %s of "%s"' % (intent[step], step,
                                                      operation))
    for role in {'file', 'lower', 'old'} & set(intent):
        _check_name(intent[role])
    for name in intent.get('obsolete', ()):
        _check_name(name)
    if 'layer' in steps:
        _check_layer(record, intent['file'], intent['layer'])
    if ('lower' in steps and intent['file'] not in
            record.layers[intent['lower']]['children']):
        raise ValueError('%(file)s is no child of %(lower)s' % intent)
    if operation in ('merge', 'online-merge'):
        above = record.layers[intent['file']]['children']
        if (intent['snapshot'] not in {None, *record.snapshots} or
                set(above) - set(record.layers)):
            raise ValueError('%(file)s cannot be merged' % intent)
    if operation == 'remove' and intent['file'] in record.layers:
        raise ValueError('%(file)s still is a layer' % intent)


def is_plain(name):
    """Whether a name stands for a file of the share, wherever it is used."""
    return bool(_PLAIN_NAME.fullmatch(name))


def _check_name(name):
    if not is_plain(name):
        raise ValueError('%r is not a plain file name' % name)


@contextlib.contextmanager
def fence(root, volume, create=False, shared=False, patient=False):
    """Keep every other process of every host away from a volume's files.

    Children inherit the lock, so that one which outlives its parent keeps it.
    What is made meanwhile is for the service's user and group alone.

    :param create: make the lock, for a volume that is new here
    :param shared: only keep those away that would change the files
    :param patient: wait for as long as others only read
    :raises: VolumeBusy, RecordMissing when the volume is unknown
    """
    umask = os.umask(0o007)
    try:
        with _locked(root, volume, create, shared, patient):
            yield
    finally:
        os.umask(umask)


@contextlib.contextmanager
def _locked(root, volume, create, shared, patient):
    if create:
        _make_directory(root)
    path = os.path.join(root, DIRECTORY, volume + '.lock')
    deadline = time.monotonic() + _FENCE_WAIT
    while True:
        try:
            # A restored share may lack the lock of a volume that it has.
            missing = os.O_CREAT * (create or exists(root, volume))
            with exception.naming(path):
                descriptor = os.open(path, os.O_RDWR | missing, 0o600)
        except FileNotFoundError:
            raise exception.RecordMissing(
                volume=volume, reason='there is no %s, so the volume is not '
                'on this share.' % path) from None
        try:
            # Even without waiting, Lustre first evicts a host that is dead.
            with worker.patience(_EVICTION):
                fcntl.flock(descriptor, fcntl.LOCK_NB | (
                    fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        except BlockingIOError:
            if patient and _only_read(descriptor):
                deadline = time.monotonic() + _FENCE_WAIT
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise exception.VolumeBusy(volume=volume,
                                           holder=_holder(root, volume)
                                           ) from None
            worker.progress(None)
            time.sleep(_FENCE_POLL)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        # A deleted volume takes its lock along; this one may be a ghost.
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    os.set_inheritable(descriptor, True)
    removable = create
    try:
        yield
        removable = True
    finally:
        try:
            # The lock of a volume whose record got lost stays with its files.
            # Without those, it was made here after the volume was deleted.
            if not exists(root, volume) and (
                    removable or not os.path.lexists(
                        os.path.join(root, base_name(volume)))):
                remove_file(path)
        finally:
            os.close(descriptor)


def _only_read(descriptor):
    """Whether the holders of a lock share it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(root, volume):
    try:
        return '"%(operation)s" of process %(pid)s on host %(host)s' % intent(
            root, volume)
    except (KeyError, TypeError):
        return 'another process'


def _make_directory(root):
    path = os.path.join(root, DIRECTORY)
    try:
        with exception.naming(path):
            os.mkdir(path, 0o700)
    except FileExistsError:
        return
    # On the MDT a dead OST cannot hide the records.
    lfs.set_dom_default(path)
    sync_directory(root)


def remove_file(path):
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def sync_directory(path):
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with exception.naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path, content, mode):
    temporary = _temporary(path)
    try:
        with exception.naming(path):
            descriptor = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
            with open(descriptor, 'wb') as stream:
                stream.write(_serialise(content))
                stream.flush()
                os.fsync(descriptor)
            os.rename(temporary, path)
    except (OSError, exception.NoSpace):
        remove_file(temporary)
        raise
    sync_directory(os.path.dirname(path))


def _temporary(path):
    directory, name = os.path.split(path)
    return os.path.join(directory, '.%s.new' % name)


def _serialise(content):
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _read(path):
    try:
        with open(path, 'rb') as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _sidecar(root, volume):
    return os.path.join(root, DIRECTORY, volume + '.json')


def _mirror(root, volume):
    return os.path.join(root, base_name(volume) + '.info')


def _boot_id():
    with open('/proc/sys/kernel/random/boot_id') as stream:
        return stream.read().strip()
