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

"""What each operation of the driver costs, in counts instead of seconds.

All is real but the commands of Lustre, and Nova: the children of the worker,
files, qemu-img. What an operation costs may depend on the number of volumes,
snapshots and shares only where the table says so.
"""

import functools
import os
import re
import stat
import sys
from unittest import mock
import uuid

from cinder.db import api as db
from cinder import objects
from cinder.tests.unit import utils as test_utils
import ddt
import fixtures
from oslo_utils import units
import sqlalchemy

from cinder_lustre.brick import client
from cinder_lustre.brick import mount
from cinder_lustre import chain
from cinder_lustre import qemu_img
from cinder_lustre import record
from cinder_lustre.tests.unit import costs
from cinder_lustre.tests.unit.volume.drivers import test_lustre

# Until 2026.1, there is a module below that of the API.
_DATABASE = getattr(db, 'IMPL', db)
# What is replaced in the tests.
_MOUNT = client.LustreRemoteFsClient.mount
_STATFS = mount.statfs
_SHARES = (test_lustre.SHARE, test_lustre.SECOND, '10.0.4.15@tcp:/third')

# The columns are those of costs.COUNTED. A cell is a number, or a sum in which
# v stands for the volumes on the shares, s for the snapshots of the volume at
# work, and h for the shares.
_TABLE = """
operation                     child mnt qemu cmd rec sync vfs list open    stat
set up                        h     h   0    0   0   0    0   h    h       5h
set up with mounts            0     0   0    0   0   0    0   0    0       0
first statistics              2h    0   0    2h  0   0    h   h    v+2h    0
statistics                    h     0   0    2h  0   0    h   0    2h      0
last statistics               0     0   0    0   0   0    0   0    0       0
create first volume           1+h   0   0    1   2   7    h   0    8+2h    3
create thin raw               1+h   0   0    0   2   6    h   0    7+2h    3
create thin qcow2             1+h   0   1    0   2   6    h   0    7+2h    3
create thick raw              1+h   0   0    0   2   6    h   0    7+2h    3
create thick qcow2            1+h   0   1    0   2   6    h   0    7+2h    3
delete                        1     0   0    0   0   1    0   0    5       4
delete with snapshots         1     0   0    0   0   1    0   0    5+s     4+2s
extend raw                    1     0   0    0   2   5    0   0    9       3
extend qcow2                  1     0   1    0   2   5    0   0    10      4
extend with snapshots         1     0   1    0   2   5    0   0    9+s     4+s
extend attached               2     0   0    0   2   5    0   0    14      6
create first snapshot         1     0   1    0   3   8    0   0    12      6
create snapshot               1     0   1    0   3   8    0   0    12+2s   6+3s
create snapshot online        4     0   1    0   5   12   0   0    26+2s   11+s
delete only snapshot          1     0   1    0   4   9    0   0    13      4
delete latest snapshot        1     0   1    0   5   11   0   0    14+s    3+s
delete oldest snapshot        1     0   2    0   5   12   0   0    15+s    3+s
delete latest snapshot online 1     0   0    0   2   4    0   0    7+2s    3+s
delete oldest snapshot online 2     0   2    0   6   14   0   0    24+2s   7+s
revert to snapshot            1     0   1    0   4   10   0   0    13+2s   4+3s
create from latest snapshot   1+h   0   1    0   2   7    h   0    14+2h+s 5+s
create from oldest snapshot   1+h   0   1    0   2   7    h   0    15+2h   6
clone raw                     1+h   0   1    0   2   7    h   0    15+2h   6
clone qcow2                   1+h   0   1    0   2   7    h   0    16+2h   6
clone with snapshots          1+h   0   1    0   2   7    h   0    15+2h+s 6+s
create export                 0     0   0    0   0   0    0   0    0       0
ensure export                 0     0   0    0   0   0    0   0    0       0
remove export                 0     0   0    0   0   0    0   0    0       0
connect                       1     0   0    0   0   0    0   0    5       3
connect qcow2                 1     0   0    0   0   0    0   0    6       3
connect with snapshots        1     0   0    0   0   0    0   0    5+s     3+s
disconnect                    0     0   0    0   0   0    0   0    0       0
raw image to volume           2     0   5    0   4   11   0   0    20      7
qcow2 image to volume         2     0   3    0   4   11   0   0    20      7
volume to raw image           1     0   0    0   0   0    0   0    6       3
volume to qcow2 image         2     0   1    0   0   0    0   0    12      6
snapshots to qcow2 image      2     0   1    0   0   0    0   0    12+2s   6+2s
retype                        2     0   2    0   4   11   0   0    20      8
size of a file                1     0   0    0   0   0    0   1    2v      7
manage a file                 2     0   0    0   2   5    0   2    8+4v    17
unmanage                      0     0   0    0   0   0    0   0    0       0
list volumes to manage        h     0   0    0   0   0    0   2h   2v      0
list layers to manage         h     0   0    0   0   0    0   2h   2v      0
"""


