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
import re
import subprocess

import ddt
import testtools
import yaml

import checks
import layout


@ddt.ddt
class FilesTest(testtools.TestCase):
    """Which changes each job runs for."""

    def setUp(self):
        super().setUp()
        self.tenant = layout.Tenant([*layout.upstream(), layout.ours()])
        self.jobs = self.tenant.final_jobs()

    def runs(self, name, *files):
        return self.jobs[name].changeMatchesFiles(self.tenant.change(*files))

    @ddt.data(
        'README.rst', 'doc/source/index.rst', 'doc/source/conf.py',
        'releasenotes/notes/x.yaml', 'cinder_lustre/tests/unit/test_chain.py',
        'tools/lab/lab', 'tools/zuul/layout.py', 'tools/run_tests.py',
        'devstack/README.rst', 'devstack/tests/run', 'tox.ini', 'LICENSE',
        'test-requirements.txt', '.gitignore')
    def test_devstack_does_not_run_for(self, file):
        for name in checks.devstack_jobs(self.tenant):
            self.assertFalse(self.runs(name, file), name)

    @ddt.data(
        '.zuul.yaml', 'cinder_lustre/chain.py', 'cinder_lustre/nova/volume.py',
        'cinder_lustre_tempest_plugin/tests/scenario/test_backups.py',
        'devstack/settings', 'devstack/plugin.sh', 'devstack/lib/lustre',
        'playbooks/pre.yaml', 'roles/lustre_server/files/serve',
        'requirements.txt', 'pyproject.toml', 'setup.py', 'setup.cfg',
        'tools/tempest-exclude.txt')
    def test_devstack_runs_for(self, file):
        for name in checks.devstack_jobs(self.tenant):
            self.assertTrue(self.runs(name, file), name)
            self.assertTrue(self.runs(name, 'README.rst', file), name)

    def test_devstack_runs_for_all_code(self):
        code = [file for file in checks.files()
                if file.startswith(('cinder_lustre', 'devstack/', 'playbooks/',
                                    'roles/'))
                and '/tests/' not in file.replace('plugin/tests', '')
                and not file.endswith('.rst')]
        for file in code:
            self.assertTrue(self.runs('cinder-lustre-volume', file), file)

    @ddt.data('devstack/settings', 'playbooks/pre.yaml', '.zuul.yaml',
              'tools/zuul/layout.py', 'tools/lab/lab')
    def test_units_do_not_run_for(self, file):
        for name in ('cinder-lustre-units-2026-1',
                     'cinder-lustre-units-2026-2', 'cinder-lustre-imports'):
            self.assertFalse(self.runs(name, file), name)

    # The unit tests read documents, too.
    @ddt.data('doc/source/admin/troubleshooting.rst', 'cinder_lustre/chain.py',
              'cinder_lustre/tests/unit/test_chain.py', 'tox.ini',
              'constraints/2026.1.txt', 'test-requirements.txt')
    def test_units_run_for(self, file):
        for name in ('cinder-lustre-units-2026-1',
                     'cinder-lustre-units-2026-2', 'cinder-lustre-imports'):
            self.assertTrue(self.runs(name, file), name)

    def test_lint_runs_for_everything(self):
        for name in ('cinder-lustre-lint', 'cinder-lustre-zuul-lint',
                     'cinder-lustre-docs', 'cinder-lustre-devstack-units'):
            for file in checks.files():
                self.assertTrue(self.runs(name, file), (name, file))


class RolesTest(testtools.TestCase):
    """What the roles take from the DevStack plugin."""

    def test_kernel_is_that_of_the_plugin(self):
        found = subprocess.run(
            ('bash', '-c', """
                define_plugin() { :; }
                is_service_enabled() { false; }
                trueorfalse() { echo "$1"; }
                DISTRO=rhel9
                source devstack/settings
                echo "$LUSTRE_SERVER_KERNEL $LUSTRE_REPO_URL/server"
             """), cwd=layout.ROOT, check=True, stdout=subprocess.PIPE,
            text=True, env={'PATH': os.environ['PATH']}).stdout.split()
        defaults = yaml.safe_load(
            (layout.ROOT / 'roles/lustre_kernel/defaults/main.yaml')
            .read_text())
        self.assertEqual(found, [defaults['lustre_kernel_release'],
                                 defaults['lustre_kernel_repository']])

    def test_functions_of_the_plugin(self):
        script = (layout.ROOT / 'roles/lustre_server/files/serve').read_text()
        called = set(re.findall(r'^(lustre_\w+)', script, re.MULTILINE))
        defined = ''.join(
            file.read_text()
            for file in (layout.ROOT / 'devstack/lib').iterdir())
        self.assertEqual({'lustre_check', 'lustre_install', 'lustre_start'},
                         called)
        for name in called:
            self.assertIn(f'function {name} {{', defined)

    def test_hosts_are_those_of_nodesets(self):
        with open(layout.ROOT / '.zuul.yaml') as source:
            groups = {group['name'] for item in yaml.safe_load(source)
                      if 'nodeset' in item
                      for group in item['nodeset']['groups']}
        for file in (layout.ROOT / 'playbooks').glob('*.yaml'):
            for play in yaml.safe_load(file.read_text()):
                for group in play['hosts'].split(':'):
                    self.assertIn(group, groups | {'all'}, file)

    def test_state_is_staged(self):
        job = layout.Tenant([*layout.upstream(), layout.ours()]).job(
            'cinder-lustre-volume')
        defaults = yaml.safe_load(
            (layout.ROOT / 'roles/collect_lustre_state/defaults/main.yaml')
            .read_text())
        self.assertEqual(
            'logs', job.variables['zuul_copy_output'][
                defaults['collect_lustre_state_dir']])

    def test_performance_is_serial(self):
        job = layout.Tenant([*layout.upstream(), layout.ours()]).job(
            'cinder-lustre-performance')
        self.assertEqual(1, job.variables['tempest_concurrency'])
        lustre = job.variables['devstack_local_conf']['test-config'][
            '$TEMPEST_CONFIG']['lustre']
        self.assertTrue(lustre['performance'])
        self.assertEqual('logs', job.variables['zuul_copy_output'][
            lustre['performance_file']])

    def test_each_series_of_devstack_is_compared(self):
        devstack = 'opendev.org/openstack/devstack'
        tenant = layout.Tenant([*layout.upstream(), layout.ours()])
        compared = [job.required_projects[devstack].override_checkout
                    for job in tenant.project_jobs(
                        layout.PROJECT, 'check').values()
                    if job.variables['tox_envlist'] == 'devstack']
        self.assertCountEqual(
            layout.facts()[devstack]['branches'],
            [branch or 'master' for branch in compared])

    def test_every_job_is_documented(self):
        page = (layout.ROOT / 'doc/source/contributor/third-party-ci.rst'
                ).read_text()
        tenant = layout.Tenant([*layout.upstream(), layout.ours()])
        for name in tenant.final_jobs():
            # A row names some of them by their ends.
            ending = '``-' + name.removeprefix('cinder-lustre-') + '``'
            self.assertTrue(f'``{name}``' in page or ending in page, name)
