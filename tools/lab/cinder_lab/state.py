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

"""One lab: its place, its ports, its secrets, and what it remembers."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import socket

from cinder_lab import report

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
REGISTRY = pathlib.Path('/etc/cinder-lustre-lab')
# Below the ports that the kernel gives to clients.
BASES = range(18000, 30000, 100)
PORTS = ('keystone', 'glance', 'cinder', 'mariadb', 'rabbitmq',
         'rabbitmq_dist', 'epmd', 'memcached', 'placement', 'neutron', 'nova')

# The drivers that Cinder can have here, by the name of their protocol.
BACKENDS = ('lustre', 'nfs')


def open_to_others(path):
    """Whether another user can reach what lies in a directory."""
    return all(p.stat().st_mode & 0o005 == 0o005
               for p in (path, *path.parents) if p.exists())


def default_prefix():
    """In the checkout, or in /var/lib if services could not reach it."""
    if open_to_others(CHECKOUT):
        return CHECKOUT / '.lab'
    name = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return pathlib.Path('/var/lib') / f'cinder-lustre-lab-{name}'


def free(base):
    """Whether no lab holds a port base and all its ports can be bound."""
    if os.path.lexists(REGISTRY / str(base)):
        return False
    for port in range(base, base + len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                return False
    return True


def user_name(base):
    """The user that all services of a lab run as."""
    return f'cinder-lab-{base}'


def guest_user_name(base):
    """The user that QEMU runs as, with the profile "nova"."""
    return f'{user_name(base)}-qemu'


def links():
    """The links of all labs of this machine."""
    return [path for path in REGISTRY.glob('*') if path.is_symlink()]


# The descriptors of the locks that this process holds.
HELD = set()


@contextlib.contextmanager
def locked(directory):
    """Hold the exclusive lock of a directory; another holder is waited for."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say(f'waiting for another lab command ({directory})')
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        HELD.add(descriptor)
        yield
    finally:
        HELD.discard(descriptor)
        os.close(descriptor)


def write(path, text, mode=0o644, group=-1):
    """Replace a file of root's at once."""
    new = path.with_name(f'.{path.name}.new')
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, 'wb') as file:
        file.write(text.encode())
        os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    new.rename(path)


