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

"""Attaching: the connection, our os-brick connector, and what they refuse."""

import json
import os

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre import exception as lustre_exception
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites

FORMATS = ('raw', 'qcow2')


@ddt.ddt
class AttachTestCase(base.FunctionalTestCase):

    @ddt.idata(FORMATS)
    def test_connection(self, fmt):
        volume = self.create_volume(fmt=fmt)
        self.assertEqual(
            {'driver_volume_type': 'lustre',
             'data': {'export': self.site.share.source,
                      'name': 'volume-' + volume.id,
                      'format': fmt,
                      'options': ('-o ' + self.site.share.options
                                  if self.site.share.options else None),
                      'discard': True},
             'mount_point_base': os.path.join(self.directory, 'mnt')},
            self.connection(volume))

    def test_connection_of_stock_nova(self):
        self.driver = self.make_driver(self.site.share,
                                       lustre_connection_type='nfs')
        volume = self.create_volume()
        conn = self.connection(volume)
        self.assertEqual('nfs', conn['driver_volume_type'])
        self.assertEqual(self.site.share.identity, conn['data']['export'])

    @ddt.idata(FORMATS)
    def test_raw_disk(self, fmt):
        """What cinder-backup reads and writes, whatever the format."""
        volume = self.create_volume(fmt=fmt)
        content = base.Content(units.Gi)
        content.scatter()
        conn = self.connection(volume)
        connector = self.make_connector(conn, expect_raw_disk=True)
        device = connector.connect_volume(conn['data'])
        self.assertTrue(connector.check_valid_device(device['path']))
        self.assertIsNone(base.Content(units.Gi).difference(device['path']))
        content.write(device['path'])
        connector.disconnect_volume(conn['data'], device)
        device = connector.connect_volume(conn['data'])
        self.assertIsNone(content.difference(device['path']))
        connector.disconnect_volume(conn['data'], device)
        self.assert_content(content, volume)

    @ddt.idata(FORMATS)
    def test_read_only_disk(self, fmt):
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        conn = self.connection(volume)
        conn['data']['access_mode'] = 'ro'
        connector = self.make_connector(conn, expect_raw_disk=True)
        device = connector.connect_volume(conn['data'])
        self.addCleanup(connector.disconnect_volume, conn['data'], device)
        self.assertRaises(OSError, device['path'].write, b'data')
        self.assertEqual(content.start(4096), device['path'].read(4096))

    @ddt.idata(FORMATS)
    def test_another_host(self, fmt):
        """A host where the share is not mounted yet."""
        volume = self.create_volume(fmt=fmt)
        self.create_snapshot(volume)
        content = self.write(volume)
        conn = self.connection(volume)
        conn['mount_point_base'] = self.make_directory('other')
        connector = self.make_connector(conn)
        paths = connector.get_volume_paths(conn['data'])
        device = connector.connect_volume(conn['data'])
        self.assertEqual([device['path']], paths)
        directory = self.site.share.mount_point(conn['mount_point_base'])
        self.assertEqual(directory, os.path.dirname(device['path']))
        self.assert_image(content, device['path'], conn['data']['format'])
        connector.disconnect_volume(conn['data'], device)
        # Other volumes may be in use on the host.
        self.assertTrue(os.path.ismount(directory))

    @ddt.idata(FORMATS)
    def test_connector_sees_an_extension(self, fmt):
        volume = self.create_volume(fmt=fmt)
        conn = self.connection(volume)
        connector = self.make_connector(conn)
        self.assertEqual(units.Gi, connector.extend_volume(conn['data']))
        self.extend_volume(volume, 2)
        self.assertEqual(2 * units.Gi, connector.extend_volume(conn['data']))

    def test_extend_while_attached(self):
        volume = self.create_volume()
        content = self.write(volume).grown(2 * units.Gi)
        self.set_attached(volume)
        with self.attached(volume) as stream:
            self.extend_volume(volume, 2)
            self.assertIsNone(content.difference(stream))
            content.scatter(1)
            content.write(stream)
        self.assert_content(content, volume)

    def test_qcow2_volume_is_not_extended_while_attached(self):
        volume = self.create_volume(fmt='qcow2')
        self.set_attached(volume)
        self.assertRaises(exception.InvalidVolume, self.extend_volume,
                          volume, 2)
        conn = self.connection(volume)
        self.assertEqual(units.Gi, self.make_connector(conn).extend_volume(
            conn['data']))

    def test_valid_devices(self):
        volume = self.create_volume()
        conn = self.connection(volume)
        connector = self.make_connector(conn)
        path = connector.connect_volume(conn['data'])['path']
        self.assertTrue(connector.check_valid_device(path))
        self.assertFalse(connector.check_valid_device(path + 'x'))

    @ddt.data('../volume', '/etc/passwd', '.tmp-x', '')
    def test_name_that_is_no_file_of_the_share(self, name):
        volume = self.create_volume()
        conn = self.connection(volume)
        conn['data']['name'] = name
        self.assertRaises(lustre_exception.LustreException,
                          self.make_connector(conn).connect_volume,
                          conn['data'])

    @ddt.idata(FORMATS)
    def test_file_that_is_too_large(self, fmt):
        self.broken.add('size-larger')
        volume = self.create_volume(fmt=fmt)
        path = os.path.join(self.site.path, 'volume-' + volume.id)
        sites.command('qemu-img', 'resize', '-f', fmt, path, '2G')
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.connection, volume)

    @ddt.idata(FORMATS)
    def test_file_that_is_too_small(self, fmt):
        """As an extension that failed half-way, or a short restore, leaves."""
        volume = self.create_volume(fmt=fmt)
        content = self.write(volume)
        path = os.path.join(self.site.path, 'volume-' + volume.id)
        sites.command('qemu-img', 'resize', '-f', fmt, '--shrink', path,
                      '900M')
        with self.connected(volume) as (path, fmt):
            self.assertEqual(
                units.Gi, json.loads(sites.command(
                    'qemu-img', 'info', '--output=json', '-f', fmt, path)
                )['virtual-size'])
        content.erase(900 * units.Mi)
        self.assert_content(content, volume)

    def test_volume_that_cinder_knows_to_be_larger(self):
        volume = self.create_volume()
        content = self.write(volume)
        volume.size = 2
        volume.save()
        self.assert_content(content.grown(2 * units.Gi), volume)

    def test_ensure_export(self):
        volume = self.create_volume()
        content = self.write(volume)
        directory = self.directory_of(self.driver)
        # As after a reboot.
        sites.command('umount', directory)
        self.driver.ensure_export(self.context, self.load(volume))
        self.assertTrue(os.path.ismount(directory))
        self.assertIsNone(self.driver.create_export(self.context, volume,
                                                    {}))
        self.assert_content(content, volume)
