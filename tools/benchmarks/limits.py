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

"""What the machine can do: the plain commands below what drivers do."""

import dataclasses
import itertools
import os
import subprocess
import uuid

_MODES = ('none', 'writeback', 'unsafe')
# Coroutines and options of "qemu-img convert", and its cache modes.
SWEEP = tuple(itertools.product(
    (('-m', '8'), ('-m', '4', '-W'), ('-m', '8', '-W'), ('-m', '16', '-W')),
    _MODES))
SHORT_SWEEP = tuple((('-m', '8', '-W'), mode) for mode in _MODES)


def _run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@dataclasses.dataclass
class _File:
    """A file in the place of a volume."""

    path: str
    size: int
    layout: str

    @property
    def format(self):
        return 'qcow2' if self.layout == 'qcow2' else 'raw'


@dataclasses.dataclass
class _Overlay:
    volume: _File
    path: str


class Commands:
    """One command for what a driver does to a volume."""

    name = 'commands'

    def __init__(self, directory):
        self.path = os.path.join(directory, self.name)
        os.makedirs(self.path)
        self._tops = {}

    def _new_path(self):
        return os.path.join(self.path, str(uuid.uuid4()))

    def new_volume(self, size, layout='raw'):
        return _File(self._new_path(), size, layout)

    def create(self, volume):
        size = '%dG' % volume.size
        if volume.layout == 'qcow2':
            _run('qemu-img', 'create', '-q', '-f', 'qcow2', volume.path, size)
        elif volume.layout == 'thick':
            _run('fallocate', '-l', size, volume.path)
        else:
            _run('truncate', '-s', size, volume.path)

    def extend(self, volume, size):
        if volume.layout == 'qcow2':
            _run('qemu-img', 'resize', '-q', '-f', 'qcow2', volume.path,
                 '%dG' % size)
        elif volume.layout == 'thick':
            _run('fallocate', '-l', '%dG' % size, volume.path)
        else:
            _run('truncate', '-s', '%dG' % size, volume.path)

    def delete(self, volume):
        _run('rm', volume.path)

    def new_snapshot(self, volume):
        return _Overlay(volume, self._new_path())

    def create_snapshot(self, overlay):
        chain = self._tops.setdefault(overlay.volume.path, [])
        below = chain[-1] if chain else overlay.volume.path
        _run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', below, '-F',
             'qcow2' if chain else overlay.volume.format, overlay.path)
        chain.append(overlay.path)

    def delete_snapshot(self, overlay):
        """Merge the latest one."""
        _run('qemu-img', 'commit', '-q', '-d', '-f', 'qcow2', overlay.path)
        _run('rm', overlay.path)
        self._tops[overlay.volume.path].remove(overlay.path)


class Copy:
    """A copy of a file that leaves holes where there are some.

    :param sparse: "never" to write zeros there instead
    """

    format = 'raw'

    def __init__(self, sparse='auto'):
        self._sparse = '--sparse=' + sparse
        self.name = 'cp ' + self._sparse

    def copy(self, source, target):
        _run('cp', self._sparse, '--reflink=never', source, target)


class Dd:
    """A copy that makes holes where there are zeros."""

    name = 'dd'

    @staticmethod
    def copy(source, target):
        _run('dd', 'if=' + source, 'of=' + target, 'bs=1M', 'conv=sparse',
             'status=none')
        os.truncate(target, os.path.getsize(source))


class Convert:
    """One way to call "qemu-img convert"."""

    def __init__(self, options, cache, fmt='raw'):
        self._options = (*options, '-t', cache)
        self.name = 'qemu-img ' + ' '.join(self._options)
        self.format = fmt

    def copy(self, source, target):
        _run('qemu-img', 'convert', *self._options, '-f', 'raw',
             '-O', self.format, source, target)