def _rows(text):
    heading, *lines = text.strip().splitlines()
    columns = heading.split()[1:]
    for line in lines:
        words = line.split()
        yield (' '.join(words[:-len(columns)]),
               dict(zip(columns, words[-len(columns):])))


def _value(cell, sizes):
    """The number that a cell stands for.

    :param sizes: numbers by letter
    """
    total = 0
    for term in cell.split('+'):
        factor, letter = re.fullmatch(r'(\d*)([vsh]?)', term).groups()
        total += int(factor or 1) * (sizes[letter] if letter else 1)
    return total


class _Case(tuple):
    """Arguments of a test; ddt puts its __name__ into that of the test."""


def _each_operation(word=''):
    """Make one test for each row of the table.

    :param word: of those rows alone that have it in their name
    """
    def decorate(test):
        cases = []
        for name, cells in _rows(_TABLE):
            if word in name:
                case = _Case((name, cells))
                case.__name__ = re.sub(r'\W+', '_', name)
                cases.append(case)
        return ddt.data(*cases)(ddt.unpack(test))

    return decorate


@ddt.ddt
class LustreDriverPerformanceTestCase(test_lustre.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.patch('cinder_lustre.brick.client.LustreRemoteFsClient.mount',
                   _MOUNT)
        self.patch('cinder.utils.get_root_helper', return_value='')
        self._log = os.path.join(self.directory, 'costs')
        self._mountinfo = os.path.join(self.directory, 'mountinfo')
        self._forget_mounts()
        self.patch('cinder_lustre.brick.mount.read_mounts',
                   lambda: costs.read_mounts(self._mountinfo))
        self._commands = os.path.join(self.directory, 'bin')
        os.mkdir(self._commands)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', self._commands + os.pathsep + os.environ['PATH']))
        # It is called as "mount -t lustre -o flock SOURCE DIRECTORY".
        self._add_command(
            'mount', 'echo "$$ 1 0:$$ / $6 rw - lustre $5 rw,flock" >> '
            + self._mountinfo)
        for name in ('lctl', 'lfs'):
            self._add_command(name, 'exit 0')
        self.patch('cinder_lustre.brick.mount.statfs', self._statfs)
        self._chain_length = 2
        self._other_volume = self.new_volume()

    def _statfs(self, path):
        """Let the first share have the most room, whatever else goes on."""
        return dict(_STATFS(path),
                    available=units.Ti if path == self.root else units.Gi)

    def _use_children(self):
        """Let the worker start processes, and count there."""
        # A process that waits for more work has not written its counts.
        self.patch('cinder_lustre.worker.Worker._keep', return_value=False)
        self.patch('sys.executable', self._add_command(
            'python', 'exec %s -S -m %s %s %s %s' % (
                sys.executable, costs.__name__, self.base, self._mountinfo,
                self._log)))

    def run_in_process(self):
        """Count a child without starting one, which takes long."""
        def run(func, *args, **kwargs):
            costs.count('child')
            return func(*args, **kwargs)

        self.patch_worker(run)

    def _add_command(self, name, script):
        path = os.path.join(self._commands, name)
        with open(path, 'w') as stream:
            stream.write('#!/bin/sh\n%s\n' % script)
        os.chmod(path, stat.S_IRWXU)
        return path

    def _forget_mounts(self):
        with open(self._mountinfo, 'w') as stream:
            stream.write('1 0 0:1 / / rw - ext4 /dev/vda1 rw\n')

    def run_command(self, *command, **kwargs):
        # A guest, or Nova, does that.
        with costs.paused():
            return super().run_command(*command, **kwargs)

    def _start(self, shares=1):
        """Start the service, and let it collect its first statistics."""
        self.driver = self.new_driver(lustre_shares=list(_SHARES[:shares]))
        for identity in self.driver.shares:
            # Else the first volume makes it.
            os.makedirs(os.path.join(
                self.driver._get_mount_point_for_share(identity),
                record.DIRECTORY), exist_ok=True)
        self.driver.get_volume_stats(refresh=True)

    def _add_volumes(self, number):
        """Let there be so many volumes in all."""
        values = []
        # The way that one is created in takes too long for so many.
        with mock.patch('os.fsync'):
            for _ in range(number - len(record.volumes(self.root))):
                volume = str(uuid.uuid4())
                name = record.base_name(volume)
                rec = record.Record(self.root, volume, name, {})
                rec.add_layer(name, 'raw', units.Gi)
                with open(rec.path(name), 'wb') as stream:
                    stream.truncate(units.Gi)
                rec.save()
                values.append({
                    'id': volume, 'size': 1, 'host': test_lustre.POOL,
                    'status': 'available', 'use_quota': True,
                    'volume_type_id': self._other_volume.volume_type_id,
                    'provider_location': test_lustre.IDENTITY})
        if values:
            model = type(db.volume_get(self.context, self._other_volume.id))
            with _DATABASE.get_engine().begin() as connection:
                connection.execute(sqlalchemy.insert(model), values)

    # What the operations are done to

    def _volume(self, fmt='raw', attached=False):
        volume = self.create_volume(fmt=fmt)
        if attached:
            self._attach(volume)
        return volume

    def _volume_with_snapshots(self, attached=False, length=None):
        """A volume with a chain of layers.

        :param length: the number of snapshots, else what the test says
        :returns: the volume, and its snapshots, the oldest one first
        """
        volume = self.create_volume()
        root = self.driver._local_volume_dir(volume)
        rec = record.load(root, volume.name_id)
        snapshots = []
        for _ in range(length or self._chain_length):
            snapshot = test_utils.create_snapshot(self.context, volume.id)
            name = '%s.%s' % (volume.name, snapshot.id)
            qemu_img.create(rec.path(name), 'qcow2', units.Gi, rec.active,
                            rec.top['format'])
            rec.top['children'].append(name)
            rec.add_layer(name, 'qcow2', units.Gi, parent=rec.active)
            rec.active = rec.snapshots[snapshot.id] = name
            snapshots.append(snapshot)
        rec.save()
        self.driver._publish(volume, chain.description(rec))
        if attached:
            self._attach(volume)
        return volume, snapshots

    def _attach(self, volume):
        self.use_nova()
        test_utils.attach_volume(self.context, volume.id, str(uuid.uuid4()),
                                 'host', '/dev/vdb')
        volume.refresh()

    def _images(self, fmt):
        path = os.path.join(self.directory, 'image')
        if os.path.exists(path):
            os.unlink(path)
        qemu_img.create(path, fmt, units.Mi)
        return test_lustre.FakeImageService(path, fmt)

    # The operations: each method makes one ready, and gives it

    def _set_up(self, mounted):
        if not mounted:
            self._forget_mounts()
        driver = self.new_driver(set_up=False)

        def set_up():
            driver.do_setup(self.context)
            driver.check_for_setup_error()

        return set_up

    def _get_stats(self, refresh=True, first=False):
        if first:
            self.driver._recovered.clear()
        return functools.partial(self.driver.get_volume_stats, refresh)

    def _create(self, fmt, provisioning, first=False):
        self.shrink_gib()
        for identity in self.driver.shares if first else ():
            os.rename(os.path.join(
                self.driver._get_mount_point_for_share(identity),
                record.DIRECTORY), os.path.join(self.directory,
                                                str(uuid.uuid4())))
        return functools.partial(self.driver.create_volume, self.new_volume(
            4, {'lustre:format': fmt, 'provisioning:type': provisioning}))

    def _delete(self, volume):
        return functools.partial(self.driver.delete_volume, volume)

    def _extend(self, volume):
        return functools.partial(self.driver.extend_volume, volume, 2)

    def _create_snapshot(self, volume):
        return functools.partial(
            self.driver.create_snapshot, test_utils.create_snapshot(
                self.context, volume.id, status='creating'))

    def _delete_snapshot(self, number, attached=False, length=None):
        _volume, snapshots = self._volume_with_snapshots(attached, length)
        snapshot = objects.Snapshot.get_by_id(self.context,
                                              snapshots[number].id)
        snapshot.status = 'deleting'
        snapshot.save()
        return functools.partial(self.driver.delete_snapshot, snapshot)

    def _revert(self):
        volume, snapshots = self._volume_with_snapshots()
        return functools.partial(self.driver.revert_to_snapshot,
                                 self.context, volume, snapshots[-1])

    def _create_from_snapshot(self, number):
        _volume, snapshots = self._volume_with_snapshots()
        return functools.partial(self.driver.create_volume_from_snapshot,
                                 self.new_volume(), snapshots[number])

    def _clone(self, source):
        return functools.partial(self.driver.create_cloned_volume,
                                 self.new_volume(), source)

    def _export(self, function, *args):
        return functools.partial(getattr(self.driver, function),
                                 self.context, self._volume(), *args)

    def _connect(self, function, volume):
        return functools.partial(getattr(self.driver, function), volume, {})

    def _image_to_volume(self, fmt):
        images = self._images(fmt)
        return functools.partial(
            self.driver.copy_image_to_volume, self.context, self._volume(),
            images, images.meta['id'])

    def _volume_to_image(self, volume, fmt):
        images = self._images(fmt)
        return functools.partial(
            self.driver.copy_volume_to_image, self.context, volume, images,
            images.meta)

    def _retype(self):
        return functools.partial(
            self.driver.retype, self.context, self._volume(),
            self.new_volume(specs={'lustre:format': 'qcow2'}).volume_type,
            {}, {'host': test_lustre.HOST})

    def _manage(self, function):
        name = str(uuid.uuid4())
        with open(os.path.join(self.root, name), 'wb') as stream:
            stream.truncate(units.Gi)
        return functools.partial(
            getattr(self.driver, function), self.new_volume(),
            {'source-name': '%s/%s' % (test_lustre.IDENTITY, name)})

    def _unmanage(self):
        return functools.partial(self.driver.unmanage, self._volume())

    def _list(self, function, cls):
        known = cls.get_all(self.context, filters={})
        return functools.partial(
            getattr(self.driver, function), known, None, 1000, 0, ['size'],
            ['asc'])

    _OPERATIONS = {
        'set up': lambda self: self._set_up(False),
        'set up with mounts': lambda self: self._set_up(True),
        'first statistics': lambda self: self._get_stats(first=True),
        'statistics': lambda self: self._get_stats(),
        'last statistics': lambda self: self._get_stats(refresh=False),
        'create first volume':
            lambda self: self._create('raw', 'thin', first=True),
        'create thin raw': lambda self: self._create('raw', 'thin'),
        'create thin qcow2': lambda self: self._create('qcow2', 'thin'),
        'create thick raw': lambda self: self._create('raw', 'thick'),
        'create thick qcow2': lambda self: self._create('qcow2', 'thick'),
        'delete': lambda self: self._delete(self._volume()),
        'delete with snapshots':
            lambda self: self._delete(self._volume_with_snapshots()[0]),
        'extend raw': lambda self: self._extend(self._volume()),
        'extend qcow2': lambda self: self._extend(self._volume('qcow2')),
        'extend with snapshots':
            lambda self: self._extend(self._volume_with_snapshots()[0]),
        'extend attached':
            lambda self: self._extend(self._volume(attached=True)),
        'create first snapshot':
            lambda self: self._create_snapshot(self._volume()),
        'create snapshot': lambda self: self._create_snapshot(
            self._volume_with_snapshots()[0]),
        'create snapshot online': lambda self: self._create_snapshot(
            self._volume_with_snapshots(attached=True)[0]),
        'delete only snapshot':
            lambda self: self._delete_snapshot(0, length=1),
        'delete latest snapshot': lambda self: self._delete_snapshot(-1),
        'delete oldest snapshot': lambda self: self._delete_snapshot(0),
        'delete latest snapshot online':
            lambda self: self._delete_snapshot(-1, attached=True),
        'delete oldest snapshot online':
            lambda self: self._delete_snapshot(0, attached=True),
        'revert to snapshot': lambda self: self._revert(),
        'create from latest snapshot':
            lambda self: self._create_from_snapshot(-1),
        'create from oldest snapshot':
            lambda self: self._create_from_snapshot(0),
        'clone raw': lambda self: self._clone(self._volume()),
        'clone qcow2': lambda self: self._clone(self._volume('qcow2')),
        'clone with snapshots':
            lambda self: self._clone(self._volume_with_snapshots()[0]),
        'create export': lambda self: self._export('create_export', {}),
        'ensure export': lambda self: self._export('ensure_export'),
        'remove export': lambda self: self._export('remove_export'),
        'connect': lambda self: self._connect('initialize_connection',
                                              self._volume()),
        'connect qcow2': lambda self: self._connect(
            'initialize_connection', self._volume('qcow2')),
        'connect with snapshots': lambda self: self._connect(
            'initialize_connection', self._volume_with_snapshots()[0]),
        'disconnect': lambda self: self._connect('terminate_connection',
                                                 self._volume()),
        'raw image to volume': lambda self: self._image_to_volume('raw'),
        'qcow2 image to volume': lambda self: self._image_to_volume('qcow2'),
        'volume to raw image':
            lambda self: self._volume_to_image(self._volume(), 'raw'),
        'volume to qcow2 image':
            lambda self: self._volume_to_image(self._volume(), 'qcow2'),
        'snapshots to qcow2 image': lambda self: self._volume_to_image(
            self._volume_with_snapshots()[0], 'qcow2'),
        'retype': lambda self: self._retype(),
        'size of a file':
            lambda self: self._manage('manage_existing_get_size'),
        'manage a file': lambda self: self._manage('manage_existing'),
        'unmanage': lambda self: self._unmanage(),
        'list volumes to manage': lambda self: self._list(
            'get_manageable_volumes', objects.VolumeList),
        'list layers to manage': lambda self: self._list(
            'get_manageable_snapshots', objects.SnapshotList),
    }

    def _measure(self, operation):
        """What an operation costs, and how many volumes there are then."""
        call = self._OPERATIONS[operation](self)
        volumes = len(record.volumes(self.root))
        # What was done in children to make it ready.
        costs.collect([], self._log)
        with costs.counting(self.base, self._mountinfo) as found:
            call()
        return costs.collect(found, self._log), volumes

    def _check(self, operation, cells, shares=1):
        found, volumes = self._measure(operation)
        sizes = {'v': volumes, 's': self._chain_length, 'h': shares}
        expected = {name: _value(cell, sizes) for name, cell in cells.items()}
        self.assertEqual({}, {
            name: '%d %s, not %d' % (found[name], meaning, expected[name])
            for name, meaning in costs.COUNTED.items()
            if found[name] != expected[name]},
            'What "%s" costs, with %s, has changed.' % (operation, sizes))

    @_each_operation()
    def test_volumes_and_shares(self, operation, cells):
        """What an operation costs where there are few and many of them."""
        self.run_in_process()
        self._start()
        for number in (1, 10, 100):
            self._add_volumes(number)
            self._check(operation, cells)
        self._start(3)
        self._check(operation, cells, shares=3)

    @_each_operation('snapshot')
    def test_snapshots(self, operation, cells):
        """What an operation costs in a short and in a long chain."""
        self.run_in_process()
        self._start()
        for number in (2, 5, 20):
            self._chain_length = number
            self._check(operation, cells)

    @ddt.data('set up', 'create thin raw', 'delete latest snapshot')
    def test_children(self, operation):
        """A child that is a process of its own costs the same."""
        self._use_children()
        self._start()
        self._check(operation, dict(_rows(_TABLE))[operation])
