"""A worker beside the service, started again when it dies."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from service.bootstrap import Runtime
from service.config import Settings
from service.database import jobs, map_jobs
from service.errors import ReelsError
from service.timing import backoff
from service.worker.processes import end, owner_of, spawn

log = structlog.get_logger(__name__)


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
    """A worker in a process of its own, started again when it dies, ended with this one."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
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
        end(self._process, seconds=15)
        self._watch.join()

    def _start(self) -> subprocess.Popen[bytes]:
        return spawn(self._settings, "worker", "--while-stdin-is-open")

    def _watching(self) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if self._stop.is_set():
                return
            owner = owner_of(self._process.pid)
            log.error("the embedding worker died and is started again", exit_code=code)
            deaths = 1 if time.monotonic() - started > 60 else deaths + 1
            try:
                with self._runtime.db.write() as connection:
                    jobs.release(connection, owner)
                    map_jobs.release(connection, owner)
            except ReelsError as error:
                log.warning("the dead worker's jobs wait for their lease to end", reason=str(error))
            if self._stop.wait(backoff(deaths, first=1, longest=60)):
                return
            self._process = self._start()
            if self._stop.is_set():  # `stop` came in between and has ended the one before
                self._process.terminate()
