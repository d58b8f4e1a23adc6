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


"""The Tempest plugin, as Tempest loads it, and what its tests rest on."""

import hashlib
import io
import json
import os
import subprocess
import sys

import ddt
import fixtures
import testtools

from cinder_lustre_tempest_plugin import config
from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin import guest

PACKAGE = 'cinder_lustre_tempest_plugin'
BINARIES = os.path.join(sys.prefix, 'bin')


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True,
                            **options)
    if result.returncode:
        raise AssertionError(result.stdout + result.stderr)
    return result.stdout


class PluginTestCase(testtools.TestCase):

    def test_each_test_has_an_id_of_its_own(self):
        # It looks for the package in the working directory.
        run(os.path.join(BINARIES, 'check-uuid'), '--package', PACKAGE,
            cwd=os.path.dirname(os.path.dirname(content.__file__)))

    def test_tempest_finds_the_tests(self):
        directory = self.useFixture(fixtures.TempDir()).path
        run(os.path.join(BINARIES, 'tempest'), 'init', cwd=directory)
        tests = run(os.path.join(BINARIES, 'tempest'), 'run', '--list-tests',
                    '--regex', 'lustre', cwd=directory)
        for name in ('api', 'scenario', 'performance'):
            self.assertRegex(tests, rf'(?m)^{PACKAGE}\.tests\.{name}\.')

    def test_options_are_in_tempests_sample(self):
        sample = run(os.path.join(BINARIES, 'oslo-config-generator'),
                     '--namespace', 'tempest.config', cwd='/')
        for option in config.LUSTRE_OPTIONS:
            self.assertRegex(sample, f'(?m)^#{option.name} =')

    def test_what_a_cloud_may_lack_is_off(self):
        for name in ('manage', 'revert', 'reimage', 'migration', 'encryption',
                     'online_snapshots', 'guest_console', 'performance'):
            option, = (each for each in config.LUSTRE_OPTIONS
                       if each.name == name)
            self.assertIs(False, option.default)


@ddt.ddt
class ContentTestCase(testtools.TestCase):

    def test_digest_is_that_of_the_whole_volume(self):
        written = content.Content(1)
        expected = hashlib.sha256(written.data)
        expected.update(bytes(content.GIB - content.MIB))
        self.assertEqual(expected.hexdigest(), written.digest('sha256', 1))

    def test_changed_content(self):
        first = content.Content(8)
        other = first.changed(1)
        part = 2 * content.MIB
        self.assertEqual(3 * part, len(other.data))
        self.assertEqual(
            [True, False, True],
            [first.data[start:start + part] == other.data[start:start + part]
             for start in range(0, 3 * part, part)])

    def test_digest_of_a_stream(self):
        data = os.urandom(5 * content.MIB + 1)
        self.assertEqual(
            (hashlib.sha256(data).hexdigest(), len(data)),
            content.digest_of(io.BytesIO(data), 'sha256'))

    def _info(self, data):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        with open(path, 'wb') as stream:
            stream.write(data)
        return path, json.loads(run('qemu-img', 'info', '-f', 'qcow2',
                                    '--output=json', path))

    @ddt.data(content.GIB, 2 * content.GIB, 600 * content.MIB)
    def test_image_is_good(self, size):
        path, info = self._info(content.qcow2(size))
        self.assertEqual(size, info['virtual-size'])
        run('qemu-img', 'check', '-f', 'qcow2', path)

    def test_image_names_its_backing_file(self):
        _path, info = self._info(content.qcow2(content.GIB, '/dev/null'))
        self.assertEqual('/dev/null', info['backing-filename'])

    def test_image_names_its_data_file(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'data')
        open(path, 'wb').close()
        _path, info = self._info(content.qcow2(content.GIB, data_file=path))
        self.assertEqual(path, info['format-specific']['data']['data-file'])


VOLUME = '5d7c1c1e-1c36-4c39-8f8e-bd1b8d1f2ab4'


@ddt.ddt
class GuestTestCase(testtools.TestCase):

    def _line(self, generation, outcome='OK', size=content.GIB,
              volume=VOLUME):
        return (f'LAB vdb volume={volume[:20]} size={size} '
                f'generation={generation} sum=0a owner=12 {outcome}\r\n')

    def _generation(self, *lines, size=content.GIB, floor=0):
        return guest.generation('LAB guest 12 is up\r\n' + ''.join(lines),
                                VOLUME, size, floor)

    def test_nothing_read_yet(self):
        self.assertEqual(0, self._generation())

    def test_last_generation(self):
        # A guest that does not own the volume reads one several times.
        self.assertEqual(3, self._generation(
            self._line(0, 'NEW'), self._line(2), self._line(3),
            self._line(3)))

    @ddt.data(30, -8, -4, -2)
    def test_unfinished_line(self, end):
        self.assertEqual(2, self._generation(self._line(2),
                                             self._line(3)[:end]))

    def test_unfinished_line_hides_nothing(self):
        self.assertRaises(guest.DataLoss, self._generation,
                          self._line(2, 'BAD'), self._line(3)[:-2])

    def test_other_size(self):
        larger = 2 * content.GIB
        self.assertEqual(0, self._generation(self._line(5), size=larger))
        self.assertEqual(6, self._generation(
            self._line(5), self._line(6, size=larger), size=larger))

    def test_foreign_lines(self):
        other = 'another-volume-of-the-server'
        for foreign in (self._line(9, volume=other),
                        self._line(1, 'BAD', volume=other),
                        f'[    4.5] virtio_blk: [vdb] volume={VOLUME}\r\n',
                        'x' + self._line(9)):
            self.assertEqual(2, self._generation(
                self._line(1), foreign, self._line(2), foreign))

    def test_data_loss(self):
        for lines in ([self._line(3, 'BAD')], [self._line(3, 'ERROR')],
                      [f'LAB vdb volume={VOLUME[:20]} cannot be written '
                       f'ERROR\r\n', self._line(3)],
                      [self._line(3), self._line(2)],
                      [self._line(3), self._line(0, 'NEW')]):
            self.assertRaises(guest.DataLoss, self._generation, *lines)

    def test_what_was_there_before_the_start(self):
        self.assertEqual(5, self._generation(self._line(4), self._line(5),
                                             floor=4))
        for line in self._line(3), self._line(0, 'NEW'), self._line(4, 'NEW'):
            self.assertRaises(guest.DataLoss, self._generation, line,
                              self._line(9), floor=4)

    def _stream(self, header):
        return io.BytesIO(bytes(guest.HEADER) + header.ljust(
            guest.AREA, b'\0') + bytes(guest.AREA) + b'x' * guest.AREA)

    def test_generation_in_an_image(self):
        found = hashlib.sha256(b'x' * guest.AREA).hexdigest()
        header = f'LUSTRELAB 7 1 {found} 12\n'.encode()
        self.assertEqual(7, guest.generation_in(self._stream(header)))
        for wrong in header.replace(b' 1 ', b' 0 '), b'', b'LUSTRE':
            self.assertRaises(guest.DataLoss, guest.generation_in,
                              self._stream(wrong))
        self.assertRaises(guest.DataLoss, guest.generation_in,
                          io.BytesIO(bytes(guest.HEADER - 1)))
