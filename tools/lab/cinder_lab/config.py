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

"""The configuration of the services, from templates/ and the lab's state."""

import base64
import hashlib
import os
import pathlib
import pwd
import shutil
import string
import uuid

from cinder_lab import host
from cinder_lab import services
from cinder_lab import state
from cinder_lab import storage
from cinder_lab import supervisor

TEMPLATES = pathlib.Path(__file__).parents[1] / 'templates'
# API: WSGI module, processes, threads of each, further lines.
UWSGI = {
    'keystone': ('keystone.wsgi.api', 2, 1, ''),
    'glance': ('glance.wsgi.api', 1, 4, ''),
    'cinder': ('cinder.wsgi.api', 2, 1,
               'pyargv = --config-file $link/etc/cinder.conf'),
}
NOVA_UWSGI = {
    'placement': ('placement.wsgi.api', 1, 2, ''),
    'neutron': ('neutron.wsgi.api', 1, 2, ''),
    'nova': ('nova.wsgi.osapi_compute', 1, 4, ''),
}
OWNED = ('backup', 'cinder/conversion', 'cinder/coordination', 'cinder/lock',
         'glance/images', 'glance/lock', 'glance/staging', 'glance/tasks',
         'keystone/credential-keys', 'keystone/fernet-keys', 'mnt',
         'rabbitmq', 'run')

# libvirt's own places, which the lab's libvirtd sees below the prefix.
LIBVIRT = ('etc', 'lib', 'log', 'cache')
NOVA_OWNED = ('nova/instances', 'nova/lock', 'nova/mnt', 'neutron/lock')

# The volume driver and the backup driver, and what a backend needs, by the
# value of LAB_BACKEND.
DRIVERS = {
    'lustre': ('cinder_lustre.volume.drivers.lustre.LustreDriver',
               'cinder_lustre.backup.drivers.lustre.LustreBackupDriver'),
    'nfs': ('cinder.volume.drivers.nfs.NfsDriver',
            'cinder.backup.drivers.posix.PosixBackupDriver'),
}
BACKENDS = {
    'lustre': """[$name]
volume_backend_name = $name
lustre_shares_config = $link/etc/shares-$name
lustre_mount_point_base = $prefix/mnt/$name
""",
    # It has snapshots only as root, which must leave files to all.
    'nfs': """[$name]
volume_backend_name = $name
nfs_shares_config = $link/etc/shares-$name
nfs_mount_point_base = $prefix/mnt/$name
nfs_mount_attempts = 1
nfs_qcow2_volumes = true
nfs_snapshot_support = true
nas_secure_file_operations = false
nas_secure_file_permissions = false
"""}

NOVA_DATABASES = """[api_database]
connection = $database_url/nova_api

[database]
connection = $database_url/nova

"""


def directories(lab):
    """Make the services' directories; a former lab's user may own them."""
    user = pwd.getpwnam(lab.user)
    owned = OWNED + (NOVA_OWNED if lab.nova else ())
    nova = ('etc/nova/rootwrap.d', *(f'libvirt/{name}' for name in LIBVIRT))
    for name in ('etc/rootwrap.d', 'log', *owned,
                 *(f'mnt/{name}' for name in services.BACKENDS),
                 *(nova if lab.nova else ())):
        (lab.prefix / name).mkdir(parents=True, exist_ok=True)
    if lab.nova:
        host.ensure_directories()
    for name in {pathlib.Path(name).parts[0] for name in owned}:
        top = lab.prefix / name
        if top.stat().st_uid != user.pw_uid:
            give(top, user)


def give(top, user):
    """Hand a tree to a user, and never cross into a mount."""
    device = top.stat().st_dev
    for parent, names, files in os.walk(top):
        names[:] = [name for name in names
                    if os.lstat(os.path.join(parent, name)).st_dev == device]
        for name in names + files:
            os.chown(os.path.join(parent, name), user.pw_uid, user.pw_gid,
                     follow_symlinks=False)
    # Last: that it is done is seen by this one.
    os.chown(top, user.pw_uid, user.pw_gid)


