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

"""cinder-lustre-doctor: checks a host, and the shares that it uses."""

import argparse
import json
import logging
import sys

from oslo_config import cfg

from cinder_lustre import doctor
from cinder_lustre.doctor import settings
from cinder_lustre.doctor import verdict
from cinder_lustre import exception

HEALTHY, FAILURES, UNUSABLE = range(3)


class UsageError(Exception):
    """The command cannot do what it was asked to."""


def main(arguments=None):
    """Run the command.

    :returns: its exit code
    """
    args = _parse(arguments)
    logging.basicConfig(level=logging.ERROR, format='%(message)s')
    report = {'version': 1, 'roles': [], 'results': [], 'healthy': False,
              'error': None}
    try:
        host = _host(args)
        report['roles'] = sorted(host.roles)
        for result in doctor.examine(host):
            report['results'].append(result)
            if not args.json:
                print(_on_one_line('%(status)s %(check)s: %(thing)s: '
                                   '%(message)s %(cure)s' % result),
                      flush=True)
        report['healthy'] = not any(
            result['status'] == verdict.FAILURE
            for result in report['results'])
        code = HEALTHY if report['healthy'] else FAILURES
    except (UsageError, exception.InvalidShare, cfg.Error) as exc:
        report['error'] = ' '.join(str(exc).split())
        code = UNUSABLE
    if args.json:
        print(json.dumps(report, indent=1))
    elif report['error']:
        print('cinder-lustre-doctor: %s' % report['error'], file=sys.stderr)
    else:
        counts = [sum(result['status'] == status
                      for result in report['results'])
                  for status in verdict.STATUSES]
        print('%d ok, %d warnings, %d failures, %d unknown' % tuple(counts))
    return code


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog='cinder-lustre-doctor',
        description='Check whether this host and its shares are fit for '
                    'volumes. Nothing is changed; files that are made in a '
                    'share are removed at once. Run it as root. Exit codes: '
                    '0 no failure (what is worth a warning, or cannot be '
                    'checked, does not count), 1 failures, 2 wrong usage.')
    parser.add_argument('shares', metavar='SHARE', nargs='*',
                        help='look at this share instead of those that are '
                        'configured or mounted: its directory, or as in '
                        '10.0.2.15@tcp:/lustre/cinder')
    parser.add_argument('--role', action='append', choices=doctor.ROLES,
                        help='what the host does; may be repeated. By '
                        'default, what its configuration shows')
    parser.add_argument('--config-file', metavar='FILE', action='append',
                        default=[], help='Cinder\'s configuration; may be '
                        'repeated. By default, where Cinder looks for it')
    parser.add_argument('--nova-config-file', metavar='FILE',
                        action='append', default=[],
                        help='Nova\'s configuration, likewise')
    parser.add_argument('--qemu-conf', metavar='FILE',
                        default=doctor.Host.qemu_conf,
                        help='the configuration of libvirt\'s QEMU driver '
                        '(%(default)s)')
    parser.add_argument('--mount-point-base', metavar='DIRECTORY',
                        help='where a SHARE, named as such, is mounted '
                        'below, if it is not where the configuration says')
    parser.add_argument('--service-user', metavar='USER',
                        default=doctor.Host.service_user,
                        help='the user of Cinder\'s services (%(default)s)')
    parser.add_argument('--expect-uid', metavar='USER=NUMBER', type=_uid,
                        action='append', default=[],
                        help='the number that a user has on all hosts; may '
                        'be repeated')
    parser.add_argument('--timeout', type=_seconds, metavar='SECONDS',
                        default=doctor.Host.timeout,
                        help='how long a share may not answer '
                        '(%(default)s)')
    parser.add_argument('--json', action='store_true',
                        help='print one JSON document')
    return parser.parse_args(arguments)


def _uid(text):
    name, _equals, number = text.rpartition('=')
    if not name or not number.isdecimal():
        raise argparse.ArgumentTypeError('"%s" is not USER=NUMBER' % text)
    return name, int(number)


def _seconds(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError('"%s" is no number of seconds' % text)
    return int(text)


def _host(args):
    """Find out what the host does, and with which shares."""
    cinder = settings.Cinder(args.config_file)
    nova = settings.Nova(args.nova_config_file)
    roles = frozenset(args.role or _guess(cinder, nova))
    if not roles:
        raise UsageError('Neither Cinder\'s nor Nova\'s configuration shows '
                         'what this host does. Name --role, or the '
                         'configuration.')
    compute = doctor.COMPUTE in roles
    fstypes = tuple(dict.fromkeys(cinder.fstypes + nova.fstypes))
    base = args.mount_point_base or (
        nova.bases[0] if roles == {doctor.COMPUTE} else cinder.base())
    host = doctor.Host(
        roles=roles, fstypes=fstypes, managers=cinder.managers,
        nova_bases=nova.bases if compute else [],
        service_user=args.service_user,
        expected_uids=dict(args.expect_uid), qemu_conf=args.qemu_conf,
        timeout=args.timeout)
    if args.shares:
        host.targets = [settings.named(each, base, roles)
                        for each in args.shares]
    else:
        _find_shares(host, cinder, nova)
    return host


def _guess(cinder, nova):
    if cinder.backends:
        yield doctor.VOLUME
    if (cinder.keeps_backups or
            'cinder_lustre' in cinder.managers.get(doctor.BACKUP, '')):
        yield doctor.BACKUP
    if nova.is_found:
        yield doctor.COMPUTE


def _find_shares(host, cinder, nova):
    """Find the shares that are configured, and those that are mounted."""
    by_path = {}

    def add(targets):
        for target in targets:
            by_path.setdefault(target.path, target).roles |= target.roles

    cinder_roles = host.roles & {doctor.VOLUME, doctor.BACKUP}
    found, host.problems = cinder.targets(cinder_roles)
    add(found)
    if doctor.BACKUP in host.roles:
        add(settings.mounted_below(cinder.base(), cinder_roles, host.fstypes))
    for base in host.nova_bases:
        add(settings.mounted_below(base, frozenset((doctor.COMPUTE,)),
                                   host.fstypes))
    host.targets = list(by_path.values())
    if not host.targets:
        host.problems.append(('host', verdict.unknown(
            'no share is configured, and none is mounted below %s.' % (
                ' or '.join(dict.fromkeys([cinder.base(), *nova.bases]))),
            'Name a share, or its directory, to have it looked at.')))


def _on_one_line(text):
    # Names of files on a share can hold anything, also what steers a
    # terminal.
    return ''.join(char if char.isprintable() else '?'
                   for char in ' '.join(text.split()))


if __name__ == '__main__':
    sys.exit(main())
