"""The worker: claims jobs and has them done, in this process or in one that `reelsrs serve` watches.

It embeds what was uploaded and gives it its place on the maps that are there. Maps are laid out each in a process of
its own, and so is what another model embeds beside. A worker that dies costs its attempt at what it held, nothing else:
the lease runs out and the job is claimed again. All of it runs at a lower priority than answering.
"""

from __future__ import annotations

import os
import threading

import structlog

from service.bootstrap import Runtime
from service.database import generation_rows, jobs
from service.errors import ReelsError
from service.models import Method
from service.worker.beside import Beside, Layouts
from service.worker.loop import keep_doing
from service.worker.processes import owner_of

log = structlog.get_logger(__name__)
_CLAIM = 4


class Worker:
    """Runs in the thread that calls `run`, until it is told to stop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.owner = owner_of(os.getpid())
        self._uploads = runtime.uploads(self.owner)
        self._left: bool | None = None  # jobs that are to be given back, and whether the attempt at them counts

    def run(self, stop: threading.Event) -> None:
        """Claim and process until `stop` is set; what is claimed by then is brought to its end."""
        heart = threading.Thread(target=self._renew, args=(stop,), name="lease", daemon=True)
        heart.start()
        # PCA takes a second; it need not wait for a map by UMAP that somebody asked for before.
        lanes: tuple[tuple[Method, ...], ...] = (("umap", "tsne"), ("pca",))
        layouts = [
            threading.Thread(target=Layouts(self._runtime, self.owner, lane).run, args=(stop,), name="layouts")
            for lane in lanes
        ]
        layouts.append(threading.Thread(target=Beside(self._runtime).run, args=(stop,), name="beside"))
        for thread in layouts:
            thread.start()
        keep_doing(lambda: self._step(stop), stop, self._runtime.timing, "the worker waits")
        for thread in layouts:
            thread.join()

    def work_off(self) -> None:
        """Do everything that can be done now in the calling thread: jobs, then places on maps. Raises ReelsError where
        the machine is at fault; what is not done by then is queued again."""
        while self._step():
            pass

    def _step(self, stop: threading.Event | None = None) -> bool:
        self._give_back()  # what a full disk would not let go of when the error came
        self._runtime.follow()
        with self._runtime.db.read() as connection:
            waiting = jobs.waiting(connection)
        if not waiting:
            return self._runtime.atlas.place_new()
        self._left = True
        try:
            self._runtime.pipeline.run(lambda: self.claim(stop), self._uploads)
        except ReelsError:
            self._left = False  # the machine's fault, not a video's
            raise
        finally:
            # What an error left undone would be ours for ever: its lease is renewed for as long as we live.
            self._give_back()
        return True

    def _give_back(self) -> None:
        if self._left is not None:
            with self._runtime.db.write() as connection:
                jobs.release(connection, self.owner, counts=self._left)
            self._left = None

    def claim(self, stop: threading.Event | None = None) -> list[int]:
        """Keys of jobs that are this worker's from now on; none once `stop` is set, or another model answers."""
        if stop is not None and stop.is_set():
            return []
        with self._runtime.db.read() as connection:
            # Another model may have taken over: what is on its way is brought to its end, and `_step` comes to that.
            if (
                not jobs.waiting(connection)
                or generation_rows.active_generation(connection) != self._runtime.serving.generation
            ):
                return []
        with self._runtime.db.write() as connection:
            return jobs.claim(connection, self.owner, _CLAIM, self._runtime.timing.lease_seconds)

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(self._runtime.timing.lease_seconds / 3):
            try:
                with self._runtime.db.write() as connection:
                    jobs.renew(connection, self.owner, self._runtime.timing.lease_seconds)
            except ReelsError as error:
                log.warning("the leases were not renewed", reason=str(error))
