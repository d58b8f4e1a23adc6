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

"""The share that a benchmark uses: a real one, or a stand-in."""

import contextlib
import os

from cinder_lustre.tests.functional import site as sites


@contextlib.contextmanager
def made(directory, share, size):
    """Make a directory of its own on a share, for the time of the context.

    :param directory: where the image of the stand-in lies
    :param share: the text of a real share, to use instead
    :param size: GiB of the stand-in
    :returns: the site, and a local directory
    """
    run = sites.Run(os.path.join(os.path.realpath(directory),
                                 'cinder-lustre-bench'))
    filesystem = (sites.Lustre(run, share) if share
                  else sites.StandIn(run, size='%dG' % size))
    site = sites.Site(filesystem, run.name, not share)
    try:
        yield site, run.directory
    finally:
        site.remove()
