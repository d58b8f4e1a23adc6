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

"""What the benchmarks make of their figures and their volumes."""

import os
import zlib

import ddt
import fixtures
import testtools

from benchmarks import machine
from benchmarks import report
from benchmarks import volumes

MIB = 1 << 20


def measured(seconds, peak=MIB, stored=0):
    return machine.Measured(seconds, stored, peak=peak)


class ReportTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.results = report.Results('operation', 'fill')
        for seconds, peak in ((9, MIB), (2, 3 * MIB), (4, 2 * MIB)):
            self.results.add(('backup', 'full'), 'ours',
                             measured(seconds, peak, stored=10 * MIB))
        self.results.add(('backup', 'full'), 'theirs', measured(8))
        self.rows = list(self.results.rows(lambda case, tool: {
            'theirs': self.results.seconds(case, 'theirs'),
            'none': self.results.seconds(case, 'none')}))

    def test_median_of_the_times_and_most_of_the_memory(self):
        row = self.rows[0]
        self.assertEqual(
            ('backup', 'full', 'ours', 4, [9, 2, 4], 3 * MIB, 10 * MIB),
            tuple(row[name] for name in (
                'operation', 'fill', 'tool', 'seconds', 'runs', 'peak_bytes',
                'stored_bytes')))

    def test_ratios(self):
        self.assertEqual(
            [(2, None), (1, None)],
            [(row['times_as_fast_as_theirs'], row['times_as_fast_as_none'])
             for row in self.rows])

    def test_table(self):
        self.assertEqual(
            ['tool    seconds  peak  x theirs  x none',
             'ours          4     3      2.00       -',
             'theirs        8     1      1.00       -'],
            list(report.table(
                {'tool': 'tool', 'seconds': 'seconds', 'peak_bytes': 'peak',
                 'times_as_fast_as_theirs': 'x theirs',
                 'times_as_fast_as_none': 'x none'}, self.rows)))


@ddt.ddt
class VolumesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = self.useFixture(fixtures.TempDir()).join('volume')

    @ddt.data(('empty', 0), ('tenth', 3), ('full', 21))
    @ddt.unpack
    def test_create(self, fill, extents):
        self.assertEqual(extents * MIB,
                         volumes.create(self.path, 21 * MIB, fill))
        self.assertEqual(21 * MIB, os.path.getsize(self.path))
        with open(self.path, 'rb') as stream:
            found = [any(stream.read(MIB)) for _ in range(21)]
        self.assertEqual(extents, sum(found))
        if extents == 3:
            self.assertEqual([0, 10, 20], [
                number for number, data in enumerate(found) if data])

    def test_fingerprint_sees_what_is_read(self):
        volumes.create(self.path, 21 * MIB, 'tenth')
        expected = volumes.fingerprint(self.path)
        with open(self.path, 'rb') as stream:
            content = stream.read()
        # The same without holes.
        with open(self.path, 'wb') as stream:
            stream.write(content)
        self.assertEqual(expected, volumes.fingerprint(self.path))
        moved = content[MIB:2 * MIB] + content[:MIB] + content[2 * MIB:]
        longer = content + bytes(MIB)
        changed = content[:-1] + b'\xff'
        for other in (moved, longer, changed):
            with open(self.path, 'wb') as stream:
                stream.write(other)
            self.assertNotEqual(expected, volumes.fingerprint(self.path))

    @ddt.data(('random', 1, 1.01), ('half', .5, .6))
    @ddt.unpack
    def test_data(self, data, least, most):
        volumes.create(self.path, MIB, 'full', data)
        with open(self.path, 'rb') as stream:
            ratio = len(zlib.compress(stream.read())) / MIB
        self.assertTrue(least <= ratio <= most, ratio)
