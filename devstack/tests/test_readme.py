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

"""That what README.rst tells users to do works, and is all there is."""

import re

import ddt
import testtools

from devstack.tests import simulated
from devstack.tests import test_plugin

README = (simulated.PLUGIN / 'README.rst').read_text()
# A host for each mode that a sample sets.
HOSTS = {
    'local': test_plugin.EL9_SERVER,
    'client': test_plugin.NOBLE,
    'preinstalled': dict(test_plugin.TRIXIE, LUSTRE='client'),
    'standin': test_plugin.BOOKWORM,
}


def samples(text):
    """The localrc of each local.conf in a text."""
    return [re.sub('(?m)^    ', '', found) for found in
            re.findall(r'(?m)^    \[\[local\|localrc\]\]\n((?:    .*\n)+)',
                       text)]


@ddt.ddt
class SampleTestCase(test_plugin.PluginTestCase):

    @ddt.data(*samples(README))
    def test_sample(self, localrc):
        mode = re.search('(?m)^LUSTRE_MODE=(.*)$', localrc)[1]
        simulation, record = self.stack(HOSTS[mode], localrc)
        self.assertEqual(
            [('cinder-lustre', 'https://opendev.org/x/cinder-lustre')],
            record.of('enable_plugin'))
        if 'ENABLED_SERVICES' not in localrc:
            self.assertIn(('cinder.conf', 'DEFAULT', 'enabled_backends'),
                          record.options)
        self.go(simulation, 'unstack')
        self.go(simulation, 'clean')
        self.assertEqual(test_plugin.OF_DEVSTACK, simulation.files)

    def test_modes(self):
        modes = re.findall('(?m)^LUSTRE_MODE=(.*)$',
                           '\n'.join(samples(README)))
        self.assertEqual(set(HOSTS), set(modes))

    def test_the_project_readme(self):
        text = (simulated.PLUGIN.parent / 'README.rst').read_text()
        found = samples(text)
        self.assertEqual(1, len(found))
        mode = re.search('(?m)^LUSTRE_MODE=(.*)$', found[0])[1]
        self.stack(HOSTS[mode], found[0])


class VariableTestCase(testtools.TestCase):

    def test_all_are_described(self):
        settings = (simulated.PLUGIN / 'settings').read_text()
        known = set(re.findall(r'(?m)^\s*(LUSTRE_\w+)=\$\{\1:-', settings))
        known |= {'ENABLE_LUSTRE_C_BAK', 'ENABLE_LUSTRE_MULTIATTACH'}
        described = set(re.findall(r'\b(?:ENABLE_)?LUSTRE_\w+', README))
        self.assertEqual(known, described)

    def test_defaults(self):
        """Those that are told are those that are set."""
        for value in ('2.17.0', '5.14.0-611.13.1_lustre.el9',
                      '/var/lib/devstack-lustre'):
            self.assertIn(value, README)
            self.assertIn(value,
                          (simulated.PLUGIN / 'settings').read_text())
