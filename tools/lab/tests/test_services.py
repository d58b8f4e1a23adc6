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

"""The programs' configuration."""

import configparser
import pathlib
import string

import fixtures
import testtools

from cinder_lab import config
from cinder_lab import report
from cinder_lab import services
from cinder_lab import state
from cinder_lab import supervisor


class ConfigurationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatchObject(
            services, 'rabbitmq_server', lambda: '/rabbitmq-server'))
        self.useFixture(fixtures.EnvironmentVariable('LAB_SHARE'))
        self.lab = state.Lab(top)
        self.lab.put('port_base', 18000)

    def test_templates_name_only_known_values(self):
        values = config._values(self.lab, 'ext4') | dict.fromkeys(
            ('port', 'password', 'module', 'processes', 'threads', 'extra',
             'filters', 'databases'),
            'x')
        for path in config.TEMPLATES.iterdir():
            text = string.Template(path.read_text()).substitute(values)
            self.assertNotIn('$', text)

    def test_each_backend_has_its_section(self):
        parsed = configparser.ConfigParser()
        parsed.read_string(config._render(
            'cinder.conf', config._values(self.lab, 'ext4,fuse.lustre')))
        for name in services.BACKENDS:
            self.assertEqual(name, parsed[name]['volume_backend_name'])
        self.assertEqual(
            'ext4,fuse.lustre',
            parsed['backend_defaults']['lustre_development_fstypes'])
        self.assertEqual(
            ('127.0.0.1@tcp:/l18000c', 'ext4,fuse.lustre'),
            (parsed['DEFAULT']['lustre_backup_share'],
             parsed['DEFAULT']['lustre_backup_development_fstypes']))

    def test_only_the_host_of_instances_has_no_database(self):
        venv = self.lab.prefix / 'venv'
        (venv / 'etc/nova').mkdir(parents=True)
        (venv / 'etc/nova/api-paste.ini').touch()
        self.useFixture(fixtures.MockPatchObject(state.Lab, 'venv', venv))
        texts = config._nova_texts(
            self.lab, config._values(self.lab, 'ext4,fuse.lustre'))
        databases = {'api_database', 'database'}
        for name, found in (('nova', databases), ('nova-compute', set())):
            parsed = configparser.ConfigParser()
            parsed.read_string(texts[f'nova/{name}.conf'])
            self.assertEqual(found, databases & set(parsed.sections()))
            self.assertEqual(
                'ext4,fuse.lustre',
                parsed['libvirt']['lustre_development_fstypes'])

    def test_owner_of_cached_images_comes_later(self):
        parsed = configparser.ConfigParser()
        for tenant in (['', ''], ['a project', 'a user']):
            if tenant[0]:
                self.lab.put('internal_tenant', tenant)
            parsed.read_string(config._render(
                'cinder.conf', config._values(self.lab, '')))
            self.assertEqual(tenant, [
                parsed['DEFAULT'][f'cinder_internal_tenant_{kind}_id']
                for kind in ('project', 'user')])

    def test_no_supervisor_expansion(self):
        program = services.Program('p', '/bin/p %s', environment={'A': '1%'})
        parsed = configparser.RawConfigParser()
        parsed.read_string(supervisor.configuration(self.lab, [program]))
        self.assertEqual('/bin/p %%s', parsed['program:p']['command'])
        self.assertEqual('A="1%%"', parsed['program:p']['environment'])
        self.assertEqual('cinder-lab-18000', parsed['program:p']['user'])

    def test_qemu_and_services_have_users_of_their_own(self):
        self.lab.put('nova', True)
        self.assertEqual(
            {'libvirtd': 'root'},
            {program.name: program.user
             for program in sum(services.stages(self.lab), [])
             if program.user})
        text = config._render('qemu.conf', config._values(self.lab, ''))
        self.assertIn('user = "cinder-lab-18000-qemu"', text)

    def test_programs_have_names_and_ports_of_their_own(self):
        programs = sum(services.stages(self.lab), [])
        names = [program.name for program in programs]
        self.assertEqual(sorted(set(names)), sorted(names))
        self.assertEqual(18001, self.lab.port('glance'))


class ReportTestCase(testtools.TestCase):

    def test_tail_names_the_log_and_its_last_lines(self):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).path) / 'log'
        self.assertIn('No such file', report.tail(path))
        path.write_text(''.join(f'line {n}\n' for n in range(100)))
        text = report.tail(path, 2)
        self.assertIn(str(path), text)
        self.assertNotIn('line 97\n', text)
        self.assertIn('line 99\n', text)

    def test_what_never_comes_is_named(self):
        error = self.assertRaises(report.LabError, report.wait_for,
                                  lambda: None, 'the thing', 0)
        self.assertIn('the thing', str(error))
        self.assertEqual(5, report.wait_for(lambda: 5, 'it', 0))
