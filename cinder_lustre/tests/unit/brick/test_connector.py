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

import errno
import io
import os
import stat
from unittest import mock

import ddt
import fixtures
from os_brick.initiator import connector as brick_connector
from oslo_utils import units

from cinder_lustre import brick
from cinder_lustre.brick import client
from cinder_lustre.brick import connector
from cinder_lustre.brick import nbd
from cinder_lustre import exception
from cinder_lustre import qemu_img
from cinder_lustre import share
from cinder_lustre.tests.unit.brick import base

EXPORT = '10.0.2.15@tcp:10.0.2.16@tcp:/lustre/cinder'
SIZE = 2 * units.Mi
NAME = 'volume-1'


class ConnectorTestCase(base.ImageTestCase):
    """A share's directory that counts as mounted."""

    def setUp(self):
        super().setUp()
        self.base = os.path.realpath(self.directory)
        self.directory = share.Share.parse(EXPORT).mount_point(self.base)
        os.mkdir(self.directory)
        self.mount = self.useFixture(fixtures.MockPatchObject(
            client.LustreRemoteFsClient, 'mount')).mock
        self.useFixture(fixtures.MockPatchObject(
            connector.LustreConnector, '_workers', {}))
        brick.register()

    def connector(self, **kwargs):
        kwargs.setdefault('conn', {'mount_point_base': self.base})
        return brick_connector.InitiatorConnector.factory(
            'lustre', 'sudo', use_multipath=False, device_scan_attempts=3,
            **kwargs)

    def properties(self, fmt, **kwargs):
        return {'export': EXPORT, 'name': NAME, 'format': fmt,
                'options': None, 'access_mode': 'rw', **kwargs}

    def open(self, fmt, **kwargs):
        """Connect a volume as a raw disk."""
        conn = self.connector(expect_raw_disk=True)
        properties = self.properties(fmt, **kwargs)
        device = conn.connect_volume(properties)
        self.addCleanup(conn.disconnect_volume, properties, device)
        return device['path']


@ddt.ddt
class PathTestCase(ConnectorTestCase):

    def test_factory(self):
        self.assertIsInstance(self.connector(), connector.LustreConnector)
        self.assertIsInstance(
            self.connector(conn=None, lustre_mount_point_base='/mnt'),
            connector.LustreConnector)

    @ddt.data('raw', 'qcow2')
    def test_connect(self, fmt):
        conn = self.connector()
        properties = self.properties(fmt)
        device = conn.connect_volume(properties)
        self.assertEqual({'path': self.path(NAME)}, device)
        self.mount.assert_called_once_with(EXPORT, [])
        conn.disconnect_volume(properties, device)

    def test_identity_names_the_same_file(self):
        device = self.connector().connect_volume(self.properties(
            'raw', export='lustre:/lustre/cinder'))
        self.assertEqual({'path': self.path(NAME)}, device)

    def test_mount_options(self):
        self.connector().connect_volume(self.properties(
            'raw', options='-o user_xattr'))
        self.mount.assert_called_once_with(EXPORT, ['-o', 'user_xattr'])

    @ddt.data(True, False)
    def test_share_that_cannot_be_used(self, expect_raw_disk):
        self.create(NAME, 'raw', SIZE)
        self.mount.side_effect = exception.UnusableMount(
            share='s', path='p', reason='r', cure='c')
        conn = self.connector(expect_raw_disk=expect_raw_disk)
        self.assertRaises(exception.UnusableMount, conn.connect_volume,
                          self.properties('raw'))

    @ddt.data('', '.', '..', '../x', 'a/b', '/etc/passwd', '.cinder-lustre')
    def test_names_that_are_no_volume(self, name):
        conn = self.connector()
        for verb in (conn.connect_volume, conn.get_volume_paths,
                     conn.extend_volume):
            error = self.assertRaises(exception.LustreException, verb,
                                      self.properties('raw', name=name))
            self.assertIn('"%s"' % name, str(error))
        self.mount.assert_not_called()

    def test_paths(self):
        conn = self.connector()
        self.assertEqual([self.path(NAME)],
                         conn.get_volume_paths(self.properties('raw')))
        self.assertEqual(self.base, conn.get_search_path())
        self.assertEqual([], conn.get_all_available_volumes())
        self.assertEqual(
            [], conn.get_all_available_volumes(self.properties('raw')))

    def test_properties_of_this_host(self):
        self.assertEqual(
            {}, connector.LustreConnector.get_connector_properties('sudo'))

    def test_settings(self):
        brick.register(development_fstypes=['ext4'], mount_options='flock,x',
                       mount_timeout=5)
        self.addCleanup(brick.register)
        with mock.patch.object(client, 'LustreRemoteFsClient') as fake:
            self.connector()
        fake.assert_called_once_with(
            'lustre', 'sudo', execute=None, lustre_mount_point_base=self.base,
            lustre_mount_options='flock,x', lustre_mount_timeout=5,
            development_fstypes=('ext4',))

    def test_execute_reaches_the_client(self):
        conn = self.connector()
        execute = mock.Mock(return_value=('', ''))
        conn.set_execute(execute)
        conn._remotefsclient._execute('true')
        execute.assert_called_once_with('true')


