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

"""Shows what becomes of backups and restores in the middle of which all ends.

cinder-backup dies; the share of the backups is full, hangs or goes away; an
object is damaged or missing. Each time the error has to be a clear one, no
data may be lost, and all has to be well afterwards: the next backup succeeds,
the former ones are restored, and what has failed can be deleted without a
trace. What was running is stopped before the fault, so that it happens in the
middle on any machine.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time

import openstack

from cinder_lab import outage
from cinder_lab import report as lab_report
from cinder_lab import storage
import demo

SERVICE = 'cinder-backup'
# What each volume holds at random, in bytes: enough to be in the middle.
FILLED = 256 << 20
# In the middle of a restore, as much at least is written.
BEGUN = 48 << 20
# Seconds in which a fault has to end in an error.
PATIENCE = 60
SETTLED = ('available', 'error', 'error_restoring')


class BackupFaults(demo.Demo):
    """One run, with one volume of a format and a good backup of it.

    :param fsname: the stand-in's file system that the backups are on
    """

    def __init__(self, cloud, fmt, report, fsname):
        super().__init__(cloud, fmt, report)
        self.fsname = fsname
        self.services = outage.Services()
        self.top = demo.backup_directory()
        self.log = self.services.log(SERVICE)
        self.failures = []
        # What outlives a case.
        self.kept = set()

    def cases(self):
        """What goes wrong, and the steps of it.

        Where the format makes no difference, a raw volume does.
        """
        cases = [
            ('cinder-backup and its children die in a backup',
             self.die_in_backup),
            ('cinder-backup alone dies in a backup', self.leave_in_backup),
            ('cinder-backup and its children die in a restore',
             self.die_in_restore),
            ('the share hangs in a backup', self.hang),
            ('an object is missing', self.miss),
        ]
        if self.fmt == 'raw':
            cases += [
                ('an object is corrupted', self.corrupt),
                ('the OST of an object is dead in a restore', self.lose_ost),
                ('the share is full in a backup', self.fill_up),
                ('the share is unmounted in a backup', self.unmount),
                ('four backups, then four restores at once', self.crowd),
                ('the share\'s root is another user\'s', self.take_root),
                ('the share\'s root stays another user\'s', self.keep_root),
            ]
        return cases

    def run(self, case=None):
        """Go through the cases; return what was not as it must be.

        :param case: a part of the names of those to run
        """
        with self.step('create a %s volume, back it up' % self.fmt):
            self.volume = self.create_filled()
            self.content = self.digest(self.volume, 1)
            self.good = self.back_up(self.volume)
            self.kept = {self.volume.id, self.good.id}
        for name, steps in self.cases():
            if case is None or case in name:
                self.attempt(name, steps)
        with self.step('delete everything'):
            self.kept = set()
            self.clear()
        return self.failures

    def attempt(self, name, steps):
        """Run a case, and whatever comes of it, clear away what it made."""
        before = demo.files_on_shares()
        try:
            with self.step(name):
                self.offset = os.path.getsize(self.log)
                said = steps()
                self.clear()
                left = demo.files_on_shares() ^ before
                if left:
                    raise demo.DemoError('the files on the shares changed: '
                                         + ', '.join(sorted(left)))
        except (demo.DemoError, lab_report.LabError,
                openstack.exceptions.SDKException) as exc:
            self.failures.append('%s: %s' % (name, exc))
            print('    FAILED: %s' % exc, flush=True)
            self.clear()
        else:
            for line in said or ():
                print('    %s' % line, flush=True)

    # The service dies

    def die_in_backup(self):
        with self.in_the_middle_of_backup() as backup:
            self.services.kill_family(SERVICE)
        self.services.start(SERVICE)
        return [self.failed(backup)] + self.is_well()

    def leave_in_backup(self):
        with self.in_the_middle_of_backup() as backup:
            family = self.services.family(SERVICE)
            self.services.kill(SERVICE)
        # Children go on until they find that nobody listens.
        lab_report.wait_for(lambda: not self.services.alive(family),
                            'the children have ended', PATIENCE)
        self.services.start(SERVICE)
        return [self.failed(backup)] + self.is_well()

    def die_in_restore(self):
        target = self.create_volume(1)
        with self.in_the_middle_of_restore(target):
            self.services.kill_family(SERVICE)
        self.services.start(SERVICE)
        self.settled(target, 'error_restoring')
        self.settled(self.good, 'available')
        return self.is_well(target)

    # The share is full, or away

    def fill_up(self):
        with self.in_the_middle_of_backup() as backup:
            self.fault('enospc', 'on')
        try:
            said = [self.failed(backup, 'No space left', self.fsname)]
            target = self.create_volume(1)
            self.restore(self.good, target)
            self.expect(target, 1, self.content)
            self.delete(backup, self.cinder.delete_backup)
        finally:
            self.fault('enospc', 'off')
        return said + self.is_well()

    def hang(self):
        other = self.create_volume(1)
        with self.in_the_middle_of_backup() as backup:
            self.fault('frozen')
        try:
            said = [self.failed(backup, self.fsname)]
            started = time.monotonic()
            second = self.request_backup(other)
            said.append(self.failed(second, self.fsname))
            said.append('The next request failed after %.0f s.' % (
                time.monotonic() - started))
            self.is_up()
        finally:
            self.fault('recover')
        return said + self.is_well()

    def lose_ost(self):
        target = self.create_volume(1)
        with self.in_the_middle_of_restore(target):
            self.fault('dead-ost', self.objects(self.good)[-1])
        try:
            said = [self.told(self.fsname)]
            self.settled(target, 'error_restoring')
            self.settled(self.good, 'available')
            self.is_up()
        finally:
            self.fault('recover')
        return said + self.is_well(target)

    def unmount(self):
        with self.in_the_middle_of_backup() as backup:
            subprocess.run(['umount', '--lazy', self.top], check=True)
            bare = os.open(self.top, os.O_RDONLY)
        try:
            said = [self.failed(backup, self.fsname)]
            if os.listdir(bare):
                raise demo.DemoError('written to the bare directory: %s'
                                     % os.listdir(bare))
        finally:
            os.close(bare)
        return said + self.is_well()

    # Something is wrong with an object

    def corrupt(self):
        # One that shares its file with no other: objects of zeros may.
        path = next(path for path in self.objects(self.good)
                    if os.stat(path).st_nlink == 1)
        with open(path, 'r+b') as stream:
            content = stream.read()
            stream.seek(len(content) // 2)
            stream.write(bytes(byte ^ 0xff for byte in
                               content[len(content) // 2:][:4096]))
        target = self.create_volume(1)
        try:
            self.request_restore(self.good, target)
            self.settled(target, 'error_restoring')
            said = [self.told(os.path.basename(path))]
            self.settled(self.good, 'available')
        finally:
            with open(path, 'r+b') as stream:
                stream.write(content)
        return said + self.is_well(target)

    def miss(self):
        path = self.objects(self.good)[1]
        target = self.create_volume(1)
        self.overwrite(target)
        before = self.digest(target, 1)
        os.rename(path, self.top + '/hidden')
        try:
            self.request_restore(self.good, target)
            self.settled(target, 'error_restoring')
            said = [self.told(os.path.basename(path))]
            self.reset(target)
            self.expect(target, 1, before)
        finally:
            os.rename(self.top + '/hidden', path)
        return said + self.is_well(target)

    # Several at once

    def crowd(self):
        volumes = [self.create_filled(32 << 20, volume_type='lustre-' + fmt)
                   for fmt in ('raw', 'qcow2') * 2]
        contents = [self.digest(volume, 1) for volume in volumes]
        backups = [self.request_backup(volume) for volume in volumes]
        for backup in backups:
            self.wait_for(backup)
        targets = [self.create_volume(1, volume_type=volume.volume_type)
                   for volume in volumes]
        for backup, target in zip(backups, targets):
            self.request_restore(backup, target)
        for each in (*backups, *targets):
            self.wait_for(each)
        for target, content in zip(targets, contents):
            self.expect(target, 1, content)

    # The root of the share

    def take_root(self):
        """The driver opens it to its group, and nothing below it."""
        inner = self.owners()
        with self.root_of_another():
            said = self.is_well()
            if self.owners() != inner:
                raise demo.DemoError('the owners below the root changed')
        return said

    def keep_root(self):
        """As where the file system takes root for nobody."""
        with self.root_of_another():
            subprocess.run(['chattr', '+i', self.top], check=True)
            try:
                backup = self.request_backup(self.volume)
                said = [self.failed(backup, 'cannot write to', self.top)]
            finally:
                subprocess.run(['chattr', '-i', self.top], check=True)
        return said + self.is_well()

    @contextlib.contextmanager
    def root_of_another(self):
        before = os.stat(self.top)
        os.chown(self.top, 0, 0)
        os.chmod(self.top, 0o700)
        try:
            yield
        finally:
            os.chown(self.top, before.st_uid, before.st_gid)
            os.chmod(self.top, before.st_mode)

    def owners(self):
        """Owner, group and mode of what the good backup consists of."""
        return {path: (info.st_uid, info.st_gid, info.st_mode)
                for path in self.objects(self.good)
                for info in [os.stat(path)]}

    # What is done

    def create_filled(self, size=FILLED, **details):
        volume = self.create_volume(1, **details)
        self.overwrite(volume, size=size)
        return volume

    @contextlib.contextmanager
    def in_the_middle_of_backup(self):
        """Hold a backup when its first object is there, for the body.

        :yields: the backup
        """
        backup = self.request_backup(self.volume)
        with self.services.held(SERVICE, lambda: self.objects(backup)):
            if self.metadata(backup):
                raise demo.DemoError('the backup ended too soon')
            yield backup

    @contextlib.contextmanager
    def in_the_middle_of_restore(self, target):
        """Hold a restore of the good backup for the body."""
        free = room()
        self.request_restore(self.good, target)
        with self.services.held(SERVICE, lambda: free - room() > BEGUN):
            if free - room() > FILLED * 3 // 4:
                raise demo.DemoError('the restore was too fast')
            yield

    def fault(self, *arguments):
        storage.standin('fault', self.fsname, *arguments)

    def reset(self, resource, status='available'):
        self.act(resource, 'os-reset_status', {'status': status})
        self.wait_for(resource, status)

    def clear(self):
        """Delete all that was made and is not kept, in whatever state."""
        for kind, remove in (('backups', self.cinder.delete_backup),
                             ('volumes', self.cinder.delete_volume)):
            for each in getattr(self.cinder, kind)():
                if each.id in self.kept or each.name[:5] != 'demo-':
                    continue
                if each.status != 'available':
                    self.act(each, 'os-reset_status', {'status': 'error'})
                self.delete(each, remove)

    # What is looked at

    def objects(self, backup):
        """The paths of the objects of a backup that are complete."""
        return [path for path in self.files(backup)
                if re.search(r'-\d{5}$', path)]

    def metadata(self, backup):
        return [path for path in self.files(backup)
                if path.endswith('_metadata')]

    def files(self, backup):
        container = backup.container or backup.fetch(self.cinder).container
        if not container:
            return []
        directory = os.path.join(self.top, container)
        try:
            return sorted(os.path.join(directory, name)
                          for name in os.listdir(directory))
        except FileNotFoundError:
            return []

    def settled(self, resource, status):
        """Wait until something has come to a state, which must be the one."""
        lab_report.wait_for(
            lambda: resource.fetch(self.cinder).status in SETTLED,
            '%s is settled' % resource.id, PATIENCE)
        if resource.status != status:
            raise demo.DemoError('%s is in state %s, not %s' % (
                resource.id, resource.status, status))

    def failed(self, backup, *words):
        """See that a backup has failed, and its volume has not suffered.

        :param words: what its message has to name
        :returns: the message
        """
        self.settled(backup, 'error')
        self.settled(self.volume, 'available')
        reason = backup.fail_reason or ''
        for word in words:
            if word not in reason:
                raise demo.DemoError('the message does not say "%s": %s' % (
                    word, reason))
        return reason

    def told(self, word):
        """Wait for a line of the service's log about an error.

        :returns: what it says
        """
        def find():
            with open(self.log, errors='replace') as stream:
                stream.seek(self.offset)
                for line in stream:
                    if ' ERROR ' in line and word in line:
                        return line
        line = lab_report.wait_for(
            find, 'an ERROR with "%s" in %s' % (word, self.log), PATIENCE)
        return line.rpartition('cinder.exception.')[2].strip()

    def is_up(self):
        """See that the service reports."""
        for each in self.call('get', '/os-services?binary=%s' % SERVICE)[
                'services']:
            if each['state'] != 'up':
                raise demo.DemoError('%s is %s' % (SERVICE, each['state']))

    def is_well(self, target=None):
        """See that a new backup, or the good one, can be restored.

        :param target: a volume to restore the good one to, in the state of
            an error
        """
        started = time.monotonic()
        if target:
            self.reset(target)
            self.restore(self.good, target)
        else:
            target = self.create_volume(1)
            self.restore(self.back_up(self.volume), target)
        self.expect(target, 1, self.content)
        return ['All is well %.0f s later.' % (time.monotonic() - started)]


def room():
    """The free bytes on the shares of the volumes."""
    found = map(os.statvfs, demo.directories())
    return sum(each.f_bfree * each.f_frsize for each in found)


def main():
    parser = argparse.ArgumentParser(prog='lab backup-faults',
                                     description=__doc__)
    parser.add_argument('--format', choices=('raw', 'qcow2'),
                        action='append', help='of the volume')
    parser.add_argument('--case',
                        help='run only cases with this in their names')
    parser.add_argument('fsname')
    args = parser.parse_args()

    def run(cloud, report):
        failures = [failure for fmt in args.format or ('raw', 'qcow2')
                    for failure in BackupFaults(cloud, fmt, report,
                                                args.fsname).run(args.case)]
        if failures:
            raise demo.DemoError('\n'.join(failures))
    return demo.execute(run)


if __name__ == '__main__':
    sys.exit(main())