def write_all(lab, development_fstypes):
    """Write every file of etc/ and return a digest of them."""
    group = pwd.getpwnam(lab.user).pw_gid
    etc = lab.prefix / 'etc'
    values = _values(lab, development_fstypes)
    texts = {f'uwsgi-{name}.ini': _render('uwsgi.ini', values | {
        'module': module, 'processes': processes,
        'threads': threads, 'port': lab.port(name),
        'extra': string.Template(extra).substitute(values)})
        for name, (module, processes, threads, extra) in (
            UWSGI | (NOVA_UWSGI if lab.nova else {})).items()}
    for name in ('cinder.conf', 'clouds.yaml', 'glance-api.conf',
                 'keystone.conf'):
        texts[name] = _render(name, values)
    texts['rootwrap.conf'] = _render(
        'rootwrap.conf', values | {'filters': f'{lab.link}/etc/rootwrap.d'})
    if lab.nova:
        texts |= _nova_texts(lab, values)
    for name in ('mariadb.cnf', 'rabbitmq.conf'):
        texts[name] = _render(name, values | {
            'port': lab.port(name.partition('.')[0]),
            'password': lab.secret('rabbitmq')})
    texts['rabbitmq_plugins'] = '[].\n'
    texts['supervisord.conf'] = supervisor.configuration(
        lab, sum(services.stages(lab), []))
    for name, text in texts.items():
        state.write(etc / name, text, mode=0o640, group=group)
    host.ensure_sudoers(lab, _render('sudoers', values) + (
        _render('sudoers-nova', values) if lab.nova else ''))
    _write_filters(lab, 'etc/rootwrap.d', ('cinder', 'os-brick'))
    if lab.nova:
        _write_filters(lab, 'etc/nova/rootwrap.d', ('nova',))
    _write_keys(lab)
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _render(name, values):
    return string.Template(
        (TEMPLATES / name).read_text()).substitute(values)


def _values(lab, development_fstypes):
    values = {
        'link': lab.link, 'prefix': lab.prefix, 'venv': lab.venv,
        'base': lab.base, 'user': lab.user,
        'guest_user': lab.guest_user,
        'keystone_url': lab.url('keystone'), 'glance_url': lab.url('glance'),
        'memcached': f'127.0.0.1:{lab.port("memcached")}',
        'admin_password': lab.secret('admin'),
        'service_password': lab.secret('service'),
        'encryption_key': lab.secret('encryption'),
        'transport_url': f'rabbit://lab:{lab.secret("rabbitmq")}'
                         f'@127.0.0.1:{lab.port("rabbitmq")}/',
        'database_url': f'mysql+pymysql://lab:{lab.secret("database")}'
                        f'@127.0.0.1:{lab.port("mariadb")}',
        'placement_url': lab.url('placement'),
        'neutron_url': lab.url('neutron'),
        # Fixed for a lab: libvirt's machine is the lab, not the host.
        'host_uuid': uuid.uuid5(uuid.NAMESPACE_URL, str(lab.prefix)),
        'development_fstypes': development_fstypes,
        'backends': ','.join(services.BACKENDS),
        **dict(zip(('volume_driver', 'backup_driver'),
                   DRIVERS[lab.backend])),
        'backup_share': storage.Shares(lab).backup,
        # Cinder starts no more than there are cores.
        'backup_workers': min(2, os.cpu_count()),
        # Keystone chooses them: they are unknown before its first start.
        **dict(zip(('internal_project', 'internal_user'),
                   lab.get('internal_tenant') or ('', ''))),
    }
    values['backend_sections'] = '\n'.join(
        string.Template(BACKENDS[lab.backend]).substitute(values, name=name)
        for name in services.BACKENDS)
    return values


def _nova_texts(lab, values):
    """The files of the profile "nova"."""
    texts = {name: _render(name, values)
             for name in ('placement.conf', 'neutron.conf')}
    databases = string.Template(NOVA_DATABASES).substitute(values)
    # nova-compute says that it may not know the database.
    for name, sections in (('nova', databases), ('nova-compute', '')):
        texts[f'nova/{name}.conf'] = _render(
            'nova.conf', values | {'databases': sections})
    texts['nova/api-paste.ini'] = (
        lab.venv / 'etc/nova/api-paste.ini').read_text()
    texts['nova/rootwrap.conf'] = _render('rootwrap.conf', values | {
        'filters': f'{lab.link}/etc/nova/rootwrap.d'})
    texts['libvirtd.conf'] = _render('libvirtd.conf', values)
    texts['../libvirt/etc/qemu.conf'] = _render('qemu.conf', values)
    return texts


def _write_filters(lab, directory, owners):
    """Rootwrap's filters: the packages' and our own."""
    target = lab.prefix / directory
    for source in (*lab.venv.glob('etc/*/rootwrap.d/*.filters'),
                   *state.CHECKOUT.glob('etc/cinder/rootwrap.d/*.filters')):
        if source.parts[-3] in owners:
            shutil.copyfile(source, target / source.name)


def _write_keys(lab):
    """Keystone's keys; it makes them itself, but in seconds."""
    user = pwd.getpwnam(lab.user)
    for directory in ('credential-keys', 'fernet-keys'):
        for number in ('0', '1'):
            path = lab.prefix / 'keystone' / directory / number
            if not path.exists():
                state.write(path, base64.urlsafe_b64encode(
                    os.urandom(32)).decode(), mode=0o400)
                os.chown(path, user.pw_uid, user.pw_gid)
