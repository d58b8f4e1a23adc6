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

"""The faults of the stand-in do what a real Lustre was seen to do."""

import ddt
import errno
import fcntl
import os
import re
import signal
import struct
import subprocess

from tools.lab.tests import standin_case

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_MIB = 1 << 20
_NOBODY = 65534


class HangingTestCase(standin_case.StandinCase):
    """Dead OSTs and frozen servers, and what must not suffer from them."""

    def setUp(self):
        super().setUp()
        self.create()
        self.client = self.mount('client')
        for name in ('dead', 'alive'):
            with open(os.path.join(self.client, name), 'w') as stream:
                stream.write(name)

    def fault(self, *arguments):
        return self.standin('fault', self.fsname, *arguments)

    def assertHangs(self, *command):
        """See that a command hangs and survives SIGKILL.

        :returns: the process
        """
        def killed_in_vain():
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            self.addCleanup(process.wait)
            self.wait_for(lambda: self.is_asking(process) or
                          self.state_of(process) == 'Z',
                          '%s asks' % command[0])
            process.kill()
            self.wait_for(lambda: self.state_of(process) in 'DZ',
                          '%s is killed or hangs' % command[0])
            # One that was killed before its request got through has died.
            return process if self.state_of(process) == 'D' else None

        return self.wait_for(killed_in_vain, '%s hangs' % command[0])

    def state_of(self, process):
        with open('/proc/%d/stat' % process.pid) as stream:
            return stream.read().rpartition(')')[2].split()[0]

    def is_asking(self, process):
        with open('/proc/%d/wchan' % process.pid) as stream:
            return 'request_wait_answer' in stream.read()

    def test_dead_ost(self):
        dead = os.path.join(self.client, 'dead')
        ost, = self.run_command('lfs', 'getstripe', '-i', dead)[1].split()
        self.fault('dead-ost', dead)
        hung = [self.assertHangs('stat', dead),
                self.assertHangs('ls', '-l', self.client)]
        # What the transcript shows to work.
        self.assertEqual(['alive', 'dead'], sorted(os.listdir(self.client)))
        os.statvfs(self.client)
        self.assertEqual(5, os.stat(os.path.join(self.client,
                                                 'alive')).st_size)
        self.assertEqual([ost], self.run_command(
            'lfs', 'getstripe', '-i', dead)[1].split())
        self.fault('recover')
        for process in hung:
            process.wait(standin_case.PATIENCE)
        self.assertEqual(4, os.stat(dead).st_size)

    def test_dead_ost_hangs_on_every_mount(self):
        before = self.mount('before')
        self.fault('dead-ost', os.path.join(self.client, 'dead'))
        after = self.mount('after')
        for directory in (before, after):
            self.assertHangs('stat', os.path.join(directory, 'dead'))
        self.fault('recover')

    def test_lfs_df_waits_for_a_dead_ost(self):
        dead = os.path.join(self.client, 'dead')
        self.run_command('lfs', 'setstripe', '-i', '1',
                         os.path.join(self.client, 'on1'))
        self.fault('dead-ost', os.path.join(self.client, 'on1'))
        process = subprocess.Popen(['lfs', 'df', self.client], text=True,
                                   stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        expected = [re.sub(r'\s.*', '', line).replace('testfs', self.fsname)
                    for line in standin_case.probes('dead-ost')[
                        'lfs df /mnt/lustre-direct']]
        self.assertEqual(expected, [process.stdout.readline().split()[0]
                                    for _line in expected])
        self.assertIsNone(process.poll())
        # It goes on when the OST is back.
        self.fault('recover')
        self.assertIn('OST0001', process.stdout.read())
        self.assertEqual(0, process.wait(standin_case.PATIENCE))
        os.stat(dead)

    def test_dead_ost_of_another_file_system(self):
        self.fault('dead-ost', os.path.join(self.client, 'dead'))
        other = standin_case.StandinCase('run_command')
        other.setUp()
        self.addCleanup(other.doCleanups)
        other.create()
        other.mount('client')
        # Without a path all file systems of the machine are asked.
        code, output = self.run_command('lfs', 'df')
        self.assertEqual(0, code)
        self.assertIn(other.fsname + '-OST0003_UUID', output)
        for arguments in (['get_param', 'osc.*.ost_server_uuid'],
                          ['get_param', 'osc.*.kbytesavail']):
            self.assertIn(other.fsname,
                          self.run_command('lctl', *arguments)[1])

    def test_frozen(self):
        self.fault('frozen')
        hung = [self.assertHangs('stat', os.path.join(self.client, 'alive')),
                self.assertHangs('df', self.client)]
        # The mount itself looks as ever.
        self.assertEqual(
            {(self.share, self.client)},
            {tuple(fields[:2]) for fields in self.mounts()
             if fields[1] == self.client})
        self.fault('frozen')
        self.fault('recover')
        for process in hung:
            process.wait(standin_case.PATIENCE)
        self.assertEqual(5, os.stat(os.path.join(self.client,
                                                 'alive')).st_size)

    def test_destroy_frees_what_hangs(self):
        self.fault('dead-ost', os.path.join(self.client, 'dead'))
        hung = [self.assertHangs('stat', os.path.join(self.client, 'dead'))]
        self.fault('frozen')
        hung.append(self.assertHangs('stat', self.client))
        self.standin('destroy', self.fsname)
        for process in hung:
            process.wait(standin_case.PATIENCE)
        self.assertEqual([], self.mounts())

    def test_killed_servers_free_what_hangs(self):
        dead = os.path.join(self.client, 'dead')
        self.fault('dead-ost', dead)
        hung = self.assertHangs('stat', dead)
        server, = self.servers()
        os.kill(server, signal.SIGKILL)
        hung.wait(standin_case.PATIENCE)
        self.fault('recover')
        self.assertEqual(4, os.stat(dead).st_size)

    def test_dead_ost_needs_a_file_of_the_file_system(self):
        done = self.standin('fault', self.fsname, 'dead-ost', '/etc/passwd',
                            check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn('/etc/passwd is not on a mount of', done.stderr)

    def test_enospc(self):
        self.fault('enospc', 'on')
        found = os.statvfs(self.client)
        self.assertEqual(0, found.f_bavail)
        with open(os.path.join(self.client, 'new'), 'w') as stream:
            exc = self.assertRaises(OSError, os.posix_fallocate,
                                    stream.fileno(), 0, _MIB)
        self.assertEqual(errno.ENOSPC, exc.errno)
        self.fault('enospc', 'off')
        with open(os.path.join(self.client, 'new'), 'w') as stream:
            os.posix_fallocate(stream.fileno(), 0, _MIB)

    def test_unreachable_mgs_comes_back(self):
        self.fault('mgs-unreachable', 'on')
        os.mkdir(self.path('second'))
        process = subprocess.Popen(['mount', '-t', 'lustre', self.share,
                                    self.path('second')])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.fault('mgs-unreachable', 'off')
        self.assertEqual(0, process.wait(standin_case.PATIENCE))
        # What is mounted never depended on it.
        os.stat(os.path.join(self.client, 'alive'))


@ddt.ddt
class LockTestCase(standin_case.StandinCase):
    """Locks as locks-flock.txt and locks-localflock.txt show them."""

    def tries(self, path):
        """Try each kind of lock; errno names, or "ok"."""
        first = os.open(path, os.O_RDWR | os.O_CREAT)
        second = os.open(path, os.O_RDWR)
        try:
            request = struct.pack('@hhqqi4x', fcntl.F_WRLCK, 0, 100, 1, 0)
            exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
            return [self.outcome(func, *arguments) for func, *arguments in (
                (fcntl.flock, first, exclusive),
                (fcntl.flock, first, fcntl.LOCK_UN),
                (fcntl.lockf, first, exclusive),
                (fcntl.lockf, first, fcntl.LOCK_UN),
                (fcntl.fcntl, first, _F_OFD_SETLK, request),
                (fcntl.fcntl, first, _F_OFD_GETLK, request),
                (fcntl.fcntl, second, _F_OFD_SETLK, request),
                (fcntl.fcntl, second, _F_OFD_GETLK, request))]
        finally:
            os.close(first)
            os.close(second)

    def outcome(self, func, *arguments):
        try:
            func(*arguments)
            return 'ok'
        except OSError as exc:
            return errno.errorcode[exc.errno]

    def expected(self, mount):
        """What the transcript shows for a mount."""
        commands = standin_case.transcript('locks-localflock')
        command = next(each for each in commands if each.line.startswith(
            'python3 - /mnt/%s/' % mount))
        return [next((word for word in line.split() if word == 'ok' or
                      word in errno.errorcode.values()), None)
                for line in command.output if not line.startswith(('#', '('))]

    @ddt.data(('flock2', 'flock', ()), ('flock2', 'flock', ('--fuse',)),
              ('noflock', 'noflock', ()), ('localflock', 'localflock', ()))
    @ddt.unpack
    def test_locks(self, name, option, arguments):
        self.create(*arguments)
        client = self.mount('client', '-o', option)
        self.assertEqual(self.expected(name),
                         self.tries(os.path.join(client, 'file')))

    @ddt.data(('flock', (), 1), ('flock', ('--fuse',), 1),
              ('localflock', (), 0))
    @ddt.unpack
    def test_between_two_mounts(self, option, arguments, exit_code):
        self.create(*arguments)
        paths = [os.path.join(self.mount(name, '-o', option), 'file')
                 for name in ('first', 'second')]
        with open(paths[0], 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            self.assertEqual((exit_code, ''), self.run_command(
                'flock', '-n', paths[1], 'true'))

    def test_waiting_for_a_lock(self):
        self.create('--fuse')
        paths = [os.path.join(self.mount(name), 'file')
                 for name in ('first', 'second')]
        with open(paths[0], 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            waiting = [subprocess.Popen(['flock', path, 'true'])
                       for path in paths]
            for process in waiting:
                self.addCleanup(process.wait)
                self.addCleanup(process.kill)
            killed = waiting.pop()
            killed.kill()
            killed.wait(standin_case.PATIENCE)
            self.assertIsNone(waiting[0].poll())
        self.assertEqual(0, waiting[0].wait(standin_case.PATIENCE))

    def test_qemu_img_needs_locks(self):
        self.create()
        client = self.mount('client', '-o', 'noflock')
        code, output = self.run_command(
            'qemu-img', 'create', '-f', 'qcow2', 'nf.qcow2', '64M',
            cwd=client)
        command, = (each for each
                    in standin_case.transcript('locks-localflock')
                    if each.line == 'qemu-img create -f qcow2 nf.qcow2 64M')
        self.assertEqual(
            (command.exit_code, standin_case.normalised(
                '\n'.join(command.output))),
            (code, standin_case.normalised(output)))
        self.assertEqual(0, os.stat(os.path.join(client, 'nf.qcow2')).st_size)


class FuseTestCase(standin_case.StandinCase):
    """A share that is passed on works as a file system."""

    def setUp(self):
        super().setUp()
        self.create('--fuse', '--mode', '0777')
        self.client = self.mount('client')
        self.file = os.path.join(self.client, 'file')

    def as_nobody(self, line):
        return self.run_command('su', 'nobody', '-s', '/bin/bash', '-c', line,
                                cwd=self.client)

    def test_quota(self):
        """As project-quota.txt and project-quota-root.txt."""
        self.standin('fault', self.fsname, 'quota', '16M')
        found = os.statvfs(self.client)
        self.assertEqual(16 * _MIB, found.f_blocks * found.f_frsize)
        exceeded = 'Disk quota exceeded'
        code, output = self.run_command('fallocate', '-l', '20M', self.file)
        self.assertEqual((1, 'fallocate: fallocate failed: %s\n' % exceeded),
                         (code, output))
        found = os.stat(self.file)
        self.assertEqual((20 * _MIB, 0), (found.st_size, found.st_blocks))
        code, output = self.as_nobody(
            'dd if=/dev/zero of=full bs=1M count=20 status=none')
        self.assertEqual(1, code)
        self.assertIn(exceeded, output)
        self.assertEqual((0, ''), self.as_nobody('truncate -s 1G sparse'))
        # What has its blocks can be written again.
        self.assertEqual((0, ''), self.as_nobody(
            'dd if=/dev/zero of=full bs=1M count=2 conv=notrunc status=none'))
        # Root writes as it likes.
        self.assertEqual((0, ''), self.run_command(
            'dd', 'if=/dev/zero', 'of=' + self.file, 'bs=1M', 'count=20',
            'status=none'))
        self.assertEqual(0, os.statvfs(self.client).f_bavail)
        self.standin('fault', self.fsname, 'quota', 'off')
        self.assertLess(0, os.statvfs(self.client).f_bavail)
        self.assertEqual((0, ''), self.as_nobody('echo x > new'))

    def test_quota_needs_fuse(self):
        self.standin('destroy', self.fsname)
        self.create()
        done = self.standin('fault', self.fsname, 'quota', '16M', check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn('--fuse', done.stderr)

    def test_mount(self):
        self.assertEqual([self.share, self.client, 'fuse.lustre'],
                         self.mounts()[-1][:3])
        os.mkdir(os.path.join(self.client, 'sub'))
        second = self.mount('second', '-o', 'ro', sub='/sub')
        self.assertEqual([self.share + '/sub', second, 'fuse.lustre'],
                         self.mounts()[-1][:3])
        self.assertRaises(OSError, os.mkdir, os.path.join(second, 'new'))

    def test_files(self):
        data = os.urandom(3 * _MIB + 17)
        with open(self.file, 'wb') as stream:
            stream.write(data)
            os.fsync(stream.fileno())
        for path in (self.file, os.path.join(self.mount('second'), 'file')):
            with open(path, 'rb') as stream:
                self.assertEqual(data, stream.read())
        os.truncate(self.file, 1000)
        os.utime(self.file, (1, 2))
        os.chmod(self.file, 0o640)
        os.chown(self.file, 12345, 12346)
        found = os.stat(self.file)
        self.assertEqual(
            (1000, 1, 2, 0o100640, 12345, 12346),
            (found.st_size, found.st_atime, found.st_mtime, found.st_mode,
             found.st_uid, found.st_gid))
        with open(self.file, 'rb') as stream:
            os.unlink(self.file)
            self.assertEqual(data[:1000], stream.read())
            self.assertEqual(0, os.fstat(stream.fileno()).st_nlink)

    def test_names(self):
        with open(self.file, 'w') as stream:
            stream.write('x')
        at = os.path.join
        os.link(self.file, at(self.client, 'hard'))
        os.symlink('hard', at(self.client, 'soft'))
        os.mkdir(at(self.client, 'directory'), 0o750)
        for number in range(300):
            os.mknod(at(self.client, 'directory', 'file-%d' % number))
        os.rename(self.file, at(self.client, 'directory', 'moved'))
        self.assertEqual(301, len(os.listdir(at(self.client, 'directory'))))
        self.assertEqual('hard', os.readlink(at(self.client, 'soft')))
        self.assertEqual(2, os.stat(at(self.client, 'soft')).st_nlink)
        os.unlink(at(self.client, 'directory', 'moved'))
        self.assertEqual(1, os.stat(at(self.client, 'hard')).st_nlink)
        exc = self.assertRaises(OSError, os.rmdir,
                                at(self.client, 'directory'))
        self.assertEqual(errno.ENOTEMPTY, exc.errno)

    def test_owners_and_permissions(self):
        self.assertEqual((0, ''), self.as_nobody(
            'umask 007; echo x > file; mkdir directory'))
        found = os.stat(self.file)
        self.assertEqual((_NOBODY, 0o100660), (found.st_uid, found.st_mode))
        os.chown(self.file, 0, 0)
        code, output = self.as_nobody('cat file')
        self.assertEqual((1, 'cat: file: Permission denied\n'),
                         (code, output))

    def test_sparse_files(self):
        with open(self.file, 'wb') as stream:
            os.truncate(self.file, 64 * _MIB)
            os.pwrite(stream.fileno(), b'x' * _MIB, 32 * _MIB)
            os.fsync(stream.fileno())
            self.assertEqual(32 * _MIB, os.lseek(stream.fileno(), 0,
                                                 os.SEEK_DATA))
            self.assertEqual(33 * _MIB, os.lseek(stream.fileno(), 32 * _MIB,
                                                 os.SEEK_HOLE))
        self.assertEqual((0, ''), self.run_command(
            'fallocate', '--punch-hole', '-o', '32M', '-l', '1M', self.file))
        self.assertEqual(0, os.stat(self.file).st_blocks)

    def test_attributes(self):
        os.mkdir(self.file)
        os.setxattr(self.file, 'user.name', b'value')
        self.assertEqual(b'value', os.getxattr(self.file, 'user.name'))
        self.assertIn('user.name', os.listxattr(self.file))
        os.removexattr(self.file, 'user.name')
        self.assertNotIn('user.name', os.listxattr(self.file))
        self.assertEqual((0, ''), self.run_command(
            'lfs', 'setstripe', '-E', '1M', '-L', 'mdt', '-E', '-1', '-c',
            '1', self.file))

    def test_qemu_img(self):
        for line in ('create -q -f qcow2 -o preallocation=metadata a 64M',
                     'convert -f qcow2 -O raw -t none -T none a b',
                     'compare -q -f qcow2 -F raw a b', 'check -q a'):
            self.assertEqual((0, ''), self.run_command(
                'qemu-img', *line.split(), cwd=self.client))
        self.assertEqual(64 * _MIB, os.stat(os.path.join(
            self.client, 'b')).st_size)
