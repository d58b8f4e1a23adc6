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

"""Prints what Cinder reads in cinder.conf, and imports what it names."""

import json

from cinder import objects
from oslo_utils import importutils

# What is imported next needs them.
objects.register_all()

from cinder.backup import manager as _  # noqa: E402,F401
from cinder.common import config  # noqa: E402
from cinder.volume import configuration  # noqa: E402
from cinder.volume import manager  # noqa: E402

CONF = config.CONF
CONF(['--config-file', '/etc/cinder/cinder.conf'], project='cinder')
found = {}
for backend in CONF.enabled_backends:
    values = configuration.Configuration(
        manager.volume_backend_opts, config_group=backend)
    driver = importutils.import_class(values.volume_driver)
    values.append_config_values(driver.get_driver_options())
    shared = CONF._groups[configuration.SHARED_CONF_GROUP]
    found[backend] = {name: repr(values.safe_get(name)) for name in
                      [*CONF._groups[backend]._opts, *shared._opts]}
for name in ('backup_driver', 'backup_manager', 'volume_manager'):
    found[name] = importutils.import_class(getattr(CONF, name)).__name__
print(json.dumps(found))
