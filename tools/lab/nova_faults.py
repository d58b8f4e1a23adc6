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


"""Shows what becomes of snapshots for which Nova does not do its part.

A server writes to a volume while Nova, its host, or cinder-volume dies or
hangs, during the creation and the deletion of a snapshot. After each of them
the record, the attachment and QEMU have to agree on the file, the server has
to find what it wrote, and snapshots have to work again.
"""

import argparse
import contextlib
import io
import json
import os
import sys

import demo
import nova_demo

# Seconds that cinder-volume waits for Nova to take a snapshot.
PATIENCE = 600


class NovaFaults(nova_demo.NovaDemo):
    """One run, with one server and one volume."""

    def __init__(self, cloud, report):
        super().__init__(cloud, report)
        self.server = self.disk = None

    def cases(self):
        """What goes wrong, and the steps of it; the last takes long."""
        return [
            ('creation, Nova\'s API is down', self.create_without_api),
            ('creation, nova-compute and QEMU die', self.create_without_host),
            ('creation, cinder-volume dies before the pivot',
             self.create_killed_before),
            ('creation, cinder-volume dies after the pivot',
             self.create_killed_after),
            ('deletion, Nova\'s API is down', self.delete_without_api),
            ('deletion, nova-compute and QEMU die', self.delete_without_host),
            ('deletion, cinder-volume dies before the pivot',
             self.delete_killed_before),
            ('deletion, cinder-volume dies after the pivot',
             self.delete_killed_after),
            ('creation, nova-compute hangs too long', self.create_too_late),
        ]

    def run(self, fmt='raw', case=None):
        """Go through the cases.

        :param fmt: of the volume, raw or qcow2
        :param case: a part of the names of those to run; None: all but the
                     last
        """
        cases = [each for each in self.cases() if case in each[0]
                 ] if case else self.cases()[:-1]
        with self.step('boot a server with a %s volume' % fmt):
            self.disk = self.create_disk('lustre-' + fmt)
            self.server = self.boot(image_id=self.image().id)
            self.attach(self.server, self.disk)
            self.verify()
        for name, steps in cases:
            with self.step(name):
                steps()
                self.verify()
        with self.step('delete everything'):
            self.delete_all()

    # The creation of a snapshot

    def create_without_api(self):
        self.services.kill('nova')
        try:
            snapshot = self.request_snapshot(self.disk)
            self.settled(snapshot, 'error')
        finally:
            self.services.start('nova')
        self.delete(snapshot, self.cinder.delete_snapshot)

    def create_without_host(self):
        with self.unreachable_host():
            snapshot = self.ask(lambda: self.request_snapshot(self.disk))
            self.services.kill_guests()
            self.settled(snapshot, 'error')
        self.reboot(self.server, self.disk)
        self.delete(snapshot, self.cinder.delete_snapshot)

    def create_killed_before(self):
        with self.services.frozen('nova-compute'):
            snapshot = self.ask(lambda: self.request_snapshot(self.disk))
            self.services.kill('cinder-volume')
            self.services.start('cinder-volume')
            self.settled(snapshot, 'error')
            self.wait_until(lambda: not self.record()['intent'],
                            'the snapshot is taken back')
        self.delete(snapshot, self.cinder.delete_snapshot)

    def create_killed_after(self):
        with self.services.frozen('nova-compute'):
            snapshot = self.ask(lambda: self.request_snapshot(self.disk))
            self.services.kill('cinder-volume')
        overlay = self.record()['intent']['file']
        self.wait_until(lambda: self.written() == {overlay},
                        'the guest writes to %s' % overlay)
        self.services.start('cinder-volume')
        self.settled(snapshot, 'error')
        self.wait_until(lambda: self.record()['active'] == overlay,
                        'the record names %s' % overlay)
        self.agree()
        self.delete(snapshot, self.cinder.delete_snapshot)

    def create_too_late(self):
        with self.services.frozen('nova-compute'):
            snapshot = self.request_snapshot(self.disk)
            self.settled(snapshot, 'error', PATIENCE + demo.TIMEOUT)
        self.delete(snapshot, self.cinder.delete_snapshot)

    # The deletion of one; the latest would only lose its name

    def delete_without_api(self):
        first, second = self.two_snapshots()
        self.services.kill('nova')
        try:
            self.cinder.delete_snapshot(first)
            self.settled(first, 'error_deleting')
        finally:
            self.services.start('nova')
        self.agree()
        self.delete_both(first, second)

    def delete_without_host(self):
        first, second = self.two_snapshots()
        with self.unreachable_host():
            self.ask(lambda: self.cinder.delete_snapshot(first))
            self.services.kill_guests()
            self.settled(first, 'error_deleting')
        self.reboot(self.server, self.disk)
        self.agree()
        self.delete_both(first, second)

    def delete_killed_before(self):
        first, second = self.two_snapshots()
        with self.services.frozen('nova-compute'):
            self.ask(lambda: self.cinder.delete_snapshot(first))
            self.services.kill('cinder-volume')
            self.services.start('cinder-volume')
            self.agree()
        self.await_merge()
        self.delete_both(first, second)

    def delete_killed_after(self):
        first, second = self.two_snapshots()
        with self.services.frozen('nova-compute'):
            self.ask(lambda: self.cinder.delete_snapshot(first))
            self.services.kill('cinder-volume')
        self.await_merge()
        self.services.start('cinder-volume')
        self.wait_until(lambda: not self.record()['intent'],
                        'the merge is recorded')
        self.agree()
        self.delete_both(first, second)

    def two_snapshots(self):
        return [self.snapshot(self.disk) for _number in range(2)]

    def delete_both(self, first, second):
        """Repeat the deletion that failed, and delete the other one."""
        self.reset(first)
        for each in first, second:
            self.delete(each, self.cinder.delete_snapshot)

    def await_merge(self):
        """Wait until the guest has done what cinder-volume asked for."""
        merged = self.record()['intent']['file']
        self.wait_until(lambda: merged not in self.opened(),
                        'the guest has merged %s' % merged)

    # What is done, and waited for

    def ask(self, request):
        """Make a request, and wait until Nova's API has passed it on."""
        log = self.services.log('nova')
        offset = os.path.getsize(log)
        result = request()

        def passed():
            with open(log, errors='replace') as stream:
                stream.seek(offset)
                return '/os-assisted-volume-snapshots' in stream.read()
        self.wait_until(passed, 'Cinder asks Nova for the snapshot')
        return result

    def settled(self, snapshot, status, patience=demo.TIMEOUT):
        """Wait until a snapshot has come to a state, which must be the one."""
        self.wait_until(
            lambda: snapshot.fetch(self.cinder).status not in (
                'creating', 'deleting'),
            'snapshot %s is settled' % snapshot.id, patience)
        if snapshot.status != status:
            raise demo.DemoError('snapshot %s is in state %s, not %s' % (
                snapshot.id, snapshot.status, status))

    def reset(self, snapshot):
        """Let a snapshot be deleted again, as an administrator does."""
        self.act(snapshot, 'os-reset_status', {'status': 'error'})

    @contextlib.contextmanager
    def unreachable_host(self):
        """Let nova-compute be dead for a while; the guest goes on."""
        self.services.kill('nova-compute')
        try:
            yield
        finally:
            self.services.start('nova-compute')

    # What is looked at

    def verify(self):
        """See that the volume is as usable as before."""
        self.agree()
        self.prove(self.server, self.disk)
        # Nova starts the server with what it has noted.
        self.reboot(self.server, self.disk)
        self.agree()
        snapshot = self.snapshot(self.disk)
        self.agree()
        self.delete(snapshot, self.cinder.delete_snapshot)
        self.prove(self.server, self.disk)
        self.agree()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            clean = demo.check_shares('--config-file',
                                      os.environ['LAB_CINDER_CONF'])
        if not clean:
            raise demo.DemoError(output.getvalue())

    def agree(self):
        """See that all mean the same file."""
        active = self.record()['active']
        path = self.path('.info')
        mirror = 'volume-' + self.disk.volume.id
        if os.path.exists(path):
            with open(path) as stream:
                mirror = json.load(stream)['active']
        attachment, = self.call('get', '/attachments?volume_id=%s' % (
            self.disk.volume.id))['attachments']
        connection = self.call('get', '/attachments/' + attachment['id'])[
            'attachment']['connection_info']['name']
        found = {'the mirror': {mirror}, 'the attachment': {connection},
                 'QEMU': self.written()}
        for who, names in found.items():
            if names != {active}:
                raise demo.DemoError('the record says %s, %s %s' % (
                    active, who, ', '.join(names)))

    def record(self):
        directory = os.path.dirname(self.path())
        with open('%s/.cinder-lustre/%s.json' % (
                directory, self.disk.volume.id)) as stream:
            return json.load(stream)

    def path(self, suffix=''):
        """A file of the volume; its first one is always there."""
        name = 'volume-' + self.disk.volume.id
        return next(os.path.join(directory, name) + suffix
                    for directory in demo.directories()
                    if os.path.exists(os.path.join(directory, name)))

    def opened(self):
        """The volume's files that QEMU has open: names to being written."""
        return {os.path.basename(path): written
                for path, written in self.services.files_of_guests()
                if self.disk.volume.id in path}

    def written(self):
        return {name for name, written in self.opened().items() if written}


def main():
    parser = argparse.ArgumentParser(prog='lab nova-faults',
                                     description=__doc__)
    parser.add_argument('--format', choices=('raw', 'qcow2'), default='raw',
                        help='of the volume')
    parser.add_argument('--case',
                        help='run only cases with this in their names')
    args = parser.parse_args()

    return demo.execute(
        lambda cloud, report: NovaFaults(cloud, report).run_or_clear(
            args.format, args.case))


if __name__ == '__main__':
    sys.exit(main())
