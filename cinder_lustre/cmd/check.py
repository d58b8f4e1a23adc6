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

"""cinder-lustre-check: compares a share's files, records and database."""

import argparse
import json
import logging
import os
import sys

from cinder_lustre.brick import mount
from cinder_lustre import check
from cinder_lustre import exception
from cinder_lustre import share
from cinder_lustre import worker

GIB = 1 << 30
CLEAN, FINDINGS, UNUSABLE = range(3)

# Where these volumes and snapshots are in the database, their files need not
# be on the share.
_IN_MOTION = ('creating', 'downloading', 'deleting', 'error', 'error_deleting',
              'error_managing', 'managing', 'unmanaging')


class UsageError(Exception):
    """The command cannot do what it was asked to."""


def main(arguments=None):
    """Run the command.

    :returns: its exit code
    """
    args = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    report = {'version': 1, 'share': args.share, 'volumes': 0, 'findings': [],
              'clean': False, 'error': None}
    try:
        _run(args, report)
        code = CLEAN if report['clean'] else FINDINGS
    except (UsageError, exception.LustreException, OSError) as exc:
        report['error'] = str(exc)
        code = UNUSABLE
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    return code


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog='cinder-lustre-check',
        description='Compare the files and the records of a share, and '
                    'Cinder\'s database where --config-file names it. '
                    'Nothing is changed without --repair. Exit codes: 0 '
                    'clean (notes do not count), 1 findings, 2 wrong usage, '
                    'or a share that cannot be used.')
    parser.add_argument('share', metavar='SHARE',
                        help='the directory that the share is mounted on, or '
                        'the share, as in 10.0.2.15@tcp:/lustre/cinder or '
                        'lustre:/lustre/cinder')
    parser.add_argument('--mount-point-base', metavar='DIRECTORY',
                        help='where the share, named as such, is mounted '
                        'below: lustre_mount_point_base')
    parser.add_argument('--volume', metavar='ID',
                        help='look at this volume only (its name_id)')
    parser.add_argument('--repair', action='store_true',
                        help='put right what can be without any loss: write '
                        'mirrors anew, remove temporary files, unfinished '
                        'creations and locks without a volume, end or undo '
                        'interrupted operations')
    parser.add_argument('--config-file', metavar='FILE', action='append',
                        help='compare with the database that this '
                        'configuration of Cinder names, too; may be repeated')
    parser.add_argument('--timeout', type=int, default=60, metavar='SECONDS',
                        help='how long the share may not answer '
                        '(%(default)s)')
    parser.add_argument('--json', action='store_true',
                        help='print one JSON document')
    return parser.parse_args(arguments)


def _run(args, report):
    """Look at the share, and at the database, and fill in the report."""
    root = report['share'] = _directory(args)
    database = None
    if args.config_file:
        database = _Database(args.config_file, _identity(root))
        before = database.read()
    progress = _Progress(report['findings'])
    try:
        result = worker.Worker(root).run(
            check.check, root, volume=args.volume, repair=args.repair,
            timeout=args.timeout, on_progress=progress)
    except exception.ShareUnavailable as exc:
        raise UsageError('%s It was about to look at %s.' % (
            exc, progress.volume or 'what belongs to no volume')) from exc
    findings = report['findings'] = result['findings']
    report['volumes'] = len(result['volumes']) + len(result['skipped'])
    if database:
        # Only what differs before and after: the service goes on meanwhile.
        lasting = {(each['code'], each['thing'])
                   for each in compare(result, before, args.volume)}
        findings += [each for each
                     in compare(result, database.read(), args.volume)
                     if (each['code'], each['thing']) in lasting]
    report['clean'] = all(finding['severity'] == check.NOTE or
                          finding['repaired'] for finding in findings)


def _directory(args):
    if ':/' not in args.share:
        return os.path.abspath(args.share)
    wanted = share.Share.parse(args.share)
    if not args.mount_point_base:
        raise UsageError('Where %s is mounted is not known. Name '
                         '--mount-point-base, or the directory in the place '
                         'of the share.' % wanted.identity)
    path = wanted.mount_point(os.path.realpath(args.mount_point_base))
    if _identity(path) != wanted.identity:
        raise UsageError('%s is not mounted on %s. Mount it, or start the '
                         'service.' % (wanted.identity, path))
    return path


def _identity(path):
    """The identity of the share that a directory is, or None.

    It is read from the list of mounts, which never blocks.
    """
    mounts = mount.read_mounts()
    below = []
    while path != '/':
        stack = mount.mounts_on(path, mounts)
        if stack:
            try:
                found = share.Share.parse(stack[-1].source)
            except exception.InvalidShare:
                return None
            return '/'.join([found.identity, *reversed(below)])
        path, name = os.path.split(path)
        below.append(name)
    return None


class _Progress:
    """Keeps what was found before a share stopped to answer.

    :ivar volume: what is being looked at
    """

    def __init__(self, findings):
        self._findings = findings
        self.volume = None

    def __call__(self, value):
        if value is None:
            return
        self._findings += value['findings']
        self.volume = value['volume'] and 'volume ' + value['volume']
        if sys.stderr.isatty() and value['done'] % 100 == 0:
            print('%(done)d of %(total)d volumes' % value, end='\r',
                  file=sys.stderr)


