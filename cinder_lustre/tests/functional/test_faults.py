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

"""Faults: full, unwritable and dead shares, and what they leave behind."""

import contextlib
import os
import threading

from cinder import exception
import ddt
from oslo_config import cfg
from oslo_utils import units

from cinder_lustre import brick
from cinder_lustre import exception as lustre_exception
from cinder_lustre.tests.functional import base
from cinder_lustre import worker

CONF = cfg.CONF
# How much more than its size a volume may take.
LITTLE = 16 * units.Mi


class FaultsTestCase(base.FunctionalTestCase):

    @contextlib.contextmanager
    def assert_unchanged(self, site=None):
        """What fails leaves neither files nor changes behind."""
        site = site or self.site
        before = site.listing()
        yield
        self.assertEqual(before, site.listing())

    def assert_fails(self, word, func, *args, **values):
        error = self.assertRaises(exception.VolumeBackendAPIException, func,
                                  *args, **values)
        self.assertIn(word, str(error))


@ddt.ddt
class FullTestCase(FaultsTestCase):

    FAULTS = ('full',)

    def test_thick_volume_that_does_not_fit(self):
        with self.assert_unchanged():
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.create_volume, 2, provisioning='thick')
        self.create_volume(1, provisioning='thick')
        with self.assert_unchanged():
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.create_volume, 1, provisioning='thick')

    def test_no_room_at_all(self):
        volume = self.create_volume()
        content = self.write(volume)
        snapshot = self.create_snapshot(volume)
        self.site.filesystem.fill()
        with self.assert_unchanged():
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.create_volume)
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.clone, volume)
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.volume_from_snapshot, snapshot)
            self.assert_fails('No space left', self.extend_volume, volume, 2)
            self.assert_fails('No space left', self.driver.create_snapshot,
                              self.new_snapshot(volume))
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(0, stats['free_capacity_gb'])
        self.site.recover()
        self.assert_content(content, volume)
        self.delete_snapshot(snapshot)
        self.extend_volume(volume, 2)
        self.assert_content(content.grown(2 * units.Gi), volume)

    def test_delete_without_room(self):
        volume = self.create_volume()
        self.write(volume)
        self.site.filesystem.fill()
        self.delete_volume(volume)
        self.assertEqual(['.cinder-lustre'], self.site.listing())

    @ddt.data('raw', 'qcow2')
    def test_full_while_copying(self, fmt):
        volume = self.create_volume()
        content = base.Content(volume.size * units.Gi)
        content.put(0, os.urandom(24 * units.Mi))
        with self.attached(volume) as stream:
            content.write(stream)
        snapshot = self.create_snapshot(volume)
        self.site.filesystem.fill(room=8 * units.Mi)
        with self.assert_unchanged():
            self.assert_fails('No space left', self.clone, volume, fmt=fmt)
            self.assert_fails('No space left', self.volume_from_snapshot,
                              snapshot, fmt=fmt)
        self.site.recover()
        self.assert_content(content, self.clone(volume))

    @ddt.data('raw', 'qcow2')
    def test_full_while_loading_an_image(self, fmt):
        image = self.images.add('raw')
        with open(self.images.path(image), 'wb') as stream:
            stream.write(os.urandom(24 * units.Mi))
        volume = self.create_volume(fmt=fmt)
        self.site.filesystem.fill(room=8 * units.Mi)
        with self.assert_unchanged():
            self.assert_fails(
                'No space left', self.driver.copy_image_to_volume,
                self.context, self.load(volume), self.images, image['id'])
        self.site.recover()
        self.assert_content(base.Content(units.Gi), volume)

    @ddt.data('raw', 'qcow2')
    def test_thick_volume_that_cannot_grow(self, fmt):
        volume = self.create_volume(fmt=fmt, provisioning='thick')
        content = self.write(volume)
        with self.assert_unchanged():
            self.assert_fails('No space left', self.extend_volume, volume, 2)
        self.assert_content(content, volume)
        self.assertLess(self.allocated(volume), units.Gi + LITTLE)


@ddt.ddt
class QuotaTestCase(FaultsTestCase):

    FAULTS = ('quota',)

    def prepare(self):
        self.site.filesystem.set_quota(1536 * units.Mi)
        super().prepare()

    def test_quota_is_the_capacity(self):
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual(1.5, stats['total_capacity_gb'])

    def test_volume_over_quota(self):
        with self.assert_unchanged():
            self.assertRaises(exception.RemoteFSNoSuitableShareFound,
                              self.create_volume, 2, provisioning='thick')

    @ddt.data('raw', 'qcow2')
    def test_extend_over_quota(self, fmt):
        volume = self.create_volume(fmt=fmt, provisioning='thick')
        content = self.write(volume)
        with self.assert_unchanged():
            self.assert_fails('quota exceeded', self.extend_volume, volume, 2)
        self.assert_content(content, volume)


class UnwritableTestCase(FaultsTestCase):

    def test_unwritable_share(self):
        volume = self.create_volume()
        content = self.write(volume)
        self.site.protect()
        with self.assert_unchanged():
            self.assertRaises(exception.CinderException, self.create_volume)
            self.assertRaises(exception.CinderException, self.clone, volume)
        # It says so when it starts.
        self.make_driver(self.site.share)
        self.driver = self.make_driver(self.site.share)
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('down', stats['backend_state'])
        self.assertIn('cannot make a file there', self.log.output)
        self.site.recover()
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('up', stats['backend_state'])
        self.assert_content(content, volume)


