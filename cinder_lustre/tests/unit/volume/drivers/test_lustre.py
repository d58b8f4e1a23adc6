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

"""The driver, on real files of a directory that stands for a mounted share.

What is faked lies at the edges: mounting makes a plain directory, the image
service keeps its image in a file, and the coordinator's locks are those of
Cinder's own test base, which lock nothing, unless a test is about them.
"""

from concurrent import futures
import errno
import inspect
import json
import os
import subprocess
import sys
import threading
import time
import types
from unittest import mock
import uuid
import warnings

from cinder import context
from cinder import coordination
from cinder.db import api as db
from cinder import exception
from cinder.image import image_utils
from cinder import interface
from cinder.interface import volume_driver
from cinder import objects
from cinder.objects import fields
from cinder.tests.unit import fake_constants as fake
from cinder.tests.unit import test
from cinder.tests.unit import utils as test_utils
from cinder.volume import configuration
from cinder.volume import driver as base_driver
from cinder.volume.drivers import remotefs
from cinder.volume import volume_utils
import ddt
import fixtures
from oslo_config import cfg
from oslo_utils import units
import tooz.coordination
import tooz.locking

from cinder_lustre import brick
from cinder_lustre.brick import mount
from cinder_lustre import chain
from cinder_lustre import exception as lustre_exception
from cinder_lustre import record
from cinder_lustre import share
from cinder_lustre.volume.drivers import lustre
from cinder_lustre import worker

CONF = cfg.CONF

BACKEND = 'lustre-1'
HOST = 'host@' + BACKEND
POOL = HOST + '#Lustre'

SHARE = '10.0.2.15@tcp:/testfs'
IDENTITY = 'lustre:/testfs'
# Where volumes of that share are, for ever.
DIRECTORY = '89e7a3d468737f10432fb449dac014ac'

SECOND = '10.0.3.15@tcp:10.0.3.16@tcp:/scratch/cinder'
SECOND_IDENTITY = 'lustre:/scratch/cinder'

# How much of a volume the tests write to.
BLOCK = 64 * units.Ki

# Seconds that anything may take; nothing waits that long when all is well.
PATIENCE = 300


class FakeImageService:
    """Keeps one image, in a file."""

    temp_images = None

    def __init__(self, path, disk_format, container_format='bare'):
        self.path = path
        self.meta = {'id': fake.IMAGE_ID, 'disk_format': disk_format,
                     'container_format': container_format}

    def show(self, ctxt, image_id):
        return dict(self.meta, size=os.path.getsize(self.path))

    def download(self, ctxt, image_id, data):
        with open(self.path, 'rb') as stream:
            copy_data(stream, data)

    def update(self, ctxt, image_id, image_meta, data, store_id=None,
               base_image_ref=None):
        with open(self.path, 'wb') as stream:
            copy_data(data, stream)


def copy_data(source, target):
    """Copy all but the holes, which would take long."""
    size = os.fstat(source.fileno()).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source.fileno(), offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            break
        chunk = os.pread(source.fileno(), units.Mi, offset)
        os.pwrite(target.fileno(), chunk, offset)
        offset += len(chunk)
    os.truncate(target.fileno(), size)


class FakeLock(tooz.locking.Lock):
    """One of FakeLocks."""

    def __init__(self, locks, name):
        super().__init__(name)
        self.locks = locks

    def acquire(self, blocking=True, shared=False, timeout=None):
        return self.locks.acquire(self.name)

    def release(self):
        self.locks.release(self.name)


class FakeLocks:
    """The locks of a coordinator, not re-entrant, and what was locked.

    :ivar log: a list of (what happened, name of the lock)
    """

    def __init__(self):
        self.log = []
        self._locks = {}
        self._held = {}

    def get_lock(self, name):
        return FakeLock(self, name)

    def acquire(self, name):
        if self._held.get(name) == threading.get_ident():
            raise AssertionError('%s is locked twice' % name)
        self.log.append(('wanted', name))
        self._locks.setdefault(name, threading.Lock()).acquire()
        self._held[name] = threading.get_ident()
        self.log.append(('locked', name))
        return True

    def release(self, name):
        del self._held[name]
        self.log.append(('released', name))
        self._locks[name].release()

    @property
    def held(self):
        return list(self._held)


class FakeNova:
    """Does to the files what a guest does when Nova asks it to.

    :param refuses: answer with an error instead
    """

    class Refusal(Exception):
        pass

    def __init__(self, case, refuses=False):
        self.case = case
        self.refuses = refuses
        self.calls = []

    def _done(self, context, snapshot_id):
        db.snapshot_update(context, snapshot_id, {'progress': '90%'})

    def _check(self):
        if self.refuses:
            raise self.Refusal('no such server')

    def create_volume_snapshot(self, context, volume_id, create_info):
        self.calls.append(create_info)
        self._check()
        self.case.run_command(
            'qemu-io', '-f', 'qcow2', '-c',
            'write -P 7 %d %d' % (7 * BLOCK, BLOCK),
            os.path.join(self.case.root, create_info['new_file']))
        self._done(context, create_info['snapshot_id'])

    def delete_volume_snapshot(self, context, snapshot_id, delete_info):
        self.calls.append(delete_info)
        self._check()
        snapshot = objects.Snapshot.get_by_id(context, snapshot_id)
        with open(os.path.join(self.case.root, record.DIRECTORY,
                               snapshot.volume.name_id + '.json')) as stream:
            name = json.load(stream)['active']
        self.case.run_command(
            'qemu-img', 'commit', '-d', '-f', 'qcow2',
            delete_info['file_to_merge'], cwd=self.case.root)
        self.case.run_command(
            'qemu-img', 'rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b',
            delete_info['merge_target_file'], name, cwd=self.case.root)
        self._done(context, snapshot_id)


class DriverTestCase(test.TestCase):
    """A driver that is set up, with the shares of the class."""

    SHARES = (SHARE,)

    def setUp(self):
        super().setUp()
        # Cinder's test base shows what its own code does.
        warnings.simplefilter('ignore', DeprecationWarning)
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.base = os.path.join(self.directory, 'mnt')
        self.root = os.path.join(self.base, DIRECTORY)
        self.context = context.RequestContext(
            fake.USER_ID, fake.PROJECT_ID, is_admin=True)
        self.log = self.useFixture(fixtures.FakeLogger('cinder_lustre'))
        self.patch('cinder.privsep.sys_admin_pctxt.client_mode', False)
        self.override_config('image_conversion_dir', self.directory)

        # What was asked to be mounted, and what cannot be mounted.
        self.mounts = []
        self.down = set()
        self.patch('cinder_lustre.brick.client.LustreRemoteFsClient.mount',
                   lambda *args: self._mount(*args))
        self._refuse_probing()
        self.driver = self.new_driver(lustre_shares=list(self.SHARES))

    def _mount(self, client, source, flags=None):
        identity = share.Share.parse(source).identity
        if identity in self.down:
            raise lustre_exception.MountFailed(
                share=source, path=client.get_mount_point(source),
                reason='no MGS answers.', cure='Check that the MGS runs.')
        # Making it would call the host's lfs, if there is one.
        os.makedirs(os.path.join(client.get_mount_point(source),
                                 record.DIRECTORY), exist_ok=True)
        self.mounts.append((source, flags))

    def _refuse_probing(self):
        """Nothing may look into a volume's file to find its format."""
        original = image_utils.qemu_img_info
        probed = []

        def qemu_img_info(path, *args, **kwargs):
            if path.startswith(self.base):
                probed.append(path)
            return original(path, *args, **kwargs)

        self.patch('cinder.image.image_utils.qemu_img_info', qemu_img_info)
        self.addCleanup(lambda: self.assertEqual([], probed))

    def new_driver(self, set_up=True, **options):
        """A driver of a backend with these options."""
        conf = configuration.Configuration(base_driver.volume_opts,
                                           config_group=BACKEND)
        conf.append_config_values(remotefs.nas_opts)
        conf.append_config_values(lustre.LustreDriver.get_driver_options())
        self.set_options(lustre_mount_point_base=self.base,
                         lustre_operation_timeout=PATIENCE, **options)
        driver = lustre.LustreDriver(configuration=conf, host=HOST)
        if set_up:
            driver.do_setup(self.context)
            driver.check_for_setup_error()
        return driver

    def set_options(self, **options):
        for name, value in options.items():
            self.override_config(name, value, group=BACKEND)

    def patch_worker(self, run):
        """Run in this process what a worker's child would.

        :param run: called with the function and its arguments
        """
        # The functions set it as a child of a worker may.
        self.addCleanup(os.umask, os.umask(0o022))

        def in_process(worker, func, *args, timeout, kill=True, probe=False,
                       on_progress=None, **kwargs):
            return run(func, *args, **kwargs)

        self.patch('cinder_lustre.worker.Worker.run', in_process)

    def run_in_process(self):
        self.patch_worker(lambda func, *args, **kwargs: func(*args, **kwargs))

    def set_capacities(self, **capacities):
        """Give shares a size, by the name of their file system.

        :param capacities: available and total GiB, or an exception
        """
        run = worker.Worker.run

        def survey(this, func, *args, **kwargs):
            if func is not mount.survey:
                return run(this, func, *args, **kwargs)
            found = capacities[share.Share.parse(args[1]).fsname]
            if isinstance(found, Exception):
                raise found
            return {'available': found[0] * units.Gi,
                    'total': found[1] * units.Gi}

        self.patch('cinder_lustre.worker.Worker.run', survey)

    def shrink_gib(self):
        """Let a GiB be a MiB, where all of a volume is really written."""
        self.patch('cinder_lustre.volume.drivers.lustre.units',
                   types.SimpleNamespace(Gi=units.Mi))

    def new_volume(self, size=1, specs=None, **values):
        """A volume in the database alone."""
        volume_type = test_utils.create_volume_type(
            self.context, name=str(uuid.uuid4()), extra_specs=specs or {})
        values.setdefault('host', POOL)
        return test_utils.create_volume(
            self.context, size=size, volume_type_id=volume_type.id, **values)

    def create_volume(self, size=1, fmt='raw', **values):
        """A volume, made as Cinder's manager does."""
        volume = self.new_volume(size, {'lustre:format': fmt}, **values)
        volume.update(self.driver.create_volume(volume))
        volume.save()
        return volume

    def create_snapshot(self, volume):
        snapshot = test_utils.create_snapshot(self.context, volume.id)
        self.driver.create_snapshot(snapshot)
        volume.refresh()
        return snapshot

    def use_nova(self, **kwargs):
        self.driver._nova = FakeNova(self, **kwargs)
        self.patch('time.sleep')
        return self.driver._nova

    def set_attached(self, volume):
        volume.attach_status = fields.VolumeAttachStatus.ATTACHED
        volume.save()

    def connection(self, volume):
        return self.driver.initialize_connection(volume, {})['data']

    def open_as(self, volume):
        """The format and the path with which a guest opens a volume."""
        data = self.connection(volume)
        return data['format'], os.path.join(
            self.driver._get_mount_point_for_share(volume.provider_location),
            data['name'])

    def write(self, volume, pattern, offset=0):
        """Write a block of one byte, as a guest would."""
        fmt, path = self.open_as(volume)
        self.run_command('qemu-io', '-f', fmt, '-c', 'write -P %d %d %d' % (
            pattern, offset, BLOCK), path)

    def assert_content(self, size, blocks, fmt, path):
        """See what an image holds: its virtual size, and zeros but for blocks.

        :param blocks: byte value by offset, or bytes by offset
        """
        expected = os.path.join(self.directory, 'expected')
        with open(expected, 'wb') as stream:
            stream.truncate(size)
            for offset, block in blocks.items():
                if isinstance(block, int):
                    block = bytes([block]) * BLOCK
                os.pwrite(stream.fileno(), block, offset)
        self.assertEqual(size, self.info(fmt, path)['virtual-size'])
        self.run_command('qemu-img', 'compare', '-f', 'raw', '-F', fmt,
                         expected, path)

    def assert_volume(self, volume, blocks, size=None):
        self.assert_content((size or volume.size) * units.Gi, blocks,
                            *self.open_as(volume))

    def info(self, fmt, path):
        return json.loads(self.run_command(
            'qemu-img', 'info', '-U', '-f', fmt, '--output=json', path))

    def run_command(self, *command, cwd=None):
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        self.assertEqual(0, done.returncode, '%s: %s' % (command,
                                                         done.stdout))
        return done.stdout

    def files(self, root=None):
        """All files on a share but the records."""
        found = set(os.listdir(root or self.root))
        return found - {record.DIRECTORY}

    def format_in_database(self, volume):
        return type(volume).get_by_id(
            self.context, volume.id).admin_metadata.get('format')


