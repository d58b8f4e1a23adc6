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

"""What the doctor checks about each share.

All that may block is done by ``probe``, in children of the share's worker.
"""

import collections
import dataclasses
import errno
import os

from cinder_lustre.brick import mount
from cinder_lustre.doctor import probe
from cinder_lustre.doctor import verdict
from cinder_lustre import exception
from cinder_lustre import lfs
from cinder_lustre import share as share_module
from cinder_lustre import worker

# Percentages of space, files or a quota that should be left.
_LEFT = 5
_GIB = 1 << 30
_REMOUNT = 'Unmount it, and mount it with the option flock.'
# Names in a message.
_MANY = 5


@dataclasses.dataclass
class Target:
    """A share and the place where it should be mounted.

    :ivar share: the Share; None for a directory that no mount explains
    :ivar path: the directory
    :ivar roles: the roles of this host that need it
    :ivar base: the mount point base that the path has to follow from, or
                None for a directory that was named as such
    :ivar for_backups: whether it has backups, and no volumes
    """

    share: share_module.Share
    path: str
    roles: frozenset
    base: str = None
    for_backups: bool = False

    def __post_init__(self):
        self._worker = worker.Worker(self.name)

    @property
    def name(self):
        """How messages name the share."""
        return self.share.identity if self.share else self.path

    @property
    def servers(self):
        """The NIDs that it was, or would be, mounted from."""
        found = [self.share, *(parse_source(each.source)
                               for each in mount.mounts_on(self.path))]
        return frozenset().union(*(each.servers for each in found if each))

    def run(self, host, func, *args, **kwargs):
        """Run a function in a child; raises what Worker.run() does."""
        return self._worker.run(func, *args, timeout=host.timeout, **kwargs)


def parse_source(source):
    """The share that a mount shows, or None if it shows none."""
    try:
        found = share_module.Share.parse(source)
    except exception.InvalidShare:
        return None
    return found if found.nids else None


def mounted(target, host):
    """Whether what is mounted is the share, fit for use."""
    if target.share is None:
        return verdict.failure('no share is mounted on %s.' % target.path,
                               'Mount it, or name the share.')
    mounts = mount.read_mounts()
    try:
        mount.check(str(target.share), target.path, host.fstypes, mounts)
    except exception.UnusableMount as exc:
        return verdict.failure('on %(path)s: %(reason)s' % exc.kwargs,
                               exc.kwargs['cure'])
    if target.base:
        wanted = target.share.mount_point(target.base)
        if target.path != wanted:
            return verdict.failure(
                'it is mounted on %s, and is looked for on %s.' % (
                    target.path, wanted), 'Mount it there.')
    stack = mount.mounts_on(target.path, mounts)
    if len(stack) > 1:
        return verdict.warning(
            '%d mounts lie on %s, one over another.' % (len(stack),
                                                        target.path),
            'Look for what mounts there twice, and unmount all but one while '
            'no volume is in use.')
    options = sorted({*stack[-1].options, *stack[-1].super_options})
    return verdict.ok('%s is mounted on %s (%s).' % (
        stack[-1].source, target.path, ','.join(options)))


def targets(target, host):
    """The connections to the OSTs and MDTs."""
    states = lfs.target_states(target.share.fsname)
    if states is None:
        return verdict.unknown('there is no lctl on this host.')
    if not states:
        return verdict.unknown('lctl knows no target of it.',
                               'Look at "lctl get_param osc.*.import".')
    bad = ['%s: %s' % each for each in sorted(states.items())
           if each[1] not in lfs.CONNECTED]
    if bad:
        return verdict.failure(
            '%s. Volumes there cannot be used.' % _some(bad),
            'Bring back the servers of these targets.')
    counts = collections.Counter(states.values())
    return verdict.ok('%s.' % ', '.join(
        '%d targets %s' % (counts[state], state) for state in sorted(counts)))


