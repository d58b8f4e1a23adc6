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

import fcntl
import os
import re
import signal
import threading
import time
from unittest import mock

import ddt
import fixtures
from os_brick import exception as brick_exception
from os_brick.remotefs import remotefs
import testtools

from cinder_lustre.brick import client
from cinder_lustre.brick import mount
from cinder_lustre import exception

SHARE = '10.0.2.15@tcp:/testfs'
# The MD5 of lustre:/testfs, which paths of volumes depend on.
DIRECTORY = '89e7a3d468737f10432fb449dac014ac'


@ddt.ddt
class ClientTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        # A base that no two tests share; nothing is ever mounted there.
        self.base = os.path.realpath(
            self.useFixture(fixtures.TempDir()).path)
        self.path = os.path.join(self.base, DIRECTORY)
        # Nothing here may run the host's mount, even when it goes wrong.
        commands = self.useFixture(fixtures.TempDir()).path
        os.symlink('/bin/false', os.path.join(commands, 'mount'))
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (commands, os.environ['PATH'])))
        self.mounts = mount.read_mounts()
        self.useFixture(fixtures.MockPatchObject(
            mount, 'read_mounts', lambda: self.mounts))

    def _client(self, **kwargs):
        kwargs.setdefault('lustre_mount_point_base', self.base)
        return client.LustreRemoteFsClient('lustre', 'no-such-helper',
                                           **kwargs)

    def _add(self, **parts):
        known = {each.id for each in self.mounts}
        values = dict(id=max(known) + 1, parent=mount.mounts_on('/')[-1].id,
                      root='/', path=self.path, options=('rw',),
                      fstype='lustre', source=SHARE,
                      super_options=('rw', 'flock'))
        values.update(parts)
        # Whatever the temporary directory is mounted on is the parent.
        for directory in (self.base, *parents(self.base)):
            stack = mount.mounts_on(directory)
            if stack:
                values['parent'] = stack[-1].id
                break
        self.mounts = self.mounts + [mount.Mount(**values)]

    def _arguments(self, *args, share=SHARE, **kwargs):
        """How the child would be asked to mount."""
        with mock.patch('cinder_lustre.worker.Worker.run') as run:
            self._client(**kwargs).mount(share, *args)
        self.assertEqual(mount.mount, run.call_args.args[0])
        return run.call_args

    def test_is_a_remotefs_client(self):
        self.assertIsInstance(self._client(), remotefs.RemoteFsClient)
        self.assertEqual(self.base, self._client().get_mount_base())

    @ddt.data(None, '')
    def test_base_is_required(self, base):
        self.assertRaises(brick_exception.InvalidParameterValue, self._client,
                          lustre_mount_point_base=base)

    def test_unknown_arguments(self):
        # os-brick hands all that it has to all its clients.
        client.LustreRemoteFsClient(
            'lustre', None, None, lustre_mount_point_base=self.base,
            conn={}, use_multipath=False, nfs_mount_options='x')

    def test_base_with_links(self):
        link = self.base + '/link'
        os.symlink(self.base, link)
        self.assertEqual(self.path, self._client(
            lustre_mount_point_base=link).get_mount_point(SHARE))

    @ddt.data(SHARE, 'lustre:/testfs', 'mgs:mgs2:/testfs/', 'x@o2ib:/testfs')
    def test_get_mount_point(self, share):
        self.assertEqual(self.path, self._client().get_mount_point(share))

    def test_get_mount_point_of_nonsense(self):
        self.assertRaises(exception.InvalidShare,
                          self._client().get_mount_point, 'nonsense')

    @ddt.data(SHARE, 'lustre:/testfs')
    def test_check(self, share):
        self.assertRaises(exception.UnusableMount, self._client().check,
                          share)
        self._add()
        self._client().check(share)

    def test_check_development_types(self):
        self._add(fstype='ext4', super_options=('rw',))
        self.assertRaises(exception.UnusableMount, self._client().check,
                          SHARE)
        self._client(development_fstypes=['ext4']).check(SHARE)

    def test_mount(self):
        with mock.patch('os.geteuid', return_value=1000):
            call = self._arguments()
        self.assertEqual(
            (mount.mount, SHARE, self.path, 'flock', 'no-such-helper',
             os.path.join(self.base, '.%s.lock' % DIRECTORY), ()),
            call.args)
        self.assertEqual({'timeout': 60, 'kill': False}, call.kwargs)

    def test_mount_with_settings(self):
        call = self._arguments(lustre_mount_timeout=7,
                               lustre_mount_options='user_xattr',
                               development_fstypes=['ext4'])
        self.assertEqual('user_xattr', call.args[3])
        self.assertEqual(('ext4',), call.args[6])
        self.assertEqual(7, call.kwargs['timeout'])

    @ddt.data((0, ''), (1000, 'no-such-helper'))
    @ddt.unpack
    def test_root_helper_is_for_others_than_root(self, uid, expected):
        with mock.patch('os.geteuid', return_value=uid):
            self.assertEqual(expected, self._arguments().args[4])

    @ddt.data(
        ('flock', SHARE, None, 'flock'),
        ('flock', SHARE, [], 'flock'),
        ('', SHARE, None, ''),
        (None, SHARE, None, ''),
        ('flock', SHARE + ' -o user_xattr', None, 'flock,user_xattr'),
        ('flock', SHARE, ['-o', 'user_xattr,nosuid'],
         'flock,user_xattr,nosuid'),
        ('flock,nosuid', SHARE + ' -o suid,retry=1', ['-o', 'retry=3'],
         'flock,suid,retry=3'),
    )
    @ddt.unpack
    def test_options(self, default, share, flags, expected):
        call = self._arguments(flags, share=share,
                               lustre_mount_options=default)
        self.assertEqual(SHARE, call.args[1])
        self.assertEqual(expected, call.args[3])

    @ddt.data(
        ('flock', ['-o', 'noflock'], '"noflock" cannot be used'),
        ('localflock', None, '"localflock" cannot be used'),
        ('ro', None, '"ro" cannot be used'),
        ('flock', ['--bind'], '"--bind" after the share'),
        ('flock', ['-o', 'x', '-o', 'y'], '"-o x -o y" after the share'),
    )
    @ddt.unpack
    def test_wrong_options(self, default, flags, reason):
        error = self.assertRaises(
            exception.MountFailed,
            self._client(lustre_mount_options=default).mount, SHARE, flags)
        self.assertIn(reason, error.kwargs['reason'])
        self.assertEqual([], os.listdir(self.base))

    @ddt.data(SHARE, 'lustre:/testfs')
    def test_mounted_already(self, share):
        self._add()
        with mock.patch('cinder_lustre.worker.Worker.run') as run:
            self._client().mount(share)
        run.assert_not_called()

    def test_wrong_mount_is_there(self):
        self._add(source='10.0.2.15@tcp:/other')
        self.assertRaises(exception.UnusableMount, self._client().mount,
                          SHARE)

    def test_identity_cannot_be_mounted(self):
        error = self.assertRaises(exception.MountFailed,
                                  self._client().mount, 'lustre:/testfs')
        self.assertIn('does not know the NIDs', error.kwargs['reason'])
        self.assertEqual([], os.listdir(self.base))


