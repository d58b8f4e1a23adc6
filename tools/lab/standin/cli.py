# This is not Lustre: it manages a stand-in for it.
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

"""standin: file systems that look like Lustre to what mounts and asks them.

A machine without Lustre gets a mount.lustre, an lfs and an lctl that speak
as Lustre's do, over ext4 images on loop devices.
"""

import argparse
import filecmp
import json
import os
import re
import shutil
import sys

import lfs
import lifecycle
import registry

MARK = b'This is not Lustre'
LIBRARY = '/usr/local/lib/cinder-lustre-standin'
COMMANDS = {'/sbin/mount.lustre': 'mount_lustre.py', '/usr/bin/lfs': 'lfs.py',
            '/usr/sbin/lctl': 'lctl.py'}
_HERE = os.path.dirname(os.path.abspath(__file__))
_UNITS = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


def size(value):
    """Bytes, with an optional K, M, G or T."""
    unit = _UNITS.get(value[-1:].upper())
    return int(value[:-1]) * unit if unit else int(value)


def known(name):
    entry = registry.load(name)
    if entry is None:
        raise registry.Error('There is no file system "%s"; "standin list" '
                             'shows those that are.' % name)
    return entry


# The commands

def install(_args=None):
    """Copy the commands to where mount(8) and everybody find them."""
    for path in COMMANDS:
        if os.path.lexists(path) and not is_ours(path):
            raise registry.Error('%s is not the stand-in\'s, so this machine '
                                 'has Lustre: use that.' % path)
    os.makedirs(LIBRARY, exist_ok=True)
    for name in os.listdir(_HERE):
        source = os.path.join(_HERE, name)
        target = os.path.join(LIBRARY, name)
        if name.startswith('__') or (os.path.exists(target) and filecmp.cmp(
                source, target, shallow=False)):
            continue
        shutil.copy2(source, target + '.new')
        os.rename(target + '.new', target)
    for path, name in COMMANDS.items():
        if not os.path.lexists(path):
            os.symlink(os.path.join(LIBRARY, name), path)


def is_ours(path):
    return os.path.dirname(os.path.realpath(path)) == LIBRARY


def uninstall(_args):
    """Remove the commands, unless a file system still needs them."""
    if registry.entries():
        print('Kept %s: needed by %s.' % (', '.join(COMMANDS), ', '.join(
            entry['fsname'] for entry in registry.entries())))
        return
    for path in COMMANDS:
        if os.path.lexists(path) and is_ours(path):
            os.unlink(path)
    shutil.rmtree(LIBRARY, ignore_errors=True)


def create(args):
    """Make a file system and start it; repairs a creation that was killed."""
    if not re.fullmatch(r'[A-Za-z0-9_-]{1,8}', args.name):
        raise registry.Error('"%s" is no fsname: it needs 1 to 8 letters, '
                             'digits, "_" or "-".' % args.name)
    directory = os.path.realpath(args.dir)
    os.makedirs(directory, exist_ok=True)
    image = os.path.join(directory, args.name + '.img')
    entry = registry.load(args.name)
    if entry and entry['image'] != image:
        raise registry.Error('The fsname "%s" is taken, by %s.' % (
            args.name, entry['image']))
    entry = entry or stored(image)
    if not entry:
        uid, gid = args.owner.split(':')
        entry = {'fsname': args.name, 'image': image, 'loop': None,
                 'size': args.size, 'nids': args.nid or ['127.0.0.1@tcp'],
                 'osts': args.osts, 'uid': int(uid), 'gid': int(gid),
                 'mode': args.mode, 'fuse': args.fuse, 'pools': {},
                 'quota': None, 'enospc': False, 'unreachable': None,
                 'frozen': False, 'dead': {}}
    registered(entry)
    print('%s:/%s' % (':'.join(entry['nids']), entry['fsname']))


def registered(entry):
    """Start a file system, which keeps the commands where they are."""
    with registry.locked():
        install()
        lifecycle.register(entry)
    lifecycle.start(entry)


def stored(image):
    try:
        with open(registry.record_of(image)) as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None


def start(args):
    """Attach and mount a file system again, after a stop, kill or reboot."""
    entry = registry.load(args.name)
    if entry is None and args.dir:
        entry = stored(os.path.join(os.path.realpath(args.dir),
                                    args.name + '.img'))
    registered(entry or known(args.name))


def stop(args):
    """Unmount a file system everywhere and detach it."""
    busy = lifecycle.stop(known(args.name), args.wait)
    return cut_off(args.name, busy)


def destroy(args):
    """Stop a file system and remove it."""
    busy = lifecycle.destroy(known(args.name), args.wait)
    return cut_off(args.name, busy)


def cut_off(name, busy):
    if busy:
        print('standin: something still used "%s" and was cut off; its loop '
              'device goes when that ends.' % name, file=sys.stderr)
        return 1
    return 0


