"""Threads of one application, apart from those that the framework gives to every handler."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

_Result = TypeVar("_Result")


class Pools:
    """Begun with their first work, ended by `close`."""

    def __init__(self) -> None:
        self._answers = ThreadPoolExecutor(os.cpu_count() or 1, "answers")
        # A thread of its own: the answer to a key must not wait behind handlers that take seconds.
        self._keys = ThreadPoolExecutor(1, "keys")

    async def answer(self, work: Callable[[], _Result]) -> _Result:
        """Ask the index, at most as many at a time as there are cores: more would only take the interpreter's lock
        away from each other, which costs a third of what gets done."""
        return await _run(self._answers, work)

    async def look_up(self, work: Callable[[], _Result]) -> _Result:
        """Look up an API key."""
        return await _run(self._keys, work)

    async def close(self) -> None:
        """Wait for what is under way."""
        for pool in (self._answers, self._keys):
            await run_in_threadpool(pool.shutdown)


async def _run(pool: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, work)
