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


"""Data that go into volumes on one path and come out on another."""

from tempest.lib import decorators

from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin.tests import base


class DataPathTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'snapshot', 'clone')

    @decorators.idempotent_id('48cc4f17-b9cc-4708-a44b-7dfdd53b5f65')
    def test_image_volume_snapshot_clone_image(self):
        """Data survive each copy, and the end of what it was made of."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        snapshot = self.create_snapshot(volume)
        middle = self.create_volume(snapshot_id=snapshot)
        self.delete_snapshot(snapshot)
        self.delete_volume(volume)
        clone = self.create_volume(source_volid=middle)
        self.delete_volume(middle)
        self.check_image(self.upload(clone), expected, 1)

    @decorators.idempotent_id('39356166-3f2c-4c50-8d78-e6dd34fe7f34')
    def test_larger_copies(self):
        """A clone, and a volume of a snapshot, can be larger than it."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        snapshot = self.create_snapshot(volume)
        self.check_volume(self.create_volume(2, snapshot_id=snapshot),
                          expected, 2)
        self.delete_snapshot(snapshot)
        self.check_volume(self.create_volume(2, source_volid=volume),
                          expected, 2)

    @decorators.idempotent_id('42c29a2b-13b7-49ed-9b64-f0aa24346071')
    def test_extend_with_snapshot_then_clone(self):
        """A snapshot keeps the size that its volume had."""
        self.skip_unless('volume_feature_enabled',
                         'extend_volume_with_snapshot')
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        snapshot = self.create_snapshot(volume)
        self.extend(volume, 2)
        clone = self.create_volume(2, source_volid=volume)
        self.check_volume(clone, expected, 2)
        self.check_volume(self.create_volume(snapshot_id=snapshot), expected)
        self.delete_snapshot(snapshot)
        self.check_volume(volume, expected, 2)

    @decorators.idempotent_id('9ae03575-bd51-4aca-a62b-4890bcf6f190')
    def test_image_in_qcow2_and_back(self):
        """A volume becomes an image of another format, and a volume again."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        image = self.upload(volume, 'qcow2')
        self.check_volume(self.create_volume(imageRef=image), expected)


class DataPathQcow2Test(DataPathTest):
    volume_format = 'qcow2'


class RevertTest(base.LustreTest):
    volume_min_microversion = '3.40'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('volume_feature_enabled', 'snapshot', 'backup')
        cls.skip_unless('lustre', 'revert')

    @decorators.idempotent_id('67fe204d-5e88-4891-bae8-787827b6106f')
    def test_revert_again_and_again(self):
        """Each snapshot is reverted to, the latest one first."""
        volume, snapshots, contents = self.create_history(2)
        for snapshot, expected in zip(reversed(snapshots),
                                      reversed(contents[:2])):
            for _ in range(2):
                self.revert(volume, snapshot)
            clone = self.create_volume(source_volid=volume)
            self.check_volume(clone, expected)
            self.delete_snapshot(snapshot)
        self.check_volume(volume, contents[0])


class RevertQcow2Test(RevertTest):
    volume_format = 'qcow2'


class ReimageTest(base.LustreTest):
    volume_min_microversion = '3.68'

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'reimage')

    @decorators.idempotent_id('c38aed29-be14-4d36-a871-530d6ccef331')
    def test_reimage(self):
        """New content replaces all of the old, and no copy of it."""
        old, new = self.new_content(longer=True), self.new_content()
        volume = self.create_volume_with(old)
        clone = self.create_volume(source_volid=volume)
        self.reimage(volume, self.create_image(new.stream()))
        self.check_volume(volume, new)
        self.check_volume(clone, old)


class ReimageQcow2Test(ReimageTest):
    volume_format = 'qcow2'


class EncryptedTest(base.LustreTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'encryption')
        cls.skip_unless('volume_feature_enabled', 'clone', 'backup')

    @classmethod
    def resource_setup(cls):
        super().resource_setup()
        cls.volume_type = cls.create_type(encrypted=True)

    @decorators.idempotent_id('b2796c6d-52ad-4b94-937d-aeeb54811e1c')
    def test_nothing_is_in_clear(self):
        """Copies are the same bytes, and none of them is in clear."""
        expected = self.new_content()
        volume = self.create_volume_with(expected)
        image = self.upload(volume)
        answer = self.images.show_image_file(image, chunked=True)
        try:
            head = answer.read(len(expected.data) + 4 * content.MIB)
        finally:
            answer.release_conn()
        self.assertEqual(b'LUKS\xba\xbe\0\1', head[:8])
        self.assertEqual(-1, head.find(expected.data[:content.MIB]))
        backup = self.create_backup(volume)
        for copy in (self.create_volume(source_volid=volume),
                     self.create_volume(imageRef=image),
                     # A new volume would have the default type.
                     self.restore(backup, volume_id=self.create_volume())):
            self.assertEqual(*(
                self.images.show_image(each)['os_hash_value']
                for each in (image, self.upload(copy))))