def show(args):
    """List the file systems."""
    found = []
    for entry in registry.entries():
        entry['mounts'] = [each.target for _entry, each
                           in registry.client_mounts(entry['fsname'])]
        found.append(entry)
    if args.json:
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    for entry in found:
        faults = [name for name in ('dead', 'frozen', 'enospc', 'quota',
                                    'unreachable')
                  if entry[name] not in (None, False, {})]
        print('%s:/%s  %s on %s  mounts: %s  faults: %s' % (
            ':'.join(entry['nids']), entry['fsname'], entry['image'],
            entry['loop'], ' '.join(entry['mounts']) or '-',
            ' '.join(faults) or '-'))


def fault(args):
    """Switch a fault on or off."""
    entry = known(args.name)
    args.switch(entry, args)
    registry.save(entry)


def dead_ost(entry, args):
    """Let everything that looks at some files hang."""
    if entry['frozen']:
        raise registry.Error('"%s" is frozen: nothing on it can be reached. '
                             'Recover it first.' % entry['fsname'])
    for path in args.files:
        found = registry.locate(path)
        if not found or found[0]['fsname'] != entry['fsname']:
            raise registry.Error('%s is not on a mount of "%s".' % (
                path, entry['fsname']))
        entry['dead'][found[2]] = lfs.ost_of(entry, found[2])
    registry.save(entry)
    lifecycle.cover_dead(entry['fsname'])


def recover(entry, _args):
    """End all faults; what hung goes on, with an error."""
    entry.update(dead={}, frozen=False, unreachable=None, enospc=False,
                 quota=None)
    registry.save(entry)
    lifecycle.release(entry['fsname'])
    lifecycle.set_full(entry)


def frozen(entry, args):
    """Let everything that looks at the file system hang."""
    entry['frozen'] = True
    registry.save(entry)
    covered = {each.target for _entry, each
               in registry.client_mounts(entry['fsname'], covers=True)}
    lifecycle.silence(entry['fsname'], [
        (each.target, each.source, 'fuse.lustre') for _entry, each
        in registry.client_mounts(entry['fsname'])
        if each.target not in covered])


def mgs_unreachable(entry, args):
    """Let new mounts time out."""
    entry['unreachable'] = args.seconds if args.state == 'on' else None


def enospc(entry, args):
    """Let the file system be full."""
    entry['enospc'] = args.state == 'on'
    lifecycle.set_full(entry)


def quota(entry, args):
    """Limit the file system, as a project quota does."""
    if not entry['fuse']:
        raise registry.Error('ext4 has no quota here: make "%s" anew with '
                             '"create --fuse".' % entry['fsname'])
    entry['quota'] = None if args.bytes == 'off' else size(args.bytes)


def parser():
    main = argparse.ArgumentParser(prog='standin', description=__doc__)
    commands = main.add_subparsers(required=True, metavar='COMMAND')

    def command(name, func, *positional, under=commands):
        made = under.add_parser(name, help=func.__doc__,
                                description=func.__doc__)
        made.set_defaults(func=func)
        for each in positional:
            made.add_argument(each)
        return made

    made = command('create', create)
    made.add_argument('--fsname', required=True, dest='name')
    made.add_argument('--dir', required=True, help='where the image lies')
    made.add_argument('--size', type=size, default='20G')
    made.add_argument('--nid', action='append', metavar='ADDRESS@NET',
                      help='of the MGS; may be repeated (127.0.0.1@tcp)')
    made.add_argument('--osts', type=int, default=4)
    made.add_argument('--owner', default='0:0', metavar='UID:GID',
                      help='of the root directory')
    made.add_argument('--mode', type=lambda text: int(text, 8),
                      default='0755', help='of the root directory')
    made.add_argument('--fuse', action='store_true',
                      help='mount as fuse.lustre, which can have a quota')
    made = command('start', start, 'name')
    made.add_argument('--dir', help='where the image is, after a reboot')
    for made in command('stop', stop, 'name'), command('destroy', destroy,
                                                       'name'):
        made.add_argument('--wait', type=float, default=30, help='seconds '
                          'that processes have to end before they are cut '
                          'off')
    command('list', show).add_argument('--json', action='store_true')
    command('install', install)
    command('uninstall', uninstall)
    made = command('fault', fault, 'name')
    faults = made.add_subparsers(required=True, metavar='FAULT')

    def switch(name, func):
        made = faults.add_parser(name, help=func.__doc__,
                                 description=func.__doc__)
        made.set_defaults(switch=func)
        return made

    switch('dead-ost', dead_ost).add_argument('files', nargs='+')
    switch('recover', recover)
    switch('frozen', frozen)
    switch('quota', quota).add_argument('bytes', metavar='BYTES|off')
    switch('enospc', enospc).add_argument('state', choices=('on', 'off'))
    made = switch('mgs-unreachable', mgs_unreachable)
    made.add_argument('state', choices=('on', 'off'))
    made.add_argument('--seconds', type=float, default=162,
                      help='how long a mount tries')
    return main


def main():
    args = parser().parse_args()
    try:
        if args.func is show:
            return show(args)
        with registry.locked(getattr(args, 'name', '')):
            return args.func(args)
    except (registry.Error, OSError) as exc:
        print('standin: %s' % exc, file=sys.stderr)
        return 1
