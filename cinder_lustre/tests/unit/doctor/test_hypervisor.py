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

import os
from unittest import mock

import ddt
import fixtures
import testtools

from cinder_lustre import doctor
from cinder_lustre.doctor import hypervisor as checks
from cinder_lustre import exception
from cinder_lustre import worker

BASE = '/var/lib/nova/mnt'
# What matters of libvirt's own profile.
HELPER = '''#include <tunables/global>
profile virt-aa-helper /usr/lib/libvirt/virt-aa-helper {
  #include <abstractions/base>
  deny @{PROC}/[0-9]*/mounts r,
  deny /dev/sd* r,
  @{HOME}/** r,
  /var/lib/libvirt/images/** r,
  /{media,mnt,opt,srv}/** r,
  /**.qcow{,2} r,
  owner /var/lib/nova/** rw,
  include if exists <local/usr.lib.libvirt.virt-aa-helper>
}
'''


@ddt.ddt
class HypervisorTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.conf = self.write('qemu.conf', '# all defaults\n')

    def patch(self, target, attribute, value):
        self.useFixture(fixtures.MockPatchObject(target, attribute, value))

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as stream:
            stream.write(text)
        return path

    def host(self, text='', bases=(BASE,)):
        self.write('qemu.conf', text)
        return doctor.Host(frozenset(['compute']), qemu_conf=self.conf,
                           nova_bases=list(bases))

    def assert_verdict(self, status, found, *words):
        self.assertEqual(status, found.status, found)
        for word in words:
            self.assertIn(word, found.message + ' ' + found.cure)

    def test_read_settings(self):
        self.write('qemu.conf', '''
#user = "root"
user = "+64055"
  group='kvm'
dynamic_ownership = 0
shared_filesystems = [
  "/one",
  "/two"
]
security_driver = [ "selinux", "apparmor" ]
empty = ""
''')
        self.assertEqual(
            {'user': '+64055', 'group': 'kvm', 'dynamic_ownership': 0,
             'shared_filesystems': ['/one', '/two'],
             'security_driver': ['selinux', 'apparmor'], 'empty': ''},
            checks.read_settings(self.conf))

    def test_qemu_user(self):
        self.assertEqual((1, 1, [1]), checks.qemu_user({'user': 'daemon'}))
        self.assertEqual((1, 1, [1]), checks.qemu_user({'user': '+1'}))
        self.assertEqual((1, 1, [1]), checks.qemu_user({'user': 1}))
        self.assertEqual((1, 2, [1, 2]), checks.qemu_user(
            {'user': 'daemon', 'group': 'bin'}))
        self.assertEqual((1, 2, [1, 2]), checks.qemu_user(
            {'user': 'daemon', 'group': '+2'}))
        self.assertIsNone(checks.qemu_user({'user': 'nobody-here'}))
        self.assertIsNone(checks.qemu_user({'user': 'daemon',
                                            'group': 'nobody-here'}))
        self.patch(checks, '_QEMU_USERS', ('nobody-here', 'daemon'))
        self.assertEqual((1, 1, [1]), checks.qemu_user({}))

    @ddt.data(('virtqemud', 'virtqemud (libvirt) 11.3.0', 'ok', '11.3.0'),
              ('libvirtd', 'libvirtd (libvirt) 9.0.0', 'warning', '10.10'),
              ('virsh', '10.10.0', 'ok', '10.10.0'),
              ('another', '', 'unknown', 'container'))
    @ddt.unpack
    def test_libvirt(self, name, out, status, word):
        path = self.write(name, '#!/bin/sh\necho "%s"\n' % out)
        os.chmod(path, 0o755)
        self.patch(worker, 'environment', lambda: {'PATH': self.directory})
        self.assert_verdict(status, checks.libvirt(self.host()), word)

    def test_shared_filesystems(self):
        for text, status in (
                ('', 'warning'),
                ('shared_filesystems = [ "/var/lib/nova/mnt" ]', 'ok'),
                ('shared_filesystems = [ "/srv", "/var/lib/nova/" ]', 'ok'),
                ('shared_filesystems = [ "/var/lib/nova/mnt2" ]', 'warning'),
                ('#shared_filesystems = [ "/var/lib/nova" ]', 'warning'),
                ('shared_filesystems = "/var/lib/nova"', 'warning'),
                ('shared_filesystems = 1', 'warning')):
            self.assert_verdict(
                status, checks.shared_filesystems(self.host(text)), BASE)
        self.assert_verdict('unknown', checks.shared_filesystems(
            self.host(bases=())))

    def test_shared_filesystems_that_hang(self):
        """It is a child that waits for them."""
        self.useFixture(fixtures.MockPatch(
            'cinder_lustre.worker.Worker.run',
            side_effect=exception.ShareUnavailable(share='', reason='')))
        with mock.patch('os.path.realpath') as real:
            self.assert_verdict('unknown', checks.shared_filesystems(
                self.host('shared_filesystems = [ "/one" ]')), '/one')
        real.assert_not_called()

    def test_no_configuration(self):
        host = doctor.Host(frozenset(['compute']),
                           qemu_conf='/nowhere/qemu.conf')
        for check in checks.shared_filesystems, checks.ownership:
            self.assert_verdict('unknown', check(host),
                                '/nowhere/qemu.conf', '--qemu-conf')
        self.assertTrue(host.dynamic_ownership)

    def test_ownership(self):
        for text, status, word in (
                ('user = "daemon"', 'ok', 'while that is attached'),
                ('user = "daemon"\ndynamic_ownership = 0', 'ok', 'alone'),
                ('user = "root"', 'warning', 'another user'),
                ('user = "nobody-here"', 'failure', 'not on this host')):
            self.assert_verdict(status, checks.ownership(self.host(text)),
                                word)

    def test_no_apparmor(self):
        self.patch(checks, '_APPARMOR', '/nowhere')
        self.assert_verdict('ok', checks.apparmor(self.host()), 'kernel')
        self.patch(checks, '_APPARMOR', self.write('enabled', 'N\n'))
        self.assert_verdict('ok', checks.apparmor(self.host()), 'kernel')
        self.patch(checks, '_APPARMOR', self.write('enabled', 'Y\n'))
        for text in ('security_driver = "none"',
                     'security_driver = [ "selinux" ]'):
            self.assert_verdict('ok', checks.apparmor(self.host(text)),
                                'libvirt does not')

    def apparmor(self, local='', qemu='', base=BASE, helper=HELPER):
        """The verdict with these rules beside those of libvirt."""
        self.patch(checks, '_APPARMOR', self.write('enabled', 'Y\n'))
        self.patch(checks, '_PROFILES', self.directory)
        self.write('usr.lib.libvirt.virt-aa-helper', helper)
        self.write('local/usr.lib.libvirt.virt-aa-helper', local)
        self.write('abstractions/libvirt-qemu', qemu)
        return checks.apparmor(self.host(bases=[base]))

    def test_apparmor(self):
        self.assert_verdict('warning', self.apparmor(), BASE + '/** r,',
                            'apparmor_parser -r')
        for local, qemu, status in (
                ('/var/lib/nova/mnt/** r,\n', '', 'ok'),
                ('  "/var/lib/{cinder,nova}/mnt/*/volume-*" rk,\n', '', 'ok'),
                ('/var/lib/nova/mnt/* r,\n', '', 'warning'),
                ('/run/a\\{b r,\n/var/lib/nova/mnt/** r,\n', '', 'ok'),
                ('/var/lib/nova/mnt/** w,\n', '', 'warning'),
                ('#/var/lib/nova/mnt/** r,\n', '', 'warning'),
                ('/var/lib/nova/mnt/** r,\ndeny /var/** r,\n', '', 'warning'),
                ('', '/var/lib/nova/mnt/** rwk,\n', 'ok'),
                ('', '/var/lib/nova/mnt/** r,\n', 'warning')):
            self.assert_verdict(status, self.apparmor(local, qemu))
        for base in '/mnt/nova', '/home/nova/mnt', '/root/mnt':
            self.assert_verdict('ok', self.apparmor(base=base))

    def test_no_profiles(self):
        self.patch(checks, '_APPARMOR', self.write('enabled', 'Y\n'))
        self.patch(checks, '_PROFILES', '/nowhere')
        self.assert_verdict('unknown', checks.apparmor(self.host()))
        self.apparmor()
        self.assert_verdict('unknown', checks.apparmor(self.host(bases=())))
