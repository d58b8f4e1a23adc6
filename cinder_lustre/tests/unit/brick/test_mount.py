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

import errno
import os
import stat
from unittest import mock

import ddt
import fixtures
import testtools

from cinder_lustre.brick import mount
from cinder_lustre import exception
from cinder_lustre import share
from cinder_lustre.tests.unit import transcripts

# Names of tests from the texts of a table would be too long.
by_number = ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)

PATH = '/var/lib/cinder/mnt/0'
SHARE = '10.0.2.15@tcp:/testfs'
OPTIONS = 'rw,checksum,encrypt,flock,lazystatfs,nouser_xattr'

ROOT = '27 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw'


def line(source, path=PATH, number=300, parent=27, root='/', options='rw',
         fstype='lustre', super_options=OPTIONS):
    """A line of mountinfo."""
    return '%d %d 526:308960 %s %s %s shared:130 - %s %s %s' % (
        number, parent, root, path, options, fstype, source, super_options)


def table(*lines):
    return mount.parse_mountinfo('\n'.join((ROOT,) + lines))


@by_number
class MountinfoTestCase(testtools.TestCase):

    def test_real_lustre(self):
        mounts = mount.parse_mountinfo(transcripts.mountinfo())
        self.assertEqual(
            ['/mnt/lus/mdt', '/mnt/lus/ost0', '/mnt/lus/ost1',
             '/mnt/lus/ost2', '/mnt/lus/ost3', '/mnt/lustre-direct',
             '/mnt/def', '/mnt/noflock', '/mnt/localflock', '/mnt/sub'],
            [each.path for each in mounts])
        self.assertEqual({'lustre'}, {each.fstype for each in mounts})
        last = mounts[-1]
        self.assertEqual((277, 27, '/', ('rw',), '10.0.2.15@tcp:/testfs/sub'),
                         (last.id, last.parent, last.root, last.options,
                          last.source))
        self.assertIn('nouser_fid2path', last.super_options)

    @ddt.data(
        ('36 35 98:0 /m /mnt rw,noatime - ext3 /dev/root rw,errors=continue',
         mount.Mount(36, 35, '/m', '/mnt', ('rw', 'noatime'), 'ext3',
                     '/dev/root', ('rw', 'errors=continue'))),
        ('36 35 98:0 / /a\\040b\\134c ro master:1 shared:2 - tmpfs  ro',
         mount.Mount(36, 35, '/', '/a b\\c', ('ro',), 'tmpfs', '', ('ro',))),
        ('36 35 98:0 / /m\xe9\udce9 rw unbindable - fuse.x x\\0112 rw',
         mount.Mount(36, 35, '/', '/m\xe9\udce9', ('rw',), 'fuse.x', 'x\t2',
                     ('rw',))),
    )
    @ddt.unpack
    def test_fields(self, text, expected):
        self.assertEqual([expected], mount.parse_mountinfo(text + '\n'))

    def test_this_process(self):
        self.assertTrue(mount.mounts_on('/proc'))
        self.assertEqual('proc', mount.mounts_on('/proc')[-1].fstype)

    @ddt.data(
        # Nothing, and only something above or below.
        ((), []),
        (('28 27 0:1 / /var rw - tmpfs t rw',
          '29 28 0:1 / /var/lib/cinder/mnt rw - tmpfs t rw',
          '30 29 0:1 / /var/lib/cinder/mnt/0/sub rw - tmpfs t rw',
          '31 29 0:1 / /var/lib/cinder/mnt/00 rw - tmpfs t rw'), []),
        # One, directly and below other mounts.
        (('28 27 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',), [28]),
        (('28 27 0:1 / /var rw - tmpfs t rw',
          '29 28 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw'), [28 + 1]),
        # Several, one over the other, in whatever order they are listed.
        (('30 29 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',
          '28 27 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',
          '29 28 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw'),
         [28, 29, 30]),
        # Hidden by a later mount over a directory above it.
        (('28 27 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',
          '29 27 0:1 / /var/lib rw - tmpfs t rw'), []),
        # Mounted again below that.
        (('28 27 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',
          '29 27 0:1 / /var/lib rw - tmpfs t rw',
          '30 29 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw'), [30]),
        # The root is covered too.
        (('28 27 0:1 / / rw - overlay o rw',
          '29 28 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw'), [29]),
    )
    @ddt.unpack
    def test_mounts_on(self, lines, expected):
        self.assertEqual(expected, [
            each.id for each in mount.mounts_on(PATH, table(*lines))])

    @ddt.data(
        '28 20 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw',
        '1 1 0:1 / / rw - rootfs r rw\n'
        '28 1 0:1 / /var/lib/cinder/mnt/0 rw - tmpfs t rw')
    def test_mounts_on_without_a_listed_root(self, text):
        self.assertEqual([28], [
            each.id for each in mount.mounts_on(
                PATH, mount.parse_mountinfo(text))])

    def test_mounts_on_root(self):
        self.assertEqual([27], [each.id for each in
                                mount.mounts_on('/', table())])


