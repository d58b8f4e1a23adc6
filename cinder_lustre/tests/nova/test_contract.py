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

"""Whether the installed Nova still is what the driver was written for."""

import inspect

import ddt
import nova.conf
from nova import utils
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt.volume import fs
from os_brick.privileged import rootwrap
import testtools

from cinder_lustre.nova import client
from cinder_lustre.nova import volume
from cinder_lustre.tests.nova import base

OVERRIDDEN = [
    (cls, parent, name)
    for cls, parent in (
        (volume.LibvirtLustreVolumeDriver,
         fs.LibvirtMountedFileSystemVolumeDriver),
        (volume.GuestDisk, vconfig.LibvirtConfigGuestDisk))
    for name, value in vars(cls).items()
    if inspect.isfunction(value) and name != '__init__'
]


def parameters(function):
    return [(each.name, each.kind, each.default) for each
            in inspect.signature(function).parameters.values()]


@ddt.ddt
class ContractTestCase(testtools.TestCase):

    @ddt.data(*OVERRIDDEN)
    @ddt.unpack
    def test_overridden_method(self, cls, parent, name):
        self.assertEqual(parameters(getattr(parent, name)),
                         parameters(getattr(cls, name)))

    def test_nothing_is_left_abstract(self):
        self.assertEqual(frozenset(),
                         volume.LibvirtLustreVolumeDriver.__abstractmethods__)

    def test_constructors(self):
        self.assertEqual(
            ['self', 'host', 'fstype'],
            list(inspect.signature(
                fs.LibvirtMountedFileSystemVolumeDriver.__init__).parameters))
        self.assertEqual(
            ['self', 'host'],
            list(inspect.signature(
                volume.LibvirtLustreVolumeDriver.__init__).parameters))
        self.assertEqual(['self', 'kwargs'], list(inspect.signature(
            vconfig.LibvirtConfigGuestDisk.__init__).parameters))

    def test_nova_has_no_error_policy_of_its_own(self):
        self.assertFalse([name for name in
                          vars(vconfig.LibvirtConfigGuestDisk())
                          if 'error' in name])

    def test_nova_hashes_as_we_do(self):
        self.assertEqual(base.DIRECTORY, utils.get_hash_str(base.IDENTITY))

    def test_what_is_used(self):
        self.assertIsInstance(libvirt_driver.VOLUME_DRIVERS, dict)
        self.assertIn('use_default_aio_mode_for_volumes',
                      nova.conf.CONF.libvirt)
        self.assertIsInstance(utils.get_root_helper(), str)
        self.assertEqual(['cmd', 'kwargs'], list(
            inspect.signature(rootwrap.execute).parameters))

    def test_client_overrides_the_method_that_mounts(self):
        self.assertEqual(
            parameters(client.client.LustreRemoteFsClient._mount_in_time),
            parameters(client.ComputeClient._mount_in_time))
