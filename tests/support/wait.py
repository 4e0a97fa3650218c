"""How long tests wait, and how long they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60, what: object = "", *, every: float = 0.02) -> T:
    """Return what `condition` gives once it is true. Fail after `seconds`, saying `what` was waited for; a callable
    `what` is called then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {said or condition}")
        time.sleep(every)
    return found


def going_on(seconds: float, enough: Callable[[], bool], patience_seconds: float = 120) -> Iterator[int]:
    """Count from 0 for so long, and longer on a slow machine: until there is `enough`, or patience ends."""
    ends = time.monotonic() + seconds
    for number in count():
        if time.monotonic() > ends + (0 if enough() else patience_seconds):
            return
        yield number
