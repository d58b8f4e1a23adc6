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

"""Where the shares of the tests lie, and what can be done to them.

Everything that depends on the kind of share is here. LUSTRE_TEST_SHARE names
a share of a real Lustre; without it each test process starts a stand-in of
its own, and removes what processes that were killed have left.
"""

import atexit
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import socket
import subprocess

from cinder_lustre.brick import mount
from cinder_lustre import share

WORK = '/var/tmp/cinder-lustre-functional'
STANDIN = os.path.abspath(os.path.join(
    os.path.dirname(__file__), '../../../tools/lab/standin/standin'))
# How long tests wait for what must come (seconds).
PATIENCE = 60

# The environment variable by which a test knows the processes it started.
MARK = 'CINDER_LUSTRE_FUNCTIONAL_TEST'

_DIGITS = '0123456789abcdefghijklmnopqrstuvwxyz'


def command(*words, codes=(0,)):
    """Run a command; what it says when it fails becomes the error.

    What it leaves running is the harness's, not the test's.

    :param codes: the exit codes of success
    """
    environment = {name: value for name, value in os.environ.items()
                   if name != MARK}
    done = subprocess.run(words, capture_output=True, text=True, cwd='/',
                          env=environment, stdin=subprocess.DEVNULL,
                          timeout=4 * PATIENCE)
    if done.returncode not in codes:
        raise RuntimeError('%s ended with exit code %s: %s' % (
            ' '.join(words), done.returncode, done.stderr.strip()))
    return done.stdout


def mounts_below(directory):
    """The mount points in a directory, in the order of mounting."""
    return [found.path for found in mount.read_mounts()
            if found.path.startswith(directory + '/')]


