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

import pathlib

import ddt
import testtools
import yaml

from zuul import configloader

import checks
import layout

EXAMPLE = layout.ROOT / 'doc/source/contributor/third-party'
CONFIG = 'github.com/example/lustre-ci-config'


def example():
    """The tenant of the documentation, with the projects that it names."""
    with open(EXAMPLE / 'main.yaml') as source:
        return yaml.safe_load(source)[0]['tenant']


def sources(tenant):
    """Those projects, with their configuration and what is loaded of it."""
    content = {source.name: source
               for source in [*layout.upstream(), layout.ours()]}
    content[CONFIG] = layout.Source(
        CONFIG, pathlib.Path(EXAMPLE / 'zuul.yaml').read_text(), 'zuul.yaml',
        trusted=True)
    for connection, kinds in tenant['source'].items():
        for kind, entries in kinds.items():
            for entry in entries:
                for name, include in _projects(entry):
                    name = f'{layout.HOSTS[connection]}/{name}'
                    source = content.get(name, layout.Source(name))
                    source.include = include
                    source.trusted = kind == 'config-projects'
                    yield source


def _projects(entry):
    if isinstance(entry, str):
        yield entry, None
    elif 'projects' in entry:
        for name in entry['projects']:
            yield name, entry['include']
    else:
        for name, settings in entry.items():
            yield name, settings['include']


@ddt.ddt
class ThirdPartyTest(testtools.TestCase):
    """The example of the documentation, as a third-party CI has it."""

    def setUp(self):
        super().setUp()
        self.tenant = layout.Tenant(sources(example()))

    def test_zuul_takes_the_tenant(self):
        parser = configloader.TenantParser(
            self.tenant.registry, *[None] * 7)
        parser.getSchema()(example())

    def test_zuul_takes_the_configuration(self):
        self.assertEqual([], self.tenant.errors)

    @ddt.data('openstack/cinder', 'openstack/os-brick')
    def test_jobs_run_on_the_shares_of_the_ci(self, project):
        project = f'opendev.org/{project}'
        jobs = self.tenant.project_jobs(project, 'check')
        self.assertEqual({'cinder-lustre-volume', 'cinder-lustre-scenario'},
                         set(jobs))
        for job in jobs.values():
            self.assertEqual(
                ['our-ubuntu-noble'],
                [node.label for node in job.nodeset.getNodes()])
            settings = checks.localrc(job, 'controller')
            self.assertEqual('client', settings['LUSTRE_MODE'])
            self.assertEqual('10.0.2.15@tcp:/lustre/ci/volumes',
                             settings['LUSTRE_SHARES'])
            self.assertEqual('10.0.2.15@tcp:/lustre/ci/backups',
                             settings['LUSTRE_BACKUP_SHARE'])
            self.assertIn(layout.PROJECT, job.required_projects)

    def test_every_change_is_tested(self):
        change = self.tenant.change(
            'README.rst', project='opendev.org/openstack/cinder')
        for job in self.tenant.project_jobs(
                'opendev.org/openstack/cinder', 'check').values():
            self.assertTrue(job.changeMatchesFiles(change))

    def test_our_own_pipelines_are_not_for_it(self):
        self.assertEqual({}, self.tenant.project_jobs(layout.PROJECT, 'check'))

    def test_every_project_of_the_jobs_is_there(self):
        # What DevStack's own jobs require is compared in test_upstream.
        for job in self.tenant.project_jobs(
                'opendev.org/openstack/cinder', 'check').values():
            for project in job.required_projects:
                self.assertIsNotNone(self.tenant.tenant.getTPC(project))

    @ddt.data(
        ('Patch Set 3:\n\nrecheck', True),
        ('Patch Set 3: Code-Review-1\n\nrecheck bug 1234', True),
        ('recheck', True),
        ('Patch Set 3:\n\nrun-Lustre_CI', True),
        ('Patch Set 3:\n\nRECHECK', True),
        ('Patch Set 3:\n\n(1 comment)\n\nPlease do not recheck', False),
        ('Patch Set 3:\n\nrun-Other_CI', False),
        ('Patch Set 3:\n\nrechecked', False))
    @ddt.unpack
    def test_comments_that_run_it_again(self, comment, expected):
        pipeline = self.tenant.layout.pipeline_managers['check'].pipeline
        found = any(regex.search(comment)
                    for event in pipeline.event_filters
                    for regex in event.comments)
        self.assertEqual(expected, found)

    def test_comments_are_found_by_gerrit(self):
        pipeline = self.tenant.layout.pipeline_managers['check'].pipeline
        for text, word in ((pipeline.success_message, 'succeeded'),
                           (pipeline.failure_message, 'failed')):
            self.assertRegex(text, rf'^Build {word} \(\w+ pipeline\)\.$')

    def test_wiki_page_is_that_of_the_driver(self):
        pipeline = self.tenant.layout.pipeline_managers['check'].pipeline
        source = (layout.ROOT / 'cinder_lustre/volume/drivers/lustre.py'
                  ).read_text()
        page = source.partition("CI_WIKI_NAME = '")[2].partition("'")[0]
        self.assertIn(f'ThirdPartySystems/{page} ', pipeline.footer_message)
        self.assertIn(f'run-{page}', pipeline.footer_message)
