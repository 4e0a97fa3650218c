"""Wait for conditions, and repeat steps for a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60, what: object = "", *, every: float = 0.02) -> T:
    """Wait until `condition` returns a true value; return that value.

    Args:
        condition: Called again and again.
        seconds: Longest wait.
        what: Named in the error; a callable is called only for the error.
        every: Seconds between calls.

    Raises:
        AssertionError: If the condition is not true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {said or condition}")
        time.sleep(every)
    return found


def going_on(seconds: float, enough: Callable[[], bool], patience_seconds: float = 120) -> Iterator[int]:
    """Count from 0 for `seconds`; until `enough` returns true, up to `patience_seconds` longer on a slow machine."""
    ends = time.monotonic() + seconds
    for number in count():
        if time.monotonic() > ends + (0 if enough() else patience_seconds):
            return
        yield number
