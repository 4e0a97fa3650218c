"""Define the result of fitting a projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.models import Neighbours, Vectors

Parameters = dict[str, int | float]
ProgressCallback = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """Projection of N vectors: coordinates (N, 2) or (N, 3) float32.

    `model` holds what placing new points needs besides the coordinates. For PCA that is the mean (D,) and the
    components (dimensions, D). PCA also makes a projection of few points, whatever its method. For UMAP it is a and b
    of its curve; for t-SNE it is empty.
    """

    coordinates: Vectors
    model: dict[str, npt.NDArray[Any]]


def with_self(neighbours: Neighbours) -> Neighbours:
    """Add each point as its own first neighbour, at distance 0, as umap and scikit-learn expect."""
    own_rows = np.arange(len(neighbours.rows), dtype=np.int32)[:, None]
    return Neighbours(
        np.concatenate([own_rows, neighbours.rows], axis=1), np.pad(neighbours.distances, ((0, 0), (1, 0)))
    )
