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

"""What a check of the doctor says."""

import collections

OK, WARNING, FAILURE, UNKNOWN = 'ok', 'warning', 'failure', 'unknown'
#: All that a check can end with.
STATUSES = (OK, WARNING, FAILURE, UNKNOWN)

Verdict = collections.namedtuple('Verdict', 'status message cure')


def ok(message):
    """All is well; the message says what was seen."""
    return Verdict(OK, message, '')


def warning(message, cure):
    """Volumes work, but something is worth a change."""
    return Verdict(WARNING, message, cure)


def failure(message, cure):
    """Something does not work, or data are at risk."""
    return Verdict(FAILURE, message, cure)


def unknown(message, cure=''):
    """It cannot be checked; the message says why."""
    return Verdict(UNKNOWN, message, cure)