@ddt.ddt
class LustreDriverTestCase(DriverTestCase):
    """The tests that the specification names."""

    def test_local_path(self):
        volume = self.new_volume(provider_location=IDENTITY)
        self.assertEqual(
            '%s/mnt/%s/volume-%s' % (self.directory, DIRECTORY, volume.id),
            self.driver.local_path(volume))

    def test_local_patch(self):
        """The path follows a volume's name_id, which a migration sets."""
        volume = self.new_volume(provider_location=IDENTITY,
                                 _name_id=fake.VOLUME2_ID)
        self.assertEqual(
            os.path.join(self.root, 'volume-' + fake.VOLUME2_ID),
            self.driver.local_path(volume))

    def test_mount_lustre(self):
        driver = self.new_driver(
            lustre_shares=[SHARE + ' -o flock,user_xattr'])
        self.mounts.clear()
        driver._ensure_share_mounted(IDENTITY)
        self.assertEqual([(SHARE, ['-o', 'flock,user_xattr'])], self.mounts)

    def test_mount_lustre_should_reraise_exception_on_failure(self):
        self.down.add(IDENTITY)
        error = self.assertRaises(
            exception.VolumeBackendAPIException,
            self.driver._ensure_share_mounted, IDENTITY)
        self.assertIn('no MGS answers. Check that the MGS runs.', str(error))

    def test_get_mount_point_for_share(self):
        for name in (IDENTITY, SHARE, '10.9.9.9@o2ib,10.9.9.8@tcp:/testfs/'):
            self.assertEqual(
                self.root, self.driver._get_mount_point_for_share(name))

    def test_get_available_capacity_with_df(self):
        figures = mock.Mock(f_frsize=4096, f_blocks=1000, f_bfree=900,
                            f_bavail=800)
        self.run_in_process()
        with mock.patch('os.statvfs', return_value=figures) as statvfs:
            self.assertEqual((800 * 4096, 1000 * 4096),
                             self.driver._get_available_capacity(IDENTITY))
        statvfs.assert_called_with(self.root)

    def test_get_provisioned_capacity(self):
        self.assertEqual(0, self.driver._get_provisioned_capacity())
        for size, host in ((3, POOL), (4, HOST), (8, 'host@other#Lustre'),
                           (16, POOL + '-2'), (32, HOST + '-2')):
            self.new_volume(size, host=host)
        self.new_volume(64).destroy()
        # A pool of this backend is one of it, whatever its name.
        self.assertEqual(3 + 4 + 16, self.driver._get_provisioned_capacity())

    def _get_stats(self, **options):
        self.driver = self.new_driver(
            volume_backend_name='fast', reserved_percentage=10,
            max_over_subscription_ratio='3.5', **options)
        self.new_volume(30)
        self.set_capacities(testfs=(60, 100))
        return self.driver.get_volume_stats(refresh=True)

    def _expected_stats(self):
        return {
            'volume_backend_name': 'fast',
            'vendor_name': 'Open Source',
            'driver_version': lustre.LustreDriver.VERSION,
            'storage_protocol': 'lustre',
            'backend_state': 'up',
            'total_capacity_gb': 100,
            'free_capacity_gb': 60,
            'provisioned_capacity_gb': 30,
            'reserved_percentage': 10,
            'max_over_subscription_ratio': 3.5,
            'thin_provisioning_support': True,
            'thick_provisioning_support': True,
            'sparse_copy_volume': True,
            'online_extend_support': True,
            'multiattach': True,
            'QoS_support': False,
            'location_info': 'LustreDriver:' + SHARE,
        }

    def test_update_volume_stats_thin(self):
        self.assertEqual(self._expected_stats(),
                         self._get_stats(lustre_qcow2_volumes=True))

    def test_update_volume_stats_thick(self):
        """The scheduler takes a type that says nothing for a thin one."""
        expected = dict(self._expected_stats(),
                        thin_provisioning_support=False)
        self.assertEqual(expected,
                         self._get_stats(lustre_sparsed_volumes=False))

    def test_ensure_share_mounted(self):
        self.mounts.clear()
        for name in (IDENTITY, SHARE, '10.9.9.9@o2ib:/testfs'):
            self.driver._ensure_share_mounted(name)
        # The configuration says where a share is, not a volume's record.
        self.assertEqual([(SHARE, [])] * 3, self.mounts)

    def test_ensure_share_mounted_on_a_host_without_room(self):
        with mock.patch.object(self.driver._remotefsclient, 'mount',
                               side_effect=OSError(errno.ENOSPC, 'full')):
            self.assertRaises(exception.VolumeBackendAPIException,
                              self.driver._ensure_share_mounted, IDENTITY)

    def test_ensure_shares_mounted_should_save_mounting_successfully(self):
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND])
        self.driver._mounted_shares = []
        self.driver._ensure_shares_mounted()
        self.assertEqual([IDENTITY, SECOND_IDENTITY],
                         self.driver._mounted_shares)

    def test_ensure_shares_mounted_should_not_save_mounting_with_error(self):
        self.down.add(IDENTITY)
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND])
        self.driver._ensure_shares_mounted()
        self.assertEqual([SECOND_IDENTITY], self.driver._mounted_shares)
        self.assertIn('Share lustre:/testfs is down: ', self.log.output)
        self.assertIn('no MGS answers.', self.log.output)

    def test_find_share(self):
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND])
        self.set_capacities(testfs=(60, 100), scratch=(70, 100))
        self.assertEqual(SECOND_IDENTITY,
                         self.driver._find_share(self.new_volume()))

    def test_find_share_should_throw_error_if_there_is_no_enough_place(self):
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND],
                                      reserved_percentage=50)
        self.set_capacities(testfs=(60, 100), scratch=(70, 100))
        thick = {'provisioning:type': 'thick'}
        self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                          self.driver._find_share, self.new_volume(20, thick))
        self.assertEqual(SECOND_IDENTITY,
                         self.driver._find_share(self.new_volume(19, thick)))

    def test_create_thin_volume(self):
        for options in ({}, {'lustre_qcow2_volumes': True}):
            self.driver = self.new_driver(**options)
            volume = self.new_volume(5)
            self.assertEqual({'provider_location': IDENTITY},
                             self.driver.create_volume(volume))
            fmt, path = self.open_as(volume)
            self.assertEqual('qcow2' if options else 'raw', fmt)
            self.assertEqual(self.driver.local_path(volume), path)
            self.assertEqual(fmt, self.format_in_database(volume))
            self.assertEqual(5 * units.Gi,
                             self.info(fmt, path)['virtual-size'])
            self.assertLess(os.stat(path).st_blocks * 512, units.Mi)
            self.assertEqual(0o660, os.stat(path).st_mode & 0o777)

    def test_create_thick_fallocate_volume(self):
        self.shrink_gib()
        self.driver = self.new_driver(lustre_sparsed_volumes=False)
        for options in ({}, {'lustre_qcow2_volumes': True}):
            self.set_options(**options)
            volume = self.new_volume(5)
            self.driver.create_volume(volume)
            fmt, path = self.open_as(volume)
            self.assertEqual(5 * units.Mi,
                             self.info(fmt, path)['virtual-size'])
            self.assertGreaterEqual(os.stat(path).st_blocks * 512,
                                    5 * units.Mi)

    def _fail_fallocate(self, code):
        libc = self.patch('cinder_lustre.space.ctypes')
        libc.CDLL.return_value.fallocate64.return_value = -1
        libc.get_errno.return_value = code
        self.run_in_process()

    def test_create_thick_dd_volume(self):
        """A file system that cannot allocate has zeros written to it."""
        self.shrink_gib()
        self._fail_fallocate(errno.EOPNOTSUPP)
        volume = self.new_volume(9, {'provisioning:type': 'thick'})
        self.driver.create_volume(volume)
        fmt, path = self.open_as(volume)
        self.assert_content(9 * units.Mi, {}, fmt, path)
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, 9 * units.Mi)

    def test_create_volume_should_ensure_lustre_mounted(self):
        volume = self.new_volume()
        self.down.add(IDENTITY)
        # One that has been down, and one that goes down just now.
        self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                          self.driver.create_volume, volume)
        self.driver = self.new_driver()
        self.assertRaises(exception.RemoteFSNoSharesMounted,
                          self.driver.create_volume, volume)
        self.assertEqual(set(), self.files())
        self.down.clear()
        self.mounts.clear()
        self.driver.create_volume(volume)
        self.assertIn((SHARE, []), self.mounts)

    @mock.patch('cinder_lustre.record.remove_file', wraps=record.remove_file)
    def test_delete_volume(self, mock_delete_if_exists):
        volume = self.create_volume()
        self.create_snapshot(volume)
        self.run_in_process()
        self.driver.delete_volume(volume)
        deleted = {call.args[0]
                   for call in mock_delete_if_exists.call_args_list}
        self.assertIn(self.driver.local_path(volume), deleted)
        self.assertEqual(set(), self.files())
        self.assertEqual(
            [], os.listdir(os.path.join(self.root, record.DIRECTORY)))
        # What is gone is deleted as well.
        self.driver.delete_volume(volume)

    def _attach(self, volume):
        """Attach a volume to a server, and give what Nova keeps of it."""
        test_utils.attach_volume(
            self.context, volume.id, str(uuid.uuid4()), 'host', '/dev/vdb')
        attachment, = objects.VolumeAttachmentList.get_all_by_volume_id(
            self.context, volume.id)
        attachment.connection_info = dict(
            self.driver.initialize_connection(volume, {})['data'])
        attachment.save()
        volume.refresh()
        return attachment

    def _check_attachment(self, volume, attachment):
        attachment.refresh()
        data = self.connection(volume)
        self.assertEqual((data['name'], data['format']),
                         (attachment.connection_info['name'],
                          attachment.connection_info['format']))

    def test_create_snapshot_online(self):
        """Nova moves the guest; the database follows it."""
        volume = self.create_volume()
        self.write(volume, 1)
        attachment = self._attach(volume)
        nova = self.use_nova()
        snapshot = test_utils.create_snapshot(
            self.context, volume.id, status='creating')
        self.driver.create_snapshot(snapshot)
        name = '%s.%s' % (volume.name, snapshot.id)
        self.assertEqual([{'type': 'qcow2', 'new_file': name,
                           'snapshot_id': snapshot.id}], nova.calls)
        volume.refresh()
        self._check_attachment(volume, attachment)
        self.assertEqual(('qcow2', os.path.join(self.root, name)),
                         self.open_as(volume))
        self.assert_content(units.Gi, {0: 1, 7 * BLOCK: 7},
                            *self.open_as(volume))
        self.assert_content(units.Gi, {0: 1}, 'raw',
                            self.driver.local_path(volume))

    def test_create_snapshot_online_refused(self):
        """An overlay that no guest has moved to goes away again."""
        volume = self.create_volume()
        attachment = self._attach(volume)
        before = self.files()
        self.use_nova(refuses=True)
        snapshot = test_utils.create_snapshot(
            self.context, volume.id, status='creating')
        self.assertRaises(FakeNova.Refusal, self.driver.create_snapshot,
                          snapshot)
        self.assertEqual(before, self.files())
        self._check_attachment(volume, attachment)
        # A snapshot in error state can be deleted.
        self.driver.delete_snapshot(snapshot)

    @ddt.data((0, 1), (1, 0))
    def test_delete_snapshot_online(self, order):
        """Layers are merged downwards, up to the file that a guest has."""
        volume = self.create_volume()
        self.write(volume, 1)
        snapshots = [self.create_snapshot(volume) for _ in range(2)]
        self.write(volume, 2, BLOCK)
        attachment = self._attach(volume)
        self.use_nova()
        for number in order:
            snapshot = objects.Snapshot.get_by_id(self.context,
                                                  snapshots[number].id)
            snapshot.status = 'deleting'
            snapshot.save()
            self.driver.delete_snapshot(snapshot)
            volume.refresh()
            self._check_attachment(volume, attachment)
            self.assert_content(units.Gi, {0: 1, BLOCK: 2},
                                *self.open_as(volume))
        self.assertEqual({os.path.basename(self.open_as(volume)[1]),
                          'volume-' + volume.id},
                         {name for name in self.files()
                          if not name.endswith('.info')})

    def _destination(self, *sources):
        return {'host': 'elsewhere@lustre#lustre', 'capabilities': {
            'location_info': 'LustreDriver:' + '|'.join(sources)}}

    def test_migrate_volume_is_there(self):
        """What lies on a share of the other backend needs no copy."""
        volume = self.create_volume()
        before = self.files()
        self.assertEqual((True, {}), self.driver.migrate_volume(
            self.context, volume, self._destination(SECOND, SHARE)))
        self.assertEqual(before, self.files())

    def test_migrate_volume(self):
        """A volume moves from share to share, under its name."""
        volume = self.create_volume()
        self.write(volume, 3)
        self.assertEqual(
            (True, {'provider_location': SECOND_IDENTITY}),
            self.driver.migrate_volume(self.context, volume,
                                       self._destination(SECOND)))
        self.assertEqual(set(), self.files())
        volume = type(volume).get_by_id(self.context, volume.id)
        self.assertEqual((SECOND_IDENTITY, 'elsewhere@lustre#lustre'),
                         (volume.provider_location, volume.host))
        self.assert_content(units.Gi, {0: 3}, *self.open_as(volume))

    def test_migrate_volume_cut_short(self):
        """Until the database knows the copy, the source is the volume."""
        volume = self.create_volume()
        self.write(volume, 3)
        with mock.patch.object(objects.Volume, 'save', side_effect=OSError):
            self.assertRaises(OSError, self.driver.migrate_volume,
                              self.context, volume, self._destination(SECOND))
        volume = type(volume).get_by_id(self.context, volume.id)
        self.write(volume, 4)
        self.driver.migrate_volume(self.context, volume,
                                   self._destination(SECOND))
        self.assert_content(units.Gi, {0: 4}, *self.open_as(volume))

    @ddt.data(None, 'LVMVolumeDriver:host:vg:thin:0')
    def test_migrate_volume_to_another_driver(self, location):
        volume = self.create_volume()
        self.assertEqual((False, None), self.driver.migrate_volume(
            self.context, volume, {
                'host': 'x@y', 'capabilities': {'location_info': location}}))

    def test_update_migrated_volume(self):
        volume, other = self.create_volume(), self.create_volume()
        self.assertEqual(
            {'_name_id': other.id, 'provider_location': IDENTITY},
            self.driver.update_migrated_volume(self.context, volume, other,
                                               'available'))

    def test_refresh_mounts(self):
        """Every look at the shares mounts what is new."""
        self.set_options(lustre_shares=[SHARE, SECOND])
        self.mounts.clear()
        self.driver.get_volume_stats(refresh=True)
        self.assertIn((SECOND, []), self.mounts)
        self.assertEqual([IDENTITY, SECOND_IDENTITY],
                         self.driver._mounted_shares)

    def test_refresh_mounts_with_excp(self):
        """A share that cannot be mounted is tried again."""
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND])
        self.down.add(IDENTITY)
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual([SECOND_IDENTITY], self.driver._mounted_shares)
        self.down.clear()
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual([IDENTITY, SECOND_IDENTITY],
                         self.driver._mounted_shares)

    def test_do_mount(self):
        """Mounting goes through the client, with what names the share."""
        self.mounts.clear()
        self.driver = self.new_driver(
            lustre_shares=[SHARE, SECOND + ' -o flock'])
        self.assertEqual({(SHARE, ()), (SECOND, ('-o', 'flock'))},
                         {(source, tuple(flags))
                          for source, flags in self.mounts})

    def test_do_umount(self):
        """Nothing of ours ever unmounts a share."""
        marker = os.path.join(self.directory, 'unmounted')
        umount = os.path.join(self.directory, 'umount')
        with open(umount, 'w') as stream:
            stream.write('#!/bin/sh\ntouch %s\n' % marker)
        os.chmod(umount, 0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (self.directory, os.environ['PATH'])))
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        self.driver.initialize_connection(volume, {})
        self.driver.terminate_connection(volume, {})
        self.driver.delete_snapshot(snapshot)
        self.driver.delete_volume(volume)
        # The share is taken away, then the service starts anew.
        self.set_options(lustre_shares=[SECOND])
        self.driver.get_volume_stats(refresh=True)
        self.new_driver(lustre_shares=[SHARE])
        self.assertFalse(os.path.exists(marker))
        # So it would have looked.
        subprocess.run(['umount', self.root], check=True)
        self.assertTrue(os.path.exists(marker))

    def test_read_info_file(self):
        volume = self.create_volume()
        path = self.driver._local_path_volume_info(volume)
        self.assertEqual({}, self.driver._read_info_file(
            path, empty_if_missing=True))
        snapshots = [self.create_snapshot(volume) for _ in range(2)]
        names = ['%s.%s' % (volume.name, snapshot.id)
                 for snapshot in snapshots]
        self.assertEqual({'active': names[1], snapshots[0].id: names[0],
                          snapshots[1].id: names[1]},
                         self.driver._read_info_file(path))
        self.assertEqual(names[1],
                         self.driver.get_active_image_from_info(volume))

    def test_extend_volume(self):
        for fmt in ('raw', 'qcow2'):
            volume = self.create_volume(fmt=fmt)
            self.write(volume, 1)
            self.driver.extend_volume(volume, 3)
            volume.size = 3
            self.assert_volume(volume, {0: 1})

    def test_extend_volume_with_snapshot(self):
        volume = self.create_volume()
        self.write(volume, 1)
        snapshot = self.create_snapshot(volume)
        self.write(volume, 2, BLOCK)
        self.driver.extend_volume(volume, 3)
        volume.size = 3
        self.assert_volume(volume, {0: 1, BLOCK: 2})
        # What the snapshot holds stays as large as it was.
        self.assert_content(units.Gi, {0: 1}, 'raw',
                            self.driver.local_path(volume))
        self.driver.delete_snapshot(snapshot)
        self.assert_volume(volume, {0: 1, BLOCK: 2})
        self.assertEqual({volume.name}, self.files())

    def test_copy_volume_from_snapshot(self):
        for fmt in ('raw', 'qcow2'):
            source = self.create_volume(fmt=fmt)
            self.write(source, 1)
            self.write(source, 2, BLOCK)
            snapshot = self.create_snapshot(source)
            self.write(source, 3, BLOCK)
            self.create_snapshot(source)
            self.write(source, 4, 2 * BLOCK)
            for target_fmt in ('raw', 'qcow2'):
                volume = self.new_volume(2, {'lustre:format': target_fmt})
                self.driver.create_volume_from_snapshot(volume, snapshot)
                self.assertEqual(target_fmt, self.open_as(volume)[0])
                self.assert_volume(volume, {0: 1, BLOCK: 2})

    def test_create_volume_from_snapshot(self):
        source = self.create_volume()
        snapshot = self.create_snapshot(source)
        volume = self.new_volume(specs={'lustre:format': 'qcow2'})
        self.assertEqual(
            {'provider_location': IDENTITY},
            self.driver.create_volume_from_snapshot(volume, snapshot))
        self.assertEqual('qcow2', self.format_in_database(volume))
        # It stands for itself.
        self.assertNotIn('backing-filename',
                         self.info(*self.open_as(volume)))
        self.driver.delete_snapshot(snapshot)
        self.driver.delete_volume(source)
        self.assert_volume(volume, {})

    def test_initialize_connection(self):
        self.driver = self.new_driver(
            lustre_shares=[SHARE + ' -o flock,user_xattr'])
        volume = self.create_volume()
        expected = {
            'driver_volume_type': 'lustre',
            'data': {'export': SHARE, 'name': volume.name, 'format': 'raw',
                     'options': '-o flock,user_xattr', 'discard': True},
            'mount_point_base': self.base,
        }
        self.assertEqual(expected,
                         self.driver.initialize_connection(volume, {}))
        snapshot = self.create_snapshot(volume)
        expected['data'].update(
            name='%s.%s' % (volume.name, snapshot.id), format='qcow2')
        self.assertEqual(expected,
                         self.driver.initialize_connection(volume, {}))

    def test_backup_volume(self):
        """The backup service reads the raw disk of the volume itself."""
        brick.register(operation_timeout=PATIENCE)
        self.addCleanup(brick.register)
        for fmt in ('raw', 'qcow2'):
            volume = self.create_volume(fmt=fmt)
            self.write(volume, 1, BLOCK)
            backup = test_utils.create_backup(self.context, volume.id)
            device, is_snapshot = self.driver.get_backup_device(self.context,
                                                                backup)
            self.assertEqual((volume.id, False), (device.id, is_snapshot))
            self.assertIsNone(backup.temp_volume_id)
            connection = self.driver.initialize_connection(device, {})
            connector = volume_utils.brick_get_connector(
                connection['driver_volume_type'], conn=connection,
                expect_raw_disk=True)
            handle = connector.connect_volume(connection['data'])
            disk = handle['path']
            self.assertEqual(units.Gi, disk.seek(0, os.SEEK_END))
            disk.seek(0)
            self.assertEqual(bytes(BLOCK) + bytes([1]) * BLOCK,
                             disk.read(2 * BLOCK))
            connector.disconnect_volume(connection['data'], handle)
            self.assertEqual({volume.name}, self.files())
            self.driver.delete_volume(volume)

    def _image_path(self):
        return os.path.join(self.directory, 'image')

    def _upload(self, volume, disk_format, container_format='bare'):
        images = FakeImageService(self._image_path(), disk_format,
                                  container_format)
        self.driver.copy_volume_to_image(self.context, volume, images,
                                         images.meta)

    def test_copy_volume_to_image_raw_image(self):
        for fmt in ('raw', 'qcow2'):
            volume = self.create_volume(fmt=fmt)
            self.write(volume, 1, BLOCK)
            self._upload(volume, 'raw')
            self.assert_content(units.Gi, {BLOCK: 1}, 'raw',
                                self._image_path())
            self.create_snapshot(volume)
            self.write(volume, 2)
            self._upload(volume, 'raw')
            self.assert_content(units.Gi, {0: 2, BLOCK: 1}, 'raw',
                                self._image_path())

    def test_copy_volume_to_image_qcow2_image(self):
        for fmt in ('raw', 'qcow2'):
            volume = self.create_volume(fmt=fmt)
            self.write(volume, 1, BLOCK)
            self.create_snapshot(volume)
            self.write(volume, 2)
            self._upload(volume, 'qcow2')
            self.assert_content(units.Gi, {0: 2, BLOCK: 1}, 'qcow2',
                                self._image_path())
            # Nothing of the chain is left in it.
            self.assertNotIn('backing-filename',
                             self.info('qcow2', self._image_path()))


