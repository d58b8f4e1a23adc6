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

"""The phases of the plugin, in a simulated DevStack."""

import configparser
import re
from unittest import mock

from cinder import objects
from cinder.volume import configuration
import ddt
from oslo_config import cfg
from oslo_utils import importutils
import tempest.config
import testtools

from cinder_lustre.nova import opts as nova_opts
from cinder_lustre import opts
from cinder_lustre.volume.drivers import lustre
from cinder_lustre_tempest_plugin import config as tempest_config
from devstack.tests import simulated

BOOKWORM = {'DISTRO': 'bookworm', 'KERNEL': '6.1.0-35-amd64'}
TRIXIE = {'DISTRO': 'trixie', 'KERNEL': '6.12.38-amd64'}
NOBLE = {'DISTRO': 'noble', 'KERNEL': '6.8.0-60-generic'}
EL9 = {'DISTRO': 'rhel9', 'KERNEL': '5.14.0-611.13.1.el9_7.x86_64',
       'ENABLE_QEMU_USER': 'qemu'}
EL9_SERVER = dict(EL9, KERNEL='5.14.0-611.13.1_lustre.el9.x86_64')
EL10 = {'DISTRO': 'rhel10', 'KERNEL': '6.12.0-124.8.1.el10_1.x86_64',
        'ENABLE_QEMU_USER': 'qemu'}
HOSTS = {'bookworm': BOOKWORM, 'trixie': TRIXIE, 'noble': NOBLE, 'rhel9': EL9,
         'rhel10': EL10}

SHARES = {'LUSTRE_SHARES': '10.0.2.15@tcp:/lustre/cinder',
          'LUSTRE_BACKUP_SHARE': '10.0.2.15@tcp:/lustre/backup'}
PYTHON = {'PYTHON3_VERSION': '3.12'}
MOUNTS = '/var/lib/devstack-lustre'
DROP_IN = '/etc/systemd/system/devstack@n-cpu.service.d/lustre.conf'
# What a stack.sh leaves on the host, and clean.sh is to take away.
OF_DEVSTACK = {'/etc/systemd/system/devstack@n-cpu.service',
               '/etc/libvirt/qemu.conf'}

# A mode on a host that can have it: the host, the settings and the packages
# of Lustre that are installed.
SUPPORTED = {
    'local_rhel9': (
        EL9_SERVER, dict(PYTHON, LUSTRE_MODE='local'),
        ['lustre', 'kmod-lustre', 'kmod-lustre-osd-ldiskfs',
         'lustre-osd-ldiskfs-mount']),
    'local_own_server': (
        dict(BOOKWORM, LUSTRE='server'), {'LUSTRE_MODE': 'local'}, []),
    'client_rhel9': (
        EL9, dict(SHARES, **PYTHON, LUSTRE_MODE='client'),
        ['lustre-client', 'kmod-lustre-client']),
    'client_rhel9_other_minor': (
        dict(EL9, KERNEL='5.14.0-650.el9.x86_64'),
        dict(SHARES, **PYTHON, LUSTRE_MODE='client'),
        ['kernel-devel-5.14.0-650.el9.x86_64', 'epel-release',
         '--enablerepo=epel', 'dkms', 'lustre-client', 'lustre-client-dkms']),
    'client_rhel9_with_epel': (
        dict(EL9, INSTALLED='epel-release'),
        dict(SHARES, **PYTHON, LUSTRE_MODE='client',
             LUSTRE_CLIENT_DKMS='true'),
        ['kernel-devel-5.14.0-611.13.1.el9_7.x86_64', 'dkms', 'lustre-client',
         'lustre-client-dkms']),
    'client_rhel10': (
        EL10, dict(SHARES, LUSTRE_MODE='client'),
        ['lustre-client', 'kmod-lustre-client']),
    'client_noble': (
        dict(NOBLE, AVAILABLE='lustre-client-modules-6.8.0-60-generic'),
        dict(SHARES, LUSTRE_MODE='client'),
        ['lustre-client-utils', 'lustre-client-modules-6.8.0-60-generic']),
    'client_noble_other_kernel': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client'),
        ['dkms', 'linux-headers-6.8.0-60-generic', 'lustre-client-utils',
         'lustre-client-modules-dkms']),
    'client_trixie_own_repository': (
        dict(TRIXIE, AVAILABLE='lustre-client-modules-6.12.38-amd64'),
        dict(SHARES, LUSTRE_MODE='client', LUSTRE_REPO_DISTRO='debian13',
             LUSTRE_REPO_URL='https://example.org/lustre',
             LUSTRE_KERNEL='6.12.38'),
        ['lustre-client-utils', 'lustre-client-modules-6.12.38-amd64']),
    'client_bookworm_installed_before': (
        dict(BOOKWORM, LUSTRE='client'), dict(SHARES, LUSTRE_MODE='client'),
        []),
} | {
    f'preinstalled_{distro}': (
        dict(host, LUSTRE='client'),
        dict(SHARES, **PYTHON, LUSTRE_MODE='preinstalled'), [])
    for distro, host in HOSTS.items()
} | {
    f'standin_{distro}': (host, {'LUSTRE_MODE': 'standin'}, [])
    for distro, host in HOSTS.items() if distro != 'rhel9'
}

