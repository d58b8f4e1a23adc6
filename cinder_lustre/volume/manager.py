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

"""The manager of cinder-volume, which can connect volumes on Lustre."""

from cinder.volume import configuration
from cinder.volume import manager
from oslo_config import cfg

from cinder_lustre import brick
from cinder_lustre import opts

CONF = cfg.CONF
CONF.register_opts(opts.mount_opts, group=configuration.SHARED_CONF_GROUP)


class VolumeManager(manager.VolumeManager):
    """Cinder's own, plus the connector."""

    def __init__(self, *args, **kwargs):
        brick.register(copies_contents=True,
                       **opts.connector_settings(CONF.backend_defaults))
        super().__init__(*args, **kwargs)
