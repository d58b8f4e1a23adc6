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

"""The guest's disk image: Debian's kernel and busybox, and an init of ours.

Made from packages of the distribution that are unpacked, not installed: a
kernel does not belong into the host's /boot.
"""

import gzip
import pathlib
import re
import shutil

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import venv

INIT = venv.LAB / 'guest/init'
KERNEL = 'linux-image-cloud-amd64'
PACKAGES = ('busybox-static', 'dosfstools', 'mtools', 'syslinux',
            'syslinux-common')
# In the order in which they can be loaded; a kernel may have them built in.
MODULES = ('virtio_ring', 'virtio', 'virtio_pci_modern_dev',
           'virtio_pci_legacy_dev', 'virtio_pci', 'virtio_blk')
IMAGE_SIZE = 48 << 20
BOOT = 'DEFAULT lab\nPROMPT 0\nLABEL lab\n KERNEL kernel\n' \
       ' INITRD initrd\n APPEND console=ttyS0 quiet loglevel=3 panic=1\n'


def build(directory, log):
    """Make the image, unless it is there; return its path."""
    version = venv.digest(INIT, pathlib.Path(__file__))[:12]
    image = directory / f'guest-{version}'
    if image.exists():
        return image
    if directory.exists():
        shutil.rmtree(directory)
    root = directory / 'root'
    root.mkdir(parents=True)
    _unpack(directory, root, log)
    draft = directory / 'draft'
    kernel, = (root / 'boot').glob('vmlinuz-*')
    (directory / 'initrd').write_bytes(gzip.compress(_initramfs(root)))
    (directory / 'syslinux.cfg').write_text(BOOT)
    with open(draft, 'wb') as stream:
        stream.truncate(IMAGE_SIZE)
    commands.run(str(root / 'sbin/mkfs.fat'), str(draft))
    for path, name in ((kernel, 'kernel'), (directory / 'initrd', 'initrd'),
                       (directory / 'syslinux.cfg', 'syslinux.cfg')):
        commands.run(str(root / 'usr/bin/mtools'), '-c', 'mcopy', '-i',
                     str(draft), str(path), f'::{name}')
    # It calls the tools of mtools, and by their names.
    commands.run(str(root / 'usr/bin/syslinux'), '--install', str(draft),
                 env={'PATH': f'{root}/usr/bin:/usr/bin:/bin'})
    shutil.rmtree(root)
    draft.rename(image)
    return image


def _unpack(directory, root, log):
    def apt(*command):
        commands.Logged(log, *command, cwd=directory).wait()
    apt('apt-get', '-q', 'update')
    # The package of the newest kernel only depends on it.
    depends = commands.run('apt-cache', 'depends', KERNEL)
    kernel = re.search(r'Depends: (linux-image-\S+)', depends)
    if not kernel:
        raise report.LabError(f'{KERNEL} names no kernel: {depends}')
    apt('apt-get', '-q', '-o', 'APT::Sandbox::User=root', 'download',
        kernel.group(1), *PACKAGES)
    for package in directory.glob('*.deb'):
        apt('dpkg-deb', '-x', str(package), str(root))
        package.unlink()


def _initramfs(root):
    busybox, = (path for path in (root / 'bin/busybox',
                                  root / 'usr/bin/busybox') if path.exists())
    found = {path.stem: path for path in root.rglob('*.ko')}
    modules = [found[name] for name in MODULES if name in found]
    files = {'init': (0o100755, INIT.read_bytes()),
             'bin': (0o40755, b''), 'modules': (0o40755, b''),
             'bin/busybox': (0o100755, busybox.read_bytes()),
             'bin/sh': (0o120777, b'busybox'),
             'modules/order': (0o100644, ' '.join(
                 path.name for path in modules).encode()),
             # The kernel opens it before init runs.
             'dev': (0o40755, b''), 'dev/console': (0o20600, b'')}
    for path in modules:
        files[f'modules/{path.name}'] = (0o100644, path.read_bytes())
    entries = [_entry(number, name, mode, data) for number, (
        name, (mode, data)) in enumerate(files.items(), 1)]
    return b''.join(entries) + _entry(0, 'TRAILER!!!', 0, b'')


def _entry(number, name, mode, data):
    """One file of a cpio archive of the format "newc"."""
    major, minor = (5, 1) if name == 'dev/console' else (0, 0)
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor,
              len(name) + 1, 0)
    head = b'070701' + b''.join(b'%08X' % field for field in fields)
    return _padded(head + name.encode() + b'\0') + _padded(data)


def _padded(data):
    return data + bytes(-len(data) % 4)
