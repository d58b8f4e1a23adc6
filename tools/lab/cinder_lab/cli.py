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

"""The command line: one function per subcommand."""

import argparse
import os
import shlex
import sys

from cinder_lab import broken_shares
from cinder_lab import host
from cinder_lab import lifecycle
from cinder_lab import lost_ost
from cinder_lab import openstack
from cinder_lab import packages
from cinder_lab import processes
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import services
from cinder_lab import state
from cinder_lab import storage
from cinder_lab import supervisor
from cinder_lab import tempest as tempest_runs
from cinder_lab import venv

DESCRIPTION = """\
A small real OpenStack with Cinder on a Lustre share, on this machine alone:
loopback only, everything below one directory, several labs beside each
other. "status" lists what lies outside of that directory."""
EPILOG = """\
environment:
  LAB_PREFIX      where the lab lives (default: .lab in the checkout)
  LAB_PORT_BASE   its first port (default: a free range, then remembered)
  LAB_SHARE       SHARE[,SHARE] of a real Lustre, e.g. 10.0.0.1@tcp:/testfs;
                  a directory of the lab's own is made on it. Without it a
                  stand-in for Lustre is used.
  LAB_BACKEND     nfs: the stand-in under Cinder's own NFS driver and its
                  backup driver "posix", for comparisons by Tempest
                  (default: lustre, then remembered)"""


def up(lab, args):
    lifecycle.up(lab, args.nova)


def down(lab, args):
    if lab.exists:
        lab.check()
        lifecycle.down(lab)


def clean(lab, args):
    lifecycle.clean(lab)


def restart(lab, args):
    lab.check()
    lifecycle.restart(lab, args.service)


def status(lab, args):
    """Exit code 0: all is up; 3: all is down; 1: something in between."""
    if not lab.exists:
        print(f'no lab in {lab.prefix}')
        return 3
    lab.check()
    control = supervisor.Supervisor(lab)
    known = control.states() if control.alive() else {}
    names = [program.name for stage in services.stages(lab)
             for program in stage]
    running = [name for name in names
               if known.get(name, {}).get('statename') == 'RUNNING']
    print(f'prefix  {lab.prefix}\nports   {lab.base}-'
          f'{lab.base + len(state.PORTS) - 1}')
    for name in names:
        info = known.get(name, {'statename': 'STOPPED', 'description': ''})
        print(f'  {name:18} {info["statename"]:9} {info["description"]}')
    silent = []
    if {'keystone', 'cinder'} <= set(running):
        silent = openstack.silent(rest.Client(lab), 0)
        print('cinder  ' + ('does not hear of: ' + ', '.join(silent)
                            if silent else 'all services report'))
    if args.memory:
        _memory(lab, known)
    print('outside the prefix')
    for entry in _outside(lab):
        print(f'  {entry}')
    if running == names and not silent:
        return 0
    return 1 if running or processes.of(lab.base) else 3


def _outside(lab):
    yield from host.entries(lab.base)
    yield from (f'mount {point}' for point in storage.mounts(lab.prefix))
    yield from storage.outside(lab.base)
    if packages.policy_is_ours():
        yield str(packages.POLICY)
    for base in host.abandoned():
        yield f'of a lab deleted by hand, "clean" removes it: {base}'


def _memory(lab, known):
    """A table by program; a child counts to the program it descends from."""
    owners = {info['pid']: name for name, info in known.items()
              if info['pid']}
    totals = {}
    for pid in processes.of(lab.base):
        owner = next((owners[each] for each in processes.ancestors(pid)
                      if each in owners), processes.command(pid)[:40])
        count, size = totals.get(owner, (0, 0))
        totals[owner] = (count + 1, size + processes.memory(pid))
    print('memory (PSS)')
    for owner, (count, size) in sorted(totals.items(), key=lambda x: -x[1][1]):
        print(f'  {owner:40} {count:3} processes {size / 1024:8.1f} MiB')
    print(f'  {"all":40} {sum(c for c, _s in totals.values()):3} processes '
          f'{sum(s for _c, s in totals.values()) / 1024:8.1f} MiB')


def logs(lab, args):
    lab.check()
    if not args.service:
        for path in sorted((lab.prefix / 'log').iterdir()):
            print(f'{path.stat().st_size:12} {path}')
        return
    path = lab.log(args.service)
    if not path.exists():
        raise report.LabError(f'{path}: no such log; "lab logs" lists them')
    os.execvp('tail', ['tail', '-n', str(args.lines),
                       *(['-F'] if args.follow else []), str(path)])


def env(lab, args):
    lab.check()
    for key, value in lab.environment().items():
        print(f'export {key}={shlex.quote(value)}')


def shell(lab, args):
    lab.check()
    command = args.command or [os.environ.get('SHELL', '/bin/bash')]
    return _execute(lab, command)


def demo(lab, args):
    lifecycle.up(lab, args.nova)
    if args.nova:
        return _demonstrate(lab, 'nova_demo.py')
    return _demonstrate(lab, 'demo.py', *(
        f'--format={fmt}' for fmt in args.format or ()))


def nova_faults(lab, args):
    lifecycle.up(lab, nova=True)
    return _demonstrate(lab, 'nova_faults.py', f'--format={args.format}',
                        *([f'--case={args.case}'] if args.case else ()))


