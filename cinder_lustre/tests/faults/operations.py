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


"""The operations that are killed, and the volumes that they work on."""

import functools
import os
import subprocess

from cinder_lustre import chain
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre.tests import killed
from cinder_lustre.tests import share_directory

MIB = share_directory.MIB
SIZE = 8 * MIB
VOLUME = '7d1f9a52-6d0c-4f0b-a3b2-64a1d1a30001'
OTHER = '7d1f9a52-6d0c-4f0b-a3b2-64a1d1a30002'
ONE, TWO, THREE = ('7d1f9a52-6d0c-4f0b-a3b2-64a1d1a3000%d' % number
                   for number in (3, 4, 5))


class Operation:
    """One operation, and what it finds.

    :param minimum: how many points there are at least: the calls of its
                    process that change something, and the commands that it
                    starts
    :param prepare: makes the volumes, given a ShareDirectory
    :param run: the operation itself, given the root of the share
    :param repeatable: whether it can be repeated once it was recovered from
    :param deletes: whether it deletes the volume, so that the only way to
                    recover is to repeat it
    """

    def __init__(self, minimum, prepare, run, repeatable=True,
                 deletes=False):
        self.minimum = minimum
        self.prepare = prepare
        self.run = run
        self.repeatable = repeatable
        self.deletes = deletes


