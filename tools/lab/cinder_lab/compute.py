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

"""The profile "nova": databases, cells, and the host that runs instances.

Every function finds what is there already and adds the rest.
"""

from cinder_lab import commands
from cinder_lab import guest
from cinder_lab import openstack
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import storage

DATABASES = ('placement', 'neutron', 'nova_api', 'nova', 'nova_cell0')
FLAVOR = {'name': 'lab', 'ram': 192, 'vcpus': 1, 'disk': 1}


def bring_schemas_up(lab):
    """Run the migrations beside each other, and make Nova's one cell."""
    openstack.create_databases(lab, DATABASES)
    config = f'--config-file={lab.link}/etc'
    migrations = [
        _start(lab, 'placement-manage', f'{config}/placement.conf',
               'db', 'sync'),
        _start(lab, 'neutron-db-manage', f'{config}/neutron.conf',
               'upgrade', 'heads'),
        _manage(lab, 'api_db', 'sync')]
    for migration in migrations:
        migration.wait()
    _manage(lab, 'cell_v2', 'map_cell0').wait()
    _manage(lab, 'db', 'sync').wait()
    # Refuses a second cell of the same databases: ask first.
    cells = commands.run(
        f'{lab.venv}/bin/nova-manage', f'{config}/nova/nova.conf',
        'cell_v2', 'list_cells', cwd='/')
    if ' cell1 ' not in cells:
        _manage(lab, 'cell_v2', 'create_cell', '--name=cell1').wait()


def _start(lab, name, *arguments):
    return openstack.launch(lab, name, f'{lab.venv}/bin/{name}', *arguments)


def _manage(lab, *arguments):
    return _start(lab, 'nova-manage',
                  f'--config-file={lab.link}/etc/nova/nova.conf', *arguments)


def warm_neutron(lab):
    """Wait until Neutron answers; its first list of ports may fail."""
    client = rest.Client(lab)

    def answers():
        try:
            client.neutron('GET', '/networks')
            client.neutron('GET', '/ports')
        except report.LabError:
            return False
        return True
    report.wait_for(answers, 'neutron answers', 120)


def share_mounts(lab):
    """Let what Nova mounts appear in libvirtd's namespace."""
    point = lab.prefix / 'nova/mnt'
    if point not in storage.mounts(point):
        commands.run('mount', '--bind', str(point), str(point))
        commands.run('mount', '--make-shared', str(point))


def discover_host(lab):
    """Wait for nova-compute and put it into the cell."""
    client = rest.Client(lab)

    def up():
        services = client.nova('GET', '/os-services')['services']
        return [entry for entry in services if entry['state'] == 'up'
                and entry['binary'] == 'nova-compute']
    report.wait_for(up, 'nova-compute reports', 180)

    def hypervisor():
        return client.nova('GET', '/os-hypervisors')['hypervisors']

    def joined():
        # The service reports before its host has a record to be found.
        if not hypervisor():
            _manage(lab, 'cell_v2', 'discover_hosts').wait()
        return hypervisor()
    report.wait_for(joined, 'host in the cell', 180)


def provide_guest(lab):
    """Put the guest's image into Glance; return what was done."""
    client = rest.Client(lab)
    image = guest.build(lab.prefix / 'guest', lab.log('packages'))
    found = client.glance('GET', f'/images?name=lab-guest&tag={image.name}')
    if found['images']:
        return []
    created = client.glance('POST', '/images', {
        'name': 'lab-guest', 'tags': [image.name], 'disk_format': 'raw',
        'container_format': 'bare', 'visibility': 'public', 'min_disk': 1})
    client.glance('PUT', f'/images/{created["id"]}/file',
                  image.read_bytes())
    return ['uploaded']


def create_flavor(lab):
    client = rest.Client(lab)
    if FLAVOR['name'] not in [entry['name'] for entry in client.nova(
            'GET', '/flavors')['flavors']]:
        client.nova('POST', '/flavors', {'flavor': FLAVOR})
