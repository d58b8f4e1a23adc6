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
from oslo_config import cfg
import testtools

from cinder_lustre.brick import mount
from cinder_lustre.doctor import settings
from cinder_lustre import exception

SHARE = '10.0.2.15@tcp:/testfs/cinder'
DRIVER = 'cinder_lustre.volume.drivers.lustre.LustreDriver'
BACKUP_DRIVER = 'cinder_lustre.backup.drivers.lustre.LustreBackupDriver'
CINDER = '''[DEFAULT]
enabled_backends = one, two, other
volume_manager = cinder_lustre.volume.manager.VolumeManager
[backend_defaults]
volume_driver = %s
lustre_development_fstypes = ext4
[one]
lustre_shares = %s
lustre_shares = nonsense
[two]
lustre_shares_config = %%s
lustre_mount_point_base = /two
lustre_development_fstypes = fuse.lustre
[other]
volume_driver = another
''' % (DRIVER, SHARE)
ROLES = frozenset(['volume'])


@ddt.ddt
class SettingsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, 'w') as stream:
            stream.write(text)
        return path

    def cinder(self, shares='shares'):
        return settings.Cinder([self.write('cinder.conf', CINDER % (
            os.path.join(self.directory, shares)))])

    def set_mounts(self, *mounts):
        lines = ['27 1 253:0 / / rw - ext4 /dev/vda1 rw']
        lines += ['%d 27 0:%d / %s rw - %s %s rw,flock' % (
            number, number, *each) for number, each in enumerate(mounts, 30)]
        found = mount.parse_mountinfo('\n'.join(lines))
        self.useFixture(fixtures.MockPatchObject(mount, 'read_mounts',
                                                 lambda: found))

    def test_cinder(self):
        cinder = self.cinder()
        self.assertTrue(cinder.is_found)
        self.assertEqual(['one', 'two'], cinder.backends)
        self.assertEqual(['ext4', 'ext4', 'fuse.lustre'], cinder.fstypes)
        self.assertEqual('/var/lib/cinder/mnt', cinder.base())
        self.assertEqual('/two', cinder.base('two'))
        self.assertEqual(
            {'volume': 'cinder_lustre.volume.manager.VolumeManager',
             'backup': "Cinder's own"}, cinder.managers)

    def test_targets(self):
        self.write('shares', '# ours\n10.0.2.16@tcp:/other\n')
        found, problems = self.cinder().targets(ROLES)
        self.assertEqual(
            [('lustre:/testfs/cinder', '/var/lib/cinder/mnt'),
             ('lustre:/other', '/two')],
            [(target.name, target.base) for target in found])
        for target in found:
            self.assertEqual(target.share.mount_point(target.base),
                             target.path)
            self.assertEqual(ROLES, target.roles)
        (section, problem), = problems
        self.assertEqual(('one', 'failure'), (section, problem.status))
        self.assertIn('line 2 of lustre_shares', problem.message)

    def backups(self, share, driver=BACKUP_DRIVER):
        return settings.Cinder([self.write('cinder.conf', '''[DEFAULT]
enabled_backends = one
state_path = /state
backup_driver = %s
lustre_backup_share = %s
lustre_backup_development_fstypes = xfs
[one]
volume_driver = %s
lustre_shares = %s
''' % (driver, share, DRIVER, SHARE))])

    def test_share_of_backups(self):
        cinder = self.backups('10.0.2.15@tcp:/testfs/backups')
        self.assertTrue(cinder.keeps_backups)
        self.assertEqual(['xfs'], cinder.fstypes)
        (target,), problems = cinder.targets({'backup'})
        self.assertEqual([], problems)
        self.assertEqual(
            ('lustre:/testfs/backups', '/state/backup_mount', {'backup'},
             True),
            (target.name, target.base, target.roles, target.for_backups))
        self.assertEqual(target.share.mount_point(target.base), target.path)

    @ddt.data(({'volume'}, ['lustre:/testfs/cinder']),
              ({'volume', 'backup'},
               ['lustre:/testfs/cinder', 'lustre:/testfs/backups']))
    @ddt.unpack
    def test_shares_are_those_of_the_roles(self, roles, names):
        found, _problems = self.backups(
            '10.0.2.15@tcp:/testfs/backups').targets(roles)
        self.assertEqual(names, [target.name for target in found])

    @ddt.data('', 'nonsense')
    def test_wrong_share_of_backups(self, share):
        found, problems = self.backups(share).targets({'backup'})
        self.assertEqual([], found)
        (option, problem), = problems
        self.assertEqual(('lustre_backup_share', 'failure'),
                         (option, problem.status))

    def test_backups_elsewhere(self):
        cinder = self.backups('10.0.2.15@tcp:/testfs/backups', 'another')
        self.assertFalse(cinder.keeps_backups)
        self.assertEqual(([], []), cinder.targets({'backup'}))

    def test_missing_file_of_shares(self):
        found, problems = self.cinder('missing').targets(ROLES)
        self.assertEqual(['lustre:/testfs/cinder'],
                         [target.name for target in found])
        self.assertIn('missing cannot be read', problems[-1][1].message)

    def test_no_configuration(self):
        self.useFixture(fixtures.MockPatchObject(
            cfg, 'find_config_files', lambda *args, **kwargs: []))
        cinder, nova = settings.Cinder([]), settings.Nova([])
        self.assertFalse(cinder.is_found)
        self.assertFalse(nova.is_found)
        self.assertEqual({}, cinder.managers)
        self.assertEqual(([], []), cinder.targets(ROLES))
        self.assertEqual(['/var/lib/nova/mnt'], nova.bases)
        self.assertRaises(cfg.Error, settings.Cinder, ['/nowhere'])

    def test_nova(self):
        nova = settings.Nova([self.write('nova.conf', '''[DEFAULT]
state_path = /nova
[libvirt]
lustre_mount_point_base = $state_path/lustre
lustre_development_fstypes = ext4
''')])
        self.assertTrue(nova.is_found)
        self.assertEqual(['ext4'], nova.fstypes)
        self.set_mounts()
        self.assertEqual(['/nova/lustre'], nova.bases)
        self.set_mounts(('/nova/mnt/x', 'lustre', SHARE))
        self.assertEqual(['/nova/lustre', '/nova/mnt'], nova.bases)

    def test_mounted_below(self):
        self.set_mounts(('/mnt/a', 'lustre', SHARE),
                        ('/mnt/a', 'tmpfs', 'hides'),
                        ('/mnt/b/c', 'lustre', SHARE),
                        ('/mnt/d', 'ext4', SHARE),
                        ('/mnt/e', 'lustre', '/dev/vdb'))
        for fstypes, expected in (((), ['/mnt/a']),
                                  (('ext4',), ['/mnt/a', '/mnt/d'])):
            found = settings.mounted_below('/mnt', ROLES, fstypes)
            self.assertEqual(expected, [target.path for target in found])
        self.assertEqual('lustre:/testfs/cinder', found[0].name)

    def test_named(self):
        self.set_mounts(('/mnt/a', 'lustre', SHARE))
        target = settings.named('/mnt/a', '/base', ROLES)
        self.assertEqual(('lustre:/testfs/cinder', '/mnt/a', None),
                         (target.name, target.path, target.base))
        self.assertEqual({'10.0.2.15@tcp0'}, target.servers)
        target = settings.named('lustre:/testfs/cinder', '/base', ROLES)
        self.assertEqual(target.share.mount_point('/base'), target.path)
        self.assertIsNone(settings.named('/mnt/b', '/base', ROLES).share)
        self.assertRaises(exception.InvalidShare, settings.named, 'x:/',
                          '/base', ROLES)
