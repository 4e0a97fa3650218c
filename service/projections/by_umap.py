"""Fit and extend projections by UMAP (McInnes, Healy, Melville, 2018)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from service.models import Neighbours, Vectors
from service.projections.fits import Fit, Parameters, ProgressCallback, with_self


class _Ticker:
    """File object for tqdm, umap's only way to report progress; tqdm writes percentages to it."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress = progress

    def write(self, text: str) -> None:
        """Report a percentage that follows a carriage return; ignore white space that clears a line."""
        if text.strip():
            self._progress(float(text) / 100)

    def flush(self) -> None:
        """Do nothing: no text is buffered."""


def fit_umap(
    vectors: Vectors,
    start: npt.NDArray[np.float64],
    neighbours: Neighbours,
    given: Parameters,
    seed: int,
    progress: ProgressCallback,
) -> Fit:
    """Fit UMAP to (N, D) vectors; return coordinates, and the parameters a and b of UMAP's curve.

    Args:
        vectors: (N, D) float32 unit vectors.
        start: (N, 2) or (N, 3) initial coordinates.
        neighbours: At least `n_neighbors` - 1 neighbours of each vector, without the vector itself.
        given: The method's parameters, `n_neighbors` and `min_dist`.
        seed: Seed of the random generator.
        progress: Receives the share that is done, 0 to 1.
    """
    import umap
    from umap.umap_ import find_ab_params

    count, dimensions = start.shape
    size = min(int(given["n_neighbors"]), count)
    knn = with_self(Neighbours(neighbours.rows[:, : size - 1], neighbours.distances[:, : size - 1]))
    model = umap.UMAP(
        n_components=dimensions,
        n_neighbors=size,
        min_dist=float(given["min_dist"]),
        init=start,
        precomputed_knn=(knn.rows, knn.distances, None),
        force_approximation_algorithm=True,  # otherwise it computes the neighbours of few points again
        random_state=seed,
        n_jobs=1,
        tqdm_kwds={"disable": False, "file": _Ticker(progress), "bar_format": "{percentage}", "miniters": 1},
    )
    coordinates = np.asarray(model.fit_transform(vectors), np.float32)
    a, b = find_ab_params(1.0, float(given["min_dist"]))  # the same values that the model has just computed
    return Fit(coordinates, {"a": np.array(a), "b": np.array(b)})


def transform_umap(fit: Fit, neighbours: Neighbours, size: int, seed: int) -> Vectors:
    """Place M new points as umap's transform does; return (M, dimensions) float32.

    Start at the mean of the `size` nearest neighbours, weighted by membership. Then run 100 epochs of stochastic
    gradient descent with a quarter of umap's learning rate and 5 negative samples per edge. The fitted points stay
    still.
    """
    epochs, negatives = 100, 5
    a, b = float(fit.model["a"]), float(fit.model["b"])
    distances = neighbours.distances[:, :size].astype(np.float64)
    rows, fitted = neighbours.rows[:, :size], fit.coordinates.astype(np.float64)
    strengths = np.exp(-distances / _bandwidths(distances, math.log2(max(size, 2))))
    strengths /= strengths.max(axis=1, keepdims=True)
    at = (fitted[rows] * (strengths / strengths.sum(axis=1, keepdims=True))[:, :, None]).sum(axis=1)
    rng = np.random.default_rng(seed)
    for epoch in range(1, epochs):
        rate = 0.25 * (1 - epoch / epochs)
        # An edge of strength s is used in every 1/s-th epoch.
        due = np.floor(epoch * strengths) > np.floor((epoch - 1) * strengths)
        due &= strengths >= 1 / epochs
        others = rng.integers(len(fitted), size=(rows.shape[1], negatives))  # the same for every new point
        for edge in range(rows.shape[1]):
            step = at - fitted[rows[:, edge]]
            square = (step**2).sum(axis=1, keepdims=True)
            safe = np.maximum(square, 1e-12)
            pull = np.clip(-2 * a * b * safe ** (b - 1) / (1 + a * safe**b) * step, -4, 4)
            moved = at + rate * pull
            for other in others[edge]:
                step = moved - fitted[other]
                square = (step**2).sum(axis=1, keepdims=True)
                moved = moved + rate * np.clip(2 * b / ((0.001 + square) * (1 + a * square**b)) * step, -4, 4)
            at = np.where(due[:, edge, None], moved, at)
    return np.asarray(at, dtype=np.float32)


def _bandwidths(distances: npt.NDArray[np.float64], target: float) -> npt.NDArray[np.float64]:
    """Return widths (M, 1) with which the memberships of all but the nearest sum to `target`, by bisection."""
    low, high = np.zeros((len(distances), 1)), np.full((len(distances), 1), 1e3)
    for _ in range(64):
        middle = (low + high) / 2
        enough = np.exp(-distances[:, 1:] / middle).sum(axis=1, keepdims=True) > target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    floor = 1e-3 * distances.mean(axis=1, keepdims=True)
    return np.asarray(np.maximum((low + high) / 2, np.maximum(floor, 1e-12)))
