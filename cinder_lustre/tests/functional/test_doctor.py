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

"""The doctor on real mounts: a healthy share, and each of its defects."""

import contextlib
import io
import json
import os
import struct
from unittest import mock

import ddt

from cinder_lustre.cmd import doctor as command
from cinder_lustre.doctor import hypervisor
from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites

# Users that every Linux has: one for the services, and one for QEMU.
SERVICE, QEMU = 'daemon', 'bin'


def allow(path, name, user, given):
    """Give a user an entry in an ACL, as setfacl does.

    :param name: of the ACL: access or default
    :param given: the permissions of that user, as a number
    """
    owner, group = 7, 5
    entries = [(1, owner, -1), (2, given, user), (4, group, -1),
               (16, group | given, -1), (32, 0, -1)]
    os.setxattr(path, 'system.posix_acl_' + name, struct.pack('<I', 2) + (
        b''.join(struct.pack('<HHi', *entry) for entry in entries)))


class DoctorTestCase(base.FunctionalTestCase):
    """Has a share that the service may use, and the configuration of it."""

    def prepare(self):
        self.base = self.make_directory('mnt')
        self.path = self.site.share.mount_point(self.base)
        self.service = hypervisor.identity(SERVICE)
        self.qemu = hypervisor.identity(QEMU)
        os.chown(self.site.path, *self.service[:2])
        os.chmod(self.site.path, 0o750)
        self.settings = os.path.join(self.directory, 'cinder.conf')
        self.write_configuration(self.site.share)
        self.qemu_conf = os.path.join(self.directory, 'qemu.conf')
        self.write_qemu_conf('user = "%s"' % QEMU)

    def write_configuration(self, *shares, section='DEFAULT'):
        with open(self.settings, 'w') as stream:
            stream.write(
                '[DEFAULT]\nenabled_backends = lustre\n'
                'volume_manager = cinder_lustre.volume.manager.VolumeManager\n'
                '[backend_defaults]\n'
                'lustre_mount_point_base = %s\n'
                'lustre_development_fstypes = %s\n'
                '[lustre]\nvolume_driver = '
                'cinder_lustre.volume.drivers.lustre.LustreDriver\n' % (
                    self.base, ','.join(self.site.filesystem.fstypes)))
            stream.writelines('lustre_shares = %s\n' % each for each in shares)

    def write_qemu_conf(self, *lines):
        with open(self.qemu_conf, 'w') as stream:
            stream.writelines('%s\n' % line for line in lines)

    def mount_share(self, options=''):
        os.makedirs(self.path, exist_ok=True)
        self.mount(self.site.share, options, self.path)

    def unmount_share(self):
        sites.command('umount', self.path)

    def doctor(self, *arguments, timeout=base.PATIENCE):
        """Run the command.

        :returns: its exit code; what it has found is in self.found, by check
        """
        out = io.StringIO()
        with contextlib.redirect_stdout(out), mock.patch.object(
                command.logging, 'basicConfig'):
            code = command.main([
                '--json', '--config-file', self.settings,
                '--qemu-conf', self.qemu_conf, '--service-user', SERVICE,
                '--timeout', str(timeout), *arguments])
        report = json.loads(out.getvalue())
        self.assertIsNone(report['error'])
        self.found = {result['check']: result for result in report['results']}
        return code

    def assert_healthy(self, *arguments):
        """The command finds nothing that has to be mended."""
        code = self.doctor(*arguments)
        self.assert_not_ok()
        self.assertEqual(command.HEALTHY, code)

    def assert_failures(self, *arguments, **kwargs):
        """The command finds something that has to be mended."""
        self.assertEqual(command.FAILURES, self.doctor(*arguments, **kwargs))

    def assert_found(self, check, status, *words):
        """A check has ended so, with these words."""
        found = self.found[check]
        self.assertEqual(status, found['status'], found)
        for word in words:
            self.assertIn(word, found['message'] + ' ' + found['cure'])

    def assert_not_ok(self, *checks):
        """All others have found nothing that has to be mended."""
        failures = {check: found for check, found in self.found.items()
                    if found['status'] == 'failure'}
        self.assertEqual(set(checks), set(failures), failures)


