"""How long the work behind the answers waits: one place, so that a test need not wait as long. See `guard.Patience` for
what clients may take."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses and leases, seconds."""

    idle_seconds: float = 0.2
    """Between two looks at an empty queue."""
    pause_seconds: float = 2.0
    """After a fault of the machine; twice as long after the next, up to `longest_pause_seconds`."""
    longest_pause_seconds: float = 30.0
    backoff_seconds: float = 2.0
    """Before another attempt at a video; twice as long before the next."""
    again_seconds: float = 10.0
    """After another model could not be loaded, or did not get to its end."""
    lease_seconds: float = 30.0
    """How long a worker holds a job that it has claimed. It renews the lease after a third of that."""
    renewal_pause_seconds: float = 60.0
    """After the index could not be rebuilt, before another attempt."""
    follow_seconds: float = 1.0
    """Between two checks of which model is active."""
    linger_seconds: float = 60.0
    """How long the model that answered before a switch stays loaded: it may still be answering."""


def backoff(failures: int, first: float, longest: float = math.inf) -> float:
    """Seconds to wait after so many failures in a row, from 1: `first`, twice as long each time, at most `longest`."""
    return min(first * 2.0 ** min(failures - 1, 60), longest)
