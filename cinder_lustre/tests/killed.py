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


"""Runs one operation in a process that is killed on its way.

A process of its own, as the one that runs the tests may be patched, which a
fork would inherit.
"""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


def run(target, attribute, count, operation, *args):
    """Run a function of the storage core until it is killed.

    :param target: the module that has the function at which it is killed
    :param attribute: the name of that function
    :param count: the how manieth call does not happen any more
    :returns: whether it got that far
    """
    request = {'target': target.__name__, 'attribute': attribute,
               'count': count, 'module': operation.__module__,
               'operation': operation.__name__, 'args': args}
    ended = subprocess.run(
        [sys.executable, '-S', '-m', __name__, json.dumps(request)],
        env=dict(os.environ, PYTHONPATH=_PACKAGE_PARENT),
        stdin=subprocess.DEVNULL)
    return ended.returncode == -signal.SIGKILL


def _main(request):
    target = importlib.import_module(request['target'])
    real = getattr(target, request['attribute'])
    calls = []

    def kill(*args, **kwargs):
        calls.append(args)
        if len(calls) == request['count']:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    logging.disable()
    setattr(target, request['attribute'], kill)
    module = importlib.import_module(request['module'])
    importlib.import_module('cinder_lustre.lfs').set_dom_default = str
    getattr(module, request['operation'])(*request['args'])


if __name__ == '__main__':
    _main(json.loads(sys.argv[1]))
