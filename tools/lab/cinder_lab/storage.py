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

"""The shares of volumes and backups: a real Lustre's, or the stand-in's."""

import contextlib
import json
import os
import pathlib
import pwd
import re
import subprocess
import tempfile

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import services
from cinder_lab import state
from cinder_lab import venv

STANDIN = venv.LAB / 'standin/standin'
STANDIN_MARK = 'This is not Lustre'
MOUNT_HELPER = pathlib.Path('/sbin/mount.lustre')
DEVELOPMENT_FSTYPES = 'ext4,fuse.lustre'
# Where the stand-in's file systems say that they are.
NID = '127.0.0.1@tcp'


def split(value):
    """The shares in LAB_SHARE; a comma may also stand between two NIDs."""
    shares = []
    for part in value.split(','):
        if shares and ':/' not in shares[-1]:
            shares[-1] += ',' + part
        else:
            shares.append(part)
    if not all(re.fullmatch(r'[^/\s]+:/\S+', share) for share in shares):
        raise report.LabError(
            f'LAB_SHARE={value}: not of the form NID:/FSNAME[/DIRECTORY]')
    return [share.rstrip('/') for share in shares]


def has_real_client():
    return MOUNT_HELPER.exists() and (
        STANDIN_MARK.encode() not in MOUNT_HELPER.read_bytes()[:1000])


def mounts(below):
    """Mount points at or below a directory, the last mounted first."""
    found = []
    with open('/proc/self/mountinfo') as table:
        for line in table:
            point = pathlib.Path(re.sub(
                r'\\([0-7]{3})', lambda m: chr(int(m.group(1), 8)),
                line.split()[4]))
            if point == below or below in point.parents:
                found.append(point)
    return found[::-1]


def unmount(lab):
    """Unmount all that the services have mounted below the prefix."""
    for point in mounts(lab.prefix):
        unmount_point(point)


def unmount_point(point):
    """Unmount all that is mounted on a directory."""
    while point in mounts(point):
        report.wait_for(lambda: subprocess.run(
            ['umount', point], stderr=subprocess.DEVNULL).returncode == 0
            or point not in mounts(point), f'umount {point}', 60)


class Shares:
    """A share for each backend, and one for the backups.

    They are prepared for the services, and forgotten again.
    """

    def __init__(self, lab):
        self._lab = lab
        given = os.environ.get('LAB_SHARE') or lab.get('lab_share')
        self.given = split(given) if given else []

    @property
    def development_fstypes(self):
        return '' if has_real_client() else DEVELOPMENT_FSTYPES

    @property
    def backup(self):
        """The share of the backups, also before it is there."""
        if self.given:
            return '/'.join(self._directories()[-1])
        return f'{NID}:/{fsnames(self._lab.base)[-1]}'

    def start(self):
        """Make the shares usable; return their strings."""
        if self.given:
            self._lab.put('lab_share', ','.join(self.given))
            shares = self._start_real()
        elif has_real_client():
            raise report.LabError(
                'the Lustre client is installed: set LAB_SHARE to the share '
                'to use, e.g. LAB_SHARE=10.0.0.1@tcp:/testfs')
        else:
            shares = self._start_standin()
        if self._lab.nova:
            for share in shares[:len(services.BACKENDS)]:
                with self._mounted(share) as root:
                    grant(root, self._lab)
        for name, share in zip(services.BACKENDS, shares):
            state.write(self._lab.prefix / f'etc/shares-{name}',
                        share + '\n')
        return shares

    def _directories(self):
        """The directories on a real Lustre: the backends', the backups'."""
        names = (*services.BACKENDS, 'backup')
        return [(share, f'cinder-lab-{self._lab.base}-{name}')
                for name, share in zip(names, self.given * len(names))]

    def _start_real(self):
        for share, directory in self._directories():
            with self._mounted(share) as root:
                (root / directory).mkdir(exist_ok=True)
                self._hand_over(root / directory)
        return [f'{share}/{directory}'
                for share, directory in self._directories()]

    def _hand_over(self, directory):
        commands.run('chown', f'{self._lab.user}:', str(directory))
        commands.run('chmod', '0750', str(directory))

    @contextlib.contextmanager
    def _mounted(self, share):
        with tempfile.TemporaryDirectory(dir=self._lab.prefix) as place:
            commands.run('mount', '-t', 'lustre', '-o', 'flock', share, place)
            try:
                yield pathlib.Path(place)
            finally:
                commands.run('umount', place)

    def _start_standin(self):
        return [create_standin(self._lab, name, '20G')
                for name in fsnames(self._lab.base)]

    def stop(self):
        """Unmount, and give the stand-in's loop devices back."""
        unmount(self._lab)
        for entry in standins(self._lab.base):
            standin('stop', entry['fsname'])
            report.wait_for(
                lambda: not loop_devices(entry),
                f'loop device of {entry["image"]} (a process with mounts of '
                f'its own may keep it)', 60)

    def remove(self):
        """Delete what start() has made."""
        if self.given:
            for share, directory in self._directories():
                with self._mounted(share) as root:
                    commands.run('rm', '-rf', '--one-file-system',
                                 str(root / directory))
        destroy_standins(self._lab.base)


def grant(root, lab):
    """Let service and QEMU use a volume, whoever of them owns the file.

    What a chmod below the mask takes away is not given back: the mask comes
    from the mode with which the service makes a file.
    """
    both = ','.join(f'u:{user}:rw' for user in (lab.user, lab.guest_user))
    default = ','.join(f'd:{entry}' for entry in both.split(','))
    commands.run('setfacl', '-m', f'u:{lab.guest_user}:x,{default},'
                 f'd:u::rwx,d:g::-,d:o::-', str(root))
    # What was there before Nova.
    volumes = [str(path) for path in root.glob('volume-*')]
    if volumes:
        commands.run('setfacl', '-m', both, *volumes)


def fsnames(base):
    """The stand-in's file systems of a lab: at most eight characters.

    The last one is that of the backups.
    """
    return [f'l{base}{letter}' for letter in 'abc']


def spare_fsname(base):
    """The file system that "bad-input" breaks."""
    return f'l{base}x'


def create_standin(lab, name, size):
    """Make a file system of the stand-in; return its share string."""
    user = pwd.getpwnam(lab.user)
    return standin('create', '--fsname', name, '--size', size, '--nid', NID,
                   '--dir', str(lab.prefix / 'standin'), '--mode', '0750',
                   '--owner', f'{user.pw_uid}:{user.pw_gid}').strip()


def standins(base):
    """What the stand-in knows of a lab."""
    return [entry for entry in json.loads(standin('list', '--json'))
            if entry['fsname'] in (*fsnames(base), spare_fsname(base))]


def loop_devices(entry):
    return commands.run('losetup', '--associated',
                        entry['image']).splitlines()


def destroy_standins(base):
    for entry in standins(base):
        standin('destroy', entry['fsname'])


def outside(base):
    """What the stand-in has outside the prefix, for "status"."""
    for entry in standins(base):
        yield f'/run/cinder-lustre-lab/{entry["fsname"]}.json'
        yield from loop_devices(entry)
    if not has_real_client():
        for path in ('/sbin/mount.lustre', '/usr/bin/lfs', '/usr/sbin/lctl'):
            if os.path.exists(path):
                yield f'{path} of the stand-in'


def standin(*arguments):
    return commands.run(str(STANDIN), *arguments)
