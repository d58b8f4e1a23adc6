#!/usr/bin/python3 -EsB
# This is not Lustre: it is the lfs of a stand-in for it.
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

"""lfs: what the transcripts of a real Lustre show of it, and nothing else.

A layout set by setstripe is kept in the attribute user.standin.layout; what
has none takes that of the nearest directory above. No data is striped.
"""

import errno
import getopt
import hashlib
import json
import os
import re
import stat
import sys
import time
import uuid

import registry

VERSION = '2.17.0_dirty'
UNKNOWN = 95

_ATTRIBUTE = 'user.standin.layout'
_STRIPE_SIZE = 4 << 20
_DF = '%-20s %11s %11s %11s %4s  %s'


def unknown(command):
    """The answer to everything that no transcript shows."""
    return registry.Failure(UNKNOWN, (
        'This is not Lustre but a stand-in, which does not know "%s": no '
        'transcript shows it.' % command))


def options(arguments, short, long=()):
    try:
        return getopt.gnu_getopt(arguments, short, long)
    except getopt.GetoptError as exc:
        raise unknown(' '.join(arguments)) from exc


def located(path):
    found = registry.locate(path)
    if found is None:
        raise unknown('%s, which is not on a Lustre' % path)
    return found


def target(entry, kind, index):
    return '%s-%s%04x' % (entry['fsname'], kind, index)


# Layouts

def server_path(entry, below):
    """A path that answers, whatever hangs on the client's mount."""
    return registry.state(entry['fsname'], 'root') + below


def layout_of(entry, below):
    """The components of a file's layout, or of a directory's default one."""
    while True:
        try:
            return json.loads(os.getxattr(server_path(entry, below),
                                          _ATTRIBUTE))
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
        if below == '/':
            return None
        below = os.path.dirname(below)


def stripes(entry, component, inode):
    """The OSTs that hold the objects of a component."""
    osts = entry['pools'].get(component['pool']) or range(entry['osts'])
    count = component['count']
    count = len(osts) if count == -1 else min(count, len(osts))
    first = component['index']
    if first == -1 or first not in osts:
        first = osts[inode % len(osts)]
    begin = list(osts).index(first)
    return [osts[(begin + step) % len(osts)] for step in range(count)]


def ost_of(entry, below):
    """The first OST that a file has an object on."""
    inode = os.stat(server_path(entry, below)).st_ino
    layout = layout_of(entry, below) or [component()]
    for each in layout:
        if each['pattern'] == 'raid0':
            return stripes(entry, each, inode)[0]


def component(end=-1):
    return {'end': end, 'count': 1, 'size': _STRIPE_SIZE, 'index': -1,
            'pool': '', 'pattern': 'raid0'}


def number(text, what):
    """A count or a size, with an optional K, M, G or T."""
    found = re.fullmatch(r'(-?\d+)([KMGT]?)', text, re.IGNORECASE)
    unit = found and ' KMGT'.index((found[2] or ' ').upper())
    value = int(found[1]) << 10 * unit if found else None
    if value is None or (what == 'count' and value < -1) or (
            what == 'size' and value % 65536):
        raise registry.Failure(4, (
            "lfs setstripe setstripe: invalid stripe %s '%s'\n"
            'Usage: setstripe [OPTION]... FILENAME|DIRECTORY' % (what, text)))
    if what == 'size' and value >= 4 << 30:
        raise registry.Failure(errno.EINVAL, (
            "lfs setstripe: error: stripe size '%d' over 4GB limit: Invalid "
            'argument (22)' % value))
    return value


