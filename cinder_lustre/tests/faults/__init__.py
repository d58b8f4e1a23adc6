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


"""Kills the storage core at every system call that changes something.

``python -m cinder_lustre.tests.faults`` needs strace and qemu-img. It works
on real files, and takes an operation to be safe when after every kill the
volume, its snapshots and its records are those of before the operation or
those of after it, byte for byte, and nothing is left when the volume is
deleted. Of a backup, either nothing is claimed or all is there; the calls of
a backup are killed, and made to fail as well.
"""
