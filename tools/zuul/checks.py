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

"""What the jobs of this repository must be, besides what Zuul itself asks.

Each function takes a layout.Tenant and returns what is wrong, a sentence each.
"""

import configparser
import functools
import os
import pathlib
import re
import subprocess
import unittest

import jinja2
from tempest import config as tempest_config
import yaml

from cinder_lustre import share
from cinder_lustre_tempest_plugin import config as plugin_config
import layout

ROOT = layout.ROOT
OURS = 'cinder_lustre_tempest_plugin'
# Where tests are that the jobs may choose.
TESTS = ('tempest/api/compute/admin', 'tempest/api/volume', 'tempest/scenario',
         'cinder_tempest_plugin', f'{OURS}/tests')
# What a CI may give the jobs, see .zuul.yaml.
OUR_VARIABLES = {'lustre_shares', 'lustre_backup_share'}
# "name=..." at the start of a line, or of a case.
ASSIGNMENT = re.compile(r'^\s*((?:ENABLE_)?LUSTRE_\w+)=', re.MULTILINE)
ADDRESS = '192.0.2.7'


@functools.cache
def files():
    """The files of this repository, also those that are new."""
    return tuple(subprocess.run(
        ('git', 'ls-files', '--cached', '--others', '--exclude-standard'),
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
        text=True).stdout.splitlines())


def devstack_jobs(tenant):
    """The jobs that run DevStack, as they would run."""
    return {name: job for name, job in tenant.final_jobs().items()
            if 'devstack_localrc' in job.variables}


def loads(tenant):
    """Zuul finds no error."""
    return tenant.errors


def projects_are_canonical(tenant):
    """A CI that has another project of that name takes the right one."""
    hosts = tuple(f'{host}/' for host in layout.HOSTS.values())
    wrong = []
    for name, variants in tenant.our_jobs().items():
        for job in variants:
            named = [*job.required_projects,
                     *(role.project_name for role in job.roles)]
            wrong += [f'{name}: the project {project} is named without its '
                      f'host, as in opendev.org/{project}'
                      for project in named if not project.startswith(hosts)]
            # Zuul lets that of a role be anything.
            wrong += [f'{name}: {layout.UPSTREAM.name} has no project '
                      f'{project}' for project in named
                      if tenant.tenant.getTPC(project) is None]
    return wrong


# Files
# -----

def _roles(tasks):
    """The names of the roles that a list of tasks includes."""
    for task in tasks or ():
        for module in ('include_role', 'import_role'):
            included = task.get(module) or task.get(
                f'ansible.builtin.{module}')
            if included:
                yield included['name']
        for part in ('block', 'rescue', 'always'):
            yield from _roles(task.get(part))


def _role_files(role):
    """The files that the tasks of a role name, and where they must be."""
    for file in sorted((ROOT / 'roles' / role / 'tasks').glob('*.yaml')):
        text = file.read_text()
        # In a checkout on the node.
        for path in re.findall(r'/cinder-lustre/([\w./-]+)', text):
            yield ROOT / path
        for module, directory, key in (('copy', 'files', 'src'),
                                       ('template', 'templates', 'src')):
            for block in re.findall(
                    rf'ansible\.builtin\.{module}:\n((?:\s+\w+: .*\n)+)',
                    text):
                named = re.search(rf'^\s+{key}: (\S+)', block, re.MULTILINE)
                if named:
                    yield ROOT / 'roles' / role / directory / named[1]


def files_exist(tenant):
    """Every playbook, role, template, file and exclude list is there."""
    wrong, playbooks = [], set()
    for name, variants in tenant.our_jobs().items():
        for job in variants:
            for playbook in (*job.pre_run, *job.run, *job.post_run):
                playbooks.add(playbook.path)
                if not (ROOT / playbook.path).is_file():
                    wrong.append(f'{name}: there is no {playbook.path}')
    for name, job in devstack_jobs(tenant).items():
        listed = job.variables.get('tempest_test_exclude_list', '')
        path = listed.rpartition('}}/')[2]
        if path and not (ROOT / path).is_file():
            wrong.append(f'{name}: there is no {path}')
    for playbook in sorted(playbooks):
        if (ROOT / playbook).is_file():
            wrong += _wrong_roles(playbook)
    return wrong


def _wrong_roles(playbook):
    wrong, seen = [], set()
    pending = []
    for play in yaml.safe_load((ROOT / playbook).read_text()):
        pending += [role if isinstance(role, str) else role['role']
                    for role in play.get('roles', ())]
        pending += _roles(play.get('tasks'))
    while pending:
        role = pending.pop()
        if role in seen or role in layout.known('roles'):
            continue
        seen.add(role)
        tasks = ROOT / 'roles' / role / 'tasks/main.yaml'
        if not tasks.is_file():
            wrong.append(f'{playbook}: there is no role {role}, neither in '
                         f'roles nor in {layout.UPSTREAM.name}')
            continue
        pending += _roles(yaml.safe_load(tasks.read_text()))
        wrong += [f'role {role}: there is no {path.relative_to(ROOT)}'
                  for path in _role_files(role) if not path.is_file()]
    return wrong


