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


"""What a guest proves of its volumes, and how a test reads that.

The guest of the lab of cinder-lustre writes areas with checksums to each of
its volumes, again and again, and tells on its console what it read:
"LAB vdb volume=SERIAL size=BYTES generation=N sum=S owner=O OUTCOME", or
"LAB vdb volume=SERIAL cannot be written ERROR". At
64 MiB of a volume is a header, "LUSTRELAB GENERATION AREA SUM OWNER"; the two
areas, of 2 MiB, follow it 2 MiB further.
"""

import hashlib
import re

from cinder_lustre_tempest_plugin import content

LINE = re.compile(
    r'^LAB vd\w+ volume=(?P<serial>\S+) (?:size=(?P<size>\d+) '
    r'generation=(?P<generation>\d+) sum=\S+ owner=\S+|cannot be written) '
    # A line that has not come to its end says nothing yet.
    r'(?P<outcome>\w+)\r?\n', re.MULTILINE)
# The guest sees that much of a volume's id.
SERIAL = 20
HEADER = 64 * content.MIB
AREA = 2 * content.MIB


class DataLoss(Exception):
    """A guest did not read what it had written."""


def generation(console, volume, size, floor=0):
    """The generation that a guest read last of a volume.

    :param console: all that its console shows, which begins with its start
    :param size: in bytes, as the guest must see it by now
    :param floor: the generation that the volume had before that
    :returns: 0 while it has not read the volume in that size
    :raises: DataLoss when it ever read less or other than was written
    """
    seen = 0
    for line in LINE.finditer(console):
        if line['serial'] != volume[:SERIAL]:
            continue
        # Only a volume without a generation may be new.
        if line['outcome'] not in (('OK',) if floor else ('OK', 'NEW')) or (
                int(line['generation']) < floor):
            raise DataLoss(f'after generation {floor}: {line[0].strip()}')
        floor, seen = int(line['generation']), int(line['size'])
    return floor if seen == size else 0


def generation_in(stream):
    """The generation that is in the image of a volume.

    :raises: DataLoss when it is not that of its checksum
    """
    left = HEADER
    while left:
        skipped = stream.read(min(left, AREA))
        if not skipped:
            raise DataLoss(f'the image ends {left} bytes before the header')
        left -= len(skipped)
    head = stream.read(AREA)
    areas = [stream.read(AREA) for _ in range(2)]
    if not head.startswith(b'LUSTRELAB '):
        raise DataLoss('there is no header')
    words = head[:4096].rstrip(b'\0').decode().split()
    found = hashlib.sha256(areas[int(words[2])]).hexdigest()
    if found != words[3]:
        raise DataLoss('the checksum of generation %s is %s, not %s' % (
            words[1], found, words[3]))
    return int(words[1])
