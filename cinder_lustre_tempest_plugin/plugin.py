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


"""What Tempest asks of a plugin: its tests, its options, its clients."""

import os

from tempest import config
from tempest.test_discover import plugins

from cinder_lustre_tempest_plugin import config as lustre_config


class LustreTempestPlugin(plugins.TempestPlugin):

    def load_tests(self):
        """The directory of the tests, and the one to import them from."""
        package = os.path.dirname(os.path.abspath(__file__))
        return os.path.join(package, 'tests'), os.path.dirname(package)

    def register_opts(self, conf):
        config.register_opt_group(conf, lustre_config.lustre_group,
                                  lustre_config.LUSTRE_OPTIONS)

    def get_opt_lists(self):
        return [(lustre_config.lustre_group.name,
                 lustre_config.LUSTRE_OPTIONS)]

    def get_service_clients(self):
        return [{
            'name': 'lustre_volume_v3',
            'service_version': 'lustre_volume.v3',
            'module_path': 'cinder_lustre_tempest_plugin.services.'
                           'volume_client',
            'client_names': ['LustreVolumeClient'],
            **config.service_client_config('volume')}]
