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

"""That the simulated DevStack is like the real one, and notices mistakes."""

import os
import pathlib
import re
import shutil

import ddt
import fixtures
import testtools

from devstack.tests import simulated

SCRIPTS = ('override-defaults', 'settings', 'plugin.sh', 'lib/lustre',
           'lib/lustre-packages', 'lib/lustre-filesystem',
           'lib/lustre-services')
# Not DevStack's.
OF_BASH = {'BASH_SOURCE', 'LINENO', 'PATH'}


def read(name):
    return (simulated.PLUGIN / name).read_text()


def code(text):
    """A script without its comments."""
    return re.sub(r'(?m)^\s*#.*$', '', text)


def simulated_functions():
    """The functions of DevStack that the simulation defines."""
    text = read('tests/simulation')
    part = text[text.index("# DevStack's functions\n"):
                text.index("# DevStack's scripts,")]
    return set(re.findall(r'(?m)^(\w+)\(\) {', part)) | {'echo_summary'}


@ddt.ddt
class MistakeTestCase(testtools.TestCase):
    """A plugin with a mistake in it must not pass."""

    def stack(self, script, *change):
        """Run a copy of the plugin after a change of one of its scripts."""
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        plugin = top / 'cinder-lustre/devstack'
        shutil.copytree(simulated.PLUGIN, plugin)
        text = (plugin / script).read_text()
        self.assertIn(change[0], text)
        (plugin / script).write_text(text.replace(*change))
        simulation = self.useFixture(simulated.Simulation(
            {'DISTRO': 'bookworm'}, {'LUSTRE_MODE': 'standin'}))
        simulation.plugin = plugin
        return simulation, simulation.run('stack')

    def test_none(self):
        _simulation, record = self.stack('plugin.sh', 'esac', 'esac')
        self.assertEqual(0, record.code, record.output)

    @ddt.data('is_suse', 'yum_install acl', 'sudo systemd-run x', 'lsmod',
              'mountpoint /mnt', 'findmnt --list')
    def test_what_is_not_there(self, command):
        _simulation, record = self.stack(
            'plugin.sh', 'esac', f'esac\nif ! {command}; then :; fi\n')
        self.assertEqual([tuple(command.split())],
                         [call[-len(command.split()):]
                          for call in record.of('UNDEFINED')[:1]])

    def test_a_command_that_fails(self):
        _simulation, record = self.stack('plugin.sh', 'esac', 'esac\nfalse\n')
        self.assertNotEqual(0, record.code)
        self.assertTrue(record.of('FAILED'))

    def test_an_end_in_a_phase(self):
        """plugin.sh is sourced: an exit ends stack.sh."""
        _simulation, record = self.stack('plugin.sh', 'esac',
                                         'esac\nexit 0\n')
        self.assertEqual([], record.of('phase', 'stack', 'test-config'))

    @ddt.data(('lib/lustre-services', 'iniset "$NOVA_CONF" libvirt '
               'lustre_mount_point_base'),
              ('lib/lustre-services', 'iniset "$CINDER_CONF" "$name" '
               'lustre_mount_point_base'),
              ('lib/lustre-services', 'iniset "$CINDER_CONF" DEFAULT '
               'lustre_backup_mount_point_base'))
    @ddt.unpack
    def test_a_share_that_devstack_would_empty(self, script, line):
        simulation, record = self.stack(script, line, ': ')
        self.assertEqual(0, record.code, record.output)
        with open(simulation.top / 'host', 'a') as stream:
            stream.write('_umount() { return 32; }\n')
        record = simulation.run('clean')
        self.assertTrue(record.of('DESTROYED'))


class StyleTestCase(testtools.TestCase):

    def test_no_exit(self):
        for name in SCRIPTS:
            self.assertNotRegex(code(read(name)), r'\bexit\b(?!})', name)

    def test_every_death_has_its_line(self):
        for name in SCRIPTS:
            found = re.findall(r'\bdie\b(?! \$LINENO ")', code(read(name)))
            self.assertEqual([], found, name)

    def test_every_function_is_used(self):
        text = ''.join(code(read(name)) for name in SCRIPTS)
        hooks = {f'{verb}_cinder_{kind}_lustre'
                 for verb in ('configure', 'cleanup')
                 for kind in ('backend', 'backup')}
        for name in re.findall(r'(?m)^function (\w+) {', text):
            if name not in hooks:
                self.assertGreater(
                    len(re.findall(rf'\b{name}\b', text)), 1, name)