# A mode on a host that cannot have it, and what the message has.
UNSUPPORTED = {
    **{f'local_{distro}': (
        HOSTS[distro], dict(PYTHON, LUSTRE_MODE='local'),
        f'no packages of a Lustre server for {distro}', 'Use EL9')
       for distro in ('bookworm', 'trixie', 'noble', 'rhel10')},
    'local_rhel9_other_kernel': (
        EL9, dict(PYTHON, LUSTRE_MODE='local'),
        'kernel 5.14.0-611.13.1.el9_7.x86_64',
        'Install kernel, kernel-core, kernel-modules and kernel-modules-core '
        'of that version from https://downloads.whamcloud.com/public/lustre/'
        'lustre-2.17.0/el9.7/server'),
    'local_aarch64': (
        dict(EL9_SERVER, MACHINE='aarch64'), dict(PYTHON, LUSTRE_MODE='local'),
        'this host is aarch64', 'LUSTRE_MODE=preinstalled'),
    **{f'client_{distro}': (
        HOSTS[distro], dict(SHARES, LUSTRE_MODE='client'),
        f'no packages of the Lustre client for {distro}',
        'set LUSTRE_MODE=preinstalled')
       for distro in ('bookworm', 'trixie')},
    'client_noble_hwe': (
        dict(NOBLE, KERNEL='6.17.0-14-generic'),
        dict(SHARES, LUSTRE_MODE='client'), 'runs kernel 6.17.0-14-generic',
        'linux-image-generic'),
    'client_noble_aarch64': (
        dict(NOBLE, MACHINE='aarch64'), dict(SHARES, LUSTRE_MODE='client'),
        'this host is aarch64', 'LUSTRE_MODE=preinstalled'),
    **{f'preinstalled_{distro}': (
        host, dict(SHARES, **PYTHON, LUSTRE_MODE='preinstalled'),
        'has no module lustre', 'set LUSTRE_MODE=client')
       for distro, host in HOSTS.items()},
    'standin_rhel9': (
        EL9, dict(PYTHON, LUSTRE_MODE='standin'), 'needs Python 3.10',
        'LUSTRE_MODE=local'),
    'standin_beside_lustre': (
        dict(BOOKWORM, LUSTRE='client'), {'LUSTRE_MODE': 'standin'},
        'this one has its client', 'LUSTRE_MODE=preinstalled'),
    'no_such_mode': (
        BOOKWORM, {'LUSTRE_MODE': 'remote'}, 'LUSTRE_MODE=remote is none of',
        'Correct it'),
    'old_python': (
        EL9_SERVER, {'LUSTRE_MODE': 'local'}, 'DevStack uses 3.9',
        'Set PYTHON3_VERSION'),
    'environment_for_each_service': (
        BOOKWORM, {'LUSTRE_MODE': 'standin', 'USE_VENV': 'True'},
        'USE_VENV=True', 'Remove it'),
    'no_shares': (
        dict(NOBLE, LUSTRE='client'), {'LUSTRE_MODE': 'preinstalled'},
        'has 0 shares for 1 backends', '10.0.2.15@tcp:/lustre/cinder'),
    'fewer_shares_than_backends': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client',
                    CINDER_ENABLED_BACKENDS='lustre:a,lustre:b'),
        'has 1 shares for 2 backends (a b)', 'Give each backend a share'),
    'more_shares_than_backends': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client', LUSTRE_SHARES='1@tcp:/f/a;'
                    '1@tcp:/f/b; 1@tcp:/f/c',
                    CINDER_ENABLED_BACKENDS='lustre:a,lustre:b'),
        'has 3 shares for 2 backends', 'Remove shares'),
    'no_share_for_backups': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client', LUSTRE_BACKUP_SHARE=''),
        'backups need a share of their own', 'ENABLE_LUSTRE_C_BAK=False'),
    'shares_that_would_not_be_used': (
        EL9_SERVER, dict(SHARES, **PYTHON, LUSTRE_MODE='local'),
        'makes its own shares', 'Remove LUSTRE_SHARES'),
    'long_name': (
        BOOKWORM, {'LUSTRE_MODE': 'standin', 'LUSTRE_FSNAME': 'devstack1'},
        'LUSTRE_FSNAME=devstack1 is no name', 'at most 8 letters'),
    'name_with_a_dot': (
        EL9_SERVER, dict(PYTHON, LUSTRE_FSNAME='a.b'),
        'LUSTRE_FSNAME=a.b is no name', 'at most 8 letters'),
    'share_without_an_address': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client',
                    LUSTRE_SHARES='1@tcp:/f/a; /lustre/cinder -o flock'),
        '/lustre/cinder -o flock is no share', 'Correct LUSTRE_SHARES'),
    'backup_share_without_an_address': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client', LUSTRE_BACKUP_SHARE='10.1'),
        '10.1 is no share', 'LUSTRE_BACKUP_SHARE to <nid>:'),
    'volumes_and_backups_in_one_share': (
        NOBLE, dict(SHARES, LUSTRE_MODE='client',
                    LUSTRE_SHARES='1@tcp:/f/a -o flock',
                    LUSTRE_BACKUP_SHARE='1@tcp:/f/a'),
        '1@tcp:/f/a -o flock is in LUSTRE_SHARES', 'another directory'),
    **{f'{mode}_without_cinder': (
        host, dict(PYTHON, LUSTRE_MODE=mode, ENABLED_SERVICES='n-cpu'),
        'this host has neither', 'Set LUSTRE_MODE to client')
       for mode, host in (('local', EL9_SERVER), ('standin', BOOKWORM))},
    'mounts_where_devstack_removes': (
        BOOKWORM, 'LUSTRE_MODE=standin\nLUSTRE_MOUNT_DIR=$DEST/data/lustre\n',
        'is below what DevStack removes', 'another directory'),
    'driver_that_is_not_devstacks': (
        BOOKWORM, {'LUSTRE_MODE': 'standin', 'CINDER_BACKUP_DRIVER': 'lustre'},
        'no driver of DevStack', 'Remove it'),
    'address_of_no_interface': (
        EL9_SERVER, dict(PYTHON, LUSTRE_MODE='local', HOST_IP='203.0.113.1'),
        'No interface of this host has HOST_IP=203.0.113.1',
        'LUSTRE_LNET_NETWORKS'),
    'nids_of_another_network': (
        dict(EL9_SERVER, NIDS='10.1.1.1@tcp 10.2.2.2@o2ib'),
        dict(PYTHON, LUSTRE_MODE='local'),
        'has the NIDs 10.1.1.1@tcp 10.2.2.2@o2ib, and not '
        'LUSTRE_NID=192.0.2.10@tcp', 'lustre_rmmod'),
}


def table(cases):
    """A data provider for tests with named cases."""
    return ddt.named_data(*([name, *case] for name, case in cases.items()))


class PluginTestCase(testtools.TestCase):

    def simulate(self, host, localrc):
        return self.useFixture(simulated.Simulation(host, localrc))

    def go(self, simulation, script):
        """Run a script that is to succeed."""
        record = simulation.run(script)
        self.assertEqual(
            (0, [], [], []),
            (record.code, record.of('UNDEFINED'), record.of('FAILED'),
             record.of('DESTROYED')), record.output[-2000:])
        return record

    def stack(self, host=BOOKWORM, localrc=None, **settings):
        """A host after stack.sh, and what that did."""
        if localrc is None:
            localrc = settings or {'LUSTRE_MODE': 'standin'}
        simulation = self.simulate(host, localrc)
        return simulation, self.go(simulation, 'stack')