class InterfaceTestCase(test.TestCase):
    """What Cinder asks of every driver; its own test for it sees nothing."""

    def test_core_methods(self):
        names = []
        for name, method in inspect.getmembers(
                volume_driver.VolumeDriverCore, inspect.isfunction):
            names.append(name)
            required = [parameter for parameter in
                        inspect.signature(method).parameters.values()
                        if parameter.default is parameter.empty]
            ours = getattr(lustre.LustreDriver, name)
            if not isinstance(ours, property):
                # Raises TypeError where Cinder's call would.
                inspect.signature(ours).bind(*required)
        self.assertIn('initialize_connection', names)

    def test_attributes(self):
        self.assertIn(lustre.LustreDriver, interface._volume_register)
        self.assertRegex(lustre.LustreDriver.VERSION, r'^\d+\.\d+\.\d+$')
        self.assertIn('%s - ' % lustre.LustreDriver.VERSION,
                      lustre.LustreDriver.__doc__)
        self.assertNotIn(lustre.LustreDriver.CI_WIKI_NAME, (None, ''))
        self.assertTrue(lustre.LustreDriver.SUPPORTED)


@ddt.ddt
class SharesTestCase(DriverTestCase):
    """Which shares there are, and set-up."""

    def setUp(self):
        super().setUp()
        self.shares_file = os.path.join(self.directory, 'shares')

    def write_shares(self, text):
        with open(self.shares_file, 'w') as stream:
            stream.write(text)

    def new_file_driver(self, text, **kwargs):
        self.write_shares(text)
        return self.new_driver(lustre_shares=[],
                               lustre_shares_config=self.shares_file,
                               **kwargs)

    def test_shares_file(self):
        driver = self.new_file_driver(
            '# Volumes\n%s\n\n%s -o flock\n' % (SHARE, SECOND))
        self.assertEqual({IDENTITY: None, SECOND_IDENTITY: '-o flock'},
                         driver.shares)
        self.assertEqual([IDENTITY, SECOND_IDENTITY], driver._mounted_shares)

    def test_bad_lines_are_named_and_left_out(self):
        driver = self.new_file_driver(
            '/dev/sdb\n%s\n%s -o noflock\nlustre:/other\n' % (SHARE, SECOND))
        self.assertEqual({IDENTITY: None}, driver.shares)
        for text in ('Line 1 of %s is left out: there is no ":/"',
                     'Line 3 of %s is left out: mount option "noflock"',
                     'Line 4 of %s is left out: it names no server'):
            self.assertIn(text % self.shares_file, self.log.output)

    def test_bytes_that_are_no_text(self):
        with open(self.shares_file, 'wb') as stream:
            stream.write(b'10.0.2.15@tcp:/\xff\xfe\n' + SHARE.encode())
        driver = self.new_driver(lustre_shares=[],
                                 lustre_shares_config=self.shares_file)
        self.assertEqual({IDENTITY: None}, driver.shares)
        self.assertIn('Line 1 of %s is left out: ' % self.shares_file,
                      self.log.output)

    @ddt.data('', '# nothing\n\n', '/dev/sdb\n', 'lustre:/testfs\n')
    def test_no_valid_share(self, text):
        driver = self.new_file_driver(text, set_up=False)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  driver.do_setup, self.context)
        self.assertIn('There is no valid share in %s.' % self.shares_file,
                      str(error))

    def test_missing_shares_file(self):
        driver = self.new_driver(set_up=False, lustre_shares=[],
                                 lustre_shares_config=self.shares_file)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  driver.do_setup, self.context)
        self.assertIn('The shares file %s cannot be read (No such file or '
                      'directory).' % self.shares_file, str(error))

    def test_no_valid_inline_share(self):
        driver = self.new_driver(set_up=False, lustre_shares=['/dev/sdb'])
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  driver.do_setup, self.context)
        self.assertIn('There is no valid share in lustre_shares.', str(error))

    def test_edited_shares_file_is_read_again(self):
        self.driver = self.new_file_driver(SHARE + '\n')
        volume = self.create_volume()
        moved = '10.0.2.99@tcp:/testfs'
        self.write_shares('%s -o user_xattr\n%s\n' % (moved, SECOND))
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual({IDENTITY: '-o user_xattr', SECOND_IDENTITY: None},
                         self.driver.shares)
        # The MGS has moved, and the volumes have not.
        self.assertEqual(moved, self.connection(volume)['export'])

    @ddt.data('', '/dev/sdb\n', None)
    def test_damaged_shares_file_changes_nothing(self, text):
        self.driver = self.new_file_driver(SHARE + '\n')
        volume = self.create_volume()
        if text is None:
            os.unlink(self.shares_file)
        else:
            self.write_shares(text)
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual({IDENTITY: None}, self.driver.shares)
        self.assertIn('Going on with the shares known so far.',
                      self.log.output)
        self.assertEqual(SHARE, self.connection(volume)['export'])
        self.create_volume()
        self.write_shares(SECOND + '\n')
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual({SECOND_IDENTITY: None}, self.driver.shares)

    def test_volumes_of_a_share_that_is_configured_no_more(self):
        volume = self.create_volume()
        self.set_options(lustre_shares=[SECOND])
        self.driver.get_volume_stats(refresh=True)
        self.assertEqual(IDENTITY, self.connection(volume)['export'])
        self.driver.delete_volume(volume)
        self.assertEqual(set(), self.files())

    def test_location_is_known_before_there_are_files(self):
        volume = self.new_volume()

        class Killed(BaseException):
            pass

        with mock.patch.object(self.driver, '_run_on', side_effect=Killed):
            self.assertRaises(Killed, self.driver.create_volume, volume)
        volume.refresh()
        self.assertEqual(IDENTITY, volume.provider_location)

    def test_location_that_another_backend_has_left(self):
        volume = self.new_volume(provider_location=SECOND_IDENTITY)
        self.down.add(IDENTITY)
        self.driver._mounted_shares = []
        self.assertRaises(exception.RemoteFSNoSharesMounted,
                          self.driver.create_volume, volume)
        self.assertIsNone(volume.provider_location)

    def test_start_while_a_share_is_down(self):
        self.down.add(IDENTITY)
        self.driver = self.new_driver(lustre_shares=[SHARE, SECOND])
        volume = self.create_volume()
        self.assertEqual(SECOND_IDENTITY, volume.provider_location)

    def test_start_while_all_shares_are_down(self):
        self.down.add(IDENTITY)
        self.driver = self.new_driver()
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('down', stats['backend_state'])
        self.down.clear()
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('up', stats['backend_state'])
        self.create_volume()

    def test_own_defects_are_not_mistaken_for_a_share_that_is_down(self):
        self._mount = mock.Mock(side_effect=TypeError('defect'))
        self.assertRaises(TypeError, self.driver._ensure_shares_mounted)

    def test_ensure_export_of_a_share_that_is_down(self):
        volume = self.create_volume()
        self.down.add(IDENTITY)
        self.driver.ensure_export(self.context, volume)
        self.assertIn('Volume %s cannot be used now: ' % volume.id,
                      self.log.output)

    @ddt.data('file://$state_path', 'file:///tmp/locks')
    def test_cluster_without_cluster_wide_locks(self, url):
        self.driver.cluster_name = 'cluster@' + BACKEND
        self.override_config('backend_url', url, 'coordination')
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.check_for_setup_error)
        self.assertIn('[coordination] backend_url', str(error))

    def test_cluster_with_cluster_wide_locks(self):
        self.driver.cluster_name = 'cluster@' + BACKEND
        self.override_config('backend_url', 'etcd3+http://etcd:2379',
                             'coordination')
        self.driver.check_for_setup_error()

    def test_set_up_without_qemu_img(self):
        self.useFixture(fixtures.EnvironmentVariable('PATH', self.directory))
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.check_for_setup_error)
        self.assertIn('qemu-img', str(error))

    def test_development_fstypes_are_logged(self):
        self.assertNotIn('lustre_development_fstypes', self.log.output)
        self.new_driver(lustre_development_fstypes=['ext4'])
        self.assertIn("lustre_development_fstypes is set to ['ext4']",
                      self.log.output)

    @ddt.data(('auto', 'auto', []), ('true', 'true', []),
              ('False', 'auto', ['nas_secure_file_operations']),
              ('false', 'false', ['nas_secure_file_operations',
                                  'nas_secure_file_permissions']))
    @ddt.unpack
    def test_nas_options(self, operations, permissions, ignored):
        self.driver = self.new_driver(
            nas_secure_file_operations=operations,
            nas_secure_file_permissions=permissions,
            nas_host='10.1.1.1', nas_share_path='/export')
        for option in ('nas_secure_file_operations',
                       'nas_secure_file_permissions'):
            self.assertEqual(option in ignored,
                             '%s = false is ignored' % option
                             in self.log.output)
        for option in ('nas_host', 'nas_share_path'):
            self.assertIn('%s is ignored' % option, self.log.output)
        self.assertNotIn('nas_mount_options is ignored', self.log.output)
        self.assertTrue(self.driver.secure_file_operations_enabled())
        self.assertFalse(self.driver._execute_as_root)
        self.assertEqual({IDENTITY: None}, self.driver.shares)
        volume = self.create_volume()
        self.assertEqual(0, os.stat(self.driver.local_path(volume)).st_mode
                         & 0o007)


