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

"""Backups and restores, with Cinder's own backup manager and drivers."""

import itertools
import json
import os

from cinder.backup.drivers import posix  # noqa: F401 (registers options)
from cinder.backup.drivers import s3  # noqa: F401 (registers options)
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import utils as test_utils
import ddt
import moto
from oslo_utils import units

from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import managers
from cinder_lustre.tests.functional import site as sites

FORMATS = ('raw', 'qcow2')
OTHER = {'raw': 'qcow2', 'qcow2': 'raw'}
DRIVERS = ('posix', 's3')
HOST = 'functional'
# What a thin volume with a little data may take.
LITTLE = 16 * units.Mi


@ddt.ddt
class BackupsTestCase(base.FunctionalTestCase):

    def start_service(self, name):
        """Start cinder-backup with one of Cinder's drivers."""
        getattr(self, '_configure_' + name)()
        # The quickest for what is mostly zeros.
        self.flags(backup_compression_algorithm='zstd')
        services = self.useFixture(managers.Managers(
            self.site.filesystem.fstypes))
        services.add_volume_manager(self.driver)
        self.service = services.add_backup_manager(HOST)

    def _configure_posix(self):
        self.flags(
            backup_driver='cinder.backup.drivers.posix.PosixBackupDriver',
            backup_posix_path=self.make_directory('backups'),
            # Not the whole volume in one piece.
            backup_file_size=50 * units.Mi)

    def _configure_s3(self):
        # Answers in place of the network, below the client.
        storage = moto.mock_aws()
        storage.start()
        self.addCleanup(storage.stop)
        self.flags(backup_driver='cinder.backup.drivers.s3.S3BackupDriver',
                   backup_s3_endpoint_url='https://s3.amazonaws.com',
                   backup_s3_store_access_key='key',
                   backup_s3_store_secret_key='secret')

    def back_up(self, volume, parent=None, snapshot=None):
        """Make a backup, as the API asks for it."""
        volume = self.load(volume)
        volume.previous_status = volume.status
        source = snapshot or volume
        source.status = 'backing-up'
        source.save()
        volume.save()
        backup = test_utils.create_backup(
            self.context, volume.id, host=HOST, size=volume.size,
            status=fields.BackupStatus.CREATING, temp_volume_id=None,
            temp_snapshot_id=None, parent_id=parent and parent.id,
            snapshot_id=snapshot and snapshot.id)
        self.service.create_backup(self.context, backup)
        backup = objects.Backup.get_by_id(self.context, backup.id)
        self.assertEqual(fields.BackupStatus.AVAILABLE, backup.status)
        self.assertEqual('available', self.load(source).status)
        self.assert_released()
        return backup

    def restore(self, backup, volume, new=False):
        """Restore a backup, as the API asks for it."""
        volume = self.load(volume)
        volume.status = 'creating' if new else 'restoring-backup'
        volume.save()
        backup.status = fields.BackupStatus.RESTORING
        backup.save()
        self.service.restore_backup(self.context, backup, volume.id, new)
        self.assertEqual('available', self.load(volume).status)
        self.assert_released()

    def assert_released(self):
        """See that the share is mounted, and nothing is open on it."""
        directory = self.directory_of(self.driver)
        self.assertTrue(os.path.ismount(directory))
        paths = [os.readlink(entry.path)
                 for entry in os.scandir('/proc/self/fd')
                 if os.path.lexists(entry.path)]
        self.assertEqual([], [path for path in paths
                              if path.startswith(directory)])

    def assert_volume(self, content, volume):
        """Compare a volume, and see that its images are sound."""
        self.assert_content(content, volume)
        for name in self.site.listing():
            if (name.startswith('volume-' + volume.id) and
                    self._begins(name, b'QFI\xfb')):
                sites.command('qemu-img', 'check', '-f', 'qcow2',
                              os.path.join(self.site.path, name))

    def _begins(self, name, start):
        with open(os.path.join(self.site.path, name), 'rb') as stream:
            return stream.read(len(start)) == start

    def create_dirty_volume(self, size, fmt):
        """Create a volume with data where a backup may have none."""
        volume = self.create_volume(size, fmt=fmt)
        content = base.Content(size * units.Gi)
        for offset in (0, 100 * units.Mi + 512, units.Gi // 2 - units.Mi,
                       size * units.Gi - 4 * units.Mi):
            content.put(offset, b'\xff' * 4 * units.Mi)
        with self.attached(volume) as stream:
            content.write(stream)
        return volume, content

    @ddt.idata(itertools.product(FORMATS, DRIVERS))
    @ddt.unpack
    def test_full_and_incremental(self, fmt, driver):
        self.start_service(driver)
        volume = self.create_volume(fmt=fmt)
        before = self.write(volume)
        full = self.back_up(volume)
        # The end loses its data, and other data is new.
        after = before.grown(before.size)
        after.put(after.size - units.Mi, bytes(units.Mi))
        after.put(units.Gi // 4 - 100, b'data' * units.Ki)
        with self.attached(volume) as stream:
            after.write(stream)
        incremental = self.back_up(volume, parent=full)
        # What lies behind the backup stays as it was.
        target, dirt = self.create_dirty_volume(2, OTHER[fmt])
        self.restore(incremental, target)
        self.assert_volume(dirt.overlaid(after), target)
        self.restore(full, volume)
        self.assert_volume(before, volume)

    @ddt.idata(FORMATS)
    def test_new_volume(self, fmt):
        """Cinder leaves out chunks of zeros, also at the end."""
        self.start_service('s3')
        volume = self.create_volume(fmt=OTHER[fmt])
        content = base.Content(units.Gi)
        content.put(100 * units.Mi + 77, b'data' * units.Ki)
        with self.attached(volume) as stream:
            content.write(stream)
        target = self.create_volume(fmt=fmt)
        self.restore(self.back_up(volume), target, new=True)
        # Before it is attached, which mends a file that is too short.
        info = json.loads(sites.command(
            'qemu-img', 'info', '--output=json', '-f', fmt,
            os.path.join(self.site.path, 'volume-' + target.id)))
        self.assertEqual(units.Gi, info['virtual-size'])
        self.assert_volume(content, target)
        self.assertLess(self.allocated(target), LITTLE)

    @ddt.idata(FORMATS)
    def test_snapshots(self, fmt):
        """A volume with snapshots, and a snapshot itself."""
        self.start_service('posix')
        volume = self.create_volume(fmt=fmt)
        old = self.write(volume)
        snapshot = self.create_snapshot(volume)
        content = self.write(volume, seed=1, over=old)
        self.create_snapshot(volume)
        before = self.site.listing()
        of_snapshot = self.back_up(volume, snapshot=snapshot)
        # The temporary volume that it was read from has gone.
        self.assertEqual(before, self.site.listing())
        backup = self.back_up(volume)
        self.restore(of_snapshot, volume)
        self.assert_volume(old, volume)
        self.restore(backup, volume)
        self.assert_volume(content, volume)
        self.assert_volume(old, self.volume_from_snapshot(snapshot))