@ddt.ddt
class RawDiskTestCase(ConnectorTestCase):

    @ddt.data('raw', 'qcow2')
    def test_write_and_read(self, fmt):
        path = self.create(NAME, fmt, SIZE)
        stream = self.open(fmt)
        self.assertNotIsInstance(stream, str)
        stream.seek(4096)
        stream.write(base.noise(units.Mi))
        stream.flush()
        stream.seek(0)
        contents = stream.read()
        self.assertEqual(bytes(4096) + base.noise(units.Mi) +
                         bytes(SIZE - units.Mi - 4096), contents)
        stream.close()
        self.assertEqual(contents, self.contents(path, fmt))

    def test_a_process_that_copies_contents(self):
        """What Cinder copies in a migration is the disk, not its file."""
        self.addCleanup(brick.register)
        brick.register(copies_contents=True)
        path = self.create(NAME, 'qcow2', SIZE)
        conn = self.connector()
        properties = self.properties('qcow2')
        device = conn.connect_volume(properties)
        self.addCleanup(conn.disconnect_volume, properties, device)
        device['path'].write(base.noise(units.Mi))
        conn.disconnect_volume(properties, device)
        self.assertEqual(base.noise(units.Mi) + bytes(SIZE - units.Mi),
                         self.contents(path, 'qcow2'))
        self.assertEqual(
            path.replace(NAME, 'raw'), conn.connect_volume(
                self.properties('raw', name='raw'))['path'])

    @ddt.data(False, True)
    def test_copied_contents_of_a_thick_volume(self, encrypted):
        """A copy to its path would take its space away."""
        self.addCleanup(brick.register)
        brick.register(copies_contents=True)
        path = self.create(NAME, 'raw', SIZE)
        conn = self.connector()
        properties = self.properties('raw', discard=False,
                                     encrypted=encrypted)
        device = conn.connect_volume(properties)
        self.assertEqual('rb+', device['path'].mode)
        conn.disconnect_volume(properties, device)
        self.assertEqual(path, conn.connect_volume(
            self.properties('raw', discard=True))['path'])

    @ddt.data(True, False, None)
    def test_space_of_what_is_overwritten_with_zeros(self, discard):
        self.create(NAME, 'qcow2', SIZE)
        with mock.patch.object(nbd, 'open_image') as open_image:
            self.open('qcow2', discard=discard)
        self.assertIs(discard is not False,
                      open_image.call_args.kwargs['discard'])

    def test_raw_is_never_truncated(self):
        path = self.create(NAME, 'raw', SIZE)
        with open(path, 'r+b') as stream:
            stream.write(b'\xff' * SIZE)
        stream = self.open('raw')
        self.assertTrue(stat.S_ISREG(os.fstat(stream.fileno()).st_mode))
        stream.write(b'x')
        stream.close()
        self.assertEqual(b'x' + b'\xff' * (SIZE - 1),
                         self.contents(path, 'raw'))

    def test_what_is_flushed_or_closed_is_on_disk(self):
        path = self.create(NAME, 'raw', SIZE)
        stream = self.open('raw')
        on_disk = []
        self.useFixture(fixtures.MockPatch(
            'os.fsync', lambda descriptor: on_disk.append(
                self.contents(path, 'raw')[:1])))
        for content, end in (b'1', stream.flush), (b'2', stream.close):
            stream.seek(0)
            stream.write(content)
            end()
            self.assertEqual(content, on_disk[-1])

    def test_error_of_the_disk(self):
        self.create(NAME, 'raw', SIZE)
        stream = self.open('raw')
        stream.write(b'x')
        with mock.patch('os.fsync', side_effect=OSError(errno.EDQUOT, '')):
            self.assertRaises(OSError, stream.flush)
            self.assertRaises(OSError, stream.close)
        self.assertTrue(stream.closed)

    @ddt.data('raw', 'qcow2')
    def test_read_only(self, fmt):
        path = self.create(NAME, fmt, SIZE)
        with open(path, 'rb') as stream:
            before = stream.read()
        stream = self.open(fmt, access_mode='ro')
        self.assertEqual(bytes(SIZE), stream.read())
        self.assertRaises(io.UnsupportedOperation, stream.write, b'x')
        stream.close()
        with open(path, 'rb') as stream:
            self.assertEqual(before, stream.read())

    @ddt.data('raw', 'qcow2')
    def test_missing_file(self, fmt):
        error = self.assertRaises(exception.CommandFailed, self.open, fmt)
        self.assertIn('No such file or directory', str(error))
        self.assertEqual([], os.listdir(self.directory))

    @ddt.data(None, 'vmdk', 'luks')
    def test_formats_are_not_guessed(self, fmt):
        self.create(NAME, 'raw', SIZE)
        error = self.assertRaises(exception.LustreException, self.open, fmt)
        self.assertIn('"%s"' % fmt, str(error))
        error = self.assertRaises(exception.LustreException,
                                  self.connector().extend_volume,
                                  self.properties(fmt))

    def test_contents_do_not_choose_the_format(self):
        """A guest that writes a qcow2 header gets no more than its disk."""
        header = self.create('header', 'qcow2', 3 * SIZE)
        path = self.create(NAME, 'raw', SIZE)
        with open(header, 'rb') as source, open(path, 'r+b') as target:
            target.write(source.read())
        conn = self.connector()
        self.assertEqual(SIZE, conn.extend_volume(self.properties('raw')))
        stream = self.open('raw')
        self.assertEqual(b'QFI\xfb', stream.read(4))
        self.assertEqual(SIZE, stream.seek(0, os.SEEK_END))

    def test_volume_that_is_in_use(self):
        self.create(NAME, 'qcow2', SIZE)
        self.open('qcow2')
        self.assertRaises(exception.VolumeBusy, self.open, 'qcow2')

    @ddt.data('raw', 'qcow2')
    def test_share_that_does_not_answer(self, fmt):
        self.create(NAME, fmt, SIZE)
        self.program('qemu-img', 'exec sleep 3600')
        brick.register(operation_timeout=1)
        self.addCleanup(brick.register)
        with mock.patch.object(connector, 'open', create=True) as opened, \
                mock.patch.object(nbd, 'open_image') as open_image:
            error = self.assertRaises(exception.ShareUnavailable, self.open,
                                      fmt)
        opened.assert_not_called()
        open_image.assert_not_called()
        self.assertIn('lustre:/lustre/cinder', str(error))

    @ddt.data('raw', 'qcow2')
    def test_encrypted_volume_stays_a_file(self, fmt):
        self.create(NAME, fmt, SIZE)
        with mock.patch('os_brick.privileged.rootwrap.link_root') as link:
            self.open(fmt, encrypted=True).close()
        link.assert_not_called()


