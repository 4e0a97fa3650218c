"""Generated points for tests of projections."""

from __future__ import annotations

import numpy as np

from service.vectors import normalise


def clusters(count: int, *, clusters: int = 3, dimension: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (count, dimension) around a few centres, and the label of each vector's centre.

    The centres are the same for every seed.
    """
    centres = np.random.default_rng(0).standard_normal((clusters, dimension)) * 3
    labels = np.arange(count) % clusters
    noise = np.random.default_rng(seed + 1).standard_normal((count, dimension))
    return normalise(centres[labels] + noise * 0.3), labels