@ddt.ddt
class CapacityTestCase(DriverTestCase):
    """What the scheduler is told, and where volumes go."""

    SHARES = (SHARE, SECOND)

    def figures(self):
        stats = self.driver.get_volume_stats(refresh=True)
        return (stats['backend_state'], stats['free_capacity_gb'],
                stats['total_capacity_gb'])

    @ddt.data(
        ({'testfs': (60, 100), 'scratch': (30, 50)}, ('up', 90, 150)),
        ({'testfs': exception.VolumeBackendAPIException(data='gone'),
          'scratch': (30, 50)}, ('up', 30, 50)),
        ({'testfs': exception.VolumeBackendAPIException(data='gone'),
          'scratch': exception.VolumeBackendAPIException(data='gone')},
         ('down', 0, 0)),
    )
    @ddt.unpack
    def test_shares_are_added_up(self, capacities, expected):
        self.set_capacities(**capacities)
        self.assertEqual(expected, self.figures())

    def test_share_that_goes_down_keeps_its_last_size(self):
        self.set_capacities(testfs=(60, 100), scratch=(30, 50))
        self.figures()
        gone = lustre_exception.ShareUnavailable(share=IDENTITY,
                                                 reason='it hangs.')
        self.set_capacities(testfs=gone, scratch=(29, 50))
        self.assertEqual(('up', 29, 150), self.figures())
        self.assertIn('Share lustre:/testfs is down: ', self.log.output)
        self.assertIn('Share lustre:/testfs does not answer: it hangs.',
                      self.log.output)
        self.down.add(SECOND_IDENTITY)
        self.assertEqual(('down', 0, 150), self.figures())
        self.down.clear()
        self.set_capacities(testfs=(58, 100), scratch=(28, 50))
        self.assertEqual(('up', 86, 150), self.figures())

    @ddt.data(None, lustre_exception.ShareUnavailable(share=IDENTITY,
                                                      reason='it hangs.'))
    def test_those_who_ask_at_once_share_the_answer(self, error):
        waiting, answers = [], []

        class Future(futures.Future):

            def result(self):
                waiting.append(self)
                return super().result(PATIENCE)

        def survey(func, *args, **kwargs):
            if run.call_count == 1:
                for thread in threads:
                    thread.start()
                while len(waiting) < len(threads) and any(
                        thread.is_alive() for thread in threads):
                    time.sleep(0.01)
            if error:
                raise error
            return {'available': 1, 'total': 2}

        def ask():
            try:
                answers.append(self.driver._get_available_capacity(IDENTITY))
            except exception.VolumeBackendAPIException as exc:
                answers.append(str(exc))

        self.patch('cinder_lustre.volume.drivers.lustre.futures.Future',
                   Future)
        run = self.patch('cinder_lustre.worker.Worker.run',
                         side_effect=survey)
        threads = [threading.Thread(target=ask) for _ in range(3)]
        ask()
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual(1, run.call_count)
        self.assertEqual(answers[:1] * 4, answers)
        self.assertIn('it hangs' if error else '(1, 2)', str(answers))
        # Who asks later gets what is true then.
        ask()
        self.assertEqual(2, run.call_count)

    def test_share_without_an_answer_is_not_chosen(self):
        self.set_capacities(
            testfs=lustre_exception.ShareUnavailable(share=IDENTITY,
                                                     reason='it hangs.'),
            scratch=(1, 50))
        self.assertEqual(SECOND_IDENTITY,
                         self.driver._find_share(self.new_volume()))

    @ddt.data(('raw', 'thin', True), ('qcow2', 'thin', True),
              ('raw', 'thick', False), ('qcow2', 'thick', False))
    @ddt.unpack
    def test_full_shares(self, fmt, provisioning, fits):
        """A thin volume may be larger than what is free now."""
        self.set_capacities(testfs=(4, 100), scratch=(5, 50))
        volume = self.new_volume(7, {'lustre:format': fmt,
                                     'provisioning:type': provisioning})
        if fits:
            self.assertEqual(SECOND_IDENTITY, self.driver._find_share(volume))
        else:
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.driver._find_share, volume)
        self.assertNotIn('is full', self.log.output)
        self.set_capacities(testfs=(0, 100), scratch=(0, 50))
        self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                          self.driver._find_share, volume)
        for identity in (IDENTITY, SECOND_IDENTITY):
            self.assertIn('Share %s is full.' % identity, self.log.output)

    def test_provisioned_capacity_of_a_cluster(self):
        """Each host of a cluster speaks for all of them."""
        self.driver.cluster_name = 'cluster@' + BACKEND
        for size, host, cluster in (
                (3, POOL, self.driver.cluster_name + '#Lustre'),
                (4, 'host-2@lustre-1#Lustre', self.driver.cluster_name),
                (8, POOL, None),
                (16, 'host-3@lustre-1#Lustre', 'cluster@other#Lustre')):
            self.new_volume(size, host=host, cluster_name=cluster)
        self.assertEqual(3 + 4, self.driver._get_provisioned_capacity())

    def test_over_subscription_that_the_scheduler_computes(self):
        self.set_options(max_over_subscription_ratio='auto')
        self.assertEqual('auto', self.driver.get_volume_stats(
            refresh=True)['max_over_subscription_ratio'])

    def test_copy_between_shares(self):
        """A copy goes where the room is, not where its source is."""
        self.set_capacities(testfs=(60, 100), scratch=(30, 50))
        source = self.create_volume()
        self.assertEqual(IDENTITY, source.provider_location)
        self.set_capacities(testfs=(20, 100), scratch=(30, 50))
        volume = self.new_volume()
        self.assertEqual({'provider_location': SECOND_IDENTITY},
                         self.driver.create_cloned_volume(volume, source))


