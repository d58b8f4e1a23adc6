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

"""What the doctor checks about libvirt and QEMU on a compute host."""

import grp
import os
import pwd
import re
import subprocess

from cinder_lustre.doctor import host as host_checks
from cinder_lustre.doctor import probe
from cinder_lustre.doctor import verdict
from cinder_lustre import exception
from cinder_lustre import worker

_VERSION_COMMANDS = ('virtqemud', 'libvirtd', 'virsh')
# Seconds for a command that only prints its version.
_PATIENCE = 30
# The first libvirt that can be told which directories hosts share.
_SHARED = (10, 10)
_APPARMOR = '/sys/module/apparmor/parameters/enabled'
_PROFILES = '/etc/apparmor.d'
_HELPER = 'usr.lib.libvirt.virt-aa-helper'
_QEMU_PROFILE = 'abstractions/libvirt-qemu'
# What QEMU runs as where qemu.conf does not say: on Debian, and on RHEL.
_QEMU_USERS = ('libvirt-qemu', 'qemu')
# As a volume file is called, in a directory as a share is mounted on.
_SAMPLE = ('%s/d41d8cd98f00b204e9800998ecf8427e/'
           'volume-00000000-0000-4000-8000-000000000000')

_SETTING = re.compile(r'''^\s*(\w+)\s*=\s*(\[[^]]*\]|"[^"]*"|'[^']*'|\d+)''',
                      re.MULTILINE)
_STRING = re.compile(r'''"([^"]*)"|'([^']*)\'''')
_INCLUDE = re.compile(r'^\s*#?include\s+(?:if\s+exists\s+)?<([^>]+)>',
                      re.MULTILINE)
_RULE = re.compile(r'^\s*(?:audit\s+)?(?P<deny>deny\s+)?(?:allow\s+)?'
                   r'"?(?P<path>[/@][^\s"]*)"?\s+(?P<modes>[a-zA-Z]+),',
                   re.MULTILINE)
_GLOB = re.compile(r'\*\*|\*|\?|\[[^]]*\]|[{},]|.', re.DOTALL)
_GLOBS = {'**': '.*', '*': '[^/]*', '?': '[^/]', '{': '(?:', '}': ')',
          ',': '|'}


def read_settings(path):
    """What qemu.conf says.

    :returns: strings, lists of strings and numbers, by name
    :raises: OSError
    """
    with open(path, encoding='utf-8', errors='replace') as stream:
        text = stream.read()
    settings = {}
    for name, value in _SETTING.findall(text):
        strings = [one or other for one, other in _STRING.findall(value)]
        if value.startswith('['):
            settings[name] = strings
        else:
            settings[name] = strings[0] if strings else (
                value.strip('"\'') and int(value))
    return settings


def qemu_user(settings):
    """The uid, gid and groups that QEMU runs with; None if it is unknown."""
    user, group = (str(settings.get(name) or '')
                   for name in ('user', 'group'))
    found = next(filter(None, map(identity, [user] if user else _QEMU_USERS)),
                 None)
    if found is None or not group:
        return found
    try:
        gid = (int(group.lstrip('+')) if group.lstrip('+').isdecimal()
               else grp.getgrnam(group).gr_gid)
    except KeyError:
        return None
    return found[0], gid, [*found[2], gid]


def identity(user):
    """The uid, gid and groups of a user, by its name or number, or None."""
    number = user.lstrip('+')
    try:
        entry = (pwd.getpwuid(int(number)) if number.isdecimal()
                 else pwd.getpwnam(user))
    except KeyError:
        return None
    return (entry.pw_uid, entry.pw_gid,
            os.getgrouplist(entry.pw_name, entry.pw_gid))


def libvirt(host):
    """The version of libvirt."""
    release = _libvirt_version()
    if release is None:
        return verdict.unknown(
            'there is no libvirt here; where it runs in a container, run '
            'this command there, too.')
    if host_checks.parse_version(release) < _SHARED:
        return verdict.warning(
            'libvirt %s cannot be told that hosts share Lustre, and refuses '
            'to migrate running servers with volumes on it.' % release,
            'For live migration, install version %d.%d or later.' % _SHARED)
    return verdict.ok('libvirt %s.' % release)


def shared_filesystems(host):
    """What libvirt takes for shared between hosts."""
    if host.qemu_settings is None:
        return _no_settings(host)
    named = host.qemu_settings.get('shared_filesystems')
    try:
        # libvirt takes nothing but a list; what it names may hang.
        named = worker.Worker('shared_filesystems').run(
            probe.real_paths, named if isinstance(named, list) else [],
            timeout=host.timeout)
    except exception.ShareUnavailable:
        return verdict.unknown(
            'one of %s, which shared_filesystems in %s names, does not '
            'answer.' % (', '.join(named), host.qemu_conf),
            'Look at "targets" below; bring its servers back.')
    missing = [base for base in host.nova_bases
               if not any(os.path.commonpath((base, path)) == path
                          for path in named)]
    if not host.nova_bases:
        return verdict.unknown('the mount point base of Nova is not known.',
                               'Name --nova-config-file.')
    if missing:
        return verdict.warning(
            'shared_filesystems in %s does not name %s, so libvirt refuses '
            'to migrate running servers with volumes there.' % (
                host.qemu_conf, ' and '.join(missing)),
            'For live migration, set shared_filesystems = [ %s ] there and '
            'restart libvirt.' % ', '.join('"%s"' % path for path in missing))
    return verdict.ok('shared_filesystems names %s.'
                      % ' and '.join(host.nova_bases))


