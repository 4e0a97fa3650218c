"""Work that runs in processes of its own: fits of projections, and re-embedding by another model."""

from __future__ import annotations

import subprocess
import threading
import time

from service.bootstrap import Runtime
from service.database import projection_jobs
from service.generations import generations
from service.models import Method
from service.worker.loop import run_loop
from service.worker.processes import spawn, terminate


class FitRunner:
    """Fits projections by some methods, one after another, each in a process of its own.

    A fit may take all memory, and its process can be killed at any moment. Runs in the thread that calls `run`.
    """

    def __init__(self, runtime: Runtime, owner: str, methods: tuple[Method, ...]) -> None:
        self._runtime = runtime
        self._methods = methods
        self._owner = f"{owner}:{'+'.join(methods)}"

    def run(self, stop: threading.Event) -> None:
        """Fit queued projections until `stop` is set. An unfinished fit is then queued again."""
        run_loop(lambda: self._step(stop), stop, self._runtime.timing, "fits paused after a fault")

    def _step(self, stop: threading.Event) -> bool:
        db = self._runtime.db
        with db.read() as connection:
            if projection_jobs.waiting(connection, self._methods) is None:
                return False
        with db.write() as connection:
            projection_pk = projection_jobs.claim(
                connection, self._owner, self._methods, lease_seconds=self._runtime.timing.lease_seconds
            )
        if projection_pk is None:
            return False
        with spawn(self._runtime.settings, "lay-out", str(projection_pk), self._owner) as process:
            try:
                self._watch(process, projection_pk, stop)
            finally:
                process.kill()  # no effect on a process that has ended
        with db.write() as connection:
            if stop.is_set():
                projection_jobs.release(connection, self._owner)
            else:  # no effect if the process recorded its own result
                reason = f"its process ended with exit code {process.returncode}; it may have run out of memory"
                projection_jobs.fail(connection, projection_pk, self._owner, reason)
        return True

    def _watch(self, process: subprocess.Popen[bytes], projection_pk: int, stop: threading.Event) -> None:
        """Renew the lease until the process ends, the claim is lost, or `stop` is set."""
        renewed_at, lease_seconds = time.monotonic(), self._runtime.timing.lease_seconds
        while process.poll() is None and not stop.wait(self._runtime.timing.idle_seconds):
            with self._runtime.db.read() as connection:
                if not projection_jobs.owns(connection, projection_pk, self._owner):
                    return
            if time.monotonic() - renewed_at > lease_seconds / 3:
                renewed_at = time.monotonic()
                with self._runtime.db.write() as connection:
                    projection_jobs.renew(connection, projection_pk, self._owner, lease_seconds=lease_seconds)


class ReembedRunner:
    """Re-embeds the library into the target generation, in a process of its own.

    That process holds another model, and its failures must not affect uploads. Runs in the thread that calls `run`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def run(self, stop: threading.Event) -> None:
        """Re-embed whenever there is a target generation, until `stop` is set."""
        run_loop(lambda: self._step(stop), stop, self._runtime.timing, "re-embedding paused after a fault")

    def _step(self, stop: threading.Event) -> bool:
        with self._runtime.db.read() as connection:
            target = generations.target(connection)
        if target is None:
            return False
        with spawn(self._runtime.settings, "reembed", target.id) as process:
            while process.poll() is None and not stop.wait(self._runtime.timing.idle_seconds):
                pass
            if process.poll() is None:
                terminate(process, seconds=10)
        if process.returncode:
            stop.wait(self._runtime.timing.reembed_retry_seconds)
        return True