@ddt.ddt
class CreateTestCase(DriverTestCase):
    """What is created, from the configuration and the volume's type."""

    @ddt.data(
        ({}, {}, 'raw', False),
        ({'lustre_qcow2_volumes': True}, {}, 'qcow2', False),
        ({'lustre_sparsed_volumes': False}, {}, 'raw', True),
        ({'lustre_qcow2_volumes': True, 'lustre_sparsed_volumes': False}, {},
         'qcow2', True),
        ({}, {'lustre:format': 'qcow2'}, 'qcow2', False),
        ({'lustre_qcow2_volumes': True}, {'lustre:format': 'raw'}, 'raw',
         False),
        ({}, {'provisioning:type': 'thick'}, 'raw', True),
        ({'lustre_sparsed_volumes': False}, {'provisioning:type': 'thin'},
         'raw', False),
        ({}, {'lustre:format': 'qcow2', 'provisioning:type': 'thick'},
         'qcow2', True),
    )
    @ddt.unpack
    def test_layout(self, options, specs, fmt, thick):
        self.shrink_gib()
        self.set_options(**options)
        volume = self.new_volume(4, specs)
        self.driver.create_volume(volume)
        self.assertEqual(fmt, self.open_as(volume)[0])
        self.assertEqual(fmt, self.format_in_database(volume))
        described = self.driver._run_on(chain.describe, volume)
        self.assertEqual((fmt, thick, 4 * units.Mi),
                         (described['format'], described['thick'],
                          described['size']))

    @ddt.data({'lustre:format': 'vmdk'}, {'lustre:format': ''},
              {'lustre:format': 'RAW'}, {'provisioning:type': 'sparse'})
    def test_wrong_extra_specs(self, specs):
        volume = self.new_volume(specs=specs)
        error = self.assertRaises(exception.InvalidVolumeType,
                                  self.driver.create_volume, volume)
        (name, value), = specs.items()
        self.assertIn('%s is "%s"; it can be ' % (name, value), str(error))
        self.assertEqual(set(), self.files())

    def test_create_as_a_user(self):
        """The format is an administrator's metadata, and kept all the same."""
        user = context.RequestContext(fake.USER_ID, fake.PROJECT_ID,
                                      is_admin=False)
        volume = self.new_volume()
        volume = type(volume).get_by_id(user, volume.id)
        self.driver.create_volume(volume)
        self.assertEqual('raw', self.format_in_database(volume))
        self.assertFalse(volume._context.is_admin)

    def test_create_on_a_full_share(self):
        self.shrink_gib()
        libc = self.patch('cinder_lustre.space.ctypes')
        libc.CDLL.return_value.fallocate64.return_value = -1
        libc.get_errno.return_value = errno.EDQUOT
        self.run_in_process()
        volume = self.new_volume(specs={'provisioning:type': 'thick'})
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.create_volume, volume)
        self.assertIn('Free space, add OSTs or raise the quota', str(error))
        self.assertEqual(set(), self.files())

    def test_create_over_a_file(self):
        volume = self.new_volume()
        path = os.path.join(self.root, volume.name)
        with open(path, 'w') as stream:
            stream.write('precious')
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.create_volume, volume)
        with open(path) as stream:
            self.assertEqual('precious', stream.read())

    def test_delete_a_volume_that_was_never_created(self):
        volume = self.new_volume()
        self.driver.delete_volume(volume)
        self.assertIn('has no provider_location', self.log.output)

    def test_errors_of_the_share_reach_the_operator(self):
        volume = self.create_volume()

        def run(func, *args, **kwargs):
            raise OSError(errno.EIO, 'Input/output error', '/a/file')

        self.patch_worker(run)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.extend_volume, volume, 2)
        self.assertIn("Input/output error: '/a/file'", str(error))

    def test_worker_of_two_shares(self):
        run = self.patch('cinder_lustre.worker.Worker.run', autospec=True)
        one, two = 'lustre:/testfs', 'lustre:/other'
        self.patch('cinder_lustre.volume.drivers.lustre.LustreDriver.'
                   '_ensure_share_mounted')
        for names in (one, two), (two, one), (one, one):
            self.driver._run(chain.copy, names[0], other=names[1])
        there, back, alone = (call[0][0] for call in run.call_args_list)
        self.assertIs(there, back)
        self.assertEqual({there, alone, self.driver._worker(two)},
                         set(there._shares))
        self.assertIs(self.driver._worker(one), alone)

    def test_statistics_wait_for_no_volume(self):
        run = self.patch('cinder_lustre.worker.Worker.run')
        run.return_value = {'available': 1, 'total': 2}
        self.driver._get_available_capacity(self.driver._mounted_shares[0])
        self.assertTrue(run.call_args[1]['probe'])
        self.driver._run(chain.pending, self.driver._mounted_shares[0])
        self.assertFalse(run.call_args[1]['probe'])

    def test_progress_of_a_copy_is_logged_now_and_then(self):
        time = self.patch('cinder_lustre.volume.drivers.lustre.time')
        time.monotonic.return_value = 0
        report = lustre._Progress(chain.copy, ('name-id', None))
        for now, percent in ((1, 1.5), (11, 20.6), (12, 22.5), (99, None)):
            time.monotonic.return_value = now
            report(percent)
        self.assertEqual('copy of volume name-id: 21 %\n', self.log.output)

    def test_clone(self):
        for fmt in ('raw', 'qcow2'):
            source = self.create_volume(fmt=fmt)
            self.write(source, 1)
            self.create_snapshot(source)
            self.write(source, 2, BLOCK)
            volume = self.new_volume(2)
            self.assertEqual({'provider_location': IDENTITY},
                             self.driver.create_cloned_volume(volume, source))
            # The format is that of the new volume's type.
            self.assertEqual('raw', self.open_as(volume)[0])
            self.assert_volume(volume, {0: 1, BLOCK: 2})
            # No snapshot was made to read from.
            self.assertEqual(1, len(source.snapshots))
            self.write(volume, 3)
            self.assert_volume(source, {0: 1, BLOCK: 2})

    def test_clone_is_as_sparse_as_its_source(self):
        source = self.create_volume(3)
        self.write(source, 1, 2 * units.Gi)
        volume = self.new_volume(4)
        self.driver.create_cloned_volume(volume, source)
        self.assert_volume(volume, {2 * units.Gi: 1})
        self.assertLess(os.stat(self.driver.local_path(volume)).st_blocks
                        * 512, units.Mi)


@ddt.ddt
class SnapshotTestCase(DriverTestCase):

    @ddt.data(*[(fmt, order) for fmt in ('raw', 'qcow2')
                for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))])
    @ddt.unpack
    def test_delete_in_any_order(self, fmt, order):
        volume = self.create_volume(fmt=fmt)
        snapshots = []
        blocks = {}
        for number in range(3):
            blocks[number * BLOCK] = number + 1
            self.write(volume, number + 1, number * BLOCK)
            snapshots.append(self.create_snapshot(volume))
            self.assertEqual('qcow2', self.format_in_database(volume))
        blocks[0] = 9
        self.write(volume, 9)
        for number in order:
            self.driver.delete_snapshot(snapshots[number])
            self.assert_volume(volume, blocks)
        self.assertEqual({volume.name}, self.files())
        self.assertEqual(fmt, self.format_in_database(volume))

    def test_delete_of_an_unknown_snapshot(self):
        """What is gone already, or was never made, can be deleted."""
        volume = self.create_volume()
        snapshot = test_utils.create_snapshot(self.context, volume.id)
        self.driver.delete_snapshot(snapshot)
        self.assertEqual({volume.name}, self.files())

    def revert(self, volume, snapshot):
        self.driver.revert_to_snapshot(self.context, volume, snapshot)

    @ddt.data('raw', 'qcow2')
    def test_revert(self, fmt):
        volume = self.create_volume(fmt=fmt)
        self.write(volume, 1)
        first = self.create_snapshot(volume)
        self.write(volume, 2)
        second = self.create_snapshot(volume)
        for _ in range(2):
            self.write(volume, 3)
            self.revert(volume, second)
            self.assert_volume(volume, {0: 2})
        self.driver.delete_snapshot(second)
        self.write(volume, 4)
        self.revert(volume, first)
        self.assert_volume(volume, {0: 1})
        self.driver.delete_snapshot(first)
        self.assert_volume(volume, {0: 1})
        self.assertEqual({volume.name}, self.files())

    def test_revert_to_an_older_snapshot(self):
        """Cinder does not ask for it; the later ones would be lost."""
        volume = self.create_volume()
        first = self.create_snapshot(volume)
        self.write(volume, 1)
        self.create_snapshot(volume)
        before = self.files()
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.revert, volume, first)
        self.assertIn('is not the latest one', str(error))
        self.assertEqual(before, self.files())
        self.assert_volume(volume, {0: 1})

    @ddt.data(None, '', 'tmp-snap-x')
    def test_unnamed(self, name):
        """A display name is the user's, and means nothing."""
        volume = self.create_volume()
        snapshot = test_utils.create_snapshot(self.context, volume.id,
                                              display_name=name)
        self.driver.create_snapshot(snapshot)
        self.driver.delete_snapshot(snapshot)
        self.assertEqual({volume.name}, self.files())

    def test_unknown_snapshot_as_a_source(self):
        source = self.create_volume()
        snapshot = test_utils.create_snapshot(self.context, source.id)
        volume = self.new_volume()
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.create_volume_from_snapshot,
                          volume, snapshot)
        self.assertEqual({source.name}, self.files())


@ddt.ddt
class RefusalTestCase(DriverTestCase):
    """What this release refuses: clearly, and before anything changed."""

    def attached(self, fmt='raw', snapshots=0):
        volume = self.create_volume(fmt=fmt)
        self.snapshots = [self.create_snapshot(volume)
                          for _ in range(snapshots)]
        self.set_attached(volume)
        return volume

    def assert_refused(self, word, function, *args):
        before = self.files()
        error = self.assertRaises(exception.InvalidVolume, function, *args)
        self.assertIn(word, str(error))
        self.assertIn('Detach it first.', str(error))
        self.assertEqual(before, self.files())

    @ddt.data('reserved', 'attaching', 'detaching')
    def test_moving(self, status):
        """A host is about to open or to leave the active file."""
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        volume.status = status
        volume.save()
        before = self.files()
        for expected, function, args in (
                (exception.InvalidVolume, self.driver.create_snapshot, [
                    test_utils.create_snapshot(self.context, volume.id)]),
                # It stays available.
                (exception.SnapshotIsBusy, self.driver.delete_snapshot, [
                    type(snapshot).get_by_id(self.context, snapshot.id)]),
                (exception.InvalidVolume, self.driver.create_cloned_volume, [
                    self.new_volume(), volume])):
            error = self.assertRaises(expected, function, *args)
            self.assertIn('attached or detached', str(error))
        self.assertEqual(before, self.files())

    def test_snapshot_for_several_servers(self):
        volume = self.attached()
        for _ in range(2):
            test_utils.attach_volume(self.context, volume.id,
                                     str(uuid.uuid4()), 'host', '/dev/vdb')
        error = self.assertRaises(
            exception.InvalidVolume, self.driver.create_snapshot,
            test_utils.create_snapshot(self.context, volume.id))
        self.assertIn('several servers', str(error))

    def test_revert_of_an_attached_volume(self):
        volume = self.attached(snapshots=1)
        self.assert_refused('reverted', self.driver.revert_to_snapshot,
                            self.context, volume, *self.snapshots)

    @ddt.data(('qcow2', 0), ('raw', 1), ('qcow2', 1))
    @ddt.unpack
    def test_extend_of_an_attached_qcow2_file(self, fmt, snapshots):
        self.assert_refused('extended', self.driver.extend_volume,
                            self.attached(fmt, snapshots), 2)

    def test_extend_of_an_attached_raw_file(self):
        volume = self.attached()
        self.driver.extend_volume(volume, 2)
        volume.size = 2
        self.assert_volume(volume, {})

    def test_read_from_a_snapshot_of_an_attached_volume(self):
        """Nothing writes to what a snapshot holds."""
        source = self.create_volume()
        self.write(source, 1)
        snapshot = self.create_snapshot(source)
        self.set_attached(source)
        volume = self.new_volume()
        self.driver.create_volume_from_snapshot(volume, snapshot)
        self.assert_volume(volume, {0: 1})


