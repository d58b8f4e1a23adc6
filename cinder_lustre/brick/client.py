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

"""The client of os-brick's kind that mounts Lustre shares."""

import os

from os_brick import exception as brick_exception
from os_brick import executor
from os_brick.remotefs import remotefs

from cinder_lustre.brick import mount
from cinder_lustre import exception
from cinder_lustre import share as share_module
from cinder_lustre import worker


class LustreRemoteFsClient(remotefs.RemoteFsClient):
    """Mounts shares, each below the mount point base by its identity.

    :param mount_type: 'lustre'
    :param root_helper: the command that gives root's rights; unused as root
    :param lustre_mount_point_base: a directory of this host
    :param lustre_mount_options: what shares are mounted with, separated by
                                 commas; a share's own options override them
    :param lustre_mount_timeout: seconds that a mount may take
    :param development_fstypes: file system types to accept beside Lustre
    """

    def __init__(self, mount_type, root_helper, execute=None, *args,
                 **kwargs):
        # The parent's own constructor refuses types that it does not know.
        executor.Executor.__init__(self, root_helper, execute=execute, *args,
                                   **kwargs)
        self._mount_type = mount_type
        base = kwargs.get('lustre_mount_point_base')
        if not base:
            raise brick_exception.InvalidParameterValue(
                err='lustre_mount_point_base required')
        # /proc/self/mountinfo, which tells what is mounted, has no links.
        self._mount_base = os.path.realpath(base)
        self._mount_options = kwargs.get('lustre_mount_options', 'flock')
        self._mount_timeout = kwargs.get('lustre_mount_timeout', 60)
        self._fstypes = tuple(kwargs.get('development_fstypes') or ())
        self._workers = {}

    def get_mount_point(self, device_name):
        """The directory that a share is mounted on.

        :param device_name: a share string or identity
        """
        parsed = share_module.Share.parse(device_name)
        return parsed.mount_point(self._mount_base)

    def check(self, share):
        """See that a share is mounted and fit for use, without blocking.

        :param share: a share string or identity
        :raises: UnusableMount
        """
        mount.check(share, self.get_mount_point(share), self._fstypes)

    def mount(self, share, flags=None):
        """Mount a share, or see that it is mounted and fit for use.

        :param share: a share string; an identity does where it is mounted
        :param flags: mount options as a list, as in ['-o', 'user_xattr']
        :raises: UnusableMount, MountFailed, ShareUnavailable, InvalidShare
        """
        parsed = share_module.Share.parse(share)
        path = self.get_mount_point(share)
        if mount.mounts_on(path):
            self.check(share)
            return
        if not parsed.nids:
            raise exception.MountFailed(
                share=share, path=path,
                reason='it is not mounted, and this host does not know the '
                'NIDs to mount it from.',
                cure='Add the share to those that are configured on this '
                'host, or mount it there by other means.')
        try:
            options = share_module.merge_options(
                self._mount_options or '', parsed.options,
                share_module.parse_options(' '.join(flags)) if flags else '')
        except ValueError as exc:
            raise exception.MountFailed(
                share=share, path=path, reason='%s.' % exc,
                cure='Correct the options of the share and '
                'lustre_mount_options.') from exc
        self._mount_in_time(parsed, path, options)

    def _mount_in_time(self, parsed, path, options):
        child = self._workers.setdefault(parsed.identity,
                                         worker.Worker(parsed.identity))
        if child.stuck:
            raise self._silent(parsed, 'An earlier attempt to mount it still '
                               'runs (process %s)'
                               % ', '.join(map(str, child.stuck)))
        try:
            # It cannot be killed with root's rights, and ends by itself.
            child.run(mount.mount, parsed.source, path, options,
                      self._root_helper if os.geteuid() else '',
                      self._lock_path(path), self._fstypes,
                      timeout=self._mount_timeout, kill=False)
        except exception.ShareUnavailable as exc:
            raise self._silent(parsed, 'Mounting it takes longer than %s '
                               'seconds' % self._mount_timeout) from exc

    @staticmethod
    def _lock_path(path):
        directory, name = os.path.split(path)
        return os.path.join(directory, '.%s.lock' % name)

    @staticmethod
    def _silent(parsed, reason):
        return exception.ShareUnavailable(
            share=parsed.identity,
            reason='%s. Check that the MGS at %s runs, and that "lctl ping" '
            'reaches it.' % (reason, parsed.source.partition(':/')[0]))
