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

"""Lists on the command line, as all benchmarks take them."""

import argparse


def list_of(allowed):
    """A type of argument: names out of some, separated by commas."""
    def parse(text):
        values = text.split(',')
        if not set(values) <= set(allowed):
            raise argparse.ArgumentTypeError(
                '%s is not a list of %s' % (text, ', '.join(allowed)))
        return tuple(values)

    return parse


def numbers(text):
    """A type of argument: positive numbers, separated by commas."""
    values = tuple(map(int, text.split(',')))
    if min(values) < 1:
        raise argparse.ArgumentTypeError('%s is not positive' % text)
    return values
