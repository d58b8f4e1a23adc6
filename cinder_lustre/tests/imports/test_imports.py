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

"""The import rules, on a host that lacks Cinder, or Cinder and Nova.

tox runs this twice, in environments where the package is installed as a user
installs it. ABSENT_PACKAGES names what such a host must not need,
HOST_COMMAND the program that loads the package there.
"""

import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys

import ddt
import testtools

import cinder_lustre

ABSENT = os.environ['ABSENT_PACKAGES'].split(',')

# Only a process of Cinder loads these.
CINDER_ONLY = ('cinder_lustre.backup', 'cinder_lustre.volume',
               'cinder_lustre.tests')
# What else needs a package that some hosts lack.
NEEDS = {
    'nova': ('cinder_lustre.cmd.nova_compute', 'cinder_lustre.nova.volume'),
    'os_brick': ('cinder_lustre.brick.client',
                 'cinder_lustre.brick.connector',
                 'cinder_lustre.nova.client'),
}
# A worker's child starts with these, again and again: they must load fast.
CHILD = ('cinder_lustre.backup.disk', 'cinder_lustre.backup.piece',
         'cinder_lustre.backup.transfer', 'cinder_lustre.brick.nbd_client',
         'cinder_lustre.brick.mount', 'cinder_lustre.chain',
         'cinder_lustre.check', 'cinder_lustre.doctor.probe',
         'cinder_lustre.exception',
         'cinder_lustre.lfs', 'cinder_lustre.qemu_img',
         'cinder_lustre.record', 'cinder_lustre.share',
         'cinder_lustre.worker')

PROBE = """
import importlib, json, sys
before = set(sys.modules)
module = importlib.import_module(sys.argv[1])
print(json.dumps({'file': module.__file__,
                  'loaded': sorted(set(sys.modules) - before)}))
"""


def shared_modules():
    """Names of the modules that must load on this kind of host."""
    excluded = CINDER_ONLY + sum(
        (names for package, names in NEEDS.items() if package in ABSENT), ())
    for found in pkgutil.walk_packages(cinder_lustre.__path__,
                                       'cinder_lustre.',
                                       onerror=lambda name: None):
        if not any(found.name == name or found.name.startswith(name + '.')
                   for name in excluded):
            yield found.name


@ddt.ddt
class ImportRulesTestCase(testtools.TestCase):

    def _run(self, *command):
        # Away from the source tree: the installed package has to do.
        result = subprocess.run(command, cwd='/', capture_output=True,
                                text=True)
        self.assertEqual(0, result.returncode, result.stderr)
        return result.stdout

    def _load(self, module):
        answer = json.loads(self._run(sys.executable, '-c', PROBE, module))
        self.assertTrue(answer['file'].startswith(sys.prefix),
                        f'{answer["file"]} is not the installed package')
        return {name.partition('.')[0] for name in answer['loaded']}

    @ddt.data(*ABSENT)
    def test_host_lacks_package(self, name):
        self.assertIsNone(importlib.util.find_spec(name))

    @ddt.data(*shared_modules())
    def test_module_loads_alone(self, module):
        refused = {'cinder'} if module in NEEDS['nova'] else {'cinder', 'nova'}
        self.assertFalse(self._load(module) & refused)

    @ddt.data(*CHILD)
    def test_child_module_loads_only_standard_library(self, module):
        foreign = self._load(module) - sys.stdlib_module_names
        self.assertEqual({'cinder_lustre'}, foreign)

    @ddt.data(('cinder_lustre', 'lustre_shares_config'),
              ('cinder_lustre.nova', 'lustre_error_policy'))
    @ddt.unpack
    def test_options_can_be_listed(self, namespace, option):
        sample = self._run(
            os.path.join(sys.prefix, 'bin', 'oslo-config-generator'),
            '--namespace', namespace)
        self.assertIn('#%s = ' % option, sample)

    def test_host_program_starts(self):
        program, *arguments = os.environ['HOST_COMMAND'].split()
        path = shutil.which(program, path=os.path.join(sys.prefix, 'bin'))
        self.assertTrue(self._run(path, *arguments))
