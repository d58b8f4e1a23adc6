#!/usr/bin/python3 -EsB
# This is not Lustre: it is the mount helper of a stand-in for it.
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

"""mount.lustre: speaks and ends as Lustre's does, and mounts an ext4.

What it mounts is the file system that standin registered under the share's
fsname. The share is the source in /proc/mounts exactly as it was typed.
"""

import errno
import getopt
import os
import re
import shutil
import socket
import sys
import tempfile
import time

import lifecycle
import registry

VERSION = 'mount.lustre 2.17.0_dirty (libmount)'
# How long Lustre tries to reach an MGS (seconds).
UNREACHABLE = 162
FSNAME_LENGTH = 8

_FLAGS = {'ro': registry.MS_RDONLY, 'nosuid': registry.MS_NOSUID,
          'nodev': registry.MS_NODEV, 'noexec': registry.MS_NOEXEC,
          'noatime': 1024, 'nodiratime': 2048, 'relatime': 1 << 21,
          'strictatime': 1 << 24}
_UNFLAGS = {'rw': 'ro', 'suid': 'nosuid', 'dev': 'nodev', 'exec': 'noexec',
            'atime': 'noatime', 'diratime': 'nodiratime',
            'norelatime': 'relatime', 'nostrictatime': 'strictatime'}
_IGNORED = re.compile(
    r'(defaults|_netdev|a?sync|dirsync|(no)?lazytime|group|users|owner|nofail|'
    r'remount|force|x-.*|comment=.*|exclude=.*|mgsname=.*|retry=\d+|32bitapi|'
    r'(no)?encrypt|localflock|test_dummy_encryption|nolock|(no)?(auto|user|'
    r'flock|user_xattr|acl|user_fid2path|checksum|lruresize|lazystatfs|'
    r'verbose|statfs_project))?$')

USAGE = """
This mount helper should only be invoked via the mount (8) command,
e.g. mount -t lustre dev dir

usage: mount.lustre [-fhnvV] [-o <srvopt>] <device> <mountpt>
usage: mount.lustre [-fhnvV] [-o <cliopt>] <mgstarget> <mountpt>
"""


def failed(source, target, number, *hints):
    lines = ('mount.lustre: mount %s at %s failed: %s' % (
        source, target, os.strerror(number)),) + hints
    return registry.Failure(number, '\n'.join(lines))


def invalid(source, target):
    return failed(source, target, errno.EINVAL,
                  'This may have multiple causes.',
                  "Is '%s' the correct filesystem name?" %
                  registry.parse(source)[1],
                  'Are the mount options correct?',
                  'Check the syslog for more info.')


def missing(source, target):
    return failed(source, target, errno.ENOENT,
                  'Is the MGS specification correct?',
                  'Is the filesystem name correct?',
                  'If upgrading, is the copied client log valid? '
                  '(see upgrade docs)')


def nid_addresses(nids):
    """The NIDs of a share in one form: address@net.

    :raises: Failure on a name that nobody knows
    """
    result = []
    for nid in re.split('[:,]', nids):
        host, _at, net = nid.partition('@')
        try:
            address = socket.gethostbyname(host)
        except (OSError, UnicodeError):
            raise registry.Failure(errno.EINVAL, (
                "mount.lustre: Unsupported NID '%s': rc = Unknown error -22."
                "\nmount.lustre: Can't parse NID '%s'\n%s" % (
                    nid, nid, USAGE.rstrip('\n')))) from None
        net = re.sub(r'(?<=\D)0$', '', net or 'tcp')
        result.append('%s@%s' % (address, net))
    return result


def find(source, target):
    """The file system that a share names; waits for an MGS that is away."""
    nids, fsname, _sub = registry.parse(source)
    addresses = nid_addresses(nids)
    if len(fsname) > FSNAME_LENGTH:
        raise failed(source, target, errno.ENAMETOOLONG)
    # A node has the networks of its file systems, and tcp.
    nets = {nid.split('@')[1] for entry in registry.entries()
            for nid in entry['nids']} | {'tcp'}
    if not any(address.split('@')[1] in nets for address in addresses):
        raise invalid(source, target)
    begun = time.monotonic()
    while True:
        reached = [entry for entry in registry.entries()
                   if not set(addresses).isdisjoint(entry['nids'])]
        entry = next((entry for entry in reached
                      if entry['fsname'] == fsname), None)
        if reached and entry is None:
            raise missing(source, target)
        seconds = UNREACHABLE
        if entry and entry['unreachable'] is not None:
            seconds = entry['unreachable']
        elif entry and not entry['frozen'] and registry.is_up(entry):
            return entry
        if time.monotonic() - begun >= seconds:
            raise failed(source, target, errno.ETIMEDOUT)
        time.sleep(0.2)


