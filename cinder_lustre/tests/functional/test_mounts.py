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

"""Mounts: which ones the driver accepts, makes, and leaves alone."""

import dataclasses
import os
import threading

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre.brick import mount
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites


class MountsTestCase(base.FunctionalTestCase):
    """The driver of these tests has not been set up yet."""

    def prepare(self):
        self.driver = self.make_driver(self.site.share, started=False)
        self.path = self.directory_of(self.driver)

    def make_mount_point(self):
        os.makedirs(self.path)
        return self.path

    def set_up(self, driver=None):
        driver = driver or self.driver
        driver.do_setup(self.context)
        driver.check_for_setup_error()
        driver.set_initialized()

    def mount_tmpfs(self, path):
        sites.command('mount', '-t', 'tmpfs', 'tmpfs', path)

    def unmount(self, path):
        sites.command('umount', path)

    def assert_down(self, *words):
        """Nothing works on the only share, and the log says why."""
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('down', stats['backend_state'])
        self.assertEqual(0, stats['free_capacity_gb'])
        self.assertRaises(exception.RemoteFSException, self.create_volume)
        for word in words:
            self.assertIn(word, self.log.output)

    def assert_up(self):
        """The only share serves."""
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('up', stats['backend_state'])
        self.assertGreater(stats['free_capacity_gb'], 0)
        volume = self.create_volume()
        self.assertEqual(os.path.join(self.path, 'volume-' + volume.id),
                         self.driver.local_path(volume))
        self.assertIn('volume-' + volume.id, self.site.listing())
        self.delete_volume(volume)


