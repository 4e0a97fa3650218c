"""Intervals of means by the bootstrap (Efron 1979): resample the queries, and see how much the mean varies.

The percentile method is used, with seeded draws. The same draws serve all figures of the same queries, so differences
between generations are paired: each resample compares both generations on the same queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "no clear difference"]

RESAMPLES = 2_000
_PERCENTILES = (2.5, 97.5)  # a 95 % interval
_BLOCK = 4_000_000  # numbers in memory at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of a measure over some queries, and its 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """What a difference means: nothing clear if 0 lies inside the interval."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"


class Bootstrap:
    """Draws resamples, the same ones for the same number of queries."""

    def __init__(self, seed: int, resamples: int = RESAMPLES) -> None:
        self._seed = seed
        self._resamples = resamples

    def intervals(self, values: Numbers) -> list[Interval]:
        """Return the mean and its interval for each of M measures. `values` is (Q, M), one row for each query."""
        count = len(values)
        rng = np.random.default_rng((self._seed, count))
        means = np.empty((self._resamples, values.shape[1]))
        step = max(1, _BLOCK // count)
        for start in range(0, self._resamples, step):
            stop = min(start + step, self._resamples)
            # How often each query was drawn. A product with these counts is the sum over a resample.
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=stop - start)
            means[start:stop] = drawn @ values / count
        low, high = np.percentile(means, _PERCENTILES, axis=0)
        return [
            Interval(float(value), float(least), float(most))
            for value, least, most in zip(values.mean(axis=0), low, high, strict=True)
        ]
