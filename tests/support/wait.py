"""The one wait loop of the tests."""

from __future__ import annotations

import time
from collections.abc import Callable
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
