"""Processes, clocks and memory of the benchmarks."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.bench.search_library import Figures

_Any = TypeVar("_Any")


def resident() -> int:
    """Return the resident bytes of this process: anonymous memory and mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))


def alone(do: Callable[..., _Any], *arguments: Any) -> _Any:
    """Run a function in a new process, so that its memory is measured alone; return the result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(do, *arguments).result()


@contextmanager
def stopwatch(into: Figures, name: str, digits: int = 2) -> Iterator[None]:
    """Record the seconds that the block takes as `into[name]`."""
    started = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - started, digits)


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)
