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

"""What the tests of the Nova driver have in common."""

import os
from unittest import mock

import fixtures
import nova.conf
from os_brick.privileged import rootwrap
from oslo_config import fixture as config_fixture
import testtools

from cinder_lustre.brick import mount
from cinder_lustre import nova as lustre_nova
from cinder_lustre.nova import volume

SHARE = '10.0.2.15@tcp:/testfs/cinder'
IDENTITY = 'lustre:/testfs/cinder'
# The MD5 of the identity, which paths of volumes depend on.
DIRECTORY = 'b2f4af4364f870210b08a45aef4dface'
VOLUME_ID = '5c4b6c94-bf23-4d22-a0ee-7ac71c1ae9dd'
NAME = 'volume-' + VOLUME_ID


class NovaTestCase(testtools.TestCase):
    """A base where no share is mounted, and a mount that never happens."""

    def setUp(self):
        super().setUp()
        self.base = os.path.realpath(
            self.useFixture(fixtures.TempDir()).path)
        self.path = os.path.join(self.base, DIRECTORY)
        conf = nova.conf.CONF
        lustre_nova.register()
        conf([], project='nova', default_config_files=[])
        self.conf = self.useFixture(config_fixture.Config(conf))
        self.set_options(lustre_mount_point_base=self.base)
        self.mounts = mount.read_mounts()
        self.useFixture(fixtures.MockPatchObject(
            mount, 'read_mounts', lambda: self.mounts))
        # Nothing here may get root's rights.
        self.execute = self.useFixture(fixtures.MockPatchObject(
            rootwrap, 'execute_root', mock.Mock(side_effect=self.mount))).mock
        self.host = mock.Mock()
        self.host.find_secret.return_value = None
        self.instance = mock.Mock(uuid='5d8a05ac-9f8c-43a5-a2c1-6d3ff2d4f9e8')

    def set_options(self, **kwargs):
        self.conf.config(group='libvirt', **kwargs)

    def mount(self, *command, **kwargs):
        """What mount(8) brings about."""
        known = {each.id for each in self.mounts}
        options = command[4].split(',')
        self.mounts = self.mounts + [mount.Mount(
            max(known) + 1, self._parent(), '/', command[-1], ('rw',),
            command[2], command[-2],
            ('rw', 'flock') if 'flock' in options else ('rw',))]
        return '', ''

    def _parent(self):
        directory = self.base
        while not mount.mounts_on(directory):
            directory = os.path.dirname(directory)
        return mount.mounts_on(directory)[-1].id

    def make_driver(self):
        return volume.LibvirtLustreVolumeDriver(self.host)


def connection(**data):
    """What Cinder's driver says of a volume."""
    values = {'export': SHARE, 'name': NAME, 'format': 'raw',
              'options': None, 'discard': True}
    values.update(data)
    return {'driver_volume_type': 'lustre', 'serial': VOLUME_ID,
            'mount_point_base': '/var/lib/cinder/mnt', 'data': values}
