"""What every thread of the worker does: one thing after another, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from service.errors import ReelsError
from service.timing import Timing, backoff

log = structlog.get_logger(__name__)


def keep_doing(step: Callable[[], bool], stop: threading.Event, timing: Timing, trouble: str) -> None:
    """Call `step` until `stop` is set: again at once if it did something, after a pause if there was nothing to do.

    A fault of the machine passes: a full disk, a locked database, a process that cannot be started. It is logged as
    `trouble`, and `step` is called again later, ever later while the fault stays.
    """
    failures = 0
    while not stop.is_set():
        try:
            if not step():
                stop.wait(timing.idle_seconds)
            failures = 0
        except (ReelsError, OSError) as error:
            failures += 1
            log.warning(trouble, reason=str(error))
            stop.wait(backoff(failures, timing.pause_seconds, timing.longest_pause_seconds))
