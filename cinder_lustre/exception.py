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

"""The errors that this package raises or names, free of Cinder and Nova.

Every error names the thing, the cause and the cure. Its keyword arguments
are plain JSON values, so that a worker child can hand it to its parent.
"""

import contextlib
import errno


class LustreException(Exception):
    """Base of all errors of this package.

    :param kwargs: the values that the class's message names
    """

    message = '%(reason)s'

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        super().__init__(self.message % kwargs)


class InvalidShare(LustreException):
    """A share string that cannot be a Lustre share."""

    message = 'Invalid Lustre share "%(share)s": %(reason)s'


class MountFailed(LustreException):
    """A share could not be mounted."""

    message = 'Mounting %(share)s on %(path)s failed: %(reason)s %(cure)s'


class UnusableMount(LustreException):
    """What is mounted on a share's mount point must not be written to."""

    message = 'Share %(share)s cannot be used on %(path)s: %(reason)s %(cure)s'


class ShareUnavailable(LustreException):
    """A share does not answer, so nothing new is started on it."""

    message = 'Share %(share)s does not answer: %(reason)s'


class VolumeBusy(LustreException):
    """Another process still works on the volume."""

    message = ('Volume %(volume)s is still being worked on by %(holder)s. '
               'Wait until that ends, then repeat the operation.')


class RecordError(LustreException):
    """A volume's record is missing, damaged or does not fit its files."""

    message = 'The record of volume %(volume)s cannot be used: %(reason)s'


class RecordMissing(RecordError):
    """A volume has no record on the share."""


class OperationPending(LustreException):
    """Nova, or the guest, has yet to finish an operation on the volume."""

    message = ('%(operation)s of volume %(volume)s by Nova has not come to '
               'an end. %(cure)s')


class SnapshotNotFound(LustreException):
    """The volume's record does not know the snapshot."""

    message = 'Volume %(volume)s has no snapshot %(snapshot)s on its share.'


class FileExists(LustreException):
    """A file that an operation wants to make is already there."""

    message = ('%(path)s already exists and was left alone. Check whose it '
               'is, and move it away before repeating the operation.')


class SizeMismatch(LustreException):
    """An image's virtual size is not the one that Cinder knows."""

    message = ('The virtual size of %(path)s is %(actual)s bytes, but the '
               'volume has %(expected)s bytes: %(reason)s')


class NoSpace(LustreException):
    """The share, one of its OSTs or a quota is full."""

    message = ('No space left for %(path)s: %(reason)s. Free space, add OSTs '
               'or raise the quota, then repeat the operation.')


class CommandFailed(LustreException):
    """A command ended with an error."""

    message = '%(command)s failed with exit code %(exit_code)s: %(stderr)s'


class WorkerDied(LustreException):
    """A worker child ended without an answer."""

    message = 'The worker of share %(share)s died: %(reason)s'


class ObjectDamaged(LustreException):
    """A part of a backup is missing, or is not what was written."""

    message = ('Object %(path)s of the backup is damaged: %(reason)s. Restore '
               'another backup, and take a new one.')


class ParentUnusable(LustreException):
    """A backup cannot build on another one."""

    message = 'The parent backup cannot be built on: %(reason)s'


class ContainerMissing(LustreException):
    """The directory for a backup is not there and may not be made."""

    message = ('There is no directory %(path)s, and backup_create_containers '
               'is False. Create it, or set that option.')


@contextlib.contextmanager
def naming(path):
    """Let an OSError of the block say which file or directory it concerns.

    :raises: NoSpace in place of an OSError that means it
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(path=path, reason=exc.strerror) from exc
        exc.filename = exc.filename or path
        raise
