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

"""The image files of a volume: making, growing, copying and checking them."""

import contextlib
import errno
import logging
import os
import stat

from cinder_lustre import exception
from cinder_lustre import qcow2
from cinder_lustre import qemu_img
from cinder_lustre import space
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

_ZEROS = bytes(4 << 20)
# Seconds more than a child may be silent while it brings a file to the disk:
# Lustre lets up to 2 GB wait for each OST (osc.*.max_dirty_mb).
_WRITE_BACK = 180
# Each that fails takes a few hundredths of a second.
_LUKS_TRIES = 50


def below(rec, name):
    """The layers below one, from top to bottom."""
    names = []
    while rec.layers[name]['parent'] is not None:
        name = rec.layers[name]['parent']
        names.append(name)
    return names


def above(rec, name):
    """The layers of the active chain above one."""
    chain = [rec.active, *below(rec, rec.active)]
    return chain[:chain.index(name)]


def copy_contents(rec, name, path, layer):
    """Write a chain's contents into a new image that looks like a layer."""
    fill(rec.path(name), rec.layers[name]['format'], path, layer)


def fill(source, fmt, path, layer, sparse=True, luks=None):
    """Write any image's contents into a new image that looks like a layer.

    :param luks: how to encrypt it, see make_image()
    """
    make_image(path, layer, luks)
    with written_back(path):
        if luks is None:
            qemu_img.convert(source, fmt, path, layer['format'],
                             empty_target=True, sparse=sparse)
        else:
            qemu_img.encrypt(source, fmt, path, luks['passphrase'])


def checked_chain(rec, name):
    """The virtual size of a layer; every layer from it down is checked.

    :raises: SizeMismatch when it is larger than the record says, which a
             guest may have brought about, and what checked_size() raises
    """
    path = rec.path(name)
    layer = rec.layers[name]
    actual = checked_size(path, layer, _format_below(rec, layer))
    if actual > layer['size']:
        raise exception.SizeMismatch(
            path=path, actual=actual, expected=layer['size'],
            reason='it was changed by something else than Cinder, so it is '
            'not used. Check the file.')
    while layer['parent'] is not None:
        path = rec.path(layer['parent'])
        layer = rec.layers[layer['parent']]
        checked_size(path, layer, _format_below(rec, layer))
    return actual


def _format_below(rec, layer):
    return layer['parent'] and rec.layers[layer['parent']]['format']


def checked_size(path, layer, backing_fmt=None):
    """The virtual size of an image that refers to nothing unexpected.

    :param backing_fmt: what the image must say of the one below it, so that
                        no program looks for itself
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
    header = qcow2.read_header(path)
    if header.backing != layer['parent'] or header.data_file is not None:
        raise exception.RecordError(
            volume=os.path.basename(path), reason='%s refers to %s, its '
            'record to %s. Nothing was read from it; check where the file '
            'came from.' % (path, header.data_file or header.backing,
                            layer['parent']))
    if backing_fmt not in (None, header.backing_fmt):
        raise exception.RecordError(
            volume=os.path.basename(path), reason='%s calls %s, below it, a '
            '%s image, its record a %s one. Nothing was read from it; check '
            'where the file came from.' % (
                path, layer['parent'], header.backing_fmt, backing_fmt))
    return header.size


def create_file(path):
    """Create a file that only the service and its group can open."""
    with exception.naming(path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)


def make_image(path, layer, luks=None):
    """Create an empty image.

    :param luks: for a raw layer that is encrypted, the arguments of
                 qemu_img.format_luks()
    """
    if layer['format'] != 'raw':
        with _created(path):
            _allocate(lambda allocation: qemu_img.create(
                path, layer['format'], layer['size'],
                preallocation=allocation), layer)
    elif luks is None:
        with _created(path) as descriptor:
            _grow_raw(descriptor, path, 0, layer)
    else:
        _make_header(path, luks)
        with written_back(path):
            grow(path, layer, layer['size'])


def _make_header(path, luks):
    for tries_left in reversed(range(_LUKS_TRIES)):
        # A failure removes it, and qemu-img would let others read a new one.
        try:
            with _created(path):
                qemu_img.format_luks(path, **luks)
            return
        except exception.CommandFailed as exc:
            if (not tries_left or
                    qemu_img.NOT_MEASURED not in exc.kwargs['stderr']):
                raise


def make_overlay(path, size, rec, lower):
    """Create an empty qcow2 overlay on top of a layer."""
    with _created(path):
        qemu_img.create(path, 'qcow2', size, backing=lower,
                        backing_fmt=rec.layers[lower]['format'])


def grow(path, layer, size):
    """Grow an image to a virtual size; one that has it stays as it is."""
    layer = dict(layer, size=size)
    if layer['format'] == 'raw':
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            _grow_raw(descriptor, path, os.fstat(descriptor).st_size, layer)
        finally:
            os.close(descriptor)
    elif checked_size(path, layer) < size:
        _allocate(lambda allocation: qemu_img.resize(
            path, layer['format'], size, preallocation=allocation), layer)


def _grow_raw(descriptor, path, start, layer):
    with exception.naming(path):
        if layer['thick']:
            _fallocate(descriptor, start, layer['size'])
        elif start < layer['size']:
            os.ftruncate(descriptor, layer['size'])


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
    try:
        space.allocate(descriptor, 0, size)
        return
    except OSError as exc:
        if exc.errno not in space.UNSUPPORTED:
            raise
    LOG.info('The share cannot allocate space without writing: writing '
             '%s bytes of zeros.', size - start)
    while start < size:
        start += os.pwrite(descriptor, _ZEROS[:size - start], start)
        worker.progress(100.0 * start / size)


def set_size(path, layer):
    """Give an image exactly its recorded size, after an unfinished extend."""
    actual = checked_size(path, layer)
    if actual <= layer['size']:
        return
    if layer['format'] == 'raw':
        os.truncate(path, layer['size'])
    else:
        qemu_img.resize(path, layer['format'], layer['size'], shrink=True)


def written_back(path):
    """Bring to the disk what other processes write to a file meanwhile.

    The file is open before they begin, as Linux tells an error in writing back
    to those only who had it open then. On older Lustre, who asks first takes
    it, and qemu-img ignores one when it closes a file: it should not flush.
    """
    return _held(os.open(path, os.O_RDONLY), path)


def _created(path):
    """Create a file that is then written_back(); gives its descriptor."""
    return _held(create_file(path), path)


@contextlib.contextmanager
def _held(descriptor, path):
    try:
        yield descriptor
        _write_back(descriptor, path)
    except Exception:
        # Who tries again has to read what is on the disk.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        raise
    finally:
        os.close(descriptor)


def _write_back(descriptor, path):
    with exception.naming(path), worker.patience(_WRITE_BACK):
        os.fsync(descriptor)
