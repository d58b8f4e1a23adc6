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

"""The directory that DevStack runs in: how it is made, mounted and entered.

A base from debootstrap, and above it a layer for each series of OpenStack, are
kept; what a run writes is in a layer of its own.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
STUBS = os.path.join(HERE, 'stubs')
STACK = '/opt/stack'
VENV = STACK + '/data/venv'
RECORDS = '/run/real-devstack'

PACKAGES = """
acl apache2 bc bsdmainutils ca-certificates curl e2fsprogs fuse3 gawk gcc git
hostname iproute2 iptables kmod libc6-dev libvirt-clients
libvirt-daemon-system locales lsb-release lvm2 open-iscsi openssl procps
psmisc python3 python3-dev python3-pip python3-systemd python3-venv qemu-utils
sudo systemd uuid-runtime uwsgi uwsgi-plugin-python3 wget
""".split()
SOURCES = ('cinder', 'nova', 'tempest')
# What stack.sh installs with pip besides the requirements of the sources.
REQUIREMENTS = """
PyMySQL bindep etcd3gw keystonemiddleware os-testr pbr pip
python-memcached python-openstackclient setuptools tox!=2.8.0,<4.0.0 wheel
""".split()


class Failure(Exception):
    """The run cannot go on."""


def run(*command, log=None, check=True, **kwargs):
    """Run a command; its output goes to the log, or is returned."""
    if log:
        with open(log, 'a') as stream:
            done = subprocess.run(command, stdin=subprocess.DEVNULL,
                                  stdout=stream, stderr=subprocess.STDOUT,
                                  **kwargs)
    else:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, **kwargs)
    if check and done.returncode:
        said = done.stdout
        if log:
            with open(log, errors='replace') as stream:
                said = f'see {log}\n' + tail(stream.read())
        raise Failure(f'{shlex.join(command)} ended with {done.returncode}; '
                      f'{said}')
    return done


def tail(text, lines=25):
    return '\n'.join('      | ' + line for line in text.splitlines()[-lines:])


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def say(text):
    print(text, flush=True)


# The directory that debootstrap makes, and the layer of a series above it.

@contextlib.contextmanager
def made_once(directory):
    """Yield a new directory that gets its name when it is complete."""
    if os.path.isdir(directory):
        yield None
        return
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    partial = tempfile.mkdtemp(prefix='partial-',
                               dir=os.path.dirname(directory))
    os.chmod(partial, 0o755)
    try:
        yield partial
        os.rename(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def mirror_of(suite):
    """The mirror that this machine has for the suite, from apt itself."""
    if os.environ.get('REAL_DEVSTACK_MIRROR'):
        return os.environ['REAL_DEVSTACK_MIRROR']
    targets = run('apt-get', 'indextargets', '--format',
                  '$(RELEASE) $(REPO_URI)', 'Created-By: Packages').stdout
    for line in targets.splitlines():
        release, uri = line.split(None, 1)
        if release == suite:
            return uri
    raise Failure(f'apt of this machine has no source for {suite}: set '
                  'REAL_DEVSTACK_MIRROR to a mirror that has')


def make_base(directory, suite, log):
    mirror = mirror_of(suite)
    if not shutil.which('debootstrap'):
        raise Failure('debootstrap is missing: apt-get install debootstrap')
    run('debootstrap', '--variant=minbase', '--include=ca-certificates',
        suite, directory, mirror, log=log)
    shutil.copy('/etc/resolv.conf', directory + '/etc/resolv.conf')
    # No daemon of a package starts in the directory.
    with open(directory + '/usr/sbin/policy-rc.d', 'w') as policy:
        policy.write('#!/bin/sh\nexit 101\n')
    os.chmod(directory + '/usr/sbin/policy-rc.d', 0o755)
    run('chroot', directory, 'apt-get', '-y', '--no-install-recommends',
        'install', *PACKAGES, log=log,
        env=dict(os.environ, DEBIAN_FRONTEND='noninteractive', LC_ALL='C'))
    shutil.rmtree(directory + '/var/cache/apt/archives')
    # The locale that stack.sh sets.
    run('chroot', directory, 'localedef', '-i', 'en_US', '-f', 'UTF-8',
        'en_US.UTF-8', log=log)


def pip_configuration(base):
    """What pip of this machine is told, for pip in the directory."""
    environment = {name: value for name, value in os.environ.items()
                   if name.lower().endswith('_proxy')}
    for name in ('index-url', 'extra-index-url', 'trusted-host', 'timeout'):
        value = run(sys.executable, '-m', 'pip', 'config', 'get',
                    'global.' + name, check=False)
        # What is on the disk of this machine is not in the directory.
        if value.returncode == 0 and 'file:' not in value.stdout:
            environment['PIP_' + name.upper().replace('-', '_')] = (
                value.stdout.strip())
    authorities = '/etc/ssl/certs/ca-certificates.crt'
    if os.path.exists(authorities):
        shutil.copy(authorities, base + authorities)
        environment['PIP_CERT'] = authorities
    return environment


def make_wheels(directory, base, constraints, log):
    """What pip needs in the directory, which has no network later."""
    place = tempfile.mkdtemp(dir=base + '/var/tmp')
    inside = place[len(base):]
    try:
        shutil.copy(constraints, place + '/constraints.txt')
        environment = dict(
            pip_configuration(base), PATH='/usr/bin:/bin:/usr/sbin:/sbin',
            LANG='C.UTF-8', PIP_NO_CACHE_DIR='1',
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_CONSTRAINT=inside + '/constraints.txt')
        for command in (
                ('wheel', '--wheel-dir', inside, *SOURCES, *REQUIREMENTS),
                ('download', '--no-deps', '--no-binary', ','.join(SOURCES),
                 '--dest', inside + '/sources', *SOURCES)):
            run('chroot', base, 'python3', '-m', 'pip', *command, log=log,
                env=environment)
        for source in SOURCES:
            for wheel in glob.glob(f'{place}/{source}-*.whl'):
                os.unlink(wheel)
        for name in os.listdir(place):
            shutil.move(f'{place}/{name}', directory)
    finally:
        shutil.rmtree(place)


def make_sources(stack, wheels, constraints, branch):
    """Directories that DevStack finds as if they had been cloned."""
    for source in SOURCES:
        archive, = glob.glob(f'{wheels}/sources/{source}-*.tar.gz')
        with tarfile.open(archive) as tar:
            top = tar.getnames()[0].split('/')[0]
            tar.extractall(stack)
        os.rename(f'{stack}/{top}', f'{stack}/{source}')
    requirements = stack + '/requirements'
    os.mkdir(requirements)
    shutil.copy(constraints, requirements + '/upper-constraints.txt')
    shutil.copy(constraints, requirements + '/global-requirements.txt')
    shutil.copy(STUBS + '/edit-constraints', requirements)
    with open(requirements + '/setup.cfg', 'w') as setup:
        setup.write('[metadata]\nname = openstack_requirements\nversion = 0\n'
                    '[options]\npy_modules =\nscripts = edit-constraints\n')
    with open(requirements + '/pyproject.toml', 'w') as project:
        project.write('[build-system]\nrequires = ["setuptools"]\n'
                      'build-backend = "setuptools.build_meta"\n')
    with open(requirements + '/global-requirements.txt', 'a') as stream:
        stream.write('\n'.join(REQUIREMENTS) + '\n')
    for name in (*SOURCES, 'requirements'):
        git = ('git', '-C', f'{stack}/{name}', '-c', 'safe.directory=*',
               '-c', 'user.name=real-devstack',
               '-c', 'user.email=real-devstack@localhost')
        run(*git, 'init', '--quiet', '--initial-branch', 'master')
        run(*git, 'add', '--all', '--force')
        run(*git, 'commit', '--quiet', '--message', 'As on PyPI')
        if branch != 'master':
            run(*git, 'branch', branch)


class Directory:
    """The directory in use: layers, mounts and commands in it."""

    def __init__(self, work):
        self.root = work + '/root'
        self.work = work

    def path(self, path):
        return self.root + path

    def mount(self, *layers):
        for name in ('root', 'upper', 'scratch'):
            os.makedirs(f'{self.work}/{name}', exist_ok=True)
        run('mount', '-t', 'overlay', 'overlay', '-o',
            f'lowerdir={":".join(layers)},upperdir={self.work}/upper,'
            f'workdir={self.work}/scratch', self.root)
        run('mount', '-t', 'proc', 'proc', self.path('/proc'))
        run('mount', '-t', 'sysfs', 'sysfs', self.path('/sys'))
        # What is set there would be set for the whole machine.
        for path in ('/proc/sys', '/sys/kernel', '/sys/module'):
            run('mount', '--bind', '-o', 'ro', path, self.path(path))
        run('mount', '--bind', '/proc/sys/net', self.path('/proc/sys/net'))
        # DevStack sets KSM if it is there, and must be able to.
        run('mount', '-t', 'tmpfs', 'mm', self.path('/sys/kernel/mm'))
        run('mount', '--rbind', '/dev', self.path('/dev'))
        run('mount', '-t', 'tmpfs', '-o', 'mode=0755', 'run',
            self.path('/run'))
        os.mkdir(self.path('/run/lock'))
        run('hostname', 'devstack')
        run('ip', 'link', 'set', 'lo', 'up')

    def leave(self):
        """End all processes here and give back the loop devices."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        devices = json.loads(run('losetup', '--json', '--list', '--output',
                                 'NAME,BACK-FILE').stdout or '{}')
        run('umount', '--recursive', self.root, check=False)
        for device in devices.get('loopdevices', []):
            if (device['back-file'] or '').startswith(self.root + '/'):
                run('losetup', '--detach', device['name'], check=False)

    def command(self, *command, user='root', **kwargs):
        home = STACK if user == 'stack' else '/root'
        environment = dict(
            HOME=home, USER=user, LOGNAME=user, LANG='C.UTF-8', TERM='dumb',
            PATH='/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:'
                 '/sbin:/bin', SHELL='/bin/bash')
        return run('chroot', self.root, 'runuser', '-u', user, '--',
                   *command, env=environment, **kwargs)

    def write(self, path, text, mode=0o644):
        with open(self.path(path), 'w') as stream:
            stream.write(text)
        os.chmod(self.path(path), mode)


