"""Pauses and leases of background work, in one place so that tests can shorten them.

Time limits for clients are in `api.timeouts.ClientTimeouts`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses and leases, in seconds."""

    idle_seconds: float = 0.2
    """Pause before an empty queue is checked again."""
    fault_pause_seconds: float = 2.0
    """Pause after a fault of the machine; doubles with each fault in a row, up to `max_fault_pause_seconds`."""
    max_fault_pause_seconds: float = 30.0
    backoff_seconds: float = 2.0
    """Pause before a video is tried again; doubles with each attempt."""
    reembed_retry_seconds: float = 10.0
    """Pause after a re-embedding process failed, for example because its model could not be loaded."""
    lease_seconds: float = 30.0
    """Duration of the lease on a claimed job; the worker renews the lease after a third of it."""
    renewal_pause_seconds: float = 60.0
    """Pause after an index could not be rebuilt, before the next attempt."""
    generation_check_seconds: float = 1.0
    """Pause between checks of the active generation, which another process may have switched."""
    linger_seconds: float = 60.0
    """Time that the previous model stays loaded after a switch, because requests may still use it."""


def backoff(failures: int, first: float, longest: float = math.inf) -> float:
    """Return the seconds to wait after `failures` failures in a row, counted from 1.

    The pause is `first` seconds after the first failure, doubles with each one, and is at most `longest`.
    """
    return min(first * 2.0 ** min(failures - 1, 60), longest)
