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

"""The options of the Nova driver, which the sample file lists, too."""

from oslo_config import cfg

from cinder_lustre import opts

_MOUNT_OPTS = ('lustre_mount_point_base', 'lustre_mount_options',
               'lustre_mount_timeout', 'lustre_development_fstypes')

libvirt_opts = [
    option for option in opts.mount_opts if option.name in _MOUNT_OPTS
] + [
    cfg.StrOpt('lustre_error_policy',
               default='stop',
               choices=[
                   ('stop', 'The server is paused, and goes on where it was '
                    'when it is resumed.'),
                   ('enospace', 'The server is paused when there is no space '
                    'left, and sees any other error.'),
                   ('report', 'The server sees the error.')],
               help='What happens to a server when Lustre reports an error '
                    'on one of its volumes, as after an eviction of this '
                    'host or when an OST is full. With report, the server\'s '
                    'file systems may be damaged or become read-only; with '
                    'stop, it stays paused until somebody resumes it with '
                    '"virsh resume" or reboots it. Counts for volumes that '
                    'are attached, and servers that are started, after the '
                    'change.'),
]


def list_opts():
    """The options of this package in nova.conf."""
    return [('libvirt', libvirt_opts)]
