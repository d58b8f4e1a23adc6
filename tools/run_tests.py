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

"""Runs the stages of the test run, one after another, and sums them up.

tools/run-tests starts it. What a stage does is in tox.ini or in tools;
here is only the order, the time limits, and what counts as passed.
"""

import argparse
import dataclasses
import datetime
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import subunit
import testtools

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = os.path.join(ROOT, '.tox', 'run-tests')
HEARTBEAT = 30
GRACE = 20
LOG_LINES = 100


def say(text):
    now = datetime.datetime.now().strftime('%H:%M:%S')
    print(f'{now} {text}', flush=True)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command with a time limit in seconds.

    :param tests: the directory in which stestr records its tests, if it has
        any; it fails when none ran, and when one was skipped that
        tools/expected-skips/<name>.txt does not list
    """

    name: str
    command: tuple
    limit: int
    tests: str = ''
    needs: tuple = ('install',)
    # How many lines of its log are of interest when it has passed.
    show: int = 0


def _tox(name, *envs, limit=300, tests=False):
    return Stage(name, ('tox', 'run', '-e', ','.join(envs)), limit,
                 f'.tox/{envs[0]}/.stestr' if tests else '')


def _docs():
    """The documentation; reno needs the whole history for its part."""
    shallow = subprocess.run(
        ('git', 'rev-parse', '--is-shallow-repository'), cwd=ROOT, check=True,
        stdout=subprocess.PIPE, text=True).stdout.strip() == 'true'
    if shallow:
        say('this clone is shallow, so the release notes are not built; '
            '"git fetch --unshallow" brings what they need')
        return _tox('docs', 'docs')
    return _tox('docs', 'docs', 'releasenotes')


TOX_STAGES = (
    _tox('lint', 'pep8'),
    _docs(),
    _tox('units-2026.1', 'cinder-2026.1', limit=900, tests=True),
    _tox('units-2026.2', 'cinder-2026.2', limit=900, tests=True),
    _tox('lab-units', 'lab-units', limit=600, tests=True),
    _tox('nova-only-2026.1', 'nova-only-2026.1', tests=True),
    _tox('nova-only', 'nova-only', tests=True),
    _tox('tempest-only', 'tempest-only', tests=True),
    _tox('devstack', 'devstack', limit=2400, tests=True),
    _tox('zuul', 'zuul-lint', limit=600, tests=True),
    _tox('functional', 'functional', limit=1500, tests=True),
)


def _faults(name, *options, show):
    return Stage(name, (sys.executable, '-m', 'cinder_lustre.tests.faults',
                        *options), 480, needs=(), show=show)


FAULT_STAGES = (
    # A fixed sample of all points; without "--sample", each one is tried.
    _faults('faults', '--sample', '3', show=80),
    _faults('defects', '--defects', show=10),
    _faults('concurrency', '--concurrency', show=30),
)
# Whether it works, and that what was restored is what there was; a run of
# tests is no place to look at the speed.
BENCH_STAGES = (
    Stage('bench', ('tools/bench', 'backup', '--quick'), 600, show=60),
    Stage('bench-volumes', ('tools/bench', 'volumes', '--quick'), 600,
          show=90),
)
LAB_STAGES = (
    Stage('lab-up', ('tools/lab/lab', 'up'), 600),
    Stage('lab-demo', ('tools/lab/lab', 'demo'), 900, needs=('lab-up',),
          show=60),
    Stage('lab-bad-input', ('tools/lab/lab', 'bad-input'), 900,
          needs=('lab-up',), show=40),
    Stage('lab-dead-ost', ('tools/lab/lab', 'dead-ost', '--minutes', '1'),
          600, needs=('lab-up',), show=20),
    Stage('backup-faults', ('tools/lab/lab', 'backup-faults'), 900,
          needs=('lab-up',), show=80),
    # All with servers, and what upstream does not call a smoke test, takes
    # longer: "tools/lab/lab tempest --nova" is for that.
    Stage('tempest', ('tools/lab/lab', 'tempest', '--quick'), 1200,
          tests='$LAB_PREFIX/tempest/.stestr', needs=('lab-up',), show=20),
    # The same lab, with Nova from here on.
    Stage('nova-up', ('tools/lab/lab', 'up', '--nova'), 600,
          needs=('lab-up',)),
    Stage('nova-demo', ('tools/lab/lab', 'demo', '--nova'), 1200,
          needs=('nova-up',), show=60),
    Stage('lab-down', ('tools/lab/lab', 'down'), 180),
    # Its logs stay with the others.
    Stage('lab-clean', ('bash', '-c', 'cp -rT "$LAB_PREFIX/log" "$0"; '
                        'exec tools/lab/lab clean',
                        os.path.join(LOGS, 'lab')), 180),
)
INSTALL = Stage(
    'install',
    ('tox', 'run', '--notest', '-e',
     ','.join(stage.command[-1] for stage in TOX_STAGES)),
    900, needs=())
STAGES = ((INSTALL,) + TOX_STAGES + FAULT_STAGES + BENCH_STAGES +
          LAB_STAGES)


@dataclasses.dataclass
class Outcome:
    """What came of a stage; reasons is empty when it passed."""

    stage: Stage
    seconds: float = 0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list = dataclasses.field(default_factory=list)

    @property
    def word(self):
        return 'FAILED' if self.reasons else 'passed'


def log_path(stage):
    return os.path.join(LOGS, f'{stage.name}.log')


def log_tail(stage, lines):
    with open(log_path(stage), errors='replace') as log:
        return [line.rstrip() for line in log if line.strip()][-lines:]


def kill(process):
    """End a stage's process and all that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run(stage):
    """Run a stage's command; return why it failed, or nothing."""
    deadline = time.monotonic() + stage.limit
    started = time.monotonic()
    with open(log_path(stage), 'wb') as log:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                kill(process)
                return [f'stopped at its limit of {stage.limit} s']
            try:
                code = process.wait(min(HEARTBEAT, left))
                break
            except subprocess.TimeoutExpired:
                last = log_tail(stage, 1) or ['']
                say(f'  {stage.name} has run for '
                    f'{time.monotonic() - started:.0f} s: {last[0][:100]}')
    except BaseException:
        kill(process)
        raise
    return [f'exit code {code}'] if code else []


