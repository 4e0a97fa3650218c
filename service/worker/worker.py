"""The worker: claims jobs and has them done, in this process or in one that `reelsrs serve` watches.

It embeds what was uploaded and gives it its place on the maps that are there. Maps are laid out each in a process of
its own, and so is what another model embeds beside. A worker that dies costs its attempt at what it held, nothing else:
the lease runs out and the job is claimed again. All of it runs at a lower priority than answering.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from service.config import Settings
from service.database import generation_rows, jobs, map_jobs
from service.domain import Method
from service.errors import ReelsError
from service.generations import generations
from service.runtime import Runtime

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
        timing = self._runtime.timing
        pause = timing.pause_seconds
        while not stop.is_set():
            try:
                if not self._step(stop):
                    stop.wait(timing.idle_seconds)
                pause = timing.pause_seconds
            except ReelsError as error:  # a full disk or a locked database passes
                log.warning("the worker waits", reason=str(error))
                stop.wait(pause)
                pause = min(2 * pause, timing.longest_pause_seconds)
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


class Layouts:
    """Has maps by some methods laid out, one after another, each in a process of its own: it may take all the memory
    there is, and it can be ended at any moment. Runs in the thread that calls `run`."""

    def __init__(self, runtime: Runtime, owner: str, methods: tuple[Method, ...]) -> None:
        self._runtime = runtime
        self._methods = methods
        self._owner = f"{owner}:{'+'.join(methods)}"

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; what is not laid out by then is given back."""
        while not stop.is_set():
            try:
                if not self._step(stop):
                    stop.wait(self._runtime.timing.idle_seconds)
            except (ReelsError, OSError) as error:  # a process that cannot be started
                log.warning("the layouts wait", reason=str(error))
                stop.wait(self._runtime.timing.pause_seconds)

    def _step(self, stop: threading.Event) -> bool:
        db = self._runtime.db
        with db.read() as connection:
            if map_jobs.waiting(connection, self._methods) is None:
                return False
        with db.write() as connection:
            key = map_jobs.claim(
                connection, self._owner, self._methods, lease_seconds=self._runtime.timing.lease_seconds
            )
        if key is None:
            return False
        with subprocess.Popen(
            [sys.executable, "-m", "service", "worker", "--lay-out", str(key), "--owner", self._owner],
            env={**os.environ, **self._runtime.settings.environ()},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                self._watch(process, key, stop)
            finally:
                process.kill()  # one that has ended is not hurt
        with db.write() as connection:
            if stop.is_set():
                map_jobs.release(connection, self._owner)
            else:  # it has written its end itself, unless it was ended
                reason = f"its process ended with {process.returncode}; was there enough memory?"
                map_jobs.fail(connection, key, self._owner, reason)
        return True

    def _watch(self, process: subprocess.Popen[bytes], key: int, stop: threading.Event) -> None:
        """Until it ends, is cancelled, or is to stop."""
        renewed, lease = time.monotonic(), self._runtime.timing.lease_seconds
        while process.poll() is None and not stop.wait(self._runtime.timing.idle_seconds):
            with self._runtime.db.read() as connection:
                if not map_jobs.owns(connection, key, self._owner):
                    return
            if time.monotonic() - renewed > lease / 3:
                renewed = time.monotonic()
                with self._runtime.db.write() as connection:
                    map_jobs.renew(connection, key, self._owner, lease_seconds=lease)


class Beside:
    """Has the generation that is wanted embedded beside the active one, in a process of its own: it holds another
    model, and what happens to that is not to happen to uploads. Runs in the thread that calls `run`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        timing = self._runtime.timing
        pause = timing.idle_seconds
        while not stop.wait(pause):
            pause = 5 * timing.idle_seconds
            try:
                with self._runtime.db.read() as connection:
                    wanted = generations.wanted(connection)
                if wanted is not None and not self._step(wanted.id, stop):
                    pause = timing.again_seconds
            except ReelsError as error:
                log.warning("the other generation waits", reason=str(error))

    def _step(self, generation_id: str, stop: threading.Event) -> bool:
        with subprocess.Popen(
            [sys.executable, "-m", "service", "worker", "--generation", generation_id],
            env={**os.environ, **self._runtime.settings.environ()},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and not stop.wait(self._runtime.timing.idle_seconds):
                pass
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
        return process.returncode == 0 or stop.is_set()


class RunningWorker(Protocol):
    """A worker that runs beside the service."""

    @property
    def alive(self) -> bool:
        """Whether it runs now."""

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""


StartWorker = Callable[[Settings, Runtime], RunningWorker]
"""Starts one, given the service's settings and its runtime."""


class WorkerProcess:
    """A worker in a process of its own, started again when it dies, ended with this one.

    The child's standard input is a pipe from here: when this process ends, however it ends, the pipe closes and
    the worker stops.
    """

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._environment = {**os.environ, **settings.environ()}
        self._runtime = runtime
        self._stop = threading.Event()
        self._process = self._start()
        self._watch = threading.Thread(target=self._watching, name="worker-watch", daemon=True)
        self._watch.start()

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to stop and wait; kill it when it takes too long."""
        self._stop.set()
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watch.join()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "service", "worker", "--while-stdin-is-open"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def _watching(self) -> None:
        delay = 1.0
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if self._stop.is_set():
                return
            owner = owner_of(self._process.pid)
            log.error("the embedding worker died and is started again", exit_code=code)
            delay = 1.0 if time.monotonic() - started > 60 else min(delay * 2, 60)
            try:
                with self._runtime.db.write() as connection:
                    jobs.release(connection, owner)
                    map_jobs.release(connection, owner)
            except ReelsError as error:
                log.warning("the dead worker's jobs wait for their lease to end", reason=str(error))
            if self._stop.wait(delay):
                return
            self._process = self._start()
            if self._stop.is_set():  # `stop` came in between and has ended the one before
                self._process.terminate()


def owner_of(pid: int) -> str:
    """The name under which the worker process `pid` of this machine holds its jobs."""
    return f"{socket.gethostname()}:{pid}"


def stop_with_stdin(stop: threading.Event) -> None:
    """Set `stop` when standard input ends; end the process if the work in hand takes too long after that."""

    def wait() -> None:
        # Not sys.stdin: its lock would be held for ever and block the interpreter's exit.
        while os.read(0, 1024):
            pass
        stop.set()
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def lower_priority() -> None:
    """Let searches go first, where the system knows priorities."""
    if hasattr(os, "nice"):
        os.nice(10)
