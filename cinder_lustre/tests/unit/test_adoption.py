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

import json
import os
import subprocess

import ddt

from cinder_lustre import adoption
from cinder_lustre import chain
from cinder_lustre import exception
from cinder_lustre import record
from cinder_lustre.tests.unit import test_chain
from cinder_lustre.tests.unit.test_chain import formats
from cinder_lustre.tests.unit.test_chain import MIB
from cinder_lustre.tests.unit.test_chain import ONE
from cinder_lustre.tests.unit.test_chain import OTHER
from cinder_lustre.tests.unit.test_chain import overlay
from cinder_lustre.tests.unit.test_chain import SIZE
from cinder_lustre.tests.unit.test_chain import THREE
from cinder_lustre.tests.unit.test_chain import TWO
from cinder_lustre.tests.unit.test_chain import VOLUME

BASE = test_chain.BASE


@ddt.ddt
class AdoptTestCase(test_chain.ChainTestCase):
    """Volumes that another RemoteFS driver has written."""

    def lose_records(self):
        for name in os.listdir(self.share.path('.cinder-lustre')):
            os.unlink(self.share.path('.cinder-lustre', name))

    @formats
    def test_without_snapshots(self, fmt):
        content = self.create(fmt)
        self.lose_records()
        self.assertRaises(exception.RecordMissing, chain.describe, self.root,
                          VOLUME)
        self.assertEqual(
            {'active': BASE, 'format': fmt, 'size': SIZE, 'thick': False,
             'snapshots': []}, adoption.adopt(self.root, VOLUME, fmt, None))
        self.assert_content(content)
        self.assert_gone()

    @ddt.data(('raw', 'raw'), ('raw', None), ('qcow2', 'qcow2'))
    @ddt.unpack
    def test_with_snapshots(self, fmt, told):
        contents = {ONE: self.create(fmt)}
        chain.create_snapshot(self.root, VOLUME, ONE)
        contents[TWO] = self.fill(8)
        chain.create_snapshot(self.root, VOLUME, TWO)
        contents[None] = self.fill(9, offset=4096)
        before = self.share.record(VOLUME)
        self.lose_records()
        adoption.adopt(self.root, VOLUME, 'qcow2', told)
        self.assertEqual(before, self.share.record(VOLUME))
        chain.delete_snapshot(self.root, VOLUME, ONE)
        del contents[ONE]
        for snapshot, content in contents.items():
            self.assert_content(content, snapshot=snapshot)

    def test_again(self):
        self.create()
        before = self.share.record(VOLUME)
        adoption.adopt(self.root, VOLUME, 'qcow2', None)
        self.assertEqual(before, self.share.record(VOLUME))

    @ddt.data('{', '[]', '{}', '{"active": "../x"}', '{"active": "/etc/x"}')
    def test_damaged_info(self, text):
        self.create()
        self.lose_records()
        with open(self.share.path(BASE + '.info'), 'w') as stream:
            stream.write(text)
        os.chmod(stream.name, 0o660)
        self.assertRaises(exception.RecordError, adoption.adopt, self.root,
                          VOLUME, 'raw', None)

    def test_lost_info(self):
        """The base alone would be an old state of the volume."""
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.lose_records()
        os.unlink(self.share.path(BASE + '.info'))
        error = self.assertRaises(exception.RecordError, adoption.adopt,
                                  self.root, VOLUME, 'raw', None)
        self.assertIn(overlay(ONE), str(error))

    @ddt.data('/etc/passwd', '../x', 'json:{}')
    def test_base_that_refers_elsewhere(self, backing):
        """A guest cannot let its file point out of the share."""
        self.create('qcow2')
        self.lose_records()
        subprocess.run(['qemu-img', 'rebase', '-u', '-f', 'qcow2', '-F',
                        'raw', '-b', backing, self.share.path(BASE)],
                       check=True)
        self.assertRaises(exception.RecordError, adoption.adopt, self.root,
                          VOLUME, 'qcow2', None)

    @ddt.data(None, 'vmdk')
    def test_unknown_format(self, fmt):
        self.create()
        self.lose_records()
        error = self.assertRaises(exception.RecordError, adoption.adopt,
                                  self.root, VOLUME, fmt, None)
        self.assertIn('never guessed', str(error))

    def test_no_file(self):
        self.assertRaises(exception.RecordMissing, adoption.adopt, self.root,
                          VOLUME, 'raw', None)