class HangTestCase(FaultsTestCase):
    """A share that hangs, beside one that does not."""

    def prepare(self):
        super().prepare()
        self.good = self.make_site()
        self.driver = self.make_driver(self.site.share, self.good.share)
        # Each on its own share.
        self.volume = self.create_volume(driver=self.drivers[0])
        self.content = self.write(self.volume)
        other = self.make_driver(self.good.share)
        self.other = self.create_volume(driver=other)
        self.other_content = self.write(self.other)
        self.stats = self.driver.get_volume_stats(refresh=True)

    @contextlib.contextmanager
    def short_timeout(self):
        """Let operations give up soon.

        A loaded machine may then be too slow for any of them: what must
        succeed runs outside, or until it does.
        """
        group = self.driver.configuration.config_group
        CONF.set_override('lustre_operation_timeout', 5, group)
        yield
        CONF.clear_override('lustre_operation_timeout', group)

    def hang(self):
        """Start an operation that hangs for good."""

        def hangs():
            self.assertRaises(exception.VolumeBackendAPIException,
                              self.connection, self.volume)
            return self.driver._worker(self.site.share.identity).stuck

        with self.short_timeout():
            return base.wait_for(hangs, 'an operation hangs')

    def degraded(self):
        """Whether the statistics show one share down and one up."""
        with self.short_timeout():
            stats = self.driver.get_volume_stats(refresh=True)
        serving = self.driver._mounted_shares
        return serving == [self.good.share.identity] and stats

    def assert_recovers(self):
        self.site.recover()
        base.wait_for(
            lambda: not self.driver._worker(self.site.share.identity).stuck,
            'the child that hung ends')
        self.assert_content(self.content, self.volume)
        stats = self.driver.get_volume_stats(refresh=True)
        self.assertEqual('up', stats['backend_state'])
        self.assertEqual(self.stats['total_capacity_gb'],
                         stats['total_capacity_gb'])
        self.assertEqual(2, len(self.driver._mounted_shares))


class DeadOSTTestCase(HangTestCase):

    FAULTS = ('dead-ost',)

    def prepare(self):
        super().prepare()
        self.site.kill_ost('volume-' + self.volume.id)

    def test_breaker(self):
        child, = self.hang()
        # Nothing new is started on the share while the old child hangs.
        self.assert_fails('still hangs on it (process %d)' % child,
                          self.connection, self.volume)
        self.assertEqual(
            [child], self.driver._worker(self.site.share.identity).stuck)
        # The other share serves.
        self.assert_content(self.other_content, self.other)
        new = self.create_volume()
        self.assertEqual(self.good.share.identity, new.provider_location)
        # The last figures are kept, but no space is offered.
        stats = base.wait_for(self.degraded, 'one share is down')
        self.assertEqual('up', stats['backend_state'])
        self.assertEqual(self.stats['total_capacity_gb'],
                         stats['total_capacity_gb'])
        self.assertLess(stats['free_capacity_gb'],
                        self.stats['total_capacity_gb'] / 2)
        self.assert_recovers()

    def test_bound(self):
        """However many operations meet the dead OST, few of them hang."""
        self.site.recover()
        volumes = [self.create_volume(driver=self.drivers[0])
                   for __ in range(worker.MAX_CHILDREN + 3)]
        self.site.kill_ost(*('volume-' + volume.id for volume in volumes))
        share = self.driver._worker(self.site.share.identity)
        errors = []

        def attach(volume):
            error = self.assertRaises(exception.VolumeBackendAPIException,
                                      self.connection, volume)
            errors.append(str(error))

        def serves():
            with contextlib.suppress(exception.VolumeBackendAPIException):
                return self.connection(self.other)

        threads = [threading.Thread(target=attach, args=(volume,))
                   for volume in volumes]
        with self.short_timeout():
            for thread in threads:
                thread.start()
            base.wait_for(serves, 'the other share serves')
            for thread in threads:
                thread.join()
        self.assertEqual(len(volumes), len(errors), errors)
        self.assertIn(len(share.stuck), range(1, worker.MAX_CHILDREN + 1))
        self.assert_content(self.other_content, self.other)
        self.assert_recovers()
        for volume in volumes:
            self.connection(volume)

    def test_service_goes_on(self):
        """Other threads of the service run while an operation hangs."""
        thread = threading.Thread(target=self.hang)
        thread.start()
        self.assert_content(self.other_content, self.other)
        thread.join()
        self.assert_recovers()

    def test_connector(self):
        conn = self.connection(self.other)
        conn['data'].update(export=self.site.share.source,
                            name='volume-' + self.volume.id)
        brick.register(self.site.filesystem.fstypes, operation_timeout=2)
        connector = self.make_connector(conn, expect_raw_disk=True)
        self.assertRaises(lustre_exception.ShareUnavailable,
                          connector.connect_volume, conn['data'])
        brick.register(self.site.filesystem.fstypes)
        self.site.recover()
        device = {}

        def connects():
            try:
                device.update(connector.connect_volume(conn['data']))
            except lustre_exception.ShareUnavailable:
                return False
            return True

        base.wait_for(connects, 'the connector works again')
        connector.disconnect_volume(conn['data'], device)


class FrozenTestCase(HangTestCase):

    FAULTS = ('frozen',)

    def test_frozen_server(self):
        self.site.filesystem.freeze()
        stats = base.wait_for(self.degraded, 'one share is down')
        self.assertEqual(self.stats['total_capacity_gb'],
                         stats['total_capacity_gb'])
        self.assert_content(self.other_content, self.other)
        with self.short_timeout():
            self.assertRaises(exception.VolumeBackendAPIException,
                              self.connection, self.volume)
            # The start of a service does not wait for it either.
            self.driver.ensure_export(self.context, self.volume)
        self.assert_recovers()
