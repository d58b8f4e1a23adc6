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

import os

import ddt
import hypothesis
from hypothesis import strategies
import testtools

from cinder_lustre import exception
from cinder_lustre import share

# Always the same examples: a test that fails once in a while helps nobody.
same_examples = hypothesis.settings(deadline=None, derandomize=True,
                                    database=None)

_ipv4 = strategies.ip_addresses(v=4).map(str)
_ipv6 = strategies.ip_addresses(v=6).map(str)
_host = strategies.from_regex(
    r'[a-z][a-z0-9-]{0,10}[a-z](\.[a-z]{2,5}){0,2}', fullmatch=True)
_net = strategies.from_regex(r'(tcp|o2ib|kfi|gni)([0-9]|[1-9][0-9])?',
                             fullmatch=True)
_nid = strategies.one_of(
    _ipv4, _host.filter(lambda name: name != 'lustre'),
    strategies.tuples(strategies.one_of(_ipv4, _ipv6, _host), _net).map(
        '@'.join))
_node = strategies.lists(_nid, min_size=1, max_size=3).map(tuple)
_nids = strategies.lists(_node, min_size=1, max_size=3).map(tuple)
_fsname = strategies.from_regex(r'[A-Za-z0-9_][A-Za-z0-9_-]{0,7}',
                                fullmatch=True)
_name = strategies.text(
    strategies.characters(exclude_characters='/\\ ', exclude_categories=(
        'C', 'Z')), min_size=1, max_size=20).filter(
            lambda name: name not in ('.', '..') and name.isprintable())
_subdir = strategies.lists(_name, max_size=3).map('/'.join)
_options = strategies.lists(strategies.sampled_from(
    ['flock', 'user_xattr', 'nosuid', 'retry=3', 'exclude=fs-OST0001']),
    max_size=3).map(','.join)
_share = strategies.builds(share.Share, _fsname, _subdir, _nids, _options)


