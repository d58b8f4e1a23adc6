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

"""The lab's virtual environment: pinned packages and the checkout."""

import hashlib
import os
import shutil
import sys

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import state

LAB = state.CHECKOUT / 'tools/lab'
# What the tests of this series of Cinder run with.
PINS = state.CHECKOUT / 'constraints/2026.2.txt'
CONSTRAINTS = ('-c', str(PINS))
PROJECT_FILES = ('pyproject.toml', 'requirements.txt', 'setup.cfg')
# pip's settings that uv, which reads no pip.conf, has options for.
UV_OPTIONS = {
    'index-url': '--default-index',
    'extra-index-url': '--index',
    'find-links': '--find-links',
    'trusted-host': '--allow-insecure-host',
}


def digest(*files):
    total = hashlib.sha256(sys.version.encode())
    for file in files:
        if file.exists():
            total.update(file.read_bytes())
    return total.hexdigest()


def uv_arguments(pip_config):
    """What the host tells pip about package indexes, told to uv.

    :param pip_config: the output of "pip config list"
    :returns: options and environment variables
    """
    options = []
    environment = {}
    for line in pip_config.splitlines():
        key, _, value = line.partition('=')
        name = key.rpartition('.')[2]
        value = value.strip("'\"").replace('\\n', ' ')
        if name in UV_OPTIONS:
            for word in value.split():
                options += [UV_OPTIONS[name], word]
        elif name == 'cert':
            environment['SSL_CERT_FILE'] = value
    if options:
        # As pip does: the best version of all the indexes.
        options += ['--index-strategy', 'unsafe-best-match']
    return options, environment


class Venv:

    def __init__(self, lab):
        self._lab = lab
        self._python = str(lab.venv / 'bin/python')
        self._log = lab.log('packages')

    def ensure(self, tempest=False):
        """Bring the environment up to date; say what was done.

        :param tempest: whether Tempest is needed
        """
        pins = digest(PINS, LAB / 'requirements.txt')
        project = digest(*(state.CHECKOUT / name for name in PROJECT_FILES))
        done = []
        if self._lab.get('venv_pins') != pins or not self._usable():
            self._lab.forget('venv_pins', 'venv_project', 'venv_nova',
                             'venv_tempest')
            self._create()
            self._install('requirements.txt')
            self._lab.put('venv_pins', pins)
            done.append('packages')
        for name, wanted in (('nova', self._lab.nova), ('tempest', tempest)):
            requirements = f'requirements-{name}.txt'
            current = digest(PINS, LAB / requirements)
            if wanted and self._lab.get(f'venv_{name}') != current:
                self._install(requirements)
                self._lab.put(f'venv_{name}', current)
                done.append(f"{name}'s packages")
        # A copy, made each time, if the services cannot reach the checkout.
        editable = state.open_to_others(state.CHECKOUT)
        if self._lab.get('venv_project') != project or not editable:
            self._pip('--no-build-isolation',
                      *(['--editable'] if editable else []),
                      str(state.CHECKOUT))
            self._lab.put('venv_project', project)
            done.append('checkout')
        return done

    def _usable(self):
        return os.access(self._python, os.X_OK)

    def _create(self):
        directory = self._lab.prefix / 'venv'
        if directory.exists():
            shutil.rmtree(directory)
        self._run('/usr/bin/python3', '-m', 'venv', str(self._lab.venv))
        self._pip('uv')

    def _install(self, name):
        requirements = ('-r', str(LAB / name))
        options, environment = uv_arguments(
            commands.run(self._python, '-m', 'pip', 'config', 'list'))
        try:
            self._run(str(self._lab.venv / 'bin/uv'), 'pip', 'install',
                      '--python', self._python, '--compile-bytecode',
                      *options, *CONSTRAINTS, *requirements,
                      environment=environment)
        except report.LabError as error:
            report.warn(f'{error}\nuv could not; trying pip, which is slower')
            self._pip(*requirements)

    def _pip(self, *what):
        self._run(self._python, '-m', 'pip', 'install', '-q', *CONSTRAINTS,
                  *what)

    def _run(self, *command, environment=None):
        variables = os.environ | (environment or {}) | {
            # pbr asks git, which distrusts another user's checkout.
            'GIT_CONFIG_COUNT': '1',
            'GIT_CONFIG_KEY_0': 'safe.directory',
            'GIT_CONFIG_VALUE_0': str(state.CHECKOUT),
        }
        for name in ('PYTHONPATH', 'PYTHONDONTWRITEBYTECODE', 'VIRTUAL_ENV'):
            variables.pop(name, None)
        commands.Logged(self._log, *command, env=variables).wait()
