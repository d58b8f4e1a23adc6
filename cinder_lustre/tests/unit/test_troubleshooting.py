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

"""The troubleshooting page is keyed by messages that exist."""

import ast
import pathlib
import re

import testtools

import cinder_lustre

PACKAGE = pathlib.Path(cinder_lustre.__file__).parent
PAGE = PACKAGE.parent / 'doc/source/admin/troubleshooting.rst'
# Messages of other programs that the page explains.
FOREIGN = ('Invalid InitiatorConnector protocol specified lustre',
           'Could not find a handler for lustre volume',
           "Couldn't unmount …",
           'Permission denied: …')


def message_texts():
    """All text constants of the package, placeholders replaced by …"""
    for path in PACKAGE.rglob('*.py'):
        if 'tests' in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r'%(\(\w+\))?[srd]', '…', node.value)


class TroubleshootingTestCase(testtools.TestCase):

    def test_every_heading_is_a_message(self):
        headings = re.findall('^``(.+)``$', PAGE.read_text(), re.MULTILINE)
        self.assertNotEqual([], headings)
        texts = ' '.join(message_texts())
        gone = [heading for heading in headings
                if heading not in FOREIGN
                and not all(part in texts for part in heading.split('…'))]
        self.assertEqual([], gone)
