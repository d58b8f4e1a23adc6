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

"""Finds what the doctor has to look at, in the configuration of the host."""

import os

from oslo_config import cfg

from cinder_lustre.brick import mount
from cinder_lustre import doctor
from cinder_lustre.doctor import shares
from cinder_lustre.doctor import verdict
from cinder_lustre import exception
from cinder_lustre.nova import opts as nova_opts
from cinder_lustre import opts
from cinder_lustre import share as share_module

_DRIVER = 'cinder_lustre.volume.drivers.lustre.LustreDriver'
_BACKUP_DRIVER = 'cinder_lustre.backup.drivers.lustre.LustreBackupDriver'
_DEFAULTS = 'backend_defaults'


class Cinder:
    """What Cinder's configuration says about shares.

    :param files: its files; without any, those that Cinder itself reads
    :raises: oslo_config.cfg.Error
    """

    def __init__(self, files):
        self._conf = _parse(files, 'cinder', 'cinder-volume', [
            cfg.ListOpt('enabled_backends', default=[]),
            cfg.StrOpt('volume_manager'), cfg.StrOpt('backup_manager'),
            cfg.StrOpt('backup_driver'), *opts.backup_opts])
        self._register(_DEFAULTS)
        self.is_found = bool(self._conf.config_file)
        self.backends = [name for name in self._conf.enabled_backends
                         if self._register(name) == _DRIVER]

    def _register(self, section):
        self._conf.register_opts(
            [*opts.mount_opts, *opts.volume_opts, cfg.StrOpt('volume_driver')],
            group=section)
        return self.get('volume_driver', section)

    def get(self, option, section=_DEFAULTS):
        """An option of a backend, from where Cinder would take it."""
        found = self._conf.get_location(option, section)
        if not found or found.location is not cfg.Locations.user:
            section = _DEFAULTS
        return self._conf[section][option]

    @property
    def managers(self):
        """The managers that Cinder loads, by role."""
        if not self.is_found:
            return {}
        return {doctor.VOLUME: self._conf.volume_manager or 'Cinder\'s own',
                doctor.BACKUP: self._conf.backup_manager or 'Cinder\'s own'}

    @property
    def keeps_backups(self):
        """Whether backups are kept on Lustre."""
        return self._conf.backup_driver == _BACKUP_DRIVER

    @property
    def fstypes(self):
        """What development accepts beside Lustre, on any share."""
        return [fstype for section in (_DEFAULTS, *self.backends)
                for fstype in self.get('lustre_development_fstypes', section)
                ] + self._conf.lustre_backup_development_fstypes

    def base(self, section=_DEFAULTS):
        """The mount point base of a backend."""
        return os.path.realpath(self.get('lustre_mount_point_base', section))

    def targets(self, roles):
        """The shares that services with these roles are told to use.

        :returns: a list of shares.Target, and pairs of a backend, or an
                  option, and a verdict on what is wrong there
        """
        found, problems = [], []
        for section in self.backends if doctor.VOLUME in roles else ():
            lines = self.get('lustre_shares', section)
            origin = 'lustre_shares'
            if not lines:
                origin = self.get('lustre_shares_config', section)
                try:
                    with open(origin, encoding='utf-8',
                              errors='backslashreplace') as stream:
                        lines = stream.readlines()
                except OSError as exc:
                    problems.append((section, verdict.failure(
                        '%s cannot be read (%s).' % (origin, exc.strerror),
                        'Create it, or set lustre_shares_config.')))
                    continue
            valid, errors = share_module.parse_lines(lines)
            problems += [(section, verdict.failure(
                'line %d of %s is left out: %s.' % (number, origin, reason),
                'Correct it.')) for number, _line, reason in errors]
            base = self.base(section)
            found += [shares.Target(share, share.mount_point(base), roles,
                                    base) for share in valid]
        if doctor.BACKUP in roles and self.keeps_backups:
            try:
                found.append(self._backup_target())
            except exception.InvalidShare as exc:
                problems.append(('lustre_backup_share', verdict.failure(
                    str(exc), 'Correct the option, and restart '
                    'cinder-backup.')))
        return found, problems

    def _backup_target(self):
        share = share_module.Share.parse(self._conf.lustre_backup_share or '')
        base = os.path.realpath(self._conf.lustre_backup_mount_point_base)
        return shares.Target(share, share.mount_point(base),
                             frozenset((doctor.BACKUP,)), base,
                             for_backups=True)


class Nova:
    """What Nova's configuration says about shares.

    :param files: its files; without any, those that Nova itself reads
    :raises: oslo_config.cfg.Error
    """

    def __init__(self, files):
        self._conf = _parse(files, 'nova', 'nova-compute', [])
        self._conf.register_opts(
            [*nova_opts.libvirt_opts,
             cfg.StrOpt('nfs_mount_point_base', default='$state_path/mnt')],
            group='libvirt')
        self.is_found = bool(self._conf.config_file)

    @property
    def fstypes(self):
        """What development accepts beside Lustre."""
        return self._conf.libvirt.lustre_development_fstypes

    @property
    def bases(self):
        """The mount point bases: ours, and where unmodified Nova uses one."""
        ours, other = (os.path.realpath(base) for base in (
            self._conf.libvirt.lustre_mount_point_base,
            self._conf.libvirt.nfs_mount_point_base))
        if other != ours and mounted_below(other, frozenset(), self.fstypes):
            return [ours, other]
        return [ours]


def mounted_below(base, roles, fstypes):
    """The shares that are mounted below a mount point base.

    :returns: a list of shares.Target
    """
    found = {}
    for each in mount.read_mounts():
        if (os.path.dirname(each.path) != base or
                each.fstype not in (mount.LUSTRE, *fstypes)):
            continue
        share = shares.parse_source(each.source)
        if share:
            found.setdefault(each.path, shares.Target(share, each.path, roles,
                                                      base))
    return list(found.values())


def named(text, base, roles):
    """The share that an argument names: a directory, or a share.

    :param base: the mount point base of a share
    :returns: a shares.Target
    :raises: InvalidShare
    """
    if ':/' in text:
        share = share_module.Share.parse(text)
        return shares.Target(share, share.mount_point(base), roles, base)
    path = os.path.abspath(text)
    share = None
    for each in mount.mounts_on(path):
        share = share or shares.parse_source(each.source)
    return shares.Target(share, path, roles)


def _parse(files, project, program, options):
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.StrOpt('state_path',
                                   default='/var/lib/' + project), *options])
    conf([word for path in files for word in ('--config-file', path)],
         project=project, prog=program)
    return conf
