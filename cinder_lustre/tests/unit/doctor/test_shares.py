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

"""The checks of shares, with their real children on real directories."""

import errno
import itertools
import os
import struct
from unittest import mock

import ddt
import fixtures
import testtools

from cinder_lustre.brick import mount
from cinder_lustre import doctor
from cinder_lustre.doctor import probe
from cinder_lustre.doctor import shares
from cinder_lustre import exception
from cinder_lustre import lfs
from cinder_lustre import share
from cinder_lustre.tests.unit import transcripts

SHARE = share.Share.parse('10.0.2.15@tcp:/testfs')
GIB = 1 << 30
# As long as it takes on a busy machine (seconds).
PATIENCE = 300


class Direct:
    """Runs in this process what a worker runs in a child."""

    def __init__(self, answers=()):
        self.answers = dict(answers)

    def run(self, func, *args, timeout, **kwargs):
        if func not in self.answers:
            return func(*args, **kwargs)
        answer = self.answers[func]
        if isinstance(answer, Exception):
            raise answer
        return answer


class SharesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MockPatchObject(os, 'geteuid', lambda: 1000))

    def patch(self, target, attribute, value):
        self.useFixture(fixtures.MockPatchObject(target, attribute, value))

    def as_root(self):
        self.useFixture(fixtures.MockPatchObject(os, 'geteuid', lambda: 0))

    def host(self, *roles, qemu=None, service=None, **values):
        host = doctor.Host(frozenset(roles), timeout=PATIENCE,
                           qemu_conf='/nowhere', **values)
        host.qemu_identity, host.service_identity = qemu, service
        return host

    def target(self, path=None, roles=('volume',), base=None, **answers):
        """A share whose children's answers may be given, by function."""
        target = shares.Target(SHARE, path or self.root, frozenset(roles),
                               base)
        functions = {'statfs': mount.statfs, 'project': lfs.project,
                     'project_quota': lfs.project_quota}
        target._worker = Direct({
            functions.get(name) or getattr(probe, name): answer
            for name, answer in answers.items()})
        return target

    def assert_verdict(self, status, found, *words):
        self.assertEqual(status, found.status, found)
        for word in words:
            self.assertIn(word, found.message + ' ' + found.cure)


@ddt.ddt
class MountedTestCase(SharesTestCase):
    """With mounts as a real Lustre shows them."""

    def setUp(self):
        super().setUp()
        self.set_mounts(transcripts.mountinfo())

    def set_mounts(self, text):
        mounts = mount.parse_mountinfo(
            '27 1 253:0 / / rw - ext4 /dev/vda1 rw\n' + text)
        self.patch(mount, 'read_mounts', lambda: mounts)
        return mounts

    def set_options(self, **options):
        """Let the share be mounted with other options.

        :param options: the new name of each
        """
        text = transcripts.mountinfo()
        for old, new in options.items():
            text = text.replace(',%s,' % old, ',%s,' % new)
        self.set_mounts(text)

    def check(self, path='/mnt/lustre-direct', base=None, **values):
        return shares.mounted(self.target(path, base=base),
                              self.host('volume', **values))

    def test_mounted(self):
        self.assert_verdict('ok', self.check(), '10.0.2.15@tcp:/testfs',
                            'flock', '/mnt/lustre-direct')

    @ddt.data('noflock', 'noflock,localflock')
    def test_locks_that_do_not_serve(self, option):
        self.set_options(flock=option)
        self.assert_verdict('failure', self.check(),
                            option.rpartition(',')[2], 'umount')

    def test_read_only(self):
        self.set_mounts(transcripts.mountinfo().replace(
            '/mnt/lustre-direct rw', '/mnt/lustre-direct ro'))
        self.assert_verdict('failure', self.check(), 'read-only')

    def test_nothing(self):
        self.assert_verdict('failure', self.check('/mnt/none'),
                            'nothing is mounted')

    def test_target_of_a_server(self):
        self.assert_verdict('failure', self.check('/mnt/lus/ost0'), 'target')

    def test_hidden_and_mounted_twice(self):
        line = next(line for line in transcripts.mountinfo().splitlines()
                    if ' /mnt/lustre-direct ' in line)
        number = line.split()[0]
        again = line.replace(line[:line.index(' ', len(number) + 1)],
                             '999 ' + number, 1)
        self.set_mounts('%s\n%s\n' % (line, again))
        self.assert_verdict('warning', self.check(), '2 mounts lie on')
        self.set_mounts('%s\n999 %s 0:9 / /mnt/lustre-direct rw - tmpfs t rw\n'
                        % (line, number))
        self.assert_verdict('failure', self.check(), 'hidden by t ')

    def test_wrong_place(self):
        self.assert_verdict('failure', self.check(base='/mnt'),
                            'is looked for on %s' % SHARE.mount_point('/mnt'))

    def test_unknown_share(self):
        target = shares.Target(None, '/mnt/none', frozenset())
        self.assert_verdict('failure', shares.mounted(target, self.host()),
                            'no share is mounted on /mnt/none')

    def test_acl(self):
        user = {'uid': 64, 'gid': 64, 'mode': 0o750}
        for options, users, qemu, status, word in (
                ('flock', {'64': 6}, None, 'ok', 'user 64 keeps'),
                ('flock', {'64': 4}, None, 'warning', '-m u:64:rw'),
                ('flock', {'65': 6}, None, 'warning', '-m u:64:rw'),
                ('flock', {}, (65, 65, []), 'warning', '-m u:64:rw'),
                ('flock', {}, (64, 64, []), 'ok', 'QEMU runs as'),
                ('flock', None, None, 'unknown', 'no ACLs'),
                ('flock,noacl', {'64': 6}, None, 'failure', 'noacl')):
            self.set_options(flock=options)
            target = self.target('/mnt/lustre-direct',
                                 directory=dict(user, users=users))
            self.assert_verdict(status, shares.acl(
                target, self.host('compute', qemu=qemu)), word)

    def test_backups_need_no_acl(self):
        target = self.target('/mnt/lustre-direct', directory={
            'uid': 64, 'gid': 64, 'mode': 0o750, 'users': {}})
        target.for_backups = True
        self.assert_verdict('ok', shares.acl(target, self.host()),
                            'for backups')


