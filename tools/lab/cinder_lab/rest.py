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

"""A client of the lab's APIs, for its own start and status."""

import json
import urllib.error
import urllib.request

from cinder_lab import report

# No proxy: everything is on loopback.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url):
    """A probe: an HTTP server gives any answer but an error of its own."""
    def probe():
        try:
            OPENER.open(url, timeout=30).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False
        return True
    return probe


class Client:
    """The lab's administrator."""

    def __init__(self, lab):
        self._lab = lab
        self._token = None
        self.project = None

    def login(self):
        body = {'auth': {
            'identity': {'methods': ['password'], 'password': {'user': {
                'name': 'admin', 'domain': {'id': 'default'},
                'password': self._lab.secret('admin')}}},
            'scope': {'project': {'name': 'admin',
                                  'domain': {'id': 'default'}}}}}
        headers, answer = self._send(
            'POST', self._lab.url('keystone') + '/v3/auth/tokens', body)
        self._token = headers['X-Subject-Token']
        self.project = answer['token']['project']['id']

    def keystone(self, method, path, body=None):
        return self._call(method, self._lab.url('keystone') + '/v3' + path,
                          body)

    def cinder(self, method, path, body=None):
        return self._call(
            method, f'{self._lab.url("cinder")}/v3/{self.project}{path}',
            body)

    def nova(self, method, path, body=None):
        return self._call(method, self._lab.url('nova') + '/v2.1' + path,
                          body)

    def neutron(self, method, path, body=None):
        return self._call(method, self._lab.url('neutron') + '/v2.0' + path,
                          body)

    def glance(self, method, path, body=None):
        return self._call(method, self._lab.url('glance') + '/v2' + path,
                          body)

    def _call(self, method, url, body):
        if not self._token:
            self.login()
            url = url.replace('/None/', f'/{self.project}/')
        return self._send(method, url, body)[1]

    def _send(self, method, url, body):
        raw = isinstance(body, bytes)
        headers = {'Content-Type': 'application/octet-stream' if raw
                   else 'application/json',
                   'OpenStack-API-Version': 'volume 3.70'}
        if self._token:
            headers['X-Auth-Token'] = self._token
        request = urllib.request.Request(
            url, method=method, headers=headers,
            data=body if raw or body is None
            else json.dumps(body).encode())
        try:
            with OPENER.open(request, timeout=180) as answer:
                return answer.headers, json.loads(answer.read() or 'null')
        except urllib.error.HTTPError as error:
            raise report.LabError(
                f'{method} {url}: {error.code} '
                f'{error.read(500).decode(errors="replace")}') from None
        except OSError as error:
            raise report.LabError(f'{method} {url}: {error}') from None