@ddt.ddt
class ModeTestCase(PluginTestCase):

    @table(SUPPORTED)
    def test_supported(self, host, localrc, packages):
        simulation, record = self.stack(host, localrc)
        self.assertEqual(packages, record.packages)
        mode = localrc['LUSTRE_MODE']
        self.assertEqual(
            [mode == 'standin'], [bool([text for _line, text
                                        in record.of('warn')
                                        if 'is not Lustre' in text])])
        self.assertEqual(
            mode in ('local', 'standin'),
            any(target == MOUNTS + '/root'
                for _source, target in simulation.mounts))
        self.assertEqual(
            mode in ('local', 'client'),
            bool(simulation.path('/etc/modprobe.d/devstack-lustre.conf')
                 .exists()))
        loaded = record.of('sudo', 'modprobe', '--all')
        self.assertEqual({'local': [('lustre', 'osd_ldiskfs')],
                          'client': [('lustre',)]}.get(mode, []), loaded)

    @table(UNSUPPORTED)
    def test_unsupported(self, host, localrc, reason, cure):
        record = self.simulate(host, localrc).run('stack')
        self.assertNotEqual(0, record.code)
        self.assertIsNotNone(record.death, record.output)
        self.assertIn(reason, record.death)
        self.assertIn(cure, record.death)
        self.assertEqual([], record.of('UNDEFINED'))
        self.assertEqual([], record.of('run_process'))

    def test_nothing_is_changed_where_the_mode_cannot_be(self):
        for name, (host, localrc, _reason, _cure) in UNSUPPORTED.items():
            # These are found out only when LNet is there.
            if name in ('address_of_no_interface', 'nids_of_another_network'):
                continue
            record = self.simulate(host, localrc).run('stack')
            self.assertEqual([], record.of('sudo') + record.packages, name)

    @ddt.data(
        (dict(NOBLE, LUSTRE='client'), SHARES, 'preinstalled'),
        (NOBLE, SHARES, 'client'),
        (EL9_SERVER, SHARES, 'client'),
        (EL9_SERVER, {}, 'local'),
        (dict(TRIXIE, LUSTRE='server'), {}, 'local'),
        (NOBLE, {'ENABLED_SERVICES': 'n-cpu'}, 'client'),
        (dict(TRIXIE, LUSTRE='client'), {'ENABLED_SERVICES': 'n-cpu'},
         'preinstalled'))
    @ddt.unpack
    def test_choice(self, host, settings, mode):
        _simulation, record = self.stack(host, dict(PYTHON, **settings))
        self.assertIn((f'Installing Lustre (LUSTRE_MODE={mode})',),
                      record.of('echo_summary'))

    @ddt.data(BOOKWORM, TRIXIE, NOBLE, EL9, EL10,
              dict(NOBLE, LUSTRE='client'))
    def test_no_choice(self, host):
        record = self.simulate(host, PYTHON).run('stack')
        self.assertIn('There is no Lustre for Cinder', record.death)
        for word in (host['DISTRO'], host['KERNEL'], 'LUSTRE_SHARES',
                     'LUSTRE_MODE=local', 'LUSTRE_MODE=standin'):
            self.assertIn(word, record.death)

    @ddt.data((EL9_SERVER, PYTHON, 'local'), (NOBLE, SHARES, 'client'))
    @ddt.unpack
    def test_the_choice_lasts(self, host, settings, mode):
        simulation, _record = self.stack(host, settings)
        self.go(simulation, 'unstack')
        record = self.go(simulation, 'stack')
        self.assertIn((f'Installing Lustre (LUSTRE_MODE={mode})',),
                      record.of('echo_summary'))
        self.assertEqual(1, len(record.of('sudo', 'modprobe')))
        record = self.go(simulation, 'clean')
        self.assertEqual([()], record.of('sudo', 'lustre_rmmod'))

    def test_the_mode_changes_only_after_clean(self):
        simulation, _record = self.stack()
        self.go(simulation, 'unstack')
        simulation.tell(LUSTRE='client')
        (simulation.top / 'localrc').write_text(
            'LUSTRE_SHARES=1@tcp:/f/a\nENABLE_LUSTRE_C_BAK=False\n')
        record = simulation.run('stack')
        self.assertIn('LUSTRE_MODE=standin. Run clean.sh', record.death)
        self.go(simulation, 'clean')
        self.go(simulation, 'stack')

    def test_a_host_without_volumes(self):
        _simulation, record = self.stack(
            BOOKWORM, ENABLED_SERVICES='key,mysql,rabbit')
        self.assertEqual([], record.of('sudo'))
        self.assertEqual([], record.of('setup_develop'))


@ddt.ddt
class PackageTestCase(PluginTestCase):

    def sections(self, simulation):
        parser = configparser.ConfigParser()
        parser.read(simulation.path('/etc/yum.repos.d/devstack-lustre.repo'))
        return {name: dict(parser[name]) for name in parser.sections()}

    def test_server_repositories(self):
        simulation, _record = self.stack(EL9_SERVER, PYTHON)
        found = self.sections(simulation)
        self.assertEqual(['lustre-server', 'lustre-e2fsprogs'], list(found))
        self.assertEqual(
            'https://downloads.whamcloud.com/public/lustre/lustre-2.17.0/'
            'el9.7/server', found['lustre-server']['baseurl'])
        self.assertEqual(
            'https://downloads.whamcloud.com/public/e2fsprogs/latest/el9',
            found['lustre-e2fsprogs']['baseurl'])
        self.assertEqual('lustre*,kmod-lustre*',
                         found['lustre-server']['includepkgs'])
        self.assertEqual('0', found['lustre-server']['gpgcheck'])

    @ddt.data((EL9, 'el9.7'), (EL10, 'el10.1'))
    @ddt.unpack
    def test_client_repository(self, host, directory):
        simulation, _record = self.stack(
            host, dict(SHARES, **PYTHON, LUSTRE_GPG_KEY='https://k/key'))
        found = self.sections(simulation)
        self.assertEqual(['lustre-client'], list(found))
        self.assertTrue(found['lustre-client']['baseurl'].endswith(
            f'/lustre-2.17.0/{directory}/client'))
        self.assertEqual(('1', 'https://k/key'),
                         (found['lustre-client']['gpgcheck'],
                          found['lustre-client']['gpgkey']))

    @ddt.data(('', 'trusted=yes'),
              ('https://k/key',
               'signed-by=/etc/apt/keyrings/devstack-lustre.asc'))
    @ddt.unpack
    def test_apt_repository(self, key, option):
        simulation, record = self.stack(
            NOBLE, dict(SHARES, LUSTRE_GPG_KEY=key))
        self.assertEqual(
            f'deb [{option}] https://downloads.whamcloud.com/public/lustre/'
            'lustre-2.17.0/ubuntu2404/client/ ./\n',
            simulation.path('/etc/apt/sources.list.d/devstack-lustre.list')
            .read_text())
        self.assertEqual([('RETRY_UPDATE=True',)],
                         record.of('apt_get_update'))
        keyring = simulation.path('/etc/apt/keyrings/devstack-lustre.asc')
        self.assertEqual(f'{key}\n' if key else None,
                         keyring.read_text() if keyring.exists() else None)

    @ddt.data((NOBLE, 'client/Packages'),
              (EL10, 'client/repodata/repomd.xml'),
              (EL9_SERVER, 'server/repodata/repomd.xml'))
    @ddt.unpack
    def test_index(self, host, index):
        settings = dict(PYTHON, LUSTRE_REPO_URL='https://r')
        if host is not EL9_SERVER:
            settings |= SHARES
        wrong = self.simulate(host, dict(
            settings, LUSTRE_REPO_SHA256='0' * 64)).run('stack')
        self.assertIn(f'https://r/{index} has the SHA-256 ', wrong.death)
        self.assertEqual([], wrong.packages)
        right = re.search('SHA-256 ([0-9a-f]{64}),', wrong.death)[1]
        self.stack(host, dict(settings, LUSTRE_REPO_SHA256=right))

    def test_index_of_e2fsprogs(self):
        record = self.simulate(EL9_SERVER, dict(
            PYTHON, LUSTRE_E2FSPROGS_SHA256='0' * 64)).run('stack')
        self.assertIn('e2fsprogs/latest/el9/repodata/repomd.xml has',
                      record.death)
        self.assertEqual([], record.packages)

    def test_epel_serves_nothing_else(self):
        _simulation, record = self.stack(
            dict(EL9, KERNEL='5.14.0-650.el9.x86_64'), dict(SHARES, **PYTHON))
        self.assertEqual(
            [('config-manager', '--set-disabled', 'epel')],
            record.of('sudo', 'dnf'))

    @ddt.data(({}, 'options lnet networks="tcp(ens3)"\n'),
              ({'LUSTRE_LNET_NETWORKS': 'o2ib(ib0)'},
               'options lnet networks="o2ib(ib0)"\n'))
    @ddt.unpack
    def test_lnet(self, settings, line):
        simulation, _record = self.stack(NOBLE, dict(SHARES, **settings))
        self.assertEqual(line, simulation.path(
            '/etc/modprobe.d/devstack-lustre.conf').read_text())

    def test_modules_that_do_not_load(self):
        record = self.simulate(NOBLE, dict(
            SHARES, LUSTRE_CLIENT_PACKAGES='other')).run('stack')
        self.assertIn('The modules lustre cannot be loaded into kernel '
                      '6.8.0-60-generic', record.death)
        self.assertIn('dmesg', record.death)

    @ddt.data('debs', 'rpms')
    def test_lists_are_sorted(self, kind):
        # DevStack looks for the name of the plugin.
        names = (simulated.PLUGIN / 'files' / kind / 'cinder-lustre'
                 ).read_text().splitlines()
        self.assertEqual(sorted(set(names)), names)
        self.assertIn('acl', names)
        # DevStack installs it on every host.
        self.assertNotIn('curl', names)