@by_number
class CheckTestCase(testtools.TestCase):

    def _check(self, source, *lines, fstypes=()):
        mount.check(source, PATH, fstypes, table(*lines))

    def _refuse(self, source, *lines, fstypes=()):
        error = self.assertRaises(exception.UnusableMount, self._check,
                                  source, *lines, fstypes=fstypes)
        self.assertIn(PATH, str(error))
        self.assertIn('Share lustre:/testfs', str(error))
        for value in error.kwargs.values():
            self.assertTrue(value)
        return error.kwargs['reason']

    @ddt.data(
        ('/mnt/def', None), ('/mnt/lustre-direct', None),
        ('/mnt/sub', 'another file system, 10.0.2.15@tcp:/testfs/sub'),
        ('/mnt/noflock', 'with noflock'),
        ('/mnt/localflock', 'with localflock'),
        ('/mnt/lus/ost0', "a server's target, /dev/vdc (type lustre)"),
        ('/mnt/lus/mdt', "a server's target, /dev/vdb (type lustre)"),
        ('/mnt', 'nothing is mounted'),
        ('/mnt/i1', 'nothing is mounted'),
    )
    @ddt.unpack
    def test_real_lustre(self, path, reason):
        mounts = mount.parse_mountinfo(transcripts.mountinfo())
        for source in (SHARE, 'lustre:/testfs'):
            if reason is None:
                mount.check(source, path, (), mounts)
                continue
            error = self.assertRaises(exception.UnusableMount, mount.check,
                                      source, path, (), mounts)
            self.assertIn(reason, error.kwargs['reason'])

    def test_real_lustre_subdirectory(self):
        mounts = mount.parse_mountinfo(transcripts.mountinfo())
        mount.check('10.0.2.15@tcp:/testfs/sub', '/mnt/sub', (), mounts)
        self.assertRaises(exception.UnusableMount, mount.check,
                          '10.0.2.15@tcp:/testfs/sub', '/mnt/def', (), mounts)

    def test_real_lustre_read_only(self):
        # /proc/mounts mixes the options of the mount and the file system.
        options = [fields.split()[3] for __, lines in
                   transcripts.commands('mount-errors') for fields in lines
                   if ' lustre ro,' in fields]
        self.assertEqual(2, len(options))
        for each in options:
            self.assertIn('read-only', self._refuse(
                SHARE, line(SHARE, super_options=each)))

    @ddt.data(
        # The same file system through other servers, or in another form.
        (SHARE, '10.0.2.16@tcp:/testfs'),
        ('10.0.2.15:10.0.2.16:/testfs', '10.0.2.16@tcp,10.0.2.15@tcp:/testfs'),
        ('mgs.example.com:/testfs', '10.0.2.15@tcp:/testfs'),
        ('lustre:/testfs', SHARE),
        ('lustre:/testfs/a/b', SHARE + '/a/b'),
        (SHARE + '/a/b/', SHARE + '/a/b/'),
    )
    @ddt.unpack
    def test_good_source(self, source, mounted):
        self._check(source, line(mounted))

    @ddt.data(SHARE + '1', SHARE + '/sub', '10.0.2.15@tcp:/test',
              'lustre:/testfs', 'none', '/dev/sda', '10.0.2.15:/srv/testfs')
    def test_wrong_source(self, mounted):
        self.assertIn('is mounted there', self._refuse(SHARE, line(mounted)))

    @ddt.data(
        # A bind mount of a directory is that directory's share.
        (SHARE + '/sub', SHARE, '/sub', True),
        (SHARE, SHARE, '/sub', False),
        (SHARE + '/a/b', SHARE + '/a', '/b', True),
        (SHARE + '/a', SHARE + '/a', '/a', False),
        (SHARE + '/sub', SHARE, '/sub//deleted', False),
    )
    @ddt.unpack
    def test_bind_mount(self, source, mounted, root, good):
        if good:
            self._check(source, line(mounted, root=root))
        else:
            self._refuse(source, line(mounted, root=root))

    @ddt.data(
        dict(options='ro'), dict(options='ro,nosuid'),
        dict(super_options=OPTIONS.replace('rw', 'ro')))
    def test_read_only(self, parts):
        for fstype in ('lustre', 'ext4'):
            self.assertIn('read-only', self._refuse(
                SHARE, line(SHARE, fstype=fstype, **parts),
                fstypes=['ext4']))

    @ddt.data(
        ('rw,checksum', 'noflock'),
        ('rw,checksum,noflock', 'noflock'),
        ('rw,noflock,localflock', 'localflock'),
        ('rw,flock,localflock', 'localflock'),
        ('rw,myflock,flockx', 'noflock'),
    )
    @ddt.unpack
    def test_locks(self, options, named):
        self.assertIn('mounted with %s,' % named, self._refuse(
            SHARE, line(SHARE, super_options=options)))

    def test_locks_are_whole_options(self):
        self._check(SHARE, line(SHARE, super_options='rw,flock,x=noflock'))

    @ddt.data('noflock', 'localflock')
    def test_locks_of_development_types(self, option):
        self.assertIn('mounted with %s,' % option, self._refuse(
            SHARE, line(SHARE, fstype='fuse.lustre',
                        super_options='rw,' + option),
            fstypes=['ext4', 'fuse.lustre']))

    def test_development_types(self):
        lines = (line(SHARE, fstype='ext4', super_options='rw'),)
        self._check(SHARE, *lines, fstypes=['xfs', 'ext4'])
        self.assertIn('type ext4', self._refuse(SHARE, *lines))
        self.assertIn('type ext4', self._refuse(SHARE, *lines,
                                                fstypes=['fuse.lustre']))

    @ddt.data(('/sub', True), ('/', True), ('/other', False), ('/s', False))
    @ddt.unpack
    def test_development_subdirectory(self, root, good):
        # Other types show a subdirectory in the root as well.
        lines = (line(SHARE + '/sub', fstype='ext4', root=root,
                      super_options='rw'),)
        if good:
            self._check(SHARE + '/sub', *lines, fstypes=['ext4'])
        else:
            self._refuse(SHARE + '/sub', *lines, fstypes=['ext4'])

    def test_nothing_mounted(self):
        self.assertIn('nothing is mounted', self._refuse(SHARE))

    def test_hidden_by_another_mount(self):
        lines = (line(SHARE), line('10.0.2.15@tcp:/testfs/sub', number=301,
                                   parent=300))
        self.assertIn('hidden by 10.0.2.15@tcp:/testfs/sub (type lustre)',
                      self._refuse(SHARE, *lines))
        self._check(SHARE + '/sub', *lines)

    def test_hidden_by_a_local_file_system(self):
        self.assertIn('hidden by tmpfs (type tmpfs)', self._refuse(
            SHARE, line(SHARE), line('tmpfs', number=301, parent=300,
                                     fstype='tmpfs', super_options='rw')))

    def test_directory_above_is_covered(self):
        self.assertIn('nothing is mounted', self._refuse(
            SHARE, line(SHARE), line('tmpfs', number=301, fstype='tmpfs',
                                     path=os.path.dirname(PATH))))

    @ddt.data((SHARE, True), (SHARE + '/sub', True),
              ('10.0.2.15:10.0.9.9:/testfs', True),
              ('mgs.example.com:/testfs', True),
              ('10.0.9.9@tcp:/otherfs', True),
              ('10.0.9.9@tcp:/testfs', False),
              ('10.0.2.15@o2ib:/testfs/sub', False))
    @ddt.unpack
    def test_file_system_of_the_same_name(self, other, good):
        lines = (line(SHARE), line(other, path='/scratch', number=301))
        for source in (SHARE, 'lustre:/testfs'):
            if good:
                self._check(source, *lines)
            else:
                self.assertIn('%s, mounted on /scratch, is a file system of '
                              'the same name' % other,
                              self._refuse(source, *lines))

    def test_host_names_are_not_compared(self):
        self._check('mgs.example.com:/testfs', line(SHARE), line(
            '10.0.9.9@tcp:/testfs', path='/scratch', number=301))

    def test_servers_that_are_not_mounted(self):
        # The MGS has moved, and the other mount already knows.
        self._check('10.0.9.9@tcp:/testfs', line(SHARE),
                    line('10.0.9.9@tcp:/testfs', path='/scratch', number=301))

    def test_other_types_are_other_file_systems(self):
        self._check(SHARE, line(SHARE), line(
            '10.0.9.9@tcp:/testfs', path='/scratch', number=301,
            fstype='nfs'))