def next_run(stage):
    """The file into which stestr will write a stage's next run."""
    repository = os.path.join(ROOT, os.path.expandvars(stage.tests))
    try:
        with open(os.path.join(repository, 'next-stream')) as stream:
            name = stream.read().strip()
    except FileNotFoundError:
        name = '0'
    return os.path.join(repository, name)


def read_tests(path):
    """The id and status of every test in a run that stestr recorded."""
    tests = []
    if os.path.exists(path):
        result = testtools.ExtendedToStreamDecorator(
            testtools.StreamToDict(tests.append))
        result.startTestRun()
        with open(path, 'rb') as source:
            subunit.ProtocolTestCase(source).run(result)
        result.stopTestRun()
    return tests


def expected_skips(stage):
    """The patterns of test ids that may be skipped in a stage."""
    path = os.path.join(ROOT, 'tools', 'expected-skips', f'{stage.name}.txt')
    if not os.path.exists(path):
        return []
    with open(path) as lines:
        return [re.compile(line.split()[0]) for line in lines
                if line.strip() and not line.startswith('#')]


def count(outcome, path):
    """Add to an outcome what stestr recorded of its tests."""
    allowed = expected_skips(outcome.stage)
    for test in read_tests(path):
        if test['status'] in ('success', 'xfail'):
            outcome.passed += 1
        elif test['status'] == 'skip':
            outcome.skipped += 1
            if not any(pattern.search(test['id']) for pattern in allowed):
                outcome.reasons.append(f'unexpected skip: {test["id"]}')
        elif test['status'] != 'exists':
            outcome.failed += 1
            outcome.reasons.append(f'{test["status"]}: {test["id"]}')
    if not outcome.passed + outcome.failed:
        outcome.reasons.append('no test ran')