@ddt.ddt
class ShareChecksTestCase(SharesTestCase):

    def test_targets(self):
        for states, status, word in (
                (None, 'unknown', 'no lctl'),
                ({}, 'unknown', 'no target'),
                ({'a': 'FULL', 'b': 'IDLE', 'c': 'FULL'}, 'ok',
                 '2 targets FULL, 1 targets IDLE'),
                ({'a': 'FULL', 'b': 'DISCONN'}, 'failure', 'b: DISCONN'),
                ({'a': 'FULL', 'b': 'EVICTED'}, 'failure', 'b: EVICTED'),
                (dict.fromkeys('abcdefg', 'DISCONN'), 'failure',
                 'e: DISCONN and 2 more')):
            self.patch(lfs, 'target_states', lambda fsname: states)
            self.assert_verdict(status, shares.targets(
                self.target(), self.host()), word)

    @ddt.data((50, 50, 'ok'), (4, 50, 'warning'), (50, 4, 'warning'),
              (0, 50, 'failure'), (50, 0, 'failure'))
    @ddt.unpack
    def test_space(self, available, files, status):
        target = self.target(statfs={
            'available': available * GIB, 'total': 100 * GIB,
            'free': 100 * GIB, 'files': 100, 'files_free': files})
        self.assert_verdict(status, shares.space(target, self.host()),
                            '%d.0 of 100.0 GiB' % available)

    def test_space_without_a_count_of_files(self):
        target = self.target(statfs={'available': GIB, 'total': GIB, 'free': 0,
                                     'files': 0, 'files_free': 0})
        self.assert_verdict('ok', shares.space(target, self.host()))

    @ddt.data((0o750, 64, 'ok', '64:65'), (0o770, 64, 'ok', '0770'),
              (0o755, 64, 'failure', 'chmod o-rwx'),
              (0o751, 64, 'failure', 'chmod o-rwx'),
              (0o750, 0, 'warning', 'chown cinder'),
              (0o750, 66, 'failure', 'cinder is 64 here'))
    @ddt.unpack
    def test_directory(self, mode, uid, status, word):
        target = self.target(directory={'uid': uid, 'gid': 65, 'mode': mode})
        self.assert_verdict(status, shares.directory(
            target, self.host(service=(64, 65, []))), word)

    def test_directory_without_the_user(self):
        target = self.target(directory={'uid': 64, 'gid': 65, 'mode': 0o750})
        self.assert_verdict('unknown', shares.directory(target, self.host()),
                            'no user cinder')

    def test_locks(self):
        self.assert_verdict('ok', shares.locks(self.target(), self.host()))
        for answer, status, word in (
                (['OFD'], 'failure', '(OFD)'),
                (OSError(errno.ENOSYS, 'Not implemented'), 'failure',
                 'noflock')):
            self.assert_verdict(status, shares.locks(
                self.target(lock=answer), self.host()), word)
        for error in (OSError(errno.EIO, 'error'),
                      PermissionError(errno.EACCES, 'denied')):
            self.assertRaises(type(error), shares.locks,
                              self.target(lock=error), self.host())

    def test_locks_for_the_service(self):
        denied = PermissionError(errno.EACCES, 'denied')
        # This user itself, or whom root acts as.
        self.assert_verdict('failure', shares.locks(
            self.target(lock=denied), self.host(service=(1000, 1, []))),
            'user 1000 cannot make')
        self.as_root()
        self.assert_verdict('failure', shares.locks(
            self.target(lock=denied), self.host(service=(64, 1, []))),
            'user 64 cannot make')
        self.assert_verdict('failure', shares.locks(
            self.target(roles=['compute'], lock=denied, directory={
                'uid': 65, 'gid': 65}), self.host(service=(64, 1, []))),
            'user 65 cannot make')

    def test_root_squash(self):
        self.assert_verdict('unknown', shares.root_squash(
            self.target(root=0), self.host()), 'only root')
        self.as_root()
        for uid, roles, settings, status, word in (
                (0, ['compute'], {}, 'ok', 'root stays root'),
                (65534, ['volume'], {}, 'ok', 'squashed to 65534'),
                (65534, ['compute'], {}, 'warning', 'nosquash_nids'),
                (None, ['compute'], {}, 'warning', 'may make no file'),
                (None, ['compute'], {'dynamic_ownership': 0}, 'ok', 'root')):
            host = self.host(*roles)
            host.qemu_settings = settings
            self.assert_verdict(status, shares.root_squash(
                self.target(roles=roles, root=uid), host), word)

    def test_qemu_access(self):
        target = self.target(roles=['compute'])
        self.assert_verdict('unknown', shares.qemu_access(
            target, self.host()), 'only root')
        self.as_root()
        self.assert_verdict('unknown', shares.qemu_access(
            target, self.host()), '"qemu-user"')
        owner = {'uid': 64, 'gid': 64, 'mode': 0o750, 'users': {}}
        for search, opens, uid, dynamic, status, word in (
                (False, False, 0, 1, 'failure', 'setfacl -m u:65:x'),
                (True, True, 65534, 0, 'ok', 'can open'),
                (True, False, 0, 1, 'ok', 'libvirt gives'),
                (True, False, 0, 0, 'failure', 'setfacl -d -m u:65:rw'),
                (True, False, 65534, 1, 'failure', 'setfacl -d -m u:65:rw')):
            host = self.host('compute', qemu=(65, 65, [65]))
            host.qemu_settings = {'dynamic_ownership': dynamic}
            target = self.target(
                roles=['compute'], directory=owner, root=uid,
                visit={'search': search, 'open': opens})
            self.assert_verdict(status, shares.qemu_access(target, host), word)

    def test_quota(self):
        for project, used, limit, files, files_limit, status, word in (
                (None, 0, 0, 0, 0, 'unknown', 'no lfs'),
                ([0, False], 0, 0, 0, 0, 'ok', 'no project quota'),
                ([7, False], 0, 0, 0, 0, 'failure', 'project -p 7 -s -r'),
                ([7, True], 5, 0, 3, 0, 'ok', '5 bytes and 3 files'),
                ([7, True], 50, 100, 3, 100, 'ok', '50 of 100 bytes'),
                ([7, True], 96, 100, 3, 100, 'warning', 'setquota -p 7'),
                ([7, True], 50, 100, 96, 100, 'warning', '96 of 100 files'),
                ([7, True], 101, 100, 96, 100, 'failure', 'setquota -p 7'),
                ([7, True], 96, 100, 100, 100, 'failure', 'setquota -p 7'),
                ([7, True], None, 100, 3, 100, 'unknown', 'hides')):
            target = self.target(project=project, project_quota={
                'used': used, 'limit': limit, 'files': files,
                'files_limit': files_limit})
            self.assert_verdict(status, shares.quota(target, self.host()),
                                word)

    def test_hsm(self):
        for found, status, word in (
                (None, 'unknown', 'no lfs'),
                ({'files': 0}, 'unknown', 'purge'),
                ({'files': 3}, 'ok', '3'),
                ({'files': 3, 'archived': ['volume-a']}, 'failure',
                 'archived volume-a'),
                ({'files': 3, 'released': ['volume-b'],
                  'archived': ['volume-a']}, 'failure', 'volume-b away'),
                ({'files': 2, 'unseen': ['volume-c']}, 'unknown',
                 'about volume-c')):
            if found:
                found = {'released': [], 'archived': [], 'unseen': [], **found}
            self.assert_verdict(status, shares.hsm(
                self.target(hsm=found), self.host()), word)


