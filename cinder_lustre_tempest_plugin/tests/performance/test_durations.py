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


"""How long operations take, by the size of a volume and by their number.

A time is that from the request to the moment when the API shows its end, which
is asked for ten times a second.
"""

from concurrent import futures
import json
import logging
import statistics
import time

from tempest import config
from tempest.lib import decorators
from testtools import content as testtools_content

from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin.tests import base

CONF = config.CONF
# Seconds between two looks whether an operation has ended.
INTERVAL = 0.1


def summary(seconds, volumes, mebibytes=None):
    """What is recorded of measurements of one operation.

    :param seconds: one for each time that it was measured
    :param volumes: how many were worked on at once
    :param mebibytes: of data that were moved each time, if any were
    """
    median = statistics.median(seconds)
    found = {'seconds': [round(each, 3) for each in seconds],
             'median': round(median, 3), 'volumes': volumes,
             'per_volume': round(median / volumes, 3)}
    if mebibytes:
        found['mib_per_second'] = round(mebibytes / max(median, 1e-3), 1)
    return found


@decorators.serial
class PerformanceTest(base.LustreTest):

    @classmethod
    def is_serial_execution_requested(cls):
        # Who is only skipped need not wait until all others are done.
        return (super().is_serial_execution_requested() and
                CONF.lustre.performance)

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        cls.skip_unless('lustre', 'performance')
        cls.skip_unless('volume_feature_enabled', 'snapshot', 'clone')

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        for client in (cls.volumes, cls.snapshots, cls.backups, cls.images):
            client.build_interval = INTERVAL

    def setUp(self):
        super().setUp()
        self.over = []
        # What is logged goes into the result, which must stay below 4 MiB;
        # ten requests a second are more.
        requests = logging.getLogger('tempest.lib.common.rest_client')
        self.addCleanup(requests.setLevel, requests.level)
        requests.setLevel(logging.WARNING)
        # Also the last of the sizes and counts is recorded before.
        self.addCleanup(lambda: self.assertEqual([], self.over))

    def measure(self, name, operation, volumes, size, data=0, **facts):
        """Measure, record, and compare with the limit.

        :param name: that of the operation, in records and limits
        :param operation: a generator function; it makes ready, yields, does
            what is measured, yields, and cleans up
        :param volumes: how many are worked on at once
        :param size: of each volume in GiB
        :param data: MiB that are moved for each volume
        :param facts: what is recorded beside
        """
        seconds = []
        for _ in range(CONF.lustre.performance_repeats):
            steps = operation()
            next(steps)
            start = time.monotonic()
            next(steps)
            seconds.append(time.monotonic() - start)
            for _ in steps:
                pass
        found = {'operation': name, 'format': self.volume_format,
                 'size_gib': size, 'time': round(time.time()), **facts,
                 **summary(seconds, volumes, volumes * data)}
        self._record(found)
        limit = float(CONF.lustre.performance_limits.get(name, 0))
        if limit and found['median'] > limit:
            self.over.append(found)

    def _record(self, found):
        text = json.dumps(found)
        self.addDetailUniqueName(
            '%(operation)s %(size_gib)d GiB x %(volumes)d' % found,
            testtools_content.text_content(text))
        if CONF.lustre.performance_file:
            with open(CONF.lustre.performance_file, 'a') as file:
                file.write(text + '\n')

    @staticmethod
    def at_once(func, *items):
        """Call a function for each of some items, all at once."""
        with futures.ThreadPoolExecutor(len(items[0])) as executor:
            return list(executor.map(func, *items))

    def each_size(self):
        """Each size with a volume's data: (GiB, MiB, a source volume)."""
        for size in CONF.lustre.performance_sizes:
            data = min(CONF.lustre.performance_data, size * 1024)
            source = self.create_volume_with(content.Content(data), size)
            yield size, data, source
            self.delete_volume(source)

    def each_case(self):
        """Each size and number of volumes: (GiB, MiB, the volumes)."""
        for size, data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                volumes = self._clones(source, count, size)
                yield size, data, volumes
                self.delete_many(volumes)

    def _clones(self, source, count, size):
        return self.create_many([{'source_volid': source}] * count, size)

    def _create(self, size, count, **source):
        def operation():
            yield
            volumes = self.create_many([source] * count, size)
            yield
            self.delete_many(volumes)
        return operation

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('b9db8f98-84bb-4a9e-97a8-3a343ccbaba4')
    def test_create(self):
        for size in CONF.lustre.performance_sizes:
            for count in CONF.lustre.performance_counts:
                self.measure('create', self._create(size, count), count, size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('f8d996ab-2227-4822-9215-d4e285adbcc5')
    def test_clone(self):
        for size, data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                self.measure(
                    'clone', self._create(size, count, source_volid=source),
                    count, size, data)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('095a61b2-7607-437c-98a1-dd16ebc2d87d')
    def test_delete(self):
        def operation():
            volumes = self._clones(source, count, size)
            yield
            self.delete_many(volumes)
            yield
        for size, _data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                self.measure('delete', operation, count, size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('dc59388e-1222-411d-a317-429c45123519')
    def test_snapshot(self):
        """It should not take longer when there are some already."""

        def operation():
            yield
            taken.append(self.at_once(self.create_snapshot, volumes))
            yield
        for size, _data, volumes in self.each_case():
            taken = []
            for _ in range(2):
                self.measure('snapshot', operation, len(volumes), size,
                             snapshots=len(taken))
            for snapshots in taken:
                self.at_once(self.delete_snapshot, snapshots)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('8178090a-fa8f-4bfa-9912-2c1e309d612a')
    def test_extend(self):
        def operation():
            volumes = self._clones(source, count, size)
            yield
            self.at_once(self.extend, volumes, [size + 1] * count)
            yield
            self.delete_many(volumes)
        for size, _data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                self.measure('extend', operation, count, size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('355e8b4d-c2de-492e-8b30-2f43655dd82d')
    def test_upload(self):
        def operation():
            yield
            images = self.at_once(self.upload, volumes)
            yield
            self.at_once(self.delete_image, images)
        for size, _data, volumes in self.each_case():
            # Glance gets all of it, with its zeros.
            self.measure('upload', operation, len(volumes), size, size * 1024)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('c39d210d-ed15-48bd-96df-47ce610a5a8b')
    def test_backup(self):
        self.skip_unless('volume_feature_enabled', 'backup')

        def operation():
            yield
            backups = self.at_once(self.create_backup, volumes)
            yield
            self.at_once(self.delete_backup, backups)
        for size, data, volumes in self.each_case():
            self.measure('backup', operation, len(volumes), size, data)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('a2b44f2a-7136-44cb-8396-1bbce7540938')
    def test_restore(self):
        self.skip_unless('volume_feature_enabled', 'backup')

        def operation():
            targets = self.create_many([{}] * len(volumes), size)
            yield
            self.at_once(self._restore_over, backups, targets)
            yield
            self.delete_many(targets)
        for size, data, volumes in self.each_case():
            backups = self.at_once(self.create_backup, volumes)
            self.measure('restore', operation, len(volumes), size, data)
            self.at_once(self.delete_backup, backups)

    def _restore_over(self, backup, volume):
        self.restore(backup, volume_id=volume)


class PerformanceQcow2Test(PerformanceTest):
    volume_format = 'qcow2'
