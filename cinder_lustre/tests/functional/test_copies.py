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

"""Volumes made of others: from snapshots, and clones."""

import itertools
import os
import shutil
import signal
import subprocess
import sys

from cinder import exception
import ddt
from oslo_utils import units

from cinder_lustre.tests.functional import base
from cinder_lustre.tests.functional import site as sites

FORMATS = ('raw', 'qcow2')
# What a thin copy of a little data may take.
LITTLE = 16 * units.Mi


@ddt.ddt
class CopiesTestCase(base.FunctionalTestCase):

    @ddt.idata(itertools.product(FORMATS, FORMATS, ('thin', 'thick')))
    @ddt.unpack
    def test_clone(self, source_fmt, fmt, provisioning):
        source = self.create_volume(fmt=source_fmt)
        content = self.write(source)
        clone = self.clone(source, fmt=fmt, provisioning=provisioning)
        self.assertEqual(fmt, self.load(clone).admin_metadata['format'])
        self.assert_content(content, clone)
        if provisioning == 'thin':
            self.assertLess(self.allocated(clone), LITTLE)
        else:
            self.assertGreaterEqual(self.allocated(clone), units.Gi)

    @ddt.idata(itertools.product(FORMATS, FORMATS))
    @ddt.unpack
    def test_larger_volume_from_snapshot(self, source_fmt, fmt):
        source = self.create_volume(fmt=source_fmt)
        content = self.write(source)
        snapshot = self.create_snapshot(source)
        self.write(source, seed=1, over=content)
        volume = self.volume_from_snapshot(snapshot, 2, fmt=fmt)
        self.assertEqual(fmt, self.load(volume).admin_metadata['format'])
        self.assert_content(content.grown(2 * units.Gi), volume)
        self.assertLess(self.allocated(volume), LITTLE)

    def test_clone_of_a_thick_volume_is_sparse(self):
        source = self.create_volume(provisioning='thick')
        content = self.write(source)
        clone = self.clone(source, 2)
        self.assert_content(content.grown(2 * units.Gi), clone)
        self.assertLess(self.allocated(clone), LITTLE)

    @ddt.idata(FORMATS)
    def test_clone_of_a_volume_with_snapshots(self, fmt):
        source = self.create_volume(fmt=fmt)
        content = self.write(source)
        self.create_snapshot(source)
        content = self.write(source, seed=1, over=content)
        self.create_snapshot(source)
        clone = self.clone(source, fmt=fmt)
        self.assert_content(content, clone)
        self.assertEqual('volume-' + clone.id,
                         self.connection(clone)['data']['name'])

    def test_copies_live_their_own_lives(self):
        source = self.create_volume()
        content = self.write(source)
        snapshot = self.create_snapshot(source)
        clone = self.clone(source)
        volume = self.volume_from_snapshot(snapshot)
        cloned = self.write(clone, seed=1, over=content)
        self.assert_content(content, source)
        self.assert_content(content, volume)
        self.delete_snapshot(snapshot)
        self.delete_volume(source)
        self.assert_content(cloned, clone)
        self.assert_content(content, volume)

    def test_clone_of_a_clone(self):
        source = self.create_volume()
        content = self.write(source)
        clone = self.clone(self.clone(source, fmt='qcow2'))
        self.assert_content(content, clone)

    def test_copy_cannot_be_smaller(self):
        source = self.create_volume(2)
        content = self.write(source)
        snapshot = self.create_snapshot(source)
        before = self.site.listing()
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.volume_from_snapshot, snapshot, 1)
        self.assertRaises(exception.VolumeBackendAPIException,
                          self.clone, source, 1)
        self.assertEqual(before, self.site.listing())
        self.assert_content(content, source)

    def test_clone_on_another_share(self):
        source = self.create_volume()
        content = self.write(source)
        other = self.make_site()
        driver = self.driver
        self.driver = self.make_driver(other.share)
        clone = self.clone(source)
        self.assertEqual(other.share.identity, clone.provider_location)
        self.assert_content(content, clone)
        self.assertIn('volume-' + clone.id, other.listing())
        self.delete_volume(clone)
        self.driver = driver

    def test_header_that_a_guest_wrote(self):
        """A raw volume that looks like a qcow2 image of a file of the host."""
        secret = os.path.join(self.directory, 'secret')
        with open(secret, 'w') as stream:
            stream.write('secret' * 1000)
        image = os.path.join(self.directory, 'image')
        sites.command('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw', '-b',
                      secret, image)
        source = self.create_volume()
        content = base.Content(units.Gi)
        with open(image, 'rb') as stream:
            content.put(0, stream.read())
        with self.attached(source) as stream:
            content.write(stream)
        snapshot = self.create_snapshot(source)
        self.assert_content(content, self.volume_from_snapshot(snapshot))
        self.assert_content(content, self.clone(source, fmt='qcow2'))
        self.delete_snapshot(snapshot)
        self.assertEqual('raw', self.connection(source)['data']['format'])
        self.extend_volume(source, 2)
        self.assert_content(content.grown(2 * units.Gi), source)

    def test_service_ends_during_a_copy(self):
        """What it has started ends as well, and cleans up."""
        source = self.create_volume()
        before = self.site.listing()
        root = self.directory_of(self.driver)
        commands = self.make_directory('bin')
        # A copy that goes on for as long as the test is patient.
        path = os.path.join(commands, 'qemu-img')
        with open(path, 'w') as stream:
            stream.write('#!/bin/sh\n[ "$1" = convert ] || exec %s "$@"\n'
                         'for _ in $(seq 600); do echo "(1.00/100%%)"; '
                         'sleep 0.1; done\n' % shutil.which('qemu-img'))
        os.chmod(path, 0o755)
        service = subprocess.Popen(
            [sys.executable, '-c',
             'import sys\nfrom cinder_lustre import chain, worker\n'
             'worker.Worker("share").run(chain.copy, sys.argv[1], '
             'sys.argv[2], None, sys.argv[1], "copy", "raw", 1 << 30, '
             'timeout=60)', root, source.id],
            env=dict(os.environ, PATH='%s:%s' % (commands,
                                                 os.environ['PATH'])))
        base.wait_for(lambda: '.tmp-copy' in self.site.listing(),
                      'the copy has begun')
        service.terminate()
        self.assertEqual(-signal.SIGTERM, service.wait())
        base.wait_for(lambda: self.site.listing() == before,
                      'the temporary file has gone')