@by_number
class ExplainTestCase(testtools.TestCase):

    CAUSES = {
        'unknown fsname': 'the MGS at 10.0.2.15@tcp has no file system '
                          '"nosuchfs".',
        'nonexistent subdir': 'the MGS at 10.0.2.15@tcp has no file system '
                              '"testfs", or that has no directory '
                              '"/nosuchdir".',
        'already mounted (same source)': 'the share is in /etc/mtab, but not '
                                         'mounted there.',
        'subdir is a file': '"/d/big" in it is not a directory.',
        'no mount point': 'the mount point does not exist.',
        'bad host': 'a host name in badhost@tcp is unknown on this host.',
        'wrong net': 'LNet has no network for 10.0.2.15@o2ib, or a mount '
                     'option is wrong.',
        'bogus option': 'LNet has no network for 10.0.2.15@tcp, or a mount '
                        'option is wrong.',
        'non-root': "mounting needs root's rights, and mount did not get "
                    "them.",
        'unreachable MGS (no such host)': 'no MGS answers at 10.0.2.77@tcp.',
        'MGS host up but port closed': 'no MGS answers at 10.0.2.2@tcp.',
    }
    # mount is never asked for these.
    REFUSED = ('no fsname', 'long fsname')

    def test_every_failure_of_real_lustre(self):
        seen = set()
        for label, source, __, code, stderr in transcripts.failed_mounts():
            seen.add(label)
            if label in self.REFUSED:
                self.assertRaises(exception.InvalidShare, share.Share.parse,
                                  source)
                continue
            reason, cure = mount.explain(code, stderr,
                                         share.Share.parse(source))
            self.assertEqual(self.CAUSES[label], reason)
            self.assertTrue(cure.endswith('.'), cure)
        self.assertEqual(set(self.CAUSES) | set(self.REFUSED), seen)

    # What mount(8) of util-linux 2.38 says, and sudo and rootwrap.
    @ddt.data(
        (32, "mount: /m: unknown filesystem type 'lustre'.",
         'there is no mount.lustre'),
        (32, 'mount: /m: bad option; for several filesystems (e.g. nfs, cifs) '
         'you might need a /sbin/mount.<type> helper program.',
         'there is no mount.lustre'),
        (32, 'mount: /m: wrong fs type, bad option, bad superblock on '
         'x:/testfs, missing codepage or helper program, or other error.',
         'there is no mount.lustre'),
        (32, 'mount: /m: mount point does not exist.',
         'the mount point does not exist'),
        (32, 'mount: /m: must be superuser to use mount.', "root's rights"),
        (1, 'mount: only root can use "--types" option', "root's rights"),
        (19, 'mount.lustre: mount x:/testfs at /m failed: No such device',
         'the running kernel has no Lustre client'),
        (1, 'sudo: a password is required',
         'the root helper failed: sudo: a password is required.'),
        (1, 'Sorry, user x is not allowed to execute \'/bin/mount\'',
         'the root helper failed: Sorry, user x is not allowed'),
        (99, '/usr/bin/cinder-rootwrap: Unauthorized command: mount -t lustre '
         '(no filter matched)', 'rootwrap refused to run mount: /usr/bin/'),
        (5, 'mount.lustre: mount x:/testfs at /m failed: 100%s\nIs the MGS '
         'running?', 'exit code 5: mount.lustre: mount x:/testfs at /m '
         'failed: 100%s.'),
        (-9, '', 'exit code -9: no message.'),
    )
    @ddt.unpack
    def test_other_failures(self, code, stderr, expected):
        reason, cure = mount.explain(code, stderr,
                                     share.Share.parse('x:/testfs'))
        self.assertIn(expected, reason)
        self.assertTrue(cure.endswith('.'), cure)


