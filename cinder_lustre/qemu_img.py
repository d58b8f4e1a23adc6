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

"""The only place that runs qemu-img; every image format is explicit.

Guests write the contents of volumes, so a format that is found by looking at
the contents is one that a guest has chosen. Paths are absolute, and options
never come from a file's contents.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import selectors
import struct
import subprocess

from cinder_lustre import exception
from cinder_lustre import worker

FORMATS = ('raw', 'qcow2')

# Seconds between two looks at whether a silent qemu-img still does I/O.
_BEAT = 5
_PERCENT = re.compile(rb'\((\d+\.\d+)/100%\)')
# What QEMU reports when it cannot write the tables of an image that it closes,
# with an exit code of zero.
_LOST = b'Failed to flush'
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
# More than eight requests at once gain nothing on one file. They go through
# the page cache, which Lustre 2.17 leaves out by itself where they are large.
# "unsafe" leaves it to the caller to bring them to the disk: QEMU would ignore
# an error of that.
_COPYING = ('-p', '-t', 'unsafe', '-m', '8', '-W')
# How the arguments of one command refer to its secret.
_KEY = 'key'
# Milliseconds that a passphrase takes to check, at each attachment. It is a
# random key, which is not found by trying, however little that takes.
_ITERATION_TIME = 100
# QEMU measures how fast the CPU is for that, and often cannot on a busy host.
NOT_MEASURED = 'Unable to get accurate CPU usage'
# Python has no names for them, nor for struct flock of 64-bit systems.
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct('hhqqi4x')
# The bytes that QEMU's block/file-posix.c locks to write to a file, and to
# let nobody else write to it: RAW_LOCK_PERM_BASE or RAW_LOCK_SHARED_BASE, and
# the number of BLK_PERM_WRITE.
_WRITE_PERMISSION = 100 + 1
_WRITE_UNSHARED = 200 + 1


def create(path, fmt, size, backing=None, backing_fmt=None,
           preallocation='off'):
    """Create an image.

    :param path: the file; one that exists is truncated
    :param fmt: its format, raw or qcow2
    :param size: virtual size in bytes
    :param backing: file name of the image below, in the same directory
    :param backing_fmt: the format of that image
    :param preallocation: off, metadata, falloc or full
    :raises: NoSpace, CommandFailed
    """
    options = ['preallocation=%s' % preallocation]
    if backing is not None:
        options = ['backing_file=%s' % backing,
                   'backing_fmt=%s' % _known(backing_fmt)]
    # -u: the image below is described by its record, not opened.
    _run(['create', '-q', '-u', '-f', _known(fmt), '-o', ','.join(options),
          path, str(size)], path)


def convert(src, src_fmt, dst, dst_fmt, empty_target=False, sparse=True,
            compress=False):
    """Copy the contents of an image chain; see layers.written_back().

    :param src: the image at the top of the chain to read
    :param src_fmt: its format; any that qemu-img can read
    :param dst: the file to write
    :param dst_fmt: its format; any that qemu-img can write
    :param empty_target: dst is an image that exists, reads as zeros and is
                         at least as large as the source
    :param sparse: do not write what reads as zeros
    :param compress: compress the data, in a format that can have it so
    :raises: NoSpace, CommandFailed
    """
    command = ['convert', *_COPYING, '-f', src_fmt, '-O', dst_fmt]
    if empty_target:
        command += ['-n', '--target-is-zero']
    if not sparse:
        command += ['-S', '0']
    if compress:
        command.append('-c')
    _run(command + [src, dst], dst)


def format_luks(path, passphrase, cipher_alg, cipher_mode, ivgen_alg):
    """Make a file an encrypted image, of LUKS version 1, without contents.

    Its size is that of the LUKS header; it grows as a raw image does. See
    layers.written_back().

    :param path: the file, which is truncated, and removed on error
    :param cipher_alg: as QEMU calls it, as in aes-256
    :param cipher_mode: as in xts
    :param ivgen_alg: as in plain64
    :raises: NoSpace; CommandFailed, with NOT_MEASURED in stderr when it may
             succeed the next time
    """
    options = ['key-secret=%s' % _KEY, 'cipher-alg=%s' % cipher_alg,
               'cipher-mode=%s' % cipher_mode, 'ivgen-alg=%s' % ivgen_alg,
               'iter-time=%d' % _ITERATION_TIME]
    with _secret(passphrase) as secret:
        _run(['create', '-q', '-f', 'luks', *secret, '-o', ','.join(options),
              path, '0'], path)


def encrypt(src, src_fmt, dst, passphrase):
    """Copy the contents of an image into an encrypted one, zeros too.

    See layers.written_back().

    :param src: the image to read
    :param src_fmt: its format; any that qemu-img can read
    :param dst: what format_luks() made, grown to its size
    :raises: SizeMismatch when the contents do not fit; NoSpace, CommandFailed
    """
    size, room = (_info(path, fmt)['virtual-size']
                  for path, fmt in ((src, src_fmt), (dst, 'luks')))
    if size > room:
        raise exception.SizeMismatch(
            path=src, actual=size, expected=room,
            reason='the header of an encrypted volume takes the rest of its '
            'size. Choose a larger volume.')
    with _secret(passphrase) as secret:
        _run(['convert', *_COPYING, '-f', src_fmt, '-n', *secret,
              '--target-image-opts', src, 'driver=luks,key-secret=%s,'
              'file.driver=file,file.filename=%s' % (_KEY, _escaped(dst))],
             dst)


def resize(path, fmt, size, preallocation='off', shrink=False):
    """Give an image another virtual size.

    :param size: the new virtual size in bytes
    :param shrink: whether losing what lies behind the new size is wanted
    :raises: NoSpace, CommandFailed
    """
    command = ['resize', '-q', '-f', _known(fmt)]
    command += ['--shrink' if shrink else
                '--preallocation=%s' % preallocation]
    _run(command + [path, str(size)], path)


def commit(path):
    """Write the contents of a qcow2 overlay into the image below it."""
    # Not "unsafe": the tables of the image below have to change in order. An
    # error in that is reported.
    _run(['commit', '-p', '-d', '-f', 'qcow2', path], path)


def rebase(path, backing, backing_fmt):
    """Rewrite which image lies below a qcow2 overlay, and nothing else.

    See layers.written_back().
    """
    _run(['rebase', '-q', '-u', '-t', 'unsafe', '-f', 'qcow2', '-b', backing,
          '-F', _known(backing_fmt), path], path)


def version():
    """The version of qemu-img, as in 7.2.22; None without it."""
    try:
        out = _run(['--version'], None)
    except FileNotFoundError:
        return None
    match = re.search(rb'version (\d+(\.\d+)+)', out)
    return match and match[1].decode()


def info(path, fmt):
    """Describe one image, without opening the images below it.

    :returns: what "qemu-img info --output=json" prints
    """
    return _info(path, _known(fmt))


def _info(path, fmt):
    return json.loads(_run(['info', '-U', '-f', fmt, '--output=json', path],
                           path))


def has_data(path):
    """Whether anything was written to a qcow2 overlay itself, also zeros."""
    # An empty backing: the layers below do not count.
    image = 'driver=qcow2,backing=,file.driver=file,file.filename=%s' % (
        _escaped(path))
    extents = json.loads(_run(['map', '-U', '--output=json', '--image-opts',
                               image], path))
    return any(extent['present'] for extent in extents)


def is_written(path):
    """Whether a guest, or any other QEMU, has an image open for writing.

    QEMU locks one byte for each permission that it uses, on all hosts that
    share a file; "qemu-img info" does not ask for these of a raw image.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        answer = _lock(descriptor, _F_OFD_GETLK, fcntl.F_WRLCK,
                       _WRITE_PERMISSION)
    finally:
        os.close(descriptor)
    return _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK


@contextlib.contextmanager
def not_written(path):
    """Let no QEMU begin to write to an image; one that does may go on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, _F_OFD_SETLK, fcntl.F_RDLCK, _WRITE_UNSHARED)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, command, kind, byte):
    return fcntl.fcntl(descriptor, command, _FLOCK.pack(
        kind, os.SEEK_SET, byte, 1, 0))


@contextlib.contextmanager
def _secret(passphrase):
    """A passphrase for qemu-img, in no file and on no command line.

    :returns: the arguments that name it
    """
    # Without its default flag, for qemu-img is to inherit it.
    descriptor = os.memfd_create('secret', 0)
    try:
        os.write(descriptor, passphrase.encode())
        yield ['--object', 'secret,id=%s,file=/proc/self/fd/%d' % (
            _KEY, descriptor)]
    finally:
        os.close(descriptor)


def _escaped(path):
    return path.replace(',', ',,')


def _known(fmt):
    if fmt not in FORMATS:
        raise ValueError('%r is not a format of a volume file' % (fmt,))
    return fmt


def _run(arguments, path):
    command = ['qemu-img'] + arguments
    # close_fds: the fence goes on while an orphaned qemu-img still writes.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          close_fds=False) as proc:
        try:
            out, err = _watch(proc)
        except BaseException:
            proc.kill()
            raise
    if proc.returncode or _LOST in err:
        stderr = err.decode(errors='replace').strip()
        for reason in _FULL:
            if reason in stderr:
                raise exception.NoSpace(path=path, reason=reason)
        raise exception.CommandFailed(command=' '.join(command),
                                      exit_code=proc.returncode,
                                      stderr=stderr)
    return out


def _watch(proc):
    """Collect the output of a process, and report that it moves."""
    output = {proc.stdout: b'', proc.stderr: b''}
    moved = None
    with selectors.DefaultSelector() as selector:
        for stream in output:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            events = selector.select(_BEAT)
            if not events:
                now = _io_of(proc.pid)
                if now != moved:
                    moved = now
                    worker.progress(None)
            for key, _event in events:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                output[key.fileobj] += chunk
                percent = _PERCENT.findall(chunk)
                if percent:
                    worker.progress(float(percent[-1]))
    return output[proc.stdout], output[proc.stderr]


def _io_of(pid):
    try:
        with open('/proc/%d/io' % pid) as counters:
            return counters.read()
    except OSError:
        return None
