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

"""fallocate(2), whose modes Python lacks."""

import ctypes
import errno
import os

# What a file system answers that cannot do it.
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def allocate(descriptor, offset, length):
    """Reserve space, without the fallback that hides what is missing.

    :raises: OSError, with one of UNSUPPORTED where it is not supported
    """
    _fallocate(descriptor, 0, offset, length)


def punch(descriptor, offset, length):
    """Make a range read as zeros, and free its space.

    :raises: OSError, with one of UNSUPPORTED where it is not supported
    """
    _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def _fallocate(descriptor, mode, offset, length):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(descriptor, mode, ctypes.c_int64(offset),
                        ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
