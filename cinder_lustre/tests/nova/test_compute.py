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

"""The console script: what it imports, in which order, and what it starts."""

import json
import os
import subprocess
import sys

import ddt
import testtools

# Prints each module that is looked for, then what main() makes of Nova.
PROBE = """
import json, sys
names = []

class Recorder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        names.append(name)

sys.meta_path.insert(0, Recorder)
from cinder_lustre.cmd import nova_compute
imported = list(names)
from nova.cmd import compute
from nova.virt.libvirt import driver
before = 'lustre' in driver.VOLUME_DRIVERS

def main():
    # As Nova does when it is asked for the first volume.
    __import__(driver.VOLUME_DRIVERS['lustre'].rpartition('.')[0])
    import threading
    print(json.dumps({
        'names': imported, 'before': before,
        'later': names[len(imported):],
        'driver': driver.VOLUME_DRIVERS['lustre'],
        'policy': compute.CONF.libvirt.lustre_error_policy,
        'lock': type(threading.Lock()).__module__}))
    return 3

compute.main = main
sys.exit(nova_compute.main())
"""


@ddt.ddt
class ComputeTestCase(testtools.TestCase):

    @ddt.data(('0', 'eventlet.'), ('1', '_thread'))
    @ddt.unpack
    def test_start(self, disable, lock):
        result = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', PROBE], text=True,
            capture_output=True, env=dict(
                os.environ, OS_NOVA_DISABLE_EVENTLET_PATCHING=disable))
        # The exit code of Nova's own main.
        self.assertEqual(3, result.returncode, result.stderr)
        answer = json.loads(result.stdout)

        names = answer['names']
        # Nova comes first: not even a module of Python's own is before it.
        self.assertEqual(
            ['cinder_lustre', 'cinder_lustre.cmd',
             'cinder_lustre.cmd.nova_compute', 'nova'], names[:4])
        self.assertEqual(
            ['nova.cmd', 'nova.cmd.compute', 'nova.monkey_patch'],
            [name for name in names
             if name.partition('.')[0] not in sys.stdlib_module_names][4:7])
        # What is ours comes after the last that Nova needs.
        self.assertIn('nova.service', names)
        self.assertEqual(len(names) - 1, names.index('cinder_lustre.nova'))

        self.assertFalse(answer['before'])
        self.assertEqual(
            'cinder_lustre.nova.volume.LibvirtLustreVolumeDriver',
            answer['driver'])
        self.assertEqual('stop', answer['policy'])
        # With native threads, Nova refuses to load eventlet.
        self.assertIn('cinder_lustre.nova.volume', answer['later'])
        self.assertNotIn('eventlet', answer['later'])
        self.assertTrue(answer['lock'].startswith(lock), answer['lock'])