@ddt.ddt
class FileSystemTestCase(PluginTestCase):

    def test_targets(self):
        simulation, record = self.stack(EL9_SERVER, dict(
            PYTHON, LUSTRE_OST_COUNT='3', LUSTRE_OST_SIZE='20G',
            LUSTRE_FSNAME='fs'))
        directory = str(simulation.top / 'opt/stack/data/lustre')
        made = record.of('sudo', 'mkfs.lustre')
        self.assertEqual(
            ('--fsname=fs', '--mgs', '--mdt', '--index=0',
             '--backfstype=ldiskfs', '--device-size=2097152',
             f'{directory}/fs-mdt0.new'), made[0])
        self.assertEqual(
            [('--fsname=fs', '--ost', f'--index={index}',
              '--mgsnode=192.0.2.10@tcp', '--backfstype=ldiskfs',
              '--device-size=20971520', f'{directory}/fs-ost{index}.new')
             for index in range(3)], made[1:])
        self.assertEqual(
            [(f'{directory}/fs-{name}', f'{MOUNTS}/targets/{name}')
             for name in ('mdt0', 'ost0', 'ost1', 'ost2')] +
            [('192.0.2.10@tcp:/fs', f'{MOUNTS}/root')],
            simulation.mounts[:5])
        self.assertIn(('-t', 'lustre', '-o', 'flock', '192.0.2.10@tcp:/fs',
                       f'{MOUNTS}/root'), record.of('sudo', 'mount'))

    @ddt.data((EL9_SERVER, 'local', 'qemu'),
              (BOOKWORM, 'standin', 'libvirt-qemu'))
    @ddt.unpack
    def test_shares(self, host, mode, qemu):
        _simulation, record = self.stack(host, dict(
            PYTHON, LUSTRE_MODE=mode,
            CINDER_ENABLED_BACKENDS='lustre:a,lvm:c,lustre:b'))
        root = MOUNTS + '/root'
        self.assertEqual(
            [('-d', '-o', 'stack', '-g', 'stack', '-m', '750', root + path)
             for path in ('/volumes/a', '/volumes/b', '/backups')],
            [call for call in record.of('sudo', 'install')
             if call[-1].startswith(root)])
        self.assertEqual(
            [('-m', f'u:{qemu}:x', f'{root}/volumes/{name}')
             for name in 'ab'],
            [call for call in record.of('sudo', 'setfacl')
             if call[0] == '-m'])
        self.assertEqual(
            [('-d', '-m', f'u:stack:rw,u:{qemu}:rw,g::---,o::---',
              f'{root}/volumes/{name}') for name in 'ab'],
            [call for call in record.of('sudo', 'setfacl')
             if call[0] == '-d'])

    def test_a_user_of_qemu(self):
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', LUSTRE_QEMU_USER='other')
        self.assertEqual('u:other:x', record.of('sudo', 'setfacl')[0][1])

    def test_no_qemu(self):
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', ENABLED_SERVICES='c-vol,c-api,mysql')
        self.assertEqual([], record.of('sudo', 'setfacl'))

    def test_quota(self):
        _simulation, record = self.stack(EL9_SERVER, dict(
            PYTHON, LUSTRE_QUOTA='10G',
            CINDER_ENABLED_BACKENDS='lustre:a,lustre:b'))
        root = MOUNTS + '/root'
        self.assertEqual(
            [('conf_param', 'devstack.quota.mdt=p'),
             ('conf_param', 'devstack.quota.ost=p')],
            [call for call in record.of('sudo', 'lctl')
             if call != ('list_nids',)])
        self.assertEqual(
            [('project', '-p', '1001', '-s', '-r', root + '/volumes/a'),
             ('setquota', '-p', '1001', '-B', '10G', root),
             ('project', '-p', '1002', '-s', '-r', root + '/volumes/b'),
             ('setquota', '-p', '1002', '-B', '10G', root)],
            record.of('sudo', 'lfs'))

    def test_standin(self):
        simulation, record = self.stack()
        self.assertEqual(
            [('create', '--fsname', 'devstack', '--dir',
              str(simulation.top / 'opt/stack/data/lustre'), '--size', '32G',
              '--nid', '192.0.2.10@tcp')],
            record.of('sudo', str(simulated.PLUGIN.parent /
                                  'tools/lab/standin/standin')))

    @ddt.data((EL9_SERVER, 'HOST_IP=192.0.2.99'),
              (EL9_SERVER, 'LUSTRE_FSNAME=other'),
              (BOOKWORM, 'HOST_IP=192.0.2.99'),
              (BOOKWORM, 'LUSTRE_FSNAME=other'))
    @ddt.unpack
    def test_another_file_system(self, host, line):
        settings = {'LUSTRE_MODE': 'standin'} if host is BOOKWORM else PYTHON
        simulation = self.simulate(host, settings)
        directory = simulation.top / 'srv/lustre'
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(f'LUSTRE_DATA_DIR={directory}\n')
        self.go(simulation, 'stack')
        simulation.tell(NIDS='192.0.2.10@tcp 192.0.2.99@tcp')
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(line + '\n')
        record = simulation.run('stack')
        self.assertIn('has the file system 192.0.2.10@tcp:/devstack, and',
                      record.death)
        self.assertIn('clean.sh', record.death)
        self.go(simulation, 'clean')
        self.assertFalse(directory.exists())
        self.assertFalse((simulation.top / 'standin').exists())
        self.go(simulation, 'stack')

    @ddt.data(('1', 2), ('3', 3))
    @ddt.unpack
    def test_another_count_of_osts(self, count, osts):
        """An OST that was made goes on: the file system knows it."""
        simulation, _record = self.stack(EL9_SERVER, PYTHON)
        self.go(simulation, 'unstack')
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(f'LUSTRE_OST_COUNT={count}\n')
        self.go(simulation, 'stack')
        self.assertEqual(
            [f'{MOUNTS}/targets/ost{index}' for index in range(osts)],
            [target for _source, target in simulation.mounts
             if '/targets/ost' in target])

    def test_an_address_that_was_wrong(self):
        """It is not remembered: nothing was made."""
        simulation = self.simulate(
            EL9_SERVER, dict(PYTHON, LUSTRE_NID='192.0.2.99@tcp'))
        self.assertIn('not LUSTRE_NID', simulation.run('stack').death)
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write('LUSTRE_NID=192.0.2.10@tcp\n')
        self.go(simulation, 'stack')

    def test_formatting_that_was_interrupted(self):
        simulation = self.simulate(EL9_SERVER, PYTHON)
        directory = simulation.top / 'opt/stack/data/lustre'
        directory.mkdir(parents=True)
        (directory / 'devstack-mdt0.new').touch()
        record = self.go(simulation, 'stack')
        self.assertEqual(3, len(record.of('sudo', 'mkfs.lustre')))

    def test_volumes_of_a_database_that_is_gone(self):
        emptied = [('sudo', 'find', f'{MOUNTS}/root/{name}', '-xdev',
                    '-mindepth', '1', '-delete')
                   for name in ('volumes/lustre', 'backups')]
        _simulation, record = self.stack()
        self.assertEqual(
            emptied, [call for call in record.calls if call[1:2] == ('find',)])
        # The database is on another host, and goes on.
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', ENABLED_SERVICES='c-vol,c-bak,n-cpu')
        self.assertEqual([], record.of('sudo', 'find'))

    @ddt.data('client', 'preinstalled')
    def test_shares_of_others(self, mode):
        """No command ever gets a path on a share that is not the plugin's."""
        host = dict(NOBLE, LUSTRE='client' if mode == 'preinstalled' else '')
        simulation, record = self.stack(host, dict(SHARES, LUSTRE_MODE=mode))
        mounts = simulation.mounts
        self.assertEqual(3, len(mounts))
        calls = record.calls
        for script in ('unstack', 'stack', 'clean'):
            calls += self.go(simulation, script).calls
        for _source, target in mounts:
            self.assertEqual(
                {'umount'}, {call[1] for call in calls
                             if call[0] == 'sudo' and target in call})
        # The empty ones are the mount points, at the end.
        self.assertEqual(set(), {'find', 'setfacl', 'mkfs.lustre', 'lfs'} &
                         {call[1] for call in calls
                          if call[0] == 'sudo' and '-empty' not in call})


