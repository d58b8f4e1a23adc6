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

import argparse
import os
import random
import re
import subprocess
from unittest import mock
from xml.etree import ElementTree
import zlib

import ddt
import fixtures
import testtools

from benchmarks import api
from benchmarks import limits
from benchmarks import machine
from benchmarks import page
from benchmarks import report
from benchmarks import turns
from benchmarks import volumes

MIB = 1 << 20


def measured(seconds, peak=MIB, stored=0):
    return machine.Measured(seconds, stored, peak=peak)


@ddt.ddt
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

    def test_quartiles_of_the_times(self):
        self.assertEqual((3, 6.5), (self.rows[0]['first_quartile'],
                                    self.rows[0]['third_quartile']))

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

    @ddt.data(((3,), (3, 3)), ((1, 2), (1.25, 1.75)),
              ((9, 1, 3, 5, 7), (3, 7)))
    @ddt.unpack
    def test_quartiles(self, values, expected):
        self.assertEqual(expected, report.quartiles(values))

    @ddt.data((0.00312, '0.003'), (0.1, '0.10'), (None, '-'), ('cp', 'cp'))
    @ddt.unpack
    def test_cell(self, value, expected):
        self.assertEqual(expected, report.cell('seconds', value))


class ComparisonTestCase(testtools.TestCase):
    """The limit is the best of its own medians, case by case."""

    def setUp(self):
        super().setUp()
        self.results = report.Comparison(('ours', 'theirs'), 'theirs',
                                         'operation', 'case')
        for case, tool, *runs in (
                (1, 'ours', 4, 4, 9), (1, 'theirs', 8), (1, 'cp', 3, 3, 1),
                (1, 'dd', 2, 2, 50), (2, 'cp', 1), (2, 'ours', 2),
                (3, 'ours', 5)):
            for seconds in runs:
                self.results.add(('copy', case), tool, measured(seconds))

    def test_case_that_nobody_ran(self):
        self.assertIsNone(self.results.seconds(('copy', 4), 'cp'))

    def test_limit(self):
        self.assertEqual(['dd', 'cp', None], [
            self.results.limit(('copy', case)) for case in (1, 2, 3)])

    def test_rows(self):
        self.assertEqual(
            [(1, 'ours', None, 2, .5), (1, 'theirs', None, 1, .25),
             (1, 'limit', 'dd', 4, 1), (2, 'limit', 'cp', None, 1),
             (2, 'ours', None, None, .5), (3, 'ours', None, None, None)],
            [(row['case'], row['tool'], row.get('by'),
              row['times_as_fast_as_theirs'], row['times_as_fast_as_limit'])
             for row in self.results.best_rows()])

    def test_nothing_is_left_out_of_all_rows(self):
        self.assertEqual(7, len(self.results.all_rows()))

    def test_page(self):
        path = self.useFixture(fixtures.TempDir()).join('page.html')
        page.write(path, 'A <title>', {'cores': 2}, {'tool': 'tool'},
                   self.results.best_rows(), report.cell)
        with open(path) as stream:
            text = stream.read()
        self.assertIn('<h1>A &lt;title&gt;</h1><p>cores: 2</p>', text)
        ElementTree.fromstring(re.search('<svg.*</svg>', text)[0])


class PageTestCase(testtools.TestCase):

    COLOURS = {'ours': '#111', 'theirs': '#222'}

    def rows(self, *seconds):
        return [{'case': case, 'tool': tool, 'seconds': taken,
                 'first_quartile': taken, 'third_quartile': 2 * taken}
                for case, tool, taken in seconds]

    def test_bars_are_as_long_as_what_they_show(self):
        plot = ElementTree.fromstring(page.bars(self.rows(
            ('a', 'ours', 1), ('a', 'theirs', 4)), self.COLOURS))
        widths = [float(bar.get('width')) for bar in plot.iter()
                  if bar.tag.endswith('rect')]
        self.assertAlmostEqual(4, widths[1] / widths[0], 2)
        # The quartile of the longest one has room, and takes most of it.
        self.assertTrue(page._WIDTH / 2 < 2 * widths[1] + page._LABEL
                        < page._WIDTH)

    def test_lines_show_powers(self):
        plot = ElementTree.fromstring(page.lines(self.rows(
            (10, 'ours', 1), (100, 'ours', 10), (1000, 'ours', 100)),
            self.COLOURS))
        points, = (each.get('points') for each in plot.iter()
                   if each.tag.endswith('polyline'))
        x, y = zip(*(map(float, point.split(','))
                     for point in points.split()))
        self.assertAlmostEqual(x[1] - x[0], x[2] - x[1], 0)
        self.assertAlmostEqual(y[1] - y[0], y[2] - y[1], 0)
        self.assertLess(y[2], y[0])

    def test_lines_that_end_in_one_point(self):
        plot = ElementTree.fromstring(page.lines(self.rows(
            (10, 'ours', 1), (100, 'ours', 2), (10, 'theirs', 2),
            (100, 'theirs', 2)), self.COLOURS))
        ours, theirs = (float(each.get('y')) for each in plot.iter()
                        if each.text in self.COLOURS)
        self.assertEqual(page._LINE, abs(ours - theirs))