@ddt.ddt
class TypeTestCase(DriverTestCase):
    """Other formats, other owners."""

    def retype(self, volume, **specs):
        return self.driver.retype(
            self.context, volume, self.new_volume(specs=specs).volume_type,
            {}, {'host': HOST})

    @ddt.data(('raw', 'qcow2'), ('qcow2', 'raw'))
    @ddt.unpack
    def test_retype(self, old, new):
        volume = self.create_volume(fmt=old)
        self.write(volume, 3)
        self.assertTrue(self.retype(volume, **{'lustre:format': new}))
        self.assertEqual(new, self.format_in_database(volume))
        self.assertEqual(new, self.open_as(volume)[0])
        self.assert_content(units.Gi, {0: 3}, *self.open_as(volume))

    def test_retype_to_the_same(self):
        volume = self.create_volume()
        self.create_snapshot(volume)
        self.assertTrue(self.retype(volume, **{'other': '1'}))

    def test_retype_with_snapshots(self):
        volume = self.create_volume()
        self.create_snapshot(volume)
        before = self.files()
        self.assertFalse(self.retype(volume, **{'lustre:format': 'qcow2'}))
        self.assertEqual(before, self.files())

    def reference(self, name, **more):
        return dict({'source-name': '%s/%s' % (IDENTITY, name)}, **more)

    def make_file(self, name, size, byte):
        path = os.path.join(self.root, name)
        with open(path, 'wb') as stream:
            stream.write(bytes([byte]) * BLOCK)
            stream.truncate(size)
        return path

    def test_manage_a_file(self):
        self.make_file('disk.img', units.Gi + 1, 6)
        volume = self.new_volume(2)
        for prefix in (IDENTITY, SHARE):
            self.assertEqual(2, self.driver.manage_existing_get_size(
                volume, {'source-name': prefix + '/disk.img'}))
        self.assertEqual({'provider_location': IDENTITY},
                         self.driver.manage_existing(
                             volume, self.reference('disk.img')))
        self.assertEqual({volume.name}, self.files())
        self.assert_content(2 * units.Gi, {0: 6}, *self.open_as(volume))

    def test_manage_what_was_unmanaged(self):
        old = self.create_volume(fmt='qcow2')
        self.write(old, 3)
        snapshot = self.create_snapshot(old)
        self.driver.unmanage_snapshot(snapshot)
        snapshot.destroy()
        self.driver.unmanage(old)
        reference = self.reference(self.driver.get_active_image_from_info(
            old))
        volume = self.new_volume()
        self.assertRaises(exception.ManageExistingAlreadyManaged,
                          self.driver.manage_existing_get_size, volume,
                          reference)
        old.destroy()
        listed, = self.driver.get_manageable_volumes(
            [], None, 10, 0, ['size'], ['asc'])
        self.assertEqual(
            {'reference': reference, 'size': 1, 'safe_to_manage': True,
             'reason_not_safe': None, 'cinder_id': None, 'extra_info': None},
            listed)
        self.assertEqual(1, self.driver.manage_existing_get_size(volume,
                                                                 reference))
        volume.update(self.driver.manage_existing(volume, reference))
        volume.save()
        self.assert_content(units.Gi, {0: 3}, *self.open_as(volume))
        listed, = self.driver.get_manageable_volumes(
            [volume], None, 10, 0, ['size'], ['asc'])
        self.assertEqual((volume.id, False), (listed['cinder_id'],
                                              listed['safe_to_manage']))
        layer, = self.driver.get_manageable_snapshots(
            [], None, 10, 0, ['size'], ['asc'])
        self.assertTrue(layer['safe_to_manage'])
        new = test_utils.create_snapshot(self.context, volume.id)
        self.assertEqual(1, self.driver.manage_existing_snapshot_get_size(
            new, layer['reference']))
        self.driver.manage_existing_snapshot(new, layer['reference'])
        layer, = self.driver.get_manageable_snapshots(
            [new], None, 10, 0, ['size'], ['asc'])
        self.assertEqual((new.id, False), (layer['cinder_id'],
                                           layer['safe_to_manage']))
        self.driver.delete_snapshot(new)
        self.assert_content(units.Gi, {0: 3}, *self.open_as(volume))

    @ddt.data({}, {'source-name': 'volume-1'}, {'source-id': 'x'},
              {'source-name': IDENTITY + '/'},
              {'source-name': IDENTITY + '/missing'},
              {'source-name': IDENTITY + '/../x'},
              {'source-name': IDENTITY + '/x', 'source-format': 'vmdk'})
    def test_wrong_reference(self, reference):
        for function in (self.driver.manage_existing_get_size,
                         self.driver.manage_existing):
            self.assertRaises(exception.ManageExistingInvalidReference,
                              function, self.new_volume(), reference)

    def test_wrong_reference_of_a_snapshot(self):
        snapshot = test_utils.create_snapshot(self.context,
                                              self.create_volume().id)
        for function in (self.driver.manage_existing_snapshot_get_size,
                         self.driver.manage_existing_snapshot):
            self.assertRaises(exception.ManageExistingInvalidReference,
                              function, snapshot, {'source-name': 'x'})

    def test_volume_of_another_driver(self):
        """The database knows the formats of what a RemoteFS driver made."""
        volume = self.new_volume(provider_location=IDENTITY)
        self.make_file(volume.name, units.Gi, 5)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.initialize_connection, volume, {})
        with volume.obj_as_admin():
            volume.admin_metadata = {'format': 'raw'}
            volume.save()
        self.assertEqual('raw', self.connection(volume)['format'])
        self.create_snapshot(volume)
        self.assert_content(units.Gi, {0: 5}, *self.open_as(volume))

    def test_multiattach(self):
        volume = self.new_volume(specs={'lustre:format': 'qcow2'},
                                 multiattach=True)
        self.assertRaises(exception.InvalidVolumeType,
                          self.driver.create_volume, volume)

    @ddt.data((True, False), (False, True))
    @ddt.unpack
    def test_second_server(self, same, refused):
        """It cannot have a qcow2 file, unless it is the same on a new host."""
        volume = self.create_volume(fmt='qcow2')
        server = str(uuid.uuid4())
        for each in (server, server if same else str(uuid.uuid4())):
            test_utils.attach_volume(self.context, volume.id, each, 'host',
                                     '/dev/vdb')
        volume = type(volume).get_by_id(self.context, volume.id)
        if refused:
            self.assertRaises(exception.InvalidVolume,
                              self.driver.initialize_connection, volume, {})
        else:
            self.driver.initialize_connection(volume, {})

    def test_recovery_at_start(self):
        volume = self.create_volume()
        other = self.create_volume()
        self.run_in_process()
        chain.begin_snapshot(self.root, volume.id, fake.SNAPSHOT_ID)
        before = self.log.output
        self.driver.do_setup(self.context)
        self.driver.get_volume_stats(refresh=True)
        self.assertIn('Recovering volume ' + volume.id,
                      self.log.output[len(before):])
        self.assertEqual({volume.name, other.name}, self.files())

    def test_targets_in_the_log(self):
        self.patch('cinder_lustre.lfs.target_states', lambda fsname: {
            'testfs-OST0000': 'FULL', 'testfs-OST0001': 'DISCONN'})
        self.set_capacities(testfs=(60, 80))
        self.patch('cinder_lustre.lfs.ost_free', lambda fsname: {
            'testfs-OST0000': 2 * units.Gi - 1,
            'testfs-OST0002': 2 * units.Gi})
        self.driver.get_volume_stats(refresh=True)
        self.assertIn('testfs-OST0001 of share lustre:/testfs do not answer',
                      self.log.output)
        self.assertIn('free on testfs-OST0000 (2.0 GiB) of share',
                      self.log.output)
        self.assertNotIn('OST0002', self.log.output)


@ddt.ddt
class ConnectionTestCase(DriverTestCase):

    def test_nfs(self):
        """Unmodified hosts hash the export for their mount point."""
        self.driver = self.new_driver(lustre_connection_type='nfs',
                                      lustre_shares=[SHARE + ' -o flock'])
        volume = self.create_volume()
        self.assertEqual(
            {'driver_volume_type': 'nfs',
             'data': {'export': IDENTITY, 'name': volume.name,
                      'format': 'raw', 'options': '-o flock',
                      'discard': True},
             'mount_point_base': self.base},
            self.driver.initialize_connection(volume, {}))

    def test_several_servers(self):
        self.driver = self.new_driver(lustre_shares=[SECOND])
        self.assertEqual(SECOND,
                         self.connection(self.create_volume())['export'])

    def test_provider_location_with_servers(self):
        """Whatever wrote servers there: the configuration knows better."""
        volume = self.create_volume()
        volume.provider_location = '10.9.9.9@o2ib:/testfs/'
        volume.save()
        self.assertEqual(SHARE, self.connection(volume)['export'])
        self.driver.ensure_export(self.context, volume)
        self.driver.extend_volume(volume, 2)
        self.driver.delete_volume(volume)
        self.assertEqual(set(), self.files())

    def test_provider_location_that_is_no_share(self):
        volume = self.new_volume(provider_location='/dev/sdb')
        self.driver.ensure_export(self.context, volume)
        self.assertIn('Invalid Lustre share "/dev/sdb"', self.log.output)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.initialize_connection, volume,
                                  {})
        self.assertIn('Invalid Lustre share "/dev/sdb"', str(error))

    @ddt.data('raw', 'qcow2')
    def test_file_that_shrank(self, fmt):
        volume = self.create_volume(2, fmt)
        self.run_command('qemu-img', 'resize', '-q', '--shrink', '-f', fmt,
                         self.driver.local_path(volume), '1G')
        self.assert_volume(volume, {})
        self.assertIn('Growing', self.log.output)

    @ddt.data(('raw', 0), ('qcow2', 0), ('raw', 1))
    @ddt.unpack
    def test_file_smaller_than_cinder_knows(self, fmt, snapshots):
        volume = self.create_volume(fmt=fmt)
        self.write(volume, 1)
        for _ in range(snapshots):
            self.create_snapshot(volume)
        volume.size = 3
        volume.save()
        self.assert_volume(volume, {0: 1})
        self.assertIn('Growing volume %s to the 3 GiB' % volume.id,
                      self.log.output)

    @ddt.data('raw', 'qcow2')
    def test_file_that_grew(self, fmt):
        """A guest may have done it, to get at more than it should."""
        volume = self.create_volume(fmt=fmt)
        self.run_command('qemu-img', 'resize', '-q', '-f', fmt,
                         self.driver.local_path(volume), '2G')
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.initialize_connection, volume,
                                  {})
        self.assertIn('is 2147483648 bytes, but the volume has 1073741824 '
                      'bytes', str(error))

    @ddt.data('raw', 'qcow2')
    def test_file_larger_than_cinder_knows(self, fmt):
        volume = self.create_volume(3, fmt)
        volume.size = 2
        volume.save()
        error = self.assertRaises(exception.InvalidVolume,
                                  self.driver.initialize_connection, volume,
                                  {})
        self.assertIn('3221225472 bytes, more than the 2 GiB', str(error))

    def test_missing_record(self):
        volume = self.create_volume()
        path = os.path.join(self.root, record.DIRECTORY, volume.id + '.json')
        os.unlink(path)
        # The database and the files tell the same.
        self.driver.initialize_connection(volume, {})
        self.assertTrue(os.path.exists(path))
        os.unlink(path)
        db.volume_admin_metadata_update(self.context, volume.id, {}, True)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.initialize_connection, volume, {})

    def test_share_that_is_down(self):
        volume = self.create_volume()
        self.down.add(IDENTITY)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.initialize_connection, volume,
                                  {})
        self.assertIn('Check that the MGS runs.', str(error))


