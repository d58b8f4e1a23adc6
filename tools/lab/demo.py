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

"""Shows on real data that volumes, snapshots, images and backups work.

Everything goes through the APIs; data are written and read through Cinder's
attachment API and the connector of cinder-lustre, by a host that knows
nothing else. Ends with a table, and with exit code 1 on any difference or
leftover.
"""

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from urllib import parse

import openstack
from os_brick.initiator import connector as os_brick_connector

from cinder_lab import report as lab_report
from cinder_lustre import brick
from cinder_lustre.cmd import check

GIB = 1 << 30
CHUNK = 8 << 20
ZEROS = bytes(CHUNK)
TIMEOUT = 300
# The first version in which an attachment can be completed; also reverts,
# messages, and lists of what can be managed came before it.
MICROVERSION = '3.44'


class DemoError(Exception):
    """Something is not as it must be."""


class Demo:
    """One run, with volumes of one format."""

    def __init__(self, cloud, fmt, report):
        self.cinder = cloud.block_storage
        self.glance = cloud.image
        self.keystone = cloud.identity
        self.fmt = fmt
        self.report = report
        self.serial = 0

    @contextlib.contextmanager
    def step(self, name):
        start = time.monotonic()
        print('%-6s %-52s' % (self.fmt, name), end=' ', flush=True)
        outcome = 'failed'
        try:
            yield
            outcome = 'ok'
        finally:
            seconds = time.monotonic() - start
            self.report.append((self.fmt, name, seconds, outcome))
            print('%-6s %6.1f s' % (outcome, seconds), flush=True)

    def create_volume(self, size, **source):
        self.serial += 1
        volume = self.cinder.create_volume(
            name='demo-%s-%d' % (self.fmt, self.serial), size=size,
            **{'volume_type': 'lustre-' + self.fmt, **source})
        return self.wait_for(volume)

    def create_snapshot(self, volume):
        return self.wait_for(self.cinder.create_snapshot(
            name='demo-' + self.fmt, volume_id=volume.id))

    def wait_for(self, resource, status='available'):
        """Wait until a resource has a status, and return it."""
        # Without the fetch, the status before the request would do.
        return self.cinder.wait_for_status(
            resource.fetch(self.cinder), status=status, interval=0.5,
            wait=TIMEOUT,
            failures=['error', 'error_extending', 'error_restoring',
                      'error_deleting', 'error_managing',
                      'error_unmanaging'])

    def call(self, method, path, body=None):
        """Call what the SDK lacks, or insists on too much for."""
        response = getattr(self.cinder, method)(
            path, microversion=MICROVERSION,
            **({'json': body} if body else {}))
        if response.status_code >= 400:
            raise DemoError('Cinder answers %s to %s %s' % (
                response.text, method, path))
        return response.json() if response.content else None

    def act(self, resource, action, arguments):
        """Let Cinder do something with a volume or snapshot."""
        self.call('post', '%s/%s/action' % (resource.base_path, resource.id),
                  {action: arguments})

    @contextlib.contextmanager
    def attached(self, volume):
        """The content of a volume, as a host sees it that attached it."""
        answer = self.call(
            'post', '/attachments', {'attachment': {
                'volume_uuid': volume.id,
                'connector': {'host': os.uname().nodename,
                              'ip': '127.0.0.1', 'initiator': None,
                              'multipath': False, 'os_type': 'linux',
                              'platform': os.uname().machine,
                              'mountpoint': '/dev/demo'}}})
        attachment = answer['attachment']
        info = attachment['connection_info']
        brick_connector = os_brick_connector.InitiatorConnector.factory(
            info['driver_volume_type'], '', expect_raw_disk=True,
            conn={'data': info, 'mount_point_base': info['mount_point_base']})
        try:
            device = brick_connector.connect_volume(info)
            self.call('post', '/attachments/%s/action' % attachment['id'],
                      {'os-complete': None})
            try:
                yield device['path']
            finally:
                brick_connector.disconnect_volume(info, device)
        finally:
            self.call('delete', '/attachments/' + attachment['id'])
        self.wait_for(volume)

    def digest(self, volume, size):
        """The checksum of a volume over its whole virtual size.

        :raises: DemoError when it has not that size (GiB)
        """
        digest = hashlib.sha256()
        with self.attached(volume) as stream:
            length = stream.seek(0, os.SEEK_END)
            if length != size * GIB:
                raise DemoError('volume %s has %d bytes, not %d GiB' % (
                    volume.id, length, size))
            for offset in range(0, length, CHUNK):
                stream.seek(offset)
                chunk = stream.read(CHUNK)
                # Most of it is zeros, and to hash them takes the longest.
                if chunk != ZEROS:
                    digest.update(b'%d:' % offset + chunk)
        return digest.hexdigest()

    def expect(self, volume, size, digest):
        found = self.digest(volume, size)
        if found != digest:
            raise DemoError('volume %s has other content than expected'
                            % volume.id)

    def write(self, volume, source, offset=0):
        """Write the content of a local file into a volume."""
        with self.attached(volume) as stream, open(source, 'rb') as data:
            stream.seek(offset)
            while chunk := data.read(CHUNK):
                stream.write(chunk)
            stream.flush()

    def overwrite(self, volume, offset=100 << 20, size=CHUNK, zeros=False):
        """Change a part of a volume, with random data unless told else."""
        with tempfile.NamedTemporaryFile() as data:
            data.write(bytes(size) if zeros else os.urandom(size))
            data.flush()
            self.write(volume, data.name, offset)

    def delete(self, resource, remove):
        remove(resource)
        self.cinder.wait_for_delete(resource, interval=0.5, wait=TIMEOUT)

    def run(self):
        """Go through all jobs."""
        self.run_main_job()
        self.run_changes()
        self.run_backups()

    def run_main_job(self):
        """What everybody needs; the steps tell what it is."""
        cinder, size = self.cinder, 2
        # The cache is the backend's.
        cached = 'lustre1-' + self.fmt
        with self.step('create a volume of 1 GiB'):
            volume = self.create_volume(1)
        with self.step('extend it to 2 GiB'):
            cinder.extend_volume(volume, size)
            volume = self.wait_for(volume)
        with self.step('write a file system image into it'):
            with tempfile.TemporaryDirectory() as directory:
                image = os.path.join(directory, 'image')
                make_file_system(image, directory)
                self.write(volume, image)
        with self.step('read its checksum'):
            before = self.digest(volume, size)
        with self.step('snapshot it'):
            snapshot = self.create_snapshot(volume)
        with self.step('overwrite a part, read its checksum'):
            self.overwrite(volume)
            after = self.digest(volume, size)
            if after == before:
                raise DemoError('what was written is not there')
        with self.step('create a volume from the snapshot, compare'):
            restored = self.create_volume(size, snapshot_id=snapshot.id)
            self.expect(restored, size, before)
        with self.step('clone the volume, compare'):
            clone = self.create_volume(size, source_volid=volume.id)
            self.expect(clone, size, after)
        with self.step('upload the volume as an image'):
            image = self.upload(volume)
        with self.step('create a volume from the image, compare'):
            from_image = self.create_volume(size, image_id=image.id,
                                            volume_type=cached)
            self.expect(from_image, size, after)
        with self.step('create one from the cached image, compare'):
            entry = self.find_cached(image, from_image)
            from_cache = self.create_volume(size, image_id=image.id,
                                            volume_type=cached)
            self.expect(from_cache, size, after)
            if self.find_cached(image, from_cache) != entry:
                raise DemoError('image %s was cached anew' % image.id)
        with self.step('back the clone up'):
            backup = self.back_up(clone)
        with self.step('restore into a new volume, compare'):
            target = self.create_volume(size)
            self.restore(backup, target)
            self.expect(target, size, after)
        with self.step('overwrite the clone, restore it, compare'):
            self.overwrite(clone)
            self.restore(backup, clone)
            self.expect(clone, size, after)
        with self.step('delete the snapshot, compare'):
            self.delete(snapshot, cinder.delete_snapshot)
            self.expect(volume, size, after)
        with self.step('compare shares, records and database'):
            if not check_shares('--config-file',
                                os.environ['LAB_CINDER_CONF']):
                raise DemoError('the shares are not clean')
        with self.step('delete everything'):
            self.delete(backup, cinder.delete_backup)
            self.glance.delete_image(image)
            for each in (volume, restored, clone, from_image, from_cache,
                         target, entry):
                self.delete(each, cinder.delete_volume)

    def find_cached(self, image, volume):
        """The volume that Cinder keeps of an image for a backend."""
        project = self.keystone.find_project('cinder-internal')
        found = [each for each in self.cinder.volumes(
            all_projects=True, name='image-' + image.id)
            if each.project_id == project.id and each.host == volume.host]
        if len(found) != 1:
            raise DemoError('%d volumes of %s are cached of image %s' % (
                len(found), volume.host, image.id))
        return self.wait_for(found[0])

    def run_changes(self):
        """What can be made of a volume that is there."""
        cinder = self.cinder
        with self.step('revert a volume to its snapshot, compare'):
            volume = self.create_volume(1)
            self.overwrite(volume)
            before = self.digest(volume, 1)
            snapshot = self.create_snapshot(volume)
            self.revert(volume, snapshot, before)
        with self.step('unmanage and manage the snapshot, compare'):
            snapshot = self.manage_snapshot(volume, snapshot)
            self.revert(volume, snapshot, before)
            self.delete(snapshot, cinder.delete_snapshot)
        with self.step('unmanage and manage the volume, compare'):
            volume = self.manage_volume(volume)
            self.expect(volume, 1, before)
        other = 'qcow2' if self.fmt == 'raw' else 'raw'
        for fmt in (other, self.fmt):
            with self.step('retype it to %s, compare' % fmt):
                self.retype(volume, 'lustre-' + fmt)
                self.expect(volume, 1, before)
        with self.step('migrate it to the other backend, compare'):
            self.migrate(volume)
            self.expect(volume, 1, before)
        with self.step('migrate it back by way of a host, compare'):
            self.migrate(volume, force_host_copy=True)
            self.expect(volume, 1, before)
        with self.step('delete it'):
            self.delete(volume, cinder.delete_volume)

    def run_backups(self):
        """What there is to backups beyond one of a volume."""
        cinder, states, chain, others = self.cinder, [], [], []
        volume = self.create_volume(1)
        with self.step('a full backup, and two on top of it'):
            for change in ({}, {'zeros': True}, {'offset': 40 << 20}):
                self.overwrite(volume, **change)
                states.append(self.digest(volume, 1))
                chain.append(self.back_up(volume, is_incremental=bool(chain)))
        with self.step('restore the last into a new volume, compare'):
            target = self.create_volume(1)
            self.restore(chain[2], target)
            self.expect(target, 1, states[2])
        with self.step('restore each over the changed volume, compare'):
            for backup, state in zip(chain, states):
                self.overwrite(volume, offset=70 << 20)
                self.restore(backup, volume)
                self.expect(volume, 1, state)
        with self.step('back a snapshot up, restore, compare'):
            snapshot = self.create_snapshot(volume)
            self.overwrite(volume)
            others.append(self.back_up(volume, snapshot_id=snapshot.id))
            self.delete(snapshot, cinder.delete_snapshot)
            self.restore(others[0], target)
            self.expect(target, 1, states[2])
        with self.step('two backups and two restores at once, compare'):
            now = self.digest(volume, 1)
            made = [self.request_backup(each) for each in (volume, target)]
            others += map(self.wait_for, made)
            for backup, each in zip(made, (target, volume)):
                self.request_restore(backup, each)
            for each in (*made, target, volume):
                self.wait_for(each)
            self.expect(target, 1, now)
            self.expect(volume, 1, states[2])
        with self.step('import the three from their records, compare'):
            chain = self.import_anew(chain)
            self.restore(chain[2], target)
            self.expect(target, 1, states[2])
        with self.step('delete backups in the state of an error'):
            for backup in others:
                self.act(backup, 'os-reset_status', {'status': 'error'})
                self.act(backup, 'os-force_delete', {})
                cinder.wait_for_delete(backup, interval=0.5, wait=TIMEOUT)
        with self.step('delete the rest'):
            for backup in chain[::-1]:
                self.delete(backup, cinder.delete_backup)
            for each in volume, target:
                self.delete(each, cinder.delete_volume)

    def request_backup(self, volume, **details):
        """Ask for a backup, and do not wait for it."""
        return self.cinder.create_backup(
            volume_id=volume.id, name='demo-' + self.fmt, **details)

    def back_up(self, volume, **details):
        return self.wait_for(self.request_backup(volume, **details))

    def import_anew(self, chain):
        """Let Cinder learn of backups from their records alone.

        Their files are out of reach while those that it knows are deleted.
        """
        records = [self.call('get', '/backups/%s/export_record' % backup.id)
                   for backup in chain]
        with contextlib.ExitStack() as stack:
            for number, backup in enumerate(chain):
                stack.enter_context(files_hidden(backup.container, number))
            for backup in chain[::-1]:
                self.delete(backup, self.cinder.delete_backup)
        answers = [self.call('post', '/backups/import_record', record)
                   for record in records]
        return [self.wait_for(self.cinder.get_backup(answer['backup']['id']))
                for answer in answers]

    def revert(self, volume, snapshot, before):
        """Overwrite a volume, and revert it to what it was before."""
        self.overwrite(volume)
        self.act(volume, 'revert', {'snapshot_id': snapshot.id})
        self.wait_for(volume)
        self.wait_for(snapshot)
        self.expect(volume, 1, before)

    def manage_snapshot(self, volume, snapshot):
        """Let Cinder forget a snapshot and find it again."""
        self.act(snapshot, 'os-unmanage', {})
        self.cinder.wait_for_delete(snapshot, interval=0.5, wait=TIMEOUT)
        found = self.find_manageable(
            'snapshots', volume, lambda entry: volume.id in
            entry['source_reference']['source-name'])
        answer = self.call('post', '/manageable_snapshots', {'snapshot': {
            'volume_id': volume.id, 'ref': found['reference'],
            'name': 'demo-' + self.fmt}})
        return self.wait_for(self.cinder.get_snapshot(
            answer['snapshot']['id']))

    def manage_volume(self, volume):
        """Let Cinder forget a volume and find it again."""
        host, name_id = volume.fetch(self.cinder).host, volume.id
        self.act(volume, 'os-unmanage', {})
        self.cinder.wait_for_delete(volume, interval=0.5, wait=TIMEOUT)
        found = self.find_manageable(
            'volumes', volume, lambda entry: name_id in
            entry['reference']['source-name'])
        answer = self.call('post', '/manageable_volumes', {'volume': {
            'host': host, 'ref': found['reference'],
            'volume_type': 'lustre-' + self.fmt,
            'name': 'demo-%s-managed' % self.fmt}})
        return self.wait_for(self.cinder.get_volume(answer['volume']['id']))

    def find_manageable(self, kind, volume, ours):
        """Find something in a list of what can be managed."""
        found = [entry for entry in self.call(
            'get', '/manageable_%s/detail?host=%s' % (
                kind, parse.quote(volume.host)))['manageable-' + kind]
            if ours(entry)]
        if len(found) != 1 or not found[0]['safe_to_manage']:
            raise DemoError('what was volume %s is not listed as manageable, '
                            'but %s' % (volume.id, found))
        return found[0]

    def retype(self, volume, name):
        self.act(volume, 'os-retype', {'new_type': name,
                                       'migration_policy': 'never'})
        found = self.wait_for(volume).volume_type
        if found != name:
            raise DemoError('volume %s is still of type %s' % (
                volume.id, found))

    def migrate(self, volume, force_host_copy=False):
        """Move a volume to the other backend."""
        old = volume.fetch(self.cinder).host
        pools = self.call('get', '/scheduler-stats/get_pools')['pools']
        new, = {pool['name'] for pool in pools} - {old}
        self.act(volume, 'os-migrate_volume', {
            'host': new, 'force_host_copy': force_host_copy,
            'lock_volume': True})
        deadline = time.monotonic() + TIMEOUT
        while volume.fetch(self.cinder).migration_status != 'success':
            if (volume.migration_status == 'error' or
                    time.monotonic() > deadline):
                raise DemoError('the migration of volume %s is in state %s'
                                % (volume.id, volume.migration_status))
            time.sleep(0.5)
        if self.wait_for(volume).host != new:
            raise DemoError('volume %s is still on %s' % (volume.id, old))

    def upload(self, volume, disk_format=None):
        answer = self.cinder.upload_volume_to_image(
            volume, 'demo-' + self.fmt, disk_format=disk_format or self.fmt,
            container_format='bare')
        image = self.glance.wait_for_status(
            self.glance.get_image(answer['image_id']), status='active',
            failures=['killed', 'deleted'], interval=0.5, wait=TIMEOUT)
        self.wait_for(volume)
        return image

    def request_restore(self, backup, volume):
        """Ask for a restore, and do not wait for it."""
        # The SDK insists on a name where a volume is enough.
        self.call('post', '/backups/%s/restore' % backup.id,
                  {'restore': {'volume_id': volume.id}})

    def restore(self, backup, volume):
        self.request_restore(backup, volume)
        self.wait_for(backup)
        self.wait_for(volume)


