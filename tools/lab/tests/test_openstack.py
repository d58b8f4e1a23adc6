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

"""What is found in the services' databases, and what is added."""

import collections
import pathlib
from urllib import parse

import fixtures
import testtools

from cinder_lab import openstack
from cinder_lab import rest
from cinder_lab import state


class Services:
    """Keystone and Cinder, as far as they are asked."""

    project = 'admin'

    def __init__(self):
        self.entries = collections.defaultdict(list)

    def keystone(self, method, path, body=None):
        parsed = parse.urlsplit(path)
        kind = parsed.path.strip('/')
        if method == 'GET':
            wanted = dict(parse.parse_qsl(parsed.query)).items()
            return {kind: [entry for entry in self.entries[kind]
                           if wanted <= entry.items()]}
        if method == 'POST':
            (name, entry), = body.items()
            entry['id'] = f'{kind}-{len(self.entries[kind])}'
            self.entries[kind].append(entry)
            return {name: entry}

    def cinder(self, method, path, body=None):
        if path.endswith('/encryption'):
            if method == 'POST':
                self.entries[path].append(body)
            return (self.entries[path] or [{}])[0]
        if method == 'GET':
            return {'volume_types': self.entries['types']}
        entry = body['volume_type'] | {'id': str(len(self.entries['types']))}
        self.entries['types'].append(entry)
        return {'volume_type': entry}


class CatalogTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.lab = state.Lab(top)
        self.lab.put('port_base', 18000)
        self.services = Services()
        self.useFixture(fixtures.MockPatchObject(
            rest, 'Client', lambda lab: self.services))

    def _counts(self):
        return {kind: len(found)
                for kind, found in self.services.entries.items()}

    def test_a_second_time_nothing_is_added(self):
        tenant = openstack.fill_catalog(self.lab)
        openstack.create_types(self.lab)
        counts = self._counts()
        self.assertEqual(tenant, openstack.fill_catalog(self.lab))
        openstack.create_types(self.lab)
        self.assertEqual(counts, self._counts())

    def test_cinders_own_volumes_have_an_owner_of_their_own(self):
        project, user = openstack.fill_catalog(self.lab)
        for kind, identifier in ('projects', project), ('users', user):
            self.assertEqual(['cinder-internal'], [
                entry['name'] for entry in self.services.entries[kind]
                if entry['id'] == identifier])

    def test_encryption_that_a_killed_start_left_out_is_added(self):
        openstack.create_types(self.lab)
        path, = (path for path in self.services.entries
                 if path.endswith('/encryption'))
        del self.services.entries[path]
        openstack.create_types(self.lab)
        self.assertEqual([{'encryption': openstack.ENCRYPTION}],
                         self.services.entries[path])
