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

"""Unmodified Nova with lustre_connection_type=nfs, on mounts of its own.

A program: it wants a mount namespace in which it may mount. It attaches two
volumes to two servers and detaches them, through Nova's NFS driver and Nova's
own mount manager, and prints what became of the mount.

Usage: unmodified.py BASE hold|leave
"""

import json
import os
import subprocess
import sys
from unittest import mock

import nova.conf
import nova.privsep
from nova.virt.libvirt.volume import mount as nova_mount
from nova.virt.libvirt.volume import nfs
from oslo_concurrency import processutils

from cinder_lustre import share

IDENTITY = 'lustre:/testfs/cinder'


def main(base, hold):
    conf = nova.conf.CONF
    conf([], project='nova', default_config_files=[])
    conf.set_override('nfs_mount_point_base', base, group='libvirt')
    # This process is root in its namespace: no daemon is needed.
    nova.privsep.sys_admin_pctxt.set_client_mode(False)

    # The operator's part; the type of the file system does not matter here.
    path = share.Share.parse(IDENTITY).mount_point(base)
    os.mkdir(path)
    subprocess.run(['mount', '-t', 'tmpfs', 'none', path], check=True)
    holder = None
    if hold == 'hold':
        holder = subprocess.Popen(['sleep', 'infinity'], cwd=path)
    try:
        print(json.dumps(attach_and_detach(path)))
    finally:
        if holder:
            holder.kill()
            holder.wait()


def attach_and_detach(path):
    host = mock.Mock()
    host.list_guests.return_value = []
    nova_mount.get_manager().host_up(host)
    driver = nfs.LibvirtNFSVolumeDriver(host)
    steps = {}
    attachments = [
        ({'data': {'export': IDENTITY, 'name': 'volume-%d' % number,
                   'format': 'raw', 'options': None}},
         mock.Mock(uuid=str(number)))
        for number in range(2)]
    for info, instance in attachments:
        driver.connect_volume(info, instance)
    steps['path'] = attachments[0][0]['data']['device_path']
    for number, attachment in enumerate(attachments, 1):
        driver.disconnect_volume(*attachment)
        steps['after detach %d' % number] = os.path.ismount(path)
    steps['directory'] = os.path.isdir(path)
    try:
        driver.connect_volume(*attachments[0])
        steps['attach again'] = os.path.ismount(path)
    except processutils.ProcessExecutionError:
        steps['attach again'] = False
    return steps


if __name__ == '__main__':
    main(*sys.argv[1:])
