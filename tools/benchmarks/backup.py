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

"""Compares the Lustre backup driver with Cinder's posix driver and cp.

For each volume, compression and tool it makes a backup and restores it into a
new volume, always in a new process and with an empty page cache; each restored
volume is compared with its source. Times end when all is on the disk.

The volumes are raw: "empty", "tenth" with data in each tenth MiB, and "full".
Their data are random, which no algorithm makes smaller, or random in one half
of each page and zeros in the other ("half").

The share is a stand-in for Lustre, an image in a directory, or a real one. Up
to three times the size of a volume is needed there.
"""

import os
import random
import statistics
import subprocess
import time

from cinder import version
from oslo_utils import units

from benchmarks import arguments
from benchmarks import machine
from benchmarks import place
from benchmarks import report
from benchmarks import services
from benchmarks import turns
from benchmarks import volumes

SUMMARY = 'backups and restores'
_COMPRESSIONS = ('none', 'zlib', 'zstd')
_COLUMNS = {
    'operation': 'operation', 'fill': 'fill', 'compression': 'compression',
    'tool': 'tool', 'seconds': 'seconds', 'peak_bytes': 'peak MiB',
    'stored_bytes': 'stored MiB', 'times_as_fast_as_posix': 'x posix',
    'times_as_fast_as_copy': 'x copy', 'goal': 'goal'}
# How many times as fast as the posix driver the driver should be.
_GOALS = {('backup', 'empty'): 20, ('backup', 'tenth'): 10,
          ('backup', 'full'): 1 / 1.05, ('restore', 'full'): 1 / 1.05}
# With zlib, what share of the speed at which all cores compress.
_ZLIB_GOAL = 0.8


def add_arguments(parser):
    parser.add_argument(
        '--directory', default='/var/tmp',
        help='a local one, where the image of the stand-in and the mounts '
             'lie (default: %(default)s)')
    parser.add_argument('--share', help='a share of a real Lustre, to use')
    parser.add_argument('--size', type=int, default=10, metavar='GIB',
                        help='of a volume (default: %(default)s)')
    parser.add_argument('--repeat', type=int, default=4, metavar='N',
                        help='give the median of so many (default: '
                             '%(default)s)')
    parser.add_argument('--fill', type=arguments.list_of(volumes.FILLS),
                        default=tuple(volumes.FILLS), metavar='LIST',
                        help='of %s' % ','.join(volumes.FILLS))
    parser.add_argument('--compression', type=arguments.list_of(_COMPRESSIONS),
                        default=_COMPRESSIONS, metavar='LIST',
                        help='of %s' % ','.join(_COMPRESSIONS))
    parser.add_argument('--data', choices=volumes.DATA, default='random',
                        help='what there is in a volume (default: random)')
    parser.add_argument('--over', action='store_true',
                        help='also restore over a volume full of 0xFF')
    parser.add_argument('--quick', action='store_true',
                        help='see whether all works: 1 GiB, once, --data half')
    parser.add_argument('--json', metavar='FILE',
                        help='where to write the figures')


class _Copy:
    """A plain sparse copy, to tell what the machine can do."""

    name = 'copy'
    compression = '-'

    @staticmethod
    def back_up(path):
        return _Copy._copy(path, path + '.copy')

    @staticmethod
    def restore(backup, path, is_new):
        return _Copy._copy(backup, path)

    @staticmethod
    def _copy(source, target):
        seconds = machine.timed(
            os.path.dirname(target), subprocess.check_call,
            ('cp', '--sparse=auto', '--reflink=never', source, target))
        return machine.Measured(seconds, machine.allocated(target), target)

    @staticmethod
    def delete(backup):
        os.unlink(backup)