@ddt.ddt
class HostTestCase(DoctorTestCase):

    def test_healthy(self):
        self.mount_share()
        self.assert_healthy(
            '--expect-uid', '%s=%d' % (SERVICE, self.service[0]))
        for check in ('mount', 'targets', 'space', 'directory', 'locks',
                      'root-squash', 'managers', 'qemu-img', 'users', 'lnet'):
            self.assert_found(check, 'ok')
        self.assertEqual([], self.site.listing())

    def test_not_mounted(self):
        os.makedirs(self.path)
        self.assert_failures()
        self.assert_found('mount', 'failure', 'nothing is mounted')
        for check in 'space', 'directory', 'locks', 'root-squash', 'hsm':
            self.assert_found(check, 'unknown', 'not tried')
        self.assertEqual([], os.listdir(self.path))

    @ddt.data('noflock', 'localflock')
    def test_locks_that_do_not_serve(self, option):
        self.need(option)
        self.mount_share(option)
        self.assert_failures()
        # Lustre shows it in the list of mounts, what stands in for it may not.
        check = next(check for check in ('mount', 'locks')
                     if self.found[check]['status'] == 'failure')
        self.assert_found(check, 'failure', option, 'flock')
        self.assert_not_ok(check)

    def test_read_only(self):
        self.mount_share('ro')
        self.assert_failures()
        self.assert_found('mount', 'failure', 'read-only', 'remount,rw')
        self.assert_not_ok('mount')

    def test_hidden(self):
        self.mount_share()
        sites.command('mount', '-t', 'tmpfs', 'tmpfs', self.path)
        self.assert_failures()
        self.assert_found('mount', 'failure', 'hidden by tmpfs')
        self.assertEqual([], os.listdir(self.path))

    def test_mounted_twice(self):
        self.mount_share()
        sites.command('mount', '--bind', self.path, self.path)
        self.assert_healthy()
        self.assert_found('mount', 'warning', '2 mounts lie on')

    def test_directory_open_to_all(self):
        self.mount_share()
        os.chmod(self.path, 0o755)
        self.assert_failures()
        self.assert_found('directory', 'failure', '0755', 'chmod o-rwx')
        self.assert_not_ok('directory')

    def test_directory_of_somebody_else(self):
        self.mount_share()
        os.chown(self.path, *self.qemu[:2])
        self.assert_failures()
        self.assert_found('directory', 'failure',
                          '%s is %d here' % (SERVICE, self.service[0]))
        self.assert_found('locks', 'failure', 'cannot make a file')
        self.assert_not_ok('directory', 'locks')

    def test_wrong_line(self):
        self.mount_share()
        self.write_configuration(self.site.share, 'nonsense')
        self.assert_failures()
        self.assert_found('shares', 'failure', 'line 2')
        self.assert_not_ok('shares')

    def test_share_that_is_named(self):
        self.mount_share()
        for name in self.path, str(self.site.share), (
                self.site.share.identity):
            self.assert_healthy(name)
            self.assert_found('mount', 'ok', self.path)
        self.assert_failures(self.directory)
        self.assert_found('mount', 'failure', 'no share is mounted')


class ComputeTestCase(DoctorTestCase):
    """The share is mounted where Nova mounts it."""

    def prepare(self):
        super().prepare()
        self.nova = os.path.join(self.directory, 'nova.conf')
        with open(self.nova, 'w') as stream:
            stream.write('[libvirt]\nlustre_mount_point_base = %s\n'
                         'lustre_development_fstypes = %s\n' % (
                             self.base,
                             ','.join(self.site.filesystem.fstypes)))

    def doctor(self, *arguments, **kwargs):
        return super().doctor('--role', 'compute', '--nova-config-file',
                              self.nova, *arguments, **kwargs)

    def test_qemu_may_not_enter(self):
        self.mount_share()
        self.assert_failures()
        self.assert_found('qemu-access', 'failure', 'cannot search',
                          'setfacl -m u:%d:x' % self.qemu[0])
        self.assert_found('acl', 'warning', 'setfacl -d -m u:%d:rw'
                          % self.service[0])

    def test_qemu_gets_the_files(self):
        self.mount_share()
        allow(self.path, 'access', self.qemu[0], 1)
        self.assert_healthy()
        self.assert_found('qemu-access', 'ok', 'libvirt gives')
        self.write_qemu_conf('user = "%s"' % QEMU, 'dynamic_ownership = 0')
        self.assert_failures()
        self.assert_found('qemu-access', 'failure', 'cannot open',
                          'setfacl -d -m u:%d:rw' % self.qemu[0])
        allow(self.path, 'default', self.qemu[0], 6)
        self.assert_healthy()
        self.assert_found('qemu-access', 'ok', 'can open the files')
        self.assertEqual([], self.site.listing())

    def test_acl_of_the_service(self):
        self.mount_share()
        allow(self.path, 'default', self.service[0], 6)
        self.doctor()
        self.assert_found('acl', 'ok')
        allow(self.path, 'default', self.service[0], 4)
        self.doctor()
        self.assert_found('acl', 'warning')

    def test_mounted_elsewhere(self):
        self.path = self.make_directory('mnt/elsewhere')
        self.mount_share()
        self.assert_failures()
        self.assert_found('mount', 'failure', 'is looked for on %s'
                          % self.site.share.mount_point(self.base))

    def test_nothing_mounted(self):
        self.doctor()
        self.assert_found('shares', 'unknown', 'none is mounted below')

    def test_migration(self):
        self.mount_share()
        self.doctor()
        self.assert_found('shared-filesystems', 'warning', self.base)
        self.write_qemu_conf('user = "%s"' % QEMU,
                             'shared_filesystems = [\n  "/nowhere",\n  "%s"\n]'
                             % self.directory)
        self.doctor()
        self.assert_found('shared-filesystems', 'ok', self.base)


class DeadOSTTestCase(DoctorTestCase):

    FAULTS = ('dead-ost',)

    def test_dead_ost(self):
        self.mount_share()
        name = 'volume-of-a-test'
        with open(os.path.join(self.path, name), 'w'):
            pass
        self.addCleanup(os.unlink, os.path.join(self.site.path, name))
        self.addCleanup(self.site.recover)
        self.broken |= {'file-without-record', 'mode'}
        self.site.kill_ost(name)
        self.assert_failures()
        self.assert_found('targets', 'failure', 'DISCONN', 'Bring back')
        # The others still answer.
        self.assert_not_ok('targets')
        self.assert_found('locks', 'ok')


class FrozenTestCase(DoctorTestCase):

    FAULTS = ('frozen',)

    def test_frozen_server(self):
        self.mount_share()
        self.site.filesystem.freeze()
        self.assert_failures(timeout=2)
        self.assert_found('targets', 'failure', 'MDT0000: DISCONN')
        self.assert_found('space', 'failure', 'silent for 2 seconds')
        self.assert_found('locks', 'unknown', 'not tried')
        self.assert_found('lnet', 'failure', 'nothing new can be mounted')