@ddt.ddt
class EndTestCase(PluginTestCase):

    @table(SUPPORTED)
    def test_restack(self, host, localrc, _packages):
        simulation, first = self.stack(host, localrc)
        files = simulation.files
        self.go(simulation, 'unstack')
        second = self.go(simulation, 'stack')
        self.assertEqual(first.options, second.options)
        self.assertEqual([], second.of('sudo', 'mkfs.lustre'))
        self.assertEqual([], second.packages)
        self.assertEqual(files, simulation.files)
        # Nothing was mounted twice, also without an unstack.
        mounts = sorted(simulation.mounts)
        (simulation.top / 'mounts').write_text(''.join(
            '\t'.join(mount) + '\n' for mount in mounts
            if mount[0] != 'share'))
        self.go(simulation, 'stack')
        self.assertEqual(mounts, sorted(simulation.mounts))

    @table(SUPPORTED)
    def test_unstack(self, host, localrc, _packages):
        simulation, record = self.stack(host, localrc)
        mounts = simulation.mounts
        before = simulation.files
        record = self.go(simulation, 'unstack')
        self.assertEqual([], simulation.mounts)
        self.assertEqual(before - {DROP_IN}, simulation.files)
        order = [target for target, in record.of('sudo', 'umount')]
        self.assertEqual(sorted(target for _source, target in mounts),
                         sorted(order))
        servers = [target for target in order if '/targets/' in target]
        self.assertEqual(sorted(servers), servers)
        self.assertEqual(servers, order[len(order) - len(servers):])
        self.assertEqual([], record.of('warn'))

    @table(SUPPORTED)
    def test_clean(self, host, localrc, _packages):
        simulation = self.simulate(host, localrc)
        self.go(simulation, 'stack')
        self.go(simulation, 'clean')
        self.assertEqual([], simulation.mounts)
        self.assertEqual(OF_DEVSTACK, simulation.files)
        self.assertFalse(simulation.path(MOUNTS).exists())
        self.assertFalse(simulation.path(DROP_IN).parent.exists())
        self.assertFalse((simulation.top / 'standin').exists())
        # Once more, as after a clean.sh that was interrupted.
        self.go(simulation, 'clean')
        self.go(simulation, 'stack')

    @ddt.data('unstack', 'clean')
    def test_the_end_without_a_beginning(self, script):
        simulation = self.simulate(BOOKWORM, {})
        self.go(simulation, script)
        self.assertEqual(set(), simulation.files)

    def test_servers_with_guests(self):
        """Guests keep Nova's mount until DevStack has ended them."""
        simulation, _record = self.stack(EL9_SERVER, PYTHON)
        simulation.tell(BUSY=f'{MOUNTS}/nova/0123abcd')
        record = self.go(simulation, 'unstack')
        self.assertEqual([], simulation.mounts)
        self.assertEqual([], record.of('warn'))

    def test_a_mount_that_stays_busy(self):
        simulation, _record = self.stack(EL9_SERVER, PYTHON)
        busy = f'{MOUNTS}/nova/0123abcd'
        simulation.tell(BUSY=busy, STILL_BUSY=busy)
        record = self.go(simulation, 'unstack')
        self.assertIn(busy, record.of('warn')[0][1])
        self.assertIn('fuser', record.of('warn')[0][1])
        # Its servers go on, since it would hang without them.
        self.assertEqual(
            {busy} | {f'{MOUNTS}/targets/{name}'
                      for name in ('mdt0', 'ost0', 'ost1')},
            {target for _source, target in simulation.mounts})
        record = self.go(simulation, 'clean')
        self.assertTrue([text for _line, text in record.of('warn')
                         if text.startswith('clean.sh is not complete')])
        # They need their files.
        self.assertEqual([], record.of('sudo', 'rm', '-f'))
        self.assertTrue(simulation.path(busy).exists())
        simulation.tell(BUSY='', STILL_BUSY='')
        record = self.go(simulation, 'clean')
        self.assertEqual([], simulation.mounts)
        self.assertEqual([()], record.of('sudo', 'lustre_rmmod'))
        self.assertEqual(OF_DEVSTACK, simulation.files)
        self.assertFalse(simulation.path(MOUNTS).exists())

    def own_directory(self, simulation):
        """Have LUSTRE_MOUNT_DIR name a directory with files of the user."""
        simulation.path('/srv/backup/empty').mkdir(parents=True)
        simulation.path('/srv/file').touch()
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write('LUSTRE_MOUNT_DIR=/srv\n')

    def test_a_directory_that_is_not_the_plugins(self):
        simulation = self.simulate(BOOKWORM, {'LUSTRE_MODE': 'standin'})
        self.own_directory(simulation)
        (simulation.top / 'mounts').write_text('theirs\t/srv/backup\n')
        record = simulation.run('stack')
        self.assertIn('LUSTRE_MOUNT_DIR=', record.death)
        self.assertIn("files that are not the plugin's", record.death)
        self.assertEqual([], record.of('sudo'))
        for script in ('unstack', 'clean'):
            self.go(simulation, script)
        self.assertEqual([('theirs', '/srv/backup')], simulation.mounts)
        self.assertTrue(simulation.path('/srv/backup/empty').exists())
        self.assertTrue(simulation.path('/srv/file').exists())

    def test_a_mount_that_is_not_the_plugins(self):
        simulation = self.simulate(BOOKWORM, {'LUSTRE_MODE': 'standin'})
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write('LUSTRE_MOUNT_DIR=/lustre\n')
        simulation.path('/lustre').mkdir()
        (simulation.top / 'mounts').write_text('theirs\t/lustre\n')
        record = simulation.run('stack')
        self.assertIn('is mounted', record.death)
        self.assertEqual([], record.of('sudo'))
        self.go(simulation, 'clean')
        self.assertTrue(simulation.path('/lustre').exists())
        self.assertEqual([('theirs', '/lustre')], simulation.mounts)

    def test_files_of_the_user(self):
        simulation, _record = self.stack(EL9_SERVER, PYTHON)
        # As of a service whose share was not mounted.
        paths = [simulation.path(f'{MOUNTS}/{name}') for name in
                 ('nova/0123abcd/volume-1', 'root/volumes/file', 'file')]
        for path in paths:
            path.touch()
        record = self.go(simulation, 'clean')
        self.assertIn(MOUNTS, record.of('warn')[-1][1].replace(
            str(simulation.path('/')), '/'))
        self.assertEqual(set(paths), {
            path for path in simulation.path(MOUNTS).rglob('*')
            if path.is_file()})

    def test_an_empty_directory_stays_as_it_is(self):
        simulation = self.simulate(BOOKWORM, {'LUSTRE_MODE': 'standin'})
        simulation.path(MOUNTS).mkdir(parents=True)
        record = self.go(simulation, 'stack')
        self.assertEqual([], [call for call in record.of('sudo', 'install')
                              if MOUNTS in call])

    @ddt.data('mounts.d/', 'none/../mounts.d', 'link')
    def test_another_name_of_the_directory(self, name):
        """The mounts have the real one."""
        simulation = self.simulate(EL9_SERVER, PYTHON)
        simulation.path('/mounts.d').mkdir()
        simulation.path('/link').symlink_to('mounts.d')
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(f'LUSTRE_MOUNT_DIR=/{name}\n')
        self.go(simulation, 'stack')
        self.assertEqual(7, len(simulation.mounts))
        self.go(simulation, 'unstack')
        self.assertEqual([], simulation.mounts)

    def test_another_name_of_what_devstack_removes(self):
        simulation = self.simulate(BOOKWORM, {'LUSTRE_MODE': 'standin'})
        (simulation.top / 'opt/stack/data').mkdir(parents=True)
        (simulation.top / 'link').symlink_to('opt/stack/data')
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(f'DATA_DIR={simulation.top}/link\n'
                         'LUSTRE_MOUNT_DIR=$DEST/data/lustre\n')
        record = simulation.run('stack')
        self.assertIn('is below what DevStack removes', record.death)

    def test_a_server_for_others(self):
        """Nothing of Cinder uses it here, so that no hook stops it."""
        simulation, _record = self.stack(EL9_SERVER, dict(
            PYTHON, LUSTRE_MODE='local', CINDER_ENABLED_BACKENDS='lvm:l',
            ENABLE_LUSTRE_C_BAK='False', ENABLED_SERVICES='c-vol,c-api'))
        self.assertNotEqual([], simulation.mounts)
        self.go(simulation, 'unstack')
        self.assertEqual([], simulation.mounts)

    def test_a_directory_of_the_user(self):
        simulation = self.simulate(BOOKWORM, {'LUSTRE_MODE': 'standin'})
        directory = simulation.top / 'srv/lustre'
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write(f'LUSTRE_DATA_DIR={directory}\n')
        directory.parent.mkdir()
        self.go(simulation, 'stack')
        self.go(simulation, 'clean')
        self.assertFalse(directory.exists())

    def test_a_compute_host(self):
        simulation, record = self.stack(
            dict(NOBLE, LUSTRE='client'), ENABLED_SERVICES='n-cpu')
        self.assertTrue(simulation.path(DROP_IN).exists())
        self.assertEqual([], record.of('enable_service'))
        self.assertEqual({'nova.conf'},
                         {path for path, _section, _name in record.options})
        # A server, which DevStack ends too late.
        simulation.tell(BUSY=f'{MOUNTS}/nova/0123abcd')
        record = self.go(simulation, 'unstack')
        self.assertEqual([('n-cpu',)], record.of('stop_process'))
        self.assertEqual([], simulation.mounts)
        self.assertEqual([], record.of('warn'))
        self.assertFalse(simulation.path(DROP_IN).exists())