class _Database:
    """Cinder's database.

    :param identity: of the share whose volumes count
    """

    def __init__(self, config_files, identity):
        if identity is None:
            raise UsageError('Which share this directory is cannot be told '
                             'from what is mounted. Name the share and '
                             '--mount-point-base in its place.')
        # Only here: the command runs on hosts without Cinder, too.
        try:
            from cinder.common import config
            from cinder import context
            from cinder import objects
            from oslo_config import cfg
        except ImportError as exc:
            raise UsageError('There is no Cinder on this host (%s). Leave '
                             '--config-file out.' % exc) from exc
        try:
            config.CONF([word for path in config_files
                         for word in ('--config-file', path)],
                        project='cinder')
        except cfg.Error as exc:
            raise UsageError('%s. Correct --config-file.' % exc) from exc
        objects.register_all()
        self._objects = objects
        self._context = context.get_admin_context()
        self._identity = identity

    def read(self):
        """The volumes that are on the share, by name_id."""
        from oslo_db import exception as db_exception
        try:
            volumes = self._objects.VolumeList.get_all(self._context)
            snapshots = self._objects.SnapshotList.get_all(self._context, {})
        except db_exception.DBError as exc:
            raise UsageError('The database cannot be read (%s). Correct '
                             '[database] connection.' % exc) from exc
        found = {}
        by_id = {}
        for volume in volumes:
            if self._is_here(volume.provider_location):
                found[volume.name_id] = by_id[volume.id] = {
                    'id': volume.id, 'status': volume.status,
                    'size': volume.size * GIB,
                    'format': volume.admin_metadata.get('format'),
                    'snapshots': {}}
        for snapshot in snapshots:
            if snapshot.volume_id in by_id:
                by_id[snapshot.volume_id]['snapshots'][snapshot.id] = (
                    snapshot.status)
        return found

    def _is_here(self, location):
        try:
            return share.Share.parse(location or '').identity == self._identity
        except exception.InvalidShare:
            # It belongs to another driver.
            return False


def compare(result, volumes, only=None):
    """Compare a share with the database.

    :param result: of check.check()
    :param volumes: of _Database.read()
    :param only: the name_id of the only volume that counts
    :returns: findings
    """
    findings = []

    def add(severity, code, cause, cure, snapshot=None):
        thing = 'volume %s' % name_id
        if snapshot:
            thing = 'snapshot %s of %s' % (snapshot, thing)
        findings.append({'severity': severity, 'code': code,
                         'volume': name_id, 'thing': thing, 'cause': cause,
                         'cure': cure, 'repaired': None})

    for name_id in sorted({*volumes, *result['volumes']}):
        if only not in (None, name_id) or name_id in result['skipped']:
            continue
        row, found = volumes.get(name_id), result['volumes'].get(name_id)
        if row is None:
            add(check.WARNING, 'record-without-volume',
                'it is on the share, and not in Cinder\'s database.',
                'Leave it if it is no longer managed on purpose; otherwise '
                'manage it, or remove its files and its record.')
        elif found is None:
            motion = row['status'] in _IN_MOTION
            add(check.NOTE if motion else check.ERROR,
                'volume-without-record',
                'volume %(id)s (%(status)s) of Cinder has no record on the '
                'share.' % row,
                'Check it again when it is no longer being made; delete it '
                'if it is in error.' if motion else
                'Restore its record from a backup of the share.')
        else:
            _compare_one(row, found, add)
    return findings


def _compare_one(row, found, add):
    if row['size'] != found['size'] and row['status'] != 'extending':
        add(check.WARNING, 'size-in-database',
            'it has %d bytes, and %d bytes in Cinder\'s database.'
            % (found['size'], row['size']),
            'If extending it failed, extend it to the larger size again.')
    if row['format'] not in (None, found['format']):
        add(check.WARNING, 'format-in-database',
            'its format is %s, and %s in Cinder\'s database.'
            % (found['format'], row['format']),
            'The record is right: attach the volume once, or set the admin '
            'metadata "format".')
    snapshots = row['snapshots']
    for snapshot in sorted(set(snapshots).difference(found['snapshots'])):
        if snapshots[snapshot] not in _IN_MOTION:
            add(check.ERROR, 'snapshot-without-record',
                'it is %s in Cinder\'s database, and not on the share.'
                % snapshots[snapshot],
                'Its data are gone, unless a backup of the share has them; '
                'delete it.', snapshot)
    for snapshot in sorted(set(found['snapshots']).difference(snapshots)):
        add(check.WARNING, 'snapshot-without-row',
            'it is on the share, and not in Cinder\'s database.',
            'Manage it, if the volume is to have it again.', snapshot)


def _print(report):
    counts = dict.fromkeys((check.ERROR, check.WARNING, check.NOTE), 0)
    repaired = 0
    for finding in report['findings']:
        line = '%(severity)s %(code)s: %(thing)s: %(cause)s %(cure)s'
        if finding['repaired']:
            line = '%(severity)s %(code)s: %(thing)s: %(cause)s %(repaired)s'
            repaired += 1
        else:
            counts[finding['severity']] += 1
        print(_on_one_line(line % finding))
    if report['error']:
        print('cinder-lustre-check: %s' % _on_one_line(report['error']),
              file=sys.stderr)
        return
    print('%d volumes: %d errors, %d warnings, %d notes, %d repaired' % (
        report['volumes'], *counts.values(), repaired))


def _on_one_line(text):
    # A header that a guest wrote can hold anything, also what steers a
    # terminal.
    return ''.join(char if char.isprintable() else '?'
                   for char in ' '.join(text.split()))


if __name__ == '__main__':
    sys.exit(main())
