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

"""What Nova lacks for Lustre: the volume driver, its options, register()."""


def register():
    """Teach Nova, in this process, to attach volumes on Lustre.

    Before this, nova.cmd.compute must have been imported: it decides how
    threads work in the whole process.
    """
    # The options below are listed on hosts without Nova, too.
    import nova.conf
    from nova.virt.libvirt import driver

    from cinder_lustre.nova import opts

    nova.conf.CONF.register_opts(opts.libvirt_opts, group='libvirt')
    # Nova reads this at each attachment.
    driver.VOLUME_DRIVERS.setdefault(
        'lustre', 'cinder_lustre.nova.volume.LibvirtLustreVolumeDriver')
