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

"""up, down and clean: the order of things, and how each can be repeated."""

import os
import shutil
import time

from cinder_lab import compute
from cinder_lab import config
from cinder_lab import host
from cinder_lab import openstack
from cinder_lab import packages
from cinder_lab import processes
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import services
from cinder_lab import state
from cinder_lab import storage
from cinder_lab import supervisor
from cinder_lab import venv


def up(lab, nova=False):
    """Bring everything up, from whatever state the lab is in."""
    need_root()
    lab.create()
    lab.put('backend', lab.backend)
    if nova:
        lab.put('nova', True)
    report.say(f'lab in {lab.prefix}, ports from {lab.base}')
    with state.locked(lab.prefix):
        shares = storage.Shares(lab)
        control = supervisor.Supervisor(lab)
        _install(lab)
        with report.step('configuration') as notes:
            host.ensure_users(lab)
            if lab.backend == 'nfs':
                host.ensure_nfs_helper()
            config.directories(lab)
            digest = _configure(lab, shares)
            current = control.alive() and lab.get('running') == digest
            if not current:
                notes.append('services need a start')
        if not current:
            _repair(lab, control, shares)
        with report.step('shares') as notes:
            notes += shares.start()
        if not current:
            _start_supervisor(lab, control)
            lab.put('running', digest)
        _start_services(lab, control, shares)
        if lab.nova:
            _start_nova(lab, control)
        report.say(f'up. "{state.CHECKOUT}/tools/lab/lab shell" gives a '
                   f'shell with the openstack client')


def _install(lab):
    (lab.prefix / 'log').mkdir(exist_ok=True)
    with report.step('packages') as notes:
        notes += packages.install(lab.log('packages'), lab.nova)
    with report.step('Python environment') as notes:
        notes += venv.Venv(lab).ensure()


def _configure(lab, shares):
    """Write the configuration; return a digest of all that it rests on."""
    return lab.get('venv_pins') + str(lab.get('venv_nova')) + config.write_all(
        lab, shares.development_fstypes) + repr(shares.given)


def _repair(lab, control, shares):
    """Bring what a killed lab has left to the state after a clean down."""
    left = processes.of(lab.base)
    if left or storage.mounts(lab.prefix):
        with report.step(f'stopping what is left ({len(left)} processes)'):
            _stop(lab, control)
            shares.stop()


def _start_supervisor(lab, control):
    with report.step('supervisor'):
        for path in (lab.prefix / 'run').iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        # Nothing in the broker outlives the services: no lock, no journal
        # and no half-written table of a killed one either.
        for path in (lab.prefix / 'rabbitmq').glob('lab*'):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        openstack.create_database_server(lab)
        control.start()


def _start_services(lab, control, shares):
    basis, identity, rest_of_it = services.core(lab)
    since = int(time.time())
    with report.step('MariaDB, RabbitMQ, memcached'):
        # The broker brings a port mapper of its own if ours is not there.
        _start(control, [program for program in basis
                         if program.name != 'rabbitmq'])
        _start(control, [program for program in basis
                         if program.name == 'rabbitmq'], wait=False)
        if lab.get('schemas') != lab.get('venv_pins'):
            with report.step('database schemas'):
                openstack.create_databases(lab)
                openstack.bring_schemas_up(lab)
            lab.put('schemas', lab.get('venv_pins'))
        _start(control, identity, wait=False)
        _start(control, basis)
    with report.step('keystone'):
        _start(control, identity)
        control.wait('keystone', rest.answers(lab.url('keystone') + '/v3'))
        tenant = openstack.fill_catalog(lab)
        if lab.get('internal_tenant') != tenant:
            # Cinder reads its configuration after this.
            lab.put('internal_tenant', tenant)
            lab.put('running', _configure(lab, shares))
    with report.step('glance and cinder'):
        fresh = any(control.states()[program.name]['statename'] != 'RUNNING'
                    for program in rest_of_it)
        _start(control, rest_of_it)
        for name in ('glance', 'cinder'):
            control.wait(name, rest.answers(lab.url(name) + '/'))
        openstack.create_types(lab)
        _await_reports(lab, control, since if fresh else 0)


