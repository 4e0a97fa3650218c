"""Fit and extend projections by t-SNE (van der Maaten, Hinton, 2008)."""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from service.models import Neighbours, Vectors
from service.projections.fits import Fit, ProgressCallback, with_self


def fit_tsne(
    start: npt.NDArray[np.float64], neighbours: Neighbours, perplexity: float, seed: int, progress: ProgressCallback
) -> Vectors:
    """Fit t-SNE to N points; return (N, dimensions) float32.

    Two dimensions use openTSNE. Three use scikit-learn, which does not report progress.

    Args:
        start: (N, 2) or (N, 3) initial coordinates.
        neighbours: At least 3 * `perplexity` neighbours of each point, without the point itself.
        perplexity: Lowered to (N - 1) / 3 if there are few points.
        seed: Seed of the random generator.
        progress: Receives the share that is done, 0 to 1.
    """
    count, dimensions = start.shape
    perplexity = min(perplexity, (count - 1) / 3)
    # With few points, threads spend longer in busy waits for each other than in computation.
    threads = 1 if count < 5000 else os.cpu_count() or 1
    if dimensions == 3:
        from scipy.sparse import csr_matrix
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        knn = with_self(neighbours)  # scikit-learn drops the nearest as the point itself, whatever it is
        order = np.argsort(knn.rows, axis=1)
        graph = csr_matrix(
            (
                np.take_along_axis(knn.distances, order, axis=1).ravel(),
                np.take_along_axis(knn.rows, order, axis=1).ravel(),
                np.arange(0, knn.rows.size + 1, knn.rows.shape[1]),
            ),
            shape=(count, count),
        )
        model = TSNE(
            3,
            perplexity=perplexity,
            metric="precomputed",
            init=start.astype(np.float32),
            # The default of scikit-learn, at least 50, scatters a few hundred points.
            learning_rate=min(max(count / 48, 50), count / 12),
            random_state=seed,
        )
        with threadpool_limits(threads):
            return np.asarray(model.fit_transform(graph), np.float32)
    from openTSNE import TSNE as Interpolated
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    k = max(int(3 * perplexity), 1)
    index = PrecomputedNeighbors(neighbours.rows[:, :k], neighbours.distances[:, :k])
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=threads)
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 10
        progress(done / 750)

    model = Interpolated(n_jobs=threads, random_state=seed, callbacks=tick, callbacks_every_iters=10)
    return np.asarray(model.fit(affinities=affinities, initialization=start), np.float32)


def transform_tsne(fit: Fit, neighbours: Neighbours) -> Vectors:
    """Place M new points by minimising t-SNE's cost of each, with the fitted points held still.

    Return (M, 2) float32. The search starts at the median of a point's neighbours. Perplexity, exaggeration and start
    are those of openTSNE for new points. openTSNE follows the gradient on a grid, for many points at once. Here a point
    has two unknowns and an exact gradient, and a quasi-Newton method converges in some twenty steps.
    """
    from scipy.optimize import minimize

    perplexity, exaggeration = 5.0, 1.5
    x, y = (np.ascontiguousarray(axis, np.float32) for axis in fit.coordinates.T)

    def cost(at: npt.NDArray[np.float64], its: Vectors, attraction: Vectors) -> tuple[float, npt.NDArray[np.float64]]:
        # log Z + e sum_j p_j log(1 + d_j^2), and its gradient.
        steps = at - its
        near = 1 + (steps**2).sum(axis=1)
        dx, dy = np.float32(at[0]) - x, np.float32(at[1]) - y
        weights = 1 / (1 + dx * dx + dy * dy)
        total = weights.sum(dtype=np.float64)
        weights *= weights
        repulsion = np.array([weights @ dx, weights @ dy], np.float64) / total
        value = float(attraction @ np.log(near) + np.log(total))
        return value, 2 * ((attraction / near) @ steps - repulsion)

    coordinates = np.empty((len(neighbours.rows), 2))
    squares = neighbours.distances[:, : int(3 * perplexity)].astype(np.float64) ** 2
    strengths = _affinities(squares, min(perplexity, squares.shape[1] / 3))
    for number, rows in enumerate(neighbours.rows):
        start = np.median(fit.coordinates[rows[:25]].astype(np.float64), axis=0)
        its = fit.coordinates[rows[: squares.shape[1]]].astype(np.float64)
        coordinates[number] = minimize(cost, start, (its, exaggeration * strengths[number]), "L-BFGS-B", jac=True).x
    return coordinates.astype(np.float32)


def _affinities(squares: npt.NDArray[np.float64], perplexity: float) -> npt.NDArray[np.float64]:
    """Return weights (M, k) that sum to 1 in each row, from squared distances (M, k).

    Bisection finds the Gaussian whose entropy is that of `perplexity`.
    """
    squares = squares - squares[:, :1]
    low, high = np.full((len(squares), 1), -20.0), np.full((len(squares), 1), 20.0)
    for _ in range(64):
        middle = (low + high) / 2
        weights = np.exp(-squares * np.exp(middle))
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1, keepdims=True)
        wide = entropy > math.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return np.asarray(weights)
