"""The worker: claims and runs jobs, in this process or in one that `reelsrs serve` supervises.

The worker embeds uploads and transforms them into existing projections. Each fit of a projection runs in a process of
its own, and so does re-embedding by another model. If a worker dies, its jobs lose one attempt and nothing else: the
supervisor releases them, or their lease expires, and they are claimed again. All of this runs at a lower priority than
serving searches.
"""

from __future__ import annotations

import os
import secrets
import threading

import structlog

from service.bootstrap import Runtime
from service.database import generation_rows, jobs
from service.errors import ReelsError
from service.models import Method
from service.worker.child_processes import FitRunner, ReembedRunner
from service.worker.loop import run_loop
from service.worker.processes import owner_of

log = structlog.get_logger(__name__)
_CLAIM_JOBS = 4


class Worker:
    """Runs jobs in the thread that calls `run`, until it is told to stop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # A container that is started again often has the host name and the process number of the one before. With the
        # same owner it would renew the leases of jobs that nobody works on.
        self.owner = f"{owner_of(os.getpid())}:{secrets.token_hex(4)}"
        self._uploads = runtime.uploads(self.owner)
        self._count_attempt: bool | None = None  # if set, jobs are to be released, and the attempt counts or not

    def run(self, stop: threading.Event) -> None:
        """Claim and run jobs until `stop` is set. Jobs that are claimed by then are finished."""
        lease_renewal = threading.Thread(target=self._renew, args=(stop,), name="lease", daemon=True)
        lease_renewal.start()
        # PCA takes a second, and need not wait for an earlier fit by UMAP.
        method_groups: tuple[tuple[Method, ...], ...] = (("umap", "tsne"), ("pca",))
        runners = [
            threading.Thread(target=FitRunner(self._runtime, self.owner, lane).run, args=(stop,), name="layouts")
            for lane in method_groups
        ]
        runners.append(threading.Thread(target=ReembedRunner(self._runtime).run, args=(stop,), name="beside"))
        for thread in runners:
            thread.start()
        run_loop(lambda: self._step(stop), stop, self._runtime.timing, "worker paused after a fault")
        for thread in runners:
            thread.join()

    def run_until_idle(self) -> None:
        """Do everything that can be done now, in the calling thread: jobs, then new points of projections.

        Raises ReelsError if the machine is at fault. Jobs that are not done by then are queued again.
        """
        while self._step():
            pass

    def _step(self, stop: threading.Event | None = None) -> bool:
        """Run jobs if any wait, else transform new videos into projections; return whether there was work."""
        self._release_jobs()  # jobs that a full disk kept from being released earlier
        self._runtime.follow()
        with self._runtime.db.read() as connection:
            waiting = jobs.waiting(connection)
        if not waiting:
            return self._runtime.projections.update_all()
        self._count_attempt = True
        try:
            self._runtime.pipeline.run(lambda: self.claim(stop), self._uploads)
        except ReelsError:
            self._count_attempt = False  # the machine is at fault, not a video
            raise
        finally:
            # Otherwise jobs left by an error stay claimed: their leases are renewed as long as this process lives.
            self._release_jobs()
        return True

    def _release_jobs(self) -> None:
        """Release the jobs that the last run of the pipeline left."""
        if self._count_attempt is not None:
            with self._runtime.db.write() as connection:
                jobs.release(connection, self.owner, count_attempt=self._count_attempt)
            self._count_attempt = None

    def claim(self, stop: threading.Event | None = None) -> list[int]:
        """Claim jobs for this worker; return the primary keys of their videos.

        Returns none if `stop` is set, or if the active generation is not the one that this process serves.
        """
        if stop is not None and stop.is_set():
            return []
        with self._runtime.db.read() as connection:
            # If another generation became active, clips in the pipeline are finished first, and `_step` then follows.
            if (
                not jobs.waiting(connection)
                or generation_rows.active_generation(connection) != self._runtime.serving.generation
            ):
                return []
        with self._runtime.db.write() as connection:
            return jobs.claim(connection, self.owner, _CLAIM_JOBS, self._runtime.timing.lease_seconds)

    def _renew(self, stop: threading.Event) -> None:
        """Renew the leases of this worker's jobs until `stop` is set."""
        while not stop.wait(self._runtime.timing.lease_seconds / 3):
            try:
                with self._runtime.db.write() as connection:
                    jobs.renew(connection, self.owner, self._runtime.timing.lease_seconds)
            except ReelsError as error:
                log.warning("leases not renewed", reason=str(error))
