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


"""Defects of the storage core, one of each kind, that must be noticed."""

import contextlib
import functools
import os
from unittest import mock

from cinder_lustre.backup import piece
from cinder_lustre.backup import transfer
from cinder_lustre import chain
from cinder_lustre import record


class Defect:
    """A defect, and how it is looked for.

    :param operation: the name of the operation in which it must show
    :param way: how that is killed: the first word of the points
    :param target: the module or class that has it
    :param attribute: the name of the function that is replaced
    :param function: the one with the defect
    """

    def __init__(self, operation, way, target, attribute, function):
        self.operation = operation
        self.way = way
        self.patch = functools.partial(mock.patch.object, target, attribute,
                                       function)


def _replace_in_place(path, content, _mode):
    with open(path, 'wb') as stream:
        stream.write(record._serialise(content))


def _remove_before_switch(rec, name, *args, switch=chain._switch, **kwargs):
    record.remove_file(rec.path(name))
    switch(rec, name, *args, **kwargs)


def _begin_without_saving(rec, operation, **steps):
    rec.intent = dict(steps, operation=operation)


def _write_object_in_place(path, pieces, length=None):
    with open(path, 'wb') as stream:
        stream.writelines(pieces)
        stream.truncate(length)


def _write_what_fits(*args, write=piece.write):
    with contextlib.suppress(OSError):
        write(*args)


def _remove_by_metadata(path, container, prefix, remove=transfer.remove):
    metadata = os.path.join(path, container, prefix + transfer.METADATA)
    if os.path.exists(metadata):
        os.unlink(metadata)
        remove(path, container, prefix)


DEFECTS = {
    'record written in place': Defect(
        'extend raw', 'process', record, '_replace', _replace_in_place),
    'no intent before a change': Defect(
        'extend raw', 'process', record.Record, 'begin',
        _begin_without_saving),
    'removal before the switch': Defect(
        'revert', 'process', chain, '_switch', _remove_before_switch),
    'no undoing': Defect(
        'first snapshot', 'process', chain, '_recover',
        record.Record.finish),
    'recovery beside a child': Defect(
        'delete only snapshot', 'orphan', os, 'set_inheritable',
        lambda descriptor, inheritable: None),
    'object written in place': Defect(
        'back up', 'process', piece, 'write', _write_object_in_place),
    'full share ignored': Defect(
        'back up', 'error', piece, 'write', _write_what_fits),
    'deletion not repeatable': Defect(
        'delete backup', 'process', transfer, 'remove', _remove_by_metadata),
}
