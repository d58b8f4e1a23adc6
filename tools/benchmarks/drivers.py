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

"""The volume drivers on a directory, as the volume service calls them.

The directory stands for a share that is mounted: nothing is mounted, and all
else is as in the service, but without its manager and its queue.
"""

import json
import logging
import os
import shutil
import uuid

from cinder.common import config
from cinder import context
from cinder import coordination
from cinder.db import api as db
from cinder.db import migration
from cinder.image import image_utils
from cinder.objects import fields
from cinder import privsep
from cinder import rpc
from cinder.tests.unit import utils as test_utils
from cinder.volume import configuration
from cinder.volume import driver as volume_driver
from cinder.volume.drivers import nfs
from cinder.volume.drivers import remotefs
from oslo_utils import units
import sqlalchemy

from benchmarks import machine
from cinder_lustre import record
from cinder_lustre.volume.drivers import lustre

CONF = config.CONF
#: What a volume is when it is new.
LAYOUTS = ('raw', 'qcow2', 'thick')
_NFS_SHARE = '127.0.0.1:/bench'
_LUSTRE_SHARE = '127.0.0.1@tcp:/bench'


def configure(directory):
    """Configure this process, with a database of its own.

    :param directory: for the database and for images
    """
    path = os.path.join(directory, 'cinder.conf')
    with open(path, 'w') as stream:
        stream.write('\n'.join((
            '[DEFAULT]', 'state_path = %s' % directory,
            'image_conversion_dir = %s' % directory,
            'image_compress_on_upload = false',
            'transport_url = fake:/', '[database]',
            # Many threads wait for each other.
            'connection = sqlite:///%s/cinder.sqlite?timeout=600' % directory,
            'sqlite_synchronous = false')))
    CONF([], project='cinder', default_config_files=[path])
    rpc.init(CONF)
    machine.in_child(migration.db_sync)
    _let_threads_wait()
    # Root needs no helper, and the daemon would only cost time.
    privsep.sys_admin_pctxt.set_client_mode(False)
    # The NFS driver warns of each file that it makes, and ours of no Lustre.
    for name in ('cinder', 'cinder_lustre'):
        logging.getLogger(name).setLevel(logging.ERROR)
    coordination.COORDINATOR.start()


def _let_threads_wait():
    """Let SQLite's transactions begin as writers, which wait in a queue.

    One that begins as a reader fails when another one writes meanwhile.
    """
    engine = getattr(db, 'IMPL', db).get_engine()

    @sqlalchemy.event.listens_for(engine, 'before_cursor_execute',
                                  retval=True)
    def begin(connection, cursor, statement, parameters, ctxt, many):
        if statement == 'BEGIN':
            statement = 'BEGIN IMMEDIATE'
        return statement, parameters


class _Lustre(lustre.LustreDriver):

    def _ensure_share_mounted(self, lustre_share):
        """It is there."""

    def _get_mount_point_for_share(self, path):
        return os.path.join(self.base, 'share')


class _Nfs(nfs.NfsDriver):

    def do_setup(self, ctxt):
        # It would look for mount.nfs.
        super(nfs.NfsDriver, self).do_setup(ctxt)
        self.set_nas_security_options(False)

    def _load_shares_config(self, share_file=None):
        self.shares = {_NFS_SHARE: None}

    def _ensure_share_mounted(self, nfs_share, mnt_flags=None):
        """It is there."""

    def _get_mount_point_for_share(self, nfs_share):
        return os.path.join(self.base, 'share')


def _lustre_options(base, layout):
    return {'lustre_shares': [_LUSTRE_SHARE], 'lustre_mount_point_base': base,
            'lustre_qcow2_volumes': layout == 'qcow2',
            'lustre_sparsed_volumes': layout != 'thick'}


def _nfs_options(base, layout):
    return {'nfs_mount_point_base': base, 'nfs_snapshot_support': True,
            'nfs_qcow2_volumes': layout == 'qcow2',
            'nfs_sparsed_volumes': layout != 'thick',
            'nas_secure_file_operations': 'false',
            'nas_secure_file_permissions': 'false'}


DRIVERS = {'lustre': (_Lustre, _lustre_options), 'nfs': (_Nfs, _nfs_options)}


class Images:
    """An image service with one image, in a file."""

    temp_images = None

    def __init__(self, path, disk_format):
        self.path = path
        self.meta = {'id': str(uuid.uuid4()), 'disk_format': disk_format,
                     'container_format': 'bare', 'properties': {}}

    def fetched(self):
        """Within this, drivers find the image as the manager downloads it.

        :returns: a context that gives the path of its file
        """
        return image_utils.TemporaryImages.fetch(
            self, context.get_admin_context(), self.meta['id'])

    def show(self, ctxt, image_id):
        return dict(self.meta, size=os.path.getsize(self.path))

    def download(self, ctxt, image_id, data):
        with open(self.path, 'rb') as stream:
            shutil.copyfileobj(stream, data, units.Mi)

    def update(self, ctxt, image_id, image_meta, data, **kwargs):
        with open(self.path, 'wb') as stream:
            shutil.copyfileobj(data, stream, units.Mi)


