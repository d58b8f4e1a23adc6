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


"""Cinder's own managers in the process of the tests.

They call each other here, where services would send messages. Objects arrive
as they would over the message bus: loaded anew.
"""

from cinder.backup import rpcapi as backup_rpcapi
from cinder.volume import rpcapi as volume_rpcapi
import fixtures
import os_brick.privileged
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils

from cinder_lustre.backup import manager as backup_manager
from cinder_lustre.volume import manager as volume_manager


class _VolumeAPI:
    """What cinder-volume is asked for."""

    def __init__(self, managers):
        self._managers = managers

    def _of(self, volume):
        return self._managers[volume.host]

    @staticmethod
    def _load(ctxt, obj):
        return obj.get_by_id(ctxt.elevated(), obj.id)

    def create_volume(self, ctxt, volume, request_spec, filter_properties,
                      allow_reschedule=True):
        self._of(volume).create_volume(
            ctxt, self._load(ctxt, volume), request_spec, filter_properties,
            allow_reschedule)

    def delete_volume(self, ctxt, volume, unmanage_only=False, cascade=False):
        self._of(volume).delete_volume(ctxt, self._load(ctxt, volume),
                                       unmanage_only, cascade)

    def get_capabilities(self, ctxt, backend_id, discover):
        return self._managers[backend_id].driver.get_volume_stats(discover)

    def secure_file_operations_enabled(self, ctxt, volume):
        return self._of(volume).secure_file_operations_enabled(
            ctxt, self._load(ctxt, volume))

    def initialize_connection(self, ctxt, volume, connector):
        return jsonutils.loads(jsonutils.dumps(
            self._of(volume).initialize_connection(
                ctxt, self._load(ctxt, volume), connector)))

    def terminate_connection(self, ctxt, volume, connector, force=False):
        self._of(volume).terminate_connection(ctxt, volume.id, connector,
                                              force)

    def remove_export(self, ctxt, volume, sync=False):
        self._of(volume).remove_export(ctxt, volume.id)

    def get_backup_device(self, ctxt, backup, volume):
        self._of(volume).get_backup_device(
            ctxt, self._load(ctxt, backup), want_objects=True,
            async_call=True)

    def update_migrated_volume(self, ctxt, volume, new_volume, status):
        self._of(new_volume).update_migrated_volume(
            ctxt, self._load(ctxt, volume), self._load(ctxt, new_volume),
            status)


class _BackupAPI:
    """What cinder-backup is asked for."""

    def __init__(self, managers):
        self._managers = managers

    def continue_backup(self, ctxt, backup, backup_device):
        self._managers[backup.host].continue_backup(ctxt, backup,
                                                    backup_device)


class Managers(fixtures.Fixture):
    """The managers of all backends and of the backup service of a test.

    :param fstypes: the option lustre_development_fstypes
    """

    def __init__(self, fstypes):
        self._fstypes = fstypes

    def _setUp(self):
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            group='backend_defaults',
            lustre_development_fstypes=self._fstypes)
        # Root needs no helper.
        os_brick.privileged.default.set_client_mode(False)
        self.addCleanup(os_brick.privileged.default.set_client_mode, True)
        self._volume_managers = {}
        self._backup_managers = {}
        for module, name, api in (
                (volume_rpcapi, 'VolumeAPI', _VolumeAPI(
                    self._volume_managers)),
                (backup_rpcapi, 'BackupAPI', _BackupAPI(
                    self._backup_managers))):
            self.useFixture(fixtures.MockPatchObject(
                module, name, return_value=api))

    def add_volume_manager(self, driver):
        """Make the manager of a driver that has been set up."""
        manager = volume_manager.VolumeManager(
            service_name=driver.configuration.config_group, host=driver.host)
        manager.driver = driver
        # What init_host does, beside setting up the driver.
        manager.stats.update(pools={}, allocated_capacity_gb=0)
        self._volume_managers[driver.host] = manager
        return manager

    def add_backup_manager(self, host):
        """Make the manager of the backup driver that is configured."""
        manager = backup_manager.BackupManager(host=host)
        manager.service(context=None).check_for_setup_error()
        manager.is_initialized = True
        self._backup_managers[host] = manager
        return manager