@ddt.ddt
class ProbeTestCase(SharesTestCase):

    def touch(self, *names):
        for name in names:
            os.close(os.open(os.path.join(self.root, name), os.O_CREAT))

    def test_directory(self):
        os.chmod(self.root, 0o750)
        found = os.stat(self.root)
        self.assertEqual({'uid': found.st_uid, 'gid': found.st_gid,
                          'mode': 0o750, 'users': {}},
                         probe.directory(self.root))

    def test_default_acl(self):
        entries = ((1, 7, -1), (2, 6, 64), (2, 7, 65), (4, 0, -1),
                   (16, 5, -1), (32, 0, -1))
        value = struct.pack('<I', 2) + b''.join(
            struct.pack('<HHi', *entry) for entry in entries)
        os.setxattr(self.root, 'system.posix_acl_default', value)
        # What the mask does not let through does not count.
        self.assertEqual({'64': 4, '65': 5},
                         probe.directory(self.root)['users'])

    def test_no_acls(self):
        with mock.patch.object(os, 'getxattr', side_effect=OSError(
                errno.EOPNOTSUPP, 'Not supported')):
            self.assertIsNone(probe.directory(self.root)['users'])

    def test_lock(self):
        self.assertEqual([], probe.lock(self.root, None))
        self.assertEqual([], os.listdir(self.root))

    @ddt.data('flock', 'fcntl')
    def test_lock_that_does_not_hold(self, name):
        self.patch(probe.fcntl, name, lambda *arguments: None)
        self.assertEqual(['flock' if name == 'flock' else 'OFD'],
                         probe.lock(self.root, None))
        self.assertEqual([], os.listdir(self.root))

    def test_no_locks(self):
        self.patch(probe.fcntl, 'flock', mock.Mock(
            side_effect=OSError(errno.ENOSYS, 'Not implemented')))
        self.assertRaises(OSError, probe.lock, self.root, None)
        self.assertEqual([], os.listdir(self.root))

    def test_root(self):
        self.assertEqual(os.getuid(), probe.root(self.root))
        self.assertEqual([], os.listdir(self.root))
        with mock.patch.object(probe.tempfile, 'NamedTemporaryFile',
                               side_effect=PermissionError):
            self.assertIsNone(probe.root(self.root))

    def test_hsm(self):
        names = ['volume-%03d' % number for number in range(250)]
        self.touch(*names, 'base-1', 'volume-000.info', '.tmp-1', 'other')
        flags = {'volume-003': ['exists', 'archived'],
                 'volume-240': ['released', 'exists', 'archived']}
        # One was deleted meanwhile, and one cannot be opened.
        gone, closed = 'base-1', 'volume-002'
        asked = []

        def states(paths):
            """As lfs does, which stops at the first error."""
            asked.append(len(paths))
            names = [os.path.basename(path) for path in paths]
            good = list(itertools.takewhile(
                lambda name: name not in (gone, closed), names))
            if not good:
                raise exception.CommandFailed(command='lfs', exit_code=2,
                                              stderr=names[0])
            return {os.path.join(self.root, name): flags.get(name, [])
                    for name in good}

        self.patch(lfs, 'hsm_states', states)
        listed = [sorted(os.listdir(self.root))]
        listed.append([name for name in listed[0] if name != gone])
        self.patch(os, 'listdir', lambda path: listed[min(len(asked), 1)])
        self.assertEqual({'files': 249, 'released': ['volume-240'],
                          'archived': ['volume-003'],
                          'unseen': ['volume-002']}, probe.hsm(self.root))
        self.assertEqual([200, 200, 200, 47], asked)
        gone, closed = 'none', 'base-1'
        listed[1] = listed[0]
        self.assertRaises(exception.CommandFailed, probe.hsm, self.root)
        self.patch(lfs, 'hsm_states', lambda paths: None)
        self.assertIsNone(probe.hsm(self.root))


