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

import json
import os
import pathlib
import shlex
import subprocess
import sys

import ddt
import fixtures
import testtools

import layout

ANSIBLE = pathlib.Path(sys.executable).with_name('ansible-playbook')
KERNEL = '5.14.0-611.13.1_lustre.el9.x86_64'

# What the plugin takes of DevStack, on an EL9 host that runs no stack.sh: the
# version of Python is that of its python3.
STACKRC = r'''
DEST=/opt/stack
DATA_DIR=$DATA_DIR
STACK_USER=stack
VIRT_DRIVER=libvirt
PYTHON3_VERSION=3.9
define_plugin() { :; }
die() { shift; echo "$*" >&2; exit 1; }
enable_service() { ENABLED_SERVICES+=",$1"; }
GetDistro() { DISTRO=rhel9; }
is_arch() { [[ $1 == x86_64 ]]; }
is_service_enabled() {
    local name
    for name in $*; do
        [[ ,$ENABLED_SERVICES, != *,$name,* ]] || return 0
    done
    return 1
}
is_ubuntu() { false; }
install_package() { echo "install_package $*" >> "$RECORD"; }
trueorfalse() { echo "${!2:-$1}"; }
vercmp() {
    [[ $2 == "<" && $1 != "$3" ]] || return 1
    [[ $(printf '%s\n' "$1" "$3" | sort -V | head -n 1) == "$1" ]]
}
'''
SUDO = r'''#!/usr/bin/env bash
echo "$*" >> "$RECORD"
case $1 in
    install|mkdir)
        for word in "$@"; do
            [[ $word != /* ]] || mkdir -p "$word"
        done
        ;;
    lctl) echo 192.0.2.7@tcp ;;
    tee) cat > /dev/null ;;
esac
'''


def play(playbook, inventory, variables, place, roles):
    """Run a playbook on hosts that are all this one."""
    (place / 'inventory.json').write_text(json.dumps(inventory))
    variables = variables | {
        'ansible_become': False, 'ansible_connection': 'local',
        'ansible_python_interpreter': sys.executable}
    return subprocess.run(
        [ANSIBLE, '-i', place / 'inventory.json', '-e', json.dumps(variables),
         playbook], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {
            'ANSIBLE_ROLES_PATH': str(roles),
            'ANSIBLE_HOME': str(place / 'ansible'), 'HOME': str(place)})


@ddt.ddt
class PreTest(testtools.TestCase):
    """Which hosts become servers before DevStack runs."""

    @ddt.data(
        ('cinder-lustre-el9', {'controller'}, set()),
        ('cinder-lustre-multinode', {'lustre-server'}, {'lustre-server'}))
    @ddt.unpack
    def test_hosts_of_roles(self, name, kernel, server):
        place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for role in ('lustre_kernel', 'lustre_server'):
            tasks = place / 'roles' / role / 'tasks'
            tasks.mkdir(parents=True)
            (place / role).mkdir()
            (tasks / 'main.yaml').write_text(json.dumps([{
                'ansible.builtin.copy': {
                    'dest': f'{place}/{role}/{{{{ inventory_hostname }}}}',
                    'content': ''}}]))
        job = layout.Tenant([*layout.upstream(), layout.ours()]).job(name)
        # DevStack's has a fact of a playbook that is over.
        localrc = dict(job.variables['devstack_localrc'],
                       PUBLIC_BRIDGE_MTU='{{ external_bridge_mtu }}')
        result = play(
            layout.ROOT / 'playbooks/pre.yaml',
            {'all': {
                'hosts': {host: {} for node in job.nodeset.getNodes()
                          for host in node.name},
                'children': {
                    group.name: {'hosts': {host: {} for host in group.nodes}}
                    for group in job.nodeset.getGroups()}}},
            {'devstack_localrc': localrc}, place, place / 'roles')
        self.assertEqual(0, result.returncode, result.stdout)
        for role, expected in (('lustre_kernel', kernel),
                               ('lustre_server', server)):
            self.assertEqual(expected, set(os.listdir(place / role)),
                             result.stdout)


