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

"""What is read of the guest's console."""

import ddt
import testtools

import console

VOLUME = '6a2f41a3-c54c-fce8-32d2-0324e1c32e22'
GIB = 1 << 30


def line(generation, outcome='OK', volume=VOLUME, size=GIB):
    return ('LAB vdb volume=%s size=%d generation=%d sum=1dc3 owner=2d9f %s'
            '\r\n' % (volume[:console.SERIAL], size, generation, outcome))


@ddt.ddt
class ConsoleTestCase(testtools.TestCase):

    def read(self, *lines, size=GIB, floor=0):
        return console.last_generation(
            'LAB guest 2d9f is up after 3.1 s\r\n' + ''.join(lines), VOLUME,
            size, floor)

    def test_last_generation_counts(self):
        self.assertEqual(2, self.read(line(0, 'NEW'), line(1), line(2)))
        # A guest that does not own the volume reads one several times.
        self.assertEqual(2, self.read(line(2), line(2), floor=2))

    def test_nothing_was_read(self):
        self.assertEqual(0, self.read())

    @ddt.data((line(3), line(2)),
              # Newer writes were lost before the console began.
              (line(4),),
              # It takes a volume that had data for a new one.
              (line(0, 'NEW'),))
    def test_lost_generation(self, lines):
        error = self.assertRaises(ValueError, self.read, *lines, floor=5)
        self.assertIn('after generation 5', str(error))

    def test_generation_lost_on_the_way(self):
        error = self.assertRaises(ValueError, self.read, line(3), line(2))
        self.assertIn('after generation 3', str(error))
        self.assertIn('generation=2', str(error))

    @ddt.data('BAD', 'ERROR')
    def test_wrong_data(self, outcome):
        self.assertRaises(ValueError, self.read, line(3, outcome))

    @ddt.data(line(9, volume='another-volume-of-the-server'),
              line(1, 'BAD', volume='another-volume-of-the-server'),
              '[    4.5] virtio_blk virtio4: [vdb] volume=' + VOLUME + '\r\n',
              'x' + line(9))
    def test_foreign_line(self, foreign):
        self.assertEqual(2, self.read(line(1), foreign, line(2), foreign))

    @ddt.data(30, -8, -4, -2)
    def test_unfinished_line(self, end):
        self.assertEqual(2, self.read(line(2), line(3)[:end]))

    def test_unfinished_line_hides_nothing(self):
        self.assertRaises(ValueError, self.read, line(2, 'BAD'), line(3)[:-2])

    def test_size_not_yet_seen(self):
        self.assertEqual(0, self.read(line(5), size=2 * GIB, floor=5))
        self.assertEqual(6, self.read(line(5), line(6, size=2 * GIB),
                                      size=2 * GIB, floor=5))
