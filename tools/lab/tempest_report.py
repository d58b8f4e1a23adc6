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


"""Counts and lists the tests of subunit streams that Tempest left.

Beside each stream it leaves a listing: status, seconds, test and reason. Ends
with exit code 1 if a test failed, or if none of a stream passed.
"""

import os
import sys

import subunit
import testtools

STATUS = {'success': 'passed', 'xfail': 'passed', 'skip': 'skipped'}
ROW = '%-12s %7s %7s %8s %9s'


def read(path):
    """The tests of a stream: (status, seconds, id, reason)."""
    found = []
    result = testtools.ExtendedToStreamDecorator(
        testtools.StreamToDict(found.append))
    result.startTestRun()
    with open(path, 'rb') as stream:
        subunit.ByteStreamToStreamResult(stream, 'output').run(result)
    result.stopTestRun()
    for test in found:
        if test['status'] != 'exists':
            yield (STATUS.get(test['status'], 'failed'), *span(test),
                   test['id'], reason(test))


def span(test):
    """When a test began, and how many seconds it took."""
    start, stop = test['timestamps']
    return start, (stop - start).total_seconds() if start and stop else 0


def reason(test):
    """Why a test was skipped, or the last line of why it failed."""
    for name in ('reason', 'traceback'):
        for key, detail in test['details'].items():
            if key.startswith(name):
                lines = detail.as_text().strip().splitlines()
                return lines[-1].strip() if lines else ''
    return ''


def report(path):
    """Write the listing of a stream; print its counts and failures."""
    tests = sorted(read(path), key=lambda test: test[3])
    counts = {status: sum(test[0] == status for test in tests)
              for status in ('passed', 'failed', 'skipped')}
    begins = [test[1] for test in tests if test[1]]
    wall = 0
    if begins:
        wall = max((test[1] - min(begins)).total_seconds() + test[2]
                   for test in tests if test[1])
    name, _ = os.path.splitext(path)
    with open(name + '.txt', 'w') as listing:
        for status, _start, seconds, test, why in tests:
            listing.write('%-7s %7.1f %s%s\n' % (
                status, seconds, test, '  # ' + why if why else ''))
    print(ROW % (os.path.basename(name), counts['passed'], counts['failed'],
                 counts['skipped'], '%.0f s' % wall))
    for status, _start, _seconds, test, why in tests:
        if status == 'failed':
            print('  failed: %s: %s' % (test, why))
    return bool(counts['passed']) and not counts['failed']


def main(paths):
    print(ROW % ('suite', 'passed', 'failed', 'skipped', 'wall'))
    results = [report(path) for path in paths]
    print('listings: %s/*.txt' % os.path.dirname(os.path.abspath(paths[0])))
    return 0 if all(results) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
