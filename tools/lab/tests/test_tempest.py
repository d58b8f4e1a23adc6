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


import configparser
import pathlib
import re

import ddt
import fixtures
import testtools

from cinder_lab import rest
from cinder_lab import state
from cinder_lab import tempest
from cinder_lab import venv


class Services:
    """Glance and Nova, as far as they are asked."""

    def __init__(self, images):
        self.images = images
        self.uploaded = []

    def glance(self, method, path, body=None):
        if method == 'GET':
            return {'images': [{'id': name} for name in self.images
                               if f'name={name}' in path]}
        if method == 'PUT':
            self.uploaded.append(len(body))
        else:
            self.images.append(body['name'])
            return {'id': body['name']}

    def nova(self, method, path):
        return {'flavors': [{'name': 'other', 'id': 1},
                            {'name': 'lab', 'id': 2}]}


OURS = 'cinder_lustre_tempest_plugin.tests.'


@ddt.ddt
class ConfigurationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.lab = state.Lab(top)
        self.lab.put('port_base', 18000)
        (top / 'etc').mkdir()
        (top / 'etc/shares-lustre1').write_text('10.0.0.1@tcp:/testfs/a\n')
        self.services = Services(['lab-guest'])
        self.useFixture(fixtures.MockPatchObject(
            rest, 'Client', lambda lab: self.services))
        self.useFixture(fixtures.MockPatchObject(
            tempest.commands, 'run', lambda *command, **options: '/tests\n'))

    def _configured(self):
        place = tempest.configure(self.lab)
        parser = configparser.RawConfigParser()
        parser.read(place / 'tempest.conf')
        return parser

    def test_without_servers(self):
        parsed = self._configured()
        self.assertEqual('False', parsed['service_available']['nova'])
        self.assertEqual('lab-tempest', parsed['compute']['image_ref'])
        self.assertNotIn('flavor_ref', parsed['compute'])
        self.assertEqual('source-name,10.0.0.1@tcp:/testfs/a/volume-%s',
                         parsed['volume']['manage_volume_ref'])

    def test_image_is_uploaded_once(self):
        for _ in range(2):
            self._configured()
        self.assertEqual(1, len(self.services.uploaded))

    def test_with_servers(self):
        self.lab.put('nova', True)
        parsed = self._configured()
        self.assertEqual('True', parsed['service_available']['nova'])
        self.assertEqual(('lab-guest', '2'), (
            parsed['compute']['image_ref'], parsed['compute']['flavor_ref']))

    def test_another_driver_is_not_asked_for_what_it_lacks(self):
        self.lab.put('nova', True)
        for backend, expected in ('lustre', 'True'), ('nfs', 'False'):
            self.lab.put('backend', backend)
            parsed = self._configured()
            self.assertEqual(backend, parsed['volume']['storage_protocol'])
            features = parsed['volume-feature-enabled']
            self.assertEqual({expected}, {
                features['manage_volume'], features['volume_revert'],
                features['extend_attached_volume'],
                parsed['compute-feature-enabled']['volume_multiattach']})
            self.assertEqual('True', features['multi_backend'])

    def test_password_is_for_root_alone(self):
        place = tempest.configure(self.lab)
        self.assertEqual(
            0o600, (place / 'tempest.conf').stat().st_mode & 0o777)

    def test_tests_are_where_tempest_has_them(self):
        place = tempest.configure(self.lab)
        self.assertIn('test_path=/tests\n',
                      (place / '.stestr.conf').read_text())

    def test_each_exclusion_has_its_reason(self):
        for file in tempest.EXCLUDED:
            for line in file.read_text().splitlines():
                pattern, _, reason = line.partition('#')
                self.assertTrue(reason.strip(), line)

    def test_servers_are_left_out_where_there_are_none(self):
        name = 'VolumesBackupsTest.test_incremental_backup'
        for nova in (False, True):
            self.lab.put('nova', nova)
            excluded = (tempest.configure(self.lab) /
                        'exclude.txt').read_text()
            self.assertIn('test_volume_backup_export_import', excluded)
            self.assertEqual(not nova, name in excluded)

    def test_another_driver_passes_what_ours_cannot(self):
        self.lab.put('backend', 'nfs')
        excluded = (tempest.configure(self.lab) / 'exclude.txt').read_text()
        self.assertNotIn('test_volume_backup_export_import', excluded)
        # Its guests have no network either.
        self.assertIn('test_snapshot_data_integrity', excluded)

    @ddt.data(
        (True, OURS + 'api.test_quotas.QuotaTest.test_over_each_quota'),
        (True, OURS + 'scenario.test_backups.BackupQcow2Test.test_snapshot'),
        (False, OURS + 'scenario.test_backups.BackupTest.test_snapshot'),
        (False, OURS + 'scenario.test_servers.BootQcow2Test.test_boot'),
        (False, OURS + 'performance.test_durations.PerformanceQcow2Test.test'),
        (True, 'tempest.api.volume.test_a.ATest.test_b[id-1234,image,smoke]'),
        (False, 'tempest.api.volume.test_a.ATest.test_b[id-1234]'),
        (False, 'tempest.api.identity.test_a.ATest.test_b[id-1234,smoke]'))
    @ddt.unpack
    def test_quick(self, expected, test):
        self.assertEqual(expected, bool(re.search(tempest.QUICK, test)))

    def test_requirements_are_pinned(self):
        pinned = {line.partition('==')[0]
                  for line in venv.PINS.read_text().splitlines()}
        wanted = (venv.LAB / 'requirements-tempest.txt').read_text().split(
            '\n\n', 1)[1]
        self.assertLessEqual({line for line in wanted.splitlines()
                              if line[:1].isalpha()}, pinned)
