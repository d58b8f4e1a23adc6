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

"""What OpenStack keeps in its database: schemas, catalog, volume types.

Every function finds what is there already and adds the rest.
"""

import datetime
import os
import shutil

from cinder_lab import commands
from cinder_lab import rest
from cinder_lab import services

DATABASES = ('keystone', 'glance', 'cinder')
# User and service, its type, and the path of its endpoint.
SERVICES = (('glance', 'image', ''), ('cinder', 'block-storage', '/v3'))
NOVA_SERVICES = (('placement', 'placement', ''), ('neutron', 'network', ''),
                 ('nova', 'compute', '/v2.1'))
ENCRYPTED = 'lustre-luks'
# Volume type: its extra specs.
TYPES = {
    'lustre-raw': {'lustre:format': 'raw'},
    'lustre-qcow2': {'lustre:format': 'qcow2'},
    **{name: {'volume_backend_name': name} for name in services.BACKENDS},
    **{f'{name}-{fmt}': {'volume_backend_name': name, 'lustre:format': fmt}
       for name in services.BACKENDS for fmt in ('raw', 'qcow2')},
    'lustre-multiattach': {'lustre:format': 'raw',
                           'multiattach': '<is> True'},
    ENCRYPTED: {'lustre:format': 'raw'},
}
ENCRYPTION = {'provider': 'luks', 'cipher': 'aes-xts-plain64',
              'key_size': 256, 'control_location': 'front-end'}


def create_database_server(lab):
    """Make MariaDB's own tables, unless a whole set is there."""
    final = lab.prefix / 'mariadb'
    if final.exists():
        return
    draft = lab.prefix / 'mariadb.draft'
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir()
    shutil.chown(draft, lab.user, lab.user)
    launch(lab, 'mariadb', 'mariadb-install-db', '--no-defaults',
           f'--datadir={lab.link}/mariadb.draft', '--skip-test-db',
           '--skip-name-resolve',
           '--auth-root-authentication-method=socket').wait()
    lab.forget('schemas')
    draft.rename(final)


def create_databases(lab, names=DATABASES):
    password = lab.secret('database')
    statements = [f"CREATE USER IF NOT EXISTS lab@'127.0.0.1' "
                  f"IDENTIFIED BY '{password}';"]
    for name in names:
        statements += [
            f'CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb3;',
            f"GRANT ALL ON {name}.* TO lab@'127.0.0.1';"]
    commands.run('mariadb', '--no-defaults', '--user=root',
                 f'--socket={lab.link}/run/mariadb.sock',
                 input='\n'.join(statements))


def bring_schemas_up(lab):
    """Run the migrations beside each other, and keystone's bootstrap."""
    keystone = ('keystone-manage', f'{lab.venv}/bin/keystone-manage',
                f'--config-file={lab.link}/etc/keystone.conf')
    migrations = [
        launch(lab, *keystone, 'db_sync'),
        launch(lab, 'glance-manage', f'{lab.venv}/bin/glance-manage',
               f'--config-file={lab.link}/etc/glance-api.conf', 'db_sync'),
        launch(lab, 'cinder-manage', f'{lab.venv}/bin/cinder-manage',
               f'--config-file={lab.link}/etc/cinder.conf', 'db', 'sync')]
    for migration in migrations:
        migration.wait()
    launch(lab, *keystone, 'bootstrap', '--bootstrap-region-id=RegionOne',
           *(f'--bootstrap-{kind}-url={lab.url("keystone")}/v3'
             for kind in ('public', 'internal')),
           OS_BOOTSTRAP_PASSWORD=lab.secret('admin')).wait()


def launch(lab, log, *command, **environment):
    """Start a command as the services' user."""
    return commands.Logged(
        lab.log(log), *command, user=lab.user, group=lab.user,
        extra_groups=[], cwd=lab.link / 'run',
        env={'PATH': os.environ['PATH'], 'LANG': 'C.UTF-8',
             'HOME': f'{lab.link}/run', **environment})


def fill_catalog(lab):
    """Service users, services and endpoints.

    Returns the project and the user of what Cinder itself owns.
    """
    client = rest.Client(lab)

    def find(kind, filters, **body):
        plural = kind + 's'
        query = '&'.join(f'{key}={value}' for key, value in filters.items())
        found = client.keystone('GET', f'/{plural}?{query}')[plural]
        return (found or [client.keystone(
            'POST', f'/{plural}', {kind: filters | body})[kind]])[0]['id']

    project = find('project', {'name': 'service', 'domain_id': 'default'})
    roles = [find('role', {'name': name}) for name in ('admin', 'service')]
    entries = SERVICES + (NOVA_SERVICES if lab.nova else ())
    for name, kind, path in entries:
        user = find('user', {'name': name, 'domain_id': 'default'},
                    password=lab.secret('service'))
        for role in roles:
            client.keystone('PUT', f'/projects/{project}/users/{user}'
                                   f'/roles/{role}')
        service = find('service', {'type': kind, 'name': name})
        for interface in ('public', 'internal'):
            find('endpoint', {'service_id': service, 'interface': interface,
                              'region_id': 'RegionOne'},
                 url=lab.url(name) + path)
    # Nobody ever logs in as that user, so it has no password.
    return [find(kind, {'name': 'cinder-internal', 'domain_id': 'default'})
            for kind in ('project', 'user')]


def create_types(lab):
    client = rest.Client(lab)
    found = {entry['name']: entry['id'] for entry in client.cinder(
        'GET', '/types?is_public=None')['volume_types']}
    for name, specs in TYPES.items():
        if name not in found:
            found[name] = client.cinder('POST', '/types', {'volume_type': {
                'name': name, 'extra_specs': specs}})['volume_type']['id']
    path = f'/types/{found[ENCRYPTED]}/encryption'
    if not client.cinder('GET', path):
        client.cinder('POST', path, {'encryption': ENCRYPTION})


def reporting(client):
    """Cinder's services: (binary, host) to the time of the last report."""
    return {(entry['binary'], entry['host']): entry
            for entry in client.cinder('GET', '/os-services')['services']}


def wanted():
    return [('cinder-scheduler', 'lab'), ('cinder-backup', 'lab'),
            *(('cinder-volume', f'lab@{name}')
              for name in services.BACKENDS)]


def silent(client, since):
    """Which of Cinder's services have not reported since a moment."""
    seen = reporting(client)
    return [' '.join(key) for key in wanted()
            if key not in seen or seen[key]['state'] != 'up'
            or datetime.datetime.fromisoformat(
                seen[key]['updated_at'] or '1970-01-01').replace(
                    tzinfo=datetime.timezone.utc).timestamp() < since]