class Run:
    """This process's working directory.

    Its lock tells other processes that it is in use.

    :param work: the directory of all runs
    """

    def __init__(self, work=WORK):
        if os.geteuid():
            raise RuntimeError('This mounts file systems: run it as root.')
        self.name = '%s-%d' % (socket.gethostname(), os.getpid())
        self.directory = os.path.join(work, self.name)
        self.numbers = itertools.count()
        self._fsnames = itertools.count()
        #: The names of runs that were killed.
        self.stale = []
        os.makedirs(work, mode=0o755, exist_ok=True)
        with open(os.path.join(work, '.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in os.listdir(work):
                path = os.path.join(work, name)
                if name != '.lock' and self._is_dead(path):
                    self.stale.append(name)
                    remove(path)
            os.mkdir(self.directory)
            self._lock = open(os.path.join(self.directory, 'lock'), 'w')
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        atexit.register(remove, self.directory)

    @staticmethod
    def _is_dead(path):
        try:
            with open(os.path.join(path, 'lock')) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            # It was killed before it had a lock, or while it went.
            pass
        return True

    @property
    def nid(self):
        """A NID of this process's own."""
        return '10.%d.%d.%d@tcp' % (
            64 + (os.getpid() >> 16), os.getpid() >> 8 & 255,
            os.getpid() & 255)

    def fsname(self):
        """A name that no other file system of this machine has."""
        number = (os.getpid() << 9) + next(self._fsnames)
        name = ''
        while number:
            number, digit = divmod(number, len(_DIGITS))
            name = _DIGITS[digit] + name
        return 'f' + name


def remove_tree(directory):
    """Remove a local directory, but never what is mounted in it."""
    mounted = mounts_below(directory)
    if mounted:
        raise RuntimeError('%s is not removed, as %s is mounted in it'
                           % (directory, ', '.join(mounted)))
    shutil.rmtree(directory)


def remove(directory):
    """Remove a run's file systems, mounts and files."""
    if os.path.exists(STANDIN):
        for entry in json.loads(command(STANDIN, 'list', '--json')):
            if entry['image'].startswith(directory + '/'):
                # 1: it is gone, though something still used it.
                command(STANDIN, 'destroy', entry['fsname'], codes=(0, 1))
        command(STANDIN, 'uninstall')
    for path in reversed(mounts_below(directory)):
        command('umount', '--lazy', path)
    remove_tree(directory)


class FileSystem:
    """A file system in which tests have their shares.

    :ivar share: the share that they lie in
    :ivar root: where it is mounted for the harness alone
    :ivar fstypes: the option lustre_development_fstypes that it needs
    """

    #: What this kind of file system can suffer.
    faults = ()
    fstypes = ()

    def __init__(self, run, text):
        self.share = share.Share.parse(text)
        self.root = os.path.join(run.directory, 'root', self.share.fsname)
        os.makedirs(self.root)
        words = ['mount', '-t', 'lustre']
        if self.share.options:
            words += ['-o', self.share.options]
        command(*words, self.share.source, self.root)

    def recover(self):
        """Take all faults back."""

    def destroy(self):
        """Remove it, when no test needs it any more."""


class Lustre(FileSystem):
    """The real thing: it cannot be broken from here."""

    faults = ('noflock', 'localflock')

    def __init__(self, run, text):
        # For a share that is no Lustre after all.
        self.fstypes = tuple(filter(None, os.environ.get(
            'LUSTRE_TEST_FSTYPES', '').split(',')))
        super().__init__(run, text)
        for name in os.listdir(self.root):
            if name.startswith(tuple('%s.' % stale for stale in run.stale)):
                shutil.rmtree(os.path.join(self.root, name))


class StandIn(FileSystem):
    """An imitation, which breaks on demand.

    It does not show "localflock" where Lustre does, in the list of mounts.

    :param size: of the file system, as the stand-in takes it
    """

    faults = ('dead-ost', 'frozen', 'full', 'noflock', 'quota',
              'unreachable-mgs')
    fstypes = ('ext4', 'fuse.lustre')

    def __init__(self, run, faults=(), size='32G'):
        if not os.path.exists(STANDIN):
            raise RuntimeError('There is no %s: name a share in '
                               'LUSTRE_TEST_SHARE.' % STANDIN)
        self._broken = False
        self._name = run.fsname()
        words = [STANDIN, 'create', '--fsname', self._name,
                 '--size', '1536M' if 'full' in faults else size,
                 '--dir', run.directory, '--nid', run.nid,
                 '--nid', run.nid.replace('10.', '172.', 1)]
        if 'quota' in faults:
            words.append('--fuse')
        super().__init__(run, command(*words).strip())

    def _fault(self, *words):
        self._broken = True
        command(STANDIN, 'fault', self._name, *words)

    def kill_ost(self, paths):
        """Let whoever asks for these files hang."""
        self._fault('dead-ost', *paths)

    def freeze(self):
        """Let whoever touches the file system hang."""
        self._fault('frozen')

    def fill(self, room=0):
        """Leave so many bytes to write to."""
        if not room:
            self._fault('enospc', 'on')
            return
        found = os.statvfs(self.root)
        with open(self._filler, 'w') as stream:
            os.posix_fallocate(stream.fileno(), 0,
                               found.f_bavail * found.f_frsize - room)

    def set_quota(self, size):
        """Let its users have so many bytes."""
        self._fault('quota', str(size))

    def cut_off_mgs(self):
        """Let new mounts wait for an answer."""
        self._fault('mgs-unreachable', 'on')

    def recover(self):
        if self._broken:
            self._fault('recover')
            self._broken = False
        if os.path.exists(self._filler):
            os.unlink(self._filler)

    @property
    def _filler(self):
        return os.path.join(self.root, 'filler')

    def destroy(self):
        command(STANDIN, 'destroy', self._name)


class Site:
    """The share of one test: a directory that is its own.

    :ivar share: the Share
    :ivar path: the directory, through a mount of the harness alone
    """

    def __init__(self, filesystem, name, alone):
        self.filesystem = filesystem
        self.path = os.path.join(filesystem.root, name)
        os.mkdir(self.path, mode=0o750)
        self.share = dataclasses.replace(
            filesystem.share,
            subdir=os.path.join(filesystem.share.subdir, name))
        self._alone = alone
        self._protected = False

    def listing(self):
        """The names of all files and directories, below the share."""
        return sorted(
            os.path.relpath(os.path.join(parent, name), self.path)
            for parent, directories, files in os.walk(self.path)
            for name in directories + files)

    def kill_ost(self, *names):
        """Let whoever asks for these files hang."""
        self.filesystem.kill_ost([os.path.join(self.path, name)
                                  for name in names])

    def protect(self):
        """Let nobody, not even root, make files in it."""
        command('chattr', '+i', self.path)
        self._protected = True

    def recover(self):
        """Take back all that was done to it."""
        self.filesystem.recover()
        if self._protected:
            command('chattr', '-i', self.path)
            self._protected = False

    def remove(self):
        """Remove it with all that it holds."""
        if self._alone:
            self.filesystem.destroy()
        else:
            shutil.rmtree(self.path)


class Sites:
    """Makes the shares of the tests of this process."""

    def __init__(self):
        self.run = Run()
        self._text = os.environ.get('LUSTRE_TEST_SHARE')
        self._filesystem = None

    def why_not(self, *faults):
        """Say which fault the shares of this run cannot have, or None."""
        kind = Lustre if self._text else StandIn
        for fault in faults:
            if fault not in kind.faults:
                return 'the share of this run cannot have "%s"' % fault
        return None

    def make(self, *faults):
        """Make a site.

        :param faults: what will happen to it; an imitation then gets a file
                       system of its own
        """
        alone = bool(faults) and not self._text
        filesystem = (StandIn(self.run, faults) if alone
                      else self._shared_filesystem())
        return Site(filesystem, '%s.%d' % (self.run.name,
                                           next(self.run.numbers)), alone)

    def _shared_filesystem(self):
        if self._filesystem is None:
            self._filesystem = (Lustre(self.run, self._text) if self._text
                                else StandIn(self.run))
        return self._filesystem