@ddt.ddt
class CinderTestCase(PluginTestCase):

    def values(self, record, path, section):
        return {name: value for (file, group, name), value
                in record.options.items() if (file, group) == (path, section)}

    def shares(self, simulation, backend):
        return simulation.path(f'/etc/cinder/lustre-shares-{backend}'
                               ).read_text().splitlines()

    def test_backend(self):
        simulation, record = self.stack(NOBLE, SHARES)
        self.assertEqual(
            {'volume_backend_name': 'lustre',
             'volume_driver':
                 'cinder_lustre.volume.drivers.lustre.LustreDriver',
             'lustre_shares_config':
                 '/etc/cinder/lustre-shares-lustre',
             'lustre_mount_point_base': MOUNTS + '/cinder',
             'image_volume_cache_enabled': 'True'},
            self.values(record, 'cinder.conf', 'lustre'))
        self.assertEqual([SHARES['LUSTRE_SHARES']],
                         self.shares(simulation, 'lustre'))
        self.assertEqual({}, self.values(record, 'cinder.conf',
                                         'backend_defaults'))

    def test_defaults(self):
        _simulation, record = self.stack(NOBLE, SHARES)
        self.assertEqual(
            {'enabled_backends': 'lustre', 'default_volume_type': 'lustre',
             'volume_manager': 'cinder_lustre.volume.manager.VolumeManager',
             'backup_manager': 'cinder_lustre.backup.manager.BackupManager',
             'backup_driver':
                 'cinder_lustre.backup.drivers.lustre.LustreBackupDriver',
             'lustre_backup_share': SHARES['LUSTRE_BACKUP_SHARE'],
             'lustre_backup_mount_point_base': MOUNTS + '/backup'},
            self.values(record, 'cinder.conf', 'DEFAULT'))
        self.assertIn(('c-bak',), record.of('enable_service'))

    def test_everything_named_exists(self):
        objects.register_all()
        _simulation, record = self.stack()
        known = {option.name for _group, options in
                 opts.list_opts() + nova_opts.list_opts()
                 for option in options}
        names = {name for _file, _group, name in record.options
                 if name.startswith('lustre_')}
        self.assertEqual(set(), names - known)
        for (_file, _group, name), value in record.options.items():
            if value.startswith('cinder_lustre.'):
                importutils.import_class(value)

    def test_standin(self):
        _simulation, record = self.stack()
        fstypes = {(file, section, name): value for (file, section, name),
                   value in record.options.items() if 'fstypes' in name}
        self.assertEqual(
            {('cinder.conf', 'backend_defaults',
              'lustre_development_fstypes'): 'ext4,fuse.lustre',
             ('cinder.conf', 'DEFAULT', 'lustre_backup_development_fstypes'):
                 'ext4,fuse.lustre',
             ('nova.conf', 'libvirt', 'lustre_development_fstypes'):
                 'ext4,fuse.lustre'}, fstypes)

    @ddt.data((EL9_SERVER, 'local'), (NOBLE, 'client'),
              (dict(NOBLE, LUSTRE='client'), 'preinstalled'))
    @ddt.unpack
    def test_nothing_passes_for_lustre(self, host, mode):
        settings = {} if mode == 'local' else SHARES
        _simulation, record = self.stack(
            host, dict(settings, **PYTHON, LUSTRE_MODE=mode))
        self.assertEqual([], [key for key in record.options
                              if 'fstypes' in key[2]])

    def test_a_list_of_the_user(self):
        simulation, record = self.stack(
            NOBLE, CINDER_ENABLED_BACKENDS='lvm:l,lustre:a,lustre:b',
            LUSTRE_SHARES='1@tcp:/f/a -o user_xattr; 1@tcp:/f/b ;',
            LUSTRE_BACKUP_SHARE='1@tcp:/f/c')
        self.assertEqual('l,a,b', record.options[
            'cinder.conf', 'DEFAULT', 'enabled_backends'])
        self.assertEqual(['1@tcp:/f/a -o user_xattr'],
                         self.shares(simulation, 'a'))
        self.assertEqual(['1@tcp:/f/b'], self.shares(simulation, 'b'))
        self.assertNotIn('volume_driver',
                         self.values(record, 'cinder.conf', 'l'))

    def test_a_list_without_lustre(self):
        _simulation, record = self.stack(
            dict(NOBLE, LUSTRE='client'), CINDER_ENABLED_BACKENDS='lvm:l',
            LUSTRE_BACKUP_SHARE='1@tcp:/f/c', LUSTRE_MODE='preinstalled')
        self.assertEqual('1@tcp:/f/c', record.options[
            'cinder.conf', 'DEFAULT', 'lustre_backup_share'])
        self.assertEqual('posix', record.options[
            'tempest.conf', 'volume', 'backup_driver'])
        self.assertNotIn(('tempest.conf', 'volume', 'storage_protocol'),
                         record.options)

    def test_all_shares_of_one_backend(self):
        simulation, _record = self.stack(NOBLE, dict(
            SHARES, LUSTRE_SHARES='1@tcp:/f/a;1@tcp:/f/b'))
        self.assertEqual(['1@tcp:/f/a', '1@tcp:/f/b'],
                         self.shares(simulation, 'lustre'))

    def test_own_shares(self):
        simulation, record = self.stack(
            LUSTRE_MODE='standin',
            CINDER_ENABLED_BACKENDS='lustre:a,lustre:b')
        self.assertEqual(['192.0.2.10@tcp:/devstack/volumes/b'],
                         self.shares(simulation, 'b'))
        self.assertEqual('192.0.2.10@tcp:/devstack/backups', record.options[
            'cinder.conf', 'DEFAULT', 'lustre_backup_share'])

    @ddt.data({'ENABLE_LUSTRE_C_BAK': 'False'},
              {'CINDER_BACKUP_DRIVER': 'swift'})
    def test_backups_elsewhere(self, settings):
        _simulation, record = self.stack(NOBLE, dict(
            settings, LUSTRE_SHARES='1@tcp:/f/a'))
        self.assertEqual([], record.of('enable_service'))
        self.assertNotIn(('cinder.conf', 'DEFAULT', 'backup_driver'),
                         record.options)
        # It still reads volumes on Lustre.
        self.assertIn(('cinder.conf', 'DEFAULT', 'backup_manager'),
                      record.options)

    def test_c_bak_disabled(self):
        _simulation, record = self.stack(
            NOBLE, 'disable_service c-bak\nLUSTRE_SHARES=1@tcp:/f/a\n')
        self.assertNotIn(('cinder.conf', 'DEFAULT', 'backup_driver'),
                         record.options)

    def test_c_bak_alone(self):
        _simulation, record = self.stack(
            dict(NOBLE, LUSTRE='client'), ENABLED_SERVICES='c-bak',
            LUSTRE_BACKUP_SHARE='1@tcp:/f/c')
        self.assertEqual('1@tcp:/f/c', record.options[
            'cinder.conf', 'DEFAULT', 'lustre_backup_share'])
        self.assertIn(('cinder.conf', 'DEFAULT', 'backup_manager'),
                      record.options)

    def test_second_type(self):
        _simulation, record = self.stack()
        self.assertEqual(
            [('--os-region-name=RegionOne', 'volume', 'type', 'create',
              '--property', 'volume_backend_name=lustre', '--property',
              'lustre:format=qcow2', 'lustre-qcow2')],
            record.of('openstack'))

    def test_doctor(self):
        _simulation, record = self.stack()
        self.assertEqual([], [text for _line, text in record.of('warn')
                              if 'doctor' in text])
        _simulation, record = self.stack(dict(BOOKWORM, DOCTOR='1'))
        self.assertTrue([text for _line, text in record.of('warn')
                         if 'doctor' in text])

    @ddt.data((BOOKWORM, '$DATA_DIR/venv/bin'), (EL10, '/usr/local/bin'))
    @ddt.unpack
    def test_installation(self, host, directory):
        simulation, record = self.stack(host)
        self.assertEqual([(str(simulated.PLUGIN.parent),)],
                         record.of('setup_develop'))
        directory = directory.replace(
            '$DATA_DIR', str(simulation.top / 'opt/stack/data'))
        self.assertEqual(
            [('--service-user', 'stack')],
            record.of('sudo', directory + '/cinder-lustre-doctor'))


