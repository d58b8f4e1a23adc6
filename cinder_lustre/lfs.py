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

"""The only place that runs lfs or lctl.

Reading parameters with lctl never blocks, whatever server is away, and needs
no privilege. A host without these commands has no Lustre; what it is asked
for is then None.
"""

import logging
import re
import subprocess

from cinder_lustre import exception
from cinder_lustre import worker

LOG = logging.getLogger(__name__)

_STATES = ('lctl', 'get_param', 'osc.*.ost_server_uuid',
           'mdc.*.mds_server_uuid')
_FREE = ('lctl', 'get_param', 'osc.*.kbytesavail')
_VERSION = ('lctl', 'get_param', '-n', 'version')
# The first MiB of a file on the MDT, the rest on one OST.
_DOM = ('lfs', 'setstripe', '-E', '1M', '-L', 'mdt', '-E', '-1', '-c', '1')
_MGS = ('lctl', 'get_param', 'mgc.*.mgs_server_uuid')
_PROJECT = ('lfs', 'project', '-d')
_QUOTA = ('lfs', 'quota', '-p')
# As Lustre's manual has it.
_HSM = ('lfs', 'hsm_state')
# All commands that this module runs; some take files or numbers, too.
COMMANDS = (_STATES, _FREE, _VERSION, _DOM, _MGS, _PROJECT, _QUOTA, _HSM)

# The state of a target that does not answer.
DISCONNECTED = 'DISCONN'
# The states of those that do, as far as one knows.
CONNECTED = ('IDLE', 'FULL')
# From bad to good; what is not listed is worse than what is.
_ORDER = (DISCONNECTED, *CONNECTED)

# A parameter of a client's connection. The MDT of a server host has its own,
# with its index in place of the client's number.
_CLIENT_PARAMETER = re.compile(
    r'(?P<device>osc|mdc)\.(?P<target>(?P<fsname>.+)-(OST|MDT)[0-9a-f]{4})-'
    r'(?P=device)-[0-9a-f]+\.\w+=(?P<value>.+)')

_MGS_PARAMETER = re.compile(r'mgc\.MGC(?P<nid>.+)\.mgs_server_uuid=\S+\s+'
                            r'(?P<state>\S+)')
# A project, whether it is inherited, and the directory.
_PROJECT_LINE = re.compile(r' *(?P<number>\d+) (?P<flag>[P-]) .+')
# Bytes and files: used, soft limit, hard limit and grace period of each.
_QUOTA_LINE = re.compile(
    r'(?:\S.*)? +(?P<used>\[?\d+\]?)\*? +\d+ +(?P<limit>\d+) +\S+'
    r' +(?P<files>\[?\d+\]?)\*? +\d+ +(?P<files_limit>\d+) +\S+ *')
_HSM_LINE = re.compile(r'(?P<path>.+): \(0x[0-9a-f]+\)(?P<flags>[a-z_ ]*)'
                       r'(,.*)?', re.DOTALL)


def target_states(fsname):
    """The states of a file system's targets, as this host's client sees them.

    FULL is a sign of life and DISCONN one of death; IDLE says nothing.

    :returns: states by target, as in {'testfs-OST0000': 'FULL'}, the worst
              one where it is mounted several times; empty when it is not
              mounted; None without lctl
    """
    parameters = _read(_STATES, fsname)
    if parameters is None:
        return None
    states = {}
    for target, value in parameters:
        states.setdefault(target, []).append(value.split()[-1])
    return {target: min(values, key=_rank)
            for target, values in states.items()}


def ost_free(fsname):
    """The free bytes of a file system's OSTs.

    :returns: bytes by target, without targets that do not answer; None
              without lctl
    """
    parameters = _read(_FREE, fsname)
    if parameters is None:
        return None
    free = {}
    for target, value in parameters:
        size = int(value) * 1024
        free[target] = min(size, free.get(target, size))
    return free