class Driver:
    """One of the drivers, with a share of its own.

    :param directory: where the share is made
    """

    def __init__(self, name, directory):
        self.name = name
        self.host = '%s@%s' % (uuid.uuid4(), name)
        self.context = context.get_admin_context()
        self._type = test_utils.create_volume_type(self.context,
                                                   name=self.host)
        base = os.path.join(directory, self.host)
        self.path = os.path.join(base, 'share')
        os.makedirs(self.path)
        self._drivers = {layout: self._start(layout, base)
                         for layout in LAYOUTS}

    def _start(self, layout, base):
        cls, options = DRIVERS[self.name]
        group = '%s-%s' % (self.host, layout)
        conf = configuration.Configuration(volume_driver.volume_opts,
                                           config_group=group)
        conf.append_config_values(remotefs.nas_opts)
        conf.append_config_values(cls.get_driver_options())
        for name, value in options(base, layout).items():
            CONF.set_override(name, value, group=group)
        driver = cls(configuration=conf, host=self.host)
        driver.do_setup(self.context)
        driver.check_for_setup_error()
        # With the first ones, it looks for what a killed service has left.
        driver.get_volume_stats(refresh=True)
        return driver

    def _of(self, volume):
        return self._drivers[volume.metadata['layout']]

    def new_volume(self, size, layout='raw'):
        """A volume in the database alone."""
        return test_utils.create_volume(
            self.context, size=size, host=self.host,
            volume_type_id=self._type.id, metadata={'layout': layout})

    def create(self, volume):
        self._made(volume, self._of(volume).create_volume(volume))

    @staticmethod
    def _made(volume, update):
        volume.update(update or {})
        volume.save()

    def delete(self, volume):
        self._of(volume).delete_volume(volume)

    def connect(self, volume):
        self._of(volume).initialize_connection(volume, {})

    def extend(self, volume, size):
        self._of(volume).extend_volume(volume, size)
        volume.size = size

    def new_snapshot(self, volume):
        """A snapshot in the database alone."""
        return test_utils.create_snapshot(self.context, volume.id)

    def create_snapshot(self, snapshot):
        self._of(snapshot.volume).create_snapshot(snapshot)
        # The manager does that.
        snapshot.status = fields.SnapshotStatus.AVAILABLE
        snapshot.save()

    def delete_snapshot(self, snapshot):
        self._of(snapshot.volume).delete_snapshot(snapshot)
        snapshot.destroy()

    def clone(self, volume, source):
        self._made(volume, self._of(volume).create_cloned_volume(volume,
                                                                 source))

    def create_from_snapshot(self, volume, snapshot):
        self._made(volume, self._of(volume).create_volume_from_snapshot(
            volume, snapshot))

    def create_from_image(self, volume, images):
        """As the manager does with an image that was downloaded."""
        self.create(volume)
        self._of(volume).copy_image_to_volume(
            self.context, volume, images, images.meta['id'])

    def upload(self, volume, images):
        self._of(volume).copy_volume_to_image(self.context, volume, images,
                                              images.meta)

    def get_stats(self):
        self._drivers['raw'].get_volume_stats(refresh=True)

    def file_of(self, volume):
        """The first file of a volume."""
        return os.path.join(self.path, 'volume-' + volume.id)

    def add_volumes(self, number):
        """Let there be many volumes, which are made by the way.

        Their files are small: the NFS driver adds up sizes, and has a limit.
        """
        rows = []
        example = self.new_volume(1)
        row = db.volume_get(self.context, example.id)
        for _ in range(number):
            volume = str(uuid.uuid4())
            with open(os.path.join(self.path, 'volume-' + volume),
                      'wb') as stream:
                stream.truncate(units.Mi)
            if self.name == 'lustre':
                self._add_record(volume)
            rows.append({'id': volume, 'size': 1, 'host': self.host,
                         'status': 'available', 'use_quota': True,
                         'volume_type_id': self._type.id})
        with getattr(db, 'IMPL', db).get_engine().begin() as connection:
            connection.execute(sqlalchemy.insert(type(row)), rows)

    def _add_record(self, volume):
        directory = os.path.join(self.path, record.DIRECTORY)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        name = 'volume-' + volume
        with open(os.path.join(directory, volume + '.json'), 'w') as stream:
            json.dump({
                'version': record.VERSION, 'volume': volume, 'active': name,
                'snapshots': {}, 'intent': None, 'layers': {name: {
                    'format': 'raw', 'size': units.Mi, 'parent': None,
                    'children': [], 'thick': False}}}, stream)

    def remove(self):
        """Remove the share with all that it holds."""
        shutil.rmtree(os.path.dirname(self.path))