# Some of the texts would make test names that no tool can print.
@ddt.ddt(testNameFormat=ddt.TestNameFormat.INDEX_ONLY)
class ShareTestCase(testtools.TestCase):

    @ddt.data(
        ('10.0.2.15@tcp:/testfs', (('10.0.2.15@tcp',),), 'testfs', '', ''),
        ('10.0.2.15:/testfs', (('10.0.2.15',),), 'testfs', '', ''),
        ('10.0.2.15@tcp:/testfs/', (('10.0.2.15@tcp',),), 'testfs', '', ''),
        ('mgs-1.example.com@o2ib2:/a/b/c',
         (('mgs-1.example.com@o2ib2',),), 'a', 'b/c', ''),
        ('10.0.0.1@tcp,10.1.0.1@o2ib:10.0.0.2@tcp,10.1.0.2@o2ib:/scratch_',
         (('10.0.0.1@tcp', '10.1.0.1@o2ib'),
          ('10.0.0.2@tcp', '10.1.0.2@o2ib')), 'scratch_', '', ''),
        ('10.0.0.1:10.0.0.2:/fs', (('10.0.0.1',), ('10.0.0.2',)), 'fs', '',
         ''),
        ('10.0.0.1:10.0.0.2@tcp:/fs', (('10.0.0.1',), ('10.0.0.2@tcp',)),
         'fs', '', ''),
        ('fd00::1@tcp:/fs', (('fd00::1@tcp',),), 'fs', '', ''),
        ('fd00::@tcp:/fs', (('fd00::@tcp',),), 'fs', '', ''),
        ('fd00::1@tcp,fd00::2@o2ib:2001:db8::3@tcp1:/fs/x',
         (('fd00::1@tcp', 'fd00::2@o2ib'), ('2001:db8::3@tcp1',)), 'fs', 'x',
         ''),
        ('10.0.0.1@tcp:fd00::1@tcp:/fs',
         (('10.0.0.1@tcp',), ('fd00::1@tcp',)), 'fs', '', ''),
        ('10.0.0.1:fd00::1@tcp:/fs', (('10.0.0.1',), ('fd00::1@tcp',)), 'fs',
         '', ''),
        ('27@gni:/lus', (('27@gni',),), 'lus', '', ''),
        ('12@kfi1:/lus', (('12@kfi1',),), 'lus', '', ''),
        ('0@lo:/lus', (('0@lo',),), 'lus', '', ''),
        ('lustre@tcp:/lus', (('lustre@tcp',),), 'lus', '', ''),
        ('lustre:/testfs', (), 'testfs', '', ''),
        ('lustre:/testfs/a', (), 'testfs', 'a', ''),
        ('10.0.2.15@tcp:/testfs -o flock', (('10.0.2.15@tcp',),), 'testfs',
         '', 'flock'),
        ('10.0.2.15@tcp:/testfs/d\t -o  flock,user_xattr',
         (('10.0.2.15@tcp',),), 'testfs', 'd', 'flock,user_xattr'),
        ('10.0.2.15@tcp:/testfs/a:/b', (('10.0.2.15@tcp',),), 'testfs',
         'a:/b', ''),
        ('10.0.2.15@tcp:/testfs/#d/..d', (('10.0.2.15@tcp',),), 'testfs',
         '#d/..d', ''),
    )
    @ddt.unpack
    def test_parse(self, text, nids, fsname, subdir, options):
        self.assertEqual(share.Share(fsname, subdir, nids, options),
                         share.Share.parse(text))

    @ddt.data(
        ('', 'it is empty'),
        ('   ', 'it is empty'),
        ('testfs', 'no ":/" before the name'),
        ('/dev/vdb', 'no ":/" before the name'),
        ('10.0.2.15@tcp', 'no ":/" before the name'),
        ('10.0.2.15@tcp/testfs', 'no ":/" before the name'),
        ('10.0.2.15@tcp:testfs', 'no ":/" before the name'),
        (':/testfs', 'empty NID'),
        ('10.0.2.15@tcp,:/testfs', 'empty NID'),
        ('10.0.2.15@tcp::/testfs', 'empty NID'),
        ('10.0.2.15@tcp::10.0.2.16@tcp:/testfs', 'empty NID'),
        ('fd00::1:/testfs', 'empty NID; an IPv6 address needs its network'),
        ('2001:db8:0:0:0:0:0:1:/testfs', '"2001" in NID "2001" is neither'),
        ('[fd00::1]@tcp:/testfs', 'is neither an address nor a host name'),
        ('fe80::1%eth0@tcp:/testfs', 'empty NID'),
        ('10.0.2.300@tcp:/testfs', '"10.0.2.300" in NID "10.0.2.300@tcp"'),
        ('10.0.2@tcp:/testfs', '"10.0.2" in NID "10.0.2@tcp"'),
        ('10.0.2.15@:/testfs', '"" in NID "10.0.2.15@" is not the name of'),
        ('10.0.2.15@TCP:/testfs', '"TCP" in NID "10.0.2.15@TCP" is not'),
        ('10.0.2.15@1:/testfs', '"1" in NID "10.0.2.15@1" is not the name'),
        ('@tcp:/testfs', '"" in NID "@tcp" is neither'),
        ('-host@tcp:/testfs', '"-host" in NID "-host@tcp" is neither'),
        ('host$@tcp:/testfs', '"host$" in NID'),
        ('10.0.2.15@tcp@tcp:/testfs', 'has no valid NID'),
        ('10.0.2.15@tcp:/', '"" is not the name of a file system'),
        ('10.0.2.15@tcp:/toolongfsname', '"toolongfsname" is not the name'),
        ('10.0.2.15@tcp:/ninechars', '"ninechars" is not the name'),
        ('10.0.2.15@tcp:/-fs', '"-fs" is not the name'),
        ('10.0.2.15@tcp:/te.st', '"te.st" is not the name'),
        ('10.0.2.15@tcp://testfs', '"" is not the name of a file system'),
        ('10.0.2.15@tcp:/..', '".." is not the name of a file system'),
        ('10.0.2.15@tcp:/testfs/..', '".." in its subdirectory'),
        ('10.0.2.15@tcp:/testfs/a/../b', '".." in its subdirectory'),
        ('10.0.2.15@tcp:/testfs/./a', '"." in its subdirectory'),
        ('10.0.2.15@tcp:/testfs//a', '"" in its subdirectory'),
        ('10.0.2.15@tcp:/testfs/a//', '"" in its subdirectory'),
        ('10.0.2.15@tcp:/testfs/a\\040b', 'a character that is not'),
        ('10.0.2.15@tcp:/testfs/a\x00b', "'a\\x00b' in its subdirectory"),
        ('10.0.2.15@tcp:/testfs/' + 256 * 'x', 'longer than 255 bytes'),
        ('10.0.2.15@tcp:/testfs/' + 128 * '\xe9', 'longer than 255 bytes'),
        ('10.0.2.15@tcp:/testfs/' + 4096 * 'x', 'longer than 4096'),
        ('10.0.2.15@tcp:/testfs flock', '"flock" after the share is not'),
        ('10.0.2.15@tcp:/testfs -o', '"-o" after the share is not'),
        ('10.0.2.15@tcp:/testfs -o flock -o x', 'after the share is not'),
        ('10.0.2.15@tcp:/testfs -o flock # mine', 'after the share is not'),
        ('10.0.2.15@tcp:/testfs -o ,flock', 'not a list of mount options'),
        ('10.0.2.15@tcp:/testfs -o flock,', 'not a list of mount options'),
        ('10.0.2.15@tcp:/testfs -o noflock', 'QEMU and the locks'),
        ('10.0.2.15@tcp:/testfs -o flock,localflock', 'hold on one host'),
        ('10.0.2.15@tcp:/testfs -o ro', 'need a writable mount'),
        ('10.0.2.15@tcp:/testfs -o remount', 'change an existing mount'),
    )
    @ddt.unpack
    def test_parse_refuses(self, text, reason):
        error = self.assertRaises(exception.InvalidShare, share.Share.parse,
                                  text)
        self.assertIn(reason, error.kwargs['reason'])
        self.assertIn(text, str(error))

    # Frozen: existing volumes lie below these directories.
    @ddt.data(
        ('10.0.2.15@tcp:/testfs', 'lustre:/testfs',
         '89e7a3d468737f10432fb449dac014ac'),
        ('10.0.2.15@tcp:/testfs/', 'lustre:/testfs',
         '89e7a3d468737f10432fb449dac014ac'),
        ('fd00::1@tcp,mgs@o2ib:10.0.0.9:/testfs -o flock', 'lustre:/testfs',
         '89e7a3d468737f10432fb449dac014ac'),
        ('10.0.2.15@tcp:/testfs/sub', 'lustre:/testfs/sub',
         'ccef5580a814ffe32bd32d2ed193cabc'),
        ('10.0.2.15@tcp:/scratch/openstack/cinder/',
         'lustre:/scratch/openstack/cinder',
         '0ddf57dd047918043e53975118fe20f0'),
        ('10.0.2.15@tcp:/fs/\xe9t\xe9', 'lustre:/fs/\xe9t\xe9',
         '975ed68b6fd90ac36355902a653e1945'),
    )
    @ddt.unpack
    def test_identity_and_mount_point(self, text, identity, digest):
        parsed = share.Share.parse(text)
        self.assertEqual(identity, parsed.identity)
        self.assertEqual('/var/lib/cinder/mnt/' + digest,
                         parsed.mount_point('/var/lib/cinder/mnt'))

    @ddt.data(
        ('10.0.2.15:/fs', '10.0.2.15@tcp0:/fs', True),
        ('10.0.2.15@tcp:/fs', '10.0.2.15@tcp0:/fs', True),
        ('10.0.2.15@tcp:/fs', '10.0.2.15@tcp1:/fs', False),
        ('10.0.2.15@tcp:/fs', '10.0.2.15@o2ib:/fs', False),
        ('10.0.2.15@o2ib:/fs', '10.0.2.15@o2ib0:/fs', True),
        ('MGS.example.com:/fs', 'mgs.example.com@tcp:/fs', True),
        ('fd00:0::1@tcp:/fs', 'FD00::1@tcp0:/fs', True),
        ('a:b:/fs', 'b,a:/fs', True),
    )
    @ddt.unpack
    def test_servers(self, one, other, same):
        self.assertEqual(same, share.Share.parse(one).servers ==
                         share.Share.parse(other).servers)

    @ddt.data(('10.0.2.15@tcp:fd00::1@tcp:27@gni:/fs', False),
              ('10.0.2.15@tcp,mgs@tcp:/fs', True), ('lustre:/fs', False))
    @ddt.unpack
    def test_has_host_names(self, text, expected):
        self.assertEqual(expected, share.Share.parse(text).has_host_names)

    @same_examples
    @hypothesis.given(_share)
    def test_round_trip(self, made):
        self.assertEqual(made, share.Share.parse(str(made)))
        self.assertEqual(made.identity,
                         share.Share.parse(made.identity).identity)

    @same_examples
    @hypothesis.given(_share, _nids, _options,
                      strategies.sampled_from(['', '/']))
    def test_identity_ignores_servers(self, made, nids, options, slash):
        other = share.Share(made.fsname, made.subdir, nids, options)
        other = share.Share.parse(other.source + slash)
        for variant in (other, share.Share.parse(made.identity + slash)):
            self.assertEqual(made.identity, variant.identity)
            self.assertEqual(made.mount_point('/m'),
                             variant.mount_point('/m'))

    @same_examples
    @hypothesis.given(_share, _share)
    def test_mount_points_differ(self, one, other):
        hypothesis.assume(one.identity != other.identity)
        self.assertNotEqual(one.mount_point('/m'), other.mount_point('/m'))

    @same_examples
    @hypothesis.given(_nids, _fsname, strategies.lists(
        strategies.one_of(_name, strategies.sampled_from(['..', '.', ''])),
        min_size=1, max_size=6))
    def test_no_path_traversal(self, nids, fsname, names):
        text = share.Share(fsname, '/'.join(names), nids).source
        try:
            parsed = share.Share.parse(text)
        except exception.InvalidShare:
            self.assertTrue({'.', '..', ''} & set(names))
            return
        root = os.path.join('/', fsname)
        path = os.path.normpath(os.path.join(root, parsed.subdir))
        self.assertEqual(path, parsed.directory)
        self.assertTrue((path + '/').startswith(root + '/'))

    @same_examples
    @hypothesis.given(strategies.one_of(
        strategies.text(),
        strategies.text(strategies.sampled_from('af01:@,/.- o\t\\')),
        strategies.binary().map(
            lambda data: data.decode(errors='surrogateescape'))))
    def test_any_text(self, text):
        try:
            parsed = share.Share.parse(text)
        except exception.InvalidShare as exc:
            self.assertIn(exc.kwargs['reason'], str(exc))
        else:
            self.assertEqual(parsed, share.Share.parse(str(parsed)))
        shares, errors = share.parse_lines(text.splitlines())
        for line in errors:
            self.assertTrue(line.reason)