def make_layer(directory, layer, base, wheels, constraints, devstack, log):
    """All that is the same for every run with a series, above the base."""
    directory.mount(base)
    root = directory.path
    shutil.copytree(wheels, root('/var/cache/wheels'))
    directory.write('/etc/pip.conf', '[global]\nno-index = true\n'
                    'find-links = /var/cache/wheels\n'
                    'disable-pip-version-check = true\n')
    directory.write('/etc/hostname', 'devstack\n')
    directory.write('/etc/hosts', '127.0.0.1 localhost devstack\n')
    # DevStack's own script makes the user.
    shutil.copytree(devstack, root('/tmp/devstack'), symlinks=True)
    directory.command('env', 'HOST_IP=127.0.0.1',
                      '/tmp/devstack/tools/create-stack-user.sh', log=log)
    shutil.rmtree(root('/tmp/devstack'))
    make_sources(root(STACK), wheels, constraints, variable(
        devstack + '/stackrc', 'TARGET_BRANCH'))
    directory.command('chown', '-R', 'stack:stack', STACK)
    in_constraints = STACK + '/constraints.txt'
    with open(constraints) as lines:
        directory.write(in_constraints, ''.join(
            line for line in lines
            if line.split('=')[0] not in SOURCES))
    tempest = STACK + '/tempest/.tox/tempest'
    for venv, options, what in (
            (VENV, ['--system-site-packages'],
             [*REQUIREMENTS, *shlex.split(' '.join(
                 f'--editable {STACK}/{source}' for source in SOURCES))]),
            (tempest, [], ['--editable', STACK + '/tempest'])):
        directory.command('python3', '-m', 'venv', *options, venv,
                          user='stack', log=log)
        directory.command(venv + '/bin/pip', 'install', '--constraint',
                          in_constraints, *what, user='stack', log=log)
    os.unlink(root(in_constraints))
    for stub, place in (('openstack', VENV + '/bin'), ('tox', VENV + '/bin'),
                        ('pip', VENV + '/bin'),
                        ('systemctl', '/usr/bin'), ('apt-get', '/usr/bin')):
        if place == '/usr/bin':
            os.rename(root(f'{place}/{stub}'), root(f'{place}/{stub}.real'))
        else:
            os.unlink(root(f'{place}/{stub}'))
        os.symlink(f'/usr/local/lib/real-devstack/{stub}',
                   root(f'{place}/{stub}'))
    run('umount', '--recursive', directory.root)
    os.rename(directory.work + '/upper', layer)


def variable(path, name):
    with open(path) as stream:
        found = re.search(rf'^{name}=["\']?([^"\'\s]+)', stream.read(), re.M)
    if not found:
        raise Failure(f'{path} sets no {name}: is DEVSTACK_DIR a checkout of '
                      'openstack/devstack?')
    return found[1]
