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

"""The command line of tools/bench."""

import argparse
import importlib
import logging
import signal

from cinder import monkey_patch

# The modules by command.
COMMANDS = {'api': 'benchmarks.api', 'backup': 'benchmarks.backup',
            'volumes': 'benchmarks.volume'}


def main():
    # Before anything of Cinder chooses another way to run things.
    monkey_patch.patch()
    modules = {name: importlib.import_module(module)
               for name, module in COMMANDS.items()}
    parser = argparse.ArgumentParser(prog='bench', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(
            name, description=module.__doc__, help=module.SUMMARY,
            formatter_class=argparse.RawDescriptionHelpFormatter))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    # A terminated run cleans up, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    modules[args.command].run(args)


if __name__ == '__main__':
    main()
