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

"""What cinder-lustre-doctor checks on a host and on its shares, and in which
order. The modules below this one say how.
"""

import dataclasses
import functools
import pwd

from cinder_lustre.doctor import host as host_checks
from cinder_lustre.doctor import hypervisor
from cinder_lustre.doctor import shares
from cinder_lustre.doctor import verdict
from cinder_lustre import exception

COMPUTE, VOLUME, BACKUP = ROLES = ('compute', 'volume', 'backup')
_CINDER = (VOLUME, BACKUP)

# Names, the roles that need it, and the check.
HOST_CHECKS = (
    ('versions', ROLES, host_checks.versions),
    ('client', ROLES, host_checks.client),
    ('lnet', ROLES, host_checks.lnet),
    ('qemu-img', ROLES, host_checks.images),
    ('managers', _CINDER, host_checks.managers),
    ('users', ROLES, host_checks.users),
    ('libvirt', (COMPUTE,), hypervisor.libvirt),
    ('shared-filesystems', (COMPUTE,), hypervisor.shared_filesystems),
    ('qemu-user', (COMPUTE,), hypervisor.ownership),
    ('apparmor', (COMPUTE,), hypervisor.apparmor),
)
# The first two never block; those after "mount" need what is mounted.
SHARE_CHECKS = (
    ('targets', ROLES, shares.targets),
    ('mount', ROLES, shares.mounted),
    ('space', ROLES, shares.space),
    ('directory', ROLES, shares.directory),
    ('locks', ROLES, shares.locks),
    ('root-squash', ROLES, shares.root_squash),
    ('qemu-access', (COMPUTE,), shares.qemu_access),
    ('acl', ROLES, shares.acl),
    ('quota', _CINDER, shares.quota),
    ('hsm', _CINDER, shares.hsm),
)


@dataclasses.dataclass
class Host:
    """What is known about the host before anything is checked.

    :ivar roles: which of ROLES it has
    :ivar targets: a list of shares.Target
    :ivar problems: pairs of what was wrong in the configuration of the
                    shares, and a verdict
    :ivar managers: the manager that Cinder loads, by role
    :ivar nova_bases: mount point bases of Nova
    :ivar fstypes: file system types that development accepts beside Lustre
    :ivar service_user: the user that Cinder's services run as
    :ivar expected_uids: numbers by user
    :ivar qemu_conf: the file that configures libvirt's QEMU driver
    :ivar timeout: seconds that a share may be silent
    """

    roles: frozenset
    targets: list = dataclasses.field(default_factory=list)
    problems: list = dataclasses.field(default_factory=list)
    managers: dict = dataclasses.field(default_factory=dict)
    nova_bases: list = dataclasses.field(default_factory=list)
    fstypes: tuple = ()
    service_user: str = 'cinder'
    expected_uids: dict = dataclasses.field(default_factory=dict)
    qemu_conf: str = '/etc/libvirt/qemu.conf'
    timeout: int = 60

    def __post_init__(self):
        #: What qemu.conf says, or None, and then why it cannot be read.
        self.qemu_settings = self.qemu_error = None
        if COMPUTE in self.roles:
            try:
                self.qemu_settings = hypervisor.read_settings(self.qemu_conf)
            except OSError as exc:
                self.qemu_error = exc.strerror

    @property
    def dynamic_ownership(self):
        """Whether libvirt gives a volume's files to QEMU's user."""
        return bool((self.qemu_settings or {}).get('dynamic_ownership', 1))

    @functools.cached_property
    def qemu_identity(self):
        """QEMU's uid, gid and groups, or None."""
        if self.qemu_settings is None:
            return None
        return hypervisor.qemu_user(self.qemu_settings)

    @functools.cached_property
    def service_identity(self):
        """The uid, gid and groups of Cinder's user, or None."""
        return hypervisor.identity(self.service_user)

    @property
    def users(self):
        """The names of the users whose ids matter."""
        users = set()
        if self.roles & set(_CINDER):
            users.add(self.service_user)
        if COMPUTE in self.roles:
            users.add('nova')
            if self.qemu_identity:
                users.add(pwd.getpwuid(self.qemu_identity[0]).pw_name)
        return users


def examine(host):
    """Check a host and its shares.

    :param host: a Host
    :returns: yields dicts: 'check', 'status', 'thing', 'message' and 'cure'
    """
    for name, roles, check in HOST_CHECKS:
        if host.roles & set(roles):
            yield _result(name, 'host', _judge(check, host)[0])
    for thing, problem in host.problems:
        yield _result('shares', thing, problem)
    for target in host.targets:
        yield from _examine_share(target, host)


def _examine_share(target, host):
    reason = None
    for name, roles, check in SHARE_CHECKS:
        if not target.roles & set(roles):
            continue
        if reason:
            found = verdict.unknown(reason)
        elif target.share is None and check is not shares.mounted:
            found = verdict.unknown('which share it is, is not known.')
        else:
            found, hangs = _judge(check, target, host)
            if hangs:
                reason = 'not tried, as the share does not answer.'
            elif check is shares.mounted and found.status == verdict.FAILURE:
                reason = 'not tried, as nothing fit for use is mounted.'
        yield _result(name, target.name, found)


def _judge(check, *arguments):
    """The verdict of one check, and whether a share has hung in it."""
    try:
        return check(*arguments), False
    except exception.ShareUnavailable as exc:
        return verdict.failure(exc.kwargs['reason'], (
            'Look at "targets" above; bring its servers back.')), True
    except exception.LustreException as exc:
        return verdict.unknown(str(exc)), False
    except PermissionError as exc:
        return verdict.unknown('it is not permitted: %s.' % exc, (
            'Run this command as root.')), False
    except OSError as exc:
        return verdict.failure('it cannot be used: %s.' % exc, (
            'The kernel log (dmesg) says more.')), False


def _result(check, thing, found):
    return {'check': check, 'thing': thing, **found._asdict()}