@ddt.ddt
class DisconnectTestCase(ConnectorTestCase):

    @ddt.data('raw', 'qcow2')
    def test_closes_what_was_opened(self, fmt):
        self.create(NAME, fmt, SIZE)
        conn = self.connector(expect_raw_disk=True)
        properties = self.properties(fmt)
        device = conn.connect_volume(properties)
        conn.disconnect_volume(properties, device)
        self.assertTrue(device['path'].closed)
        conn.disconnect_volume(properties, device, force=True,
                               ignore_errors=True)

    @ddt.data(None, {}, {'path': None}, {'path': '/mnt/volume'})
    def test_nothing_to_close(self, device):
        self.connector().disconnect_volume(self.properties('raw'), device)
        self.mount.assert_not_called()

    @ddt.data((False, False), (True, False), (False, True))
    @ddt.unpack
    def test_data_that_may_be_lost_is_an_error(self, force, ignore_errors):
        handle = mock.Mock()
        handle.close.side_effect = OSError('lost')
        self.assertRaises(OSError, self.connector().disconnect_volume,
                          self.properties('raw'), {'path': handle},
                          force=force, ignore_errors=ignore_errors)

    def test_errors_are_ignored_on_request(self):
        handle = mock.Mock()
        handle.close.side_effect = OSError('lost')
        log = self.useFixture(fixtures.FakeLogger())
        self.connector().disconnect_volume(
            self.properties('raw'), {'path': handle}, force=True,
            ignore_errors=True)
        self.assertIn('lost', log.output)