def backup_faults(lab, args):
    lifecycle.up(lab)
    if storage.has_real_client():
        raise report.LabError('faults are made on the stand-in only, and '
                              'this lab is on a real Lustre')
    return _demonstrate(
        lab, 'backup_faults.py', storage.fsnames(lab.base)[-1],
        *(f'--format={fmt}' for fmt in args.format or ()),
        *([f'--case={args.case}'] if args.case else ()))


def _demonstrate(lab, program, *arguments):
    # The demonstration looks at the shares only to check what is there.
    directories = storage.mounts(lab.prefix / 'mnt')
    backups, = storage.mounts(lab.prefix / 'backup')
    return _execute(
        lab, [str(lab.venv / 'bin/python'), str(venv.LAB / program),
              *arguments],
        LAB_COMMAND=str(venv.LAB / 'lab'),
        LAB_SHARE_FILES=':'.join(str(lab.prefix / f'etc/shares-{name}')
                                 for name in services.BACKENDS),
        LAB_ENCRYPTION_KEY=lab.secret('encryption'),
        LAB_CINDER_CONF=str(lab.prefix / 'etc/cinder.conf'),
        LAB_SHARE_DIRECTORIES=':'.join(map(str, directories)),
        LAB_BACKUP_DIRECTORY=str(backups),
        LAB_DEVELOPMENT_FSTYPES=storage.Shares(lab).development_fstypes)


def tempest(lab, args):
    lifecycle.up(lab, args.nova)
    with report.step('Tempest') as notes:
        notes += venv.Venv(lab).ensure(tempest=True)
    suites = tempest_runs.SUITES
    if args.regex:
        suites = {'chosen': args.regex}
    elif args.performance:
        suites = {'performance': tempest_runs.PERFORMANCE}
    elif args.quick:
        suites = {'quick': tempest_runs.QUICK}
    return 0 if tempest_runs.run(lab, suites, args.performance) else 1


def bad_input(lab, args):
    lifecycle.up(lab)
    broken_shares.run(lab)


def dead_ost(lab, args):
    lifecycle.up(lab)
    lost_ost.run(lab, args.minutes)


def _execute(lab, command, **variables):
    environment = os.environ | lab.environment() | variables
    for name in ('PYTHONPATH', 'PYTHONDONTWRITEBYTECODE'):
        environment.pop(name, None)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        report.warn(f'{command[0]}: {error.strerror}')
        return 127


def parser():
    top = argparse.ArgumentParser(
        prog='lab', description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar='SUBCOMMAND')

    def add(function, text, **options):
        command = commands.add_parser(
            function.__name__.replace('_', '-'), help=text,
            description=text[0].upper() + text[1:] + '.', **options)
        command.set_defaults(function=function)
        return command
    each = add(up, 'start the lab, or what is missing of it')
    each.add_argument('--nova', action='store_true',
                      help='with Nova and a host that runs instances; '
                      'the lab keeps it')
    add(down, 'stop it; volumes and database stay')
    each = add(status, 'show services, and what lies outside the prefix')
    each.add_argument('--memory', action='store_true',
                      help='show the memory of all processes, too')
    each = add(logs, 'list the logs, or show one')
    each.add_argument('service', nargs='?')
    each.add_argument('-n', '--lines', type=int, default=50)
    each.add_argument('-f', '--follow', action='store_true')
    each = add(restart, 'restart services, after a change of the driver')
    each.add_argument('service', nargs='+')
    each = add(shell, 'start a shell or a command as the administrator')
    each.add_argument('command', nargs=argparse.REMAINDER)
    add(env, 'print the environment of "shell" for eval')
    each = add(demo, 'run the demonstration on real data, after "up"')
    each = each.add_mutually_exclusive_group()
    each.add_argument('--format', choices=('raw', 'qcow2', 'luks'),
                      action='append', help='only volumes of this format')
    each.add_argument('--nova', action='store_true',
                      help='with servers that use the volumes, and Nova')
    each = add(tempest, 'run Tempest\'s tests of volumes, and those of its '
               'plugins for Cinder and for Lustre')
    each.add_argument('--nova', action='store_true',
                      help='with servers, and Nova')
    each.add_argument('--quick', action='store_true',
                      help='see whether all works, in a few minutes: some of '
                           'them, without servers')
    each.add_argument('--performance', action='store_true',
                      help='measure; one test at a time, and no others')
    each.add_argument('regex', nargs='?',
                      help='run only tests whose names match it')
    add(bad_input, 'break a share in every known way, and see what happens')
    each = add(dead_ost, 'let the OST of a volume die, and see what goes on')
    each.add_argument('--minutes', type=float, default=5,
                      help='how long it stays away (default: 5)')
    each = add(nova_faults, 'let Nova and cinder-volume die over snapshots of '
               'a server\'s volume')
    each.add_argument('--format', choices=('raw', 'qcow2'), default='raw',
                      help='of the volume (default: raw)')
    each.add_argument('--case', help='run only cases with this in their '
                      'names; "too long", which takes ten minutes, runs only '
                      'so')
    each = add(backup_faults, 'let cinder-backup and its share fail in the '
               'middle of backups')
    each.add_argument('--format', choices=('raw', 'qcow2'), action='append',
                      help='only volumes of this format')
    each.add_argument('--case', help='run only cases with this in their '
                      'names')
    add(clean, 'stop it and remove all of it but the packages')
    return top


def main():
    args = parser().parse_args()
    try:
        return args.function(state.Lab(), args) or 0
    except BrokenPipeError:
        # The reader has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (report.LabError, OSError) as error:
        report.warn(error)
        return 1
    except KeyboardInterrupt:
        report.warn('interrupted; the same command goes on from here')
        return 130