def wanted(given):
    """The layout that the options of setstripe describe."""
    layout = []
    for option, value in given:
        if option in ('-E', '--component-end'):
            layout.append(component(number(value, 'end')))
            continue
        if not layout:
            layout.append(component())
        if option in ('-c', '--stripe-count'):
            layout[-1]['count'] = number(value, 'count')
        elif option in ('-S', '--stripe-size'):
            layout[-1]['size'] = number(value, 'size')
        elif option in ('-i', '--stripe-index'):
            layout[-1]['index'] = number(value, 'index')
        elif option in ('-p', '--pool'):
            layout[-1]['pool'] = value.split('.')[-1]
        elif option in ('-L', '--layout'):
            layout[-1].update(pattern=value, count=0, size=layout[-1]['end'])
    return layout or [component()]


def setstripe(arguments):
    given, paths = options(arguments, 'c:S:i:p:E:L:d', [
        'stripe-count=', 'stripe-size=', 'stripe-index=', 'pool=', 'layout=',
        'component-end=', 'delete'])
    layout = wanted(given)
    for path in paths:
        entry = (registry.locate(path) or (None,))[0]
        for each in layout:
            if entry and each['pool'] and each['pool'] not in entry['pools']:
                raise registry.Failure(errno.EINVAL, (
                    "lfs setstripe: pool '%s fsname %s' does not exist: No "
                    'such file or directory (2)' % (each['pool'],
                                                    entry['fsname'])))
        try:
            descriptor, made = opened(path)
        except OSError as exc:
            raise registry.Failure(exc.errno, (
                "lfs setstripe: unable to open '%s': %s (%d)" % (
                    path, exc.strerror, exc.errno))) from exc
        try:
            if entry is None:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            if not made and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EEXIST, 'stripe already set')
            if any(each['index'] >= entry['osts'] for each in layout):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if {('-d', ''), ('--delete', '')} & set(given):
                if _ATTRIBUTE in os.listxattr(descriptor):
                    os.removexattr(descriptor, _ATTRIBUTE)
            else:
                os.setxattr(descriptor, _ATTRIBUTE,
                            json.dumps(layout).encode())
        except OSError as exc:
            raise registry.Failure(exc.errno, (
                "lfs setstripe: setstripe error for '%s': %s" % (
                    path, exc.strerror))) from exc
        finally:
            os.close(descriptor)


def opened(path):
    """Open a directory or a new file; the latter is made."""
    if os.path.isdir(path):
        return os.open(path, os.O_RDONLY), False
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, os.O_RDONLY), False


def getstripe(arguments):
    given, paths = options(arguments, 'cSipd', ['component-count'])
    asked = [option for option, _value in given]
    for path in paths:
        found = registry.locate(path)
        try:
            if found is None:
                os.stat(path)
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            describe(found[0], found[2], path, asked)
        except OSError as exc:
            first = ''
            if exc.errno == errno.ENOTTY:
                first = ("lfs getstripe: cb_getstripe: '%s' not on a Lustre "
                         'fs?: %s (25)\n' % (path, exc.strerror))
            raise registry.Failure(exc.errno, (
                "%slfs: getstripe for '%s' failed: %s" % (
                    first, path, exc.strerror))) from exc


