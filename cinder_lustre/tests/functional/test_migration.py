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


"""Host-assisted migration: Cinder's own way, to and from other backends.

The other backends are a driver of block devices, and Cinder's own NFS driver
on a directory that is mounted where it would mount its share.
"""

import os

from cinder import objects
from cinder.tests.unit import utils as test_utils
from cinder.volume import configuration
from cinder.volume import driver as volume_driver
from cinder.volume.drivers import nfs
import ddt
import fixtures
from oslo_utils import units

from cinder_lustre import brick
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import managers
from cinder_lustre.tests.functional import site as sites

NFS_SHARE = 'nfs.example.org:/volumes'
# Where a new block device has old data: 4 MiB at each of these.
OLD_DATA = (0, units.Gi // 4, units.Gi - 4 * units.Mi)
# What a thin volume with a little data may take.
LITTLE = 16 * units.Mi


class BlockDriver(volume_driver.VolumeDriver):
    """Block devices of this host, with old data on them, as those of LVM."""

    def __init__(self, directory, **kwargs):
        super().__init__(**kwargs)
        self._directory = directory
        self._devices = {}
        self.set_initialized()

    def create_volume(self, volume):
        path = os.path.join(self._directory, volume.name)
        with open(path, 'wb') as stream:
            stream.truncate(volume.size * units.Gi)
            for offset in OLD_DATA:
                stream.seek(offset)
                stream.write(b'\xff' * 4 * units.Mi)
        self._devices[volume.name] = sites.command(
            'losetup', '--find', '--show', path).strip()

    def delete_volume(self, volume):
        sites.command('losetup', '--detach', self._devices.pop(volume.name))
        os.unlink(os.path.join(self._directory, volume.name))

    def path(self, volume):
        return self._devices[volume.name]

    def initialize_connection(self, volume, connector):
        return {'driver_volume_type': 'local',
                'data': {'device_path': self.path(volume)}}

    def _nothing(self, *args, **kwargs):
        """A device is there for as long as its volume."""

    create_export = ensure_export = remove_export = _nothing
    terminate_connection = _nothing

    def _update_volume_stats(self):
        self._stats = {'sparse_copy_volume': False}


class NfsDriver(nfs.NfsDriver):

    def path(self, volume):
        return self.local_path(volume)


@ddt.ddt
class MigrationTestCase(base.FunctionalTestCase):

    def make_other(self, kind):
        """Make a driver of the other kind."""
        other = getattr(self, '_make_' + kind)()
        self.addCleanup(self._delete_volumes, other)
        return other

    def _make_block(self):
        return BlockDriver(
            self.make_directory('devices'), host='functional@block',
            configuration=configuration.Configuration(
                volume_driver.volume_opts, config_group='block'))

    def _make_nfs(self):
        shares = os.path.join(self.directory, 'shares')
        with open(shares, 'w') as stream:
            stream.write(NFS_SHARE)
        # All that the driver wants to know is that it is there.
        commands = self.make_directory('bin')
        os.symlink('/bin/true', os.path.join(commands, 'mount.nfs'))
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (commands, os.environ['PATH'])))
        config = configuration.Configuration(nfs.nfs_opts, config_group='nfs')
        self.flags(group='nfs', nfs_shares_config=shares,
                   nfs_mount_point_base=os.path.join(self.directory, 'nfs'))
        driver = NfsDriver(configuration=config, host='functional@nfs',
                           is_vol_db_empty=True)
        path = driver._get_mount_point_for_share(NFS_SHARE)
        os.makedirs(path)
        sites.command('mount', '--bind', self.make_directory('export'), path)
        driver.do_setup(self.context)
        driver.check_for_setup_error()
        driver.set_initialized()
        return driver

    @staticmethod
    def content_of_device():
        """What is written to another backend's volume, over its old data."""
        content = base.Content(units.Gi)
        for offset in OLD_DATA:
            content.put(offset, bytes(4 * units.Mi))
        content.scatter()
        return content

    def migrate(self, volume, source, target):
        """Let Cinder move a volume to another backend.

        :param source: the driver that has the volume
        :param target: the driver to move it to
        :returns: the volume
        """
        services = self.useFixture(managers.Managers(
            self.site.filesystem.fstypes))
        manager = services.add_volume_manager(source)
        services.add_volume_manager(target)
        test_utils.create_service(self.context, {
            'host': target.host, 'binary': 'cinder-volume',
            'topic': 'cinder-volume'})
        volume = self.load(volume)
        volume.previous_status = volume.status = 'available'
        volume.save()
        manager.migrate_volume(self.context, volume, {'host': target.host},
                               force_host_copy=True)
        # From here on, this process copies no contents.
        brick.register(self.site.filesystem.fstypes)
        volume = self.load(volume)
        self.assertEqual(('success', target.host, 'available'),
                         (volume.migration_status, volume.host,
                          volume.status))
        self.assertEqual([volume.id], [
            each.id for each in objects.VolumeList.get_all(self.context)])
        return volume

    @ddt.data(('raw', 'block'), ('qcow2', 'block'), ('raw', 'nfs'),
              ('qcow2', 'nfs'))
    @ddt.unpack
    def test_out(self, fmt, kind):
        other = self.make_other(kind)
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        volume = self.migrate(volume, self.driver, other)
        self.assert_image(content, other.path(volume), 'raw')
        self.assertEqual([], [name for name in self.site.listing()
                              if name.startswith('volume-')])

    @ddt.data(('raw', 'block'), ('qcow2', 'block'), ('raw', 'nfs'),
              ('qcow2', 'nfs'))
    @ddt.unpack
    def test_in(self, fmt, kind):
        other = self.make_other(kind)
        volume = self.new_volume(1, other, fmt=fmt)
        self.update(volume, other.create_volume(volume) or {})
        content = self.content_of_device()
        with self.open_device(other.path(volume), 'raw') as stream:
            content.write(stream)
        volume = self.migrate(volume, other, self.driver)
        self.assertEqual(fmt, volume.admin_metadata['format'])
        self.assert_content(content, volume)
        self.assertLess(self.allocated(volume), LITTLE)

    @ddt.data('raw', 'qcow2')
    def test_thick_volume_keeps_its_space(self, fmt):
        other = self.make_other('block')
        volume = self.new_volume(1, other, fmt=fmt, provisioning='thick')
        self.update(volume, other.create_volume(volume) or {})
        content = self.content_of_device()
        with self.open_device(other.path(volume), 'raw') as stream:
            content.write(stream)
        volume = self.migrate(volume, other, self.driver)
        self.assert_content(content, volume)
        self.assertGreaterEqual(self.allocated(volume), units.Gi)