@ddt.ddt
class OptionsTestCase(testtools.TestCase):

    @ddt.data(
        ((), ''),
        (('',), ''),
        (('flock', ''), 'flock'),
        (('flock', 'user_xattr'), 'flock,user_xattr'),
        (('flock,nosuid', 'suid'), 'flock,suid'),
        (('flock,retry=1', 'retry=3,flock'), 'retry=3,flock'),
        (('flock,noatime', 'atime', 'noatime'), 'flock,noatime'),
    )
    @ddt.unpack
    def test_merge(self, texts, expected):
        self.assertEqual(expected, share.merge_options(*texts))

    @ddt.data('noflock', 'user_xattr,localflock', 'ro', 'remount', 'bind',
              'a b', 'a,,b')
    def test_merge_refuses(self, text):
        error = self.assertRaises(ValueError, share.merge_options, 'flock',
                                  text)
        self.assertIn(text.split(',')[-1], str(error))


@ddt.ddt
class ParseLinesTestCase(testtools.TestCase):

    def _parse(self, text):
        shares, errors = share.parse_lines(text.splitlines(keepends=True))
        return [str(s) for s in shares], errors

    def test_good_lines(self):
        shares, errors = self._parse(
            '# the fast one\r\n'
            '\r\n'
            '10.0.2.15@tcp:/fast -o flock\r\n'
            '   \t\n'
            '  10.0.2.15@tcp:/slow/cinder  \n'
            '  # the end')
        self.assertEqual(['10.0.2.15@tcp:/fast -o flock',
                          '10.0.2.15@tcp:/slow/cinder'], shares)
        self.assertEqual([], errors)

    def test_nothing(self):
        self.assertEqual(([], []), self._parse(''))

    def test_bad_lines_do_not_hide_good_ones(self):
        shares, errors = self._parse('10.0.2.15@tcp:/fast\n'
                                     'nonsense\n'
                                     '10.0.2.15@tcp:/a/..\n'
                                     '10.0.2.15@tcp:/slow\n')
        self.assertEqual(['10.0.2.15@tcp:/fast', '10.0.2.15@tcp:/slow'],
                         shares)
        self.assertEqual([(2, 'nonsense'), (3, '10.0.2.15@tcp:/a/..')],
                         [line[:2] for line in errors])
        self.assertIn('no ":/"', errors[0].reason)
        self.assertIn('".."', errors[1].reason)

    def test_errors_are_in_the_order_of_lines(self):
        errors = self._parse('10.0.2.15@tcp:/fs\n10.0.2.15@tcp:/fs\n'
                             'nonsense\n')[1]
        self.assertEqual([2, 3], [line.number for line in errors])

    def test_identity_names_no_server(self):
        shares, errors = self._parse('lustre:/testfs')
        self.assertEqual([], shares)
        self.assertIn('names no server', errors[0].reason)

    @ddt.data('10.0.2.15@tcp:/fs/sub', '10.0.2.15@tcp:/fs/sub/ -o noatime',
              '10.0.2.16@tcp:10.0.2.15@tcp:/fs/sub')
    def test_duplicate(self, again):
        shares, errors = self._parse('#\n10.0.2.15@tcp:/fs/sub\n%s\n' % again)
        self.assertEqual(['10.0.2.15@tcp:/fs/sub'], shares)
        self.assertEqual(3, errors[0].number)
        self.assertEqual('line 2 already names this share', errors[0].reason)

    @ddt.data('fs', 'fs/b')
    def test_two_file_systems_of_one_name(self, other):
        shares, errors = self._parse('10.0.2.15@tcp:/fs\n'
                                     '10.0.2.15@tcp:/good\n'
                                     '10.0.9.9@tcp:/%s\n' % other)
        self.assertEqual(['10.0.2.15@tcp:/good'], shares)
        self.assertEqual([1, 3], [line.number for line in errors])
        self.assertIn('line 3 (10.0.9.9@tcp:/%s) names a file system "fs"'
                      % other, errors[0].reason)
        self.assertIn('line 1 (10.0.2.15@tcp:/fs) names a file system "fs"',
                      errors[1].reason)

    @ddt.data(
        # A common NID, in whatever form.
        ('10.0.2.15:/fs/a', '10.0.2.15@tcp0,10.1.0.1@o2ib:/fs/b'),
        # Two nodes that only the third line connects, in any order.
        ('10.0.0.1@tcp:/fs/a', '10.0.0.2@tcp:/fs/b',
         '10.0.0.1@tcp:10.0.0.2@tcp:/fs/c'),
        ('10.0.0.1@tcp:10.0.0.2@tcp:/fs/c', '10.0.0.1@tcp:/fs/a',
         '10.0.0.2@tcp:/fs/b'),
    )
    def test_one_file_system(self, lines):
        self.assertEqual((list(lines), []), self._parse('\n'.join(lines)))
