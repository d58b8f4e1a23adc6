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

A time is that from the request to the moment when the API shows its end, so
it is known to [volume] build_interval.
"""

import json
import statistics
import time

from tempest import config
from tempest.lib import decorators
from testtools import content as testtools_content

from cinder_lustre_tempest_plugin import content
from cinder_lustre_tempest_plugin.tests import base

CONF = config.CONF


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

    def measure(self, operation, volumes=1, size=1, data=0, repeats=None):
        """Measure, record, and compare with the limit.

        :param operation: a generator function; it makes ready, yields, does
            what is measured, yields, and cleans up
        """
        seconds = []
        for _ in range(repeats or CONF.lustre.performance_repeats):
            steps = operation()
            next(steps)
            start = time.monotonic()
            next(steps)
            seconds.append(time.monotonic() - start)
            for _ in steps:
                pass
        name = self.operation
        found = {'operation': name, 'format': self.volume_format,
                 'size_gib': size, 'time': round(time.time()),
                 **summary(seconds, volumes, volumes * data)}
        self._record(found)
        limit = float(CONF.lustre.performance_limits.get(name, 0))
        if limit:
            self.assertLessEqual(found['median'], limit, found)

    def _record(self, found):
        text = json.dumps(found)
        self.addDetail('%(operation)s %(size_gib)d GiB x %(volumes)d' % found,
                       testtools_content.text_content(text))
        if CONF.lustre.performance_file:
            with open(CONF.lustre.performance_file, 'a') as file:
                file.write(text + '\n')

    def each_size(self):
        """Each size with a volume's data: (GiB, MiB, a source volume)."""
        for size in CONF.lustre.performance_sizes:
            data = min(CONF.lustre.performance_data, size * 1024)
            source = self.create_volume_with(content.Content(data), size)
            yield size, data, source
            self.delete_volume(source)

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
        self.operation = 'create'
        for count in CONF.lustre.performance_counts:
            self.measure(self._create(1, count), count)
        for size in CONF.lustre.performance_sizes:
            self.measure(self._create(size, 1), size=size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('f8d996ab-2227-4822-9215-d4e285adbcc5')
    def test_clone(self):
        self.operation = 'clone'
        for size, data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                self.measure(self._create(size, count, source_volid=source),
                             count, size, data)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('095a61b2-7607-437c-98a1-dd16ebc2d87d')
    def test_delete(self):
        self.operation = 'delete'

        def operation():
            volumes = self.create_many([{'source_volid': source}] * count,
                                       size)
            yield
            self.delete_many(volumes)
            yield
        for size, _data, source in self.each_size():
            for count in CONF.lustre.performance_counts:
                self.measure(operation, count, size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('dc59388e-1222-411d-a317-429c45123519')
    def test_snapshot(self):
        """It should not take longer when there are many already."""
        self.operation = 'snapshot'

        def operation():
            yield
            snapshots.append(self.create_snapshot(source))
            yield
        for size, _data, source in self.each_size():
            snapshots = []
            for _ in CONF.lustre.performance_counts:
                self.measure(operation, size=size)
            for snapshot in snapshots:
                self.delete_snapshot(snapshot)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('8178090a-fa8f-4bfa-9912-2c1e309d612a')
    def test_extend(self):
        self.operation = 'extend'

        def operation():
            volume = self.create_volume(size)
            yield
            self.extend(volume, size + 1)
            yield
            self.delete_volume(volume)
        for size in CONF.lustre.performance_sizes:
            self.measure(operation, size=size)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('355e8b4d-c2de-492e-8b30-2f43655dd82d')
    def test_upload(self):
        self.operation = 'upload'

        def operation():
            yield
            image = self.upload(source)
            yield
            self.delete_image(image)
        for size, _data, source in self.each_size():
            # Glance gets all of it, with its zeros.
            self.measure(operation, size=size, data=size * 1024)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('c39d210d-ed15-48bd-96df-47ce610a5a8b')
    def test_backup(self):
        self.skip_unless('volume_feature_enabled', 'backup')
        self.operation = 'backup'

        def operation():
            yield
            backup = self.create_backup(source)
            yield
            self.delete_backup(backup)
        for size, data, source in self.each_size():
            self.measure(operation, size=size, data=data)

    @decorators.attr(type=['slow', 'performance'])
    @decorators.idempotent_id('a2b44f2a-7136-44cb-8396-1bbce7540938')
    def test_restore(self):
        self.skip_unless('volume_feature_enabled', 'backup')
        self.operation = 'restore'

        def operation():
            target = self.create_volume(size)
            yield
            self.restore(backup, volume_id=target)
            yield
            self.delete_volume(target)
        for size, data, source in self.each_size():
            backup = self.create_backup(source)
            self.measure(operation, size=size, data=data)
            self.delete_backup(backup)


class PerformanceQcow2Test(PerformanceTest):
    volume_format = 'qcow2'