@ddt.ddt
class NovaTestCase(PluginTestCase):

    @ddt.data(BOOKWORM, EL10)
    def test_unit(self, host):
        """DevStack's own command line, with another program."""
        simulation, record = self.stack(host)
        parser = configparser.ConfigParser(strict=False)
        parser.read(simulation.path(DROP_IN).parent.parent /
                    'devstack@n-cpu.service')
        command = parser['Service']['ExecStart']
        self.assertIn('/nova-compute ', command)
        self.assertEqual(
            '[Service]\nExecStart=\nExecStart=%s\n' % command.replace(
                '/nova-compute ', '/nova-compute-lustre '),
            simulation.path(DROP_IN).read_text())
        # systemd reads it before it starts the service.
        calls = [call[:3] for call in record.calls]
        self.assertLess(calls.index(('sudo', 'systemctl', 'daemon-reload')),
                        calls.index(('run_process', 'n-cpu', command)))

    def test_another_drop_in_stays(self):
        simulation, _record = self.stack()
        other = simulation.path(DROP_IN).parent / 'other.conf'
        other.touch()
        self.go(simulation, 'unstack')
        self.assertTrue(other.exists())
        self.assertFalse(simulation.path(DROP_IN).exists())

    def test_base(self):
        _simulation, record = self.stack()
        self.assertEqual(MOUNTS + '/nova', record.options[
            'nova.conf', 'libvirt', 'lustre_mount_point_base'])

    def test_another_hypervisor(self):
        simulation, record = self.stack(
            LUSTRE_MODE='standin', VIRT_DRIVER='fake')
        self.assertFalse(simulation.path(DROP_IN).exists())
        self.assertTrue([text for _line, text in record.of('warn')
                         if 'VIRT_DRIVER=fake' in text])
        self.assertNotIn(('tempest.conf', 'lustre', 'online_snapshots'),
                         record.options)

    def test_migration(self):
        simulation = self.simulate(dict(BOOKWORM, LIBVIRT='11.3.0'),
                                   {'LUSTRE_MODE': 'standin'})
        path = simulation.path('/etc/libvirt/qemu.conf')
        path.parent.mkdir(parents=True)
        path.write_text('user = "root"\n')
        for _again in range(2):
            record = self.go(simulation, 'stack')
            self.assertEqual(
                'user = "root"\n'
                "# of DevStack's plugin cinder-lustre\n"
                'shared_filesystems = '
                f'[ "{simulation.path(MOUNTS)}/nova" ]\n',
                path.read_text())
        self.assertEqual([], record.of('restart_service'))
        record = self.go(simulation, 'clean')
        self.assertEqual('user = "root"\n', path.read_text())
        self.assertEqual([('libvirtd',)], record.of('restart_service'))

    def test_migration_with_another_directory(self):
        simulation, _record = self.stack(dict(BOOKWORM, LIBVIRT='11.3.0'))
        self.go(simulation, 'unstack')
        with open(simulation.top / 'localrc', 'a') as stream:
            stream.write('LUSTRE_MOUNT_DIR=/srv/other\n')
        record = self.go(simulation, 'stack')
        self.assertEqual(
            "# of DevStack's plugin cinder-lustre\n"
            'shared_filesystems = '
            f'[ "{simulation.path("/srv/other/nova")}" ]\n',
            simulation.path('/etc/libvirt/qemu.conf').read_text())
        self.assertIn(('libvirtd',), record.of('restart_service'))

    @ddt.data(('10.9.0', ''), ('11.3.0', 'shared_filesystems = [ "/x" ]\n'))
    @ddt.unpack
    def test_no_migration(self, version, text):
        simulation = self.simulate(dict(BOOKWORM, LIBVIRT=version),
                                   {'LUSTRE_MODE': 'standin'})
        path = simulation.path('/etc/libvirt/qemu.conf')
        path.parent.mkdir(parents=True)
        path.write_text(text)
        self.go(simulation, 'stack')
        self.go(simulation, 'clean')
        self.assertEqual(text, path.read_text())


