"""Reduce vectors to two or three dimensions by UMAP, t-SNE or PCA; place new points; measure the quality.

This module works on arrays only. Neighbours are found once, in `index/graph.py`, and passed in. Vectors are unit
vectors, so Euclidean neighbours and cosine neighbours are the same.

umap, openTSNE and scikit-learn take seconds to import, so they are imported only to fit a projection. New points are
placed without umap: loading its compiled code would take a process longer than placing the point. Besides, a pickled
reducer does not survive a new version of the library.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput
from service.models import Method, Neighbours, Vectors
from service.projections.by_tsne import fit_tsne, transform_tsne
from service.projections.by_umap import fit_umap, transform_umap
from service.projections.fits import Fit, Parameters, ProgressCallback

_MIN_NEIGHBOUR_POINTS = 5
_SAME_DISTANCE = 1e-3
"""Distance up to which two vectors count as equal.

Half precision puts two embeddings of one image this far apart.
"""
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a projection keeps the neighbours of the vectors; both scores are from 0 to 1, and 1 is best.

    Attributes:
        trustworthiness: High if few neighbours in the projection are not neighbours of the vectors (Venna, Kaski 2001).
        neighbourhood_overlap: Mean share of a vector's neighbours that are also neighbours in the projection.
        neighbours: Number of neighbours compared for each point.
        sample: Number of points compared.
    """

    trustworthiness: float
    neighbourhood_overlap: float
    neighbours: int
    sample: int


@dataclass(frozen=True, slots=True)
class _Range:
    default: int | float
    lowest: int | float
    highest: int | float


_PARAMETERS: dict[Method, dict[str, _Range]] = {
    "umap": {"n_neighbors": _Range(15, 2, 200), "min_dist": _Range(0.1, 0.0, 0.99)},
    "tsne": {"perplexity": _Range(30.0, 2.0, 100.0)},
    "pca": {},
}


