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

"""The base of the functional tests: a driver, its volumes, and the broom.

The driver runs in this process, on Cinder's in-memory database, a real mount
and real qemu-img. Every test ends with a look at what it has left: files,
temporary files, mounts and processes.
"""

import contextlib
import fcntl
import functools
import gc
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import time
import uuid

from cinder.common import config
from cinder import context
from cinder import objects
from cinder.objects import fields
from cinder import privsep
from cinder.tests.unit import test
from cinder.tests.unit import utils as test_utils
from cinder.volume import configuration
from cinder.volume import driver as volume_driver
from cinder.volume import volume_types
from cinder.volume import volume_utils
import fixtures
from oslo_utils import units

from cinder_lustre import brick
from cinder_lustre.brick import nbd
from cinder_lustre import check
from cinder_lustre.tests.functional import site as sites
from cinder_lustre.volume.drivers import lustre
from cinder_lustre import worker

CONF = config.CONF
PATIENCE = sites.PATIENCE
_CHUNK = units.Mi
_ZEROS = bytes(_CHUNK)


@functools.cache
def all_sites():
    """What makes the shares of this process's tests."""
    return sites.Sites()


def wait_for(condition, what):
    """Wait until a condition holds.

    :param condition: called until it returns something true
    :param what: names it, in the error
    :returns: what the condition returned
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError('%s: not within %d s' % (what, PATIENCE))
        time.sleep(0.05)


def processes(mark):
    """The ids of the processes that inherited a mark."""
    wanted = ('%s=%s' % (sites.MARK, mark)).encode()
    found = []
    for name in os.listdir('/proc'):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open('/proc/%s/environ' % name, 'rb') as environment:
                if wanted in environment.read().split(b'\0'):
                    found.append(int(name))
        except OSError:
            # It has gone meanwhile, or is a zombie.
            continue
    return found


class Content:
    """What is in a volume of whole MiB: zeros, but for what was put there."""

    def __init__(self, size):
        self.size = size
        self._chunks = {}

    def put(self, offset, data):
        """Put bytes somewhere."""
        assert offset + len(data) <= self.size
        while data:
            index, start = divmod(offset, _CHUNK)
            chunk = self._chunks.setdefault(index, bytearray(_CHUNK))
            part = data[:_CHUNK - start]
            chunk[start:start + len(part)] = part
            data = data[len(part):]
            offset += len(part)

    def scatter(self, seed=0):
        """Put data at both ends, in between and across borders."""
        rand = random.Random(seed)
        for offset, length in ((0, 4096), (units.Mi - 512, 2 * units.Mi),
                               (self.size // 2 + 4096, 65536),
                               (self.size - 3072, 3072)):
            self.put(offset, rand.randbytes(length))

    def erase(self, offset):
        """Lose all that lies behind an offset."""
        for index in list(self._chunks):
            if index * _CHUNK >= offset:
                del self._chunks[index]

    def start(self, length):
        """The first bytes."""
        return bytes(self._chunks[0][:length])

    def grown(self, size):
        """A copy of the content, with zeros behind it."""
        other = Content(size)
        other._chunks = {index: bytearray(chunk)
                         for index, chunk in self._chunks.items()}
        return other

    def overlaid(self, other):
        """A copy of the content, with a smaller one over its start."""
        copy = self.grown(self.size)
        for offset in range(0, other.size, _CHUNK):
            copy._chunks.pop(offset // _CHUNK, None)
        copy._chunks.update(other.grown(other.size)._chunks)
        return copy

    def write(self, stream):
        """Write what was put here."""
        # Direct I/O needs memory that begins at a page.
        buffer = mmap.mmap(-1, _CHUNK)
        for index, chunk in self._chunks.items():
            buffer[:] = bytes(chunk)
            stream.seek(index * _CHUNK)
            stream.write(buffer)
        stream.flush()

    def difference(self, stream):
        """Compare every byte, and the size; None when all is the same."""
        size = stream.seek(0, os.SEEK_END)
        if size != self.size:
            return 'the size is %d and should be %d' % (size, self.size)
        stream.seek(0)
        buffer = mmap.mmap(-1, _CHUNK)
        for offset in range(0, size, _CHUNK):
            length = stream.readinto(buffer)
            expected = self._chunks.get(offset // _CHUNK, _ZEROS)
            if buffer[:length] != expected:
                return 'there is a difference in the MiB at %d' % offset
        return None


class ImageService:
    """Keeps images in files, with the methods of Glance that drivers use."""

    def __init__(self, directory):
        self.directory = directory
        self.temp_images = None
        self.images = {}

    def add(self, disk_format, container_format='bare'):
        """Make the metadata of an image; its file has yet to be written."""
        image_id = str(uuid.uuid4())
        self.images[image_id] = {
            'id': image_id, 'name': 'image', 'disk_format': disk_format,
            'container_format': container_format, 'properties': {},
            'size': 0, 'status': 'active'}
        return self.images[image_id]

    def path(self, image):
        return os.path.join(self.directory, image['id'])

    def show(self, context, image_id):
        return self.images[image_id]

    def download(self, context, image_id, data):
        with open(os.path.join(self.directory, image_id), 'rb') as stream:
            shutil.copyfileobj(stream, data, _CHUNK)

    def update(self, context, image_id, image_meta, data=None, **kwargs):
        with open(os.path.join(self.directory, image_id), 'wb') as stream:
            while chunk := data.read(_CHUNK):
                if chunk == _ZEROS[:len(chunk)]:
                    stream.seek(len(chunk), os.SEEK_CUR)
                else:
                    stream.write(chunk)
            stream.truncate()


class FunctionalTestCase(test.TestCase):
    """One site, and a driver on it that has been started.

    :cvar FAULTS: what the share must be able to suffer
    """

    MOCK_TOOZ = False
    FAULTS = ()

    def setUp(self):
        super().setUp()
        self.context = context.get_admin_context()
        self.mark = str(uuid.uuid4())
        os.environ[sites.MARK] = self.mark
        self.addCleanup(os.environ.pop, sites.MARK)
        self.sites = []
        self.drivers = []
        # What the test breaks on purpose, as cinder-lustre-check calls it.
        self.broken = set()
        self.directory = os.path.join(all_sites().run.directory, self.mark)
        os.mkdir(self.directory)
        self.addCleanup(sites.remove_tree, self.directory)
        self.log = self.useFixture(fixtures.FakeLogger(
            name='cinder_lustre', nuke_handlers=False))
        # Root needs no helper.
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)
        self.images = ImageService(self.make_directory('images'))
        self.addCleanup(self._check_temporaries)
        self.addCleanup(self._check_processes)
        self.site = self.make_site(*self.FAULTS)
        brick.register(self.site.filesystem.fstypes)
        self.prepare()

    def prepare(self):
        """Start what each test of the class needs."""
        self.driver = self.make_driver(self.site.share)

    # Shares

    def need(self, *faults):
        """Skip the test where the share cannot have a fault."""
        reason = all_sites().why_not(*faults)
        if reason:
            self.skipTest(reason)

    def make_site(self, *faults):
        """Make a share, or skip where it cannot have such faults."""
        self.need(*faults)
        site = all_sites().make(*faults)
        self.sites.append(site)
        # What is registered last happens first.
        self.addCleanup(self._remove_site, site)
        self.addCleanup(self._check_files, site)
        self.addCleanup(self._unmount)
        self.addCleanup(site.recover)
        return site

    def make_directory(self, name):
        """Make a directory that the test takes away."""
        path = os.path.join(self.directory, name)
        os.makedirs(path)
        return path

    def mount(self, share, options='', path=None):
        """Mount a share, beside what the driver mounts.

        :returns: the mount point
        """
        path = path or self.make_directory('mount-%s' % uuid.uuid4())
        words = ['mount', '-t', 'lustre']
        options = ','.join(filter(None, (share.options, options)))
        if options:
            words += ['-o', options]
        sites.command(*words, share.source, path)
        return path

    # Leftovers

    def _delete_volumes(self, driver):
        """Bring the shares back, and delete what volumes there are."""
        for site in self.sites:
            site.recover()
        self.wait_for_workers()
        for snapshot in objects.SnapshotList.get_by_host(self.context,
                                                         driver.host):
            self.delete_snapshot(snapshot, driver)
        for volume in objects.VolumeList.get_all_by_host(self.context,
                                                         driver.host):
            self.delete_volume(volume, driver)

    def _remove_site(self, site):
        self.sites.remove(site)
        site.remove()

    def wait_for_workers(self):
        """Wait until no child of a driver hangs any more."""
        for driver in self.drivers:
            for each in driver._workers.values():
                wait_for(lambda: not each.stuck, 'no child hangs')

    def _check_shares(self):
        """Bring the shares back, and see that all on them fits together."""
        for site in self.sites:
            site.recover()
        self.wait_for_workers()
        for site in self.sites:
            self._check_records(site)

    def _check_records(self, site):
        findings = check.check(site.path)['findings']
        self.assertEqual([], [
            finding for finding in findings if finding['severity'] !=
            check.NOTE and finding['code'] not in self.broken])

    def _check_files(self, site):
        self._check_records(site)
        left = [name for name in site.listing() if name != '.cinder-lustre']
        self.assertEqual([], left, 'files were left on the share')

    def _unmount(self):
        for path in reversed(sites.mounts_below(self.directory)):
            try:
                wait_for(lambda: self._unmount_one(path), '%s is not busy'
                         % path)
            except AssertionError:
                sites.command('umount', '--lazy', path)
                raise

    @staticmethod
    def _unmount_one(path):
        done = subprocess.run(['umount', path], capture_output=True)
        return not done.returncode

    def _check_processes(self):
        for each in gc.get_objects():
            # A weak reference would be asked for its class in vain.
            if type(each) is worker.Worker:
                # Those that wait for the next call, of a driver or not.
                each._idle.clear()
        try:
            wait_for(lambda: not processes(self.mark),
                     'these processes end: %s' % processes(self.mark))
        except AssertionError:
            for pid in processes(self.mark):
                os.kill(pid, signal.SIGKILL)
            raise

    def _check_temporaries(self):
        path = os.path.join(self.directory, 'conversion')
        if os.path.exists(path):
            self.assertEqual([], os.listdir(path))

    # Drivers

    def make_driver(self, *shares, started=True, **options):
        """Make a driver as cinder-volume does, with a configuration file.

        :param started: set it up, too
        :param options: options of the driver
        """
        group = 'lustre%d' % len(self.drivers)
        options = dict({
            'volume_backend_name': 'lustre',
            'lustre_mount_point_base': os.path.join(self.directory, 'mnt'),
            'lustre_shares': shares,
            'lustre_development_fstypes': ','.join(
                self.site.filesystem.fstypes),
        }, **options)
        path = os.path.join(self.directory, 'cinder.conf')
        with open(path, 'a') as stream:
            stream.write('[DEFAULT]\nstate_path = %s\n[%s]\n'
                         % (self.directory, group))
            for name, value in options.items():
                values = value if isinstance(value, tuple) else (value,)
                for each in values:
                    stream.write('%s = %s\n' % (name, each))
        CONF([], project='cinder', default_config_files=[path])
        driver = lustre.LustreDriver(
            configuration=configuration.Configuration(
                volume_driver.volume_opts, config_group=group),
            host='functional@' + group, db=None, is_vol_db_empty=True,
            active_backend_id=None, cluster_name=None)
        self.drivers.append(driver)
        self.addCleanup(self._delete_volumes, driver)
        self.addCleanup(self._check_shares)
        if started:
            driver.do_setup(self.context)
            driver.check_for_setup_error()
            driver.set_initialized()
        return driver

    def directory_of(self, driver, site=None):
        """Where a driver has mounted a site."""
        return (site or self.site).share.mount_point(driver.base)

    # Volumes. Each verb loads its objects anew, with a context of its own, as
    # if they came over the message bus: threads must not share them.

    @staticmethod
    def load(obj):
        """Load a volume or snapshot from the database."""
        return obj.get_by_id(context.get_admin_context(), obj.id)

    def new_volume(self, size=1, driver=None, fmt=None, provisioning=None):
        """Make a volume in the database alone.

        :param fmt: the extra spec lustre:format
        :param provisioning: the extra spec provisioning:type
        """
        ctxt = context.get_admin_context()
        specs = {'lustre:format': fmt, 'provisioning:type': provisioning}
        volume_type = volume_types.create(
            ctxt, str(uuid.uuid4()),
            {name: value for name, value in specs.items() if value})
        return self.load(test_utils.create_volume(
            ctxt, host=(driver or self.driver).host, size=size,
            volume_type_id=volume_type['id']))

    def new_snapshot(self, volume):
        """Make a snapshot in the database alone."""
        return self.load(test_utils.create_snapshot(
            context.get_admin_context(), volume.id))

    @staticmethod
    def update(volume, model):
        """Save what a driver's method returned."""
        volume.update(model)
        volume.save()
        return volume

    def create_volume(self, size=1, driver=None, **specs):
        """Create an empty volume."""
        driver = driver or self.driver
        volume = self.new_volume(size, driver, **specs)
        return self.update(volume, driver.create_volume(volume))

    def delete_volume(self, volume, driver=None):
        """Delete a volume."""
        volume = self.load(volume)
        (driver or self.driver).delete_volume(volume)
        volume.destroy()

    def extend_volume(self, volume, size):
        """Extend a volume."""
        loaded = self.load(volume)
        self.driver.extend_volume(loaded, size)
        loaded.size = volume.size = size
        loaded.save()

    def create_snapshot(self, volume):
        """Make a snapshot of a volume."""
        snapshot = self.new_snapshot(volume)
        self.driver.create_snapshot(snapshot)
        snapshot.status = fields.SnapshotStatus.AVAILABLE
        snapshot.save()
        return snapshot

    def delete_snapshot(self, snapshot, driver=None):
        """Delete a snapshot."""
        snapshot = self.load(snapshot)
        (driver or self.driver).delete_snapshot(snapshot)
        snapshot.destroy()

    def revert(self, volume, snapshot):
        """Give a volume the content of a snapshot."""
        self.driver.revert_to_snapshot(
            context.get_admin_context(), self.load(volume),
            self.load(snapshot))

    def volume_from_snapshot(self, snapshot, size=1, **specs):
        """Create a volume with the content of a snapshot."""
        volume = self.new_volume(size, **specs)
        return self.update(volume, self.driver.create_volume_from_snapshot(
            volume, self.load(snapshot)))

    def clone(self, source, size=1, **specs):
        """Create a volume with the content of another one."""
        volume = self.new_volume(size, **specs)
        return self.update(volume, self.driver.create_cloned_volume(
            volume, self.load(source)))

    def set_attached(self, volume, attached=True):
        """Tell the database that a server has the volume."""
        volume = self.load(volume)
        volume.attach_status = (fields.VolumeAttachStatus.ATTACHED if attached
                                else fields.VolumeAttachStatus.DETACHED)
        volume.save()

    # What is in them

    def connection(self, volume, driver=None):
        """The connection of a volume, as it comes out of the message bus."""
        driver = driver or self.driver
        connector = {'host': 'functional', 'ip': '127.0.0.1'}
        driver.validate_connector(connector)
        return json.loads(json.dumps(
            driver.initialize_connection(self.load(volume), connector)))

    @staticmethod
    def make_connector(conn, **values):
        """Make the os-brick connector of a connection."""
        return volume_utils.brick_get_connector(conn['driver_volume_type'],
                                                conn=conn, **values)

    @contextlib.contextmanager
    def connected(self, volume, driver=None):
        """Attach a volume to this host.

        :returns: its path and format
        """
        driver = driver or self.driver
        conn = self.connection(volume, driver)
        connector = self.make_connector(conn)
        device = connector.connect_volume(conn['data'])
        try:
            yield device['path'], conn['data']['format']
        finally:
            connector.disconnect_volume(conn['data'], device)
            driver.terminate_connection(volume, {'host': 'functional'})
            driver.remove_export(self.context, volume)

    @contextlib.contextmanager
    def attached(self, volume):
        """Attach a volume to this host, as a raw file-like object."""
        with self.connected(volume) as (path, fmt), \
                self.open_device(path, fmt) as stream:
            yield stream

    @staticmethod
    def open_device(path, fmt, read_only=False):
        """Open a volume's file by its format, as a guest sees it."""
        if fmt == 'qcow2':
            return nbd.open_image(path, read_only=read_only)
        stream = open(path, 'rb' if read_only else 'r+b', buffering=0)
        # Where it can be: what counts is what arrives at the share, and holes
        # are read in no time.
        flags = fcntl.fcntl(stream, fcntl.F_GETFL)
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream, fcntl.F_SETFL, flags | os.O_DIRECT)
        return stream

    def write(self, volume, seed=0, over=None):
        """Scatter data in a volume.

        :param seed: which data
        :param over: the Content that it has now, if it is not empty
        :returns: its Content then
        """
        content = (over or Content(0)).grown(volume.size * units.Gi)
        content.scatter(seed)
        with self.attached(volume) as stream:
            content.write(stream)
        return content

    def assert_content(self, content, volume, driver=None):
        """Compare every byte of a volume."""
        with self.connected(volume, driver) as (path, fmt):
            self.assert_image(content, path, fmt)

    def assert_image(self, content, path, fmt):
        """Compare every byte of an image, as QEMU sees it."""
        raw = path
        if fmt != 'raw':
            raw = os.path.join(self.directory, 'raw-%s' % uuid.uuid4())
            self.addCleanup(os.unlink, raw)
            sites.command('qemu-img', 'convert', '-f', fmt, '-O', 'raw', path,
                          raw)
        with self.open_device(raw, 'raw', read_only=True) as stream:
            self.assertIsNone(content.difference(stream))

    def allocated(self, volume):
        """The bytes that a volume's files take on the share."""
        prefix = 'volume-' + volume.name_id
        paths = [os.path.join(self.site.path, name)
                 for name in self.site.listing() if name.startswith(prefix)]
        for path in paths:
            # Lustre counts blocks when they have been written.
            with open(path, 'rb') as stream:
                os.fsync(stream.fileno())
        return sum(os.stat(path).st_blocks * 512 for path in paths)