@ddt.ddt
class TempestTestCase(PluginTestCase):

    def settings(self, record):
        return {(section, name): value for (file, section, name), value
                in record.options.items() if file == 'tempest.conf'}

    def statistics(self):
        """What the driver reports, without a share."""
        driver = lustre.LustreDriver(
            configuration=configuration.Configuration(
                lustre.LustreDriver.get_driver_options(),
                config_group='lustre'))
        with mock.patch.multiple(
                driver, _ensure_shares_mounted=mock.DEFAULT,
                _get_provisioned_capacity=mock.Mock(return_value=0)):
            return driver.get_volume_stats(refresh=True)

    def test_what_the_driver_reports(self):
        statistics = self.statistics()
        _simulation, record = self.stack()
        found = self.settings(record)
        defaults = {option.name: option.default
                    for option in tempest.config.VolumeGroup}
        for name in ('storage_protocol', 'vendor_name'):
            self.assertEqual(statistics[name], found.get(
                ('volume', name), defaults[name]))
        self.assertEqual(str(statistics['multiattach']), found[
            'compute-feature-enabled', 'volume_multiattach'])
        self.assertEqual(str(statistics['online_extend_support']), found[
            'volume-feature-enabled', 'extend_attached_volume'])

    def test_every_option_exists(self):
        """Also that its value is one of those that are possible."""
        conf = cfg.ConfigOpts()
        for group, options in tempest.config.list_opts():
            conf.register_opts(options, group=group)
        conf.register_opts(tempest_config.LUSTRE_OPTIONS, group='lustre')
        # Of cinder-tempest-plugin, which need not be there.
        conf.register_opts([cfg.BoolOpt('concurrency_tests'),
                            cfg.BoolOpt('volume_revert')],
                           group='volume-feature-enabled')
        _simulation, record = self.stack(
            LUSTRE_MODE='standin',
            CINDER_ENABLED_BACKENDS='lustre:a,lustre:b')
        for (section, name), value in self.settings(record).items():
            conf.set_override(name, value, group=section)

    @ddt.data('manage', 'revert', 'reimage', 'encryption',
              'online_snapshots')
    def test_options_of_this_project(self, name):
        _simulation, record = self.stack()
        self.assertEqual('True', self.settings(record)['lustre', name])

    @ddt.data(('lustre:a', None), ('lustre:a,lvm:b', None),
              ('lustre:a,lustre:b', 'True'))
    @ddt.unpack
    def test_migration(self, backends, value):
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', CINDER_ENABLED_BACKENDS=backends)
        self.assertEqual(
            value, self.settings(record).get(('lustre', 'migration')))

    def test_what_the_user_turns_off(self):
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', TEMPEST_VOLUME_MANAGE_SNAPSHOT='False',
            ENABLE_LUSTRE_MULTIATTACH='False', ENABLE_LUSTRE_C_BAK='False')
        found = self.settings(record)
        self.assertEqual('False', found['volume-feature-enabled',
                                        'manage_snapshot'])
        self.assertEqual('False', found['compute-feature-enabled',
                                        'volume_multiattach'])
        self.assertNotIn(('volume', 'backup_driver'), found)

    @ddt.data(('', '{ours}'), ('0', '{ours}'),
              ('/opt/stack/other', '/opt/stack/other {ours}'),
              ('{ours} /opt/stack/other', '{ours} /opt/stack/other'))
    @ddt.unpack
    def test_plugin(self, before, after):
        ours = str(simulated.PLUGIN.parent)
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', TEMPEST_PLUGINS=before.format(ours=ours))
        self.assertEqual([(after.format(ours=ours),)],
                         record.of('tempest_plugins'))

    def test_what_the_user_says(self):
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', TEMPEST_VOLUME_VENDOR='Other',
            TEMPEST_STORAGE_PROTOCOL='other')
        found = self.settings(record)
        self.assertEqual('Other', found['volume', 'vendor_name'])
        self.assertEqual('other', found['volume', 'storage_protocol'])

    def test_volumes_on_another_backend(self):
        """What is told of them is not what Lustre's would be."""
        _simulation, record = self.stack(
            LUSTRE_MODE='standin', CINDER_ENABLED_BACKENDS='lvm:l,lustre:a')
        found = self.settings(record)
        self.assertEqual(set(), {
            ('volume', 'manage_volume_ref'), ('volume', 'manage_snapshot_ref'),
            ('volume', 'vendor_name'), ('volume', 'storage_protocol'),
        } & set(found))
        self.assertEqual('True', found['compute-feature-enabled',
                                       'swap_volume'])
        self.assertEqual('True', found['lustre', 'manage'])

    def test_features(self):
        _simulation, record = self.stack()
        found = self.settings(record)
        for name in ('manage_volume', 'manage_snapshot', 'volume_revert',
                     'extend_attached_volume',
                     'extend_attached_encrypted_volume'):
            self.assertEqual('True', found['volume-feature-enabled', name])
        self.assertEqual('False', found['compute-feature-enabled',
                                        'swap_volume'])
        self.assertEqual('True', found['compute-feature-enabled',
                                       'volume_multiattach'])
        self.assertEqual('posix', found['volume', 'backup_driver'])

    def test_references(self):
        _simulation, record = self.stack(NOBLE, dict(
            SHARES, LUSTRE_SHARES='1@tcp:/f/a -o user_xattr;1@tcp:/f/b'))
        self.assertEqual(
            'source-name,1@tcp:/f/a/volume-%s',
            self.settings(record)['volume', 'manage_volume_ref'])
