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

"""The share that each release has left for later ones to read.

``python -m cinder_lustre.tests.release VERSION`` makes the fixture of the
release that is about to be made; one that exists never changes again.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile

from cinder_lustre import chain
from cinder_lustre import record
from cinder_lustre.tests import killed
from cinder_lustre.tests import share_directory

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                         'fixtures', 'releases')

MIB = share_directory.MIB
RAW, QCOW2, PENDING = ('4f1d6c1e-0b77-4c55-9d0b-8a2e7c0a000%d' % number
                       for number in (1, 2, 3))
ONE, TWO, THREE = ('4f1d6c1e-0b77-4c55-9d0b-8a2e7c0a001%d' % number
                   for number in (1, 2, 3))


def names():
    """The releases that have a fixture."""
    return sorted(os.listdir(DIRECTORY))


def contents(release):
    """What the volumes of a fixture have in them.

    :returns: by name_id, the ``digest`` of the volume, the digests of its
              ``snapshots`` by id, and the operation that is ``pending``
    """
    with open(os.path.join(DIRECTORY, release, 'contents.json')) as stream:
        return json.load(stream)


def unpack(release, root):
    """Put the files of a fixture into the root of a share."""
    subprocess.run(['tar', '--extract', '--gzip', '--sparse',
                    '--preserve-permissions', '--no-same-owner', '--file',
                    os.path.join(DIRECTORY, release, 'share.tar.gz'),
                    '--directory', root], check=True)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def _fill(share):
    chain.create(share.root, RAW, 'raw', MIB)
    share.write(RAW, 0, 4096, 0x11)
    chain.create_snapshot(share.root, RAW, ONE)
    share.write(RAW, 65536, 4096, 0x12)
    chain.create_snapshot(share.root, RAW, TWO)
    share.write(RAW, 0, 512, 0x13)
    chain.create(share.root, QCOW2, 'qcow2', MIB)
    share.write(QCOW2, MIB - 4096, 4096, 0x21)
    chain.create(share.root, PENDING, 'raw', MIB)
    share.write(PENDING, 4096, 4096, 0x31)
    if not killed.run(record, 'sync_directory', 2, chain.create_snapshot,
                      share.root, PENDING, THREE):
        raise RuntimeError('the snapshot was finished')
    # Nothing of the machine that made it.
    share.change_record(PENDING, lambda content: content['intent'].update(
        host='host-1', boot_id='00000000-0000-0000-0000-000000000000', pid=1,
        started=0))


def make(release):
    """Make the fixture of a release."""
    target = os.path.join(DIRECTORY, release)
    os.makedirs(target)
    record.lfs.set_dom_default = str
    with tempfile.TemporaryDirectory() as root:
        share = share_directory.ShareDirectory(root)
        _fill(share)
        found = {}
        for volume in (RAW, QCOW2, PENDING):
            rec = share.record(volume)
            found[volume] = {
                'digest': digest(share.content(volume)),
                'snapshots': {
                    snapshot: digest(share.content(volume, snapshot))
                    for snapshot in rec['snapshots']},
                'pending': rec['intent'] and rec['intent']['operation']}
        subprocess.run(
            ['tar', '--create', '--use-compress-program=gzip -9n', '--sparse',
             '--sort=name', '--owner=root:0', '--group=root:0', '--mtime=@0',
             '--file', os.path.join(target, 'share.tar.gz'),
             '--directory', root, '.'], check=True)
    with open(os.path.join(target, 'contents.json'), 'w') as stream:
        json.dump(found, stream, indent=1, sort_keys=True)
        stream.write('\n')


if __name__ == '__main__':
    make(sys.argv[1])
