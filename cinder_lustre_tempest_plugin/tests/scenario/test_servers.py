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


"""Volumes of servers: what the guests see, through all that is done to them.

The guests prove their data on their consoles; see the module guest.
"""

import time

from tempest.common import waiters
from tempest import config
from tempest.lib.common import api_version_utils
from tempest.lib import decorators
from tempest.lib import exceptions

from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin import guest
from cinder_lustre_tempest_plugin.tests import base

CONF = config.CONF


class ServerTest(base.LustreTest):
    """What the tests with servers share."""

    # The first one that knows servers without a network.
    min_microversion = '2.37'
    # Bytes of a volume that a guest does not see.
    header = 0

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('service_available', 'nova')
        cls.skip_unless('lustre', 'guest_console')
        cls.skip_unless('compute_feature_enabled', 'console_output')
        api_version_utils.check_skip_with_microversion(
            cls.min_microversion, cls.max_microversion,
            CONF.compute.min_microversion, CONF.compute.max_microversion)

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        cls.servers = cls.os_primary.servers_client

    def setUp(self):
        super().setUp()
        # With which generation a server's console has to begin.
        self.floors = {}

    def boot(self, **options):
        """A server whose guest is up; returns its id."""
        server = self.servers.create_server(**{
            'name': self.random_name('server'), 'networks': 'none',
            'flavorRef': CONF.compute.flavor_ref,
            'imageRef': CONF.compute.image_ref, **options})['server']['id']
        self.addCleanup(self.delete_server, server)
        waiters.wait_for_server_status(self.servers, server, 'ACTIVE')
        self.wait_until(lambda: 'is up' in self.console(server),
                        f'the guest of server {server} runs')
        return server

    def delete_server(self, server):
        try:
            self.servers.delete_server(server)
        except exceptions.NotFound:
            return
        waiters.wait_for_server_termination(self.servers, server)

    def console(self, server):
        return self.servers.get_console_output(server)['output'] or ''

    def wait_until(self, condition, what):
        deadline = time.monotonic() + CONF.compute.build_timeout
        while not condition():
            if time.monotonic() > deadline:
                raise exceptions.TimeoutException(
                    f'not within {CONF.compute.build_timeout} s: {what}')
            time.sleep(CONF.compute.build_interval)

    def attach(self, server, volume, floor=0):
        """Attach a volume to a server.

        :param floor: the generation that is in the volume, at least
        """
        self.floors[server, volume] = floor
        self.servers.attach_volume(server, volumeId=volume)
        self.addCleanup(self.detach, server, volume)
        self.wait_until(lambda: server in self.holders(volume),
                        f'volume {volume} is attached to server {server}')
        self.wait_for_volume(volume, 'in-use')

    def detach(self, server, volume):
        """Detach a volume unless that, or the server, is gone already."""
        if server not in self.holders(volume):
            return
        self.servers.detach_volume(server, volume)
        self.wait_until(lambda: server not in self.holders(volume),
                        f'volume {volume} is detached from server {server}')
        self.wait_for_volume(volume, 'in-use' if self.holders(volume)
                             else 'available')

    def holders(self, volume):
        try:
            shown = self.volumes.show_volume(volume)['volume']
        except exceptions.NotFound:
            return []
        return [each['server_id'] for each in shown['attachments']]

    def generation(self, server, volume, size=1):
        return guest.generation(self.console(server), volume,
                                size * content.GIB - self.header,
                                self.floors.get((server, volume), 0))

    def prove(self, server, volume, size=1):
        """See that a guest reads what it wrote, and goes on writing.

        :returns: the generation that it has got to
        """
        self.wait_until(lambda: self.generation(server, volume, size),
                        f'server {server} sees volume {volume} with '
                        f'{size} GiB')
        before = self.generation(server, volume, size)
        self.wait_until(
            lambda: self.generation(server, volume, size) >= before + 2,
            f'server {server} goes on with volume {volume} from generation '
            f'{before}')
        return self.generation(server, volume, size)

    def reboot(self, server, volume, size=1):
        """Start a server anew; its guest finds what it wrote before."""
        before = self.generation(server, volume, size)
        self.servers.reboot_server(server, type='HARD')
        waiters.wait_for_server_status(self.servers, server, 'ACTIVE')
        # Its console has begun anew.
        self.floors[server, volume] = before
        self.prove(server, volume, size)

    def generation_of(self, volume):
        """The generation in a volume, by way of an image."""
        image = self.upload(volume)
        answer = self.images.show_image_file(image, chunked=True)
        try:
            return guest.generation_in(answer)
        finally:
            answer.release_conn()
            self.delete_image(image)