def ownership(host):
    """Whom QEMU runs as, and whether libvirt gives it the files."""
    settings = host.qemu_settings
    if settings is None:
        return _no_settings(host)
    found = host.qemu_identity
    if found is None:
        return verdict.failure(
            'the user or group that QEMU runs as, %s, is not on this host.' % (
                settings.get('user') or ' or '.join(_QEMU_USERS)),
            'Correct user and group in %s.' % host.qemu_conf)
    seen = 'QEMU runs as %d:%d' % found[:2]
    if found[0] == 0:
        return verdict.warning(
            '%s, so a guest that breaks out of it is root.' % seen,
            'Set another user in %s.' % host.qemu_conf)
    if host.dynamic_ownership:
        return verdict.ok('%s, and libvirt gives it the files of a volume '
                          'while that is attached.' % seen)
    return verdict.ok('%s, and libvirt leaves the owners of files alone '
                      '(dynamic_ownership = 0).' % seen)


def apparmor(host):
    """Whether AppArmor lets libvirt see the layers of a volume."""
    try:
        with open(_APPARMOR) as stream:
            enabled = stream.read().strip() == 'Y'
    except FileNotFoundError:
        enabled = False
    if not enabled:
        return verdict.ok('the kernel does not use AppArmor.')
    driver = (host.qemu_settings or {}).get('security_driver')
    if driver and 'apparmor' not in driver:
        return verdict.ok('libvirt does not use AppArmor.')
    helper, qemu = (_read_rules(name) for name in (_HELPER, _QEMU_PROFILE))
    if helper is None and qemu is None:
        return verdict.unknown('libvirt has no profiles in %s.' % _PROFILES)
    if not host.nova_bases:
        return verdict.unknown('the mount point base of Nova is not known.',
                               'Name --nova-config-file.')
    denied = [base for base in host.nova_bases
              if not (_permits(helper, 'r', base) or
                      _permits(qemu, 'rw', base))]
    if denied:
        return verdict.warning(
            'AppArmor\'s profile %s does not let libvirt read below %s, so '
            'QEMU may be denied the lower layers of volumes with snapshots.'
            % (_HELPER, ' and '.join(denied)),
            'Add %s to %s/local/%s and run "apparmor_parser -r %s/%s".' % (
                ' and '.join('"%s/** r,"' % base for base in denied),
                _PROFILES, _HELPER, _PROFILES, _HELPER))
    return verdict.ok('AppArmor lets libvirt read below %s.'
                      % ' and '.join(host.nova_bases))


def _no_settings(host):
    return verdict.unknown(
        '%s cannot be read (%s).' % (host.qemu_conf, host.qemu_error),
        'Run this command as root, and where libvirt has its configuration; '
        'name another file with --qemu-conf.')


def _libvirt_version():
    for name in _VERSION_COMMANDS:
        try:
            done = subprocess.run(
                [name, '--version'], stdin=subprocess.DEVNULL,
                capture_output=True, encoding='utf-8', errors='replace',
                cwd='/', env=worker.environment(), timeout=_PATIENCE)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
        match = re.search(r'\d+\.\d+(\.\d+)*', done.stdout)
        if match:
            return match[0]
    return None


def _read_rules(name):
    """The rules of a profile and of what it includes; None without it.

    :returns: tuples: whether it denies, the pattern, and the modes
    """
    texts, names = [], [name]
    for name in names:
        try:
            with open(os.path.join(_PROFILES, name), encoding='utf-8',
                      errors='replace') as stream:
                texts.append(stream.read())
        except (FileNotFoundError, IsADirectoryError):
            continue
        names += [each for each in _INCLUDE.findall(texts[-1])
                  if each not in names]
    if not texts:
        return None
    rules = []
    for match in _RULE.finditer('\n'.join(texts)):
        path = match['path'].replace('@{HOME}', '{/home/*,/root}')
        # Nor are patterns with a backslash understood.
        if '@{' not in path and '\\' not in path:
            rules.append((bool(match['deny']), _glob(path), match['modes']))
    return rules


def _glob(path):
    depth = 0
    pattern = ''
    for part in _GLOB.findall(path):
        depth += {'{': 1, '}': -1}.get(part, 0)
        if part == ',' and not depth:
            pattern += ','
        elif part.startswith('[') and len(part) > 1:
            pattern += part
        else:
            pattern += _GLOBS.get(part) or re.escape(part)
    return pattern


def _permits(rules, modes, base):
    path = _SAMPLE % base
    given = set()
    for deny, pattern, found in rules or ():
        if re.fullmatch(pattern, path):
            if deny and set(modes) & set(found):
                return False
            given |= set() if deny else set(found)
    return given.issuperset(modes)
