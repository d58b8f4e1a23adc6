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

"""The programs of the lab: their commands, order and signs of life."""

import dataclasses
import glob
import os
import typing

from cinder_lab import report
from cinder_lab import state
from cinder_lab import supervisor

LIBVIRTD = state.CHECKOUT / 'tools/lab/libvirt/libvirtd'
BACKENDS = ('lustre1', 'lustre2')


@dataclasses.dataclass(frozen=True)
class Program:
    """A process under the supervisor.

    :param probe: tells whether it answers, or None if the API has to be
        asked
    :param user: who runs it, or None for the lab's user
    """

    name: str
    command: str
    probe: typing.Optional[typing.Callable] = None
    environment: dict = dataclasses.field(default_factory=dict)
    user: typing.Optional[str] = None


def infrastructure(lab):
    """What OpenStack stands on; the broker's port mapper comes first."""
    return [
        Program('mariadb',
                f'/usr/sbin/mariadbd '
                f'--defaults-file={lab.link}/etc/mariadb.cnf',
                supervisor.has_socket(lab.link / 'run/mariadb.sock')),
        Program('epmd', f'/usr/bin/epmd -address 127.0.0.1 '
                        f'-port {lab.port("epmd")}',
                supervisor.accepts(lab.port('epmd'))),
        Program('memcached',
                f'/usr/bin/memcached -l 127.0.0.1 -U 0 -m 64 -c 1024 '
                f'-p {lab.port("memcached")}',
                supervisor.accepts(lab.port('memcached'))),
        Program('rabbitmq', rabbitmq_server(),
                supervisor.accepts(lab.port('rabbitmq')),
                rabbitmq_environment(lab)),
    ]


def rabbitmq_server():
    """The server's own script: the distribution's switches the user."""
    found = sorted(glob.glob(
        '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server'))
    if not found:
        raise report.LabError('RabbitMQ is not installed where the package '
                              'rabbitmq-server puts it: /usr/lib/rabbitmq')
    return found[-1]


def rabbitmq_environment(lab):
    state = f'{lab.link}/rabbitmq'
    return {
        'HOME': state,
        # The shell in front of the server would outlive a kill.
        'RUNNING_UNDER_SYSTEMD': 'true',
        'RABBITMQ_CONF_ENV_FILE': '/dev/null',
        'RABBITMQ_NODENAME': f'lab{lab.base}@localhost',
        'RABBITMQ_CONFIG_FILE': f'{lab.link}/etc/rabbitmq.conf',
        'RABBITMQ_ENABLED_PLUGINS_FILE': f'{lab.link}/etc/rabbitmq_plugins',
        'RABBITMQ_MNESIA_BASE': state,
        'RABBITMQ_LOG_BASE': f'{state}/log',
        'RABBITMQ_PID_FILE': f'{lab.link}/run/rabbitmq.pid',
        'RABBITMQ_DIST_PORT': str(lab.port('rabbitmq_dist')),
        'ERL_EPMD_PORT': str(lab.port('epmd')),
        'ERL_EPMD_ADDRESS': '127.0.0.1',
        # Idle schedulers that spin would take a core of a small machine.
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS':
            '-kernel inet_dist_use_interface {127,0,0,1} '
            '+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none',
    }


def uwsgi(lab, name):
    return Program(name, f'{lab.venv}/bin/uwsgi --ini '
                         f'{lab.link}/etc/uwsgi-{name}.ini',
                   supervisor.accepts(lab.port(name)),
                   {'OS_KEYSTONE_CONFIG_DIR': f'{lab.link}/etc',
                    'OS_GLANCE_CONFIG_DIR': f'{lab.link}/etc',
                    'OS_PLACEMENT_CONFIG_DIR': f'{lab.link}/etc',
                    'OS_NEUTRON_CONFIG_DIR': f'{lab.link}/etc',
                    'OS_NEUTRON_CONFIG_FILES': 'neutron.conf',
                    'OS_NOVA_CONFIG_DIR': f'{lab.link}/etc/nova'})


def identity(lab):
    return [uwsgi(lab, 'keystone')]


def openstack(lab):
    return [uwsgi(lab, 'glance'), uwsgi(lab, 'cinder'),
            *(Program(f'cinder-{name}',
                      f'{lab.venv}/bin/python {lab.venv}/bin/cinder-{name} '
                      f'--config-file {lab.link}/etc/cinder.conf')
              for name in ('scheduler', 'volume', 'backup'))]


def nova_apis(lab):
    """What the profile "nova" needs before a host can join."""
    return [uwsgi(lab, name) for name in ('placement', 'neutron', 'nova')] + [
        Program(f'nova-{name}',
                f'{lab.venv}/bin/python {lab.venv}/bin/nova-{name} '
                f'--config-file {lab.link}/etc/nova/nova.conf')
        for name in ('conductor', 'scheduler')]


def nova_host(lab):
    """The host that runs instances."""
    socket = lab.link / 'run/libvirt/libvirt-sock'
    return [
        Program('libvirtd',
                f'/usr/bin/unshare --mount --propagation slave '
                f'{LIBVIRTD} {lab.link}', supervisor.has_socket(socket),
                user='root'),
        Program('nova-compute',
                f'{lab.venv}/bin/python {lab.venv}/bin/{nova_compute(lab)} '
                f'--config-file {lab.link}/etc/nova/nova-compute.conf')]


def nova_compute(lab):
    """The command of nova-compute: ours, if this checkout has it."""
    wanted = os.environ.get('LAB_NOVA_COMPUTE') or lab.get('nova_compute')
    if wanted:
        return wanted
    ours = 'nova-compute-lustre'
    return ours if (lab.venv / 'bin' / ours).exists() else 'nova-compute'


def core(lab):
    """All programs without a profile, in the order they can start."""
    return [infrastructure(lab), identity(lab), openstack(lab)]


def stages(lab):
    """All programs, in the order in which they can start."""
    return core(lab) + ([nova_apis(lab), nova_host(lab)] if lab.nova else [])