def describe(entry, below, path, asked, deep=True):
    found = os.stat(server_path(entry, below))
    own = layout_of(entry, below)
    layout = own or [component()]
    if '--component-count' in asked:
        print('%d\n' % len(layout))
        return
    first = layout[0]
    if stat.S_ISDIR(found.st_mode):
        if len(layout) > 1 or set(asked) - {'-d'}:
            raise unknown('getstripe %s %s' % (' '.join(asked), path))
        if '-d' not in asked:
            print(path)
        print('stripe_count:  %d stripe_size:   %d pattern:       %s '
              'stripe_offset: %d%s\n' % (
                  first['count'], first['size'], 'raid0' if own else '0',
                  first['index'], first['pool'] and
                  ' pool:          ' + first['pool']))
        if '-d' not in asked and deep:
            for name in os.listdir(server_path(entry, below)):
                describe(entry, os.path.join(below, name),
                         os.path.join(path, name), [], deep=False)
        return
    osts = stripes(entry, first, found.st_ino)
    facts = {'-c': ('lmm_stripe_count:  ', len(osts)),
             '-S': ('lmm_stripe_size:   ', first['size']),
             '-i': ('lmm_stripe_offset: ', osts[0] if osts else 0),
             '-p': ('lmm_pool:          ', first['pool'])}
    asked = [option for option in facts if option in asked]
    if asked:
        for option in asked:
            name, value = facts[option]
            print('%s%s' % (name if len(asked) > 1 else '', value))
    else:
        print(path)
        if len(layout) > 1:
            composite(entry, layout, found.st_ino)
            return
        print('lmm_stripe_count:  %d\nlmm_stripe_size:   %d\n'
              'lmm_pattern:       raid0\nlmm_layout_gen:    0\n'
              'lmm_stripe_offset: %d' % (len(osts), first['size'], osts[0]))
        if first['pool']:
            print('lmm_pool:          ' + first['pool'])
        print('\tobdidx\t\t objid\t\t objid\t\t group')
        for ost in osts:
            print('\t%6d\t%14d\t%#13x\t%#14x' % (
                ost, found.st_ino, found.st_ino, sequence(ost)))
    print()


def sequence(ost):
    return 0x240000400 + 0x40000000 * ost


def composite(entry, layout, inode):
    print('  lcm_layout_gen:    %d\n  lcm_mirror_count:  1\n'
          '  lcm_entry_count:   %d' % (len(layout), len(layout)))
    start = 0
    for index, each in enumerate(layout):
        print('    lcme_id:             %d\n    lcme_mirror_id:      0\n'
              '    lcme_flags:          %s\n    lcme_extent.e_start: %d\n'
              '    lcme_extent.e_end:   %s\n      lmm_stripe_count:  %d\n'
              '      lmm_stripe_size:   %d\n      lmm_pattern:       %s\n'
              '      lmm_layout_gen:    0' % (
                  index + 1, '0' if index else 'init', start,
                  'EOF' if each['end'] == -1 else each['end'], each['count'],
                  each['size'], each['pattern']))
        start = each['end']
        osts = stripes(entry, each, inode)
        if each['pattern'] == 'mdt':
            print('      lmm_mdt_index:     0')
        elif index:
            print('      lmm_stripe_offset: -1')
        else:
            print('      lmm_stripe_offset: %d\n      lmm_objects:' % osts[0])
            for step, ost in enumerate(osts):
                print('      - %3d: { l_ost_idx: %3d, l_fid: [%#x:%#x:0x0] }'
                      % (step, ost, sequence(ost), inode))
        print()


# What a mount is made of

def getname(arguments):
    given, paths = options(arguments, 'niu')
    if not paths:
        for entry, each in registry.client_mounts():
            print('%s-%s %s' % (entry['fsname'], registry.instance(each),
                                each.target))
        return
    for path in paths:
        entry, each, _below = located(path)
        name = registry.instance(each)
        print({'-n': entry['fsname'], '-i': name, '-u': client_uuid(name),
               '': '%s-%s' % (entry['fsname'], name)}[
                   given[-1][0] if given else ''])


def client_uuid(name):
    return uuid.UUID(hashlib.sha256(name.encode()).hexdigest()[:32])


def df(arguments):
    given, paths = options(arguments, 'ip:')
    given = dict(given)
    if '-i' in given:
        print('UUID                      Inodes       IUsed       IFree IUse%'
              '  Mounted on')
    else:
        print(_DF % ('UUID', '1K-blocks', 'Used', 'Available', 'Use%',
                     'Mounted on'), flush=True)
    # Without a path it never waits for a dead OST, which may be another's.
    found = [(*located(path)[:2], True) for path in paths] or [
        (*pair, False) for pair in registry.client_mounts()]
    for entry, each, wait in found:
        try:
            disk_free(entry, each, given, wait)
        except FileNotFoundError:
            # Another file system, destroyed at this moment.
            continue


