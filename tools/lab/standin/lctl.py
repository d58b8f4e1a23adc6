#!/usr/bin/python3 -EsB
# This is not Lustre: it is the lctl of a stand-in for it.
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

"""lctl: what the transcripts of a real Lustre show of it, and nothing else."""

import errno
import fnmatch
import os
import re
import sys

import lfs
import registry

_POOL_NAME_LENGTH = 15


def parameters():
    """Every parameter of this node: name to value, or None for an error."""
    result = {'version': lfs.VERSION, 'jobid_var': 'disable',
              'jobid_name': '%e.%u'}
    for entry, each in registry.client_mounts():
        try:
            root = os.statvfs(lfs.server_path(entry, '/'))
        except FileNotFoundError:
            # Destroyed at this moment.
            continue
        name = registry.instance(each)
        away = 'DISCONN' if entry['frozen'] else 'FULL'
        result['llite.%s-%s.uuid' % (entry['fsname'], name)] = \
            lfs.client_uuid(name)
        result['mgc.MGC%s.mgs_server_uuid' % entry['nids'][0]] = \
            'MGS\t' + away
        mdt = lfs.target(entry, 'MDT', 0)
        result['mdc.%s-mdc-%s.mds_server_uuid' % (mdt, name)] = \
            '%s_UUID\t%s' % (mdt, away)
        available = root.f_bavail * root.f_frsize // 1024 // entry['osts']
        for ost in range(entry['osts']):
            uuid = lfs.target(entry, 'OST', ost)
            dead = ost in entry['dead'].values()
            state = 'DISCONN' if dead else (
                'IDLE' if entry['frozen'] else 'FULL')
            prefix = 'osc.%s-osc-%s.' % (uuid, name)
            result[prefix + 'ost_server_uuid'] = '%s_UUID\t%s' % (uuid, state)
            result[prefix + 'kbytesavail'] = None if dead else available
    return result


def get_param(arguments):
    given, patterns = lfs.options(arguments, 'n')
    found = parameters()
    code = 0
    for pattern in patterns:
        pattern = pattern.replace('/', '.')
        names = [name for name in sorted(found)
                 if name.count('.') == 0 == pattern.count('.') and
                 fnmatch.fnmatchcase(name, pattern) or alike(name, pattern)]
        if not names:
            print("error: get_param: param_path '%s': No such file or "
                  'directory' % pattern.replace('.', '/'), file=sys.stderr)
            code = errno.ENOENT
        for name in names:
            if found[name] is None:
                print("error: read_param: '/sys/fs/lustre/%s': Transport "
                      'endpoint is not connected' % name.replace('.', '/'),
                      file=sys.stderr)
                code = errno.ENOTCONN
            else:
                print(found[name] if given else
                      '%s=%s' % (name, found[name]))
    sys.exit(code)


def alike(name, pattern):
    """Whether a pattern fits a name, whose middle part may have dots."""
    parts = [re.fullmatch(r'([^.]*)\.(.*)\.([^.]*)', text)
             for text in (name, pattern)]
    return all(parts) and all(map(fnmatch.fnmatchcase, parts[0].groups(),
                                  parts[1].groups()))


def pool_list(arguments):
    lfs.pool_list(arguments, 'lctl')


def pool_new(arguments):
    name, = arguments
    fsname, _dot, pool = name.partition('.')
    if os.geteuid():
        raise registry.Failure(errno.EACCES,
                               'pool_new %s: Permission denied' % name)
    if len(pool) > _POOL_NAME_LENGTH:
        raise registry.Failure(errno.ENAMETOOLONG, (
            'pool_new: poolname is too long\npool_new: File name too long'))
    with registry.locked(fsname):
        entry = registry.load(fsname)
        if entry is None:
            raise lfs.unknown('pool_new ' + name)
        if pool in entry['pools']:
            raise registry.Failure(
                errno.EEXIST, 'pool_new: pool %s already exists' % name)
        entry['pools'][pool] = []
        registry.save(entry)
    print('Pool %s created' % name)


def pool_add(arguments):
    name, *osts = arguments
    fsname, _dot, pool = name.partition('.')
    with registry.locked(fsname):
        entry = registry.load(fsname)
        if entry is None or pool not in entry['pools']:
            raise lfs.unknown('pool_add ' + ' '.join(arguments))
        for given in osts:
            found = re.fullmatch(
                r'%s-OST\[?([0-9a-f]+)(?:-([0-9a-f]+))?\]?' % fsname, given)
            if not found:
                raise lfs.unknown('pool_add ' + ' '.join(arguments))
            first, last = (int(part or found[1], 16)
                           for part in found.groups())
            for ost in range(first, last + 1):
                entry['pools'][pool].append(ost)
                print('OST %s_UUID added to pool %s' % (
                    lfs.target(entry, 'OST', ost), name))
        registry.save(entry)


if __name__ == '__main__':
    lfs.run('lctl', {'get_param': get_param, 'pool_list': pool_list,
                     'pool_new': pool_new, 'pool_add': pool_add},
            sys.argv[1:])