def _start_nova(lab, control):
    apis, machine = services.nova_apis(lab), services.nova_host(lab)
    if lab.get('schemas_nova') != lab.get('venv_nova'):
        with report.step("nova's database schemas"):
            compute.bring_schemas_up(lab)
        lab.put('schemas_nova', lab.get('venv_nova'))
    with report.step("nova's APIs"):
        # libvirtd only sees what is mounted below what is shared by then.
        compute.share_mounts(lab)
        _start(control, apis + machine[:1])
        for name in ('placement', 'nova'):
            control.wait(name, rest.answers(lab.url(name) + '/'))
        compute.warm_neutron(lab)
    with report.step('nova-compute'):
        _start(control, machine)
        compute.discover_host(lab)
        compute.create_flavor(lab)
    with report.step('guest image') as notes:
        notes += compute.provide_guest(lab)


def _start(control, programs, wait=True):
    control.launch(*(program.name for program in programs))
    for program in programs if wait else ():
        control.wait(program.name, program.probe or (lambda: True))


def _await_reports(lab, control, since):
    """Wait until Cinder's services say that they work."""
    client = rest.Client(lab)
    deadline = time.monotonic() + 300
    while True:
        missing = openstack.silent(client, since)
        if not missing:
            return
        for name in {name.split()[0] for name in missing}:
            control.wait(name, lambda: True)
        if time.monotonic() > deadline:
            raise report.LabError('\n'.join(
                f'{name} does not report; '
                + report.tail(lab.log(name.split()[0]))
                for name in missing))
        time.sleep(0.2)


def _stop(lab, control):
    """End every process of the lab, services before what they stand on."""
    if control.alive():
        for stage in reversed(services.stages(lab)):
            # Guests outlive nova-compute; their disks are unmounted soon.
            if 'nova-compute' in [program.name for program in stage]:
                control.stop('nova-compute')
                processes.end(lab.base, 0, processes.is_guest)
            control.stop(*(program.name for program in stage))
        control.shutdown()
        patience = 20
    else:
        patience = 0
    processes.end(lab.base, patience)


def down(lab):
    """Stop everything; what is on the shares and in the database stays."""
    need_root()
    with state.locked(lab.prefix):
        with report.step('stopping the services'):
            _stop(lab, supervisor.Supervisor(lab))
        with report.step('unmounting'):
            storage.Shares(lab).stop()


def clean(lab):
    """Remove the lab, inside and outside of its prefix."""
    need_root()
    packages.restore_policy()
    if lab.exists:
        lab.check()
        down(lab)
        with report.step(f'removing {lab.prefix}'):
            storage.Shares(lab).remove()
            left = storage.mounts(lab.prefix)
            if left:
                raise report.LabError(f'still mounted: {left}')
            shutil.rmtree(lab.prefix)
            # Last: the link lets the next "clean" find the rest.
            host.remove(lab.base)
    for base in host.abandoned():
        with report.step(f'removing what is left of the lab on {base}'):
            processes.end(base, patience=0)
            storage.destroy_standins(base)
            host.remove(base)
    if state.REGISTRY.is_dir() and not os.listdir(state.REGISTRY):
        storage.standin('uninstall')
        host.remove_nfs_helper()
        host.remove_directories()
        state.REGISTRY.rmdir()


def restart(lab, names, wait=True):
    """Restart services, for one who has changed the driver."""
    need_root()
    with state.locked(lab.prefix):
        control = supervisor.Supervisor(lab)
        venv.Venv(lab).ensure()
        since = int(time.time())
        control.stop(*names)
        programs = [program for stage in services.stages(lab)
                    for program in stage if program.name in names]
        _start(control, programs)
        if wait:
            _await_reports(lab, control, since)


def need_root():
    if os.geteuid():
        raise report.LabError('this needs root: mounts, users, packages; '
                              'run it with sudo')
