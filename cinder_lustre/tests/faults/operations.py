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
import shutil
import subprocess
from unittest import mock

from cinder_lustre import adoption
from cinder_lustre import chain
from cinder_lustre import layers
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre.tests import killed
from cinder_lustre.tests import share_directory

MIB = share_directory.MIB
SIZE = 8 * MIB
VOLUME = '7d1f9a52-6d0c-4f0b-a3b2-64a1d1a30001'
OTHER = '7d1f9a52-6d0c-4f0b-a3b2-64a1d1a30002'
BASE = record.base_name(VOLUME)
# A file of the share that is not a volume's yet.
FILE = 'disk'
ONE, TWO, THREE = ('7d1f9a52-6d0c-4f0b-a3b2-64a1d1a3000%d' % number
                   for number in (3, 4, 5))


def _nothing(_share):
    pass


class Operation:
    """One operation, and what it finds.

    :param minimum: how many points there are at least: the calls of its
                    process that change something, and the commands that it
                    starts
    :param prepare: makes the volumes, given a ShareDirectory
    :param run: the operation itself, given the root of the share
    :param repeatable: whether it can be repeated once it was recovered from
    :param deletes: whether it deletes a volume first, so that the only way
                    to recover is to repeat it
    :param known: the volumes that Cinder knows of, and deletes
    :param first: what a driver does before anything else, given the root
    :param between: makes another state that is as good as the one before,
                    given the root
    :param foreign: a file of the share that is not to be deleted until it is
                    a volume
    """

    def __init__(self, minimum, prepare, run, repeatable=True,
                 deletes=False, known=(OTHER, VOLUME), first=_nothing,
                 between=_nothing, foreign=None):
        self.minimum = minimum
        self.prepare = prepare
        self.run = run
        self.repeatable = repeatable
        self.deletes = deletes
        self.known = known
        self.first = first
        self.between = between
        self.foreign = foreign


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


def _called(function, *args, **kwargs):
    return lambda root: function(root, *args, **kwargs)


def _created(fmt, thick=False):
    return _called(chain.create, VOLUME, fmt, SIZE, thick)


def _encrypted(root):
    """Create an encrypted volume; no two headers are alike but here."""
    original = qemu_img.format_luks

    def format_luks(path, **luks):
        original(path, **luks)
        with open(path, 'r+b') as stream:
            stream.write(bytes([0x4c]) * os.fstat(stream.fileno()).st_size)

    with mock.patch.object(qemu_img, 'format_luks', format_luks):
        return chain.create(
            root, VOLUME, 'raw', SIZE, luks={
                'passphrase': 'key', 'cipher_alg': 'aes-256',
                'cipher_mode': 'xts', 'ivgen_alg': 'plain64'})


def _copied(snapshot, fmt, size=SIZE, thick=False, moving=False):
    return lambda root: chain.copy(root, VOLUME, snapshot, root, OTHER, fmt,
                                   size, thick, moving)


def _shortened(fmt):
    def prepare(share):
        _volume(fmt)(share)
        subprocess.run(['qemu-img', 'resize', '-q', '--shrink', '-f', fmt,
                        share.path(BASE), str(6 * MIB)],
                       check=True)

    return prepare


def _after(prepare, *steps):
    """Prepare a share, and go on with it.

    :param steps: a function of the storage core that gets the volume, and its
                  other arguments, or a function that gets the share
    """
    def prepare_all(share):
        prepare(share)
        for step in steps:
            if isinstance(step, tuple):
                function, *args = step
                function(share.root, VOLUME, *args)
            else:
                step(share)

    return prepare_all


def overlay(snapshot):
    return '%s.%s' % (BASE, snapshot)


def _written_by_guest(share):
    """A guest has moved to the new overlay, written, and gone."""
    share.write_file(overlay(TWO), 'qcow2', 3 * MIB, MIB, 0x72)


def _committed_by_guest(share):
    """What Nova lets a guest do to merge the oldest snapshot's layer."""
    _qemu_img(share, 'commit', '-q', '-d', '-f', 'qcow2', overlay(ONE))
    _qemu_img(share, 'rebase', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b',
              BASE, overlay(TWO))


