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

from concurrent import futures
import contextlib
import itertools
import json
import os
import signal
from unittest import mock

from cinder.backup import api as backup_api
from cinder.backup.drivers import posix  # noqa: F401 (registers options)
from cinder.backup.drivers import s3  # noqa: F401 (registers options)
from cinder import context
from cinder.db import api as db_api
from cinder.db import models
from cinder import exception
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import fake_constants as fake
from cinder.tests.unit import utils as test_utils
from cinder.volume import volume_utils
import ddt
import moto
from oslo_config import cfg
from oslo_utils import units

from cinder_lustre.backup.drivers import lustre
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import managers
from cinder_lustre.tests.functional import site as sites
from cinder_lustre import worker

CONF = cfg.CONF

FORMATS = ('raw', 'qcow2')
OTHER = {'raw': 'qcow2', 'qcow2': 'raw'}
DRIVERS = ('lustre', 'posix', 's3')
# What a thin volume with a little data may take.
LITTLE = 16 * units.Mi


class BackupCase(base.FunctionalTestCase):
    """Managers of backups, beside that of the volumes."""

    def prepare(self):
        # Unmounted after that of the volumes is.
        self.backups = self.make_site(*self.FAULTS)
        super().prepare()
        # The quickest for what is mostly zeros.
        self.flags(backup_compression_algorithm='zstd')
        self.services = {}
        self.managers = self.useFixture(managers.Managers(
            self.site.filesystem.fstypes))
        self.managers.add_volume_manager(self.driver)

    def start_service(self, name):
        """Start cinder-backup with a driver, for what follows."""
        getattr(self, '_configure_' + name)()
        self.service = self._add_service(name)

    def _add_service(self, name):
        self.services[name] = self.managers.add_backup_manager(name)
        # While the options that were set for it are there.
        self.addCleanup(self.delete_backups)
        return self.services[name]

    def _configure_lustre(self):
        self.flags(
            backup_driver='%s.LustreBackupDriver' % lustre.__name__,
            lustre_backup_share=str(self.backups.share),
            lustre_backup_mount_point_base=self.backup_base,
            lustre_backup_development_fstypes=self.site.filesystem.fstypes)

    @property
    def backup_base(self):
        return os.path.join(self.directory, 'backup_mount')

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

    def start_both(self):
        """Start the Lustre and the posix driver on the same backups."""
        self.start_service('lustre')
        self._configure_posix()
        self.flags(backup_posix_path=self.backups.share.mount_point(
            self.backup_base))
        self._add_service('posix')

    def new_backup(self, volume, parent=None, snapshot=None, container=None):
        """Make a backup in the database alone, as the API does."""
        ctxt = context.get_admin_context()
        volume = self.load(volume)
        volume.previous_status = volume.status
        source = snapshot or volume
        source.status = 'backing-up'
        source.save()
        volume.save()
        backup = test_utils.create_backup(
            ctxt, volume.id, host=self.service.host, size=volume.size,
            status=fields.BackupStatus.CREATING, temp_volume_id=None,
            temp_snapshot_id=None, parent_id=parent and parent.id,
            snapshot_id=snapshot and snapshot.id)
        # The function above gives all the same one.
        backup.container = container
        backup.save()
        return backup

    def make_backup(self, volume, parent=None, snapshot=None,
                    container=None):
        """Make a backup."""
        backup = self.new_backup(volume, parent, snapshot, container)
        self.service.create_backup(context.get_admin_context(), backup)
        backup = self.load(backup)
        self.assertEqual(fields.BackupStatus.AVAILABLE, backup.status)
        self.assertEqual('available', self.load(snapshot or volume).status)
        return backup

    def back_up(self, volume, **values):
        """Make a backup while nothing else is done."""
        backup = self.make_backup(volume, **values)
        self.assert_released()
        return backup

    def bring_back(self, backup, volume, new=False):
        """Restore a backup, as the API asks for it."""
        volume, backup = self.load(volume), self.load(backup)
        volume.status = 'creating' if new else 'restoring-backup'
        volume.save()
        backup.status = fields.BackupStatus.RESTORING
        backup.save()
        self.service.restore_backup(context.get_admin_context(), backup,
                                    volume.id, new)
        self.assertEqual('available', self.load(volume).status)

    def restore(self, backup, volume, new=False):
        """Restore a backup while nothing else is done."""
        self.bring_back(backup, volume, new)
        self.assert_released()

    def delete(self, backup):
        """Delete a backup, as the API asks for it."""
        backup = self.load(backup)
        backup.status = fields.BackupStatus.DELETING
        backup.save()
        self.service.delete_backup(context.get_admin_context(), backup)

    def delete_backups(self):
        """Delete what backups there are, the latest first."""
        for site in self.sites:
            site.recover()
        self.service = self.services.get('lustre', self.service)
        self.wait_for_backup_workers()
        for backup in reversed(objects.BackupList.get_all(self.context)):
            # Those of the posix driver as well, which leaves directories.
            backup.service = self.service.driver_name
            backup.save()
            self.delete(backup)

    @staticmethod
    def wait_for_backup_workers():
        """Wait until no child of a backup driver hangs any more."""
        for each in lustre.LustreBackupDriver._workers.values():
            base.wait_for(lambda: not each.stuck, 'no child hangs')

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

    def change(self, volume, content):
        """Give a volume new data, and zeros in the place of its last ones.

        :returns: its Content then
        """
        content = content.grown(content.size)
        content.put(content.size - units.Mi, bytes(units.Mi))
        content.put(units.Gi // 4 - 100, b'data' * units.Ki)
        with self.attached(volume) as stream:
            content.write(stream)
        return content

    def write_random(self, volume, size):
        """Fill the start of a volume with what cannot be compressed."""
        content = base.Content(volume.size * units.Gi)
        for offset in range(0, size, units.Mi):
            content.put(offset, os.urandom(units.Mi))
        with self.attached(volume) as stream:
            content.write(stream)
        return content

    @contextlib.contextmanager
    def meanwhile(self, function):
        """Call a function once while a backup is made or restored.

        That is when the driver first looks whether Cinder still wants it.
        """
        refresh = objects.Backup.refresh
        calls = [function]

        def spy(backup):
            refresh(backup)
            if calls:
                calls.pop()()

        with mock.patch.object(objects.Backup, 'refresh', spy):
            yield
        self.assertEqual([], calls)


@ddt.ddt
class BackupsTestCase(BackupCase):

    @ddt.idata(itertools.product(FORMATS, DRIVERS))
    @ddt.unpack
    def test_full_and_incremental(self, fmt, driver):
        self.start_service(driver)
        volume = self.create_volume(fmt=fmt)
        before = self.write(volume)
        full = self.back_up(volume)
        after = self.change(volume, before)
        incremental = self.back_up(volume, parent=full)
        # What lies behind the backup stays as it was.
        target, dirt = self.create_dirty_volume(2, OTHER[fmt])
        self.restore(incremental, target)
        self.assert_volume(dirt.overlaid(after), target)
        self.restore(full, volume)
        self.assert_volume(before, volume)

    @ddt.idata(itertools.product(FORMATS, ('lustre', 's3')))
    @ddt.unpack
    def test_new_volume(self, fmt, driver):
        """Chunks of zeros are left out, also at the end."""
        self.start_service(driver)
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

    @ddt.idata(itertools.product(FORMATS, ('lustre', 'posix')))
    @ddt.unpack
    def test_snapshots(self, fmt, driver):
        """A volume with snapshots, and a snapshot itself."""
        self.start_service(driver)
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


@ddt.ddt
class LustreBackupsTestCase(BackupCase):
    """What the Lustre driver does otherwise than Cinder's."""

    def prepare(self):
        super().prepare()
        self.start_service('lustre')

    @ddt.idata(FORMATS)
    def test_over_a_full_volume(self, fmt):
        volume = self.create_volume(fmt=OTHER[fmt])
        content = self.write(volume)
        backup = self.back_up(volume)
        target = self.create_volume(fmt=fmt)
        with self.connected(target) as (path, _fmt):
            sites.command('qemu-io', '-f', fmt, '-c', 'write -P 0xff 0 1G',
                          path)
        self.restore(backup, target)
        self.assert_volume(content, target)

    def test_deletion(self):
        volume = self.create_volume()
        self.write(volume)
        first, second = self.back_up(volume), self.back_up(volume)
        self.delete(first)
        names = self.backups.listing()
        self.assertEqual([], [name for name in names if first.id in name])
        self.assertNotEqual([], names)
        self.delete(second)
        self.assertEqual([], self.backups.listing())

    def test_container_of_the_users_choice(self):
        """It goes with the last backup that is in it."""
        volume = self.create_volume()
        content = self.write(volume)
        first, second = (self.back_up(volume, container='my/daily')
                         for __ in range(2))
        self.delete(first)
        self.restore(second, volume)
        self.assert_volume(content, volume)
        self.delete(second)
        self.assertEqual([], self.backups.listing())

    def test_force_delete(self):
        """A backup that is deleted while it is made leaves nothing."""
        volume = self.create_volume()
        self.write(volume)
        backup = self.new_backup(volume)
        with self.meanwhile(lambda: self.delete(backup)), \
                mock.patch.object(lustre, '_LOOK_INTERVAL', 0):
            self.service.create_backup(self.context, self.load(backup))
        self.assertRaises(exception.BackupNotFound, self.load, backup)
        self.assertEqual('available', self.load(volume).status)
        self.assertEqual([], self.backups.listing())
        self.assert_released()

    def test_force_delete_at_the_end(self):
        """It is deleted after the driver has looked for the last time."""
        volume = self.create_volume()
        self.write(volume)
        backup = self.new_backup(volume)
        with self.meanwhile(lambda: self.delete(backup)), \
                mock.patch.object(lustre, '_LOOK_INTERVAL', 3600):
            self.service.create_backup(self.context, self.load(backup))
        self.assertRaises(exception.BackupNotFound, self.load, backup)
        self.assertEqual('available', self.load(volume).status)
        self.assertEqual([], self.backups.listing())

    def test_container_without_objects(self):
        """A backup that failed before it had any objects."""
        volume = self.create_volume()
        backup = self.new_backup(volume)
        with mock.patch.object(
                self.service.service, '_generate_object_name_prefix',
                side_effect=OSError('interrupted')):
            self.assertRaises(OSError, self.service.create_backup,
                              self.context, self.load(backup))
        self.delete(backup)
        self.assertEqual([], self.backups.listing())

    @ddt.data('/', '..', '../other', 'daily/../../other', '.')
    def test_container_outside(self, container):
        """A user's choice stays within the share, and can be deleted."""
        if container == '/':
            container = os.path.join(self.directory, 'other')
        volume = self.create_volume()
        backup = self.new_backup(volume, container=container)
        with contextlib.suppress(exception.CinderException):
            self.service.create_backup(self.context, self.load(backup))
        paths = {os.path.join(parent, name)
                 for parent, _directories, names in os.walk(self.directory)
                 for name in names if backup.id in name}
        share = self.backups.share.mount_point(self.backup_base)
        self.assertEqual(set(), {path for path in paths
                                 if not path.startswith(share + '/')})
        self.delete(backup)
        self.assertEqual([], self.backups.listing())

    def test_notifications(self):
        volume = self.create_volume()
        self.write(volume)
        _backup, percents = self.back_up_and_watch(volume)
        self.assertLess(10, len(set(percents)))

    def test_notifications_of_an_incremental_backup(self):
        """What has not changed was looked at, too."""
        volume = self.create_volume()
        content = self.write(volume)
        parent = self.back_up(volume)
        content.put(units.Gi // 4, b'more' * units.Ki)
        with self.attached(volume) as stream:
            content.write(stream)
        _backup, percents = self.back_up_and_watch(volume, parent)
        self.assertLess(10, len(set(percents)))

    def back_up_and_watch(self, volume, parent=None):
        """Make a backup, and see that it tells Cinder how it goes on.

        :returns: the backup, and the percentages that were told
        """
        self.flags(backup_timer_interval=0)
        events = []
        percents = []
        counts = []

        def notify(_context, _backup, event, extra_usage_info=None, **_more):
            events.append(event)
            if event == 'createprogress':
                percents.append(extra_usage_info['backup_percent'])
                counts.append(len(extra_usage_info['list']))

        with mock.patch.object(lustre, '_LOOK_INTERVAL', 0), \
                mock.patch.object(volume_utils, 'notify_about_backup_usage',
                                  notify):
            backup = self.back_up(volume, parent=parent)
        self.assertEqual(
            ['create.start', *['createprogress'] * len(percents),
             'create.end'], events)
        self.assertEqual(sorted(percents), percents)
        self.assertEqual(100, percents[-1])
        self.assertEqual(backup.object_count, counts[-1])
        return backup, percents

    def test_several_at_once(self):
        volumes = [self.create_volume(fmt=fmt) for fmt in FORMATS * 2]
        contents = [self.write(volume, seed)
                    for seed, volume in enumerate(volumes)]
        backups = self.in_threads(self.make_backup, volumes)
        targets = [self.create_volume(fmt=OTHER[fmt]) for fmt in FORMATS * 2]
        self.in_threads(self.bring_back, backups, targets)
        for content, target in zip(contents, targets):
            self.assert_volume(content, target)
        self.assert_released()

    def in_threads(self, function, *arguments):
        """Call a function with each set of arguments, all at once."""
        with futures.ThreadPoolExecutor(len(arguments[0])) as executor:
            return list(executor.map(function, *arguments))

    def test_memory(self):
        """Whatever the volume's size, little of it is in memory."""
        volume = self.create_volume()
        content = self.write_random(volume, units.Gi)
        target = self.create_volume()
        with self.assert_memory_below(512 * units.Mi):
            backup = self.back_up(volume)
        with self.assert_memory_below(512 * units.Mi):
            self.restore(backup, target, new=True)
        self.assert_content(content, target)

    @contextlib.contextmanager
    def assert_memory_below(self, limit):
        """See how much this process grows, and its children at most."""
        hear = worker._Child.hear
        peaks = []

        def spy(child):
            hear(child)
            # With its last word at the latest, a child has its peak behind
            # it; what has ended since has none any more.
            if child.proc:
                peaks.append(memory(child.proc.pid).get('VmHWM', 0))

        # From now on, its peak counts anew.
        with open('/proc/self/clear_refs', 'w') as stream:
            stream.write('5')
        before = memory('self')['VmRSS']
        with mock.patch.object(worker._Child, 'hear', spy):
            yield
        self.assertLess(memory('self')['VmHWM'] - before, limit)
        self.assertIn(max(peaks), range(units.Mi, limit))


def memory(pid):
    """What a process has in memory, by the names of /proc (bytes)."""
    with open('/proc/%s/status' % pid) as stream:
        return {name: int(value.split()[0]) * units.Ki
                for name, value in (line.split(':') for line in stream
                                    if line.startswith('Vm'))}


@ddt.ddt
class InteroperabilityTestCase(BackupCase):
    """The Lustre and the posix driver have each other's backups."""

    @ddt.data(
        # Full and incremental backup, restore; from, to; compression; new.
        ('lustre', 'lustre', 'posix', 'raw', 'qcow2', 'bz2', False),
        ('lustre', 'posix', 'lustre', 'qcow2', 'qcow2', 'zstd', True),
        ('lustre', 'posix', 'posix', 'raw', 'raw', 'none', False),
        ('posix', 'lustre', 'lustre', 'raw', 'raw', 'none', True),
        ('posix', 'lustre', 'posix', 'qcow2', 'raw', 'zstd', False),
        ('posix', 'posix', 'lustre', 'raw', 'qcow2', 'zlib', False))
    @ddt.unpack
    def test_chain(self, full, incremental, restoring, source, target,
                   compression, new):
        self.flags(backup_compression_algorithm=compression)
        self.start_both()
        volume = self.create_volume(fmt=source)
        self.service = self.services[full]
        content = self.write(volume)
        parent = self.back_up(volume)
        content = self.change(volume, content)
        self.service = self.services[incremental]
        backup = self.back_up(volume, parent=parent)
        if restoring != incremental:
            self.move(parent, self.services[restoring])
            self.move(backup, self.services[restoring])
        if new:
            restored = self.create_volume(fmt=target)
        else:
            restored, _dirt = self.create_dirty_volume(1, target)
        self.service = self.services[restoring]
        self.restore(backup, restored, new)
        self.assert_volume(content, restored)

    def move(self, backup, service):
        """Export a backup's record, and import it elsewhere.

        Nothing of it is left in the database when that happens.
        """
        ctxt = context.get_admin_context()
        backup = self.load(backup)
        record = self.services[backup.host].export_record(ctxt, backup)
        with db_api.main_context_manager.writer.using(ctxt) as session:
            session.query(models.Backup).filter_by(id=backup.id).delete()
        self.assertRaises(exception.BackupNotFound, self.load, backup)
        imported = backup_api.API()._get_import_backup(
            context.RequestContext(fake.USER_ID, fake.PROJECT_ID,
                                   is_admin=True), record['backup_url'])
        # Which driver is to take it is the operator's choice.
        service.import_record(ctxt, imported, service.driver_name,
                              record['backup_url'], [])
        imported = self.load(backup)
        self.assertEqual(fields.BackupStatus.AVAILABLE, imported.status)
        for name in ('container', 'service_metadata', 'object_count',
                     'parent_id', 'size'):
            self.assertEqual(getattr(backup, name), getattr(imported, name))

    def test_another_cinder(self):
        """Where the record is imported, the backup can be deleted, too."""
        self.start_service('lustre')
        volume = self.create_volume()
        content = self.write(volume)
        backup = self.back_up(volume)
        self.move(backup, self.service)
        target = self.create_volume()
        self.restore(backup, target, new=True)
        self.assert_volume(content, target)
        self.delete(backup)
        self.assertEqual([], self.backups.listing())


class FaultsTestCase(BackupCase):
    """What goes wrong while a backup is made or restored."""

    def prepare(self):
        super().prepare()
        self.flags(lustre_backup_object_size=4)
        self.start_service('lustre')
        self.volume = self.create_volume()
        self.content = self.write_random(self.volume, 64 * units.Mi)

    def assert_backup_fails(self, word):
        """See that no backup is claimed.

        :returns: the failed backup
        """
        backup = self.new_backup(self.volume)
        error = self.assertRaises(
            exception.BackupDriverException, self.service.create_backup,
            self.context, self.load(backup))
        self.assertIn(word, str(error))
        backup = self.load(backup)
        self.assertEqual(fields.BackupStatus.ERROR, backup.status)
        self.assertIn(word, backup.fail_reason)
        self.assertEqual('available', self.load(self.volume).status)
        self.assert_released()
        return backup

    def assert_deleted(self, backup):
        """See that nothing complete is left of a failed backup, or at all."""
        names = self.backups.listing()
        self.assertEqual([], [name for name in names
                              if name.endswith('_metadata')])
        self.delete(backup)
        self.assertEqual([], self.backups.listing())

    def assert_restore_fails(self, word, backup, volume):
        error = self.assertRaises(exception.BackupDriverException,
                                  self.bring_back, backup, volume)
        self.assertIn(word, str(error))
        self.assertEqual('error_restoring', self.load(volume).status)
        self.assertEqual(fields.BackupStatus.AVAILABLE,
                         self.load(backup).status)
        self.assert_released()

    def assert_restored(self, backup, volume):
        self.restore(backup, volume)
        self.assert_volume(self.content, volume)

    def kill_children(self):
        for each in lustre.LustreBackupDriver._workers.values():
            for child in list(each._children):
                os.kill(child.proc.pid, signal.SIGKILL)


class KilledTestCase(FaultsTestCase):

    def test_killed_backup(self):
        with self.meanwhile(self.kill_children):
            backup = self.assert_backup_fails('exit code -9')
        self.assertNotEqual([], self.backups.listing())
        self.assert_deleted(backup)

    def test_killed_restore(self):
        backup = self.back_up(self.volume)
        target, _dirt = self.create_dirty_volume(1, 'raw')
        with self.meanwhile(self.kill_children):
            self.assert_restore_fails('exit code -9', backup, target)
        self.assert_restored(backup, target)


class FullTestCase(FaultsTestCase):

    FAULTS = ('full',)

    def test_full_backup_share(self):
        self.backups.filesystem.fill(room=24 * units.Mi)
        backup = self.assert_backup_fails('No space left')
        self.assertNotEqual([], self.backups.listing())
        # Deleting it needs no room.
        self.assert_deleted(backup)
        self.backups.recover()
        self.assert_restored(self.back_up(self.volume), self.volume)

    def test_full_volume_share(self):
        backup = self.back_up(self.volume)
        target, _dirt = self.create_dirty_volume(1, 'raw')
        self.site.filesystem.fill(room=24 * units.Mi)
        self.assert_restore_fails('No space left', backup, target)
        self.site.recover()
        self.assert_restored(backup, target)


class HangTestCase(FaultsTestCase):

    FAULTS = ('dead-ost', 'frozen')

    def short_timeout(self):
        """Let operations give up soon, from now on."""
        self.flags(lustre_backup_operation_timeout=10)

    def come_back(self):
        self.backups.recover()
        self.wait_for_backup_workers()
        self.flags(lustre_backup_operation_timeout=60)

    def test_frozen_while_backing_up(self):
        self.short_timeout()
        with self.meanwhile(self.backups.filesystem.freeze):
            backup = self.assert_backup_fails('does not answer')
        # Nothing is said to be deleted meanwhile.
        other = self.assert_backup_fails('does not answer')
        self.assertRaises(exception.BackupDriverException, self.delete,
                          backup)
        self.assertEqual(fields.BackupStatus.ERROR,
                         self.load(backup).status)
        self.come_back()
        self.delete(other)
        self.assert_deleted(backup)
        self.assert_restored(self.back_up(self.volume), self.volume)

    def test_dead_while_restoring(self):
        backup = self.back_up(self.volume)
        target, _dirt = self.create_dirty_volume(1, 'raw')
        self.short_timeout()
        self.backups.kill_ost(*(name for name in self.backups.listing()
                                if name.endswith('-00007')))
        self.assert_restore_fails('does not answer', backup, target)
        self.come_back()
        self.assert_restored(backup, target)
