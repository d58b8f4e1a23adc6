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

"""Sets the volume driver up as cinder-volume does; prints its statistics."""

import json

from cinder import context
from cinder import db
from cinder import objects
from oslo_utils import importutils

# What is imported next needs them.
objects.register_all()

from cinder.common import config  # noqa: E402
from cinder.volume import configuration  # noqa: E402
from cinder.volume import manager  # noqa: E402

config.CONF(['--config-file', '/etc/cinder/cinder.conf'], project='cinder')
backend = config.CONF.enabled_backends[0]
values = configuration.Configuration(
    manager.volume_backend_opts, config_group=backend)
driver = importutils.import_object(values.volume_driver, configuration=values,
                                   db=db, host='devstack@' + backend)
driver.do_setup(context.get_admin_context())
driver.check_for_setup_error()
print(json.dumps(driver.get_volume_stats(refresh=True)))
