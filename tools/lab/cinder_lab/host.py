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

"""What a lab changes outside its prefix, apart from packages.

Everything here is named after the port base, so that "clean" knows its own.
"""

import os
import pathlib
import pwd

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import state


# Where libvirtd keeps its state; the daemon's package alone brings none.
LIBVIRT = tuple(map(pathlib.Path, (
    '/etc/libvirt', '/run/libvirt', '/var/cache/libvirt', '/var/lib/libvirt',
    '/var/log/libvirt')))
MARK = '.cinder-lustre-lab'


# Mounts the stand-in for Lustre where NFS was asked for.
NFS_HELPER = pathlib.Path('/sbin/mount.nfs')
NFS_HELPER_TEXT = f"""\
#!/bin/sh
# This is not NFS: it is made and removed by the lab ({MARK}).
case $1 in
    *:/*) exec mount -t lustre -o flock "$1" "$2" ;;
    # Cinder looks whether it is there.
    *) exit 1 ;;
esac
"""


def ensure_nfs_helper():
    """Let a driver for NFS mount the lab's shares."""
    if NFS_HELPER.exists() and not _is_ours(NFS_HELPER):
        raise report.LabError(
            f'{NFS_HELPER} is that of NFS: LAB_BACKEND=nfs needs a machine '
            f'without it, as the lab has one of its own')
    state.write(NFS_HELPER, NFS_HELPER_TEXT, mode=0o755)


def remove_nfs_helper():
    if NFS_HELPER.exists() and _is_ours(NFS_HELPER):
        NFS_HELPER.unlink()


def _is_ours(path):
    return MARK.encode() in path.read_bytes()[:1000]


def sudoers_file(base):
    return pathlib.Path(f'/etc/sudoers.d/cinder-lustre-lab-{base}')


def ensure_users(lab):
    """The user that all services run as, and that of QEMU."""
    for name in (lab.user, *((lab.guest_user,) if lab.nova else ())):
        if not exists(name):
            commands.run(
                'useradd', '--system', '--user-group', '--no-create-home',
                '--home-dir', str(lab.link / 'run'),
                '--shell', '/usr/sbin/nologin',
                '--comment', f'cinder-lustre lab {lab.base}', name)


def exists(user):
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def users(base):
    """The users that a lab has."""
    return [name for name in (state.user_name(base),
                              state.guest_user_name(base)) if exists(name)]


def ensure_sudoers(lab, text):
    """Let the services reach root as a production Cinder does."""
    path = sudoers_file(lab.base)
    checked = lab.prefix / 'etc/sudoers'
    state.write(checked, text, mode=0o440)
    commands.run('visudo', '-q', '-c', '-f', str(checked))
    state.write(path, text, mode=0o440)


def entries(base):
    """The names outside the prefix that exist for a port base."""
    found = [str(path) for path in (state.REGISTRY / str(base),
                                    sudoers_file(base))
             if os.path.lexists(path)]
    if NFS_HELPER.exists() and _is_ours(NFS_HELPER):
        found.append(f'{NFS_HELPER} of the lab')
    return found + [f'user {name}' for name in users(base)]


def remove(base):
    """Take back what ensure_users, ensure_sudoers and create made."""
    sudoers_file(base).unlink(missing_ok=True)
    for name in users(base):
        commands.run('userdel', name)
    (state.REGISTRY / str(base)).unlink(missing_ok=True)


def ensure_directories():
    """Mount points for the lab's libvirtd, and for it alone."""
    for path in LIBVIRT:
        if not path.exists():
            path.mkdir()
            (path / MARK).touch()


def remove_directories():
    """Take back what ensure_directories made, once no lab is left."""
    for path in LIBVIRT:
        if (path / MARK).exists():
            (path / MARK).unlink()
            if not os.listdir(path):
                path.rmdir()


def abandoned():
    """Port bases whose lab was deleted by hand."""
    return sorted(int(link.name) for link in state.links()
                  if not link.exists())
