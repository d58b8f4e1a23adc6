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

"""The supervisor: started, asked and told through its unix socket."""

import http.client
import os
import socket
import xmlrpc.client

from cinder_lab import commands
from cinder_lab import processes
from cinder_lab import report

RUNNING = 'RUNNING'
# The number of supervisord's error for it.
NOT_RUNNING = 70


class _Connection(http.client.HTTPConnection):

    def __init__(self, path):
        super().__init__('localhost', timeout=180)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):

    def __init__(self, path):
        super().__init__()
        self._path = path

    def make_connection(self, host):
        return _Connection(self._path)


def configuration(lab, programs):
    """supervisord's file; a % there begins an expansion."""
    run = lab.link / 'run'
    sections = [('unix_http_server', {'file': run / 'supervisor.sock',
                                      'chmod': '0600'}),
                ('supervisord', {'pidfile': run / 'supervisord.pid',
                                 'logfile': lab.link / 'log/supervisord.log',
                                 'childlogdir': lab.link / 'log',
                                 'identifier': f'lab-{lab.base}',
                                 'user': 'root'}),
                ('rpcinterface:supervisor', {
                    'supervisor.rpcinterface_factory':
                    'supervisor.rpcinterface:make_main_rpcinterface'})]
    for program in programs:
        variables = ','.join(f'{key}="{value}"' for key, value
                             in program.environment.items())
        sections.append((f'program:{program.name}', {
            'command': program.command,
            'environment': variables,
            'user': program.user or lab.user,
            'directory': run,
            'autostart': 'false',
            'autorestart': 'true',
            'startsecs': '1',
            'startretries': '3',
            'stopwaitsecs': '20',
            'stopasgroup': 'true',
            'killasgroup': 'true',
            'redirect_stderr': 'true',
            'stdout_logfile': lab.link / f'log/{program.name}.log',
            'stdout_logfile_maxbytes': '200MB',
            'stdout_logfile_backups': '1',
        }))
    return '\n'.join(
        f'[{name}]\n' + ''.join(f'{key} = {value}\n'.replace('%', '%%')
                                for key, value in values.items())
        for name, values in sections)


class Supervisor:

    def __init__(self, lab):
        self._lab = lab
        self._socket = lab.link / 'run/supervisor.sock'
        self._rpc = xmlrpc.client.ServerProxy(
            'http://localhost', _Transport(str(self._socket))).supervisor
        # When each program was seen to start, to find one that does not stay.
        self._starts = set()

    def alive(self):
        try:
            return self._rpc.getState()['statename'] == 'RUNNING'
        except OSError:
            return False

    def start(self):
        """Start it with an environment of its own, not the caller's."""
        lab = self._lab
        for name in ('supervisor.sock', 'supervisord.pid'):
            (lab.link / 'run' / name).unlink(missing_ok=True)
        commands.run(
            str(lab.venv / 'bin/supervisord'), '-c',
            str(lab.link / 'etc/supervisord.conf'),
            env={'PATH': f'{lab.venv}/bin:/usr/local/sbin:/usr/local/bin:'
                         '/usr/sbin:/usr/bin:/sbin:/bin',
                 'HOME': str(lab.link / 'run'), 'LANG': 'C.UTF-8',
                 processes.MARK: str(lab.base)})
        report.wait_for(self.alive, 'supervisord answers', 120)

    def states(self):
        """Program name to its information."""
        return {info['name']: info
                for info in self._rpc.getAllProcessInfo()}

    def launch(self, *names):
        """Start programs without waiting for each."""
        # A killed "down" may have left some of them on their way out.
        self._await_end(names, ('STOPPING',))
        now = self.states()
        for name in names:
            if now[name]['statename'] not in ('RUNNING', 'STARTING'):
                self._rpc.startProcess(name, False)

    def stop(self, *names):
        """Stop programs, all at once, and wait for them."""
        now = self.states()
        for name in names:
            if now.get(name, {}).get('statename') in (
                    'RUNNING', 'STARTING', 'BACKOFF'):
                self._stop(name)
        self._await_end(names, ('STOPPING', 'RUNNING'))

    def _stop(self, name):
        try:
            self._rpc.stopProcess(name, False)
        except xmlrpc.client.Fault as fault:
            # It has ended meanwhile.
            if fault.faultCode != NOT_RUNNING:
                raise

    def _await_end(self, names, states):
        def ended():
            now = self.states()
            return not [name for name in names if name in now
                        and now[name]['statename'] in states]
        report.wait_for(ended, f'stop of {", ".join(names)}', 180)

    def shutdown(self):
        self._rpc.shutdown()

    def wait(self, name, probe, seconds=300):
        """Poll until a program answers; say why it does not."""

        def answers():
            info = self.states()[name]
            self._starts.add((name, info['start']))
            if info['statename'] == 'FATAL' or 3 < len(
                    [start for start in self._starts if start[0] == name]):
                raise report.LabError(f'{name} ends again and again')
            return info['statename'] == RUNNING and probe()
        try:
            return report.wait_for(answers, f'{name} answers', seconds)
        except report.LabError as error:
            raise report.LabError(f'{error}; ' + report.tail(
                self._lab.log(name))) from None


def accepts(port):
    """A probe: something listens on a port of loopback."""
    def probe():
        with socket.socket() as client:
            client.settimeout(5)
            return client.connect_ex(('127.0.0.1', port)) == 0
    return probe


def has_socket(path):
    def probe():
        with socket.socket(socket.AF_UNIX) as client:
            return os.path.exists(path) and client.connect_ex(
                str(path)) == 0
    return probe
