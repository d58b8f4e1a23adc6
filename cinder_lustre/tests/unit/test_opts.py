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

from cinder.volume import configuration
import ddt
import fixtures
from oslo_config import cfg
import testtools

from cinder_lustre import opts
from cinder_lustre.volume.drivers import lustre

DEFAULTS = {
    'lustre_shares_config': '/etc/cinder/lustre_shares',
    'lustre_shares': [],
    'lustre_mount_point_base': '/var/lib/cinder/mnt',
    'lustre_mount_options': 'flock',
    'lustre_mount_timeout': 60,
    'lustre_operation_timeout': 60,
    'lustre_ost_reserved_percentage': 5,
    'lustre_qcow2_volumes': False,
    'lustre_sparsed_volumes': True,
    'lustre_connection_type': 'lustre',
    'lustre_development_fstypes': [],
}


@ddt.ddt
class OptsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        (_group, self.backup_options), (self.group, self.options) = (
            opts.list_opts())

    def read(self, *lines):
        """The options as a service reads them from its file."""
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'conf')
        with open(path, 'w') as stream:
            stream.write('[DEFAULT]\nstate_path = /var/lib/cinder\n[%s]\n%s\n'
                         % (self.group, '\n'.join(lines)))
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.StrOpt('state_path'))
        conf.register_opts(self.options, group=self.group)
        conf(['--config-file', path])
        return conf[self.group]

    def test_group(self):
        """Backends inherit the options, as they do Cinder's."""
        self.assertEqual(configuration.SHARED_CONF_GROUP, self.group)
        for option in self.options:
            self.assertIn(option.name, lustre.CONF[self.group])

    def test_driver_options(self):
        self.assertEqual(self.options,
                         lustre.LustreDriver.get_driver_options())

    def test_defaults(self):
        self.assertEqual(DEFAULTS, dict(self.read()))

    def test_help(self):
        for option in self.options + self.backup_options:
            self.assertThat(option.help, testtools.matchers.MatchesRegex(
                r'[A-Z].*\.$'), option.name)
            self.assertNotIn('  ', option.help)

    @ddt.data(
        ('lustre_shares', ['a@tcp:/fs', 'b@tcp:/fs/x -o flock,user_xattr'],
         ['a@tcp:/fs', 'b@tcp:/fs/x -o flock,user_xattr']),
        ('lustre_connection_type', ['nfs'], 'nfs'),
        ('lustre_mount_point_base', ['$state_path/lustre'],
         '/var/lib/cinder/lustre'),
        ('lustre_development_fstypes', ['ext4,fuse.lustre'],
         ['ext4', 'fuse.lustre']),
        ('lustre_operation_timeout', ['1'], 1),
    )
    @ddt.unpack
    def test_value(self, name, lines, value):
        values = self.read(*['%s = %s' % (name, line) for line in lines])
        self.assertEqual(value, values[name])

    @ddt.data('lustre_connection_type = iscsi', 'lustre_mount_timeout = 0',
              'lustre_operation_timeout = 0', 'lustre_mount_timeout = soon',
              'lustre_qcow2_volumes = perhaps')
    def test_wrong_value(self, line):
        name = line.partition(' ')[0]
        error = self.assertRaises(
            cfg.ConfigFileValueError, lambda: self.read(line)[name])
        self.assertIn(name, str(error))