def perform(stage, outcomes):
    """Run one stage, unless one that it needs has not passed."""
    outcome = Outcome(stage)
    missing = [need for need in stage.needs if outcomes[need].reasons]
    if missing:
        outcome.reasons.append(f'not run: {missing[0]} failed')
        return outcome
    say(f'{stage.name} begins: {" ".join(stage.command)}')
    started = time.time()
    if stage is INSTALL:
        started = float(os.environ.get('RUN_TESTS_STARTED', started))
    recorded = next_run(stage)
    outcome.reasons += run(stage)
    if stage.tests:
        count(outcome, recorded)
    outcome.seconds = time.time() - started
    lines = LOG_LINES if outcome.reasons else stage.show
    if lines:
        print(f'--- the end of {os.path.relpath(log_path(stage), ROOT)}')
        print('\n'.join(log_tail(stage, lines)))
        print('---')
    say(f'{stage.name} {outcome.word} after {outcome.seconds:.0f} s')
    for reason in outcome.reasons:
        say(f'  {reason}')
    return outcome


def summarize(outcomes):
    """Print the table and the closing line; return the exit code."""
    row = '{:<14} {:<7} {:>6} {:>7} {:>7} {:>7}  {}'
    print()
    print(row.format('stage', 'result', 'time', 'passed', 'failed', 'skipped',
                     '').rstrip())
    for outcome in outcomes:
        counts = ('-', '-', '-')
        if outcome.stage.tests:
            counts = (outcome.passed, outcome.failed, outcome.skipped)
        print(row.format(
            outcome.stage.name, outcome.word, f'{outcome.seconds:.0f} s',
            *counts, outcome.reasons[0] if outcome.reasons else '').rstrip())
    print(f'{sum(outcome.seconds for outcome in outcomes):.0f} s in all; '
          f'the logs are in {os.path.relpath(LOGS, ROOT)}')
    # A stage that failed without a failed test counts as one.
    failed = sum(max(outcome.failed, 1) if outcome.reasons else 0
                 for outcome in outcomes)
    passed = sum(outcome.passed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    print(f'{passed} passed, {failed} failed, {skipped} skipped', flush=True)
    return 1 if failed else 0


def selected(names):
    """The named stages, and those that they need, in order."""
    wanted = set()

    def add(stage):
        wanted.add(stage.name)
        for other in STAGES:
            if other.name in stage.needs:
                add(other)

    for stage in STAGES:
        if not names or stage.name in names:
            add(stage)
    if 'lab-up' in wanted:
        wanted |= {'lab-down', 'lab-clean'}
    return [stage for stage in STAGES if stage.name in wanted]


def main():
    parser = argparse.ArgumentParser(
        prog='run-tests', description='Test everything, or some stages.')
    parser.add_argument(
        'stage', nargs='*',
        help='one of %s; default: all' % ', '.join(s.name for s in STAGES))
    names = parser.parse_args().stage
    unknown = set(names) - {stage.name for stage in STAGES}
    if unknown:
        parser.error('no such stage: %s' % ', '.join(sorted(unknown)))

    os.makedirs(LOGS, exist_ok=True)
    lock = open(os.path.join(LOGS, 'lock'), 'w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit('run-tests: another run is at work in this checkout')
    # A lab of its own: that of a developer goes on beside it.
    checkout = hashlib.sha256(ROOT.encode()).hexdigest()[:8]
    os.environ.setdefault('LAB_PREFIX',
                          f'/var/lib/cinder-lustre-tests-{checkout}')
    # A terminated run ends its stage, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    outcomes = {}
    for stage in selected(names):
        outcomes[stage.name] = perform(stage, outcomes)
    return summarize(outcomes.values())


if __name__ == '__main__':
    sys.exit(main())
