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

"""What os-brick lacks for Lustre: the client, the connector, register()."""


def register(development_fstypes=(), mount_options='flock', mount_timeout=60,
             operation_timeout=60, copies_contents=False):
    """Teach os-brick, in this process, to connect volumes on Lustre.

    May be called again; the last settings count.

    :param development_fstypes: file system types to accept beside Lustre
    :param mount_options: what shares are mounted with
    :param mount_timeout: seconds that a mount may take
    :param operation_timeout: seconds that an operation on a share may be
                              silent
    :param copies_contents: whether this process copies what it connects byte
                            by byte, and so wants the disk in a qcow2 file
    """
    # Workers' children, and hosts without os-brick, import this package too.
    from os_brick.initiator import connector as brick_connector

    from cinder_lustre.brick import connector

    connector.LustreConnector.client_settings = {
        'development_fstypes': tuple(development_fstypes),
        'lustre_mount_options': mount_options,
        'lustre_mount_timeout': mount_timeout}
    connector.LustreConnector.operation_timeout = operation_timeout
    connector.LustreConnector.copies_contents = copies_contents
    brick_connector.get_connector_mapping().setdefault(
        'LUSTRE', 'cinder_lustre.brick.connector.LustreConnector')