def _left_merged_by_guest(share):
    _qemu_img(share, 'commit', '-q', '-d', '-f', 'qcow2', overlay(TWO))
    _qemu_img(share, 'rebase', '-q', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b',
              overlay(ONE), overlay(THREE))


def _deleted_before_the_rest(root):
    """What an earlier snapshot has left is merged after the deletion."""
    with mock.patch.object(chain, '_collapse'):
        chain.delete_snapshot(root, VOLUME, ONE)


def _qemu_img(share, *arguments):
    subprocess.run(['qemu-img', *arguments], cwd=share.root, check=True)


def _without_record(share):
    """As a RemoteFS driver leaves a volume."""
    shutil.rmtree(share.path(record.DIRECTORY))


def _adopt(root):
    return adoption.adopt(root, VOLUME, 'qcow2', 'raw')


def _file(fmt):
    """A file that is no volume, smaller than the one that it becomes."""
    def prepare(share):
        qemu_img.create(share.path(FILE), fmt, SIZE - MIB)
        os.chmod(share.path(FILE), 0o644)
        share.write_file(FILE, fmt, MIB, 2 * MIB, 0x73)

    return prepare


def _load(fmt):
    """Load that file, as an image."""
    return lambda root: chain.load(root, VOLUME, os.path.join(root, FILE),
                                   fmt)


def _killed_load(attribute, target, count=1):
    def load(share):
        _file('raw')(share)
        _kill(target, attribute, count, chain.load, share.root, VOLUME,
              share.path(FILE), 'raw')

    return load


def _managed(fmt):
    return lambda root: adoption.manage(root, FILE, VOLUME, fmt, SIZE)


def _made_private(root):
    """All that may have happened to a file that was not managed at last."""
    os.chmod(os.path.join(root, FILE), 0o660)


def _taken_over(size):
    return lambda root: adoption.manage(root, overlay(TWO), OTHER, 'raw', size)


def _killed_take_over(share):
    """Both records are there, and the new one says that it counts."""
    _kill(os, 'unlink', 1, adoption.manage, share.root, overlay(TWO), OTHER,
          'raw', SIZE)


def _moved(share):
    _copied(None, 'raw', moving=True)(share.root)


def _kill(target, attribute, count, function, *args):
    if not killed.run(target, attribute, count, function, *args):
        raise RuntimeError('%s was not killed' % function.__name__)


def _interrupted(prepare, target, attribute, count, function, *args):
    """Let recovery itself find an operation that was killed."""
    def prepare_both(share):
        prepare(share)
        _kill(target, attribute, count, function, share.root, VOLUME, *args)

    return prepare_both


_describe = _called(chain.describe, VOLUME)
_settle = _called(chain.settle, VOLUME)
_two = _volume('raw', ONE, TWO)
_three = _volume('raw', ONE, TWO, THREE)
_nameless = _after(_three, (adoption.forget_snapshot, TWO),
                   (adoption.forget_snapshot, THREE))
_snapshot_begun = _after(_volume('raw', ONE), (chain.begin_snapshot, TWO))
_guest_moved = _after(_snapshot_begun, _written_by_guest)
_commit_begun = _after(_two, (chain.begin_delete_snapshot, ONE))
_committed = _after(_commit_begun, _committed_by_guest)
# Snapshot two has left its layer, which is merged in place of that of three.
_left = _after(_two, (chain.begin_delete_snapshot, TWO))
_three_left = _after(_left, (chain.create_snapshot, THREE))
_left_begun = _after(_three_left, (chain.begin_delete_snapshot, THREE))
_left_merged = _after(_left_begun, _left_merged_by_guest)
_interrupted_merge = functools.partial(_interrupted, _three)

