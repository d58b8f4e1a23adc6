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


"""Shows on real servers that their volumes work, whatever is done to them.

The guest writes areas with checksums onto each of its volumes and proves on
its console what it reads (guest/init). Ends with a table, and with exit code
1 on any difference or leftover.
"""

import dataclasses
import glob
import os
import pwd
import subprocess
import sys
import time

import openstack

from cinder_lab import outage
import demo

from cinder_lustre_tempest_plugin import guest

# The console is read anew this often (seconds).
INTERVAL = 1
# What every guest writes before its areas (guest/init).
MARK = b'LUSTRELAB'
# What QEMU takes of an encrypted volume.
LUKS_HEADER = 2068480


@dataclasses.dataclass
class Disk:
    """A volume, and what a server last proved of it.

    :param size: in GiB
    :param generation: the last one that was read correctly; 0: none yet
    :param header: bytes of it that a server does not get
    """

    volume: object
    size: int = 1
    generation: int = 0
    header: int = 0


class NovaDemo(demo.Demo):
    """One run."""

    def __init__(self, cloud, report):
        super().__init__(cloud, 'nova', report)
        self.nova = cloud.compute
        self.services = outage.Services()
        self.servers = []
        self.disks = []
        # Server and volume: the generation at which the console begins.
        self.floors = {}

    def create_disk(self, volume_type, **source):
        disk = Disk(self.create_volume(1, volume_type=volume_type, **source))
        self.disks.append(disk)
        return disk

    def boot(self, **source):
        """Start a server, and wait until its guest runs."""
        self.serial += 1
        server = self.nova.create_server(
            name='demo-nova-%d' % self.serial, networks='none',
            flavor_id=self.nova.find_flavor('lab').id, **source)
        self.servers.append(server)
        self.wait_for_server(server)
        self.wait_until(lambda: 'is up' in self.console(server),
                        'the guest of server %s runs' % server.id)
        return server

    def image(self):
        return next(self.glance.images(name='lab-guest',
                                       sort='created_at:desc'))

    def wait_for_server(self, server):
        # Without the fetch, the status before the request would do.
        self.nova.wait_for_server(server.fetch(self.nova), interval=0.5,
                                  wait=demo.TIMEOUT)

    def wait_until(self, condition, what, patience=demo.TIMEOUT):
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise demo.DemoError('not within %d s: %s' % (
                    patience, what))
            time.sleep(INTERVAL)

    def console(self, server):
        return self.nova.get_server_console_output(server)['output']

    def attach(self, server, *disks):
        for disk in disks:
            self.floors.setdefault((server.id, disk.volume.id),
                                   disk.generation)
            self.nova.create_volume_attachment(server,
                                               volume_id=disk.volume.id)
        for disk in disks:
            self.wait_for_holder(server, disk, True)

    def detach(self, server, *disks):
        for disk in disks:
            self.nova.delete_volume_attachment(server, disk.volume.id)
        for disk in disks:
            self.wait_for_holder(server, disk, False)
            # The next server must not find less than this.
            self.read(server, disk)

    def wait_for_holder(self, server, disk, wanted):
        """Wait until a volume is attached to a server, or is not."""
        def settled():
            volume = disk.volume.fetch(self.cinder)
            if volume.status.startswith('error'):
                raise demo.DemoError('volume %s is in state %s' % (
                    volume.id, volume.status))
            return volume.status in ('available', 'in-use') and wanted == (
                server.id in [each['server_id']
                              for each in volume.attachments])
        self.wait_until(settled, 'volume %s is %s server %s' % (
            disk.volume.id, 'attached to' if wanted else 'detached from',
            server.id))

    def prove(self, server, *disks):
        """See that a guest reads what was written last, and goes on.

        Everything on the console counts: it begins with the server's start.

        :raises: DemoError when the guest read anything else, or has not
            read the disk twice more within the time
        """
        for disk in disks:
            # What was read before this moment proves nothing.
            self.read(server, disk)
        before = [disk.generation for disk in disks]
        for disk, generation in zip(disks, before):
            self.wait_until(
                lambda: self.read(server, disk) >= generation + 2,
                'server %s goes on with volume %s from generation %d' % (
                    server.id, disk.volume.id, generation))

    def read(self, server, disk):
        """The generation that a guest read last and completely."""
        volume_id = disk.volume.id
        try:
            last = guest.generation(
                self.console(server), volume_id,
                disk.size * demo.GIB - disk.header,
                self.floors.get((server.id, volume_id), 0))
        except guest.DataLoss as exc:
            raise demo.DemoError('server %s reads from volume %s, %s' % (
                server.id, volume_id, exc)) from None
        disk.generation = max(disk.generation, last)
        return last

    def reboot(self, server, *disks):
        """Start a server anew; its guest must find what it wrote before."""
        for disk in disks:
            self.floors[server.id, disk.volume.id] = disk.generation
        self.nova.reboot_server(server, 'HARD')
        self.wait_for_server(server)
        self.prove(server, *disks)

    def snapshot(self, disk):
        """Take a snapshot of a volume that a server has."""
        return self.wait_for(self.request_snapshot(disk))

    def request_snapshot(self, disk):
        """Ask for a snapshot, and do not wait for it."""
        answer = self.call('post', '/snapshots', {'snapshot': {
            'volume_id': disk.volume.id, 'name': 'demo-nova', 'force': True}})
        return self.cinder.get_snapshot(answer['snapshot']['id'])

    def extend(self, disk):
        self.act(disk.volume, 'os-extend', {'new_size': disk.size + 1})
        self.wait_for(disk.volume, 'in-use')
        disk.size += 1

    def run(self):
        """Go through all jobs; the steps tell what they are."""
        with self.step('create a raw and a qcow2 volume'):
            raw = self.create_disk('lustre-raw')
            qcow2 = self.create_disk('lustre-qcow2')
        with self.step('boot a server'):
            server = self.boot(image_id=self.image().id)
        with self.step('attach both'):
            self.attach(server, raw, qcow2)
        with self.step('write and read in the guest'):
            self.prove(server, raw, qcow2)
        # Cinder's driver refuses it where snapshots have left a layer.
        with self.step('extend the raw volume online'):
            self.extend(raw)
            self.prove(server, raw)
        self.run_backups(server, raw, qcow2)
        self.run_snapshots(server, raw, qcow2)

    def run_backups(self, server, *disks):
        """Backups of volumes that a server writes to."""
        with self.step('back both up, restore into new volumes'):
            copies = [self.back_up_and_restore(disk) for disk in disks]
        with self.step('attach what was restored, compare'):
            self.attach(server, *copies)
            self.prove(server, *disks, *copies)
            self.detach(server, *copies)
            self.delete_disks(*copies)

    def run_snapshots(self, server, *disks):
        """Snapshots, taken and deleted while the server writes."""
        with self.step('snapshot both online'):
            first = [self.snapshot(disk) for disk in disks]
            self.prove(server, *disks)
        with self.step('reboot the server hard, compare'):
            self.reboot(server, *disks)
        with self.step('delete both snapshots online'):
            for each in first:
                self.delete(each, self.cinder.delete_snapshot)
            self.prove(server, *disks)
        with self.step('three snapshots of both online'):
            snapshots = []
            for _number in range(3):
                snapshots.append([self.snapshot(disk) for disk in disks])
                self.prove(server, *disks)
        for name in ('middle', 'latest'):
            with self.step('delete the %s ones online' % name):
                for each in snapshots.pop(1):
                    self.delete(each, self.cinder.delete_snapshot)
                self.prove(server, *disks)
        with self.step('reboot hard, compare, delete the first ones'):
            self.reboot(server, *disks)
            for each in snapshots.pop():
                self.delete(each, self.cinder.delete_snapshot)
            self.prove(server, *disks)
        self.run_attachments(server, *disks)

    def run_attachments(self, server, raw, qcow2):
        """Volumes that go from server to server, or belong to two."""
        with self.step('boot a second server'):
            second = self.boot(image_id=self.image().id)
        with self.step('detach both, attach them to it, compare'):
            self.detach(server, raw, qcow2)
            self.attach(second, raw, qcow2)
            self.prove(second, raw, qcow2)
        with self.step('attach a raw volume to both servers'):
            shared = self.create_disk('lustre-multiattach')
            self.attach(server, shared)
            # One of them has to have begun: both would.
            self.prove(server, shared)
            self.attach(second, shared)
        with self.step('write in one of them, read in both'):
            self.prove(server, shared)
            self.prove(second, shared)
        with self.step('detach it from one, the other goes on'):
            self.detach(server, shared)
            self.prove(second, shared)
        with self.step('delete the first server'):
            self.delete_servers(server)
        self.run_encrypted(second, raw, qcow2)
        with self.step('boot from a volume'):
            image = self.image()
            root = self.create_disk('lustre-qcow2', image_id=image.id)
            # Deleted with the rest, so that nothing is left.
            self.disks.append(Disk(self.find_cached(image, root.volume)))
            third = self.boot(block_device_mapping=[{
                'boot_index': 0, 'uuid': root.volume.id,
                'source_type': 'volume', 'destination_type': 'volume'}])
            self.prove(third, root)
        with self.step('snapshot it online, reboot it hard, compare'):
            snapshot = self.snapshot(root)
            # Nova learns the name of the new file half a second later, and
            # would reboot the server with the old one before.
            self.prove(third, root)
            self.reboot(third, root)
            self.delete(snapshot, self.cinder.delete_snapshot)
            self.prove(third, root)
        self.run_dead_host(second, third, root, raw, qcow2)
        # Other addresses of a real Lustre are not known here.
        if os.environ['LAB_DEVELOPMENT_FSTYPES']:
            self.run_addresses(second, raw, qcow2, shared)
        with self.step('compare shares, records and database'):
            if not demo.check_shares('--config-file',
                                     os.environ['LAB_CINDER_CONF']):
                raise demo.DemoError('the shares are not clean')
        with self.step('delete everything'):
            self.delete_all()

    def run_encrypted(self, server, *disks):
        """A volume that QEMU encrypts.

        :param disks: what the server has already
        """
        with self.step('attach an encrypted volume, write, read'):
            secret = self.create_disk('lustre-luks')
            secret.header = LUKS_HEADER
            self.attach(server, secret)
            self.prove(server, secret)
        with self.step('reboot hard, extend it online, compare'):
            self.reboot(server, *disks, secret)
            self.extend(secret)
            self.prove(server, *disks, secret)
        with self.step('detach it; nothing of it is in clear'):
            self.detach(server, secret)
            with self.attached(secret.volume) as stream:
                while block := stream.read(demo.CHUNK):
                    if MARK in block:
                        raise demo.DemoError('volume %s is not encrypted'
                                             % secret.volume.id)

    def run_dead_host(self, kept, lost, root, raw, qcow2):
        """Let the host die; Cinder has to get on with QEMU's files.

        :param kept: a server with the volumes raw and qcow2
        :param lost: a server with the volume root, deleted meanwhile
        """
        with self.step('snapshot two volumes online'):
            # Cinder takes none while a dead host seems to have the volume.
            snapshots = [self.snapshot(disk) for disk in (raw, qcow2)]
            # As above: the host must not die before. Theirs stay as they are.
            self.prove(lost, root)
        host = next(self.nova.services(binary='nova-compute'))
        try:
            with self.step('kill nova-compute, libvirtd and QEMU'):
                self.services.kill('nova-compute', 'libvirtd')
                self.services.kill_guests()
                self.nova.update_service_forced_down(host, forced=True)
                for disk in (root, raw, qcow2):
                    self.check_owner(disk)
            with self.step('delete one of its servers'):
                self.delete_servers(lost)
                self.wait_for(root.volume)
            with self.step('snapshot, clone, back up, extend its volume'):
                self.check_owner(root)
                snapshots.append(self.create_snapshot(root.volume))
                copies = [self.copy(root, source_volid=root.volume.id),
                          self.back_up_and_restore(root)]
                self.cinder.extend_volume(root.volume, root.size + 1)
                self.wait_for(root.volume)
                root.size += 1
            with self.step('copy, back up the snapshots of the others'):
                copies += [self.copy(disk, snapshot_id=snapshot.id)
                           for disk, snapshot in zip((raw, qcow2), snapshots)]
                copies.append(self.back_up_and_restore(
                    raw, snapshot_id=snapshots[0].id))
        finally:
            with self.step('bring the host back'):
                self.services.start('libvirtd', 'nova-compute')
                self.nova.update_service_forced_down(host, forced=False)
        with self.step('reboot the server hard, compare'):
            self.reboot(kept, raw, qcow2)
        with self.step('attach all that was made, compare'):
            self.attach(kept, root, *copies)
            self.prove(kept, root, *copies)
        with self.step('delete the snapshots and the copies'):
            self.detach(kept, *copies)
            self.delete_disks(*copies)
            for each in snapshots:
                self.delete(each, self.cinder.delete_snapshot)
            self.prove(kept, root, raw, qcow2)

    def copy(self, disk, **source):
        """A new volume that has to have the content of another one."""
        copy = Disk(self.create_volume(
            disk.size, volume_type=disk.volume.volume_type, **source),
            disk.size, disk.generation)
        self.disks.append(copy)
        return copy

    def back_up_and_restore(self, disk, **source):
        """Back a volume up, and restore it into a new one."""
        backup = self.back_up(disk.volume, force=True, **source)
        copy = self.copy(disk)
        self.restore(backup, copy.volume)
        self.delete(backup, self.cinder.delete_backup)
        return copy

    def check_owner(self, disk):
        """See that a volume's file is QEMU's, as libvirt left it."""
        found = {pwd.getpwuid(os.stat(path).st_uid).pw_name
                 for directory in demo.directories()
                 for path in glob.glob('%s/volume-%s*' % (
                     directory, disk.volume.id))}
        if self.services.guest_user not in found:
            raise demo.DemoError('the files of volume %s are those of %s' % (
                disk.volume.id, ', '.join(found)))

    def run_addresses(self, server, *disks):
        """Give the shares another address while servers use them."""
        with self.step('change the NIDs, restart cinder-volume'):
            for path in os.environ['LAB_SHARE_FILES'].split(':'):
                with open(path) as stream:
                    share = stream.read()
                with open(path, 'w') as stream:
                    stream.write('127.0.0.2@tcp:' + share)
            subprocess.run([os.environ['LAB_COMMAND'], 'restart',
                            'cinder-volume'], check=True,
                           stdout=subprocess.DEVNULL)
            self.prove(server, *disks)
        with self.step('reboot the server hard, compare'):
            self.reboot(server, *disks)
        with self.step('detach one, attach it again, compare'):
            self.detach(server, disks[0])
            self.attach(server, disks[0])
            self.prove(server, disks[0])

    def delete_all(self):
        self.delete_servers(*self.servers)
        for disk in self.disks:
            self.wait_for(disk.volume)
        self.delete_disks(*self.disks)

    def delete_disks(self, *disks):
        for disk in disks:
            self.delete(disk.volume, self.cinder.delete_volume)
            self.disks.remove(disk)

    def delete_servers(self, *servers):
        for server in servers:
            self.nova.delete_server(server)
        for server in servers:
            self.nova.wait_for_delete(server, interval=0.5,
                                      wait=demo.TIMEOUT)
            self.servers.remove(server)

    def run_or_clear(self, *arguments):
        try:
            self.run(*arguments)
        except Exception:
            self.clear()
            raise

    def clear(self):
        """Delete what a failed run has left, as well as that is possible."""
        print('Deleting what is left', flush=True)
        for server in self.servers[:]:
            self.attempt(self.delete_servers, server)
        for backup in self.cinder.backups():
            if backup.name == 'demo-nova':
                self.attempt(self.delete, backup, self.cinder.delete_backup)
        # A volume that could not be created is only known by its name.
        volumes = {disk.volume.id for disk in self.disks} | {
            volume.id for volume in self.cinder.volumes()
            if volume.name.startswith('demo-nova-')}
        for each in volumes:
            self.attempt(self.clear_volume, each)

    def clear_volume(self, volume_id):
        """Delete a volume with its snapshots, in whatever state they are."""
        volume = self.cinder.find_volume(volume_id)
        if volume is None:
            return
        for snapshot in self.cinder.snapshots(volume_id=volume_id):
            self.act(snapshot, 'os-reset_status', {'status': 'error'})
            self.attempt(self.delete, snapshot, self.cinder.delete_snapshot)
        self.act(volume, 'os-reset_status',
                 {'status': 'error', 'attach_status': 'detached'})
        self.delete(volume, self.cinder.delete_volume)

    @staticmethod
    def attempt(func, *args):
        try:
            func(*args)
        except (demo.DemoError, openstack.exceptions.SDKException) as exc:
            print(exc, file=sys.stderr)


if __name__ == '__main__':
    sys.exit(demo.execute(
        lambda cloud, report: NovaDemo(cloud, report).run_or_clear()))
