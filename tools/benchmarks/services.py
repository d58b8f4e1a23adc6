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

"""Cinder's backup drivers, as the backup service calls them.

What is measured is one call of a driver, and the writing to the disk. All
else, as starting the driver, is done before.
"""

import os

from cinder.backup.drivers import posix
from cinder.common import config
from cinder import context
from cinder.db import migration
from cinder import objects
from cinder.objects import fields
from cinder import rpc
from cinder.tests.unit import utils as test_utils
from cinder import utils

from benchmarks import machine
from cinder_lustre.backup.drivers import lustre

CONF = config.CONF
DRIVERS = {'lustre': lustre.LustreBackupDriver,
           'posix': posix.PosixBackupDriver}


def configure(site, directory):
    """Configure this process, and those that it forks.

    :param site: where the backups lie
    :param directory: for the database and the mount
    """
    path = os.path.join(directory, 'cinder.conf')
    with open(path, 'w') as stream:
        stream.write('\n'.join((
            '[DEFAULT]', 'state_path = %s' % directory,
            'transport_url = fake:/',
            'backup_posix_path = %s/posix' % site.path,
            'lustre_backup_share = %s' % site.share,
            'lustre_backup_development_fstypes = %s'
            % ','.join(site.filesystem.fstypes), '[database]',
            'connection = sqlite:///%s/cinder.sqlite' % directory)))
    CONF([], project='cinder', default_config_files=[path])
    rpc.init(CONF)
    # The database is opened in each process anew.
    machine.in_child(migration.db_sync)


class Driver:
    """One of Cinder's drivers, with one way to compress."""

    def __init__(self, name, compression):
        self.name = name
        self.compression = compression

    def _start(self):
        CONF.set_override('backup_compression_algorithm', self.compression)
        self._context = context.get_admin_context()
        driver = DRIVERS[self.name](self._context)
        driver.check_for_setup_error()
        return driver

    def _create_volume(self, path):
        return test_utils.create_volume(
            self._context, size=os.path.getsize(path) >> 30)

    def back_up(self, path):
        """Back a volume up; the result is the backup's id."""
        driver = self._start()
        volume = self._create_volume(path)
        backup = test_utils.create_backup(self._context, volume.id,
                                          size=volume.size)
        # The function above gives all the same one.
        backup.container = None
        backup.save()
        with open(path, 'rb') as stream:
            seconds = machine.timed(os.path.dirname(path), driver.backup,
                                    backup, utils.tpool_wrap(stream))
        return machine.Measured(seconds, machine.allocated(os.path.join(
            driver.backup_path, backup.container)), backup.id)

    def restore(self, backup_id, path, is_new):
        """Restore a backup into an existing file."""
        driver = self._start()
        backup = objects.Backup.get_by_id(self._context, backup_id)
        backup.status = fields.BackupStatus.RESTORING
        backup.save()
        volume = self._create_volume(path)
        with open(path, 'r+b') as stream:
            seconds = machine.timed(
                os.path.dirname(path), driver.restore, backup, volume.id,
                utils.tpool_wrap(stream), is_new)
        return machine.Measured(seconds, machine.allocated(path))

    def delete(self, backup_id):
        driver = self._start()
        driver.delete_backup(
            objects.Backup.get_by_id(self._context, backup_id))
