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

import ddt
import fixtures
import testtools

from cinder_lustre import doctor
from cinder_lustre.doctor import host as checks
from cinder_lustre.doctor import shares
from cinder_lustre import lfs
from cinder_lustre import qemu_img
from cinder_lustre import share

SHARE = share.Share.parse('10.0.2.15@tcp:/testfs/cinder')
MANAGERS = {
    'volume': 'cinder_lustre.volume.manager.VolumeManager',
    'backup': 'cinder_lustre.backup.manager.BackupManager'}


@ddt.ddt
class HostChecksTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.modules = self.useFixture(fixtures.TempDir()).path
        self.patch(checks, '_MODULES', self.modules)

    def patch(self, target, attribute, value):
        self.useFixture(fixtures.MockPatchObject(target, attribute, value))

    def load(self, *names):
        """Let kernel modules be loaded."""
        for name in names:
            os.mkdir(os.path.join(self.modules, name))

    def host(self, *roles, **values):
        return doctor.Host(frozenset(roles or ('volume',)), **values)

    def assert_verdict(self, status, found, *words):
        self.assertEqual(status, found.status, found)
        for word in words:
            self.assertIn(word, found.message + ' ' + found.cure)

    def test_versions(self):
        self.assert_verdict('ok', checks.versions(self.host()),
                            'cinder-lustre ', 'cinder ', 'Python 3')

    def test_client(self):
        self.patch(lfs, 'version', lambda: '2.17.0_dirty')
        self.assert_verdict('failure', checks.client(self.host()),
                            'has not loaded', 'modprobe lustre')
        self.assert_verdict(
            'unknown', checks.client(self.host(fstypes=('ext4',))), 'ext4')
        self.load('lustre')
        self.assert_verdict('ok', checks.client(self.host()),
                            'Lustre 2.17.0_dirty in kernel ' +
                            os.uname().release)
        self.patch(lfs, 'version', lambda: None)
        self.assert_verdict('failure', checks.client(self.host()), 'lctl')

    def test_lnet(self):
        host = self.host(targets=[shares.Target(SHARE, '/nowhere',
                                                frozenset())])
        self.assert_verdict('failure', checks.lnet(host), 'modprobe lnet')
        self.load('lnet')
        for states, status, word in (
                (None, 'unknown', 'no lctl'),
                ({}, 'unknown', 'no share is mounted'),
                # The server of another file system.
                ({'10.0.2.16@tcp': 'DISCONN'}, 'unknown', 'no share'),
                ({'10.0.2.15@tcp': 'FULL'}, 'ok', '10.0.2.15@tcp: FULL'),
                ({'10.0.2.15@tcp': 'DISCONN'}, 'failure',
                 'lctl ping 10.0.2.15@tcp')):
            self.patch(lfs, 'mgs_states', lambda: states)
            self.assert_verdict(status, checks.lnet(host), word)

    @ddt.data((None, 'failure'), ('6.2.0', 'warning'), ('7.2.22', 'ok'),
              ('10.0', 'ok'))
    @ddt.unpack
    def test_images(self, version, status):
        self.patch(qemu_img, 'version', lambda: version)
        self.assert_verdict(status, checks.images(self.host()))

    def test_images_of_this_host(self):
        self.assert_verdict('ok', checks.images(self.host()), 'qemu-img 7.')

    def test_managers(self):
        for role, option in (('volume', 'volume_manager'),
                             ('backup', 'backup_manager')):
            self.assert_verdict('ok', checks.managers(
                self.host(role, managers=MANAGERS)))
            self.assert_verdict(
                'failure', checks.managers(self.host(
                    role, managers=dict(MANAGERS, **{role: 'another'}))),
                '%s = %s' % (option, MANAGERS[role]))
        # What this host does not do does not matter.
        self.assert_verdict('ok', checks.managers(self.host(
            'volume', managers=dict(MANAGERS, backup='another'))))
        self.assert_verdict('unknown', checks.managers(self.host()))

    def test_users(self):
        host = self.host(service_user='root')
        self.assert_verdict('unknown', checks.users(host), 'root is 0:0',
                            '--expect-uid')
        for expected, status, word in (
                ({'root': 0}, 'ok', 'root is 0:0.'),
                ({'root': 1}, 'failure', 'root should be 1'),
                ({'root': 0, 'nobody-here': 5}, 'failure',
                 'nobody-here is not on this host')):
            host = self.host(service_user='root', expected_uids=expected)
            self.assert_verdict(status, checks.users(host), word)

    def test_users_of_a_compute_host(self):
        conf = os.path.join(self.modules, 'qemu.conf')
        with open(conf, 'w') as stream:
            stream.write('user = "daemon"\n')
        host = self.host('compute', qemu_conf=conf)
        self.assert_verdict('unknown', checks.users(host), 'daemon is 1:1',
                            'nova is ')
