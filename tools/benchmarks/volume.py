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

"""Compares the Lustre volume driver with Cinder's NFS driver, and the limit.

Both drivers work on the same directory, of any file system; name one on Lustre
to measure that. The limit is the fastest of the plain commands below them: cp,
dd, truncate, fallocate, and qemu-img with several settings.

Each case is run by one after the other, in changing orders. Copies begin with
an empty page cache and end when all is on the disk. What a driver does to
files without copying them is measured as it is called: the Lustre driver
brings it to the disk, and the NFS driver does not; the number of its fsyncs,
and what one takes, are in the table.
"""

from concurrent import futures
import functools
import os
import random
import shutil
import tempfile
import time

from cinder import version

from benchmarks import arguments
from benchmarks import counts
from benchmarks import drivers
from benchmarks import limits
from benchmarks import machine
from benchmarks import page
from benchmarks import report
from benchmarks import turns
from benchmarks import volumes

SUMMARY = 'volumes, snapshots, copies, images and statistics'
_DRIVERS = ('lustre', 'nfs')
_CLONE = 'clone'
_FROM_SNAPSHOT = 'volume from snapshot'
_FIRST = 'first volume from image'
_SECOND = 'second volume from image'
_UPLOAD = 'volume to image'
_COLUMNS = {
    'operation': 'operation', 'case': 'case', 'tool': 'tool',
    'seconds': 'seconds', 'first_quartile': 'from', 'third_quartile': 'to',
    'times_as_fast_as_nfs': 'x nfs', 'times_as_fast_as_limit': 'x limit',
    'processes': 'processes', 'fsyncs': 'fsyncs', 'by': 'by'}
_DEFAULTS = {'repeat': 4, 'size': (1, 4), 'fill': tuple(volumes.FILLS),
             'depth': (1, 10, 50), 'count': (10, 100, 1000, 10000),
             'at_once': (1, 2, 4, 8, 16)}
_QUICK = {'repeat': 1, 'size': (1,), 'fill': ('tenth',), 'depth': (1, 3),
          'count': (10, 100), 'at_once': (1, 4)}


def add_arguments(parser):
    def add(name, kind, text):
        parser.add_argument(
            '--' + name, type=kind, help='%s (default: %s)' % (
                text, _DEFAULTS[name.replace('-', '_')]))

    parser.add_argument(
        '--directory', default='/var/tmp',
        help='on the file system to measure (default: %(default)s)')
    parser.add_argument(
        '--local', default='/var/tmp',
        help='for images and the database (default: %(default)s)')
    add('repeat', int, 'give the median of so many')
    add('size', arguments.numbers, 'GiB of the volumes to copy, a list')
    add('fill', arguments.list_of(volumes.FILLS), 'how full they are, a list')
    add('depth', arguments.numbers, 'snapshots of one volume, a list')
    add('count', arguments.numbers, 'volumes on the share, a list')
    add('at-once', arguments.numbers, 'operations at once, a list')
    parser.add_argument('--only', type=arguments.list_of(_AREAS),
                        default=tuple(_AREAS), metavar='LIST',
                        help='of %s' % ','.join(_AREAS))
    parser.add_argument('--quick', action='store_true',
                        help='see whether all works, in two minutes')
    parser.add_argument('--json', metavar='FILE',
                        help='where to write the figures')
    parser.add_argument('--html', metavar='FILE',
                        help='where to write a page with plots')