def space(target, host):
    """Free space and files, by the project quota where there is one."""
    found = target.run(host, mount.statfs, target.path)
    message = '%.1f of %.1f GiB are free, and %d of %d files.' % (
        found['available'] / _GIB, found['total'] / _GIB,
        found['files_free'], found['files'])
    cure = 'Free space, raise the quota, or add OSTs or MDTs.'
    # Some file systems do not count files.
    if not (found['available'] and (found['files_free'] or
                                    not found['files'])):
        return verdict.failure(message, cure)
    if (found['available'] * 100 < found['total'] * _LEFT or
            found['files_free'] * 100 < found['files'] * _LEFT):
        return verdict.warning(message, cure)
    return verdict.ok(message)


def directory(target, host):
    """Who owns the share's directory, and who may enter it."""
    found = target.run(host, probe.directory, target.path)
    message = 'its directory has the owner %d:%d and the mode %04o' % (
        found['uid'], found['gid'], found['mode'])
    if found['mode'] & 0o007:
        return verdict.failure(
            '%s: all users of all hosts get in.' % message,
            'Run "chmod o-rwx %s".' % target.path)
    if not found['uid']:
        return verdict.warning(
            '%s: root owns it, and not the service.' % message,
            'Run "chown %s %s".' % (host.service_user, target.path))
    service = host.service_identity
    if service is None:
        return verdict.unknown(
            '%s; there is no user %s on this host to compare it with.' % (
                message, host.service_user))
    if service[0] != found['uid']:
        return verdict.failure(
            '%s, but %s is %d here.' % (message, host.service_user,
                                        service[0]),
            'Give it to the service\'s user, and give that the same numeric '
            'id on all hosts.')
    return verdict.ok('%s.' % message)


def locks(target, host):
    """Whether locks hold, tried on a file of ours."""
    owner = _owner(target, host)
    try:
        broken = target.run(host, probe.lock, target.path, owner)
    except PermissionError:
        uid = owner[0] if owner else os.geteuid()
        if not owner and (host.service_identity or (None,))[0] != uid:
            raise
        return verdict.failure(
            'user %d cannot make a file there.' % uid,
            'Give the directory to that user, and look for root squash and '
            'nodemaps on the MDS.')
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        return verdict.failure(
            'no file can be locked (noflock), so QEMU cannot open any '
            'volume.', _REMOUNT)
    if broken:
        return verdict.failure(
            'two openings of one file both get its lock (%s).'
            % ', '.join(broken), _REMOUNT)
    return verdict.ok('a file can be made, and flock and OFD locks exclude '
                      'a second opening on this host.')


def root_squash(target, host):
    """Whether Lustre takes root for somebody else."""
    if os.geteuid():
        return verdict.unknown('only root can see whether root is squashed.',
                               'Run this command as root.')
    uid = target.run(host, probe.root, target.path)
    if uid == 0:
        return verdict.ok('root stays root.')
    message = ('root may make no file there' if uid is None
               else 'root is squashed to %d' % uid)
    if 'compute' in target.roles and host.dynamic_ownership:
        return verdict.warning(
            '%s, so libvirt cannot give files to QEMU.' % message,
            'That is safe where "qemu-access" is ok; otherwise add this host '
            'to nosquash_nids on the MDS.')
    return verdict.ok('%s; nothing here needs root.' % message)


def qemu_access(target, host):
    """Whether QEMU's user gets at the files, with libvirt's help or not."""
    if os.geteuid():
        return verdict.unknown('only root can act as QEMU\'s user.',
                               'Run this command as root.')
    identity = host.qemu_identity
    if identity is None:
        return verdict.unknown('QEMU\'s user is not known, see "qemu-user".')
    seen = target.run(host, probe.visit, target.path, _owner(target, host),
                      identity)
    if not seen['search']:
        return verdict.failure(
            'user %d, who runs QEMU, cannot search %s.' % (identity[0],
                                                           target.path),
            'Run "setfacl -m u:%d:x %s".' % (identity[0], target.path))
    if seen['open']:
        return verdict.ok('user %d, who runs QEMU, can open the files.'
                          % identity[0])
    cure = 'Run "setfacl -d -m u:%d:rw %s".' % (identity[0], target.path)
    if not host.dynamic_ownership or target.run(
            host, probe.root, target.path) != 0:
        return verdict.failure(
            'user %d, who runs QEMU, cannot open the files, and libvirt '
            'cannot give them to it.' % identity[0], cure)
    return verdict.ok('libvirt gives the files to user %d, who runs QEMU.'
                      % identity[0])


