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

"""A guest and its Nova, as far as the disk of the guest goes.

The guest is QEMU's storage daemon, which has QEMU's block layer and locks,
and no machine around them.
"""

import collections
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import uuid

from cinder import context as cinder_context
from cinder import exception
from cinder import objects
from cinder.objects import fields

from cinder_lustre.brick import nbd
from cinder_lustre.brick import nbd_client
from cinder_lustre.tests.functional import site as sites

_EXPORT = 'disk'
_JOB = 'job'
STATUS = fields.SnapshotStatus


class GuestError(Exception):
    """QEMU refused, or failed to do, what it was asked for."""


class Guest:
    """A process that has a volume open as a running server has it.

    :param directory: where the compute host has mounted the share
    :param name: the active file of the volume
    :param fmt: its format
    :ivar disk: what the guest sees: a raw file-like object
    """

    def __init__(self, directory, name, fmt):
        self._directory = directory
        self._nodes = 0
        # The names of the chain's nodes by file name, from top to bottom.
        self._chain = {}
        self._stderr = tempfile.TemporaryFile()
        self.disk = None
        # It begins with zero: a name that needs no file.
        self._address = '\0cinder-lustre-%s' % uuid.uuid4()
        self._monitor, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            # A test run that is killed takes its guests along.
            self._process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', 'qemu-storage-daemon',
                 '--chardev', 'socket,id=qmp,fd=%d' % theirs.fileno(),
                 '--monitor', 'chardev=qmp',
                 '--nbd-server', 'addr.type=fd,addr.str=%d'
                 % listener.fileno()],
                pass_fds=[theirs.fileno(), listener.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=self._stderr)
        self._monitor.settimeout(sites.PATIENCE)
        self._replies = self._monitor.makefile('rb')
        self._events = collections.deque()
        try:
            self._receive()
            self._execute('qmp_capabilities')
            self._open_chain(name, fmt)
            self._plug_in()
        except BaseException:
            self.crash()
            raise

    @property
    def running(self):
        return self._process.poll() is None

    # The monitor

    def _receive(self):
        line = self._replies.readline()
        if not line:
            self._stderr.seek(0)
            raise GuestError('QEMU is gone: %s' % self._stderr.read().decode())
        return json.loads(line)

    def _execute(self, command, **arguments):
        """Run a command of QMP; a name's underscores stand for hyphens.

        :raises: GuestError
        """
        arguments = {name.replace('_', '-'): value
                     for name, value in arguments.items()}
        self._monitor.sendall(json.dumps(
            {'execute': command, 'arguments': arguments}).encode())
        while True:
            reply = self._receive()
            if 'event' in reply:
                self._events.append(reply)
            elif 'error' in reply:
                raise GuestError('%s: %s' % (command, reply['error']['desc']))
            else:
                return reply['return']

    def _wait_for(self, *names):
        """The data of the next event that has one of these names."""
        while True:
            event = (self._events.popleft() if self._events
                     else self._receive())
            if event.get('event') in names:
                return event['data']

    # The chain

    @property
    def active(self):
        """The name of the file that the guest writes to."""
        return next(iter(self._chain))

    @property
    def files(self):
        """The names of the files of the chain, from top to bottom."""
        return list(self._chain)

    def _open_chain(self, name, fmt):
        chain = []
        while name is not None:
            chain.append((name, fmt))
            backing = backing_fmt = None
            if fmt == 'qcow2':
                image = json.loads(sites.command(
                    'qemu-img', 'info', '-U', '-f', fmt, '--output=json',
                    os.path.join(self._directory, name)))
                backing = image.get('backing-filename')
                # Libvirt takes what is not said for raw.
                backing_fmt = image.get('backing-filename-format', 'raw')
            name, fmt = backing, backing_fmt
        node = None
        for number, (name, fmt) in reversed(list(enumerate(chain))):
            node = self._open_image(name, fmt, node, read_only=number > 0)
            self._chain = {name: node, **self._chain}

    def _open_image(self, name, fmt, backing, read_only=False):
        self._nodes += 1
        node = 'node%d' % self._nodes
        options = {'backing': backing} if fmt == 'qcow2' else {}
        # Past the page cache, as Nova has it on shared file systems.
        self._execute('blockdev-add', node_name=node, driver=fmt,
                      read_only=read_only, discard='unmap',
                      cache={'direct': True}, file={
                          'driver': 'file', 'locking': 'on',
                          'filename': os.path.join(self._directory, name),
                          'auto-read-only': True, 'discard': 'unmap',
                          'cache': {'direct': True}},
                      **options)
        return node

    def _close_images(self, names):
        for name in names:
            self._execute('blockdev-del', node_name=self._chain.pop(name))

    # The disk

    def _plug_in(self):
        self._execute('block-export-add', id=_EXPORT, type='nbd', name='',
                      node_name=self._chain[self.active], writable=True)
        server = _Server(self._address, self._stderr)
        size, flags = nbd_client.negotiate(server.sock)
        self.disk = nbd._Random(nbd.Export(
            self._address[1:], server, size, flags, False), 1 << 20)

    def _unplug(self):
        self.disk.close()
        self._execute('block-export-del', id=_EXPORT, mode='hard')
        self._wait_for('BLOCK_EXPORT_DELETED')

    def resize(self, size):
        """Notice that the disk has grown, as Nova asks the guest to."""
        self._unplug()
        self._execute('block_resize', node_name=self._chain[self.active],
                      size=size)
        self._plug_in()

    # What libvirt does for Nova

    def open_overlay(self, name):
        """The first half of a pivot: open a new overlay."""
        self._overlay = name, self._open_image(name, 'qcow2', None)

    def enter_overlay(self):
        """The second half of a pivot: write to the overlay from now on."""
        name, node = self._overlay
        self._execute('blockdev-snapshot', node=self._chain[self.active],
                      overlay=node)
        self._chain = {name: node, **self._chain}

    def pivot(self, name):
        """Write to a new overlay from now on."""
        self.open_overlay(name)
        self.enter_overlay()

    def commit(self, top, base, stop=False):
        """Write layers into one below them.

        :param top: the name of the topmost of them, not the active one
        :param base: the name of the layer below them
        :param stop: fail when something has been written
        """
        names = self.files
        self._run_job('block-commit', stop, top_node=self._chain[top],
                      base_node=self._chain[base], backing_file=base)
        self._close_images(names[names.index(top):names.index(base)])

    def _run_job(self, command, stop, **arguments):
        self._execute(command, job_id=_JOB,
                      device=self._chain[self.active], **arguments,
                      # After the first piece it then waits for very long.
                      **({'speed': 1} if stop else {}))
        if stop:
            while not self._execute('query-block-jobs')[0]['offset']:
                time.sleep(0.01)
            self._execute('block-job-cancel', device=_JOB)
        ended = self._wait_for('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED')
        # Only then do the images that were merged belong to nobody.
        while self._wait_for('JOB_STATUS_CHANGE')['status'] != 'null':
            pass
        if stop or 'error' in ended:
            raise GuestError('%s: %s' % (command,
                                         ended.get('error', 'stopped')))

    # The end

    def shutdown(self):
        """Stop the server: everything is written, and the files are closed."""
        self.disk.close()
        self._execute('quit')
        self._leave()

    def crash(self):
        """Kill QEMU at once; nothing happens to one that is gone."""
        if self.running:
            self._process.kill()
        self._leave()

    def _leave(self):
        self._process.wait(sites.PATIENCE)
        if self.disk is not None:
            # What is in the buffer has never reached the guest's disk.
            with contextlib.suppress(OSError):
                self.disk.close()
        self._replies.close()
        self._monitor.close()
        self._stderr.close()