def complete_parameters(method: Method, parameters: Mapping[str, object]) -> Parameters:
    """Return all parameters of a method: the given ones, checked, and defaults for the others.

    Raises InvalidInput, which names the parameter, if the method does not have it, or its value is out of range or not
    a number. `n_neighbors` must be a whole number.
    """
    known = _PARAMETERS[method]
    checked: Parameters = {name: allowed.default for name, allowed in known.items()}
    for name, value in parameters.items():
        field = f"parameters.{name}"
        if name not in known:
            has = " and ".join(known) or "no parameters"
            raise InvalidInput(field, f"is not a parameter of {method}, which has {has}")
        allowed = known[name]
        whole = isinstance(allowed.default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InvalidInput(field, f"must be a {'whole ' if whole else ''}number, not {value!r}")
        if not allowed.lowest <= value <= allowed.highest:  # also refuses NaN
            raise InvalidInput(field, f"must be from {allowed.lowest} to {allowed.highest}, not {value}")
        checked[name] = value if whole else float(value)
    return checked


def neighbours_needed(method: Method, count: int, parameters: Mapping[str, object]) -> int:
    """Return how many neighbours of each of `count` points fitting and placing need; 0 if none."""
    given = complete_parameters(method, parameters)
    if method == "pca" or count < _MIN_NEIGHBOUR_POINTS:
        return 0
    wanted = given["n_neighbors"] if method == "umap" else 3 * given["perplexity"] + 1
    return min(int(wanted), count - 1)


def can_transform(method: Method, dimensions: int) -> bool:
    """Return whether `transform` can add new points to a projection by this method in so many dimensions."""
    return method != "tsne" or dimensions == 2


def fit(
    vectors: Vectors,
    method: Method,
    dimensions: int,
    *,
    seed: int = 0,
    parameters: Mapping[str, object],
    neighbours: Neighbours | None,
    progress: ProgressCallback = lambda _: None,
) -> Fit:
    """Fit a projection to (N, D) unit vectors.

    The same input and seed give the same bytes on the same machine. Fewer than five vectors have no neighbourhoods to
    keep, so PCA fits them whatever the method. UMAP: McInnes, Healy, Melville 2018. t-SNE: van der Maaten, Hinton 2008;
    in two dimensions by interpolation (Linderman et al. 2019), in three by Barnes-Hut (van der Maaten 2014). Both start
    from PCA (Kobak, Linderman 2021).

    Args:
        vectors: (N, D) float32 unit vectors.
        method: UMAP, t-SNE or PCA.
        dimensions: 2 or 3.
        seed: Seed of the random generator.
        parameters: Parameters of the method; missing ones have their defaults.
        neighbours: `neighbours_needed` neighbours of each vector among the others; None for PCA.
        progress: Receives the share that is done, 0 to 1. What it raises passes through. t-SNE in three dimensions
            reports nothing until the end.

    Raises:
        InvalidInput: If `dimensions` is not 2 or 3, or `complete_parameters` refuses a parameter.
    """
    if dimensions not in (2, 3):
        raise InvalidInput("dimensions", f"must be 2 or 3, not {dimensions}")
    given, count = complete_parameters(method, parameters), len(vectors)
    progress(0.0)
    if count == 0:
        return Fit(np.zeros((0, dimensions), np.float32), {})
    flat = _pca(vectors, dimensions)
    if method == "pca" or count < _MIN_NEIGHBOUR_POINTS:
        result = flat
    else:
        wanted = neighbours_needed(method, count, parameters)
        if neighbours is None or len(neighbours.rows) != count or neighbours.rows.shape[1] < wanted:
            raise ValueError(f"{method} of {count} vectors needs {wanted} neighbours of each vector")
        found = Neighbours(neighbours.rows[:, :wanted], neighbours.distances[:, :wanted])
        # Without the noise, equal vectors would start and stay in one place.
        start = _spread(flat.coordinates) + np.random.default_rng(seed).normal(0, 1e-3, flat.coordinates.shape)
        with _quiet():
            if method == "umap":
                result = fit_umap(vectors, start, found, given, seed, progress)
            else:
                result = Fit(fit_tsne(start * 1e-4, found, float(given["perplexity"]), seed, progress), {})
    progress(1.0)
    return result


def transform(
    vectors: Vectors,
    fit: Fit,
    method: Method,
    *,
    parameters: Mapping[str, object],
    seed: int = 0,
    neighbours: Neighbours,
) -> Vectors:
    """Place (M, D) new vectors in a projection, which stays as it is; return (M, dimensions) float32.

    Each point is placed on its own: the other vectors and their order change nothing. A vector that is equal to a
    fitted one gets the coordinates of that one.

    PCA projects the vectors. UMAP works like umap's own transform: it starts in the middle of the neighbours, weighted
    by membership, and runs stochastic gradient descent with the fitted points held still. t-SNE minimises its cost for
    the point, with openTSNE's settings for new points (Poličar, Stražar, Zupan 2023).

    Args:
        vectors: (M, D) float32 unit vectors.
        fit: The fitted projection.
        method: The method of the projection.
        parameters: Parameters of the method; missing ones have their defaults.
        seed: Seed of the random generator.
        neighbours: `neighbours_needed` neighbours of each new vector among the fitted ones.

    Raises:
        InvalidInput: If `can_transform` is False, unless the projection has so few points that PCA fitted it.
    """
    dimensions = fit.coordinates.shape[1]
    if "components" in fit.model:
        centred = vectors.astype(np.float64) - fit.model["mean"]
        # One product of matrices is not used: its last digits would depend on the number of rows.
        projected = [fit.model["components"] @ row for row in centred]
        return np.array(projected, dtype=np.float32).reshape(-1, dimensions)
    if not can_transform(method, dimensions):
        raise InvalidInput("method", f"{method} cannot place new points on a map of {dimensions} dimensions")
    if len(vectors) == 0:
        return np.zeros((0, dimensions), np.float32)
    if len(neighbours.rows) != len(vectors) or neighbours.rows.shape[1] == 0:
        raise ValueError(f"neighbours of shape {neighbours.rows.shape} do not belong to {len(vectors)} vectors")
    given = complete_parameters(method, parameters)
    if method == "umap":
        transformed = transform_umap(fit, neighbours, int(given["n_neighbors"]), seed)
    else:
        transformed = transform_tsne(fit, neighbours)
    same = neighbours.distances[:, :1] <= _SAME_DISTANCE
    return np.where(same, fit.coordinates[neighbours.rows[:, 0]], transformed).astype(np.float32)


def quality(vectors: Vectors, coordinates: Vectors, *, neighbours: int, sample: int, seed: int = 0) -> Quality | None:
    """Measure how well a projection keeps the neighbours of (N, D) unit vectors; None for fewer than three points.

    `sample` random points are compared with all others. Trustworthiness is defined only for fewer neighbours than half
    of the points, so at most that many are compared.
    """
    count = len(vectors)
    k = min(neighbours, (count - 1) // 2)
    if k < 1:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
    intruders, shared = 0, 0
    for start in range(0, len(chosen), 64):
        rows = chosen[start : start + 64]
        # The largest inner product is the smallest distance.
        products = vectors[rows] @ vectors.T
        gaps = sum(
            (coordinates[rows, None, axis] - coordinates[None, :, axis]) ** 2 for axis in range(coordinates.shape[1])
        )
        for row, near, gap in zip(rows, products, np.asarray(gaps), strict=True):
            near[row], gap[row] = -np.inf, np.inf
            true, shown = np.argpartition(-near, k - 1)[:k], np.argpartition(gap, k - 1)[:k]
            extra = np.setdiff1d(shown, true)
            shared += k - len(extra)
            intruders += sum(max(int(np.count_nonzero(near > near[one])) + 1 - k, 0) for one in extra)
    worst = len(chosen) * k * (2 * count - 3 * k - 1) / 2
    return Quality(1 - intruders / worst, shared / (len(chosen) * k), k, len(chosen))


def _pca(vectors: Vectors, dimensions: int) -> Fit:
    """Fit the projection of greatest variance (Pearson 1901), by the eigenvectors of the covariance."""
    mean = vectors.mean(axis=0, dtype=np.float64)

    def centred() -> Iterator[Vectors]:
        # In chunks: each product is exact enough in single precision, their sum is in double precision.
        for start in range(0, len(vectors), _CHUNK_ROWS):
            yield vectors[start : start + _CHUNK_ROWS] - mean.astype(np.float32)

    _, directions = np.linalg.eigh(sum((part.T @ part).astype(np.float64) for part in centred()))
    components = directions.T[::-1][:dimensions]
    # The sign of a direction is arbitrary. The largest loading is made positive, so that a projection does not flip.
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    components = np.pad(components * np.sign(largest)[:, None], ((0, dimensions - len(components)), (0, 0)))
    coordinates = np.concatenate([part @ components.T.astype(np.float32) for part in centred()])
    return Fit(coordinates, {"mean": mean, "components": components})


def _spread(coordinates: Vectors) -> npt.NDArray[np.float64]:
    """Scale coordinates so that the first axis has a standard deviation of 1; return zeros if all are equal."""
    wide = coordinates.astype(np.float64)
    deviation = wide[:, 0].std()
    return wide / deviation if deviation > 1e-6 else np.zeros_like(wide)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of umap, numba, openTSNE and scikit-learn.

    They warn of how they use each other, and of small and equal inputs, which occur here on purpose.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
