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


"""The group "lustre" of tempest.conf.

What a cloud may not have, or may not allow, is off by default.
"""

from oslo_config import cfg

lustre_group = cfg.OptGroup(
    name='lustre', title='Volumes on Lustre (cinder-lustre)')

LUSTRE_OPTIONS = [
    cfg.ListOpt('volume_formats',
                default=['raw', 'qcow2'],
                help='The formats of volumes to test. A volume type is made '
                     'for each, which needs an administrator.'),
    cfg.IntOpt('data_size',
               default=16, min=1, max=512,
               help='How many MiB of random data are written to a volume '
                    'and read back.'),
    cfg.IntOpt('volume_count',
               default=5, min=2,
               help='How many volumes are made and deleted at once.'),
    cfg.BoolOpt('manage',
                default=False,
                help='Whether volumes may be unmanaged and managed: a test '
                     'that is killed in between leaves a volume\'s files '
                     'behind.'),
    cfg.BoolOpt('revert',
                default=False,
                help='Whether the cloud has volume API 3.40, which reverts '
                     'volumes to snapshots.'),
    cfg.BoolOpt('reimage',
                default=False,
                help='Whether the cloud has volume API 3.68, which writes an '
                     'image into an existing volume.'),
    cfg.BoolOpt('migration',
                default=False,
                help='Whether volumes may be migrated and retyped between '
                     'backends on Lustre. Without two of them these tests '
                     'are skipped.'),
    cfg.BoolOpt('encryption',
                default=False,
                help='Whether the cloud has a key manager, and volume types '
                     'may be encrypted.'),
    cfg.BoolOpt('online_snapshots',
                default=False,
                help='Whether the compute hosts run nova-compute-lustre, '
                     'which attached volumes and their snapshots need.'),
    cfg.BoolOpt('guest_console',
                default=False,
                help='Whether the guest of [compute] image_ref writes areas '
                     'with checksums to its volumes and tells on its console '
                     'what it reads of them, as that of the lab of '
                     'cinder-lustre does.'),
    cfg.BoolOpt('performance',
                default=False,
                help='Whether to measure how long operations take. Nothing '
                     'else should run meanwhile: --serial.'),
    cfg.StrOpt('performance_file',
               help='A file to which each measurement is appended as a line '
                    'of JSON.'),
    cfg.ListOpt('performance_sizes',
                default=['1', '2'],
                item_type=cfg.types.Integer(min=1),
                help='The sizes of the volumes to measure, in GiB.'),
    cfg.ListOpt('performance_counts',
                default=['1', '4'],
                item_type=cfg.types.Integer(min=1),
                help='How many volumes to work on at once.'),
    cfg.IntOpt('performance_data',
               default=256, min=1,
               help='How many MiB of random data a measured volume has, at '
                    'most its size.'),
    cfg.IntOpt('performance_repeats',
               default=3, min=1,
               help='How often each operation is measured.'),
    cfg.DictOpt('performance_limits',
                default={},
                help='The longest median of an operation in seconds, for '
                     'instance create:10,backup:60. What is not listed, or '
                     'is 0, is only recorded. The operations: create, clone, '
                     'snapshot, delete, extend, upload, backup, restore.'),
]
