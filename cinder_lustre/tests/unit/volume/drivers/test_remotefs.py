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

"""Cinder's own tests of RemoteFS drivers, run against this one.

Those that look at mocked commands, files or probes, of which this driver has
none, are listed with its own test of the same promise.
"""

import re
from unittest import mock

from cinder.tests.unit.volume.drivers import test_remotefs
from cinder.volume import configuration

from cinder_lustre.tests.unit import test_chain
from cinder_lustre.tests.unit import test_chain_online
from cinder_lustre.tests.unit.volume.drivers import test_lustre
from cinder_lustre.volume.drivers import lustre

ONLINE_DELETE = (test_lustre.LustreDriverTestCase,
                 'test_delete_snapshot_online')
CREATE = (test_chain.SnapshotTestCase, 'test_create_and_delete')
MERGE = (test_chain.SnapshotTestCase, 'test_delete_in_every_order')
PROBING = (test_lustre.ProbingTestCase,
           'test_qcow2_volume_that_refers_to_a_file')
SAME_PROMISE = {
    'test_copy_volume_image': (test_chain.CopyTestCase, 'test_copy'),
    'test_create_cloned_volume': (test_chain.CopyTestCase, 'test_copy'),
    'test_create_cloned_volume_with_format': (
        test_lustre.CreateTestCase, 'test_clone'),
    'test_create_snapshot_invalid_volume': (
        test_lustre.RefusalTestCase, 'test_moving'),
    'test_create_snapshot_names': (
        test_lustre.SnapshotTestCase, 'test_unnamed'),
    'test_create_snapshot_volume_available': (
        test_chain.SnapshotTestCase, 'test_create'),
    'test_create_snapshot_volume_in_use': (
        test_lustre.LustreDriverTestCase, 'test_create_snapshot_online'),
    'test_delete_snapshot_base_format_recovery_base_not_exists': (
        test_chain_online.DeleteTestCase, 'test_merged_offline'),
    'test_delete_snapshot_base_format_recovery_inspect_none': CREATE,
    'test_delete_snapshot_base_format_recovery_inspect_qcow2': CREATE,
    'test_delete_snapshot_base_format_recovery_inspect_raw': CREATE,
    'test_delete_snapshot_in_use': ONLINE_DELETE,
    'test_delete_snapshot_in_use_stale_snapshot': (
        test_chain_online.DeleteTestCase, 'test_nothing_to_merge'),
    'test_delete_snapshot_when_active_file': MERGE,
    'test_delete_snapshot_with_one_upper_file': MERGE,
    'test_delete_stale_snapshot': (
        test_chain.SnapshotTestCase, 'test_delete_of_an_unknown_snapshot'),
    'test_do_create_snapshot': CREATE,
    'test_get_snapshot_backing_file': (
        test_chain.SnapshotTestCase, 'test_create'),
    'test_get_volume_snapshots': (
        test_chain.SnapshotTestCase, 'test_create'),
    'test_local_path_active_image': (
        test_lustre.LustreDriverTestCase, 'test_initialize_connection'),
    'test_qemu_img_info_valid_backing_file': PROBING,
    'test_qemu_img_info_invalid_backing_file': PROBING,
    'test_qemu_img_info_extended_backing_file': PROBING,
    'test_qemu_img_info_extended_backing_file_invalid': PROBING,
    'test_snapshots_exist': CREATE,
}


class LustreRemoteFsTestCase(test_remotefs.RemoteFsSnapDriverTestCase):

    def setUp(self):
        super().setUp()
        self._driver = lustre.LustreDriver(
            configuration=configuration.Configuration(None))
        self._driver._remotefsclient = mock.Mock()
        self._driver._execute = mock.Mock()
        self._driver._delete = mock.Mock()

    def test_same_promise(self):
        for case, name in SAME_PROMISE.values():
            self.assertTrue(any(each.startswith(name) for each in dir(case)),
                            (case, name))


for test in dir(LustreRemoteFsTestCase):
    # ddt appends a number and the data.
    if re.sub(r'_\d+(_.*)?$', '', test) in SAME_PROMISE:
        setattr(LustreRemoteFsTestCase, test, None)
# Only the class above is to be found here.
del test_remotefs
