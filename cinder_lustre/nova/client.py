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

"""The client that mounts shares for nova-compute."""

from concurrent import futures
import threading

from os_brick import executor
from oslo_concurrency import processutils

from cinder_lustre.brick import client
from cinder_lustre.brick import mount
from cinder_lustre import worker


class ComputeClient(client.LustreRemoteFsClient):
    """Mounts through os-brick's privileged daemon, in a thread.

    Nova's rootwrap permits nothing but to start such daemons, and a child
    cannot use them. A mount that hangs takes one thread of os-brick's daemon,
    none of Nova's own, and none that serves another share's attachments.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._attempts = {}

    def _mount_in_time(self, parsed, path, options):
        attempt = self._attempt(parsed, path, options)
        if not futures.wait([attempt], self._mount_timeout).done:
            raise self._silent(parsed, 'Mounting it takes longer than %s '
                               'seconds' % self._mount_timeout)
        attempt.result()

    def _attempt(self, parsed, path, options):
        """The attempt that is under way for a share, or a new one."""
        with self._lock:
            attempt = self._attempts.get(parsed.identity)
            if attempt is None or attempt.done():
                attempt = self._attempts[parsed.identity] = futures.Future()
                executor.Thread(target=self._work, daemon=True, args=(
                    attempt, parsed.source, path, options)).start()
            return attempt

    def _work(self, attempt, source, path, options):
        try:
            mount.mount(source, path, options, None, self._lock_path(path),
                        self._fstypes, run=self._run)
        except BaseException as exc:
            attempt.set_exception(exc)
        else:
            attempt.set_result(None)

    def _run(self, command):
        try:
            self._execute(*command, run_as_root=True,
                          root_helper=self._root_helper,
                          env_variables=worker.environment())
        except processutils.ProcessExecutionError as exc:
            # It has no exit code when the command could not be run.
            code = exc.exit_code if isinstance(exc.exit_code, int) else 127
            return code, exc.stderr or exc.description or ''
        return 0, ''
