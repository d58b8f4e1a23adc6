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


"""Calls of the volume API for which Tempest has no client."""

from urllib import parse

from oslo_serialization import jsonutils as json

from tempest.lib.common import rest_client
from tempest.lib.services.volume import base_client


class LustreVolumeClient(base_client.BaseClient):

    def revert_to_snapshot(self, volume_id, snapshot_id):
        """Give a volume the content of its latest snapshot (API 3.40)."""
        return self._act(volume_id, 'revert', {'snapshot_id': snapshot_id})

    def reimage(self, volume_id, image_id):
        """Replace the content of a volume by an image (API 3.68)."""
        return self._act(volume_id, 'os-reimage', {'image_id': image_id})

    def list_manageable(self, kind, host):
        """What of a backend could be managed (API 3.8).

        :param kind: volumes or snapshots
        """
        resp, body = self.get('manageable_%s/detail?%s' % (
            kind, parse.urlencode({'host': host})))
        self.expected_success(200, resp.status)
        return rest_client.ResponseBody(resp, json.loads(body))

    def _act(self, volume_id, action, arguments):
        resp, body = self.post('volumes/%s/action' % volume_id,
                               json.dumps({action: arguments}))
        self.expected_success(202, resp.status)
        return rest_client.ResponseBody(resp, body)