@by_number
class MountTestCase(testtools.TestCase):
    """Mounting, with a command "mount" of the test's own."""

    def setUp(self):
        super().setUp()
        self.directory = os.path.realpath(
            self.useFixture(fixtures.TempDir()).path)
        self.commands = os.path.join(self.directory, 'bin')
        os.mkdir(self.commands)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '%s:%s' % (self.commands, os.environ['PATH'])))
        self.base = os.path.join(self.directory, 'state', 'mnt')
        self.path = os.path.join(self.base, '0')
        self.log = os.path.join(self.directory, 'log')
        # What the command mounts, and what else is there.
        self.mountinfo = os.path.join(self.directory, 'mountinfo')
        with open(self.mountinfo, 'w') as stream:
            stream.write(ROOT + '\n')
        self.useFixture(fixtures.MockPatchObject(
            mount, 'read_mounts', self._read_mounts))

    def _read_mounts(self):
        with open(self.mountinfo) as stream:
            return mount.parse_mountinfo(stream.read())

    def _lines(self):
        with open(self.mountinfo) as stream:
            return stream.readlines()

    def _add(self, source, path=None, **parts):
        with open(self.mountinfo, 'a') as stream:
            stream.write(line(source, path or self.path, **parts) + '\n')

    def _command(self, name, *lines):
        path = os.path.join(self.commands, name)
        with open(path, 'w') as stream:
            stream.write('\n'.join(('#!/bin/sh', 'for word in "$0" "$@"',
                                    'do echo "$word" >> %s' % self.log,
                                    'done') + lines + ('',)))
        os.chmod(path, stat.S_IRWXU)

    def _mounting(self, source, path=None, **parts):
        """A command that succeeds and mounts something."""
        self._command('mount', "cat >> %s << 'END'\n%s\nEND" % (
            self.mountinfo, line(source, path or self.path, **parts)))

    def _failing(self, code, stderr):
        self._command('mount', "cat >&2 << 'END'\n%s\nEND" % stderr,
                      'exit %d' % code)

    def _mount(self, source=SHARE, options='flock', root_helper='',
               fstypes=()):
        mount.mount(source, self.path, options, root_helper,
                    os.path.join(self.base, '.0.lock'), fstypes)

    def _calls(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as stream:
            return stream.read().splitlines()

    def _fail(self, cls=exception.MountFailed, **kwargs):
        error = self.assertRaises(cls, self._mount, **kwargs)
        self.assertEqual(self.path, error.kwargs['path'])
        return error.kwargs['reason']

    def test_mount(self):
        self._mounting(SHARE)
        self._mount()
        self.assertEqual(['-t', 'lustre', '-o', 'flock', SHARE, self.path],
                         self._calls()[1:])
        self.assertTrue(os.path.isdir(self.path))

    def test_mounted_already(self):
        self._mounting(SHARE)
        self._mount()
        os.remove(self.log)
        self._mount()
        self._mount(source='10.0.9.9@tcp:/testfs')
        self.assertEqual([], self._calls())

    def test_no_options(self):
        self._mounting(SHARE)
        self._mount(options='')
        self.assertEqual(['-t', 'lustre', SHARE, self.path],
                         self._calls()[1:])

    def test_root_helper(self):
        self._command('sudo', 'shift', 'exec "$@"')
        self._mounting(SHARE)
        self._mount(root_helper='sudo "a b"')
        helper, *words = self._calls()
        self.assertTrue(helper.endswith('/sudo'))
        self.assertEqual('a b', words[0])
        self.assertEqual(['mount', '-t'], words[1:3])

    def test_development_type(self):
        self._mounting(SHARE, fstype='ext4', super_options='rw')
        self._fail(exception.UnusableMount)
        self._mount(fstypes=['ext4'])

    @ddt.data(*transcripts.failed_mounts())
    @ddt.unpack
    def test_real_failures(self, label, source, __, code, stderr):
        if label in ExplainTestCase.REFUSED:
            self.assertRaises(exception.InvalidShare, self._mount, source)
            return
        self._failing(code, stderr)
        self.assertEqual(ExplainTestCase.CAUSES[label],
                         self._fail(source=source))
        self.assertEqual([ROOT + '\n'], self._lines())

    def test_wrong_mount_is_never_covered(self):
        self._add('10.0.2.15@tcp:/testfs/sub')
        self._mounting(SHARE)
        self.assertIn('another file system',
                      self._fail(exception.UnusableMount))
        self.assertEqual([], self._calls())

    def test_success_that_mounts_nothing(self):
        self._command('mount')
        self.assertIn('nothing is mounted',
                      self._fail(exception.UnusableMount))

    def test_success_that_mounts_without_flock(self):
        self._mounting(SHARE, super_options='rw,checksum')
        self.assertIn('noflock', self._fail(exception.UnusableMount))

    def test_failure_beside_another_program_that_mounts(self):
        self._command('mount', "cat >> %s << 'END'\n%s\nEND" % (
            self.mountinfo, line(SHARE, self.path)), 'exit 17')
        self._mount()

    def test_file_system_of_the_same_name(self):
        self._add('10.0.9.9@tcp:/testfs', '/scratch')
        self._mounting(SHARE)
        self.assertIn('of the same name', self._fail())
        self.assertEqual([], self._calls())

    def test_command_is_missing(self):
        self.assertIn('no-such-helper cannot be run',
                      self._fail(root_helper='no-such-helper'))

    def test_mount_point_is_a_file(self):
        os.makedirs(self.base)
        with open(self.path, 'w'):
            pass
        self._mounting(SHARE)
        self.assertIn('%s cannot be made' % self.path, self._fail())
        self.assertEqual([], self._calls())

    def test_base_is_a_file(self):
        with open(os.path.dirname(self.base), 'w'):
            pass
        self.assertIn('cannot be made', self._fail())

    def test_base_cannot_be_made(self):
        with mock.patch.object(os, 'makedirs', side_effect=PermissionError(
                errno.EACCES, 'Permission denied', self.base)):
            self.assertIn('%s cannot be made or used by user %d (Permission '
                          'denied)' % (self.base, os.geteuid()), self._fail())

    def test_mount_point_is_a_link(self):
        os.makedirs(self.base)
        os.symlink(self.directory, self.path)
        self._mounting(SHARE)
        self.assertIn('symbolic link', self._fail())
        self.assertEqual([], self._calls())

    def test_hidden_files_are_named(self):
        os.makedirs(self.path)
        with open(os.path.join(self.path, 'volume-1'), 'w'):
            pass
        logger = self.useFixture(fixtures.FakeLogger())
        self._mounting(SHARE)
        self._mount()
        self.assertIn('has 1 entries (volume-1)', logger.output)


class FilesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = self.useFixture(fixtures.TempDir()).path

    def test_statfs(self):
        found = mount.statfs(self.path)
        expected = os.statvfs(self.path)
        self.assertEqual(expected.f_blocks * expected.f_frsize,
                         found['total'])
        self.assertEqual(expected.f_files, found['files'])
        self.assertTrue(0 <= found['available'] <= found['free'] <=
                        found['total'])
        self.assertTrue(0 <= found['files_free'] <= found['files'])

    def test_probe(self):
        mount.probe(self.path, 'lustre:/testfs')
        self.assertEqual([], os.listdir(self.path))

    def _probe(self, cls, function, number):
        error = OSError(number, os.strerror(number))
        with mock.patch(function, side_effect=error):
            return str(self.assertRaises(cls, mount.probe, self.path,
                                         'lustre:/testfs'))

    def test_probe_without_locks(self):
        for function in ('fcntl.flock', 'fcntl.lockf'):
            self.assertIn('mounted with noflock', self._probe(
                exception.UnusableMount, function, errno.ENOSYS))
        self.assertEqual([], os.listdir(self.path))

    def test_probe_unwritable(self):
        for number in (errno.EACCES, errno.EROFS):
            self.assertIn('cannot make a file there (%s)'
                          % os.strerror(number), self._probe(
                              exception.UnusableMount,
                              'tempfile.NamedTemporaryFile', number))

    def test_probe_full(self):
        for number in (errno.ENOSPC, errno.EDQUOT):
            self.assertIn(os.strerror(number), self._probe(
                exception.NoSpace, 'tempfile.NamedTemporaryFile', number))
