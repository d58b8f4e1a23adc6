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

"""The names that the specification gives to the driver's tests."""

import inspect

import testtools

from cinder_lustre.tests.unit.volume.drivers import test_lustre

# In the order of the specification.
NAMES = (
    'test_local_patch',
    'test_mount_lustre',
    'test_mount_lustre_should_reraise_exception_on_failure',
    'test_get_mount_point_for_share',
    'test_get_available_capacity_with_df',
    'test_get_provisioned_capacity',
    'test_update_volume_stats_thin',
    'test_update_volume_stats_thick',
    'test_ensure_share_mounted',
    'test_ensure_shares_mounted_should_save_mounting_successfully',
    'test_ensure_shares_mounted_should_not_save_mounting_with_error',
    'test_find_share',
    'test_find_share_should_throw_error_if_there_is_no_enough_place',
    'test_create_thin_volume',
    'test_create_thick_fallocate_volume',
    'test_create_thick_dd_volume',
    'test_create_volume_should_ensure_lustre_mounted',
    'test_delete_volume',
    'test_refresh_mounts',
    'test_refresh_mounts_with_excp',
    'test_do_mount',
    'test_do_umount',
    'test_read_info_file',
    'test_extend_volume',
    'test_extend_volume_with_snapshot',
    'test_create_snapshot_online',
    'test_delete_snapshot_online',
    'test_copy_volume_from_snapshot',
    'test_create_volume_from_snapshot',
    'test_initialize_connection',
    'test_backup_volume',
    'test_copy_volume_to_image_raw_image',
    'test_copy_volume_to_image_qcow2_image',
    'test_migrate_volume_is_there',
    # What the specification's first name stands for.
    'test_local_path',
)


class SpecificationTestCase(testtools.TestCase):

    def test_names(self):
        names = vars(test_lustre.LustreDriverTestCase)
        self.assertEqual([], [
            name for name in NAMES if name not in names and
            # ddt makes several tests of one.
            not any(each.startswith(name + '_1') for each in names)])

    def test_signature(self):
        """The specification names one parameter."""
        self.assertEqual(
            ['self', 'mock_delete_if_exists'],
            list(inspect.signature(test_lustre.LustreDriverTestCase.
                                   test_delete_volume).parameters))
