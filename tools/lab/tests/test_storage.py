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

"""Shares that the user names."""

import pathlib

import ddt
import fixtures
import testtools

from cinder_lab import report
from cinder_lab import state
from cinder_lab import storage


@ddt.ddt
class SplitTestCase(testtools.TestCase):

    @ddt.unpack
    @ddt.data(('10.0.0.1@tcp:/fs', ['10.0.0.1@tcp:/fs']),
              ('10.0.0.1@tcp:/fs/a/', ['10.0.0.1@tcp:/fs/a']),
              ('h@tcp:/a,h@tcp:/b', ['h@tcp:/a', 'h@tcp:/b']),
              ('a@tcp,b@o2ib:c@tcp:/f/d,e@tcp:/g',
               ['a@tcp,b@o2ib:c@tcp:/f/d', 'e@tcp:/g']))
    def test_commas_stand_between_nids_too(self, value, shares):
        self.assertEqual(shares, storage.split(value))

    @ddt.data('/mnt/lustre', '10.0.0.1@tcp', '10.0.0.1@tcp:/', 'a:/b,', ':/a')
    def test_what_is_no_share(self, value):
        error = self.assertRaises(report.LabError, storage.split, value)
        self.assertIn(value, str(error))

    def test_names_of_the_stand_in_are_as_short_as_lustres(self):
        for name in storage.fsnames(65000):
            self.assertLessEqual(len(name), 8)


@ddt.ddt
class SharesTestCase(testtools.TestCase):

    @ddt.unpack
    @ddt.data(('h@tcp:/a', 'h@tcp:/a h@tcp:/a h@tcp:/a'),
              ('h@tcp:/a,h@tcp:/b', 'h@tcp:/a h@tcp:/b h@tcp:/a'),
              ('h@tcp:/a,h@tcp:/b,h@tcp:/c/d',
               'h@tcp:/a h@tcp:/b h@tcp:/c/d'))
    def test_backups_have_a_directory_of_their_own(self, given, used):
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        lab = state.Lab(top)
        lab.put('port_base', 18000)
        lab.put('lab_share', given)
        self.useFixture(fixtures.EnvironmentVariable('LAB_SHARE'))
        shares = storage.Shares(lab)
        self.assertEqual(
            [(share, f'cinder-lab-18000-{name}') for share, name
             in zip(used.split(), ('lustre1', 'lustre2', 'backup'))],
            shares._directories())
        self.assertEqual(
            f'{used.split()[-1]}/cinder-lab-18000-backup', shares.backup)
