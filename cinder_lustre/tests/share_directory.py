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


"""A directory in the place of a share, and the volumes in it.

What a volume holds is read and written here without the code under test.
"""

import json
import os
import shutil
import subprocess

MIB = 1 << 20
_MEMORY = '/dev/shm'


def in_memory():
    """A directory with room in memory, so that no test waits for a disk.

    :returns: its path, or None when there is none
    """
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free > 1 << 30 else None
    except OSError:
        return None


class ShareDirectory:
    """The root directory of a share.

    :param root: an existing directory
    """

    def __init__(self, root):
        self.root = root

    def path(self, *names):
        return os.path.join(self.root, *names)

    def sidecar(self, volume):
        return self.path('.cinder-lustre', volume + '.json')

    def record(self, volume):
        """The content of a volume's sidecar."""
        with open(self.sidecar(volume)) as stream:
            return json.load(stream)

    def change_record(self, volume, change):
        """Edit a volume's sidecar, as an operator might.

        :param change: a function that changes the sidecar's content
        """
        content = self.record(volume)
        change(content)
        with open(self.sidecar(volume), 'w') as stream:
            json.dump(content, stream)

    def info(self, volume):
        """The content of a volume's mirror."""
        with open(self.path('volume-%s.info' % volume)) as stream:
            return stream.read()

    def write(self, volume, offset, length, byte):
        """Write into a volume, as a guest would."""
        active = self.record(volume)['active']
        self.write_file(active, self.record(volume)['layers'][active]
                        ['format'], offset, length, byte)

    def write_file(self, name, fmt, offset, length, byte):
        if fmt == 'raw':
            with open(self.path(name), 'r+b') as stream:
                stream.seek(offset)
                stream.write(bytes([byte]) * length)
            return
        subprocess.run(
            ['qemu-io', '-f', fmt, '-c', 'write -q -P %d %d %d' % (
                byte, offset, length), self.path(name)],
            check=True, stdout=subprocess.DEVNULL)

    def content(self, volume, snapshot=None):
        """All bytes of a volume, or of one of its snapshots."""
        record = self.record(volume)
        name = record['active']
        if snapshot is not None:
            overlay = record['snapshots'][snapshot]
            name = record['layers'][overlay]['parent']
        return self.read_file(name, record['layers'][name]['format'])

    def read_file(self, name, fmt):
        if fmt == 'raw':
            with open(self.path(name), 'rb') as stream:
                return stream.read()
        flat = self.path('flat.%d' % os.getpid())
        try:
            subprocess.run(['qemu-img', 'convert', '-U', '-f', fmt, '-O',
                            'raw', self.path(name), flat], check=True)
            with open(flat, 'rb') as stream:
                return stream.read()
        finally:
            os.unlink(flat)

    def files(self):
        """The names of all files, relative to the root."""
        return sorted(
            os.path.relpath(os.path.join(directory, name), self.root)
            for directory, _directories, names in os.walk(self.root)
            for name in names)

    def allocated(self, name):
        """How many bytes a file takes."""
        return os.stat(self.path(name)).st_blocks * 512
