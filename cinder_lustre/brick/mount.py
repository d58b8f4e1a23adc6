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

"""Mounts of Lustre: what is mounted, whether it can be used, and mounting.

Reading what is mounted never blocks. :func:`mount`, :func:`statfs` and
:func:`probe` may, so they run in a worker's child. Nothing here ever unmounts
or writes into a directory that is not known to be a mounted share.
"""

import collections
import errno
import fcntl
import functools
import logging
import os
import re
import shlex
import subprocess
import tempfile

from cinder_lustre import exception
from cinder_lustre import share as share_module
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

LUSTRE = 'lustre'
_LOCK_OPTIONS = ('localflock', 'noflock')

Mount = collections.namedtuple(
    'Mount', 'id parent root path options fstype source super_options')


def parse_mountinfo(text):
    """The mounts in the text of /proc/PID/mountinfo."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(' ')
        # Optional fields come between; a path cannot be a lone dash.
        fstype, source, super_options = fields[fields.index('-', 6) + 1:][:3]
        mounts.append(Mount(
            int(fields[0]), int(fields[1]), _unescape(fields[3]),
            _unescape(fields[4]), tuple(fields[5].split(',')), fstype,
            _unescape(source), tuple(super_options.split(','))))
    return mounts


def read_mounts():
    """What is mounted for this process."""
    with open('/proc/self/mountinfo', encoding='utf-8',
              errors='surrogateescape') as stream:
        return parse_mountinfo(stream.read())


def mounts_on(path, mounts=None):
    """The mounts on a directory, from the first one to the visible one.

    :param path: an absolute path without symbolic links
    :param mounts: as of :func:`read_mounts`, which is the default
    :returns: a list; empty where nothing is mounted or where a mount further
              up hides what is
    """
    if mounts is None:
        mounts = read_mounts()
    known = {each.id for each in mounts}
    children = {}
    for each in mounts:
        # The root's own parent is not listed, or is the root itself.
        listed = each.parent in known and each.parent != each.id
        children[each.parent if listed else None, each.path] = each
    # Walk down as the kernel does: a mount counts where its parent is seen.
    visible = None
    on_path = []
    prefix = '/'
    for name in [''] + [name for name in path.split('/') if name]:
        prefix = os.path.join(prefix, name)
        on_path = []
        while (visible and visible.id, prefix) in children:
            visible = children[visible and visible.id, prefix]
            on_path.append(visible)
    return on_path


def check(share, path, fstypes=(), mounts=None):
    """See that a share is what is mounted on a directory, fit for use.

    Never blocks.

    :param share: a share string or identity
    :param path: an absolute path without symbolic links
    :param fstypes: file system types that development accepts beside Lustre
    :param mounts: as of :func:`read_mounts`, which is the default
    :raises: UnusableMount
    """
    if mounts is None:
        mounts = read_mounts()
    share = share_module.Share.parse(share)
    stack = mounts_on(path, mounts)
    if len(stack) > 1:
        LOG.debug('There are %(count)d mounts on %(path)s, one over another.',
                  {'count': len(stack), 'path': path})
    problem = (_find_wrong_mount(share, path, fstypes, stack) or
               _find_wrong_options(path, stack[-1]) or
               _find_namesake(share, fstypes, mounts, stack[-1]))
    if problem:
        reason, cure = problem
        raise exception.UnusableMount(share=share.identity, path=path,
                                      reason=reason, cure=cure)


def mount(source, path, options, root_helper, lock_path, fstypes=(),
          run=None):
    """Mount a share, unless it is mounted; may block for minutes.

    :param source: the share with its NIDs
    :param path: the mount point; made if it is missing
    :param options: mount options separated by commas
    :param root_helper: the command that gives root's rights, or ''
    :param lock_path: a local file that keeps others from mounting there
    :param fstypes: file system types that development accepts beside Lustre
    :param run: runs a command with root's rights in another way than by
                root_helper; returns its exit code and its messages
    :raises: MountFailed, UnusableMount
    """
    share = share_module.Share.parse(source)
    run = run or functools.partial(_run, root_helper)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lock = os.open(lock_path, os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError as exc:
        raise _failure(share, path, *_local_problem(exc)) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mounts = read_mounts()
        if not mounts_on(path, mounts):
            _mount(share, path, options, run, fstypes, mounts)
        check(source, path, fstypes)
    finally:
        os.close(lock)


def statfs(path):
    """The size of a share in bytes, and its number of files, as a dict.

    A project quota of the directory counts as its size.
    """
    found = os.statvfs(path)
    return {'total': found.f_blocks * found.f_frsize,
            'free': found.f_bfree * found.f_frsize,
            'available': found.f_bavail * found.f_frsize,
            'files': found.f_files,
            'files_free': found.f_ffree}


def survey(path, share):
    """The size of a share, as of :func:`statfs`, where it can be used.

    :param share: how messages name the share
    :raises: UnusableMount
    """
    try:
        probe(path, share)
    except exception.NoSpace:
        return dict(statfs(path), available=0)
    return statfs(path)


def probe(path, share):
    """See that files can be made and locked on a mounted share.

    :param share: how messages name the share
    :raises: UnusableMount, NoSpace
    """
    try:
        with exception.naming(path), \
                tempfile.NamedTemporaryFile(dir=path,
                                            prefix='.tmp-') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # On Lustre the two kinds of locks exclude each other.
            fcntl.flock(stream, fcntl.LOCK_UN)
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            reason, cure = _lock_problem(path, 'noflock')
        else:
            reason = ('user %d cannot make a file there (%s).'
                      % (os.geteuid(), exc.strerror))
            cure = ('Give the directory to the user and group of the service, '
                    'and look for root squash on the MDS.')
        raise exception.UnusableMount(share=share, path=path, reason=reason,
                                      cure=cure) from exc


def explain(exit_code, stderr, share):
    """Why mount(8) failed.

    :param share: the Share
    :returns: reason and cure, two sentences
    """
    lines = stderr.strip().splitlines() or ['no message']
    missing = 'no file system "%s"' % share.fsname
    if share.subdir:
        missing += ', or that has no directory "/%s"' % share.subdir
    values = {'missing': missing, 'subdir': share.subdir,
              'servers': ', '.join(nid for node in share.nids for nid in node),
              'code': exit_code, 'message': lines[0].rstrip('.')}
    for codes, pattern, reason, cure in _CAUSES:
        if exit_code in codes and re.search(pattern, stderr):
            return reason % values, cure
    return ('mount ended with exit code %(code)d: %(message)s.' % values,
            'The kernel log (dmesg) says more.')


_NOT_ROOT = ('mounting needs root\'s rights, and mount did not get them.',
             'Check that the service\'s root helper (sudo and rootwrap) may '
             'run mount.')
# Exit codes, what stderr contains, reason and cure; the first match counts.
# mount(8) ends with mount.lustre's exit code, which is mostly an errno, and
# has 32 for its own failures; rootwrap has 96 to 99.
_CAUSES = (
    ((errno.ENOENT,), 'cannot resolve',
     'the mount point does not exist.',
     'Look for what removes directories below the mount point base.'),
    ((errno.ENOENT,), '',
     'the MGS at %(servers)s has %(missing)s.',
     'Correct the share, or create what it names.'),
    ((errno.EEXIST,), '',
     'the share is in /etc/mtab, but not mounted there.',
     'Make /etc/mtab a link to /proc/self/mounts.'),
    ((errno.ENODEV,), '',
     'the running kernel has no Lustre client.',
     'Install the Lustre client modules that fit the kernel (uname -r) and '
     'try "modprobe lustre".'),
    ((errno.ENOTDIR,), '',
     '"/%(subdir)s" in it is not a directory.',
     'Correct the share.'),
    ((errno.EINVAL,), "Can't parse NID",
     'a host name in %(servers)s is unknown on this host.',
     'Correct the share or the name service, or write addresses.'),
    ((errno.EINVAL,), '',
     'LNet has no network for %(servers)s, or a mount option is wrong.',
     'Compare "lnetctl net show" with the share, and check its options and '
     'lustre_mount_options; the kernel log (dmesg) names a wrong option.'),
    ((errno.ETIMEDOUT,), '',
     'no MGS answers at %(servers)s.',
     'Check the NIDs of the share, that the MGS runs, and that "lctl ping" '
     'reaches it.'),
    ((32,), '(?i)unknown filesystem type|helper program',
     'there is no mount.lustre on this host.',
     'Install the Lustre client (its package is called lustre-client or '
     'lustre-client-utils).'),
    ((32,), 'mount point does not exist',
     'the mount point does not exist.',
     'Look for what removes directories below the mount point base.'),
    ((1, 32), '(?i)superuser|only root|Operation not permitted', *_NOT_ROOT),
    ((1,), '(?i)sudo|not allowed|rootwrap',
     'the root helper failed: %(message)s.', _NOT_ROOT[1]),
    ((96, 97, 98, 99), '', 'rootwrap refused to run mount: %(message)s.',
     'Check the filters and the configuration of rootwrap.'),
)


def _unescape(field):
    return re.sub(r'\\([0-7]{3})', lambda match: chr(int(match[1], 8)), field)


def _parse_source(entry):
    """The share that a mount shows, or None if it shows none."""
    try:
        share = share_module.Share.parse(entry.source)
    except exception.InvalidShare:
        return None
    return share if share.nids else None


def _is_mount_of(share, entry, fstypes):
    """Whether a mount has a share's directory as its root."""
    found = _parse_source(entry)
    if entry.fstype not in (LUSTRE, *fstypes) or not found:
        return False
    directory = found.directory
    # A bind mount shows in its root which directory it is of. What Lustre
    # itself mounts has the root "/"; other types have the subdirectory here.
    if entry.root != '/' and (entry.fstype == LUSTRE or
                              entry.root != '/' + found.subdir):
        directory += entry.root
    return directory == share.directory


