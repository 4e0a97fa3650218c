"""The loop of every thread of the worker: one step after another, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from service.errors import ReelsError
from service.timing import Timing, backoff

log = structlog.get_logger(__name__)


def run_loop(step: Callable[[], bool], stop: threading.Event, timing: Timing, fault_event: str) -> None:
    """Call `step` until `stop` is set: again at once if it did something, else after a pause.

    Faults of the machine pass: a full disk, a locked database, a process that cannot be started. A fault is logged as
    `fault_event`, and `step` is called again after a pause. The pause grows while the fault lasts. Errors other than
    ReelsError and OSError end the loop.
    """
    failures = 0
    while not stop.is_set():
        try:
            if not step():
                stop.wait(timing.idle_seconds)
            failures = 0
        except (ReelsError, OSError) as error:
            failures += 1
            log.warning(fault_event, reason=str(error))
            stop.wait(backoff(failures, timing.fault_pause_seconds, timing.max_fault_pause_seconds))
