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

"""What the lab's guest proves of its volumes, as its console tells."""

import re

LINE = re.compile(
    r'^LAB (?P<disk>vd\w+) volume=(?P<serial>\S+) size=(?P<size>\d+) '
    r'generation=(?P<generation>\d+) sum=\S+ owner=(?P<owner>\S+) '
    # A line that has not come to its end says nothing yet.
    r'(?P<outcome>\w+)\r?\n', re.MULTILINE)
# The guest sees that much of a volume's id.
SERIAL = 20


def last_generation(text, volume_id, size, floor=0):
    """The generation that a guest read last and completely.

    :param text: the whole console, which begins with the server's start
    :param size: of the volume in bytes; a guest may see a new one only a
                 moment later
    :param floor: the generation with which the console has to begin
    :returns: 0 while the guest has not seen that size
    :raises: ValueError when it read less, or anything else, than it wrote
    """
    lines = [each for each in LINE.finditer(text)
             if each['serial'] == volume_id[:SERIAL]]
    for line in lines:
        generation = int(line['generation'])
        expected = ('OK',) if floor else ('OK', 'NEW')
        if generation < floor or line['outcome'] not in expected:
            raise ValueError('after generation %d: "%s"' % (
                floor, line[0].strip()))
        floor = generation
    return floor if lines and int(lines[-1]['size']) == size else 0
