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

"""Cinder's own tests of the chunked backup drivers, run against this one.

Those that give it a mocked volume, or look at mocked steps that this driver
does not take, are listed with its own test of the same promise.
"""

from cinder import exception
from cinder.tests.unit.backup import test_chunkeddriver

from cinder_lustre.tests.unit.backup.drivers import test_backup_posix
from cinder_lustre.tests.unit.backup.drivers import test_lustre

CHAIN = (test_lustre.LustreBackupDriverTestCase,
         'test_incremental_of_another_driver')
SAME_PROMISE = {
    'test_backup': (test_lustre.LustreBackupDriverTestCase,
                    'test_checksums_of_all_objects'),
    # The container has the backup's id.
    'test_create_container_default': (
        test_backup_posix.LustrePosixTestCase,
        'test_update_container_na_container_passed'),
    'test_delete_backup': (test_lustre.LustreBackupDriverTestCase,
                           'test_delete_backup'),
    'test_generate_object_names': (
        test_backup_posix.LustrePosixTestCase, 'test_get_container_entries'),
    'test_restore': CHAIN,
    'test_restore_chain_existing_volume_is_never_new': CHAIN,
    'test_restore_chain_treats_only_base_as_new': CHAIN,
    'test_restore_chain_zeroes_data_to_zero_region': CHAIN,
}


class LustreChunkedTestCase(test_backup_posix.LustreBackupDriverMixin,
                            test_chunkeddriver.ChunkedDriverTestCase):

    def setUp(self):
        super().setUp()
        concrete = self.driver
        self.driver = self.make_driver()
        self.driver.compressor = None
        # What Cinder's tests look for in names and metadata.
        for name in ('_generate_object_name_prefix', 'get_extra_metadata'):
            setattr(self.driver, name, getattr(concrete, name))

    def test_backup_invalid_size(self):
        """The service does not start with it."""
        self.driver.sha_block_size_bytes = 999
        error = self.assertRaises(exception.InvalidConfigurationValue,
                                  self.driver.check_for_setup_error)
        self.assertIn('backup_sha_block_size_bytes', str(error))

    def test_same_promise(self):
        for case, name in SAME_PROMISE.values():
            self.assertTrue(any(each.startswith(name) for each in dir(case)),
                            (case, name))


for test in SAME_PROMISE:
    setattr(LustreChunkedTestCase, test, None)