class RealDevStackTestCase(testtools.TestCase):
    """DEVSTACK_DIR names a checkout of DevStack."""

    def setUp(self):
        super().setUp()
        if not os.environ.get('DEVSTACK_DIR'):
            self.skipTest('DEVSTACK_DIR does not name a checkout of DevStack')
        self.top = pathlib.Path(os.environ['DEVSTACK_DIR'])
        self.sources = {
            str(path.relative_to(self.top)):
                path.read_text(errors='replace')
            for part in ('functions*', 'inc/*', 'lib/**/*', 'stackrc', '*.sh')
            for path in self.top.glob(part) if path.is_file()}
        self.all = ''.join(self.sources.values())

    @staticmethod
    def missing(names, text):
        return [name for name in sorted(names)
                if not re.search(rf'(?m)^function {name} {{', text)]

    def test_functions(self):
        self.assertEqual([], self.missing(simulated_functions(), self.all))

    def test_functions_that_are_used(self):
        """Those are simulated, also where no test comes by."""
        known = set(re.findall(r'(?m)^function (\w+) {', self.all))
        used = {word for script in SCRIPTS
                for word in re.findall(r'(?<![\w$-])[a-z_]\w+(?![\w-])',
                                       code(read(script)))}
        self.assertEqual(set(), (used & known) - simulated_functions())

    def test_functions_without_stack_sh(self):
        """unstack.sh and clean.sh have neither stack.sh nor its functions."""
        libraries = ''.join(text for name, text in self.sources.items()
                            if not name.endswith('.sh'))
        self.assertEqual(['echo_summary'], self.missing(
            simulated_functions(), libraries))

    def test_variables(self):
        names = {name for script in SCRIPTS for name in
                 re.findall(r'\b[A-Z][A-Z0-9_]{2,}\b', code(read(script)))
                 if re.search(rf'[$][{{]?[!]?{name}\b', read(script)) and
                 not name.startswith(('LUSTRE_', 'ENABLE_LUSTRE_'))}
        self.assertIn('NOVA_CPU_CONF', names)
        # Also those that DevStack reads, and leaves to the user to set.
        self.assertEqual([], [
            name for name in sorted(names - OF_BASH)
            if not re.search(rf'\b{name}(=|:=|:-|\+=)', self.all)])

    def test_variables_that_are_set(self):
        for name in ('CINDER_ENABLED_BACKENDS', 'CINDER_IMG_CACHE_ENABLED',
                     'ENABLE_VOLUME_MULTIATTACH', 'CINDER_BACKUP_DRIVER',
                     'TEMPEST_VOLUME_MANAGE_SNAPSHOT',
                     'TEMPEST_VOLUME_MANAGE_VOLUME',
                     'TEMPEST_VOLUME_REVERT_TO_SNAPSHOT',
                     'TEMPEST_EXTEND_ATTACHED_VOLUME',
                     'TEMPEST_EXTEND_ATTACHED_ENCRYPTED_VOLUME',
                     'TEMPEST_PLUGINS', 'TEMPEST_STORAGE_PROTOCOL'):
            self.assertTrue(re.search(rf'[$][{{]?{name}\b', self.all), name)

    def test_phases(self):
        text = code(read('plugin.sh'))
        phases = re.findall(r'"stack ([\w-]+)"\)', text)
        self.assertEqual(5, len(phases))
        for phase in phases:
            self.assertIn(f'run_phase stack {phase}\n',
                          self.sources['stack.sh'])
        for mode in ('unstack', 'clean'):
            self.assertIn(f'"{mode} ")', text)
            self.assertIn(f'run_phase {mode}\n', self.sources[f'{mode}.sh'])

    def test_hooks(self):
        for hook in ('configure', 'cleanup'):
            self.assertIn(f'{hook}_cinder_backend_${{be_type}} ${{be_name}}',
                          self.sources['lib/cinder'])
            self.assertIn(f'{hook}_cinder_backup_$CINDER_BACKUP_DRIVER\n',
                          self.sources['lib/cinder'])

    def test_nova_command(self):
        self.assertIn(
            'run_process n-cpu "$NOVA_BIN_DIR/nova-compute --config-file '
            '$NOVA_CPU_CONF" $LIBVIRT_GROUP', self.sources['lib/nova'])
        self.assertIn('local systemd_service="devstack@$service.service"',
                      self.sources['functions-common'])

    def test_what_is_removed(self):
        """Why nothing may be mounted there."""
        self.assertIn('sudo rm -rf $NOVA_STATE_PATH\n',
                      self.sources['lib/nova'])
        self.assertIn('sudo rm -rf $DATA_DIR', self.sources['clean.sh'])

    def test_what_is_told_to_tempest(self):
        text = self.sources['lib/tempest']
        for line in ('TEMPEST_DEFAULT_VOLUME_VENDOR="Open Source"',
                     'TEMPEST_DEFAULT_STORAGE_PROTOCOL="iSCSI"',
                     'iniset $TEMPEST_CONFIG volume storage_protocol '
                     '"$TEMPEST_STORAGE_PROTOCOL"'):
            self.assertIn(line + '\n', text)

    def test_distributions(self):
        supported = re.search('SUPPORTED_DISTROS="(.*)"',
                              self.sources['stack.sh'])[1].split('|')
        self.assertEqual(set(), {'trixie', 'bookworm', 'noble', 'rhel9',
                                 'rhel10'} - set(supported))

    def test_no_driver_of_the_same_name(self):
        for part in ('cinder_backends', 'cinder_backups', 'cinder_plugins'):
            self.assertFalse((self.top / 'lib' / part / 'lustre').exists())
