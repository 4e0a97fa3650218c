"""Supervisor of a worker beside the service, which is started again when it dies."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from service.bootstrap import Runtime
from service.config import Settings
from service.database import jobs, projection_jobs
from service.errors import ReelsError
from service.timing import backoff
from service.worker.processes import owner_of, spawn, terminate

log = structlog.get_logger(__name__)


class RunningWorker(Protocol):
    """A worker that runs beside the service."""

    @property
    def alive(self) -> bool:
        """Whether the worker runs now."""

    def stop(self) -> None:
        """Ask the worker to stop, and wait until it has."""


StartWorker = Callable[[Settings, Runtime], RunningWorker]
"""Starts a worker, given the settings and the runtime of the service."""


class WorkerProcess:
    """A worker in a process of its own, started again when it dies, and ended with this process."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._stop = threading.Event()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._restart_when_dead, name="worker-watch", daemon=True)
        self._watcher.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs now."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask the worker to stop, and wait until it has. Kill it after 15 seconds."""
        self._stop.set()
        terminate(self._process, seconds=15)
        self._watcher.join()

    def _start(self) -> subprocess.Popen[bytes]:
        return spawn(self._settings, "worker", "--while-stdin-is-open")

    def _restart_when_dead(self) -> None:
        """Start the worker again each time it dies, and release its claims."""
        deaths = 0
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if self._stop.is_set():
                return
            owner = owner_of(self._process.pid)
            log.error("worker died; starting another", exit_code=code)
            deaths = 1 if time.monotonic() - started > 60 else deaths + 1
            try:
                with self._runtime.db.write() as connection:
                    jobs.release(connection, owner)
                    projection_jobs.release(connection, owner)
            except ReelsError as error:
                log.warning("jobs of the dead worker not released", reason=str(error))
            if self._stop.wait(backoff(deaths, first=1, longest=60)):
                return
            self._process = self._start()
            if self._stop.is_set():  # `stop` was called meanwhile, and ended the previous process
                self._process.terminate()
