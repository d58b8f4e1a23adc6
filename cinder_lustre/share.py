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

"""A Lustre share as a value: its text, its identity and its mount point."""

import collections
import dataclasses
import hashlib
import ipaddress
import os
import re

from cinder_lustre import exception

# The scheme of an identity, which names no server.
_IDENTITY_PREFIX = 'lustre'
_FORM = ('expected <nid>[,<nid>...][:<nid>...]:/<fsname>[/<subdirectory>] '
         '[-o <options>], as in 10.0.2.15@tcp:/lustre/cinder')
_MAX_LENGTH = 4096

# An IPv6 address contains the separator of NIDs, so it needs its network.
_IPV6_NID = re.compile(r'(?P<address>[0-9A-Fa-f:.]+)@(?P<net>[a-z][a-z0-9]*)'
                       r'(?=[,:]|$)')
_PLAIN_NID = re.compile(r'(?P<address>[^,:@]*)(?:@(?P<net>[^,:@]*))?'
                        r'(?=[,:]|$)')
_NET = re.compile(r'[a-z][a-z0-9]*', re.ASCII)
_HOST = re.compile(r'[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?',
                   re.ASCII)
_FSNAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_-]{0,7}', re.ASCII)

_REFUSED_OPTIONS = {
    'ro': 'volumes need a writable mount',
    'noflock': 'QEMU and the locks of volumes need "flock"',
    'localflock': 'its locks hold on one host only, so that two hosts could '
                  'write one volume; "flock" is needed',
    'remount': 'it would change an existing mount',
    'bind': 'it would not mount Lustre',
    'rbind': 'it would not mount Lustre',
    'move': 'it would move an existing mount',
}

LineError = collections.namedtuple('LineError', ('number', 'text', 'reason'))


@dataclasses.dataclass(frozen=True)
class Share:
    """A directory of a Lustre file system that holds volumes.

    :ivar fsname: the name of the file system
    :ivar subdir: the directory in it, without slashes at its ends, or ''
    :ivar nids: one tuple of NIDs for each node of the MGS; empty for an
                identity
    :ivar options: mount options of this share, separated by commas, or ''
    """

    fsname: str
    subdir: str = ''
    nids: tuple = ()
    options: str = ''

    @classmethod
    def parse(cls, text):
        """Make a share of its text, with or without NIDs and options.

        :raises: InvalidShare
        """
        try:
            return cls._parse(text)
        except ValueError as exc:
            raise exception.InvalidShare(share=text, reason=str(exc)) from None

    @classmethod
    def _parse(cls, text):
        if len(text) > _MAX_LENGTH:
            raise ValueError('it is longer than %d characters' % _MAX_LENGTH)
        fields = text.split(None, 1)
        if not fields:
            raise ValueError('it is empty; %s' % _FORM)
        servers, slash, path = fields[0].partition(':/')
        if not slash:
            raise ValueError('there is no ":/" before the name of the file '
                             'system; %s' % _FORM)
        fsname, subdir = _parse_path(path)
        nids = () if servers == _IDENTITY_PREFIX else _parse_nids(servers)
        options = parse_options(fields[1]) if len(fields) > 1 else ''
        return cls(fsname, subdir, nids, options)

    @property
    def directory(self):
        """The share's directory, as in /fsname/subdirectory."""
        return '/' + '/'.join(filter(None, (self.fsname, self.subdir)))

    @property
    def identity(self):
        """What names the share for ever, whatever serves it."""
        return '%s:%s' % (_IDENTITY_PREFIX, self.directory)

    @property
    def source(self):
        """What mount(8) gets; the identity of a share without NIDs."""
        if not self.nids:
            return self.identity
        return '%s:%s' % (':'.join(','.join(node) for node in self.nids),
                          self.directory)

    def __str__(self):
        if not self.options:
            return self.source
        return '%s -o %s' % (self.source, self.options)

    def mount_point(self, base):
        """The directory below base that the share is mounted on.

        The paths of existing volumes depend on it: it can never change.
        """
        digest = hashlib.md5(self.identity.encode(), usedforsecurity=False)
        return os.path.join(base, digest.hexdigest())

    @property
    def servers(self):
        """The NIDs in their normal form, as a set."""
        return frozenset(_normalize(nid) for node in self.nids
                         for nid in node)

    @property
    def has_host_names(self):
        """Whether a NID is a host name, which mount(8) replaces."""
        return any(not _is_numeric(nid.partition('@')[0])
                   for node in self.nids for nid in node)


def parse_lines(lines):
    """Read shares from the lines of a file.

    :param lines: lines of text; blank ones and those that begin with # are
                  skipped
    :returns: the valid shares, in their order, and a list of LineError
    """
    shares = {}
    errors = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith('#'):
            continue
        try:
            share = Share.parse(text)
        except exception.InvalidShare as exc:
            errors.append(LineError(number, text, exc.kwargs['reason']))
            continue
        if share.nids:
            shares[number] = share
        else:
            errors.append(LineError(
                number, text, 'it names no server to mount it from; %s'
                % _FORM))
    first = {}
    for number, share in list(shares.items()):
        reason = _find_namesake(number, shares)
        if share.identity in first:
            reason = ('line %d already names this share'
                      % first[share.identity])
        if reason:
            errors.append(LineError(number, str(share), reason))
        else:
            first[share.identity] = number
    return [shares[number] for number in first.values()], sorted(errors)


