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

"""What the tests of the worker run in its children."""

import logging
import os
import shutil
import signal
import sys

from cinder_lustre import exception
from cinder_lustre import worker


def echo(*args, **kwargs):
    return [args, kwargs]


def raise_ours(name, **kwargs):
    raise getattr(exception, name)(**kwargs)


def raise_os_error(*args):
    raise OSError(*args)


def raise_shutil_error():
    raise shutil.Error([('a', 'b', 'many causes')])


def raise_value_error(text):
    raise ValueError(text)


def own_pid():
    return os.getpid()


def exit_at_once(code):
    os._exit(code)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path):
    """Read a FIFO to its end, which comes when the test wants it."""
    with open(path) as stream:
        return stream.read()


def report(*values):
    for value in values:
        worker.progress(value)
    return len(values)


def report_until_nobody_listens(path):
    try:
        while True:
            worker.progress('more')
    except BrokenPipeError:
        with open(path, 'w') as stream:
            stream.write('stopped')
        raise


def log(name, level, text):
    logging.getLogger(name).log(level, text)


def write_to_standard_streams():
    print('this is no answer')
    os.write(1, b'{"result": "nor is this"}\n')
    os.system('echo \'{"result": "nor this"}\'')
    return sys.stdin.read()


def describe_itself():
    return {'locale': os.environ['LC_ALL'], 'directory': os.getcwd(),
            'session': os.getsid(0) == os.getpid(),
            'site': 'site' in sys.modules,
            'descriptors': len(os.listdir('/proc/self/fd'))}