class _Benchmark:
    """One run of all cases."""

    def __init__(self, args, directory, local):
        self._args = args
        self._directory = directory
        self._local = local
        self._started = time.monotonic()
        self._chance = random.Random(0)
        self._counts = {}
        self.results = report.Comparison(_DRIVERS, 'nfs', 'operation',
                                         'case')
        self._drivers = [drivers.Driver(name, directory)
                         for name in _DRIVERS]
        self._commands = limits.Commands(directory)

    def run(self):
        for area in self._args.only:
            _AREAS[area](self)

    # Measuring

    def _in_turn(self, tools, func, *args):
        """Repeat a case by all tools, in changing orders."""
        self._repeat([functools.partial(func, tool, *args)
                      for tool in tools])

    def _repeat(self, steps):
        for order in turns.orders(steps, self._args.repeat, self._chance):
            for step in order:
                step()

    def _say(self, text):
        print('%4.0f s: %s' % (time.monotonic() - self._started, text),
              flush=True)

    def _add(self, operation, case, tool, seconds):
        self.results.add((operation, case), tool.name,
                         machine.Measured(seconds, 0))
        self._say('%s, %s, %s: %.3f s' % (operation, case, tool.name,
                                          seconds))

    def _time(self, operation, case, tool, func, *args):
        """Measure a call that copies nothing."""
        started = time.monotonic()
        func(*args)
        self._add(operation, case, tool, time.monotonic() - started)

    def _copy_seconds(self, directory, func, *args):
        """The time until a copy in a directory is on the disk."""
        machine.sync(self._directory, self._local)
        machine.drop_caches()
        return machine.timed(directory, func, *args)

    def _time_plain(self, operations, case, tool, source, target):
        """Measure a command that may be the limit of some operations."""
        seconds = self._copy_seconds(os.path.dirname(target), tool.copy,
                                     source, target)
        os.unlink(target)
        for operation in operations:
            self._add(operation, case, tool, seconds)

    def _count(self, operation, case, tool, func, *args):
        """Call a driver once more, and count."""
        self._counts[operation, case, tool.name] = counts.count(
            self._local, func, *args)

    # Areas

    def measure_volumes(self):
        """Create, connect, extend and delete volumes."""
        for layout in drivers.LAYOUTS:
            self._in_turn(self._drivers + [self._commands],
                          self._live, layout, self._time)
            for driver in self._drivers:
                self._live(driver, layout, self._count)

    @staticmethod
    def _live(tool, layout, note):
        volume = tool.new_volume(1, layout)
        note('create', layout, tool, tool.create, volume)
        if hasattr(tool, 'connect'):
            note('connect', layout, tool, tool.connect, volume)
        note('extend', layout, tool, tool.extend, volume, 2)
        note('delete', layout, tool, tool.delete, volume)

    def measure_snapshots(self):
        """Create and delete the last snapshot of a chain."""
        tools = self._drivers + [self._commands]
        chains = {}
        for tool in tools:
            chains[tool.name] = tool.new_volume(1), []
            tool.create(chains[tool.name][0])
        for depth in sorted(self._args.depth):
            for tool in tools:
                volume, snapshots = chains[tool.name]
                self._say('making a chain of %d by %s' % (depth, tool.name))
                while len(snapshots) < depth - 1:
                    snapshots.append(tool.new_snapshot(volume))
                    tool.create_snapshot(snapshots[-1])
            self._in_turn(tools, self._snapshot, chains, depth, self._time)
            for driver in self._drivers:
                self._snapshot(driver, chains, depth, self._count)
        self._say('deleting the chains')
        for tool in tools:
            volume, snapshots = chains[tool.name]
            while snapshots:
                tool.delete_snapshot(snapshots.pop())
            tool.delete(volume)

    @staticmethod
    def _snapshot(tool, chains, depth, note):
        volume, _snapshots = chains[tool.name]
        snapshot = tool.new_snapshot(volume)
        note('create snapshot', depth, tool, tool.create_snapshot, snapshot)
        if hasattr(tool, 'connect'):
            note('connect with snapshots', depth, tool, tool.connect, volume)
        note('delete snapshot', depth, tool, tool.delete_snapshot, snapshot)

    @property
    def _target(self):
        return os.path.join(self._commands.path, 'target')

    @staticmethod
    def _copies(sweep):
        return [limits.Copy(), limits.Dd()] + [
            limits.Convert(*settings) for settings in sweep]

    def _contents(self):
        """Make a file of each size and fill, for the time of a step.

        :returns: its path, its checksum, its size in GiB, and what the case
                  is called
        """
        path = os.path.join(self._commands.path, 'content')
        for size in self._args.size:
            for fill in self._args.fill:
                self._say('making %d GiB, %s' % (size, fill))
                volumes.create(path, size << 30, fill)
                yield (path, volumes.fingerprint(path), size,
                       '%d GiB %s' % (size, fill))
        os.unlink(path)

    @staticmethod
    def _filled(driver, content, size):
        volume = driver.new_volume(size)
        driver.create(volume)
        limits.Copy().copy(content, driver.file_of(volume))
        return volume

    def measure_copies(self):
        """Clone volumes, and create them from snapshots."""
        copies = self._copies(limits.SHORT_SWEEP if self._args.quick
                              else limits.SWEEP)
        for content, expected, size, case in self._contents():
            steps = []
            sources = []
            for driver in self._drivers:
                source = self._filled(driver, content, size)
                snapshot = driver.new_snapshot(
                    self._filled(driver, content, size))
                driver.create_snapshot(snapshot)
                sources.append((driver, source, snapshot))
                steps += self._fills(
                    driver, case, size, expected,
                    (_CLONE, driver.clone, source),
                    (_FROM_SNAPSHOT, driver.create_from_snapshot, snapshot))
            steps += [
                functools.partial(self._time_plain, (_CLONE, _FROM_SNAPSHOT),
                                  case, tool, content, self._target)
                for tool in copies]
            self._repeat(steps)
            for driver, source, snapshot in sources:
                driver.delete(source)
                driver.delete_snapshot(snapshot)
                driver.delete(snapshot.volume)

    def _fills(self, driver, case, size, expected, *ways):
        return [functools.partial(self._fill, driver, operation, case, size,
                                  expected, func, source)
                for operation, func, source in ways]

    def _fill(self, driver, operation, case, size, expected, func, source):
        """Measure how a driver makes a volume from something."""
        volume = driver.new_volume(size)
        self._add(operation, case, driver, self._copy_seconds(
            self._directory, func, volume, source))
        self._check(driver.file_of(volume), expected, operation, driver)
        driver.delete(volume)

    @staticmethod
    def _check(path, expected, operation, driver):
        if volumes.fingerprint(path) != expected:
            raise RuntimeError('What "%s" by %s has made differs from its '
                               'source.' % (operation, driver.name))

    def measure_images(self):
        """Fill two volumes from an image, and upload one."""
        uploaded = os.path.join(self._local, 'image')
        copies = self._copies(limits.SHORT_SWEEP)
        for content, expected, size, case in self._contents():
            images = drivers.Images(content, 'raw')
            with images.fetched() as fetched:
                steps = []
                sources = []
                for driver in self._drivers:
                    source = self._filled(driver, content, size)
                    sources.append((driver, source))
                    steps += self._fills(
                        driver, case, size, expected,
                        (_FIRST, driver.create_from_image, images),
                        # As the manager does that keeps a clone.
                        (_SECOND, driver.clone, source))
                    steps += [
                        functools.partial(self._upload, driver, case, fmt,
                                          expected, source, uploaded)
                        for fmt in ('raw', 'qcow2')]
                steps += [
                    functools.partial(self._time_plain, (operation,), case,
                                      tool, path, self._target)
                    for tool in copies
                    for operation, path in ((_FIRST, fetched),
                                            (_SECOND, content))]
                steps += [
                    functools.partial(self._time_plain, (_UPLOAD,),
                                      '%s %s' % (case, tool.format), tool,
                                      content, uploaded)
                    for tool in [limits.Copy('never')] + [
                        limits.Convert(*settings, 'qcow2')
                        for settings in limits.SHORT_SWEEP]]
                self._repeat(steps)
                for driver, source in sources:
                    driver.delete(source)

    def _upload(self, driver, case, fmt, expected, source, path):
        self._add(_UPLOAD, '%s %s' % (case, fmt), driver, self._copy_seconds(
            self._local, driver.upload, source, drivers.Images(path, fmt)))
        if fmt == 'raw':
            self._check(path, expected, _UPLOAD, driver)
        os.unlink(path)

    def measure_statistics(self):
        """Collect the statistics, and create volumes, among many."""
        there = 0
        for number in sorted(self._args.count):
            self._say('making %d volumes' % number)
            for driver in self._drivers:
                driver.add_volumes(number - there)
            there = number
            self._in_turn(self._drivers, self._ask, number, self._time)
            for driver in self._drivers:
                self._ask(driver, number, self._count)
        for driver in self._drivers:
            driver.remove()
        self._drivers = [drivers.Driver(driver.name, self._directory)
                         for driver in self._drivers]

    @staticmethod
    def _ask(driver, number, note):
        note('statistics', number, driver, driver.get_stats)
        volume = driver.new_volume(1)
        note('create among volumes', number, driver, driver.create, volume)
        driver.delete(volume)

    def measure_at_once(self):
        """Create and delete several volumes at once."""
        for number in self._args.at_once:
            self._in_turn(self._drivers, self._crowd, number)

    def _crowd(self, driver, number):
        made = [driver.new_volume(1) for _ in range(number)]
        with futures.ThreadPoolExecutor(number) as executor:
            for name, func in (('create at once', driver.create),
                               ('delete at once', driver.delete)):
                self._time(name, number, driver,
                           lambda: list(executor.map(func, made)))

    def rows(self):
        """The rows of the table."""
        rows = self.results.best_rows()
        for row in rows:
            row.update(self._counts.get(
                (row['operation'], row['case'], row['tool']), {}))
        return rows