def acl(target, host):
    """What keeps a volume usable when a compute host dies."""
    if target.for_backups:
        return verdict.ok('it is for backups, which QEMU does not use.')
    if 'noacl' in mount.mounts_on(target.path)[-1].super_options:
        return verdict.failure('it is mounted with noacl.',
                               'Unmount it, and mount it without noacl.')
    found = target.run(host, probe.directory, target.path)
    users = found['users']
    if users is None:
        return verdict.unknown('its file system has no ACLs.')
    if host.qemu_identity and host.qemu_identity[0] == found['uid']:
        return verdict.ok('QEMU runs as user %d, who owns the files anyway.'
                          % found['uid'])
    if users.get(str(found['uid']), 0) & 6 == 6:
        return verdict.ok('user %d keeps all files, whoever owns them.'
                          % found['uid'])
    return verdict.warning(
        'there is no default ACL entry for user %d: a file that libvirt gave '
        'to QEMU on a host that died is lost to it.' % found['uid'],
        'Unless QEMU runs as that user, run "setfacl -d -m u:%d:rw %s".' % (
            found['uid'], target.path))


def quota(target, host):
    """The project quota, which caps what volumes may use."""
    project = target.run(host, lfs.project, target.path)
    if project is None:
        return verdict.unknown('there is no lfs on this host.')
    number, inherited = project
    if not number:
        return verdict.ok('there is no project quota: volumes may fill the '
                          'file system.')
    name = 'project %d' % number
    if not inherited:
        return verdict.failure(
            'new files do not get %s, so its quota does not count them.'
            % name, 'Run "lfs project -p %d -s -r %s".' % (number,
                                                           target.path))
    found = target.run(host, lfs.project_quota, number, target.path)
    if found['used'] is None or found['files'] is None:
        return verdict.unknown('%s: a target that is away hides how much is '
                               'used.' % name)
    seen = []
    worst = verdict.ok
    for used, limit, unit in (
            (found['used'], found['limit'], 'bytes'),
            (found['files'], found['files_limit'], 'files')):
        if not limit:
            seen.append('%d %s' % (used, unit))
            continue
        seen.append('%d of %d %s' % (used, limit, unit))
        if used >= limit:
            worst = verdict.failure
        elif used * 100 > limit * (100 - _LEFT) and worst is verdict.ok:
            worst = verdict.warning
    message = '%s uses %s.' % (name, ' and '.join(seen))
    if worst is verdict.ok:
        return verdict.ok(message)
    return worst(message, 'Delete volumes, or raise the limit with "lfs '
                 'setquota -p %d".' % number)


def hsm(target, host):
    """Whether HSM or a purge policy has got hold of volumes."""
    found = target.run(host, probe.hsm, target.path)
    if found is None:
        return verdict.unknown('there is no lfs on this host.')
    cure = ('Exclude the share\'s directory from the policies of HSM, and '
            'from those that purge old files, whose rules no client sees.')
    if found['released']:
        return verdict.failure(
            'HSM has taken the data of %s away; reading them waits for a '
            'tape or fails.' % _some(found['released']),
            'Run "lfs hsm_restore" on them. %s' % cure)
    if found['archived']:
        return verdict.failure('HSM has archived %s, and may take the data '
                               'away next.' % _some(found['archived']), cure)
    if found['unseen']:
        return verdict.unknown('lfs tells nothing about %s.'
                               % _some(found['unseen']),
                               'See what "lfs hsm_state" says of them.')
    if not found['files']:
        return verdict.unknown('there is no volume yet.', cure)
    return verdict.ok('HSM has none of %d files.' % found['files'])


def _owner(target, host):
    """Whom volumes are made as: uid, gid and groups; None if not root."""
    if os.geteuid():
        return None
    if host.service_identity and target.roles & {'volume', 'backup'}:
        return host.service_identity
    # A compute host need not know the user by name.
    found = target.run(host, probe.directory, target.path)
    return found['uid'], found['gid'], [found['gid']]


def _some(names):
    """The first of many names."""
    text = ', '.join(names[:_MANY])
    if len(names) > _MANY:
        text += ' and %d more' % (len(names) - _MANY)
    return text