OPERATIONS = {
    'create raw': Operation(18, _nothing, _created('raw')),
    'create raw thick': Operation(18, _nothing, _created('raw', thick=True)),
    'create qcow2': Operation(18, _nothing, _created('qcow2')),
    'create qcow2 thick': Operation(
        18,
        _nothing, _created('qcow2', thick=True)),
    'create encrypted': Operation(22, _nothing, _encrypted),
    'copy raw to raw': Operation(
        20,
        _volume('raw'), _copied(None, 'raw', SIZE + MIB)),
    'copy snapshot to raw thick': Operation(
        20,
        _volume('raw', ONE, TWO), _copied(TWO, 'raw', thick=True)),
    'copy qcow2 to qcow2': Operation(
        20,
        _volume('qcow2', ONE), _copied(None, 'qcow2')),
    'extend raw': Operation(
        13,
        _volume('raw'), _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend raw thick': Operation(
        13,
        _volume('raw', thick=True),
        _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend qcow2': Operation(
        13,
        _volume('qcow2'), _called(chain.extend, VOLUME, 2 * SIZE)),
    'extend with snapshot': Operation(
        13,
        _volume('raw', ONE), _called(chain.extend, VOLUME, 2 * SIZE)),
    'first snapshot': Operation(
        20,
        _volume('raw'), _called(chain.create_snapshot, VOLUME, ONE)),
    'second snapshot': Operation(
        20,
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
        27,
        _volume('raw', ONE, TWO), _called(chain.revert, VOLUME, TWO)),
    'delete': Operation(
        13,
        _volume('raw', ONE, TWO), _called(chain.delete, VOLUME),
        deletes=True),
    'load raw thick': Operation(
        29, _after(_volume('raw', thick=True), _file('qcow2')),
        _load('qcow2'), foreign=FILE),
    'load qcow2': Operation(
        29, _after(_volume('qcow2'), _file('raw')), _load('raw'),
        foreign=FILE),
    'grow raw': Operation(3, _shortened('raw'), _describe),
    'grow qcow2': Operation(3, _shortened('qcow2'), _describe),
    'repeat create': Operation(
        23,
        _interrupted(_nothing, os, 'rename', 2, chain.create, 'qcow2',
                     SIZE), _created('qcow2')),
    'recover extend raw': Operation(
        7,
        _interrupted(_volume('raw'), layers, '_write_back', 1, chain.extend,
                     2 * SIZE), _describe),
    'recover extend qcow2': Operation(
        7,
        _interrupted(_volume('qcow2'), layers, '_write_back', 1, chain.extend,
                     2 * SIZE), _describe),
    'recover snapshot': Operation(
        7,
        _interrupted(_volume('raw', ONE), layers, '_write_back', 1,
                     chain.create_snapshot, TWO), _describe),
    'recover merge at commit': Operation(
        23,
        _interrupted_merge(qemu_img, 'commit', 1, chain.delete_snapshot,
                           TWO), _describe),
    'recover merge at rebase': Operation(
        23,
        _interrupted_merge(layers, '_write_back', 2, chain.delete_snapshot,
                           TWO),
        _describe),
    'recover merge at remove': Operation(
        7,
        _interrupted_merge(os, 'unlink', 1, chain.delete_snapshot, TWO),
        _describe),
    'recover revert': Operation(
        7,
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
    'copy to move': Operation(
        20, _volume('raw'), _copied(None, 'qcow2', moving=True)),
    'copy again to move': Operation(
        26, _after(_volume('raw'), _moved), _copied(None, 'raw', moving=True),
        deletes=True),
    'accept moved copy': Operation(
        6, _after(_volume('raw'), _moved),
        _called(chain.describe, OTHER)),
    'convert raw to qcow2': Operation(
        29, _volume('raw'), _called(chain.convert, VOLUME, 'qcow2', False)),
    'convert qcow2 to raw': Operation(
        29, _volume('qcow2'), _called(chain.convert, VOLUME, 'raw', False)),
    'convert thin to thick': Operation(
        29, _volume('raw'), _called(chain.convert, VOLUME, 'raw', True)),
    'revert past a layer left': Operation(
        31, _left, _called(chain.revert, VOLUME, ONE)),
    'forget snapshot': Operation(
        11, _two, _called(adoption.forget_snapshot, VOLUME, TWO)),
    'forget only snapshot': Operation(
        11, _volume('raw', ONE),
        _called(adoption.forget_snapshot, VOLUME, ONE)),
    'name snapshot': Operation(
        11, _nameless,
        _called(adoption.name_snapshot, VOLUME, TWO, overlay(ONE))),
    'adopt': Operation(
        15, _after(_two, _without_record), _adopt, first=_adopt),
    'manage raw file': Operation(
        17, _file('raw'), _managed('raw'), foreign=FILE,
        between=_made_private),
    'manage qcow2 file': Operation(
        18, _file('qcow2'), _managed('qcow2'), foreign=FILE,
        between=_made_private),
    'take over': Operation(
        26, _two, _taken_over(SIZE), known=(OTHER,)),
    'take over and grow': Operation(
        38, _two, _taken_over(2 * SIZE), known=(OTHER,),
        between=_called(chain.extend, VOLUME, 2 * SIZE)),
    'begin snapshot': Operation(
        15, _volume('raw', ONE), _called(chain.begin_snapshot, VOLUME, TWO)),
    'settle snapshot not made': Operation(8, _snapshot_begun, _settle),
    'settle snapshot': Operation(12, _guest_moved, _settle),
    'begin delete by commit': Operation(
        6, _two, _called(chain.begin_delete_snapshot, VOLUME, ONE)),
    'settle commit not begun': Operation(27, _commit_begun, _settle),
    'settle commit': Operation(18, _committed, _settle),
    'begin delete of the latest': Operation(
        9, _three, _called(chain.begin_delete_snapshot, VOLUME, THREE)),
    'begin delete with a layer left': Operation(
        6, _three_left, _called(chain.begin_delete_snapshot, VOLUME, THREE)),
    'settle merge of what is left not begun': Operation(
        27, _left_begun, _settle),
    'settle merge of what is left': Operation(18, _left_merged, _settle),
    'delete with a layer left': Operation(
        27, _left, _called(chain.delete_snapshot, VOLUME, ONE),
        between=_deleted_before_the_rest),
    'merge what is left': Operation(
        26, _left, _called(chain.delete_snapshot, VOLUME, THREE)),
    'recover load': Operation(
        7, _after(_volume('qcow2'), _killed_load('convert', qemu_img)),
        _describe, foreign=FILE),
    'recover load at switch': Operation(
        13, _after(_volume('raw'), _killed_load('rename', os, 3)), _describe,
        foreign=FILE),
    'recover convert': Operation(
        7, _interrupted(_volume('qcow2'), qemu_img, 'convert', 1,
                        chain.convert, 'raw', True), _describe),
    'recover convert at switch': Operation(
        13, _interrupted(_volume('raw'), os, 'rename', 3, chain.convert,
                         'qcow2', False), _describe),
    'recover revert past a layer left': Operation(
        14, _interrupted(_left, os, 'unlink', 2, chain.revert, ONE),
        _describe),
    'recover manage': Operation(
        7, _after(_file('qcow2'), lambda share: _kill(
            layers, 'grow', 1, adoption.manage, share.root, FILE, VOLUME,
            'qcow2', SIZE)), _describe),
    'recover take over': Operation(
        13, _after(_two, _killed_take_over), _called(chain.describe, OTHER),
        known=(OTHER,)),
    'recover settled commit': Operation(
        7, _interrupted(_committed, os, 'unlink', 1, chain.settle),
        _describe),
    'recover settled merge of what is left': Operation(
        7, _interrupted(_left_merged, os, 'unlink', 1, chain.settle),
        _describe),
    'recover commit not begun': Operation(
        22, _interrupted(_commit_begun, qemu_img, 'rebase', 1, chain.settle),
        _describe),
    'delete moved copy': Operation(
        11, _after(_volume('raw'), _moved), _called(chain.delete, OTHER),
        deletes=True),
    'delete while loading': Operation(
        11, _after(_volume('raw'), _killed_load('convert', qemu_img)),
        _called(chain.delete, VOLUME), deletes=True, foreign=FILE),
    'delete after a killed convert': Operation(
        12, _interrupted(_volume('raw'), os, 'rename', 3, chain.convert,
                         'qcow2', False), _called(chain.delete, VOLUME),
        deletes=True),
    'delete with begun snapshot': Operation(
        13, _guest_moved, _called(chain.delete, VOLUME), deletes=True),
    'delete with begun merge': Operation(
        14, _committed, _called(chain.delete, VOLUME), deletes=True),
    'delete after a killed take over': Operation(
        20, _after(_two, _killed_take_over), _called(chain.delete, OTHER),
        deletes=True, known=(OTHER,)),
}
