"""Parallel work on the parts of an array, on all cores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faiss

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # The segments of one query already occupy all cores, so FAISS must not start more threads in each.
    return ThreadPoolExecutor(os.cpu_count(), "scan", initializer=lambda: faiss.omp_set_num_threads(1))


def parallel_map(function: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
    """Return `function(part)` for each part, in order, computed on all cores.

    Each thread receives a fixed share of the parts, because handing over parts one by one costs more.
    """
    threads = min(os.cpu_count() or 1, len(parts))
    if threads < 2:
        faiss.omp_set_num_threads(1)
        return [function(part) for part in parts]
    shares = _pool().map(lambda n: [function(part) for part in parts[n::threads]], range(threads))
    results: list[Any] = [None] * len(parts)
    for n, share in enumerate(shares):
        results[n::threads] = share
    return results
