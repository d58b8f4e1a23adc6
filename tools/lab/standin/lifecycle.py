# This is not Lustre: it is part of a stand-in for it.
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

"""Makes, starts and stops the stand-in's file systems.

A file system is a sparse ext4 image on a loop device. It is mounted once in
the run-time directory, as the server's side, which no fault ever reaches.
Every function can be repeated after it was killed at any point.
"""

import errno
import glob
import os
import shutil
import subprocess
import sys
import time

import registry


def register(entry):
    """Make a file system known, before it is there."""
    for directory in (registry.ROOT, registry.state(entry['fsname']),
                      registry.state(entry['fsname'], 'mnt')):
        os.makedirs(directory, mode=0o755, exist_ok=True)
    registry.save(entry)


def start(entry):
    """Bring a file system up, from whatever state it is in."""
    name, image = entry['fsname'], entry['image']
    if not os.path.exists(image):
        _make_image(entry)
    device = loop_of(image)
    if device is None:
        device = _output('losetup', '--find', '--show', image)
    if entry['loop'] != device:
        entry['loop'] = device
        registry.save(entry)
    root = registry.state(name, 'root')
    os.makedirs(root, exist_ok=True)
    if not registry.is_up(entry):
        registry.mount(device, root, 'ext4', data='discard')
    # Lustre has no such directory; it is there until the rest is done.
    if os.path.isdir(os.path.join(root, 'lost+found')):
        os.chown(root, entry['uid'], entry['gid'])
        os.chmod(root, entry['mode'])
        os.rmdir(os.path.join(root, 'lost+found'))
    set_full(entry)
    for _entry, each in registry.client_mounts(name):
        if not entry['frozen'] and _is_orphan(each):
            registry.umount(each.target, registry.MNT_DETACH)


def _is_orphan(each):
    """Whether the server of a FUSE mount was killed."""
    try:
        os.statvfs(each.target)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def _make_image(entry):
    draft = entry['image'] + '.draft'
    with open(draft, 'wb') as stream:
        stream.truncate(entry['size'])
    _output('mkfs.ext4', '-q', '-F', '-b', '4096', '-m', '0', draft)
    os.rename(draft, entry['image'])


def loop_of(image):
    """The loop device of an image, also of one that was removed."""
    for path in glob.glob('/sys/block/loop*/loop/backing_file'):
        try:
            with open(path) as stream:
                backing = stream.read().rstrip('\n')
        except OSError:
            # The device went away meanwhile.
            continue
        if backing in (image, image + ' (deleted)'):
            return '/dev/' + path.split('/')[3]
    return None


def _output(*command):
    done = subprocess.run(command, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise registry.Error('%s: %s' % (' '.join(command),
                                         done.stderr.strip()))
    return done.stdout.strip()


def set_full(entry):
    """Let the file system be full, or as full as it is.

    ext4 keeps as many clusters back as it is told, from root too; its own
    choice is 2 percent, but no more than 4096.
    """
    if not registry.is_up(entry):
        return
    path = '/sys/fs/ext4/%s/reserved_clusters' % entry['loop'].split('/')[-1]
    whole = os.statvfs(registry.state(entry['fsname'], 'root')).f_blocks
    with open(path, 'w') as stream:
        stream.write('%d' % (whole - 1 if entry['enospc'] else
                             min(whole // 50, 4096)))


def stop(entry, patience):
    """Unmount a file system everywhere and give its loop device back.

    :param patience: seconds that who still uses it has to end
    :returns: whether something still used it and had to be cut off
    """
    name = entry['fsname']
    release(name)
    busy = False
    own = [each for each in registry.mounts()
           if each.target.startswith(registry.state(name) + '/')]
    # The server's side comes last: FUSE servers use it.
    own += [each for _entry, each in registry.client_mounts(name)]
    for each in reversed(own):
        busy |= _unmount(each.target, patience)
    device = loop_of(entry['image'])
    if device:
        _output('losetup', '--detach', device)
    return busy


def _unmount(target, patience):
    deadline = time.monotonic() + patience
    while True:
        try:
            registry.umount(target)
            return False
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                registry.umount(target, registry.MNT_DETACH)
                return True
            time.sleep(0.1)


def destroy(entry, patience):
    """Remove a file system and everything that it left; as stop()."""
    busy = stop(entry, patience)
    name, image = entry['fsname'], entry['image']
    for path in (image, image + '.draft', registry.record_of(image)):
        if os.path.exists(path):
            os.unlink(path)
    shutil.rmtree(registry.state(name), ignore_errors=True)
    os.unlink(os.path.join(registry.ROOT, name + '.json'))
    return busy


# What hangs

def silence(name, targets):
    """Mount nodes over paths that never answer.

    :param targets: triples of a path, a mount source and a mount type
    """
    if targets:
        words = [word for target in targets for word in target]
        serve(name, 'silent', *words)


def cover_dead(name):
    """Make the files on dead OSTs hang in every mount of a client."""
    covered = [each.target for each in registry.mounts()
               if each.fstype == registry.DEAD_TYPE]
    targets = []
    for entry, each in registry.client_mounts(name):
        below = registry.parse(each.source)[2] + '/'
        for path in entry['dead']:
            target = os.path.join(each.target, path[len(below):])
            if path.startswith(below) and target not in covered:
                targets.append((target, name, registry.DEAD_TYPE))
    silence(name, targets)


def release(name):
    """Let everything that hangs on a file system go on, with an error."""
    # The frozen come first: nothing below them can be reached.
    nodes = [each.target for _entry, each
             in registry.client_mounts(name, covers=True)]
    nodes += [each.target for each in registry.mounts()
              if (each.fstype, each.source) == (registry.DEAD_TYPE, name)]
    for target in nodes:
        registry.umount(target, registry.MNT_FORCE | registry.MNT_DETACH)


def serve(name, *arguments):
    """Start a FUSE server; it has mounted when this returns."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, '-EsB', os.path.join(here, 'fuse.py'), name]
    # A session of its own, and no stream of the caller's: the server stays
    # when whoever mounts has gone.
    with open(registry.state(name, 'fuse.log'), 'ab') as log:
        server = subprocess.Popen(command + list(arguments), cwd='/',
                                  stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=log,
                                  start_new_session=True)
    with server.stdout:
        answer = server.stdout.read().decode()
    if answer != 'mounted':
        raise OSError(int(answer or 5), os.strerror(int(answer or 5)),
                      arguments[1])
