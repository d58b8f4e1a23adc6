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

import errno
import os

import ddt
import testtools

from cinder_lustre import exception


@ddt.ddt
class NamingTestCase(testtools.TestCase):

    @staticmethod
    def _raise(error):
        with exception.naming('/share/file'):
            raise error

    @ddt.data(errno.ENOSPC, errno.EDQUOT)
    def test_no_space(self, code):
        cause = OSError(code, os.strerror(code))
        error = self.assertRaises(exception.NoSpace, self._raise, cause)
        self.assertEqual({'path': '/share/file', 'reason': os.strerror(code)},
                         error.kwargs)
        self.assertIs(cause, error.__cause__)

    @ddt.data((None, '/share/file'), ('/share/other', '/share/other'))
    @ddt.unpack
    def test_another_error(self, named, expected):
        cause = FileNotFoundError(errno.ENOENT, 'No such file or directory',
                                  named)
        error = self.assertRaises(FileNotFoundError, self._raise, cause)
        self.assertIs(cause, error)
        self.assertEqual(expected, error.filename)