def version():
    """The version of this host's client; None without lctl or its modules."""
    result = _run(_VERSION)
    if result is None or result.returncode:
        return None
    return result.stdout.strip()


def set_dom_default(directory):
    """Let the small files of a new directory live on the MDT alone.

    A dead OST cannot hide them then. May block: run it in a worker's child.

    :returns: whether the file system can do that
    """
    result = _run((*_DOM, directory))
    if result is None:
        return False
    if result.returncode:
        LOG.warning('The records in %(directory)s will lie on OSTs, for there '
                    'is no Data-on-MDT: %(error)s',
                    {'directory': directory, 'error': result.stderr.strip()})
    return not result.returncode


def mgs_states():
    """The states of the MGS nodes of what is mounted, as of target_states.

    :returns: states by NID; empty when nothing is mounted; None without lctl
    """
    result = _run(_MGS)
    if result is None:
        return None
    found = map(_MGS_PARAMETER.fullmatch, result.stdout.splitlines())
    return {match['nid']: match['state'] for match in found if match}


def project(directory):
    """The project whose quota counts a directory. May block.

    :returns: its number, 0 for none, and whether new files get it; None
              without lfs
    :raises: CommandFailed
    """
    match = _parse((*_PROJECT, directory), _PROJECT_LINE)
    return match and (int(match['number']), match['flag'] == 'P')


def project_quota(number, directory):
    """The quota of a project. May block.

    :param directory: any directory of the file system
    :returns: bytes, 'used' and their 'limit', and 'files' and their
              'files_limit'; what a target that is away hides is None, a
              limit of 0 means none. None without lfs
    :raises: CommandFailed
    """
    match = _parse((*_QUOTA, str(number), directory), _QUOTA_LINE)
    if match is None:
        return None
    found = {name: None if text.startswith('[') else int(text)
             for name, text in match.groupdict().items()}
    for name in 'used', 'limit':
        found[name] = found[name] and found[name] * 1024
    return found


def hsm_states(paths):
    """What HSM has done to files. May block.

    :param paths: absolute paths of files
    :returns: the words that HSM has for each, by path, up to the first that is
              gone or cannot be opened; None without lfs
    :raises: CommandFailed when that is the first one of all
    """
    result = _run((*_HSM, *paths))
    if result is None:
        return None
    states = {}
    for line in result.stdout.splitlines():
        match = _HSM_LINE.fullmatch(line)
        if match:
            states[match['path']] = match['flags'].split()
    if result.returncode and not states:
        raise _failed(_HSM, result)
    return states


def _parse(command, pattern):
    """What the last line of a command's output that fits a pattern says."""
    result = _run(command)
    if result is None:
        return None
    found = list(filter(None, map(pattern.fullmatch,
                                  result.stdout.splitlines())))
    if result.returncode or not found:
        raise _failed(command, result)
    return found[-1]


def _failed(command, result):
    return exception.CommandFailed(
        command=' '.join(command), exit_code=result.returncode,
        stderr=(result.stderr or result.stdout).strip())


def _rank(state):
    return _ORDER.index(state) if state in _ORDER else -1


def _read(command, fsname):
    """The values of a parameter as pairs of target and value."""
    result = _run(command)
    if result is None:
        return None
    # Values that cannot be read are named on stderr, beside good ones.
    if result.stderr:
        LOG.debug('%(command)s: %(error)s', {'command': ' '.join(command),
                                             'error': result.stderr.strip()})
    found = map(_CLIENT_PARAMETER.fullmatch, result.stdout.splitlines())
    return [(match['target'], match['value']) for match in found
            if match and match['fsname'] == fsname]


def _run(command):
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL,
                              capture_output=True, encoding='utf-8',
                              errors='replace', cwd='/',
                              env=worker.environment())
    except FileNotFoundError:
        LOG.debug('There is no %s on this host.', command[0])
        return None