class _Server:
    """The connection to a guest's disk, for the client of NBD."""

    def __init__(self, address, stderr):
        self._stderr = stderr
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(sites.PATIENCE)
        self.sock.connect(address)

    def stop(self, grace=None):
        self.sock.close()
        return 0

    def errors(self):
        self._stderr.seek(0)
        return self._stderr.read().decode()


class FakeNova:
    """Stands for cinder.compute.nova.API, with troubles on demand.

    Nova has the guest do what Cinder asks for, then tells by the progress of
    the snapshot that it is done.

    :ivar guests: the guests by the id of the volume that they have
    :ivar work: what happens to the guest: 'now', 'later' (when Cinder has
                asked for the state of the snapshot a few times, or when
                :meth:`catch_up` is called), 'never' or, for merges, 'half'
    :ivar answer: 'done', 'error', 'never' (Cinder soon gives up), or 'raise',
                  an error of the call
    :ivar calls: what was asked for
    """

    PATIENCE = 3

    def __init__(self):
        self.guests = {}
        self.calls = []
        self.behave()

    def behave(self, work='now', answer='done'):
        """Set what happens from now on."""
        self.work = work
        self.answer = answer
        self._polls = 0
        self._delayed = []

    def create_volume_snapshot(self, context, volume_id, create_info):
        self.calls.append(create_info)
        if create_info['type'] != 'qcow2':
            raise exception.InvalidInput(reason='the type must be qcow2')
        guest = self.guests[volume_id]
        self._handle(create_info['snapshot_id'],
                     lambda stop: guest.pivot(create_info['new_file']),
                     STATUS.CREATING,
                     STATUS.ERROR)

    def delete_volume_snapshot(self, context, snapshot_id, delete_info):
        self.calls.append(delete_info)
        guest = self.guests[delete_info['volume_id']]

        def merge(stop):
            guest.commit(delete_info['file_to_merge'],
                         delete_info['merge_target_file'], stop)

        self._handle(snapshot_id, merge, STATUS.DELETING,
                     STATUS.ERROR_DELETING)

    def _handle(self, snapshot_id, work, done, failed):
        def carry_out():
            try:
                if self.work != 'never':
                    work(self.work == 'half')
            except GuestError:
                self._report(snapshot_id, failed)
            else:
                if self.answer in ('done', 'error'):
                    self._report(snapshot_id,
                                 done if self.answer == 'done' else failed)

        if self.work == 'later':
            self._delayed.append(carry_out)
        else:
            carry_out()
        if self.answer == 'raise':
            raise exception.APITimeout(service='Nova')

    @staticmethod
    def _report(snapshot_id, status):
        """Update a snapshot, as far as Cinder's API lets Nova do it."""
        try:
            snapshot = objects.Snapshot.get_by_id(
                cinder_context.get_admin_context(), snapshot_id)
        except exception.SnapshotNotFound:
            return
        # The status that the snapshot has, and those that may follow it.
        allowed = {STATUS.CREATING: (STATUS.CREATING, STATUS.ERROR),
                   STATUS.DELETING: (STATUS.DELETING, STATUS.ERROR_DELETING)}
        if status in allowed.get(snapshot.status, ()):
            snapshot.status = status
            snapshot.progress = '90%'
            snapshot.save()

    # In place of the module time, for who polls the snapshot

    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds):
        self._polls += 1
        if self._polls == self.PATIENCE:
            if self.answer == 'never':
                # What Cinder says after minutes, or hours.
                raise exception.RemoteFSException('Timed out')
            self.catch_up()

    def catch_up(self):
        """Do what has been delayed."""
        while self._delayed:
            self._delayed.pop(0)()
