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

"""What the doctor checks about a host itself. Never touches a share."""

import importlib.metadata
import os
import platform
import pwd

from cinder_lustre.doctor import verdict
from cinder_lustre import lfs
from cinder_lustre import qemu_img
from cinder_lustre import share

_MODULES = '/sys/module'
# The oldest qemu-img that this package was tried with.
_QEMU = (7, 2)
_PACKAGES = ('cinder-lustre', 'cinder', 'nova', 'os-brick')
_MANAGERS = {
    'volume': ('volume_manager', 'cinder_lustre.volume.manager.VolumeManager'),
    'backup': ('backup_manager', 'cinder_lustre.backup.manager.BackupManager')}


def versions(host):
    """What is installed beside this package."""
    found = []
    for name in _PACKAGES:
        try:
            found.append('%s %s' % (name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            # A host has what its role needs.
            continue
    return verdict.ok('%s; Python %s.' % (', '.join(found),
                                          platform.python_version()))


def managers(host):
    """The managers that register the connector."""
    wrong = []
    for role, (option, wanted) in _MANAGERS.items():
        found = host.managers.get(role)
        if role in host.roles and found not in (None, wanted):
            wrong.append('%s = %s' % (option, wanted))
    if wrong:
        return verdict.failure(
            'Cinder does not load the connector for Lustre volumes.',
            'Set in [DEFAULT] of cinder.conf: %s. Then restart the service.'
            % ', '.join(wrong))
    if not host.managers:
        return verdict.unknown('No configuration of Cinder was found.',
                               'Name it with --config-file.')
    return verdict.ok('Cinder loads the connector for Lustre volumes.')


def client(host):
    """The client's kernel modules and commands."""
    kernel = platform.release()
    loaded = os.path.isdir(os.path.join(_MODULES, 'lustre'))
    release = lfs.version()
    if not loaded and host.fstypes:
        return verdict.unknown(
            'there is no Lustre client in kernel %s, and '
            'lustre_development_fstypes lets %s do in its place.' % (
                kernel, ', '.join(host.fstypes)),
            'Never set that option where data matter.')
    if not loaded:
        return verdict.failure(
            'kernel %s has not loaded the Lustre client.' % kernel,
            'Install the client modules that fit this kernel, and try '
            '"modprobe lustre".')
    if release is None:
        return verdict.failure(
            'there is no lctl on this host, or it cannot speak to the '
            'modules in kernel %s.' % kernel,
            'Install the package with lfs, lctl and mount.lustre.')
    return verdict.ok('Lustre %s in kernel %s.' % (release, kernel))


def lnet(host):
    """The network below Lustre, as far as the MGS shows it."""
    if not (host.fstypes or os.path.isdir(os.path.join(_MODULES, 'lnet'))):
        return verdict.failure('the module lnet is not loaded.',
                               'Try "modprobe lnet" and "lnetctl net show".')
    states = lfs.mgs_states()
    if states is None:
        return verdict.unknown('there is no lctl on this host.')
    # A file system that is none of ours may be away.
    servers = {server for target in host.targets for server in target.servers}
    states = {nid: state for nid, state in states.items()
              if _server(nid) in servers}
    if not states:
        return verdict.unknown('no share is mounted, so nothing shows '
                               'whether servers can be reached.',
                               'Compare "lnetctl net show" with the shares, '
                               'and try "lctl ping" with their addresses.')
    away = sorted(nid for nid, state in states.items()
                  if state == lfs.DISCONNECTED)
    if away:
        return verdict.failure(
            'the MGS at %s does not answer: nothing new can be mounted.'
            % ', '.join(away),
            'Look at that server, and try "lctl ping %s".' % away[0])
    return verdict.ok('MGS at %s.' % ', '.join(
        '%s: %s' % each for each in sorted(states.items())))


def images(host):
    """qemu-img."""
    release = qemu_img.version()
    if release is None:
        return verdict.failure('there is no qemu-img on this host.',
                               'Install qemu-utils (Debian, Ubuntu) or '
                               'qemu-img (RHEL).')
    if parse_version(release) < _QEMU:
        return verdict.warning(
            'qemu-img %s is older than what was tried.' % release,
            'Install version %d.%d or later.' % _QEMU)
    return verdict.ok('qemu-img %s.' % release)


def users(host):
    """The numeric ids, which must be the same on all hosts."""
    seen, wrong = [], []
    for name in sorted({*host.users, *host.expected_uids}):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            entry = None
        seen.append('%s is %s' % (name, '%d:%d' % entry[2:4] if entry
                                  else 'not on this host'))
        wanted = host.expected_uids.get(name)
        if wanted is not None and (not entry or entry.pw_uid != wanted):
            wrong.append('%s should be %d' % (name, wanted))
    message = ', '.join(seen) or 'no user is known'
    if wrong:
        return verdict.failure(
            '%s; %s.' % (message, ', '.join(wrong)),
            'Give each user the same numeric id on all hosts, while its '
            'services are stopped.')
    if not host.expected_uids:
        return verdict.unknown(
            '%s; whether that is so on other hosts was not asked.' % message,
            'Compare it, or name the ids with --expect-uid.')
    return verdict.ok('%s.' % message)


def _server(nid):
    """The normal form of a NID, as of Share.servers."""
    server, = share.Share.parse('%s:/none' % nid).servers
    return server


def parse_version(text):
    """The numbers of a version, to compare."""
    return tuple(int(part) for part in text.split('.'))