@ddt.ddt
class SizeTestCase(ConnectorTestCase):

    @ddt.data('raw', 'qcow2')
    def test_extend(self, fmt):
        path = self.create(NAME, fmt, SIZE)
        conn = self.connector()
        self.assertEqual(SIZE, conn.extend_volume(self.properties(fmt)))
        self.qemu_img('resize', '-f', fmt, path, str(3 * SIZE))
        self.assertEqual(3 * SIZE, conn.extend_volume(self.properties(fmt)))

    def test_extend_while_a_guest_has_the_volume(self):
        self.create(NAME, 'qcow2', SIZE)
        self.open('qcow2')
        self.assertEqual(SIZE, self.connector().extend_volume(
            self.properties('qcow2')))

    def test_size_of_the_image_not_of_those_below(self):
        self.create('below', 'raw', SIZE)
        self.create(NAME, 'qcow2', 2 * SIZE, '-b', 'below', '-F', 'raw')
        self.assertEqual(2 * SIZE, self.connector().extend_volume(
            self.properties('qcow2')))


@ddt.ddt
class CheckTestCase(ConnectorTestCase):

    def check(self, path):
        return self.connector().check_valid_device(path)

    @ddt.data(True, False)
    def test_path(self, run_as_root):
        path = self.create(NAME, 'qcow2', SIZE)
        self.assertIs(True, self.connector().check_valid_device(
            path, run_as_root=run_as_root))

    @ddt.data('raw', 'qcow2')
    def test_open_file(self, fmt):
        self.create(NAME, fmt, SIZE)
        stream = self.open(fmt)
        stream.seek(77)
        self.assertIs(True, self.check(stream))
        self.assertEqual(77, stream.tell())
        stream.close()
        self.assertIs(False, self.check(stream))

    def test_nothing(self):
        self.assertIs(False, self.check(None))
        self.assertIs(False, self.check(''))
        log = self.useFixture(fixtures.FakeLogger())
        self.assertIs(False, self.check(self.path('absent')))
        self.assertIn('No such file or directory', log.output)

    def test_share_that_hangs(self):
        conn = self.connector()
        path = conn.connect_volume(self.properties('raw'))['path']
        log = self.useFixture(fixtures.FakeLogger())
        with mock.patch('cinder_lustre.worker.Worker.run', autospec=True,
                        side_effect=exception.ShareUnavailable(
                            share='s', reason='r')) as run:
            self.assertIs(False, conn.check_valid_device(path))
        run.assert_called_once_with(mock.ANY, qemu_img.info, path, 'raw',
                                    timeout=60)
        self.assertEqual('lustre:/lustre/cinder', run.call_args.args[0].share)
        self.assertIn('does not answer', log.output)

    def test_all_connections_of_a_share_have_one_breaker(self):
        for name in ('volume-1', 'volume-2'):
            path = self.create(name, 'raw', SIZE)
            conn = self.connector()
            conn.connect_volume(self.properties('raw', name=name))
            self.assertTrue(conn.check_valid_device(path))
        self.assertEqual([self.directory],
                         list(connector.LustreConnector._workers))


class EncryptionTestCase(ConnectorTestCase):

    def setUp(self):
        super().setUp()
        self.create(NAME, 'raw', SIZE)
        self.link = self.useFixture(fixtures.MockPatch(
            'os_brick.privileged.rootwrap.link_root')).mock
        self.unlink = self.useFixture(fixtures.MockPatch(
            'os_brick.privileged.rootwrap.unlink_root')).mock

    def test_path_is_a_link_that_an_encryptor_may_replace(self):
        conn = self.connector()
        properties = self.properties('raw', encrypted=True)
        device = conn.connect_volume(properties)
        self.link.assert_called_once_with(self.path(NAME), device['path'],
                                          force=True)
        self.assertNotEqual(self.path(NAME), device['path'])
        self.assertEqual(SIZE, conn.extend_volume(
            dict(properties, device_path=device['path'])))
        conn.disconnect_volume(properties, device)
        self.unlink.assert_called_once_with(device['path'])

    def test_a_process_that_copies_ciphertext_needs_no_link(self):
        self.addCleanup(brick.register)
        brick.register(copies_contents=True)
        conn = self.connector()
        properties = self.properties('raw', encrypted=True)
        device = conn.connect_volume(properties)
        self.assertEqual(bytes(SIZE), device['path'].read())
        conn.disconnect_volume(properties, device)
        self.assertTrue(device['path'].closed)
        self.link.assert_not_called()
        self.unlink.assert_not_called()

    def test_link_cannot_be_made(self):
        self.link.side_effect = OSError('no link')
        error = self.assertRaises(
            OSError, self.connector().connect_volume,
            self.properties('raw', encrypted=True))
        self.assertEqual('no link', str(error))