class EncryptedDemo(Demo):
    """One run with encrypted volumes, which a host opens with their key."""

    def run(self):
        with (tempfile.TemporaryDirectory() as directory,
              tempfile.NamedTemporaryFile('w') as key):
            # qemu-img would show it on its command line otherwise.
            key.write(os.environ['LAB_ENCRYPTION_KEY'])
            key.flush()
            self.key = key.name
            self.image = os.path.join(directory, 'image')
            make_file_system(self.image, directory)
            self.run_main_job()
            self.run_refusals()

    def run_main_job(self):
        cinder, size = self.cinder, 2
        with self.step('create an encrypted volume of 1 GiB'):
            volume = self.create_volume(1)
        with self.step('write a file system image into it, compare'):
            self.encrypt(volume)
            self.expect_image(volume)
        with self.step('extend it to 2 GiB, compare'):
            cinder.extend_volume(volume, size)
            volume = self.wait_for(volume)
            self.expect_image(volume)
        with self.step('clone it, compare'):
            clone = self.create_volume(size + 1, source_volid=volume.id)
            self.expect_image(clone)
        with self.step('upload it as an image'):
            image = self.upload(volume, 'raw')
        with self.step('create a volume from that image, compare'):
            from_image = self.create_volume(size, image_id=image.id)
            self.expect_image(from_image)
        with self.step('create one from an image in clear, compare'):
            plain = self.glance.create_image(
                'demo-plain', filename=self.image, disk_format='raw',
                container_format='bare', wait=True)
            from_plain = self.create_volume(1, image_id=plain.id)
            self.expect_image(from_plain)
        with self.step('back it up'):
            backup = self.back_up(volume)
        with self.step('restore it into a new volume, compare'):
            target = self.create_volume(size)
            self.restore(backup, target)
            self.expect_image(target)
        with self.step('overwrite it, restore it, compare'):
            self.overwrite(volume)
            self.restore(backup, volume)
            self.expect_image(volume)
        with self.step('migrate it to the other backend, compare'):
            self.migrate(volume)
            self.expect_image(volume)
        with self.step('migrate it back by way of a host, compare'):
            self.migrate(volume, force_host_copy=True)
            self.expect_image(volume)
        with self.step('delete all but the volume and the backup'):
            for each in image, plain:
                self.glance.delete_image(each)
            for each in clone, from_image, from_plain, target:
                self.delete(each, cinder.delete_volume)
        self.volume, self.backup = volume, backup

    def run_refusals(self):
        """What would not stay encrypted, or could not be opened."""
        cinder, volume, backup = self.cinder, self.volume, self.backup
        with self.step('have a snapshot refused'):
            try:
                self.create_snapshot(volume)
            except openstack.exceptions.ResourceFailure:
                snapshot = next(cinder.snapshots(volume_id=volume.id))
            else:
                raise DemoError('volume %s has a snapshot' % volume.id)
            self.delete(snapshot, cinder.delete_snapshot)
            self.expect_image(volume)
        with self.step('have a restore to a volume in clear refused'):
            target = self.create_volume(2, volume_type='lustre-raw')
            before = self.digest(target, 2)
            try:
                self.restore(backup, target)
            except openstack.exceptions.ResourceFailure:
                self.act(target, 'os-reset_status', {'status': 'available'})
            else:
                raise DemoError('volume %s was overwritten' % target.id)
            self.expect(self.wait_for(target), 2, before)
        with self.step('have a change of the encryption refused'):
            for each, name in (volume, 'lustre-raw'), (target, 'lustre-luks'):
                self.act(each, 'os-retype', {'new_type': name,
                                             'migration_policy': 'on-demand'})
                if self.wait_for(each).volume_type == name:
                    raise DemoError('volume %s is of type %s now' % (
                        each.id, name))
            self.expect_image(volume)
            self.expect(target, 2, before)
        with self.step('delete everything'):
            self.delete(backup, cinder.delete_backup)
            for each in target, volume:
                self.delete(each, cinder.delete_volume)

    def encrypt(self, volume):
        """Write the image into a volume, as a guest's QEMU does."""
        with self.attached(volume) as stream:
            self.qemu_img('convert', '-n', '-f', 'raw',
                          '--target-image-opts', self.image,
                          self.decrypted(stream.name))
            if find(stream, self.image):
                raise DemoError('volume %s is not encrypted' % volume.id)

    def expect_image(self, volume):
        """See that a volume holds the image, for who has the key."""
        with (self.attached(volume) as stream,
              tempfile.NamedTemporaryFile() as plain):
            length = stream.seek(0, os.SEEK_END)
            if length != volume.size * GIB:
                raise DemoError('volume %s has %d bytes, not %d GiB' % (
                    volume.id, length, volume.size))
            self.qemu_img('dd', '-O', 'raw', '--image-opts', 'bs=%d' % CHUNK,
                          'count=%d' % (os.path.getsize(self.image) // CHUNK),
                          'if=' + self.decrypted(stream.name),
                          'of=' + plain.name)
            if subprocess.call(['cmp', self.image, plain.name]):
                raise DemoError('volume %s has other content than expected'
                                % volume.id)

    def qemu_img(self, command, *arguments):
        subprocess.run(['qemu-img', command, '--object',
                        'secret,id=key,file=' + self.key, *arguments],
                       check=True)

    @staticmethod
    def decrypted(path):
        return 'driver=luks,key-secret=key,file.filename=' + path


def find(stream, path):
    """Whether a part of a file that is not zero stands in another one."""
    with open(path, 'rb') as data:
        chunks = iter(lambda: data.read(CHUNK), b'')
        # What is written at random is found in nothing else.
        marks = {chunk[:512] for chunk in chunks} - {ZEROS[:512]}
    stream.seek(0)
    while block := stream.read(CHUNK):
        if any(mark in block for mark in marks):
            return True
    return False


def make_file_system(path, directory):
    """Make an ext4 image of 512 MiB with some random files in it."""
    content = os.path.join(directory, 'content')
    os.mkdir(content)
    for name in range(8):
        with open(os.path.join(content, str(name)), 'wb') as stream:
            stream.write(os.urandom(CHUNK))
    subprocess.run(['mkfs.ext4', '-q', '-d', content, path, '512M'],
                   check=True)


def files_on_shares():
    """What lies on the shares, by full path; of backups directories, too."""
    found = {os.path.join(parent, name)
             for directory in directories()
             for parent, _directories, names in os.walk(directory)
             for name in names}
    return found | {
        os.path.join(parent, name)
        for parent, containers, names in os.walk(backup_directory())
        for name in containers + names}


def directories():
    """The directories of the volumes' shares."""
    return os.environ['LAB_SHARE_DIRECTORIES'].split(':')


def backup_directory():
    """The directory of the backups' share."""
    return os.environ['LAB_BACKUP_DIRECTORY']


@contextlib.contextmanager
def files_hidden(container, number=0):
    """Take the files of a backup away for a while.

    :param number: another one for each that is away at the same time
    """
    top = backup_directory()
    path = os.path.join(top, container)
    hidden = os.path.join(top, 'hidden-%d' % number)
    os.rename(path, hidden)
    try:
        yield
    finally:
        # Whoever found nothing in the directories above has deleted them.
        os.makedirs(os.path.dirname(path), exist_ok=True)
        owner, parent = os.stat(top), path
        while (parent := os.path.dirname(parent)) != top:
            os.chown(parent, owner.st_uid, owner.st_gid)
        os.rename(hidden, path)


def check_shares(*arguments):
    """Print what does not fit together; return whether all does."""
    print()
    codes = [check.main([directory, *arguments])
             for directory in directories()]
    return not any(codes)


def print_table(report):
    print('\n%-6s  %-52s %8s  %s' % ('format', 'step', 'seconds', 'outcome'))
    for fmt, name, seconds, outcome in report:
        print('%-6s  %-52s %8.1f  %s' % (fmt, name, seconds, outcome))
    print('%-6s  %-52s %8.1f' % ('', 'in all', sum(
        row[2] for row in report)))


def execute(run):
    """Run a demonstration; return the exit code.

    :param run: takes a connection and the list of what was done
    """
    brick.register(filter(None, os.environ.get(
        'LAB_DEVELOPMENT_FSTYPES', '').split(',')))
    before = files_on_shares()
    report = []
    try:
        with openstack.connect() as cloud:
            run(cloud, report)
    except (DemoError, lab_report.LabError,
            openstack.exceptions.SDKException) as exc:
        print('\nThe demonstration failed: %s' % exc, file=sys.stderr)
        return 1
    finally:
        print_table(report)
    leftovers = sorted(files_on_shares() - before)
    print('\nLeft on the shares: %s' % (', '.join(leftovers) or 'nothing'))
    return 0 if check_shares() and not leftovers else 1


def main():
    parser = argparse.ArgumentParser(prog='lab demo', description=__doc__)
    parser.add_argument('--format', choices=('raw', 'qcow2', 'luks'),
                        action='append', help='only volumes of this format')
    args = parser.parse_args()

    def run(cloud, report):
        for fmt in args.format or ('raw', 'qcow2', 'luks'):
            kind = EncryptedDemo if fmt == 'luks' else Demo
            kind(cloud, fmt, report).run()
    return execute(run)


if __name__ == '__main__':
    sys.exit(main())