class _Benchmark:
    """One run of all cases on one share."""

    def __init__(self, args, site):
        self._args = args
        self._source = os.path.join(site.path, 'source')
        self._target = os.path.join(site.path, 'target')
        self._started = time.monotonic()
        self.results = report.Results('operation', 'fill', 'compression')
        self._chance = random.Random(0)
        # Bytes of data by fill, and how many of them zlib does in a second.
        self._data = {}
        self._speeds = {}

    def run(self):
        tools = [_Copy()] + [
            services.Driver(name, compression)
            for compression in self._args.compression
            for name in ('posix', 'lustre')]
        for fill in self._args.fill:
            self._data[fill] = volumes.create(
                self._source, self._args.size << 30, fill, self._args.data)
            expected = volumes.fingerprint(self._source)
            for order in turns.orders(tools, self._args.repeat,
                                      self._chance):
                for tool in order:
                    self._measure(fill, tool, expected)
                if 'zlib' in self._args.compression and fill != 'empty':
                    speed, _peak = machine.in_child(
                        volumes.compression_speed, self._source)
                    self._speeds.setdefault(fill, []).append(speed)

    def _measure(self, fill, tool, expected):
        backup = self._add('backup', fill, tool, tool.back_up, self._source)
        volumes.create(self._target, self._args.size << 30)
        self._add('restore', fill, tool, tool.restore, backup, self._target,
                  True)
        self._verify(expected, fill, tool)
        if self._args.over and tool.name in services.DRIVERS:
            volumes.fill_with_ones(self._target, self._args.size << 30)
            self._add('restore over', fill, tool, tool.restore, backup,
                      self._target, False)
            self._verify(expected, fill, tool)
        os.unlink(self._target)
        machine.in_child(tool.delete, backup)

    def _add(self, operation, fill, tool, func, *args):
        machine.sync(os.path.dirname(self._source))
        machine.drop_caches()
        measured, measured.peak = machine.in_child(func, *args)
        self.results.add((operation, fill, tool.compression), tool.name,
                         measured)
        print('%4.0f s: %s, %s, %s, %s: %.2f s' % (
            time.monotonic() - self._started, operation, fill,
            tool.compression, tool.name, measured.seconds), flush=True)
        return measured.result

    def _verify(self, expected, fill, tool):
        if volumes.fingerprint(self._target) != expected:
            raise RuntimeError(
                'The "%s" volume that %s (compression: %s) restored differs '
                'from its source.' % (fill, tool.name, tool.compression))

    def rows(self):
        """The rows of the table, with their goals."""
        for row in self.results.rows(self._compare):
            goal = _GOALS.get((row['operation'], row['fill']))
            if row['tool'] == 'lustre' and goal and not (
                    row['fill'] == 'tenth' and row['compression'] == 'zlib'):
                row['goal'] = '%.2f x posix' % goal
            yield row

    def _compare(self, case, tool):
        operation, fill, _compression = case
        return {'posix': self.results.seconds(case, 'posix'),
                'copy': self.results.seconds(
                    (operation, fill, _Copy.compression), _Copy.name)}

    def zlib(self):
        """How much of the speed of all cores the driver reaches with zlib."""
        for fill, runs in self._speeds.items():
            alone = statistics.median(runs)
            speed = self._data[fill] / self.results.seconds(
                ('backup', fill, 'zlib'), 'lustre')
            yield {'fill': fill, 'all_cores_bytes_per_second': alone,
                   'driver_bytes_per_second': speed, 'share': speed / alone,
                   'goal': _ZLIB_GOAL}


def run(args):
    """Measure, and print the table.

    :raises: RuntimeError when a restored volume is not as its source
    """
    if args.quick:
        args.size, args.repeat, args.data = 1, 1, 'half'
    facts = dict(machine.facts(), cinder=version.version_string(),
                 page_cache_dropped=machine.drop_caches(), data=args.data,
                 size_gib=args.size, repeat=args.repeat)
    if not facts['page_cache_dropped']:
        print('The page cache cannot be dropped here: what is read may come '
              'from memory.')
    # A volume, its backup, what is restored, and the file system's own.
    with place.made(args.directory, args.share, 3 * args.size + 3) as made:
        site, directory = made
        facts['share'] = str(site.filesystem.share)
        services.configure(site, directory)
        benchmark = _Benchmark(args, site)
        try:
            benchmark.run()
        finally:
            # Also of a run that was interrupted after an hour.
            _report(facts, list(benchmark.rows()), list(benchmark.zlib()),
                    args.json)


def _report(facts, rows, zlib, path):
    print()
    print(', '.join('%s: %s' % item for item in facts.items()))
    print('\n'.join(report.table(_COLUMNS, rows)))
    for each in zlib:
        print('zlib, {fill}: all cores compress {:.1f} MiB/s of its data from '
              'memory to memory; lustre backs up {:.1f} MiB/s, {share:.0%} of '
              'that (goal: {goal:.0%})'.format(
                  each['all_cores_bytes_per_second'] / units.Mi,
                  each['driver_bytes_per_second'] / units.Mi, **each),
              flush=True)
    if path:
        report.write(path, {'facts': facts, 'rows': rows, 'zlib': zlib})