class AttachedVolumeTest(ServerTest):

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('c3ec2d60-2488-4c97-aa74-14134c9c7838')
    def test_reboot_and_next_server(self):
        """A volume keeps its data through a reboot and a change of server."""
        volume = self.create_volume()
        first = self.boot()
        self.attach(first, volume)
        self.prove(first, volume)
        self.reboot(first, volume)
        written = self.generation(first, volume)
        self.detach(first, volume)
        self.assertGreaterEqual(self.generation_of(volume), written)
        second = self.boot()
        self.attach(second, volume, written)
        self.prove(second, volume)

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('6d451671-61f6-4248-90d5-469714f694a8')
    def test_online_snapshots(self):
        """Each snapshot has what the guest had written when it was taken."""
        self.skip_unless('lustre', 'online_snapshots')
        self.skip_unless('volume_feature_enabled', 'snapshot')
        volume = self.create_volume()
        server = self.boot()
        self.attach(server, volume)
        snapshots = []
        for _ in range(3):
            lower = self.prove(server, volume)
            snapshot = self.create_snapshot(volume, force=True)
            upper = self.prove(server, volume)
            snapshots.append((snapshot, lower, upper))
        # The middle one first, then the latest, then the first.
        for number in (1, 1, 0):
            snapshot, lower, upper = snapshots.pop(number)
            copy = self.create_volume(snapshot_id=snapshot)
            found = self.generation_of(copy)
            self.assertTrue(lower <= found <= upper, (lower, found, upper))
            self.delete_snapshot(snapshot)
            self.prove(server, volume)
        self.reboot(server, volume)
        self.detach(server, volume)
        self.assertGreaterEqual(self.generation_of(volume), upper)

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('2b09e147-258c-401b-8c05-2df172c85c2f')
    def test_clone_and_backup_while_attached(self):
        """Copies of a volume that a guest writes to are whole."""
        self.skip_unless('lustre', 'online_snapshots')
        self.skip_unless('volume_feature_enabled', 'clone', 'backup')
        volume = self.create_volume()
        server = self.boot()
        self.attach(server, volume)
        lower = self.prove(server, volume)
        clone = self.create_volume(source_volid=volume)
        self.assertGreaterEqual(self.generation_of(clone), lower)
        backup = self.backups.create_backup(
            volume_id=volume, name=self.random_name('backup'),
            force=True)['backup']['id']
        self.addCleanup(self.delete_backup, backup)
        waiters.wait_for_volume_resource_status(self.backups, backup,
                                                'available')
        restored = self.restore(backup)
        self.assertGreaterEqual(self.generation_of(restored), lower)
        self.prove(server, volume)


class AttachedVolumeQcow2Test(AttachedVolumeTest):
    volume_format = 'qcow2'


class RevertGuestDataTest(ServerTest):
    volume_min_microversion = '3.40'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'revert')
        cls.skip_unless('volume_feature_enabled', 'snapshot')

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('45069c20-1d9b-4382-b425-9e06365e9b9a')
    def test_revert(self):
        """What a guest wrote after a snapshot is undone, and only that."""
        volume = self.create_volume()
        server = self.boot()
        self.attach(server, volume)
        self.prove(server, volume)
        self.detach(server, volume)
        before = self.generation_of(volume)
        snapshot = self.create_snapshot(volume)
        other = self.boot()
        self.attach(other, volume)
        self.prove(other, volume)
        self.detach(other, volume)
        self.assertGreater(self.generation_of(volume), before)
        self.revert(volume, snapshot)
        self.assertEqual(before, self.generation_of(volume))


class RevertGuestDataQcow2Test(RevertGuestDataTest):
    volume_format = 'qcow2'


class OnlineExtendTest(ServerTest):
    volume_min_microversion = '3.42'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'extend_attached_volume')

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('f8e5a0a9-a4cb-4f29-8c2c-674e626887f1')
    def test_extend_while_attached(self):
        """The guest sees the new size at once, and after a reboot."""
        volume = self.create_volume()
        server = self.boot()
        self.attach(server, volume)
        self.prove(server, volume)
        self.extend(volume, 2, 'in-use')
        self.prove(server, volume, 2)
        self.reboot(server, volume, 2)


class EncryptedVolumeTest(ServerTest):
    volume_min_microversion = '3.42'
    # What QEMU takes for LUKS version 1.
    header = 2068480

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'encryption')
        cls.skip_unless('compute_feature_enabled', 'attach_encrypted_volume')

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        cls.volume_type = cls.create_type(encrypted=True)

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('e5751653-b731-4b44-8214-f0ad2ac3df2b')
    def test_encrypted(self):
        """Only the guest sees what it writes; also in a larger volume."""
        volume, size = self.create_volume(), 1
        server = self.boot()
        self.attach(server, volume)
        self.prove(server, volume)
        if CONF.volume_feature_enabled.extend_attached_encrypted_volume:
            size = 2
            self.extend(volume, size, 'in-use')
            self.prove(server, volume, size)
        self.reboot(server, volume, size)
        written = self.generation(server, volume, size)
        self.detach(server, volume)
        # In clear, there would be a header.
        self.assertRaises(guest.DataLoss, self.generation_of, volume)
        other = self.boot()
        self.attach(other, volume, written)
        self.prove(other, volume, size)


class MultiattachTest(ServerTest):
    volume_min_microversion = '3.50'
    min_microversion = '2.60'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('compute_feature_enabled', 'volume_multiattach')

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        cls.volume_type = cls.create_type(multiattach='<is> True')

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('f7ae96ac-1534-4f6e-a127-8e6ed84a89b8')
    def test_two_servers_share_a_volume(self):
        """Both see what one writes, also when the other has left."""
        volume = self.create_volume()
        first, second = self.boot(), self.boot()
        self.attach(first, volume)
        # One of them has to have begun: both would.
        self.prove(first, volume)
        self.attach(second, volume)
        self.prove(first, volume)
        self.prove(second, volume)
        self.detach(first, volume)
        self.prove(second, volume)


class BootTest(ServerTest):

    @decorators.attr(type=['slow'])
    @decorators.idempotent_id('aefcc826-3ea4-4ee5-a44a-9df1297d3889')
    def test_boot_from_volume(self):
        """A server starts from a volume, also after a snapshot and again."""
        volume = self.create_volume(imageRef=CONF.compute.image_ref)
        server = self.boot(imageRef='', block_device_mapping_v2=[{
            'boot_index': 0, 'uuid': volume, 'source_type': 'volume',
            'destination_type': 'volume'}])
        self.prove(server, volume)
        if CONF.lustre.online_snapshots:
            snapshot = self.create_snapshot(volume, force=True)
            self.prove(server, volume)
            self.reboot(server, volume)
            self.delete_snapshot(snapshot)
        self.reboot(server, volume)


class BootQcow2Test(BootTest):
    volume_format = 'qcow2'
