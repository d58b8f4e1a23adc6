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

"""The options of this package, for services and for their sample files."""

from oslo_config import cfg

mount_opts = [
    cfg.StrOpt('lustre_mount_point_base',
               default='$state_path/mnt',
               help='Directory of this host below which Lustre shares are '
                    'mounted, each in a directory of its own. The user of the '
                    'service must be able to write to it. It is part of the '
                    'path of every volume: do not change it while a volume '
                    'is attached on this host.'),
    cfg.StrOpt('lustre_mount_options',
               default='flock',
               help='Options that Lustre shares are mounted with, separated '
                    'by commas; those of a share override them. Volumes need '
                    'the option flock: a share that was mounted without it, '
                    'read-only or with localflock is refused. A wrong option '
                    'makes every mount fail. Options count when a share is '
                    'mounted; one that is mounted already keeps its own.'),
    cfg.IntOpt('lustre_mount_timeout',
               default=60,
               min=1,
               help='Seconds that mounting a share may take. When they are '
                    'over, the share is reported as down and the attempt goes '
                    'on in the background; Lustre itself gives up after '
                    'nearly three minutes. If it is too short, shares on a '
                    'slow network stay down; if it is too long, a start or a '
                    'request waits that long for a server that is away.'),
    cfg.IntOpt('lustre_operation_timeout',
               default=60,
               min=1,
               help='Seconds that an operation on a share may give no sign '
                    'of life before the share counts as down; long copies '
                    'report their progress and may take longer. Nothing new '
                    'is started on such a share until the operation ends. If '
                    'it is too short, a busy file system looks like a dead '
                    'one; if it is too long, requests to a dead one take long '
                    'to fail.'),
    cfg.ListOpt('lustre_development_fstypes',
                default=[],
                help='For development only, where there is no Lustre: file '
                     'system types to accept as if they were Lustre, though '
                     'they show no option flock. The locks of such file '
                     'systems may not reach other hosts, so that two hosts '
                     'can write to one volume and destroy it. Never set it '
                     'where data matter.'),
]

volume_opts = [
    cfg.StrOpt('lustre_shares_config',
               default='/etc/cinder/lustre_shares',
               help='File with one Lustre share a line: '
                    '<nid>[,<nid>...][:<nid>...]:/<fsname>[/<subdir>...] '
                    '[-o options]. A line that is wrong is named in the log '
                    'and left out; without any valid share the backend does '
                    'not start. Not read when lustre_shares is set.'),
    cfg.MultiStrOpt('lustre_shares',
                    default=[],
                    help='Lustre shares, in the form of a line of '
                         'lustre_shares_config, instead of that file. May be '
                         'given several times.'),
    cfg.IntOpt('lustre_ost_reserved_percentage',
               default=5, min=0, max=100,
               help='Percentage of an average OST that should stay free on '
                    'each; the log names OSTs that have less. A volume gets '
                    'errors when its OST is full, however much space the '
                    'share has, so with 0 nothing warns before that.'),
    cfg.BoolOpt('lustre_sparsed_volumes',
                default=True,
                help='Create volumes thin: they take space when it is '
                     'written. Otherwise the space is allocated when the '
                     'volume is created. The extra spec provisioning:type '
                     '(thin or thick) of a volume type overrides it.'),
    cfg.BoolOpt('lustre_qcow2_volumes',
                default=False,
                help='Create volumes as qcow2 instead of raw files. Raw files '
                     'can be extended while attached, and allow multi-attach '
                     'and encryption. The extra spec lustre:format (raw or '
                     'qcow2) of a volume type overrides it.'),
    cfg.StrOpt('lustre_connection_type',
               default='lustre',
               choices=[
                   ('lustre', 'Hosts mount the share with the connector and '
                    'the Nova class of this package.'),
                   ('nfs', 'Unmodified Nova and os-brick: the operator has '
                    'mounted the share where those look for it.')],
               help='How hosts get at the shares. Encrypted volumes need '
                    '"lustre": with "nfs" they are refused.'),
]

backup_opts = [
    cfg.StrOpt('lustre_backup_share',
               help='The Lustre share that backups are kept on: '
                    '<nid>[,<nid>...][:<nid>...]:/<fsname>[/<subdir>...]. '
                    'Give it a directory of its own, or another file system '
                    'than the volumes have. Without it, cinder-backup does '
                    'not start to work.'),
    cfg.StrOpt('lustre_backup_mount_point_base',
               default='$state_path/backup_mount',
               help='Directory of this host below which the backup share is '
                    'mounted. The user of the service must be able to write '
                    'to it.'),
    cfg.StrOpt('lustre_backup_mount_options',
               default='flock',
               help='Options that the backup share is mounted with, separated '
                    'by commas. A wrong option makes every mount fail.'),
    cfg.IntOpt('lustre_backup_mount_timeout',
               default=60, min=1,
               help='Seconds that mounting the backup share may take, before '
                    'an operation fails.'),
    cfg.IntOpt('lustre_backup_operation_timeout',
               default=60, min=1,
               help='Seconds that an operation on the backup share may give '
                    'no sign of life before it fails. Nothing new is started '
                    'on the share until it has ended.'),
    cfg.IntOpt('lustre_backup_object_size',
               default=16, min=1, max=128,
               help='The maximum size of an object of a backup, in MiB of '
                    'the volume; it takes the place of backup_file_size. '
                    'Larger objects are fewer files; smaller ones need less '
                    'memory and let more cores work at once.'),
    cfg.ListOpt('lustre_backup_development_fstypes',
                default=[],
                help='For development only, where there is no Lustre: file '
                     'system types to accept as if they were Lustre. Never '
                     'set it where data matter.'),
]


def connector_settings(section):
    """What brick.register() takes, from a section with mount_opts."""
    return {'development_fstypes': section.lustre_development_fstypes,
            'mount_options': section.lustre_mount_options,
            'mount_timeout': section.lustre_mount_timeout,
            'operation_timeout': section.lustre_operation_timeout}


def list_opts():
    """The options of this package, for oslo-config-generator."""
    return [('DEFAULT', backup_opts),
            ('backend_defaults', mount_opts + volume_opts)]