def _find_wrong_mount(share, path, fstypes, stack):
    if not stack:
        return ('nothing is mounted there.',
                'Until the share is mounted, the directory belongs to this '
                'host alone and nothing may be written to it.')
    top = stack[-1]
    if _is_mount_of(share, top, fstypes):
        return None
    unmount = 'Unmount that with "umount %s".' % path
    name = '%s (type %s)' % (top.source, top.fstype)
    if any(_is_mount_of(share, each, fstypes) for each in stack):
        return 'it is hidden by %s, mounted over it.' % name, unmount
    if top.fstype.startswith(LUSTRE) and top.source.startswith('/'):
        return ('a server\'s target, %s, is mounted there.' % name, unmount)
    return 'another file system, %s, is mounted there.' % name, unmount


def _find_wrong_options(path, entry):
    if 'ro' in entry.options or 'ro' in entry.super_options:
        return ('it is mounted read-only.',
                'Run "mount -o remount,rw %s"; where that fails, the kernel '
                'log (dmesg) says why.' % path)
    for option in _LOCK_OPTIONS:
        if option in entry.super_options:
            return _lock_problem(path, option)
    if entry.fstype == LUSTRE and 'flock' not in entry.super_options:
        return _lock_problem(path, 'noflock')
    return None


def _lock_problem(path, option):
    effect = {'localflock': 'locks hold on this host alone and two hosts '
                            'could write one volume',
              'noflock': 'QEMU cannot open any volume'}[option]
    return ('it is mounted with %s, so that %s.' % (option, effect),
            'Unmount it with "umount %s"; it must be mounted with flock.'
            % path)