def disk_free(entry, each, given, wait):
    root = os.statvfs(server_path(entry, '/'))
    if '-i' in given:
        whole = [root.f_files, root.f_files - root.f_ffree, root.f_ffree]
    else:
        kbytes = root.f_frsize // 1024
        whole = [root.f_blocks * kbytes,
                 (root.f_blocks - root.f_bfree) * kbytes,
                 root.f_bavail * kbytes]
    part = [value // entry['osts'] for value in whole]

    def line(name, values, where):
        # The summary of inodes is the MDT's.
        used = -(-100 * values[1] // (values[1] + values[2] or 1))
        print(_DF % (name, *values, '%d%%' % used, where), flush=True)

    answers(entry, wait, lambda now: now['frozen'])
    line(target(entry, 'MDT', 0) + '_UUID', whole if '-i' in given else part,
         each.target + '[MDT:0]')
    osts = entry['pools'].get(given.get('-p'), range(entry['osts']))
    shown = 0
    for ost in osts:
        if answers(entry, wait, lambda now: ost in now['dead'].values()):
            shown += 1
            line(target(entry, 'OST', ost) + '_UUID', part,
                 '%s[OST:%d]' % (each.target, ost))
    print()
    line('filesystem_summary:', whole if '-i' in given else
         [value * shown for value in part], each.target)
    print()


def answers(entry, wait, is_silent):
    """Whether a target answers; waits until it does, as Lustre's clients."""
    while is_silent(registry.load(entry['fsname']) or entry):
        if not wait:
            return False
        time.sleep(0.2)
    return True


def pool_list(arguments, program='lfs'):
    name = arguments[0]
    if name.startswith('/'):
        name = located(name)[0]['fsname']
    fsname, _dot, pool = name.partition('.')
    entry = registry.load(fsname)
    if entry is None:
        raise unknown('pool_list of %s, which is not there' % fsname)
    if not pool:
        print('Pools from %s:' % fsname)
        for each in entry['pools']:
            print('%s.%s' % (fsname, each))
        return
    print('Pool: %s' % name, flush=True)
    if pool not in entry['pools']:
        raise registry.Failure(errno.ENOENT, (
            '%s pool_list: cannot open /proc/fs/lustre/lov/%s-mdtlov/pools/%s'
            ': No such file or directory (2)' % (
                program, target(entry, 'MDT', 0), pool)))
    for ost in entry['pools'][pool]:
        print(target(entry, 'OST', ost) + '_UUID')


def check(arguments):
    if arguments not in (['all'], ['osts']):
        raise unknown('lfs check ' + ' '.join(arguments))
    for entry, each in registry.client_mounts():
        name = registry.instance(each)
        for ost in range(entry['osts']):
            import_name = '%s-osc-%s' % (target(entry, 'OST', ost), name)
            if ost in entry['dead'].values() or entry['frozen']:
                print("lfs check: error: check '%s': Input/output error (5)" %
                      import_name, file=sys.stderr)
            else:
                print(import_name + ' active.')
        if arguments == ['all']:
            print('%s-mdc-%s active.' % (target(entry, 'MDT', 0), name))
            print('MGC%s active.' % entry['nids'][0])


def run(program, commands, arguments):
    """Carry a command out, and end as the program would."""
    try:
        if arguments[:1] == ['--version']:
            print(program, VERSION)
        elif arguments[:1] and arguments[0] in commands:
            commands[arguments[0]](arguments[1:])
        else:
            raise unknown(' '.join([program] + arguments))
    except registry.Failure as exc:
        sys.stdout.flush()
        print(exc, file=sys.stderr)
        sys.exit(exc.code)


if __name__ == '__main__':
    run('lfs', {'setstripe': setstripe, 'getstripe': getstripe, 'df': df,
                'getname': getname, 'pool_list': pool_list, 'check': check},
        sys.argv[1:])