@ddt.ddt
class ManageTestCase(test_chain.ChainTestCase):

    def make_file(self, fmt, name='disk', size=SIZE):
        path = self.share.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run(['qemu-img', 'create', '-q', '-f', fmt, path,
                        str(size)], check=True)
        self.share.write_file(name, fmt, MIB, 4096, 5)
        return self.share.read_file(name, fmt)

    @formats
    def test_file(self, fmt):
        content = self.make_file(fmt)
        self.assertEqual({'size': SIZE, 'volume': None, 'owner': None},
                         adoption.look_up(self.root, 'disk', fmt))
        self.assertIn({'name': 'disk', 'volume': None, 'layers': [],
                       'owner': None,
                       'size': os.stat(self.share.path('disk')).st_size},
                      adoption.manageable(self.root))
        adoption.manage(self.root, 'disk', VOLUME, fmt, SIZE + MIB)
        self.assert_content(content + bytes(MIB))
        self.assertEqual(test_chain.files_of(VOLUME), self.share.files())
        self.assert_gone()

    def test_file_in_a_directory(self):
        content = self.make_file('raw', 'images/disk')
        adoption.manage(self.root, 'images/disk', VOLUME, 'raw', SIZE)
        self.assert_content(content)

    @ddt.data('../x', '/etc/passwd', 'link/passwd',
              '.cinder-lustre/x.json')
    def test_elsewhere(self, name):
        os.symlink('/etc', self.share.path('link'))
        self.addCleanup(os.unlink, self.share.path('link'))
        for function, args in ((adoption.look_up, ()),
                               (adoption.manage, (SIZE,))):
            self.assertRaises(
                exception.LustreException, function, self.root, name,
                *([VOLUME, 'raw', *args] if args else ['raw']))

    def test_symbolic_link(self):
        os.symlink('/etc/passwd', self.share.path('disk'))
        self.addCleanup(os.unlink, self.share.path('disk'))
        self.assertRaises(exception.RecordError, adoption.manage, self.root,
                          'disk', VOLUME, 'raw', SIZE)

    def test_backing_file(self):
        self.make_file('qcow2')
        subprocess.run(['qemu-img', 'rebase', '-u', '-f', 'qcow2', '-F',
                        'raw', '-b', '/etc/passwd', self.share.path('disk')],
                       check=True)
        self.assertRaises(exception.RecordError, adoption.manage, self.root,
                          'disk', VOLUME, 'qcow2', SIZE)
        os.unlink(self.share.path('disk'))

    def test_larger_than_the_volume(self):
        self.make_file('raw', size=SIZE + 1)
        self.assertRaises(exception.SizeMismatch, adoption.manage, self.root,
                          'disk', VOLUME, 'raw', SIZE)
        os.unlink(self.share.path('disk'))

    def test_file_of_a_guest(self):
        self.make_file('raw')
        process = subprocess.Popen(
            ['qemu-io', '-f', 'raw', self.share.path('disk')],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.assertEqual(b'qemu-io> ', process.stdout.read(9))
        self.assertRaises(exception.VolumeBusy, adoption.manage, self.root,
                          'disk', VOLUME, 'raw', SIZE)
        process.communicate(b'quit\n')
        os.unlink(self.share.path('disk'))

    @formats
    def test_volume(self, fmt):
        """A volume that was unmanaged has its record, and keeps its files."""
        contents = {ONE: self.create(fmt)}
        chain.create_snapshot(self.root, VOLUME, ONE)
        contents[None] = self.fill(8)
        adoption.forget_snapshot(self.root, VOLUME, ONE)
        self.assertEqual(
            [{'name': overlay(ONE), 'volume': VOLUME, 'owner': VOLUME,
              'size': SIZE,
              'layers': [{'name': BASE, 'size': SIZE, 'snapshot': None}]}],
            adoption.manageable(self.root))
        self.assertEqual({'size': SIZE, 'volume': VOLUME, 'owner': VOLUME},
                         adoption.look_up(self.root, overlay(ONE), 'raw'))
        # Its format is on record, whatever somebody believes.
        adoption.manage(self.root, overlay(ONE), OTHER, 'raw', SIZE)
        self.assert_content(contents[None], volume=OTHER)
        self.assertRaises(exception.RecordMissing, chain.describe, self.root,
                          VOLUME)
        self.assertEqual(SIZE, adoption.snapshot_size(self.root, OTHER, BASE))
        adoption.name_snapshot(self.root, OTHER, TWO, BASE)
        self.assert_content(contents[ONE], volume=OTHER, snapshot=TWO)
        chain.delete_snapshot(self.root, OTHER, TWO)
        self.assert_content(contents[None], volume=OTHER)
        self.assert_gone(OTHER)
        self.assertEqual([], self.share.files())

    def test_layer(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        error = self.assertRaises(exception.RecordError, adoption.manage,
                                  self.root, BASE, OTHER, 'raw', SIZE)
        self.assertIn('is a layer of it', str(error))

    def test_revert_past_an_unmanaged_snapshot(self):
        """It can be managed again, so its data must not go."""
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.create_snapshot(self.root, VOLUME, TWO)
        adoption.forget_snapshot(self.root, VOLUME, TWO)
        error = self.assertRaises(exception.RecordError, chain.revert,
                                  self.root, VOLUME, ONE)
        self.assertIn(overlay(ONE), str(error))
        adoption.name_snapshot(self.root, VOLUME, TWO, overlay(ONE))
        chain.delete_snapshot(self.root, VOLUME, TWO)
        chain.revert(self.root, VOLUME, ONE)

    def test_name_that_a_snapshot_had(self):
        content = self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.create_snapshot(self.root, VOLUME, TWO)
        adoption.forget_snapshot(self.root, VOLUME, ONE)
        self.assertEqual(SIZE, adoption.snapshot_size(self.root, VOLUME, ONE))
        self.assertEqual(SIZE, adoption.name_snapshot(self.root, VOLUME,
                                                      THREE, ONE))
        self.assertEqual(overlay(ONE),
                         self.share.record(VOLUME)['snapshots'][THREE])
        self.assert_content(content, volume=VOLUME, snapshot=THREE)
        # It is the name of a snapshot again.
        self.assertRaises(exception.RecordError, adoption.name_snapshot,
                          self.root, VOLUME, OTHER, ONE)

    def test_name_in_use(self):
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.create_snapshot(self.root, VOLUME, TWO)
        adoption.forget_snapshot(self.root, VOLUME, TWO)
        self.assertRaises(exception.RecordError, adoption.name_snapshot,
                          self.root, VOLUME, ONE, overlay(ONE))

    def test_left_by_a_deleted_snapshot(self):
        """Its layer goes soon, and cannot become a snapshot again."""
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        chain.begin_delete_snapshot(self.root, VOLUME, ONE)
        self.assertEqual([[]], [each['layers'] for each
                                in adoption.manageable(self.root)])
        self.assertRaises(exception.RecordError, adoption.name_snapshot,
                          self.root, VOLUME, TWO, BASE)

    @ddt.data(BASE, overlay(ONE), 'unknown')
    def test_no_layer_for_a_snapshot(self, name):
        """It has its snapshot, is active, or is not there at all."""
        self.create()
        chain.create_snapshot(self.root, VOLUME, ONE)
        self.assertRaises(exception.RecordError, adoption.name_snapshot,
                          self.root, VOLUME, TWO, name)

    def test_killed_before_the_old_record_has_gone(self):
        content = self.create()
        old = json.dumps(self.share.record(VOLUME))
        adoption.manage(self.root, BASE, OTHER, 'raw', SIZE)
        with open(self.share.sidecar(VOLUME), 'w') as stream:
            stream.write(old)
        self.share.change_record(OTHER, lambda rec: rec.update(
            intent={'operation': 'take-over', 'old': VOLUME}))
        chain.describe(self.root, OTHER)
        self.assertFalse(os.path.exists(self.share.sidecar(VOLUME)))
        self.assert_content(content, volume=OTHER)

    def test_beside_a_deletion(self):
        """Another volume's record may go while its turn comes."""
        self.make_file('raw')
        self.patch(record, 'volumes', lambda root: ['deleted'])
        adoption.manage(self.root, 'disk', VOLUME, 'raw', SIZE)

    @ddt.data((VOLUME, OTHER), (OTHER, VOLUME))
    def test_killed_and_taken_over_by_a_third(self, order):
        """While two records name a file, only the newer one counts."""
        content = self.create()
        self.killed(os, 'unlink', 1, adoption.manage, BASE, OTHER, 'raw', SIZE)
        real = record.volumes
        self.patch(record, 'volumes', lambda root: sorted(
            real(root), key=order.index))
        adoption.manage(self.root, BASE, 'third', 'raw', SIZE)
        chain.delete(self.root, OTHER)
        self.assert_content(content, volume='third')
        self.assertEqual([*test_chain.files_of('third')[:2], BASE,
                          'volume-third.info'], self.share.files())