@ddt.ddt
class TurnsTestCase(testtools.TestCase):

    @ddt.data(2, 3, 8)
    def test_none_is_favoured(self, number):
        steps = list(range(number))
        orders = list(turns.orders(steps, 4, random.Random(0)))
        self.assertEqual(steps, orders[0])
        self.assertEqual([steps] * 4, [sorted(order) for order in orders])
        for step in steps:
            before = {None if not order.index(step)
                      else order[order.index(step) - 1] for order in orders}
            self.assertLess(1, len(before))


@ddt.ddt
class LimitsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.source = os.path.join(self.directory, 'source')
        self.target = os.path.join(self.directory, 'target')

    def test_commands(self):
        commands = limits.Commands(self.directory)
        for layout in ('raw', 'qcow2'):
            volume = commands.new_volume(1, layout)
            commands.create(volume)
            commands.extend(volume, 2)
            snapshots = [commands.new_snapshot(volume) for _ in range(2)]
            for snapshot in snapshots:
                commands.create_snapshot(snapshot)
            self.assertEqual(3, len(os.listdir(commands.path)))
            for snapshot in reversed(snapshots):
                commands.delete_snapshot(snapshot)
            commands.delete(volume)
            self.assertEqual([], os.listdir(commands.path))

    @ddt.data(limits.Copy(), limits.Dd(),
              *(limits.Convert(*each) for each in limits.SHORT_SWEEP))
    def test_copies(self, tool):
        # It ends with a hole.
        volumes.create(self.source, 9 * MIB, 'tenth')
        tool.copy(self.source, self.target)
        self.assertEqual(volumes.fingerprint(self.source),
                         volumes.fingerprint(self.target))
        self.assertLess(machine.allocated(self.target), 2 * MIB)

    def test_convert_into_qcow2(self):
        volumes.create(self.source, MIB)
        limits.Convert(*limits.SHORT_SWEEP[0], 'qcow2').copy(self.source,
                                                             self.target)
        subprocess.check_call(('qemu-img', 'check', '-q', '-f', 'qcow2',
                               self.target))

    def test_copy_without_holes(self):
        volumes.create(self.source, 9 * MIB)
        limits.Copy('never').copy(self.source, self.target)
        self.assertLessEqual(9 * MIB, machine.allocated(self.target))


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


@ddt.ddt
class ApiTestCase(testtools.TestCase):
    """What is said of two backends."""

    @ddt.data(
        ('/etc/clouds.yaml:lab', ('/etc/clouds.yaml', 'lab', None)),
        ('clouds.yaml:lab:type: x', ('clouds.yaml', 'lab', 'type: x')),
    )
    @ddt.unpack
    def test_backend(self, text, expected):
        self.assertEqual(expected, api._backend(text))

    @ddt.data('', '/etc/clouds.yaml', '/etc/clouds.yaml:')
    def test_backend_without_a_cloud(self, text):
        error = self.assertRaises(argparse.ArgumentTypeError, api._backend,
                                  text)
        self.assertEqual('%s names no cloud' % text, str(error))

    def test_difference(self):
        # Medians of 3.5 and 2; the pairs differ by 0, 1, 2 and 3.
        self.assertEqual((1.5, 0.75, 2.25), api._difference(
            [2, 3, 4, 5], [2, 2, 2, 2]))

    @ddt.data(True, False)
    def test_create(self, is_in_time):
        volumes = mock.Mock()
        if not is_in_time:
            volumes.wait_for_status.side_effect = ValueError()
        cloud = mock.Mock(block_storage=volumes)
        with (mock.patch.object(api.config, 'OpenStackConfig'),
              mock.patch.object(api.openstack.connection, 'Connection',
                                return_value=cloud)):
            backend = api._Backend('first', 'clouds.yaml', 'lab', 'lustre')
        if is_in_time:
            self.assertLessEqual(0, backend.create(3))
        else:
            self.assertRaises(ValueError, backend.create, 3)
        volumes.create_volume.assert_called_once_with(
            name='bench', size=3, volume_type='lustre')
        # Nothing stays behind.
        created = volumes.create_volume.return_value
        volumes.delete_volume.assert_called_once_with(created)
        self.assertEqual(created, volumes.wait_for_delete.call_args.args[0])
