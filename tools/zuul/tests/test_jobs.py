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

import functools

import ddt
import testtools

import checks
import layout


@functools.cache
def tenant(old='', new=''):
    """Ours among what it is based on, after a change to .zuul.yaml."""
    text = (layout.ROOT / '.zuul.yaml').read_text()
    if old not in text:
        raise ValueError(f'.zuul.yaml has no {old!r}')
    return layout.Tenant(
        [*layout.upstream(), layout.ours(text.replace(old, new))])


@ddt.ddt
class JobsTest(testtools.TestCase):

    @ddt.data(*checks.ALL)
    def test_jobs(self, check):
        self.assertEqual([], check(tenant()))

    # What a check finds after a change.
    @ddt.data(
        (checks.loads, 'parent: devstack-tempest', 'parent: devstack-tempset',
         'Job devstack-tempset not defined'),
        (checks.loads, '- cinder-lustre-el9\n', '- cinder-lustre-el8\n',
         'Job cinder-lustre-el8 not defined'),
        (checks.loads, 'tox_envlist: pep8', 'tox-envlist: pep8',
         "Invalid Ansible variable name 'tox-envlist'"),
        (checks.loads, 'timeout: 10800', 'time-limit: 10800',
         'extra keys not allowed'),
        (checks.loads, 'voting: false', 'voting: nope', 'expected bool'),
        (checks.loads, r'^\.ci/.*$', r'^\.ci/(.*$', 'unterminated subpattern'),
        (checks.loads, r'^\.ci/.*$', r'^(?!x)\.ci/.*$', 'perl operator'),
        (checks.loads, '- opendev.org/openstack/cinder-tempest-plugin',
         '- opendev.org/openstack/cinder-tempest',
         'opendev.org/openstack/cinder-tempest'),
        (checks.loads, '- lustre-server\n', '- lustre-sever\n',
         'lustre-sever'),
        (checks.projects_are_canonical, '- zuul: opendev.org/zuul/zuul-jobs',
         '- zuul: opendev.org/zuul/zuul-job',
         'no project opendev.org/zuul/zuul-job'),
        (checks.projects_are_canonical, '- opendev.org/x/cinder-lustre\n',
         '- x/cinder-lustre\n', 'x/cinder-lustre is named without its host'),
        (checks.files_exist, 'playbooks/post.yaml', 'playbooks/past.yaml',
         'there is no playbooks/past.yaml'),
        (checks.files_exist, 'tools/tempest-exclude.txt',
         'tools/exclude.txt', 'there is no tools/exclude.txt'),
        (checks.environments_exist, 'tox_envlist: docs,releasenotes',
         'tox_envlist: docs,notes', 'tox.ini has no environment notes'),
        (checks.file_patterns_match, r'^releasenotes/.*$',
         r'^release-notes/.*$', 'no file matches ^release-notes/'),
        (checks.variables_are_known, 'tempest_concurrency: 1',
         'tempest_concurency: 1',
         'no playbook knows the variable tempest_concurency'),
        (checks.variables_are_known, 'tox_environment:', 'tox_environ:',
         'no playbook knows the variable tox_environ'),
        (checks.variables_are_known, 'LUSTRE_BACKUP_SHARE: \'',
         'LUSTRE_BACKUPS_SHARE: \'',
         'devstack/settings does not know LUSTRE_BACKUPS_SHARE'),
        (checks.variables_are_known, 'PYTHON3_VERSION:', 'PYTHON_VERSION:',
         'PYTHON_VERSION'),
        (checks.variables_are_known, 'c-bak: false', 'c-backup: false',
         'the service c-backup'),
        (checks.variables_are_known,
         'cinder-lustre: https', 'lustre: https', 'the plugin lustre'),
        (checks.tempest_options_exist, 'performance_file:', 'figures:',
         'tempest.conf has no [lustre] figures'),
        (checks.tempest_options_exist, 'volume_backed_live_migration:',
         'volume_live_migration:', 'volume_live_migration'),
        (checks.tempest_options_exist, 'test-config:', 'post-config:',
         'in the phase post-config'),
        (checks.lustre_is_reached, 'LUSTRE_MODE: local',
         'LUSTRE_MODE: standin', 'is for development'),
        (checks.lustre_is_reached, 'LUSTRE_MODE: local',
         'LUSTRE_MODE: client', 'get the kernel of a server'),
        (checks.lustre_is_reached, '- name: lustre_local',
         '- name: lustre_own', 'get the kernel of a server'),
        (checks.lustre_is_reached, "LUSTRE_SHARES: ''",
         "LUSTRE_SHARES: 10.0.2.15@tcp:/lustre",
         'serves Lustre, and has shares of another'),
        (checks.lustre_is_reached, '/devstack/backups', '/devstack/backup',
         'those of a server'),
        (checks.lustre_is_reached, 'LUSTRE_MODE: local', 'LUSTRE_MODE: client',
         'those of a server'),
        (checks.lustre_is_reached, 'nodeset: cinder-lustre-two-node-el9',
         'nodeset: cinder-lustre-el9', 'lustre-server'),
        (checks.lustre_is_reached, 'c-vol: false', 'c-sch: false',
         'those of a server'),
        (checks.tests_are_chosen, r'tests\.performance',
         r'tests\.performances', 'no test matches'),
        (checks.tests_are_chosen, r'|cinder_lustre_tempest_plugin\.tests\.sc',
         r'|cinder_lustre_tempest_plugin\.test\.sc',
         'no test of cinder_lustre_tempest_plugin matches'),
        (checks.tests_are_chosen, r'scenario\.test_backups',
         r'scenario\.test_backup_', 'leaves out nothing'),
        (checks.tests_are_chosen, r'tests\.(api|scenario)',
         r'tests\.(api|scenario', 'missing )'),
        (checks.tests_are_chosen, 'tox_envlist: all', 'tox_envlist: full',
         'only the environment "all"'),
        (checks.pipelines_are_known, 'experimental:', 'on-demand:',
         'lists no pipeline on-demand'),
        (checks.pipelines_are_known, '- cinder-lustre-performance\n',
         '- cinder-lustre-backup\n',
         'cinder-lustre-performance is in no pipeline'),
        (checks.pipelines_are_known, '- cinder-lustre-multinode\n',
         '- cinder-lustre-multinode-noble\n',
         'cinder-lustre-multinode-noble does not vote, and is in the gate'),
        (checks.pipelines_are_known, '- cinder-lustre-el9\n',
         '- cinder-lustre-base\n', 'cinder-lustre-base is abstract'),
        (checks.pipelines_are_known, 'Not voting', 'Green',
         'does not say why it is not voting'))
    @ddt.unpack
    def test_check_notices(self, check, old, new, expected):
        found = check(tenant(old, new))
        self.assertIn(expected, '\n'.join(found))
