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

"""Package indexes of pip's configuration, as uv's options."""

import testtools

from cinder_lab import venv


class UvArgumentsTestCase(testtools.TestCase):

    def test_no_configuration(self):
        self.assertEqual(([], {}), venv.uv_arguments(''))

    def test_all_that_uv_has_an_option_for(self):
        options, environment = venv.uv_arguments(
            ":env:.index-url='https://index.example/simple'\n"
            "global.extra-index-url='https://a.example/x\\nfile:///b'\n"
            "install.find-links='/wheels'\n"
            "global.trusted-host='index.example'\n"
            "global.cert='/etc/ssl/ca.pem'\n"
            "global.timeout='60'\n")
        self.assertEqual(
            ['--default-index', 'https://index.example/simple',
             '--index', 'https://a.example/x', '--index', 'file:///b',
             '--find-links', '/wheels',
             '--allow-insecure-host', 'index.example',
             '--index-strategy', 'unsafe-best-match'], options)
        self.assertEqual({'SSL_CERT_FILE': '/etc/ssl/ca.pem'}, environment)
