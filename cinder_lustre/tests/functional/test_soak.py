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

"""Random operations on a few volumes, each followed by a comparison.

``LUSTRE_TEST_SOAK`` is how many sequences are tried (default: 4), and
``LUSTRE_TEST_SEED`` where they begin; a sequence that fails is printed.
"""

import os
import random
import threading
import types
from unittest import mock

import hypothesis
from hypothesis import stateful
from hypothesis import strategies
from oslo_utils import units

from cinder_lustre.tests.functional import base
from cinder_lustre.volume.drivers import lustre

# In the place of a GiB, so that every byte can be compared.
GIB = 4 * units.Mi
STEPS = 25
NUMBERS = strategies.integers(0, 1000)


class Volume:
    """A volume, and what must be in it and in its snapshots."""

    def __init__(self, volume, fmt, content):
        self.volume = volume
        self.fmt = fmt
        self.content = content
        self.snapshots = []


class Machine(stateful.RuleBasedStateMachine):
    """The model: volumes with their contents.

    :cvar case: the test case, with a driver
    """

    case = None

    def __init__(self):
        super().__init__()
        self.volumes = []

    def pick(self, number):
        return self.volumes[number % len(self.volumes)]

    def add(self, volume, fmt, content):
        self.volumes.append(Volume(volume, fmt, content))
        self.compare(self.volumes[-1])

    def compare(self, each):
        with self.case.attached(each.volume) as stream:
            assert each.content.difference(stream) is None

    def some(self):
        return bool(self.volumes)

    def room(self):
        return len(self.volumes) < 4

    @stateful.precondition(room)
    @stateful.rule(fmt=strategies.sampled_from(['raw', 'qcow2']),
                   provisioning=strategies.sampled_from(['thin', 'thick']))
    def create(self, fmt, provisioning):
        self.add(self.case.create_volume(fmt=fmt, provisioning=provisioning),
                 fmt, base.Content(GIB))

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS, block=NUMBERS)
    def write(self, number, block):
        each = self.pick(number)
        offset = block * 4096 % (each.content.size - 65536)
        each.content.put(offset, random.Random(block).randbytes(65536))
        with self.case.attached(each.volume) as stream:
            each.content.write(stream)
        self.compare(each)

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS)
    def extend(self, number):
        each = self.pick(number)
        if each.content.size < 3 * GIB:
            self.case.extend_volume(each.volume,
                                    each.content.size // GIB + 1)
            each.content = each.content.grown(each.content.size + GIB)
        self.compare(each)

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS)
    def snapshot(self, number):
        each = self.pick(number)
        if len(each.snapshots) < 4:
            each.snapshots.append((
                self.case.create_snapshot(each.volume),
                each.content.grown(each.content.size)))
        self.compare(each)

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS, which=NUMBERS)
    def delete_snapshot(self, number, which):
        each = self.pick(number)
        if each.snapshots:
            snapshot, _content = each.snapshots.pop(
                which % len(each.snapshots))
            self.case.delete_snapshot(snapshot)
        self.compare(each)

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS)
    def revert(self, number):
        each = self.pick(number)
        if each.snapshots:
            snapshot, content = each.snapshots[-1]
            self.case.revert(each.volume, snapshot)
            each.content = content.grown(each.content.size)
        self.compare(each)

    @stateful.precondition(lambda self: self.some() and self.room())
    @stateful.rule(number=NUMBERS, which=NUMBERS, larger=strategies.booleans(),
                   fmt=strategies.sampled_from(['raw', 'qcow2']))
    def copy(self, number, which, larger, fmt):
        each = self.pick(number)
        sources = [(None, each.content), *each.snapshots]
        snapshot, content = sources[which % len(sources)]
        size = each.content.size // GIB + larger
        if snapshot is None:
            volume = self.case.clone(each.volume, size, fmt=fmt)
        else:
            volume = self.case.volume_from_snapshot(snapshot, size, fmt=fmt)
        self.add(volume, fmt, content.grown(size * GIB))

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS)
    def retype(self, number):
        each = self.pick(number)
        fmt = 'raw' if each.fmt == 'qcow2' else 'qcow2'
        done = self.case.retype(each.volume, fmt=fmt)
        assert done is not bool(each.snapshots)
        each.fmt = fmt if done else each.fmt
        self.compare(each)

    @stateful.precondition(some)
    @stateful.rule(number=NUMBERS)
    def delete(self, number):
        each = self.pick(number)
        for snapshot, _content in each.snapshots:
            self.case.delete_snapshot(snapshot)
        self.case.delete_volume(each.volume)
        self.volumes.remove(each)

    @stateful.precondition(some)
    @stateful.rule()
    def restart(self):
        self.case.driver.do_setup(self.case.context)
        for each in self.volumes:
            self.case.driver.ensure_export(
                self.case.context, self.case.load(each.volume))

    def teardown(self):
        """Compare what no step has compared, and delete everything."""
        while self.volumes:
            each = self.volumes[0]
            for snapshot, content in each.snapshots:
                copy = self.case.volume_from_snapshot(
                    snapshot, each.content.size // GIB)
                self.compare(Volume(copy, None, content.grown(
                    each.content.size)))
                self.case.delete_volume(copy)
            self.delete(0)
        listing = [name for name in self.case.site.listing()
                   if name != '.cinder-lustre']
        assert listing == [], listing


class SoakTestCase(base.FunctionalTestCase):

    def retype(self, volume, **specs):
        wanted = self.new_volume(**specs)
        volume_type = wanted.volume_type
        wanted.destroy()
        loaded = self.load(volume)
        done = self.driver.retype(self.context, loaded, volume_type, {}, {})
        if done:
            loaded = self.load(volume)
            loaded.volume_type_id = volume_type.id
            loaded.save()
        return done

    @staticmethod
    def resources():
        """What may not grow: descriptors, threads."""
        return len(os.listdir('/proc/self/fd')), threading.active_count()

    def test_soak(self):
        patcher = mock.patch.object(lustre, 'units',
                                    types.SimpleNamespace(Gi=GIB))
        patcher.start()
        self.addCleanup(patcher.stop)
        machine = type('Soak', (Machine,), {'case': self})
        settings = hypothesis.settings(
            max_examples=int(os.environ.get('LUSTRE_TEST_SOAK', 4)),
            stateful_step_count=STEPS, deadline=None, database=None,
            suppress_health_check=list(hypothesis.HealthCheck))
        seed = int(os.environ.get('LUSTRE_TEST_SEED', 1))
        self.delete_volume(self.create_volume())
        before = self.resources()
        hypothesis.seed(seed)(stateful.run_state_machine_as_test)(
            machine, settings=settings)
        self.assertEqual(before, self.resources())
