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

"""Compares how long users wait for volumes of two backends, through the API.

A backend is FILE:CLOUD or FILE:CLOUD:TYPE: a clouds.yaml, a cloud in it, and a
volume type of that; both may be types of one cloud. The lab writes a file:

    bench api /var/lib/lab/etc/clouds.yaml:lab:lustre1 \\
        /var/lib/nfs/etc/clouds.yaml:lab:lustre1

Volumes are created in turn, now by the one and now by the other, and each is
gone before the next one begins. What is measured begins with the request and
ends when the volume is available.
"""

import argparse
import statistics
import time

import openstack
from openstack import config

from benchmarks import machine
from benchmarks import report

SUMMARY = 'creating volumes through the API, by two backends'
_COLUMNS = {'backend': 'backend', 'tool': 'volumes of', 'seconds': 'seconds',
            'first_quartile': 'from', 'third_quartile': 'to'}
# Seconds between two questions whether a volume is available, and until which
# it has to be.
_INTERVAL = 0.01
_PATIENCE = 300


def add_arguments(parser):
    for name in ('first', 'second'):
        parser.add_argument(name, type=_backend, metavar=name.upper(),
                            help='FILE:CLOUD or FILE:CLOUD:TYPE')
    parser.add_argument('--repeat', type=int, default=30,
                        help='volumes of each (default: %(default)s)')
    parser.add_argument('--size', type=int, default=1,
                        help='of a volume in GiB (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE',
                        help='where to write the figures')


def _backend(text):
    path, _, rest = text.partition(':')
    cloud, _, volume_type = rest.partition(':')
    if not cloud:
        raise argparse.ArgumentTypeError('%s names no cloud' % text)
    return path, cloud, volume_type or None


class _Backend:
    """One of the two."""

    def __init__(self, name, path, cloud, volume_type):
        self.name = name
        self._type = volume_type
        self._volumes = openstack.connection.Connection(
            config=config.OpenStackConfig(
                config_files=[path]).get_one(cloud)).block_storage

    def create(self, size):
        """Create a volume and delete it; returns the seconds of the first."""
        started = time.monotonic()
        volume = self._volumes.create_volume(
            name='bench', size=size, volume_type=self._type)
        try:
            self._volumes.wait_for_status(
                volume, 'available', failures=['error'], interval=_INTERVAL,
                wait=_PATIENCE)
            return time.monotonic() - started
        finally:
            self._volumes.delete_volume(volume)
            self._volumes.wait_for_delete(volume, interval=_INTERVAL,
                                          wait=_PATIENCE)


def run(args):
    backends = [_Backend(name, *found) for name, found in (
        ('first', args.first), ('second', args.second))]
    results = report.Results('backend')
    for backend in backends:
        # What only the first volume costs is no matter of the others.
        backend.create(args.size)
    for number in range(args.repeat):
        for backend in backends[::-1 if number % 2 else 1]:
            seconds = backend.create(args.size)
            results.add((backend.name,), 'create',
                        machine.Measured(seconds, 0))
            print('%d of %d, %s: %.3f s' % (number + 1, args.repeat,
                                            backend.name, seconds),
                  flush=True)
    rows = list(results.rows(lambda case, tool: {}))
    for line in report.table(_COLUMNS, rows):
        print(line)
    difference = _difference(*(row['runs'] for row in rows))
    print('The first takes %+.3f s more than the second (difference of the '
          'medians); half of the pairs lie between %+.3f and %+.3f s.'
          % difference)
    if args.json:
        report.write(args.json, {'rows': rows, 'difference': difference})


def _difference(first, second):
    """The difference of two medians, and the quartiles of that of pairs."""
    return (statistics.median(first) - statistics.median(second),
            *report.quartiles([one - other
                               for one, other in zip(first, second)]))