def _volume(fmt, *snapshots, thick=False, grow=None):
    """Make a volume with content above, below and across its snapshots.

    :param grow: the size that it is extended to after the first snapshot
    """
    def prepare(share):
        chain.create(share.root, VOLUME, fmt, SIZE, thick)
        for number, snapshot in enumerate([*snapshots, None]):
            share.write(VOLUME, number * MIB // 2, MIB, 0x10 + number)
            # Many small pieces, for a command that merges in many steps.
            for piece in range(6):
                share.write(VOLUME, 4 * MIB + piece * 600000 + number * 4096,
                            70000, 0x20 + 8 * number + piece)
            if snapshot:
                chain.create_snapshot(share.root, VOLUME, snapshot)
            if number == 0 and grow:
                chain.extend(share.root, VOLUME, grow)
                share.write(VOLUME, grow - MIB, MIB, 0x70)

    return prepare


def _nothing(share):
    pass


def _called(function, *args, **kwargs):
    return lambda root: function(root, *args, **kwargs)


def _created(fmt, thick=False):
    return _called(chain.create, VOLUME, fmt, SIZE, thick)


def _copied(snapshot, fmt, size=SIZE, thick=False):
    return lambda root: chain.copy(root, VOLUME, snapshot, root, OTHER, fmt,
                                   size, thick)


def _loading(fmt, thick=False):
    def prepare(share):
        _volume(fmt, thick=thick)(share)
        path = chain.prepare_load(share.root, VOLUME)
        qemu_img.create(path, fmt, SIZE - MIB)
        share.write_file(os.path.basename(path), fmt, MIB, 2 * MIB, 0x71)

    return prepare


def _shortened(fmt):
    def prepare(share):
        _volume(fmt)(share)
        subprocess.run(['qemu-img', 'resize', '-q', '--shrink', '-f', fmt,
                        share.path(record.base_name(VOLUME)), str(6 * MIB)],
                       check=True)

    return prepare


def _interrupted(prepare, target, attribute, count, function, *args):
    """Let recovery itself find an operation that was killed."""
    def prepare_both(share):
        prepare(share)
        if not killed.run(target, attribute, count, function, share.root,
                          VOLUME, *args):
            raise RuntimeError('%s was not killed' % function.__name__)

    return prepare_both


_describe = _called(chain.describe, VOLUME)
_interrupted_merge = functools.partial(
    _interrupted, _volume('raw', ONE, TWO, THREE))

OPERATIONS = {
    'create raw': Operation(18, _nothing, _created('raw')),
    'create raw thick': Operation(18, _nothing, _created('raw', thick=True)),
    'create qcow2': Operation(19, _nothing, _created('qcow2')),
    'create qcow2 thick': Operation(
        19,
        _nothing, _created('qcow2', thick=True)),
    'copy raw to raw': Operation(
        21,
        _volume('raw'), _copied(None, 'raw', SIZE + MIB)),
    'copy snapshot to raw thick': Operation(
        22,
        _volume('raw', ONE, TWO), _copied(TWO, 'raw', thick=True)),
    'copy qcow2 to qcow2': Operation(
        24,
        _volume('qcow2', ONE), _copied(None, 'qcow2')),
    'extend raw': Operation(
        13,
        _volume('raw'), _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend raw thick': Operation(
        13,
        _volume('raw', thick=True),
        _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend qcow2': Operation(
        15,
        _volume('qcow2'), _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend with snapshot': Operation(
        15,
        _volume('raw', ONE), _called(chain.extend, VOLUME, 2 * SIZE)),
    'first snapshot': Operation(
        20,
        _volume('raw'), _called(chain.create_snapshot, VOLUME, ONE)),
    'second snapshot': Operation(
        22,
        _volume('qcow2', ONE), _called(chain.create_snapshot, VOLUME,
                                       TWO)),
    'delete only snapshot': Operation(
        21,
        _volume('raw', ONE), _called(chain.delete_snapshot, VOLUME, ONE)),
    'delete oldest snapshot': Operation(
        28,
        _volume('raw', ONE, TWO, THREE, grow=SIZE + 2 * MIB),
        _called(chain.delete_snapshot, VOLUME, ONE)),
    'delete middle snapshot': Operation(
        30,
        _volume('qcow2', ONE, TWO, THREE),
        _called(chain.delete_snapshot, VOLUME, TWO)),
    'delete latest snapshot': Operation(
        28,
        _volume('qcow2', ONE, TWO, thick=True),
        _called(chain.delete_snapshot, VOLUME, TWO)),
    'revert': Operation(
        18,
        _volume('raw', ONE, TWO), _called(chain.revert, VOLUME, TWO)),
    'delete': Operation(
        13,
        _volume('raw', ONE, TWO), _called(chain.delete, VOLUME),
        deletes=True),
    'prepare load': Operation(
        8,
        _volume('raw'), _called(chain.prepare_load, VOLUME)),
    'finish load raw thick': Operation(
        10,
        _loading('raw', thick=True), _called(chain.finish_load, VOLUME),
        repeatable=False),
    'finish load qcow2': Operation(
        12,
        _loading('qcow2'), _called(chain.finish_load, VOLUME),
        repeatable=False),
    'cancel load': Operation(
        7,
        _loading('raw'), _called(chain.cancel_load, VOLUME)),
    'grow raw': Operation(2, _shortened('raw'), _describe),
    'grow qcow2': Operation(4, _shortened('qcow2'), _describe),
    'repeat create': Operation(
        24,
        _interrupted(_nothing, os, 'rename', 2, chain.create, 'qcow2',
                     SIZE), _created('qcow2')),
    'recover extend raw': Operation(
        7,
        _interrupted(_volume('raw'), chain, '_sync', 1, chain.extend,
                     2 * SIZE), _describe),
    'recover extend qcow2': Operation(
        9,
        _interrupted(_volume('qcow2'), chain, '_sync', 1, chain.extend,
                     2 * SIZE), _describe),
    'recover snapshot': Operation(
        8,
        _interrupted(_volume('raw', ONE), chain, '_sync', 1,
                     chain.create_snapshot, TWO), _describe),
    'recover merge at commit': Operation(
        23,
        _interrupted_merge(qemu_img, 'commit', 1, chain.delete_snapshot,
                           TWO), _describe),
    'recover merge at rebase': Operation(
        23,
        _interrupted_merge(chain, '_sync', 2, chain.delete_snapshot, TWO),
        _describe),
    'recover merge at remove': Operation(
        9,
        _interrupted_merge(os, 'unlink', 1, chain.delete_snapshot, TWO),
        _describe),
    'recover revert': Operation(
        9,
        _interrupted(_volume('qcow2', ONE), os, 'rename', 2, chain.revert,
                     ONE), _describe),
    'delete after a killed merge': Operation(
        15,
        _interrupted_merge(qemu_img, 'rebase', 1, chain.delete_snapshot,
                           ONE), _called(chain.delete, VOLUME),
        deletes=True),
    'delete after a killed create': Operation(
        11,
        _interrupted(_nothing, os, 'rename', 2, chain.create, 'raw',
                     SIZE), _called(chain.delete, VOLUME), deletes=True),
}
