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


"""Tempest against the lab: its configuration, its suites and their results."""

import configparser
import os
import subprocess

from cinder_lab import commands
from cinder_lab import report
from cinder_lab import rest
from cinder_lab import services
from cinder_lab import state
from cinder_lab import venv

OURS = 'cinder_lustre_tempest_plugin'
# What runs if no regular expression is given.
SUITES = {
    'lustre': OURS,
    'tempest': r'tempest\.api\.volume',
    'cinder': 'cinder_tempest_plugin',
}
# A look at everything without servers, in a few minutes: ours with volumes in
# one format, and what upstream calls smoke tests.
QUICK = '|'.join((
    OURS + r'\.tests\.api\.',
    OURS + r'\.tests\.scenario\.test_(?!servers|snapshot_trees)\w+'
           r'\.(\w+Qcow2|Encrypted|Transfer)Test\.',
    r'\.SnapshotTreeTest\.test_middle_first_last',
    r'\.SnapshotTreeQcow2Test\.test_cascade',
    r'tempest\.api\.volume\..*[\[,]smoke'))
PERFORMANCE = OURS + r'\.tests\.performance'
EXCLUDED = (venv.LAB.parent / 'tempest-exclude.txt',
            venv.LAB / 'tempest-exclude.txt',
            venv.LAB / 'tempest-exclude-without-nova.txt')
# Features of volumes that Cinder's NFS driver does not have.
LACKED = ('manage_volume', 'manage_snapshot', 'volume_revert',
          'extend_attached_volume', 'extend_attached_encrypted_volume')
CONCURRENCY = 2
IMAGE = 'lab-tempest'
STESTR = '[DEFAULT]\ntest_path={}\ntop_dir={}\ngroup_regex=([^\\.]*\\.)*\n'
# Where the installed Tempest finds its tests and those of all plugins.
DISCOVERY = ('import os, tempest.test_discover as found; '
             'print(os.path.dirname(found.__file__))')


def provide_image(client):
    """The image that the tests use; the guest's if there are servers."""
    found = client.glance('GET', f'/images?name={IMAGE}&status=active')[
        'images']
    if not found:
        found = [client.glance('POST', '/images', {
            'name': IMAGE, 'disk_format': 'raw', 'container_format': 'bare',
            'visibility': 'public', 'min_disk': 1})]
        client.glance('PUT', f'/images/{found[0]["id"]}/file',
                      os.urandom(1 << 20))
    return found[0]['id']


def configuration(lab, share, image, flavor, performance=False):
    """The sections of tempest.conf.

    :param share: the first backend's, to which new volumes go: manageable
        volumes are named by their share
    :param image: the id of an image
    :param flavor: the id of a flavor, or None if there are no servers
    :param performance: whether to measure
    """
    nova = str(flavor is not None)
    sections = {
        'DEFAULT': {'log_file': lab.log('tempest-requests'),
                    'debug': 'True'},
        'auth': {
            'admin_username': 'admin', 'admin_project_name': 'admin',
            'admin_domain_name': 'Default',
            'admin_password': lab.secret('admin'),
            'create_isolated_networks': 'False', 'tempest_roles': 'member'},
        'identity': {'uri_v3': lab.url('keystone') + '/v3',
                     'auth_version': 'v3', 'region': 'RegionOne'},
        'oslo_concurrency': {'lock_path': lab.prefix / 'tempest/lock'},
        'service_available': {
            'cinder': 'True', 'glance': 'True', 'nova': nova,
            'neutron': nova, 'swift': 'False', 'horizon': 'False'},
        'enforce_scope': {'cinder': 'True'},
        'compute': {'image_ref': image, 'image_ref_alt': image},
        # The guests have no network.
        'validation': {'run_validation': 'False'},
        'volume': {
            'storage_protocol': lab.backend, 'vendor_name': 'Open Source',
            'backend_names': ','.join(services.BACKENDS),
            'volume_type': services.BACKENDS[0],
            'volume_type_multiattach': 'lustre-multiattach',
            # Tempest asks only whether it is Swift.
            'backup_driver': 'posix',
            'manage_volume_ref': f'source-name,{share}/volume-%s',
            'manage_snapshot_ref': 'source-name,%s',
            'min_microversion': '3.0', 'max_microversion': 'latest',
            'build_timeout': '600'},
        'volume-feature-enabled': {
            'multi_backend': 'True', 'manage_volume': 'True',
            'manage_snapshot': 'True',
            'volume_revert': 'True', 'concurrency_tests': 'True',
            'extend_attached_volume': 'True',
            'extend_attached_encrypted_volume': 'True'},
        'lustre': {'manage': 'True', 'revert': 'True', 'reimage': 'True',
                   'migration': 'True', 'encryption': 'True',
                   'performance': str(performance),
                   'performance_file':
                       lab.prefix / 'tempest/results/performance.jsonl'},
    }
    if lab.backend == 'nfs':
        sections['volume-feature-enabled'] |= dict.fromkeys(LACKED, 'False')
    if flavor is not None:
        sections['compute'] |= {
            'flavor_ref': flavor, 'flavor_ref_alt': flavor,
            'min_microversion': '2.1', 'max_microversion': 'latest',
            'build_timeout': '600'}
        sections['compute-feature-enabled'] = {
            **dict.fromkeys(
                ('attach_encrypted_volume', 'volume_multiattach'),
                str(lab.backend == 'lustre')),
            # One host, no graphics, and no agent in the guests.
            'live_migration': 'False', 'cold_migration': 'False',
            'vnc_console': 'False', 'config_drive': 'False',
            'metadata_service': 'False'}
        sections['lustre'] |= {'guest_console': 'True',
                               'online_snapshots': 'True'}
    return sections


