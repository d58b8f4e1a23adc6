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

"""Packages of the distribution, installed without starting a service."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import state

POLICY = pathlib.Path('/usr/sbin/policy-rc.d')
SAVED = POLICY.with_name('policy-rc.d.before-cinder-lustre-lab')
MARK = '# cinder-lustre lab: packages are installed, nothing starts'


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What differs between the supported distributions."""

    packages: tuple
    environment: dict
    # The profile "nova" too; bindep.txt has them for those who look there.
    # libvirt without the daemon's units, users and networks; PyPI has its
    # Python binding only as a source.
    nova: tuple = ('acl', 'gcc', 'libvirt-daemon',
                   'libvirt-daemon-driver-qemu', 'libvirt-dev', 'pkg-config',
                   'python3-dev', 'qemu-system-x86')


def distribution(os_release):
    """The one place that knows the distributions apart.

    :param os_release: the text of /etc/os-release
    """
    fields = dict(line.split('=', 1) for line in os_release.splitlines()
                  if '=' in line)
    name = '{} {}'.format(*(fields.get(key, '?').strip('"')
                            for key in ('ID', 'VERSION_ID')))
    # The core packages of MariaDB: a server without a service of its own.
    packages = ('ca-certificates', 'e2fsprogs', 'git',
                'mariadb-client-core', 'mariadb-server-core', 'memcached',
                'mount', 'python3-venv', 'qemu-utils', 'rabbitmq-server',
                'sudo', 'util-linux')
    environment = {'DEBIAN_FRONTEND': 'noninteractive'}
    if name == 'debian 12':
        return Distribution(packages, environment)
    if name == 'ubuntu 24.04':
        # needrestart would ask, and would restart the host's services.
        return Distribution(packages, environment | {
            'NEEDRESTART_SUSPEND': '1', 'NEEDRESTART_MODE': 'l'})
    raise report.LabError(
        f'{name}: the lab is written for Debian 12 and Ubuntu 24.04')


def policy_is_ours():
    return POLICY.exists() and MARK in POLICY.read_text(errors='replace')


def restore_policy():
    """Take away our policy-rc.d, also one that a killed run has left."""
    if policy_is_ours():
        POLICY.unlink()
    if SAVED.exists():
        SAVED.rename(POLICY)


@contextlib.contextmanager
def no_service_starts():
    restore_policy()
    if POLICY.exists():
        POLICY.rename(SAVED)
    state.write(POLICY, f'#!/bin/sh\n{MARK}\nexit 101\n', mode=0o755)
    try:
        yield
    finally:
        restore_policy()


def missing(wanted):
    result = subprocess.run(
        ['dpkg-query', '--show',
         '--showformat=${Package} ${db:Status-Status}\n', *wanted],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    installed = {line.split()[0] for line in result.stdout.splitlines()
                 if line.endswith(' installed')}
    return [name for name in wanted if name not in installed]


def install(log, nova=False):
    """Install what is missing; return its names."""
    here = distribution(pathlib.Path('/etc/os-release').read_text())
    with state.locked(state.REGISTRY):
        restore_policy()
        wanted = missing(here.packages + (here.nova if nova else ()))
        if not wanted:
            return []
        environment = os.environ | here.environment
        apt = ['apt-get', '-o', 'DPkg::Lock::Timeout=300', '-q', '-y']
        with no_service_starts():
            for command in (
                    # A run that was killed may have left some unpacked.
                    ['dpkg', '--configure', '-a', '--force-confold'],
                    [*apt, 'update'],
                    [*apt, 'install', '--no-install-recommends', *wanted]):
                commands.Logged(log, *command, env=environment).wait()
        _disable(wanted)
    return wanted


def _disable(packages):
    """Keep the services of new packages from starting at the next boot."""
    if not os.path.isdir('/run/systemd/system'):
        return
    for unit in ('memcached.service', 'rabbitmq-server.service'):
        if unit.removesuffix('.service') in packages:
            commands.run('systemctl', 'disable', '--now', unit)