def parents(path):
    """The directories above a path, from the nearest one."""
    while path != '/':
        path = os.path.dirname(path)
        yield path


class ChildTestCase(testtools.TestCase):
    """Mounting in a real child, with a command of the test's own."""

    def setUp(self):
        super().setUp()
        self.directory = os.path.realpath(
            self.useFixture(fixtures.TempDir()).path)
        self.base = os.path.join(self.directory, 'mnt')
        self.gate = os.path.join(self.directory, 'gate')
        self.started = os.path.join(self.directory, 'started')
        os.mkfifo(self.gate)
        os.mkfifo(self.started)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (self.directory, os.environ['PATH'])))

    def _command(self, *lines):
        path = os.path.join(self.directory, 'mount')
        # A shell reads on in a file that is written again.
        with open(path + '.new', 'w') as stream:
            stream.write('\n'.join(('#!/bin/sh',) + lines + ('',)))
        os.chmod(path + '.new', 0o755)
        os.rename(path + '.new', path)

    def _client(self, timeout=60):
        return client.LustreRemoteFsClient(
            'lustre', '', lustre_mount_point_base=self.base,
            lustre_mount_timeout=timeout)

    def test_failure(self):
        self._command('echo mount.lustre: No such file or directory >&2',
                      'exit 2')
        found = self._client()
        error = self.assertRaises(exception.MountFailed, found.mount, SHARE)
        self.assertIn('has no file system "testfs"', error.kwargs['reason'])
        # A failure that ended leaves nothing behind that would stop the next.
        self._command('exit 0')
        self.assertRaises(exception.UnusableMount, found.mount, SHARE)
        self.assertEqual(['.%s.lock' % DIRECTORY, DIRECTORY],
                         sorted(os.listdir(self.base)))
        self.assertEqual([], os.listdir(os.path.join(self.base, DIRECTORY)))

    def test_slow_mount_is_left_alone(self):
        # It tells that it runs, then waits to be let go.
        self._command('echo started > %s' % self.started,
                      'read line < %s' % self.gate, 'exit 110')
        found = self._client(timeout=0.01)
        error = self.assertRaises(exception.ShareUnavailable, found.mount,
                                  SHARE)
        self.assertIn('Mounting it takes longer than 0.01 seconds',
                      error.kwargs['reason'])
        self.assertIn('MGS at 10.0.2.15@tcp runs', error.kwargs['reason'])
        child = found._workers['lustre:/testfs']
        pid, = child.stuck
        self.addCleanup(self._kill, child)
        with open(self.started) as stream:
            stream.read()
        error = self.assertRaises(exception.ShareUnavailable, found.mount,
                                  SHARE)
        self.assertIn('An earlier attempt to mount it still runs (process %d)'
                      % pid, error.kwargs['reason'])
        # Another share is not concerned.
        self._command('exit 32')
        found._mount_timeout = 60
        self.assertRaises(exception.MountFailed, found.mount,
                          '10.0.2.15@tcp:/other')
        # It ends by itself, and then the share is tried again.
        with open(self.gate, 'w') as stream:
            stream.write('go\n')
        deadline = time.monotonic() + 60
        while child.stuck and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertRaises(exception.MountFailed, found.mount, SHARE)

    @staticmethod
    def _kill(child):
        for pid in child.stuck:
            os.killpg(pid, signal.SIGKILL)

    def test_one_mount_at_a_time(self):
        os.mkdir(self.base)
        log = os.path.join(self.directory, 'log')
        self._command('echo run > %s' % log, 'exit 2')
        attempt = threading.Thread(target=self.assertRaises, args=(
            exception.MountFailed, self._client().mount, SHARE))
        path = os.path.join(self.base, '.%s.lock' % DIRECTORY)
        with open(path, 'w') as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            attempt.start()
            waiting = re.compile(r'-> FLOCK .*:%d ' % os.fstat(
                other.fileno()).st_ino)
            while attempt.is_alive():
                with open('/proc/locks') as locks:
                    if waiting.search(locks.read()):
                        break
                time.sleep(0.01)
            self.assertTrue(attempt.is_alive())
            self.assertFalse(os.path.exists(log))
        attempt.join(60)
        self.assertTrue(os.path.exists(log))