@ddt.ddt
class ImageTestCase(DriverTestCase):
    """Between volumes and images."""

    def setUp(self):
        super().setUp()
        self.image = os.path.join(self.directory, 'image')

    def make_image(self, fmt, size=units.Gi, name='image'):
        path = os.path.join(self.directory, name)
        self.run_command('qemu-img', 'create', '-q', '-f', fmt, path,
                         str(size))
        self.run_command('qemu-io', '-f', fmt, '-c',
                         'write -P 7 %d %d' % (BLOCK, BLOCK), path)
        return FakeImageService(path, fmt)

    def load(self, volume, images, **kwargs):
        self.driver.copy_image_to_volume(self.context, volume, images,
                                         fake.IMAGE_ID, **kwargs)

    def upload(self, volume, disk_format, container_format='bare'):
        images = FakeImageService(self.image, disk_format, container_format)
        self.driver.copy_volume_to_image(self.context, volume, images,
                                         images.meta)

    @ddt.data(*[(fmt, image_fmt) for fmt in ('raw', 'qcow2')
                for image_fmt in ('raw', 'qcow2')])
    @ddt.unpack
    def test_load(self, fmt, image_fmt):
        volume = self.create_volume(2, fmt)
        self.write(volume, 1)
        self.load(volume, self.make_image(image_fmt))
        # The image is smaller than the volume, and replaces all of it.
        self.assert_volume(volume, {BLOCK: 7})
        self.assertEqual(fmt, self.open_as(volume)[0])
        self.assertEqual({volume.name}, self.files())
        self.assertEqual(0o660, os.stat(
            self.driver.local_path(volume)).st_mode & 0o777)
        self.assertLess(os.stat(self.driver.local_path(volume)).st_blocks
                        * 512, units.Mi)

    def test_load_a_thick_volume(self):
        self.shrink_gib()
        volume = self.new_volume(9, {'provisioning:type': 'thick'})
        self.driver.create_volume(volume)
        self.load(volume, self.make_image('qcow2', 8 * units.Mi))
        fmt, path = self.open_as(volume)
        self.assert_content(9 * units.Mi, {BLOCK: 7}, fmt, path)
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, 9 * units.Mi)

    def test_load_without_holes(self):
        self.shrink_gib()
        volume = self.create_volume(9)
        self.load(volume, self.make_image('raw', 8 * units.Mi),
                  disable_sparse=True)
        fmt, path = self.open_as(volume)
        self.assert_content(9 * units.Mi, {BLOCK: 7}, fmt, path)
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, 8 * units.Mi)

    @ddt.data(('vmdk', 'vmdk'), ('vdi', 'vdi'), ('vhdx', 'vhdx'),
              ('ami', 'raw'), ('ami', 'qcow2'), ('iso', 'raw'))
    @ddt.unpack
    def test_load_other_formats(self, disk_format, fmt):
        self.shrink_gib()
        volume = self.create_volume(17)
        images = self.make_image(fmt, 8 * units.Mi)
        images.meta['disk_format'] = disk_format
        self.load(volume, images)
        with open(self.driver.local_path(volume), 'rb') as stream:
            self.assertEqual(bytes(BLOCK) + bytes([7]) * BLOCK + bytes(BLOCK),
                             stream.read(3 * BLOCK))

    @ddt.data('raw', 'qcow2')
    def test_load_a_compressed_image(self, fmt):
        self.override_config('allow_compression_on_image_upload', True)
        volume = self.create_volume(2, fmt)
        images = self.make_image('qcow2', units.Mi)
        self.run_command('gzip', self.image)
        os.rename(self.image + '.gz', self.image)
        images.meta['container_format'] = 'compressed'
        before = set(os.listdir(self.directory))
        self.load(volume, images)
        self.assertEqual(before, set(os.listdir(self.directory)))
        self.assert_volume(volume, {BLOCK: 7})
        self.override_config('allow_compression_on_image_upload', False)
        self.write(volume, 1)
        self.assertRaises(exception.ImageUnacceptable, self.load, volume,
                          images)
        self.assert_volume(volume, {0: 1, BLOCK: 7})

    def test_load_what_the_manager_has_fetched(self):
        volume = self.create_volume(2)
        images = self.make_image('qcow2')
        with image_utils.TemporaryImages.fetch(images, self.context,
                                               fake.IMAGE_ID):
            images.download = mock.Mock(side_effect=AssertionError)
            self.load(volume, images)
        self.assert_volume(volume, {BLOCK: 7})

    def test_images_reach_the_share_through_the_worker_alone(self):
        """The service's own process must not hang with a dead OST."""
        volume = self.create_volume(2)
        images = self.make_image('qcow2')
        opened = []

        def audit(event, args):
            if (event in ('open', 'subprocess.Popen') and
                    self.root in str(args) and
                    '-m cinder_lustre.worker' not in str(args)):
                opened.append((event, args))

        # An audit hook cannot be removed.
        active = [audit]
        self.addCleanup(active.clear)
        sys.addaudithook(lambda *args: [hook(*args) for hook in active])
        self.load(volume, images)
        self.assertEqual([], opened)

    def assert_not_loaded(self, error, volume, images):
        before = self.files()
        self.assertRaises(error, self.load, volume, images)
        self.assertEqual(before, self.files())
        self.assert_volume(volume, {0: 1})

    def written(self, **values):
        volume = self.create_volume(**values)
        self.write(volume, 1)
        return volume

    def test_image_that_is_too_large(self):
        self.assert_not_loaded(exception.ImageUnacceptable, self.written(),
                               self.make_image('qcow2', 3 * units.Gi))

    def test_image_that_is_another_format(self):
        images = self.make_image('qcow2')
        images.meta['disk_format'] = 'raw'
        self.assert_not_loaded(exception.ImageUnacceptable, self.written(),
                               images)

    @ddt.data('raw', 'qcow2')
    def test_image_that_needs_conversion_which_is_off(self, fmt):
        self.override_config('image_conversion_disable', True)
        volume = self.written()
        images = self.make_image(fmt)
        if fmt == 'raw':
            self.load(volume, images)
        else:
            self.assert_not_loaded(exception.ImageConversionNotAllowed,
                                   volume, images)

    @ddt.data(['-b', '/etc/passwd', '-F', 'raw', '1M'],
              ['-o', 'data_file=/etc/passwd,data_file_raw=on', '-u', '1M'])
    def test_image_that_refers_to_a_file(self, arguments):
        *options, size = arguments
        data = os.path.join(self.directory, 'passwd')
        self.run_command('qemu-img', 'create', '-q', '-f', 'qcow2', *[
            option.replace('/etc/passwd', data) if 'data_file' in option
            else option for option in options], self.image, size)
        for fmt in ('qcow2', 'ami'):
            self.assert_not_loaded(
                (exception.ImageUnacceptable, exception.Invalid),
                self.written(), FakeImageService(self.image, fmt))

    def test_image_that_cannot_be_fetched(self):
        images = self.make_image('raw')
        images.download = mock.Mock(
            side_effect=exception.GlanceConnectionFailed(reason='gone'))
        self.assert_not_loaded(exception.GlanceConnectionFailed,
                               self.written(), images)

    def test_load_a_volume_with_snapshots(self):
        volume = self.written()
        self.create_snapshot(volume)
        self.assert_not_loaded(exception.VolumeBackendAPIException, volume,
                               self.make_image('raw'))

    @ddt.data(('raw', 'raw', 0), ('raw', 'qcow2', 1), ('qcow2', 'raw', 1),
              ('qcow2', 'qcow2', 0))
    @ddt.unpack
    def test_upload_compressed(self, fmt, disk_format, snapshots):
        self.shrink_gib()
        volume = self.create_volume(9, fmt)
        self.write(volume, 1)
        for _ in range(snapshots):
            self.create_snapshot(volume)
            self.write(volume, 2, BLOCK)
        self.upload(volume, disk_format, 'compressed')
        os.rename(self.image, self.image + '.gz')
        self.run_command('gzip', '-d', self.image + '.gz')
        self.assert_content(9 * units.Mi,
                            {0: 1, BLOCK: 2} if snapshots else {0: 1},
                            disk_format, self.image)

    @ddt.data(True, False)
    def test_upload_compresses_as_cinder_is_told(self, compress):
        self.override_config('image_compress_on_upload', compress)
        volume = self.create_volume()
        self.write(volume, 1)
        self.upload(volume, 'qcow2')
        found = json.loads(self.run_command(
            'qemu-img', 'check', '--output=json', '-f', 'qcow2', self.image))
        self.assertEqual(compress, found.get('compressed-clusters', 0) > 0)

    @ddt.data(('vmdk', 'vmdk'), ('vdi', 'vdi'), ('vhd', 'vpc'),
              ('vhdx', 'vhdx'))
    @ddt.unpack
    def test_upload_in_other_formats(self, disk_format, fmt):
        self.shrink_gib()
        volume = self.create_volume(9)
        self.write(volume, 1)
        self.upload(volume, disk_format)
        flat = os.path.join(self.directory, 'flat')
        self.run_command('qemu-img', 'convert', '-f', fmt, '-O', 'raw',
                         self.image, flat)
        with open(flat, 'rb') as stream:
            self.assertEqual(bytes([1]) * BLOCK + bytes(BLOCK),
                             stream.read(2 * BLOCK))

    @ddt.data(('raw', 'raw', True), ('qcow2', 'qcow2', True),
              ('raw', 'qcow2', False), ('qcow2', 'raw', False))
    @ddt.unpack
    def test_upload_without_conversion(self, fmt, disk_format, allowed):
        self.override_config('image_conversion_disable', True)
        volume = self.create_volume(fmt=fmt)
        if allowed:
            self.upload(volume, disk_format)
            self.assert_content(units.Gi, {}, disk_format, self.image)
        else:
            self.assertRaises(exception.ImageConversionNotAllowed,
                              self.upload, volume, disk_format)

    def test_nothing_is_left_after_an_upload(self):
        volume = self.create_volume(fmt='qcow2')
        before = set(os.listdir(self.directory))
        self.upload(volume, 'raw')
        images = FakeImageService(self.image, 'qcow2')
        images.update = mock.Mock(
            side_effect=exception.GlanceConnectionFailed(reason='gone'))
        self.assertRaises(exception.GlanceConnectionFailed,
                          self.driver.copy_volume_to_image, self.context,
                          volume, images, images.meta)
        self.assertEqual(before | {'image'}, set(os.listdir(self.directory)))
        self.assertEqual({volume.name}, self.files())


