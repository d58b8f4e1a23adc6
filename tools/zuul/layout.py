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

"""Loads Zuul configuration with Zuul's own parsers, without a running Zuul."""

import dataclasses
import pathlib
import types

import yaml
from zuul import configloader
from zuul.driver import gerrit
from zuul.driver import github
from zuul.lib import connections
from zuul import model

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PROJECT = 'opendev.org/x/cinder-lustre'
# What our jobs are based on; see the file itself.
UPSTREAM = HERE / 'upstream.yaml'

# Names of connections, which a CI may choose, and the hosts behind them.
HOSTS = {'gerrit': 'opendev.org', 'github': 'github.com'}


def registry():
    """Zuul's connections, none of which is ever opened.

    Zuul's own constructor makes every driver, also that which runs bubblewrap.
    """
    result = connections.ConnectionRegistry.__new__(
        connections.ConnectionRegistry)
    result.drivers = {
        driver.name: driver for driver in (
            gerrit.GerritDriver(), github.GithubDriver())}
    result.connections = {
        'gerrit': result.drivers['gerrit'].getConnection('gerrit', {
            'server': 'review.opendev.org', 'user': 'anyone',
            'canonical_hostname': HOSTS['gerrit']}),
        'github': result.drivers['github'].getConnection('github', {})}
    return result


@dataclasses.dataclass
class Source:
    """A project of the tenant, and its configuration in Zuul's syntax."""

    name: str
    text: str = ''
    path: str = '.zuul.yaml'
    trusted: bool = False
    branches: tuple = ('master',)
    # The classes of objects that the tenant loads from it; None is all.
    include: tuple = None


def facts():
    """upstream.yaml, by project."""
    with open(UPSTREAM) as source:
        return yaml.safe_load(source)


def known(kind):
    """All names of a kind in upstream.yaml: roles, variables and others."""
    return {name for project in facts().values()
            for name in project.get(kind, ())}


def upstream():
    """The projects of upstream.yaml."""
    return [Source(name, yaml.safe_dump(project.get('config') or []),
                   UPSTREAM.name, project.get('trusted', False),
                   tuple(project.get('branches', ('master',))))
            for name, project in facts().items()]


def ours(text=None):
    """This repository, with other content of .zuul.yaml if that is given."""
    if text is None:
        text = (ROOT / '.zuul.yaml').read_text()
    return Source(PROJECT, text)


class Tenant:
    """A tenant with some projects, loaded as Zuul loads it."""

    def __init__(self, sources):
        self.registry = registry()
        self._parser = configloader.TenantParser(
            self.registry, *[None] * 7)
        context = configloader.ParseContext(self.registry, None, None, None)
        self.tenant = model.Tenant('test')
        self.tenant.default_base_job = 'base'
        self.tenant.allowed_labels = self.tenant.disallowed_labels = None
        parsed = model.ParsedConfig()
        for source in sources:
            tpc = self._add(source)
            for branch in source.branches:
                where = model.SourceContext(
                    source.name, tpc.project.name,
                    tpc.project.connection_name, branch, source.path)
                with context.errorContext(source_context=where):
                    self._parser.addProjectBranchConfig(
                        context, parsed, self.tenant, tpc,
                        self._parser.loadProjectYAML(
                            source.text, where, context),
                        trusted=source.trusted)
        self.layout = self._parser._parseLayout(self.tenant, parsed, context)
        self.tenant.layout = self.layout
        self.errors = [error.error for error in self.layout.loading_errors]

    def _add(self, source):
        host, name = source.name.split('/', 1)
        connection = next(key for key, value in HOSTS.items()
                          if value == host)
        project = model.Project(name, self.registry.getSource(connection))
        tpc = model.TenantProjectConfig(project)
        tpc.trusted = source.trusted
        tpc.branches = list(source.branches)
        tpc.load_classes = set(configloader.TenantParser.all_classes
                               if source.include is None else source.include)
        tpc.merge_modes = list(model.MERGER_MAP.values())
        self.tenant.addTPC(tpc)
        return tpc

    def change(self, *files, project=PROJECT, branch='master'):
        """What Zuul's matchers ask of a change."""
        return types.SimpleNamespace(
            project=self.tenant.getProject(project)[1], branch=branch,
            files=['/COMMIT_MSG', *files], ref=None)

    def job(self, name, **change):
        """A job as it would run: with all that it inherits."""
        item = types.SimpleNamespace(
            annotateLogger=lambda log: log)
        change = self.change(**change)
        final = None
        for variant in self.layout.collectJobs(item, name, change):
            if final is None:
                final = variant.copy()
                final.setBase(self.layout, None)
            else:
                final.applyVariant(variant, self.layout, None)
                final.name = variant.name
        return final

    def our_jobs(self):
        """The jobs that this repository defines, by name."""
        return {name: variants for name, variants in self.layout.jobs.items()
                if variants[0].source_context and
                variants[0].source_context.project_canonical_name == PROJECT}

    def final_jobs(self, abstract=False):
        """Those of them that run, as they would run, by name."""
        found = {name: self.job(name) for name in self.our_jobs()}
        return {name: job for name, job in found.items()
                if abstract or not job.abstract}

    def project_jobs(self, project, pipeline):
        """The jobs of a project in a pipeline, as they would run, by name."""
        configs = self.layout.getAllProjectConfigs(project)
        found = {}
        for config in configs:
            if pipeline not in config.pipelines:
                continue
            jobs = config.pipelines[pipeline].job_list.jobs
            for name, variants in jobs.items():
                job = found.setdefault(name, self.job(name, project=project))
                for variant in variants:
                    job.applyVariant(variant, self.layout, None)
        for job in found.values():
            for config in configs:
                job.updateProjectVariables(config.variables)
        return found