class ExamineTestCase(SharesTestCase):
    """The order of the checks, and what one means for the others."""

    def setUp(self):
        super().setUp()
        self.patch(doctor, 'HOST_CHECKS', ())
        self.patch(lfs, 'target_states', lambda fsname: {'a': 'FULL'})
        self.patch(shares.mount, 'check', lambda *arguments: None)
        self.patch(shares.mount, 'mounts_on', lambda *arguments: [
            mock.Mock(source=SHARE.source, options=(), super_options=())])
        self.patch(lfs, 'hsm_states', lambda paths: {})

    def examine(self, target, host=None):
        host = host or self.host('volume')
        host.targets = [target]
        results = list(doctor.examine(host))
        self.assertEqual(
            [name for name, roles, _check in doctor.SHARE_CHECKS
             if 'volume' in roles],
            [result['check'] for result in results])
        return {result['check']: result for result in results}

    def test_answer(self):
        found = self.examine(self.target(project=[0, False]))
        self.assertEqual(
            {'check': 'targets', 'thing': 'lustre:/testfs', 'status': 'ok',
             'message': '1 targets FULL.', 'cure': ''}, found['targets'])
        self.assertNotIn('failure', [result['status']
                                     for result in found.values()])

    def test_share_that_hangs(self):
        found = self.examine(self.target(
            directory=exception.ShareUnavailable(share='x',
                                                 reason='it was silent.'),
            project=[0, False]))
        self.assertEqual('ok', found['space']['status'])
        self.assertEqual('failure', found['directory']['status'])
        self.assertIn('it was silent', found['directory']['message'])
        for check in 'locks', 'quota', 'hsm':
            self.assertEqual('unknown', found[check]['status'])
            self.assertIn('does not answer', found[check]['message'])

    def test_share_that_is_not_fit(self):
        self.patch(shares.mount, 'check', mock.Mock(
            side_effect=exception.UnusableMount(
                share='s', path='/p', reason='reason.', cure='cure.')))
        found = self.examine(self.target())
        self.assertEqual('cure.', found['mount']['cure'])
        for check in 'space', 'directory', 'locks', 'quota', 'hsm':
            self.assertEqual('unknown', found[check]['status'])
        self.assertEqual('ok', found['targets']['status'])
        self.assertEqual([], os.listdir(self.root))

    def test_errors(self):
        failed = exception.CommandFailed(command='lfs', exit_code=95,
                                         stderr='why')
        found = self.examine(self.target(
            project=failed, statfs=OSError(errno.EIO, 'Input/output error'),
            directory=PermissionError(errno.EACCES, 'Permission denied')))
        for check, status, word in (
                ('quota', 'unknown', 'why'),
                ('space', 'failure', 'Input/output error'),
                ('directory', 'unknown', 'not permitted')):
            self.assertEqual(status, found[check]['status'])
            self.assertIn(word, found[check]['message'])

    def test_directory_that_is_no_share(self):
        found = self.examine(shares.Target(None, self.root,
                                           frozenset(['volume'])))
        self.assertEqual('failure', found['mount']['status'])
        self.assertEqual('unknown', found['targets']['status'])

    def test_children(self):
        """The real children of a real worker answer all checks."""
        target = shares.Target(SHARE, self.root, frozenset(['volume']))
        found = self.examine(target)
        for check in 'space', 'locks':
            self.assertEqual('ok', found[check]['status'], found[check])
        self.assertEqual([], os.listdir(self.root))

    def test_errors_of_the_host(self):
        failed = exception.CommandFailed(command='qemu-img', exit_code=127,
                                         stderr='why')
        for error, status, word in (
                (failed, 'unknown', 'why'),
                (PermissionError(errno.EACCES, 'Permission denied'),
                 'unknown', 'not permitted'),
                (OSError(errno.EIO, 'Input/output error'), 'failure',
                 'Input/output error')):
            self.patch(doctor, 'HOST_CHECKS', [
                ('one', doctor.ROLES, mock.Mock(side_effect=error))])
            found, = doctor.examine(self.host('volume'))
            self.assertEqual(status, found['status'])
            self.assertIn(word, found['message'])

    def test_problems(self):
        host = self.host('volume', problems=[
            ('lustre1', doctor.verdict.failure('line 1.', 'Correct it.'))])
        self.assertEqual([{'check': 'shares', 'thing': 'lustre1', 'status':
                           'failure', 'message': 'line 1.',
                           'cure': 'Correct it.'}],
                         list(doctor.examine(host)))