_AREAS = {'volumes': _Benchmark.measure_volumes,
          'snapshots': _Benchmark.measure_snapshots,
          'copies': _Benchmark.measure_copies,
          'images': _Benchmark.measure_images,
          'statistics': _Benchmark.measure_statistics,
          'at-once': _Benchmark.measure_at_once}


def run(args):
    """Measure, and print the table.

    :raises: RuntimeError when a copy is not as its source
    """
    for name, value in (_QUICK if args.quick else _DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    directory = tempfile.mkdtemp(prefix='bench-', dir=args.directory)
    local = tempfile.mkdtemp(prefix='bench-local-', dir=args.local)
    try:
        drivers.configure(local)
        facts = dict(machine.facts(), cinder=version.version_string(),
                     page_cache_dropped=machine.drop_caches(),
                     directory=args.directory, repeat=args.repeat,
                     fsync_milliseconds='%.2f' % (
                         1000 * counts.fsync_seconds(directory)))
        benchmark = _Benchmark(args, directory, local)
        try:
            benchmark.run()
        finally:
            # Also of a run that was interrupted after an hour.
            _report(facts, benchmark.rows(),
                    benchmark.results.all_rows(), args)
    finally:
        shutil.rmtree(directory)
        shutil.rmtree(local)


def _report(facts, rows, all_rows, args):
    print()
    print(', '.join('%s: %s' % item for item in facts.items()))
    print('\n'.join(report.table(_COLUMNS, rows)), flush=True)
    if args.json:
        report.write(args.json, {'facts': facts, 'rows': rows,
                                 'all_rows': all_rows})
    if args.html:
        page.write(args.html, 'Volumes', facts, _COLUMNS, rows, report.cell)
