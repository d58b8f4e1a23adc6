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

"""What every release has written is read, and what comes later refused."""

import ddt

from cinder_lustre import chain
from cinder_lustre import check
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests import release
from cinder_lustre.tests.unit import storage


@ddt.ddt
class ReleaseTestCase(storage.StorageTestCase):

    def unpack(self, name):
        release.unpack(name, self.root)
        return release.contents(name)

    def assert_contents(self, expected):
        for volume, content in expected.items():
            self.assertEqual(content['digest'],
                             release.digest(self.share.content(volume)))
            for snapshot, digest in content['snapshots'].items():
                self.assertEqual(digest, release.digest(
                    self.share.content(volume, snapshot)))

    def findings(self):
        return sorted((each['severity'], each['code'], each['volume'])
                      for each in check.check(self.root)['findings'])

    @ddt.data(*release.names())
    def test_it_is_read(self, name):
        expected = self.unpack(name)
        self.assertEqual(
            sorted(('warning', 'pending', volume) for volume, content
                   in expected.items() if content['pending']),
            self.findings())
        self.assert_contents(expected)
        for volume, content in expected.items():
            described = chain.describe(self.root, volume)
            self.assertEqual(sorted(content['snapshots']),
                             sorted(described['snapshots']))
        self.assertEqual([], self.findings())
        self.assert_contents(expected)

    @ddt.data(*release.names())
    def test_it_is_worked_with(self, name):
        expected = self.unpack(name)
        for volume, content in expected.items():
            for snapshot in content['snapshots']:
                chain.delete_snapshot(self.root, volume, snapshot)
            chain.create_snapshot(self.root, volume, release.THREE)
            content['snapshots'] = {release.THREE: content['digest']}
        self.assertEqual([], self.findings())
        self.assert_contents(expected)
        for volume in expected:
            chain.delete(self.root, volume)
        self.assertEqual([], self.share.files())

    @ddt.data(*release.names())
    def test_a_newer_one_is_refused(self, name):
        expected = self.unpack(name)
        for volume in expected:
            self.share.change_record(volume, lambda content: content.update(
                version=record.VERSION + 1))
            before = self.share.record(volume)
            for operation in (chain.describe, chain.delete):
                error = self.assertRaises(exception.RecordError, operation,
                                          self.root, volume)
                self.assertIn(
                    'has version %d, and this release knows version %d. '
                    'Upgrade cinder-lustre on this host.' % (
                        record.VERSION + 1, record.VERSION), str(error))
            self.assertEqual(before, self.share.record(volume))
        self.assertEqual([('error', 'record-newer', volume)
                          for volume in sorted(expected)], self.findings())
        self.assert_contents(expected)
