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

"""What a real Lustre says, out of the transcripts beside the tests."""

import os
import re

DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(__file__)),
                         'fixtures', 'real-lustre')


def read(name):
    with open(os.path.join(DIRECTORY, name + '.txt'),
              encoding='utf-8') as stream:
        return stream.read()


def commands(name):
    """Yield each command of a transcript with the lines that it printed."""
    command, lines = None, []
    for line in read(name).splitlines():
        if re.match(r'[$+] ', line):
            if command is not None:
                yield command, lines
            command, lines = line[2:], []
        elif command is not None:
            lines.append(line)
    if command is not None:
        yield command, lines


def failed_mounts():
    """Yield each failed mount: label, source, mount point, code, stderr."""
    attempt = None
    for command, lines in commands('mount-errors'):
        text = '\n'.join(lines)
        if 'mount -t lustre' in command:
            words = re.sub(r"[';\"]", ' ', command).split()
            first = words.index('-c') if '-c' in words else 0
            words = words[words.index('mount', first) + 3:]
            if words[0] == '-o':
                del words[:2]
            attempt = words[0], words[1], re.split(r'\n\nreal\t', text)[0]
        # The command itself says how the one before it, or it itself, ended.
        ended = re.fullmatch(r"(.*) rc=(\d+)", lines[-1] if lines else '')
        if attempt and ended:
            source, path, stderr = attempt
            attempt = None
            if int(ended[2]) and source != 'remount,noflock':
                stderr = stderr.replace(ended[0], '')
                yield ended[1], source, path, int(ended[2]), stderr.strip()


def mountinfo():
    """The lines of /proc/self/mountinfo of a host with many mounts."""
    names = ('identity', 'qemu-img')
    lines = re.findall(r'^\d+ \d+ \d+:\d+ .* - .*$',
                       '\n'.join(map(read, names)), re.MULTILINE)
    # Both have one of the mounts.
    return '\n'.join(dict.fromkeys(lines))
