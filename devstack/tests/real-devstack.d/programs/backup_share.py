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

"""Lets the backup driver check its share, and prints which one it is."""

import json

from cinder import context
from cinder import objects
from oslo_utils import importutils

# What is imported next needs them.
objects.register_all()

from cinder.backup import manager as _  # noqa: E402,F401
from cinder.common import config  # noqa: E402

config.CONF(['--config-file', '/etc/cinder/cinder.conf'], project='cinder')
driver = importutils.import_class(config.CONF.backup_driver)
driver(context.get_admin_context()).check_for_setup_error()
print(json.dumps({'share': config.CONF.lustre_backup_share}))
