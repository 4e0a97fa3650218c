"""A layout, as it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.models import Neighbours, Vectors

Parameters = dict[str, int | float]
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """A map of N vectors: coordinates (N, 2) or (N, 3) float32.

    `model` holds what placing needs besides the coordinates: the mean (D,) and the components (dimensions, D) of a
    map by PCA, which a map of few points is whatever its method; a and b of UMAP's curve; nothing for t-SNE.
    """

    coordinates: Vectors
    model: dict[str, npt.NDArray[Any]]


def with_itself(neighbours: Neighbours) -> Neighbours:
    """With each point as its own first neighbour, as umap and scikit-learn have it."""
    itself = np.arange(len(neighbours.rows), dtype=np.int32)[:, None]
    return Neighbours(np.concatenate([itself, neighbours.rows], axis=1), np.pad(neighbours.distances, ((0, 0), (1, 0))))