class Lab:
    """Paths below the prefix, ports above the base."""

    def __init__(self, prefix=None):
        prefix = prefix or os.environ.get('LAB_PREFIX')
        self.prefix = (pathlib.Path(prefix).absolute() if prefix
                       else default_prefix())
        self._file = self.prefix / 'state.json'
        self._data = {}
        try:
            self._data = json.loads(self._file.read_text())
        except FileNotFoundError:
            # Also if "clean" was killed between this file and the link.
            self._data = {'port_base': int(link.name) for link in links()
                          if link.readlink() == self.prefix}
        except PermissionError:
            raise report.LabError(
                f'{self._file} is root\'s, run this with sudo') from None

    @property
    def exists(self):
        return 'port_base' in self._data

    def check(self):
        """Fail if there is no lab, or if it is a copy of another one."""
        if not self.exists:
            raise report.LabError(
                f'no lab in {self.prefix}; "lab up" makes one')
        if self.link.is_symlink() and self.link.exists() and (
                self.link.readlink() != self.prefix):
            raise report.LabError(
                f'{self.prefix} is a copy of the lab in '
                f'{self.link.readlink()}: delete the copy')

    def create(self):
        """Make the prefix and choose the port base, once."""
        os.umask(0o022)
        self.prefix.mkdir(parents=True, exist_ok=True)
        if not open_to_others(self.prefix):
            raise report.LabError(
                f'{self.prefix}: a directory on the way is closed to other '
                f'users, and the services run as one; set LAB_PREFIX to a '
                f'place such as /var/lib/cinder-lustre-lab')
        REGISTRY.mkdir(exist_ok=True)
        with locked(REGISTRY):
            if not self.exists:
                self._data['port_base'] = self._choose_base()
            self.check()
            if not self.link.is_symlink():
                self.link.symlink_to(self.prefix)
            elif self.link.readlink() != self.prefix:
                raise report.LabError(
                    f'the lab was moved here from {self.link.readlink()}: '
                    f'"lab clean", then "lab up" make it anew')
            self.put('port_base', self.base)
            wanted = os.environ.get('LAB_PORT_BASE', str(self.base))
            if wanted != str(self.base):
                raise report.LabError(
                    f'LAB_PORT_BASE={wanted}: this lab is on {self.base}; '
                    f'"lab clean" it first')

    def _choose_base(self):
        wanted = os.environ.get('LAB_PORT_BASE')
        if wanted:
            if not wanted.isdigit() or not 1024 < int(wanted) < 65000:
                raise report.LabError(
                    f'LAB_PORT_BASE={wanted}: not a port from 1025 to 64999')
            if not free(int(wanted)):
                raise report.LabError(
                    f'LAB_PORT_BASE={wanted}: in use; leave it unset to '
                    f'have a free one chosen')
            return int(wanted)
        for base in BASES:
            if free(base):
                return base
        raise report.LabError('no free range of ports; set LAB_PORT_BASE')

    @property
    def base(self):
        return self._data['port_base']

    @property
    def link(self):
        """The prefix under a short name in /etc.

        Rootwrap's filters want the configuration there; it also keeps
        socket paths short and any odd character of the prefix out of
        configuration files.
        """
        return REGISTRY / str(self.base)

    @property
    def user(self):
        return user_name(self.base)

    @property
    def guest_user(self):
        return guest_user_name(self.base)

    @property
    def venv(self):
        return self.link / 'venv'

    @property
    def nova(self):
        """Whether the lab has the profile "nova"; it keeps it."""
        return bool(self.get('nova'))

    @property
    def backend(self):
        """Whose volume driver Cinder has; the lab keeps it."""
        wanted, found = os.environ.get('LAB_BACKEND'), self.get('backend')
        if wanted not in (None, *BACKENDS):
            raise report.LabError(
                f'LAB_BACKEND={wanted}: not one of {", ".join(BACKENDS)}')
        if wanted and found not in (None, wanted):
            raise report.LabError(
                f'LAB_BACKEND={wanted}: this lab has {found}; "lab clean" it '
                f'first')
        return found or wanted or BACKENDS[0]

    def port(self, name):
        return self.base + PORTS.index(name)

    def url(self, name):
        return f'http://127.0.0.1:{self.port(name)}'

    def secret(self, name):
        """A password, made when it is first asked for."""
        key = f'secret_{name}'
        if key not in self._data:
            self.put(key, secrets.token_hex(12))
        return self._data[key]

    def get(self, key):
        return self._data.get(key)

    def put(self, key, value):
        self._data[key] = value
        write(self._file, json.dumps(self._data, indent=1), mode=0o600)

    def forget(self, *keys):
        for key in keys:
            self._data.pop(key, None)
        write(self._file, json.dumps(self._data, indent=1), mode=0o600)

    def log(self, name):
        return self.prefix / 'log' / f'{name}.log'

    def environment(self):
        """What an OpenStack client needs, and the lab's commands first."""
        return {
            'OS_AUTH_URL': self.url('keystone') + '/v3',
            'OS_AUTH_TYPE': 'password',
            'OS_IDENTITY_API_VERSION': '3',
            'OS_INTERFACE': 'public',
            'OS_REGION_NAME': 'RegionOne',
            'OS_USERNAME': 'admin',
            'OS_PASSWORD': self.secret('admin'),
            'OS_PROJECT_NAME': 'admin',
            'OS_USER_DOMAIN_ID': 'default',
            'OS_PROJECT_DOMAIN_ID': 'default',
            'LAB_PREFIX': str(self.prefix),
            'LAB_USER': self.user,
            'LAB_CINDER_CONF': str(self.link / 'etc/cinder.conf'),
            'PATH': f'{self.venv}/bin:' + os.environ['PATH'],
        }
