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

"""Prints what Tempest reads in tempest.conf."""

import json
import os

# Its log file is a relative path.
os.chdir('/opt/stack/logs')
os.environ['TEMPEST_CONFIG_DIR'] = '/opt/stack/tempest/etc'

from tempest import config  # noqa: E402

# The first access reads the file.
config.CONF.volume.storage_protocol
print(json.dumps({
    group: {name: repr(getattr(getattr(config._CONF, group), name))
            for name in options._opts}
    for group, options in config._CONF._groups.items()}))