def _find_namesake(number, shares):
    """Say which line names another file system of the same name."""
    share = shares[number]
    servers = set(share.servers)
    others = {n: other for n, other in shares.items()
              if other.fsname == share.fsname}
    # Lines that have a NID in common mean one file system, also where a
    # third line connects them.
    found = True
    while found:
        found = [n for n, other in others.items() if servers & other.servers]
        for n in found:
            servers |= others.pop(n).servers
    for n, other in others.items():
        return ('line %d (%s) names a file system "%s" with other servers, '
                'and two file systems of one name cannot be used on one host. '
                'If they are the same, write a common NID in both lines'
                % (n, other.source, share.fsname))
    return None


def parse_options(text):
    """The mount options in what follows a share: -o and a list of them.

    :raises: ValueError with the reason
    """
    flag, *options = text.split()
    if flag != '-o' or len(options) != 1:
        raise ValueError('"%s" after the share is not "-o" and mount options '
                         'separated by commas' % text)
    return ','.join(split_options(options[0]))


def split_options(text):
    """The mount options in a string, checked for those that break volumes.

    :raises: ValueError with the option and the reason
    """
    options = text.split(',') if text else []
    for option in options:
        if not option or not option.isprintable() or ' ' in option:
            raise ValueError('"%s" is not a list of mount options separated '
                             'by commas' % text)
        if option in _REFUSED_OPTIONS:
            raise ValueError('mount option "%s" cannot be used: %s' % (
                option, _REFUSED_OPTIONS[option]))
    return options


def merge_options(*texts):
    """Join lists of mount options; a later one replaces its opposite.

    :param texts: options separated by commas
    :raises: ValueError with the option and the reason
    """
    merged = {}
    for text in texts:
        for option in split_options(text):
            name = option.partition('=')[0]
            name = name[2:] if name.startswith('no') else name
            # A replaced option moves to the end.
            merged.pop(name, None)
            merged[name] = option
    return ','.join(merged.values())


def _parse_path(path):
    fsname, slash, subdir = path.partition('/')
    if not _FSNAME.fullmatch(fsname):
        raise ValueError('"%s" is not the name of a file system, which has 1 '
                         'to 8 letters, digits, "_" or "-"' % fsname)
    if subdir.endswith('/'):
        subdir = subdir[:-1]
    if not subdir:
        return fsname, ''
    for name in subdir.split('/'):
        if name in ('', '.', '..'):
            raise ValueError('"%s" in its subdirectory is not the name of a '
                             'directory' % name)
        # A file with shares and /etc/fstab use the backslash as an escape.
        if not name.isprintable() or '\\' in name:
            raise ValueError('%s in its subdirectory has a character that is '
                             'not supported' % ascii(name))
        if len(name.encode()) > 255:
            raise ValueError('a name in its subdirectory is longer than 255 '
                             'bytes')
    return fsname, subdir


def _parse_nids(text):
    nodes = [[]]
    position = 0
    while True:
        match = _IPV6_NID.match(text, position)
        if not match or not _is_ipv6(match['address']):
            match = _PLAIN_NID.match(text, position)
            if not match:
                raise ValueError('"%s" has no valid NID' % text[position:])
            _check_nid(match[0], match['address'], match['net'])
        nodes[-1].append(match[0])
        position = match.end() + 1
        if position > len(text):
            return tuple(tuple(node) for node in nodes)
        if text[match.end()] == ':':
            nodes.append([])


def _check_nid(nid, address, net):
    if not nid:
        raise ValueError('it has an empty NID; an IPv6 address needs its '
                         'network, as in fd00::1@tcp')
    if net is not None and not _NET.fullmatch(net):
        raise ValueError('"%s" in NID "%s" is not the name of an LNet '
                         'network, as in 10.0.2.15@tcp' % (net, nid))
    # Anything of digits and dots alone is a wrong address, no host name;
    # only a network can tell that a number is an address.
    if not (_is_numeric(address) and (net or '.' in address)
            or _HOST.fullmatch(address) and address.strip('0123456789.')):
        raise ValueError('"%s" in NID "%s" is neither an address nor a host '
                         'name' % (address, nid))


def _is_ipv6(address):
    try:
        ipaddress.IPv6Address(address)
        return True
    except ValueError:
        return False


def _is_numeric(address):
    """Whether an address is no host name; some networks count nodes."""
    if address.isascii() and address.isdecimal():
        return True
    try:
        ipaddress.ip_address(address)
        return True
    except ValueError:
        return False


def _normalize(nid):
    address, __, net = nid.partition('@')
    net = net or 'tcp'
    if _is_ipv6(address):
        address = ipaddress.IPv6Address(address).compressed
    return '%s@%s' % (address.lower(),
                      net if net[-1].isdigit() else net + '0')
