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

"""What differs between the distributions."""

import re

import ddt
import testtools

from cinder_lab import packages
from cinder_lab import report
from cinder_lab import state

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n' \
         'VERSION_ID="12"\n'
UBUNTU = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'


@ddt.ddt
class DistributionTestCase(testtools.TestCase):

    @ddt.data(DEBIAN, UBUNTU)
    def test_has_servers_and_asks_nothing(self, os_release):
        found = packages.distribution(os_release)
        self.assertLessEqual({'rabbitmq-server', 'memcached', 'sudo',
                              'python3-venv', 'qemu-utils',
                              'mariadb-server-core'}, set(found.packages))
        self.assertEqual('noninteractive',
                         found.environment['DEBIAN_FRONTEND'])

    def test_ubuntu_restarts_nothing_of_the_host(self):
        self.assertIn('NEEDRESTART_SUSPEND',
                      packages.distribution(UBUNTU).environment)
        self.assertNotIn('NEEDRESTART_SUSPEND',
                         packages.distribution(DEBIAN).environment)

    @ddt.data(DEBIAN, UBUNTU)
    def test_bindep_names_the_packages_for_nova(self, os_release):
        names = re.findall(
            r'^(\S+) \[lab-nova\b.*\]$',
            (state.CHECKOUT / 'bindep.txt').read_text(), re.MULTILINE)
        self.assertEqual(sorted(packages.distribution(os_release).nova),
                         sorted(names))

    @ddt.data('ID=fedora\nVERSION_ID=42\n', 'ID=debian\nVERSION_ID="11"\n',
              'ID=arch\n', '')
    def test_another_distribution_is_named(self, os_release):
        error = self.assertRaises(report.LabError, packages.distribution,
                                  os_release)
        self.assertIn('Debian 12', str(error))