class ProbingTestCase(DriverTestCase):
    """A guest writes what it likes, and nothing believes it."""

    def setUp(self):
        super().setUp()
        # What the guest is after.
        self.secret = os.path.join(self.directory, 'secret')
        with open(self.secret, 'wb') as stream:
            stream.write(b'secret' * 20000)
        evil = os.path.join(self.directory, 'evil')
        self.run_command('qemu-img', 'create', '-q', '-f', 'qcow2', '-b',
                         self.secret, '-F', 'raw', evil, '8G')
        with open(evil, 'rb') as stream:
            self.header = stream.read()
        self.volume = self.create_volume()
        self.inject(self.driver.local_path(self.volume))

    def inject(self, path):
        with open(path, 'r+b') as stream:
            stream.write(self.header)

    def test_attach(self):
        self.assertEqual('raw', self.open_as(self.volume)[0])
        self.assert_volume(self.volume, {0: self.header})

    def test_extend(self):
        self.driver.extend_volume(self.volume, 2)
        self.volume.size = 2
        self.assert_volume(self.volume, {0: self.header})

    def test_clone(self):
        for fmt in ('raw', 'qcow2'):
            volume = self.new_volume(2, {'lustre:format': fmt})
            self.driver.create_cloned_volume(volume, self.volume)
            self.assert_volume(volume, {0: self.header})

    def test_snapshot(self):
        snapshot = self.create_snapshot(self.volume)
        self.assert_volume(self.volume, {0: self.header})
        volume = self.new_volume()
        self.driver.create_volume_from_snapshot(volume, snapshot)
        self.assert_volume(volume, {0: self.header})
        self.driver.delete_snapshot(snapshot)
        self.assert_volume(self.volume, {0: self.header})

    def test_upload(self):
        image = os.path.join(self.directory, 'image')
        for disk_format in ('raw', 'qcow2'):
            images = FakeImageService(image, disk_format)
            self.driver.copy_volume_to_image(self.context, self.volume,
                                             images, images.meta)
            self.assert_content(units.Gi, {0: self.header}, disk_format,
                                image)

    def test_upload_compressed(self):
        self.shrink_gib()
        volume = self.create_volume(9)
        self.inject(self.driver.local_path(volume))
        image = os.path.join(self.directory, 'image')
        # Cinder looks into the raw image that it compresses, and refuses it.
        images = FakeImageService(image, 'raw', 'compressed')
        self.assertRaises(exception.Invalid,
                          self.driver.copy_volume_to_image, self.context,
                          volume, images, images.meta)
        self.assertFalse(os.path.exists(image))
        images = FakeImageService(image, 'qcow2', 'compressed')
        self.driver.copy_volume_to_image(self.context, volume, images,
                                         images.meta)
        os.rename(image, image + '.gz')
        self.run_command('gzip', '-d', image + '.gz')
        self.assert_content(9 * units.Mi, {0: self.header}, 'qcow2', image)

    def test_qcow2_volume_that_refers_to_a_file(self):
        """Nor may the file itself point elsewhere."""
        images = FakeImageService(os.path.join(self.directory, 'image'),
                                  'raw')
        for snapshots in (0, 1):
            volume = self.create_volume(fmt='qcow2')
            for _ in range(snapshots):
                self.create_snapshot(volume)
            self.run_command('qemu-img', 'rebase', '-u', '-f', 'qcow2', '-b',
                             self.secret, '-F', 'raw',
                             self.driver.local_path(volume))
            for function, *args in (
                    (self.driver.initialize_connection, volume, {}),
                    (self.driver.extend_volume, volume, 2),
                    (self.driver.create_cloned_volume, self.new_volume(),
                     volume),
                    (self.driver.copy_volume_to_image, self.context, volume,
                     images, images.meta)):
                self.assertRaises(exception.VolumeBackendAPIException,
                                  function, *args)
            self.driver.delete_volume(volume)
            self.assertEqual({self.volume.name}, self.files())

    def test_inherited_methods_cannot_probe(self):
        """Whatever of Cinder's probes is overridden, or runs into an error."""
        inherited = {}
        for cls in reversed(lustre.LustreDriver.__mro__):
            if cls.__module__.startswith('cinder.'):
                inherited.update((name, value) for name, value
                                 in vars(cls).items()
                                 if inspect.isfunction(value))
        # They get there through _qemu_img_info_base or _qemu_img_info alone.
        probing = {name for name, value in inherited.items()
                   if 'image_utils.qemu_img_info' in inspect.getsource(value)
                   or 'image_utils.convert_image' in inspect.getsource(value)
                   or 'resize_image' in inspect.getsource(value)}
        self.assertIn('_qemu_img_info_base', probing)
        self.assertEqual(set(), probing - set(vars(lustre.LustreDriver)))
        for function in (self.driver._qemu_img_info,
                         self.driver._get_backing_chain_for_path):
            args = ((self.volume, 'path') if 'volume' in
                    inspect.signature(function).parameters
                    else ('path', 'volume-1'))
            error = self.assertRaises(exception.VolumeDriverException,
                                      function, *args)
            self.assertIn('about to be probed', str(error))


@ddt.ddt
class LockTestCase(DriverTestCase):
    """Operations on one volume take turns, on all hosts."""

    # Below and above any id that is made by chance.
    FIRST = '00000000-0000-4000-8000-000000000000'
    LAST = 'ffffffff-ffff-4fff-bfff-ffffffffffff'

    def setUp(self):
        super().setUp()
        self.locks = FakeLocks()
        coordination.Coordinator.get_lock.side_effect = self.locks.get_lock

    def watch_worker(self):
        """What is locked while files are worked on.

        :returns: (function's name, names of locks) of each call to come
        """
        seen = []
        run = worker.Worker.run

        def watch(this, func, *args, **kwargs):
            seen.append((func.__name__, self.locks.held))
            return run(this, func, *args, **kwargs)

        self.patch('cinder_lustre.worker.Worker.run', watch)
        return seen

    def test_one_volume(self):
        seen = self.watch_worker()
        volume = self.create_volume()
        snapshot = self.create_snapshot(volume)
        self.driver.extend_volume(volume, 2)
        volume.size = 2
        self.driver.initialize_connection(volume, {})
        self.driver.revert_to_snapshot(self.context, volume, snapshot)
        self.driver.delete_snapshot(snapshot)
        image = os.path.join(self.directory, 'image')
        images = FakeImageService(image, 'qcow2')
        self.driver.copy_volume_to_image(self.context, volume, images,
                                         images.meta)
        self.driver.copy_image_to_volume(self.context, volume, images,
                                         fake.IMAGE_ID)
        self.driver.delete_volume(volume)
        self.assertLessEqual(
            {'create', 'create_snapshot', 'extend', 'describe',
             'delete_snapshot', 'revert', 'export', 'load', 'delete'},
            {name for name, _ in seen})
        for name, held in seen:
            self.assertEqual(['lustre-' + volume.id], held, name)
        self.assertEqual([], self.locks.held)

    @ddt.data((FIRST, LAST), (LAST, FIRST))
    @ddt.unpack
    def test_source_and_copy(self, source_id, volume_id):
        """A source that can be written to is locked, and first.

        A snapshot's data have the fence.
        """
        seen = self.watch_worker()
        source = self.create_volume(id=source_id)
        snapshot = self.create_snapshot(source)
        volume = self.new_volume(id=volume_id)
        for create, origin, locks in (
                (self.driver.create_volume_from_snapshot, snapshot, []),
                (self.driver.create_cloned_volume, source,
                 ['lustre-' + source_id])):
            seen.clear()
            create(volume, origin)
            self.assertIn(('copy', [*locks, 'lustre-' + volume_id]), seen)
            self.driver.delete_volume(volume)

    def test_lock_is_released_after_an_error(self):
        volume = self.create_volume(fmt='qcow2')
        self.set_attached(volume)
        self.assertRaises(exception.InvalidVolume, self.driver.extend_volume,
                          volume, 2)
        self.assertEqual([], self.locks.held)

    def test_two_operations_take_turns(self):
        volume = self.create_volume()
        snapshot = test_utils.create_snapshot(self.context, volume.id)
        self.assertEqual(volume.id, snapshot.volume.id)
        started, go_on = threading.Event(), threading.Event()
        done = []

        def run(func, *args, **kwargs):
            done.append(('begins', func.__name__))
            if func is chain.create_snapshot:
                started.set()
                go_on.wait(PATIENCE)
            done.append(('ends', func.__name__))
            return {'active': 'x', 'format': 'raw'}

        self.patch_worker(run)
        self.locks.log.clear()
        first = threading.Thread(target=self.driver.create_snapshot,
                                 args=(snapshot,))
        first.start()
        self.assertTrue(started.wait(PATIENCE))
        wanted = threading.Event()
        acquire = self.locks.acquire

        def watch(name):
            wanted.set()
            return acquire(name)

        self.locks.acquire = watch
        second = threading.Thread(target=self.driver.delete_volume,
                                  args=(volume,))
        second.start()
        self.assertTrue(wanted.wait(PATIENCE))
        go_on.set()
        first.join(PATIENCE)
        second.join(PATIENCE)
        self.assertEqual([('begins', 'create_snapshot'),
                          ('ends', 'create_snapshot'),
                          ('begins', 'delete'), ('ends', 'delete')], done)
        self.assertEqual(
            {'lustre-' + volume.id}, {name for _, name in self.locks.log})

    def test_operations_at_once(self):
        volume = self.create_volume()
        snapshots = [test_utils.create_snapshot(self.context, volume.id)
                     for _ in range(3)]
        for snapshot in snapshots:
            # Loaded here: the threads share one connection to the database.
            self.assertEqual(volume.id, snapshot.volume.id)
        errors = []

        def create(snapshot):
            try:
                self.driver.create_snapshot(snapshot)
            except Exception as exc:
                errors.append(exc)

        threads = [threading.Thread(target=create, args=(snapshot,))
                   for snapshot in snapshots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], errors)
        described = self.driver._run_on(chain.describe, volume)
        self.assertEqual({snapshot.id for snapshot in snapshots},
                         set(described['snapshots']))
        self.assert_volume(volume, {})


class LockFilesTestCase(DriverTestCase):
    """With Cinder's own coordinator, whose locks are files."""

    MOCK_TOOZ = False

    def test_lock_files_go_with_the_volume(self):
        volume = self.create_volume()
        path = coordination.COORDINATOR._file_path + 'lustre-' + volume.id
        self.assertTrue(os.path.exists(path))
        self.driver.delete_volume(volume)
        self.driver.clean_volume_file_locks(volume.id)
        self.assertFalse(os.path.exists(path))

    def test_somebody_else_has_the_lock(self):
        volume = self.create_volume()
        self.patch('cinder_lustre.volume.drivers.lustre._CONNECTION_WAIT', 1)
        with coordination.COORDINATOR.get_lock('lustre-' + volume.id):
            error = self.assertRaises(
                exception.VolumeIsBusy, self.driver.initialize_connection,
                volume, {})
            self.assertIn(volume.id, str(error))
            self.assertRaises(tooz.coordination.LockAcquireFailed,
                              self.driver._recover, volume)
        self.driver.initialize_connection(volume, {})
        self.driver._recover(volume)


class BackupTestCase(DriverTestCase):

    def test_backup_of_a_snapshot(self):
        """A temporary volume stands for it."""
        self.set_options(backup_use_temp_snapshot=True)
        volume = self.create_volume()
        self.write(volume, 1)
        snapshot = self.create_snapshot(volume)
        self.write(volume, 2)
        backup = test_utils.create_backup(self.context, volume.id,
                                          snapshot_id=snapshot.id)
        device, is_snapshot = self.driver.get_backup_device(self.context,
                                                            backup)
        self.assertFalse(is_snapshot)
        self.assertEqual(device.id, backup.temp_volume_id)
        self.assert_volume(device, {0: 1})

    def fail_backup(self, volume, error, **values):
        """Begin a backup that cannot be made."""
        backup = test_utils.create_backup(self.context, volume.id, **values)
        self.assertRaises(error, self.driver.get_backup_device, self.context,
                          backup)
        backup.refresh()
        self.assertEqual('error', backup.status)
        # No temporary volume is left.
        self.assertEqual([volume.id], [
            found.id for found in objects.VolumeList.get_all(self.context)])
        return backup

    def test_backup_of_an_attached_volume(self):
        """cinder-backup waits for no answer, so the error is in the backup."""
        volume = self.create_volume()
        self.set_attached(volume)
        self.use_nova(refuses=True)
        volume.update({'status': 'backing-up', 'previous_status': 'in-use'})
        volume.save()
        before = self.files()
        backup = self.fail_backup(volume, FakeNova.Refusal)
        self.assertIn('no such server', backup.fail_reason)
        volume.refresh()
        self.assertEqual('in-use', volume.status)
        self.assertEqual(before, self.files())

    def test_backup_of_an_unknown_snapshot(self):
        volume = self.create_volume()
        snapshot = test_utils.create_snapshot(self.context, volume.id,
                                              status='backing-up')
        self.fail_backup(volume, exception.VolumeBackendAPIException,
                         snapshot_id=snapshot.id)
        snapshot.refresh()
        self.assertEqual('available', snapshot.status)
        volume.refresh()
        self.assertEqual('available', volume.status)
        self.assertEqual({volume.name}, self.files())
