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

"""The life of the stand-in's file systems, also when something is killed."""

import json
import os
import shutil
import signal
import subprocess

from tools.lab.tests import standin_case

STATE = '/run/cinder-lustre-lab'


class LifeTestCase(standin_case.StandinCase):

    def loop(self):
        """The loop device of this test's image, or None."""
        image = self.path('images', self.fsname + '.img')
        for name in os.listdir('/sys/block'):
            path = '/sys/block/%s/loop/backing_file' % name
            try:
                with open(path) as stream:
                    if stream.read().startswith(image):
                        return '/dev/' + name
            except OSError:
                # Not in use, or no longer.
                continue
        return None

    def listed(self):
        return [entry for entry in json.loads(
            self.standin('list', '--json').stdout)
            if entry['fsname'] == self.fsname]

    def assertNothingLeft(self):
        self.assertEqual([], self.mounts())
        # The kernel waits for whoever has the device open, as a killed mount.
        self.wait_for(lambda: self.loop() is None, 'the loop device goes')
        self.assertEqual([], self.servers())

    def test_create(self):
        share = self.create('--owner', '12345:12346', '--mode', '0750')
        self.assertEqual(self.share, share)
        client = self.mount('client')
        found = os.stat(client)
        self.assertEqual((12345, 12346, 0o40750),
                         (found.st_uid, found.st_gid, found.st_mode))
        self.assertEqual([], os.listdir(client))
        image = self.path('images', self.fsname + '.img')
        self.assertLess(os.stat(image).st_blocks * 512, 64 << 20)
        self.assertEqual([client], self.listed()[0]['mounts'])
        self.assertIn(self.share, self.standin('list').stdout)

    def test_create_again_keeps_the_data(self):
        self.create()
        with open(os.path.join(self.mount('client'), 'file'), 'w') as stream:
            stream.write('data')
        self.assertEqual(self.share, self.create())
        with open(self.path('client', 'file')) as stream:
            self.assertEqual('data', stream.read())

    def test_create_refuses_a_taken_name(self):
        self.create()
        done = self.standin('create', '--fsname', self.fsname, '--dir',
                            self.path('elsewhere'), check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn('is taken', done.stderr)

    def test_create_refuses_what_is_no_fsname(self):
        for name in ('toolongname', 'a/b', ''):
            done = self.standin('create', '--fsname', name, '--dir',
                                self.path('images'), check=False)
            self.assertEqual(1, done.returncode)
            self.assertIn('is no fsname', done.stderr)

    def test_stop_and_start(self):
        self.create()
        with open(os.path.join(self.mount('client'), 'file'), 'w') as stream:
            stream.write('data')
        self.mount('second')
        self.standin('stop', self.fsname)
        self.assertNothingLeft()
        self.standin('stop', self.fsname)
        self.standin('fault', self.fsname, 'recover')
        self.standin('start', self.fsname)
        self.standin('start', self.fsname)
        with open(os.path.join(self.mount('client'), 'file')) as stream:
            self.assertEqual('data', stream.read())

    def test_start_after_a_reboot(self):
        self.create()
        self.standin('stop', self.fsname)
        # /run starts empty.
        os.unlink(os.path.join(STATE, self.fsname + '.json'))
        shutil.rmtree(os.path.join(STATE, self.fsname + '.d'))
        self.assertEqual([], self.listed())
        done = self.standin('start', self.fsname, check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn('There is no file system', done.stderr)
        self.standin('start', self.fsname, '--dir', self.path('images'))
        self.mount('client')

    def test_destroy(self):
        self.create()
        self.mount('client')
        self.mount('locks', '-o', 'noflock')
        self.standin('destroy', self.fsname)
        self.wait_for(lambda: not self.servers(), 'the FUSE server ends')
        self.assertNothingLeft()
        self.assertEqual([], os.listdir(self.path('images')))
        self.assertEqual([], [name for name in os.listdir(STATE)
                              if name.startswith(self.fsname)])

    def test_destroy_without_its_directory(self):
        self.create()
        self.mount('client')
        shutil.rmtree(self.path('images'))
        self.standin('destroy', self.fsname)
        self.assertNothingLeft()

    def test_destroy_cuts_off_who_still_works(self):
        self.create()
        client = self.mount('client')
        holder = subprocess.Popen(['sleep', 'infinity'], cwd=client)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        done = self.standin('destroy', self.fsname, '--wait', '1',
                            check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn('was cut off', done.stderr)
        self.assertEqual([], self.mounts())
        holder.kill()
        holder.wait()
        self.wait_for(lambda: self.loop() is None, 'the loop device goes')

    def test_killed_creation_is_repaired(self):
        create = [standin_case.STANDIN, 'create', '--fsname', self.fsname,
                  '--size', '256M', '--dir', self.path('images'), '--nid',
                  self.nid]
        self.addCleanup(self.clean)
        steps = [lambda: os.path.isdir(os.path.join(STATE,
                                                    self.fsname + '.d')),
                 lambda: os.path.exists(self.path(
                     'images', self.fsname + '.img')),
                 lambda: self.loop(),
                 lambda: self.mounts()]
        for step in steps:
            with subprocess.Popen(create, stdout=subprocess.DEVNULL,
                                  start_new_session=True) as process:
                self.wait_for(step, 'a step of the creation')
                os.killpg(process.pid, signal.SIGKILL)
            self.create()
            self.mount('client')
            self.standin('destroy', self.fsname)
            self.assertNothingLeft()

    def test_killed_server_is_repaired(self):
        self.create('--fuse')
        client = self.mount('client')
        server, = self.servers()
        os.kill(server, signal.SIGKILL)
        self.wait_for(lambda: not self.servers(), 'the server ends')
        self.assertRaises(OSError, os.statvfs, client)
        self.standin('start', self.fsname)
        self.mount('client')
        self.assertEqual([], os.listdir(client))

    def test_commands_stay_while_they_are_needed(self):
        self.create()
        self.assertIn(self.fsname, self.standin('uninstall').stdout)
        self.assertEqual((0, 'lfs 2.17.0_dirty\n'),
                         self.run_command('lfs', '--version'))
        library = os.path.dirname(os.path.realpath('/sbin/mount.lustre'))
        # Copies: they outlive the checkout that they come from.
        self.assertNotIn(os.path.dirname(standin_case.STANDIN), library)
        with open(os.path.join(library, 'mount_lustre.py')) as stream:
            self.assertIn('This is not Lustre', ''.join(
                stream.readline() for _each in range(2)))

    def test_every_program_says_what_it_is(self):
        directory = os.path.dirname(standin_case.STANDIN)
        for name in os.listdir(directory):
            if name.startswith('__'):
                continue
            with open(os.path.join(directory, name)) as stream:
                first = stream.readline()
                if first.startswith('#!'):
                    first = stream.readline()
            self.assertTrue(first.startswith('# This is not Lustre'), name)

    def test_stopped_file_system_is_an_mgs_that_is_away(self):
        self.create()
        self.standin('stop', self.fsname)
        os.mkdir(self.path('client'))
        mount = subprocess.Popen(['mount', '-t', 'lustre', self.share,
                                  self.path('client')])
        self.addCleanup(mount.wait)
        self.addCleanup(mount.kill)
        # It waits until the file system comes up.
        self.standin('start', self.fsname)
        self.assertEqual(0, mount.wait(standin_case.PATIENCE))

    def test_read_only_mount_leaves_others_writable(self):
        self.create()
        client = self.mount('client')
        os.mkdir(os.path.join(client, 'sub'))
        second = self.mount('second', '-o', 'ro,nosuid,nodev', sub='/sub')
        self.assertRaises(OSError, os.mkdir, os.path.join(second, 'new'))
        os.mkdir(os.path.join(client, 'sub', 'new'))
        self.assertEqual(['new'], os.listdir(second))
        self.assertEqual(os.stat(client).st_dev, os.stat(second).st_dev)
        source, _target, fstype, options = self.mounts()[-1][:4]
        self.assertEqual((self.share + '/sub', 'ext4'), (source, fstype))
        self.assertEqual({'ro', 'nosuid', 'nodev'}, {
            'ro', 'nosuid', 'nodev'} & set(options.split(',')))