def environments_exist(tenant):
    """tox.ini has what the jobs of tox run."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / 'tox.ini')
    return [f'{name}: tox.ini has no environment {environment}'
            for name, job in tenant.final_jobs().items()
            if 'devstack_localrc' not in job.variables
            for environment in job.variables['tox_envlist'].split(',')
            if not tox.has_section(f'testenv:{environment}')]


def file_patterns_match(tenant):
    """A pattern for a file that is gone should go, too."""
    return [f'{name}: no file matches {regex.pattern}'
            for name, variants in tenant.our_jobs().items()
            for job in variants if job.irrelevant_file_matcher
            for regex in job.irrelevant_file_matcher.regexes
            if not any(regex.match(file) for file in files())]


# Variables
# ---------

@functools.cache
def plugin_variables():
    """The variables of local.conf that our DevStack plugin knows."""
    return {name for file in ('settings', 'override-defaults')
            for name in ASSIGNMENT.findall(
                (ROOT / 'devstack' / file).read_text())}


def variables_are_known(tenant):
    """No variable of a job or of local.conf is misspelt."""
    wrong = []
    known = layout.known('variables') | OUR_VARIABLES
    for name, job in tenant.final_jobs().items():
        wrong += [f'{name}: no playbook knows the variable {variable}'
                  for variable in sorted(set(job.variables) - known)]
        for variables in (job.variables, *job.group_variables.values()):
            wrong += _unknown_devstack(name, variables)
    return wrong


def _unknown_devstack(job, variables):
    for variable in variables.get('devstack_localrc', ()):
        if 'LUSTRE' in variable:
            if variable not in plugin_variables():
                yield (f'{job}: devstack/settings does not know '
                       f'{variable}')
        elif variable not in layout.known('localrc'):
            yield (f'{job}: {layout.UPSTREAM.name} does not list {variable} '
                   'among what DevStack knows')
    for service in variables.get('devstack_services', ()):
        if service not in layout.known('services'):
            yield (f'{job}: {layout.UPSTREAM.name} does not list the service '
                   f'{service}')
    plugins = variables.get('devstack_plugins', {})
    for plugin, url in plugins.items():
        # enable_plugin wants the name of the directory.
        if url != f'https://{layout.PROJECT}' or plugin != (
                layout.PROJECT.rpartition('/')[2]):
            yield f'{job}: the plugin {plugin} is not that of {url}'


def _local_conf(job):
    """Phase, file, section, name and value of each setting for files."""
    for phase, in_phase in job.variables.get(
            'devstack_local_conf', {}).items():
        for file, sections in in_phase.items():
            for section, options in sections.items():
                for option, value in options.items():
                    yield phase, file, section, option, value


def tempest_options_exist(tenant):
    """Tempest, or our plugin, has what the jobs set in tempest.conf."""
    ours = {option.name for option in plugin_config.LUSTRE_OPTIONS}
    theirs = {(getattr(group, 'name', group), option.name)
              for group, options in tempest_config.list_opts()
              for option in options}
    wrong = []
    for name, job in devstack_jobs(tenant).items():
        for phase, file, section, option, _ in _local_conf(job):
            if file != '$TEMPEST_CONFIG' or phase != 'test-config':
                wrong.append(f'{name}: nothing is set in {file} in the phase '
                             f'{phase} yet; let this check know it')
            elif (option not in ours if section == 'lustre' else
                    (section, option) not in theirs):
                wrong.append(f'{name}: tempest.conf has no [{section}] '
                             f'{option}')
    return wrong


def _in_group(job, name, host):
    return any(group.name == name and host in group.nodes
               for group in job.nodeset.getGroups())


def _hosts(job):
    return {name: job.group_variables.get('subnode', {})
            if _in_group(job, 'subnode', name) else {}
            for node in job.nodeset.getNodes() for name in node.name}


def localrc(job, host, **given):
    """local.conf's variables on a host, as Ansible would fill them in.

    :param given: variables that a CI sets
    """
    variables = dict(job.variables) | _hosts(job)[host] | given
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    context = variables | {'hostvars': {
        name: {'nodepool': {'private_ipv4': ADDRESS}}
        for name in _hosts(job)}}
    return {name: environment.from_string(str(value)).render(context)
            for name, value in variables['devstack_localrc'].items()}


def _shares_of_server():
    """The shares of the default backend and of backups, by devstack/lib."""
    return subprocess.run(
        ('bash', '-c', 'source devstack/lib/lustre; '
         'lustre_shares_of lustre; lustre_backup_share'),
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
        env={'PATH': os.environ['PATH'], 'LUSTRE_MODE': 'local',
             'LUSTRE_FSNAME': 'devstack',
             'LUSTRE_NID': f'{ADDRESS}@tcp'}).stdout.split()


def lustre_is_reached(tenant):
    """Each host serves a Lustre, or has shares that are served to it."""
    wrong = []
    for name, job in devstack_jobs(tenant).items():
        for host in _hosts(job):
            if host == 'lustre-server':
                continue
            services = (dict(job.variables) | _hosts(job)[host]).get(
                'devstack_services', {})
            try:
                wrong += _wrong_mode(f'{name}: {host}', localrc(job, host),
                                     services.get('c-vol', True),
                                     _in_group(job, 'lustre_local', host))
            except jinja2.UndefinedError as error:
                wrong.append(f'{name}: {host}: {error}')
    return wrong


def _wrong_mode(where, settings, has_cinder, local):
    mode = settings.get('LUSTRE_MODE')
    shares = [settings[name] for name in ('LUSTRE_SHARES',
                                          'LUSTRE_BACKUP_SHARE')
              if settings.get(name)]
    if (mode == 'local') != local:
        yield (f'{where}: LUSTRE_MODE={mode}, and the hosts of the group '
               'lustre_local get the kernel of a server')
    if mode not in ('local', 'client'):
        yield f'{where}: LUSTRE_MODE={mode} is for development'
    elif mode == 'local' and shares:
        yield f'{where}: serves Lustre, and has shares of another: {shares}'
    elif mode == 'client' and (shares or has_cinder):
        for line in shares:
            share.Share.parse(line)
        if shares != _shares_of_server():
            yield (f'{where}: the shares are {shares}, and those of a server '
                   f'are {_shares_of_server()}')


# Tests
# -----

def _flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flatten(test)
        else:
            yield test.id()


@functools.cache
def tests():
    """The ids of all tests that the jobs may choose."""
    found = []
    tempest = pathlib.Path(tempest_config.__file__).parent
    installed = tempest.parent
    for directory in TESTS:
        top = ROOT if directory.startswith(OURS) else installed
        suite = unittest.TestLoader().discover(
            str(top / directory), 'test_*.py', str(top))
        found += _flatten(suite)
    failed = [test for test in found if 'FailedTest' in test]
    if failed:
        raise RuntimeError(f'these tests cannot be loaded: {failed}')
    return tuple(found)


def _excluded():
    """The patterns of tools/tempest-exclude.txt."""
    with open(ROOT / 'tools/tempest-exclude.txt') as lines:
        return [line.partition('#')[0].strip() for line in lines
                if line.partition('#')[0].strip()]


def chosen(job):
    """The tests that a job runs."""
    patterns = _excluded()
    if 'tempest_exclude_regex' in job.variables:
        patterns.append(job.variables['tempest_exclude_regex'])
    return [test for test in tests()
            if re.search(job.variables['tempest_test_regex'], test) and
            not any(re.search(pattern, test) for pattern in patterns)]


def tests_are_chosen(tenant):
    """Each regular expression for tests means at least one."""
    wrong = [f'tools/tempest-exclude.txt: no test matches {pattern}'
             for pattern in _excluded()
             if not any(re.search(pattern, test) for test in tests())]
    for name, job in devstack_jobs(tenant).items():
        try:
            wrong += _wrong_choice(name, job)
        except re.error as error:
            wrong.append(f'{name}: {error}: {error.pattern}')
    return wrong


def _wrong_choice(name, job):
    regex = job.variables['tempest_test_regex']
    if job.variables['tox_envlist'] != 'all':
        yield f'{name}: only the environment "all" reads tempest_test_regex'
    if not chosen(job):
        yield f'{name}: no test matches {regex}'
    if OURS in regex and not any(
            test.startswith(OURS) for test in chosen(job)):
        yield f'{name}: no test of {OURS} matches {regex}'
    excluded = job.variables.get('tempest_exclude_regex')
    if excluded and not any(re.search(regex, test) and
                            re.search(excluded, test) for test in tests()):
        yield f'{name}: leaves out nothing with {excluded}'


# Pipelines
# ---------

def pipelines_are_known(tenant):
    """Each job runs somewhere; what does not vote says so, and blocks none."""
    wrong, attached = [], set()
    known = layout.known('pipelines')
    (ours,) = tenant.layout.getProjectConfigs(layout.PROJECT)
    for pipeline in ours.pipelines:
        if pipeline not in known:
            wrong.append(f'{layout.UPSTREAM.name} lists no pipeline '
                         f'{pipeline}')
        jobs = tenant.project_jobs(layout.PROJECT, pipeline)
        attached |= set(jobs)
        wrong += [f'{name} is abstract, and in {pipeline}'
                  for name, job in jobs.items() if job.abstract]
        if pipeline == 'gate':
            wrong += [f'{name} does not vote, and is in the gate'
                      for name, job in jobs.items() if not job.voting]
    check, gate = (tenant.project_jobs(layout.PROJECT, pipeline)
                   for pipeline in ('check', 'gate'))
    wrong += [f'{name} votes in check, and is not in the gate'
              for name, job in check.items()
              if job.voting and name not in gate]
    for name, job in tenant.final_jobs().items():
        if name not in attached:
            wrong.append(f'{name} is in no pipeline')
        if not job.voting and 'Not voting' not in (
                tenant.our_jobs()[name][0].description or ''):
            wrong.append(f'{name}: the description does not say why it is '
                         'not voting')
    return wrong


ALL = (loads, projects_are_canonical, files_exist, environments_exist,
       file_patterns_match, variables_are_known, tempest_options_exist,
       lustre_is_reached, tests_are_chosen, pipelines_are_known)