@ddt.ddt
class MountChecksTestCase(MountsTestCase):

    def test_share_is_mounted(self):
        self.set_up()
        self.assertEqual(1, len(mount.mounts_on(self.path)))
        self.assert_up()

    def test_share_that_was_mounted_before(self):
        self.mount(self.site.share, path=self.make_mount_point())
        self.set_up()
        self.assertEqual(1, len(mount.mounts_on(self.path)))
        self.assert_up()

    def test_options(self):
        share = dataclasses.replace(self.site.share, options='noatime')
        self.driver = self.make_driver(share,
                                       lustre_mount_options='nosuid,nodev')
        self.assert_up()
        options = mount.mounts_on(self.path)[-1].options
        self.assertLessEqual({'noatime', 'nosuid', 'nodev'}, set(options))

    def test_another_type(self):
        self.mount_tmpfs(self.make_mount_point())
        self.set_up()
        self.assert_down('type tmpfs', 'another file system')
        self.assertEqual([], os.listdir(self.path))
        self.unmount(self.path)
        self.assert_up()

    def test_another_share(self):
        other = self.make_site()
        self.mount(other.share, path=self.make_mount_point())
        self.set_up()
        self.assert_down(other.share.source, 'another file system')
        self.assertEqual([], other.listing())
        self.unmount(self.path)
        self.assert_up()

    def test_share_above_the_configured_one(self):
        self.mount(self.site.filesystem.share, path=self.make_mount_point())
        self.set_up()
        self.assert_down('another file system')
        self.unmount(self.path)
        self.assert_up()

    @ddt.data('tmpfs', 'share')
    def test_covered(self, cover):
        self.set_up()
        volume = self.create_volume()
        content = self.write(volume)
        if cover == 'share':
            self.mount(self.make_site().share, path=self.path)
        else:
            self.mount_tmpfs(self.path)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.connection, volume)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.driver.delete_volume, volume)
        self.assert_down('hidden by')
        self.assertEqual([], os.listdir(self.path))
        self.unmount(self.path)
        self.assert_content(content, volume)
        self.assert_up()

    def test_read_only(self):
        self.mount(self.site.share, 'ro', path=self.make_mount_point())
        self.set_up()
        self.assert_down('read-only')
        sites.command('mount', '-o', 'remount,rw', self.path)
        self.assert_up()

    def test_read_only_meanwhile(self):
        self.set_up()
        volume = self.create_volume()
        sites.command('mount', '-o', 'remount,ro', self.path)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.connection, volume)
        self.assert_down('read-only')
        sites.command('mount', '-o', 'remount,rw', self.path)
        self.assert_up()

    @ddt.data('noflock', 'localflock')
    def test_locks_that_do_not_serve(self, option):
        self.need(option)
        self.mount(self.site.share, option, path=self.make_mount_point())
        self.set_up()
        self.assert_down('mounted with ' + option)
        self.assertEqual([], self.site.listing())
        self.unmount(self.path)
        self.assert_up()

    @ddt.data('noflock', 'localflock', 'ro')
    def test_options_that_do_not_serve(self, option):
        share = dataclasses.replace(self.site.share, options=option)
        driver = self.make_driver(share, started=False)
        self.assertRaises(exception.VolumeBackendAPIException,
                          driver.do_setup, self.context)
        self.assertIn('mount option "%s"' % option, self.log.output)

    def test_bare_directory(self):
        """What fails to mount must not be written to."""
        os.makedirs(self.path)
        missing = dataclasses.replace(self.site.share, subdir='missing')
        self.driver = self.make_driver(missing)
        self.path = missing.mount_point(self.driver.base)
        self.assert_down('no directory "/missing"')
        self.assertEqual([], os.listdir(self.path))

    def test_missing_subdirectory(self):
        name = self.site.share.subdir + '/volumes'
        share = dataclasses.replace(self.site.share, subdir=name)
        self.driver = self.make_driver(share)
        self.path = share.mount_point(self.driver.base)
        self.assert_down('no directory "/%s"' % name)
        os.mkdir(os.path.join(self.site.path, 'volumes'))
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('up', stats['backend_state'])
        volume = self.create_volume()
        self.assertIn('volumes/volume-' + volume.id, self.site.listing())
        self.delete_volume(volume)
        self.unmount(self.path)
        for name in '.cinder-lustre', '':
            os.rmdir(os.path.join(self.site.path, 'volumes', name))

    def test_subdirectory_that_is_a_file(self):
        name = os.path.join(self.site.path, 'file')
        with open(name, 'w'):
            pass
        share = dataclasses.replace(
            self.site.share, subdir=self.site.share.subdir + '/file')
        self.driver = self.make_driver(share)
        self.assert_down('is not a directory')
        os.unlink(name)

    def test_unknown_fsname(self):
        share = dataclasses.replace(self.site.share, fsname='unknown')
        self.driver = self.make_driver(share)
        self.path = share.mount_point(self.driver.base)
        self.assert_down('no file system "unknown"')
        self.assertEqual([], os.listdir(self.path))

    def test_one_bad_share(self):
        missing = dataclasses.replace(self.site.share, subdir='missing')
        self.driver = self.make_driver(missing, self.site.share)
        self.assertIn('no directory "/missing"', self.log.output)
        self.assert_up()
        found = os.statvfs(self.site.path)
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(found.f_blocks * found.f_frsize,
                         stats['total_capacity_gb'] * units.Gi)

    def test_two_file_systems_of_one_name(self):
        share = dataclasses.replace(self.site.share,
                                    nids=(('192.0.2.1@tcp',),), subdir='')
        driver = self.make_driver(self.site.share, share, started=False)
        self.assertRaises(exception.VolumeBackendAPIException,
                          driver.do_setup, self.context)
        self.assertIn('two file systems of one name', self.log.output)

    def test_namesake_that_is_mounted(self):
        """A file system of the same name, mounted from other servers."""
        if len(self.site.share.nids) < 2:
            self.skipTest('the share of this run names one server alone')
        one, other = [dataclasses.replace(self.site.share, nids=(node,))
                      for node in self.site.share.nids[:2]]
        # The harness's own mount names both.
        path = self.mount(other)
        self.driver = self.make_driver(one)
        self.assert_down('of the same name')
        self.unmount(path)
        self.assert_up()

    def test_other_nids(self):
        """The MGS has moved; what is mounted stays as it is."""
        if len(self.site.share.nids) < 2:
            self.skipTest('the share of this run names one server alone')
        self.set_up()
        volume = self.create_volume()
        content = self.write(volume)
        before = mount.mounts_on(self.path)
        share = dataclasses.replace(self.site.share, nids=tuple(
            reversed(self.site.share.nids)))
        self.driver = self.make_driver(share)
        self.assert_content(content, volume)
        self.assertEqual(before, mount.mounts_on(self.path))
        self.unmount(self.path)
        self.assert_content(content, volume)
        self.assertEqual(share.source,
                         mount.mounts_on(self.path)[-1].source)

    def test_provider_location_with_nids(self):
        self.set_up()
        volume = self.create_volume()
        content = self.write(volume)
        volume.provider_location = self.site.share.source
        volume.save()
        self.assert_content(content, volume)
        self.assertEqual(1, len(mount.mounts_on(self.path)))

    def test_link_in_the_mount_point_base(self):
        real = self.make_directory('real')
        link = os.path.join(self.directory, 'link')
        os.symlink(real, link)
        self.driver = self.make_driver(self.site.share,
                                       lustre_mount_point_base=link)
        self.path = self.site.share.mount_point(real)
        self.assert_up()
        self.make_driver(self.site.share, lustre_mount_point_base=link)
        self.assertEqual(1, len(mount.mounts_on(self.path)))

    def test_volumes_in_use(self):
        """Another start changes nothing for those who have files open."""
        self.set_up()
        volume = self.create_volume(fmt='qcow2')
        before = mount.mounts_on(self.path)
        with self.attached(volume) as stream:
            content = base.Content(units.Gi)
            content.scatter()
            content.write(stream)
            driver = self.make_driver(self.site.share)
            driver.get_volume_stats(refresh=True)
            driver.ensure_export(self.context, volume)
            self.assertEqual(before, mount.mounts_on(self.path))
            content.scatter(1)
            content.write(stream)
        self.assert_content(content, volume)

    def test_many_at_once(self):
        """Services that start together mount a share once."""
        drivers = [self.make_driver(self.site.share, started=False)
                   for _number in range(4)]
        threads = [threading.Thread(target=self.set_up, args=(driver,))
                   for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(1, len(mount.mounts_on(self.path)))
        for self.driver in drivers:
            self.assert_up()

    def test_ensure_export_without_the_share(self):
        self.set_up()
        volume = self.create_volume()
        self.unmount(self.path)
        self.mount_tmpfs(self.path)
        # The start of the service goes on.
        self.driver.ensure_export(self.context, self.load(volume))
        self.assertIn('cannot be used now', self.log.output)
        self.unmount(self.path)
        self.driver.ensure_export(self.context, volume)
        self.assert_up()


class SharesFileTestCase(MountsTestCase):

    def prepare(self):
        self.file = os.path.join(self.directory, 'shares')

    def write_file(self, *lines):
        with open(self.file, 'w') as stream:
            stream.writelines('%s\n' % line for line in lines)

    def make_driver_of_file(self, *lines):
        self.write_file(*lines)
        self.driver = self.make_driver(lustre_shares_config=self.file,
                                       started=False)
        self.path = self.directory_of(self.driver)

    def test_file(self):
        self.make_driver_of_file('# our shares', '', self.site.share)
        self.set_up()
        self.assert_up()

    def test_wrong_line(self):
        self.make_driver_of_file('nonsense', self.site.share)
        self.set_up()
        self.assertIn('Line 1 of %s' % self.file, self.log.output)
        self.assert_up()

    def test_empty_file(self):
        self.make_driver_of_file('# nothing')
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.do_setup, self.context)
        self.assertIn(self.file, str(error))
        self.write_file(self.site.share)
        self.set_up()
        self.assert_up()

    def test_missing_file(self):
        self.make_driver_of_file()
        os.unlink(self.file)
        error = self.assertRaises(exception.VolumeBackendAPIException,
                                  self.driver.do_setup, self.context)
        self.assertIn(self.file, str(error))

    def test_file_that_changes(self):
        self.make_driver_of_file(self.site.share)
        self.set_up()
        one = self.driver.get_volume_stats(refresh=True)
        self.write_file()
        self.assert_up()
        self.assertIn('Going on with the shares known', self.log.output)
        other = self.make_site()
        self.write_file(self.site.share, other.share)
        both = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(2 * one['total_capacity_gb'],
                         both['total_capacity_gb'])


class UnreachableTestCase(base.FunctionalTestCase):

    FAULTS = ('unreachable-mgs',)

    def prepare(self):
        """The driver of each test is made by itself."""

    def test_unreachable_mgs(self):
        good = self.make_site()
        # Not even this could be mounted in a second on a loaded machine.
        self.make_driver(good.share)
        self.site.filesystem.cut_off_mgs()
        self.driver = self.make_driver(
            self.site.share, good.share, lustre_mount_timeout=1)
        self.assertIn('takes longer than 1 seconds', self.log.output)
        # The other share serves, and no second mount is tried meanwhile.
        volume = self.create_volume()
        self.assertEqual(good.share.identity, volume.provider_location)
        self.driver.get_volume_stats(refresh=True)
        self.assertIn('An earlier attempt to mount it still runs',
                      self.log.output)
        # It comes back by itself.
        self.site.recover()
        base.wait_for(self.both_serve, 'the share is mounted')
        self.assertEqual(1, len(mount.mounts_on(
            self.directory_of(self.driver))))

    def both_serve(self):
        self.driver.get_volume_stats(refresh=True)
        return len(self.driver._mounted_shares) == 2