class ServeTest(testtools.TestCase):
    """The script that serves a Lustre without DevStack's services."""

    def setUp(self):
        super().setUp()
        self.place = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        (self.place / 'devstack').mkdir()
        (self.place / 'devstack/stackrc').write_text(STACKRC)
        (self.place / 'cinder-lustre').symlink_to(layout.ROOT)
        (self.place / 'data').mkdir()
        self.command('sudo', SUDO)
        self.command('uname', f'#!/bin/sh\necho {KERNEL}\n')
        self.command('id', '#!/bin/sh\necho stack\n')
        self.command('ip', '#!/bin/sh\necho 2: eth0 inet 192.0.2.7/24\n')
        self.command('getent', '#!/bin/sh\nexit 2\n')
        self.command('selinuxenabled', '#!/bin/sh\nexit 0\n')

    def command(self, name, text):
        path = self.place / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def serve(self, *arguments):
        """What the script does as root, a command a line."""
        record = self.place / 'record'
        record.write_text('')
        result = subprocess.run(
            [layout.ROOT / 'roles/lustre_server/files/serve', self.place,
             *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={
                'PATH': f'{self.place}/bin:{os.environ["PATH"]}',
                'RECORD': str(record), 'DATA_DIR': f'{self.place}/data',
                'LUSTRE_MOUNT_DIR': f'{self.place}/mnt'})
        return result, record.read_text().splitlines()

    def test_serves_shares_to_the_user_of_the_other_host(self):
        result, commands = self.serve('192.0.2.7', '1001')
        self.assertEqual(0, result.returncode, result.stdout)
        text = '\n'.join(commands)
        made = [line.split()[0] for line in commands]
        self.assertIn('install_package lustre kmod-lustre', text)
        self.assertEqual(3, made.count('mkfs.lustre'))
        self.assertIn('--mgsnode=192.0.2.7@tcp', text)
        root = f'{self.place}/mnt/root'
        self.assertIn(f'mount -t lustre -o flock 192.0.2.7@tcp:/devstack '
                      f'{root}', commands)
        self.assertIn(f'chown 1001 {root}/volumes/lustre {root}/backups',
                      commands)
        for user in 64055, 107:
            self.assertIn(f'setfacl -m u:{user}:x {root}/volumes/lustre',
                          commands)

    def test_does_what_stack_sh_would(self):
        result, commands = self.serve('192.0.2.7', '1001')
        self.assertEqual(0, result.returncode, result.stdout)
        made = [line.split()[0] for line in commands]
        self.assertLess(commands.index('setenforce 0'),
                        made.index('mkfs.lustre'))
        self.assertLess(commands.index('install_package acl'),
                        made.index('setfacl'))

    def test_without_selinux(self):
        self.command('selinuxenabled', '#!/bin/sh\nexit 1\n')
        result, commands = self.serve('192.0.2.7', '1001')
        self.assertEqual(0, result.returncode, result.stdout)
        self.assertNotIn('setenforce 0', commands)

    def test_other_kernel(self):
        self.command('uname', '#!/bin/sh\necho 5.14.0-1.el9.x86_64\n')
        result, commands = self.serve('192.0.2.7', '1001')
        self.assertEqual(1, result.returncode)
        self.assertIn(KERNEL, result.stdout)
        self.assertEqual([], commands)

    def test_usage(self):
        result, commands = self.serve('192.0.2.7')
        self.assertEqual(2, result.returncode)
        self.assertIn('usage', result.stdout)


class CollectTest(testtools.TestCase):

    def test_what_hangs_holds_up_nothing(self):
        place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        playbook = place / 'playbook.yaml'
        playbook.write_text(json.dumps([{
            'hosts': 'localhost', 'gather_facts': False,
            'roles': ['collect_lustre_state']}]))
        hangs = place / 'hangs'
        os.mkfifo(hangs)
        variables = {
            'collect_lustre_state_dir': str(place / 'lustre'),
            'collect_lustre_state_limit': 3,
            'collect_lustre_state_commands': {
                'first': 'echo one; no-such-command',
                'hangs': f'cat {shlex.quote(str(hangs))}',
                'last': 'echo four'}}
        # Twice: a second run must find nothing in its way.
        for _ in range(2):
            result = play(playbook, {'all': {'hosts': {'localhost': {}}}},
                          variables, place, layout.ROOT / 'roles')
            self.assertEqual(0, result.returncode, result.stdout)
            found = {file.name: file.read_text()
                     for file in (place / 'lustre').iterdir()}
            self.assertEqual({'first.txt', 'hangs.txt', 'last.txt'},
                             set(found))
            self.assertIn('one\n', found['first.txt'])
            self.assertIn('not found', found['first.txt'])
            self.assertEqual('', found['hangs.txt'])
            self.assertEqual('four\n', found['last.txt'])
