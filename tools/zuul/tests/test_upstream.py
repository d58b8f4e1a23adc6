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
import pathlib
import re
import subprocess
import unittest

import testtools
import yaml

import layout

# Checkouts of OpenDev's projects, below their names: openstack/devstack.
UPSTREAM_DIR = os.environ.get('UPSTREAM_DIR')


class Loader(yaml.SafeLoader):
    """Takes Zuul's tags for what they hold."""


Loader.add_multi_constructor(
    '!', lambda loader, suffix, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else loader.construct_sequence(node, deep=True)
        if isinstance(node, yaml.SequenceNode)
        else loader.construct_scalar(node)))


def configuration(checkout):
    """What Zuul would load of a checkout."""
    found = []
    for name in ('zuul.yaml', '.zuul.yaml', 'zuul.d', '.zuul.d'):
        path = checkout / name
        for file in [path] if path.is_file() else sorted(path.rglob('*.yaml')):
            found += yaml.load(file.read_text(), Loader) or []
    return found


@unittest.skipUnless(UPSTREAM_DIR, 'UPSTREAM_DIR names no checkouts')
class UpstreamTest(testtools.TestCase):
    """upstream.yaml is what the projects have."""

    def setUp(self):
        super().setUp()
        self.projects = {}
        for name, facts in layout.facts().items():
            checkout = pathlib.Path(UPSTREAM_DIR, name.partition('/')[2])
            if checkout.is_dir():
                self.projects[checkout] = facts

    def test_some_are_there(self):
        self.assertIn('devstack', [path.name for path in self.projects])

    def test_jobs(self):
        for checkout, facts in self.projects.items():
            real = configuration(checkout)
            for item in facts.get('config', ()):
                expected = item['job']
                found = [other['job'] for other in real if 'job' in other and
                         other['job'].get('name') == expected['name']]
                self.assertTrue(
                    any(self.agrees(expected, other) for other in found),
                    (checkout.name, expected, found))

    @staticmethod
    def agrees(expected, found):
        return all(expected.get(name) == found.get(name)
                   for name in ('parent', 'abstract'))

    def test_pipelines(self):
        for checkout, facts in self.projects.items():
            real = {item['pipeline']['name']
                    for item in configuration(checkout) if 'pipeline' in item}
            self.assertLessEqual(set(facts.get('pipelines', ())), real)

    def test_roles(self):
        for checkout, facts in self.projects.items():
            for role in facts.get('roles', ()):
                self.assertTrue((checkout / 'roles' / role).is_dir(), role)

    def test_names(self):
        for checkout, facts in self.projects.items():
            for kind, paths in (('variables', ('roles', 'playbooks')),
                                ('localrc', ('stackrc', 'stack.sh', 'lib')),
                                ('services', ('stackrc', 'lib'))):
                for name in facts.get(kind, ()):
                    self.assertTrue(self.found(name, checkout, paths),
                                    (checkout.name, kind, name))

    @staticmethod
    def found(name, checkout, paths):
        pattern = rf'\b{re.escape(name)}\b'
        return not subprocess.run(
            ('grep', '-rqE', pattern, *[str(checkout / path) for path in paths
                                        if (checkout / path).exists()]),
            stdin=subprocess.DEVNULL).returncode

    def test_required_projects_are_in_the_example(self):
        with open(layout.ROOT / 'doc/source/contributor/third-party/main.yaml'
                  ) as source:
            text = source.read()
        for checkout in self.projects:
            for item in configuration(checkout):
                job = item.get('job', {})
                if job.get('name') not in ('devstack-base', 'devstack-minimal',
                                           'devstack', 'devstack-tempest'):
                    continue
                for project in job.get('required-projects', ()):
                    self.assertIn('- ' + re.sub('^opendev.org/', '', project),
                                  text)