def _find_namesake(share, fstypes, mounts, top=None):
    """Find a mounted file system of the same name from other servers."""
    ours = [share] if share.nids else []
    if top:
        ours.append(_parse_source(top))
    servers = frozenset().union(*(each.servers for each in ours))
    # Lustre shows addresses for host names: these cannot be compared.
    if not servers or any(each.has_host_names for each in ours):
        return None
    for each in mounts:
        other = _parse_source(each)
        if (each.fstype in (LUSTRE, *fstypes) and other and
                other.fsname == share.fsname and not other.has_host_names and
                not servers & other.servers):
            return ('%s, mounted on %s, is a file system of the same name '
                    'from other servers.' % (each.source, each.path),
                    'Two file systems of one name cannot be used on one host; '
                    'unmount one of them. If they are the same, mount both '
                    'with all NIDs of the MGS.')
    return None


def _mount(share, path, options, run, fstypes, mounts):
    """Run mount(8) for a mount point that nothing is mounted on."""
    problem = _find_namesake(share, fstypes, mounts)
    if problem:
        raise _failure(share, path, *problem)
    try:
        os.makedirs(path, exist_ok=True)
        hidden = os.listdir(path)
    except OSError as exc:
        raise _failure(share, path, *_local_problem(exc)) from exc
    if os.path.realpath(path) != path:
        # mountinfo would show another path: each attempt would mount again.
        raise _failure(share, path, 'there is a symbolic link in its mount '
                       'point.', 'Make it a directory.')
    if hidden:
        LOG.warning('Directory %(path)s has %(count)d entries (%(first)s), '
                    'which are hidden while share %(share)s is mounted on it. '
                    'Look whether something wrote there by mistake.',
                    {'path': path, 'count': len(hidden), 'first': hidden[0],
                     'share': share.identity})
    command = ['mount', '-t', LUSTRE]
    if options:
        command += ['-o', options]
    command += [share.source, path]
    try:
        exit_code, message = run(command)
    except OSError as exc:
        raise _failure(share, path, '%s cannot be run (%s).' % (
            exc.filename or command[0], exc.strerror), _NOT_ROOT[1]) from exc
    LOG.debug('%(command)s ended with exit code %(code)s: %(message)s',
              {'command': command, 'code': exit_code, 'message': message})
    # What another program has mounted meanwhile is checked by the caller.
    if exit_code and not mounts_on(path):
        raise _failure(share, path, *explain(exit_code, message, share))
    LOG.info('Share %(share)s is mounted on %(path)s.',
             {'share': share.source, 'path': path})


def _run(root_helper, command):
    # A file, not a pipe: what mount leaves running could keep that open.
    with tempfile.TemporaryFile() as stderr:
        exit_code = subprocess.run(
            [*shlex.split(root_helper or ''), *command],
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd='/',
            env=worker.environment()).returncode
        stderr.seek(0)
        return exit_code, stderr.read(65536).decode(errors='replace')


def _local_problem(exc):
    reason = '%s cannot be made or used by user %d (%s).' % (
        exc.filename, os.geteuid(), exc.strerror)
    if isinstance(exc, (FileExistsError, NotADirectoryError)):
        return reason, 'Move that file away.'
    return reason, 'Give the mount point base to the user of the service.'


def _failure(share, path, reason, cure):
    return exception.MountFailed(share=share.source, path=path, reason=reason,
                                 cure=cure)
