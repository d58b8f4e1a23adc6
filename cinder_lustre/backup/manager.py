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

"""The manager of cinder-backup, which can connect volumes on Lustre."""

from cinder.backup import manager
from cinder.volume import configuration
from oslo_config import cfg
from oslo_service import loopingcall

from cinder_lustre import brick
from cinder_lustre import opts

CONF = cfg.CONF
CONF.register_opts(opts.mount_opts, group=configuration.SHARED_CONF_GROUP)


class BackupManager(manager.BackupManager):
    """Cinder's own, plus the connector.

    It also tells the scheduler at once that the driver is ready. Cinder's
    does so when it starts, but that may be before the driver has looked at
    its share, and then again after a minute, during which no backup is made.
    """

    def __init__(self, *args, **kwargs):
        brick.register(**opts.connector_settings(CONF.backend_defaults))
        super().__init__(*args, **kwargs)

    def _setup_backup_driver(self, ctxt):
        try:
            super()._setup_backup_driver(ctxt)
        except loopingcall.LoopingCallDone:
            self.publish_service_capabilities(ctxt)
            raise