def configure(lab, performance=False):
    """Write tempest.conf, from what the running lab has.

    :returns: the directory in which Tempest runs
    """
    client = rest.Client(lab)
    image, flavor = provide_image(client), None
    if lab.nova:
        image = client.glance('GET', '/images?name=lab-guest'
                              '&sort=created_at:desc')['images'][0]['id']
        flavor = next(entry['id'] for entry in client.nova(
            'GET', '/flavors')['flavors'] if entry['name'] == 'lab')
    share = (lab.prefix / f'etc/shares-{services.BACKENDS[0]}').read_text()
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    parser.read_dict(configuration(
        lab, share.split()[0], image, flavor, performance))
    place = lab.prefix / 'tempest'
    (place / 'results').mkdir(parents=True, exist_ok=True)
    with open(place / 'tempest.conf', 'w', opener=_private) as file:
        parser.write(file)
    tests = commands.run(str(lab.venv / 'bin/python'), '-c', DISCOVERY,
                         cwd='/').strip()
    state.write(place / '.stestr.conf', STESTR.format(tests, tests))
    # The first one is of tests that cannot pass with our drivers.
    excluded = EXCLUDED[lab.backend == 'nfs':2 if lab.nova else 3]
    state.write(place / 'exclude.txt', ''.join(
        file.read_text() for file in excluded))
    return place


def _private(path, flags):
    return os.open(path, flags, 0o600)


def run(lab, suites, performance=False):
    """Run suites one after another; return whether all passed.

    :param suites: name to regular expression
    :param performance: whether to measure, too, and nothing else meanwhile
    """
    place = configure(lab, performance)
    environment = os.environ | lab.environment() | {
        'TEMPEST_CONFIG': str(place / 'tempest.conf')}
    for name in ('PYTHONPATH', 'PYTHONDONTWRITEBYTECODE'):
        environment.pop(name, None)
    streams, good = [], True
    for name, regex in suites.items():
        log = lab.log(f'tempest-{name}')
        report.say(f'{regex}: begins, see {log}')
        with open(log, 'wb') as output:
            # Also when no test could be found, and so none was recorded.
            good &= not subprocess.run(
                _command(lab, place, regex, performance), cwd=place,
                env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output).returncode
        stream = place / f'results/{name}.subunit'
        with open(stream, 'wb') as output:
            subprocess.run([str(lab.venv / 'bin/stestr'), 'last',
                            '--subunit'], cwd=place, env=environment,
                           stdout=output)
        streams.append(str(stream))
    return good & (not subprocess.run(
        [str(lab.venv / 'bin/python'), str(venv.LAB / 'tempest_report.py'),
         *streams], env=environment).returncode)


def _command(lab, place, regex, performance):
    concurrency = 1 if performance else CONCURRENCY
    return [str(lab.venv / 'bin/tempest'), 'run',
            '--config-file', str(place / 'tempest.conf'),
            '--regex', regex, '--exclude-list', str(place / 'exclude.txt'),
            '--concurrency', str(concurrency)]