def main(argv):
    options, names = getopt.gnu_getopt(
        argv, 'fhnsvVo:N:', ['fake', 'help', 'nomtab', 'verbose', 'version',
                             'force'])
    given = dict(options)
    if '-V' in given or '--version' in given:
        print(VERSION)
        return
    if '-h' in given or '--help' in given or len(names) != 2:
        raise registry.Failure(errno.EINVAL, USAGE.rstrip('\n'))
    words = ','.join(value for option, value in options
                     if option == '-o').split(',')
    source, target = names
    try:
        target = os.path.realpath(target, strict=True)
    except OSError as exc:
        raise registry.Failure(exc.errno, 'warning: %s: cannot resolve: %s' % (
            target, exc.strerror)) from None
    if not registry.parse(source):
        raise registry.Failure(errno.ENODEV, (
            'mount.lustre: %s has not been formatted with mkfs.lustre or the '
            'backend filesystem type is not supported by this tool' % source))
    if os.geteuid():
        raise failed(source, target, errno.EPERM)
    mounted = any((each.source, each.target) == (source, target)
                  for each in registry.mounts())
    if mounted and 'remount' not in words:
        raise registry.Failure(errno.EEXIST, (
            'mount.lustre: according to /etc/mtab %s is already mounted on '
            '%s' % (source, target)))
    flags = 0
    for word in words:
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _UNFLAGS:
            flags &= ~_FLAGS[_UNFLAGS[word]]
        elif not _IGNORED.match(word):
            raise invalid(source, target)
    if '-f' in given or '--fake' in given:
        return
    try:
        if mounted:
            remount(target, flags)
        else:
            mount(find(source, target), source, target, flags, words)
    except OSError as exc:
        raise failed(source, target, exc.errno) from exc


def remount(target, flags):
    """Change one mount; the file system has others."""
    registry.mount('none', target, None,
                   registry.MS_REMOUNT | registry.MS_BIND | flags)


def mount(entry, source, target, flags, words):
    name = entry['fsname']
    root = registry.state(name, 'root')
    subdirectory = root + registry.parse(source)[2]
    if not os.path.exists(subdirectory):
        raise missing(source, target)
    if not os.path.isdir(subdirectory):
        raise failed(source, target, errno.ENOTDIR)
    locks = [word for word in words
             if word in ('flock', 'noflock', 'localflock')]
    locks = locks[-1] if locks else 'flock'
    if entry['fuse'] or locks != 'flock':
        lifecycle.serve(name, 'share', target, source, subdirectory, locks,
                        str(flags))
    else:
        mount_ext4(entry, source, target, flags)
    if entry['dead']:
        with registry.locked(name):
            lifecycle.cover_dead(name)


def mount_ext4(entry, source, target, flags):
    # The kernel shows the source as it was given, so it is given the share:
    # a path to the loop device, seen from a directory of this mount's own.
    work = tempfile.mkdtemp(dir=registry.state(entry['fsname'], 'mnt'))
    os.chdir(work)
    os.makedirs(os.path.dirname(source))
    os.symlink(entry['loop'], source)
    staged = os.path.join(work, 'mnt')
    os.mkdir(staged)
    # Other mounts of the file system stay writable: only this one is "ro".
    registry.mount(source, staged, 'ext4', flags & ~registry.MS_RDONLY,
                   'discard')
    try:
        remount(staged, flags)
        registry.mount(staged + registry.parse(source)[2], target, None,
                       registry.MS_BIND)
    finally:
        registry.umount(staged, registry.MNT_DETACH)
        shutil.rmtree(work)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except registry.Failure as exc:
        print(exc, file=sys.stderr)
        sys.exit(exc.code)
    except getopt.GetoptError as exc:
        print('mount.lustre: %s\n%s' % (exc, USAGE), file=sys.stderr)
        sys.exit(errno.EINVAL)
