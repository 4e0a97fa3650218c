"""Many dimensions to two or three: UMAP, t-SNE, PCA; new points into a map that is there; how good a map is.

Knows arrays and nothing else: who is whose neighbour is found elsewhere (`index/graph.py`), once, and handed in.
Vectors are unit vectors, so Euclidean neighbours and cosine neighbours are the same ones. umap, openTSNE and
scikit-learn take seconds to import, so they are imported where a map is fitted, and a new point is placed without
umap: its compiled code would cost a process that places one point more than the point, and a pickled reducer does not
outlive a version of the library.
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
from service.projections.by_tsne import fit_tsne, place_tsne
from service.projections.by_umap import fit_umap, place_umap
from service.projections.fits import Fit, Parameters, Progress

_FEWEST_FOR_NEIGHBOURS = 5
_SAME = 1e-3
"""Vectors no further apart are one: half precision leaves two embeddings of one picture this far apart."""
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Quality:
    """How far the neighbours in a map are those of the vectors; both from 0 to 1, and 1 is best.

    trustworthiness: how few in the map are neighbours that should not be (Venna, Kaski 2001); neighbourhood_overlap:
    the mean share of a vector's neighbours that are its neighbours in the map. `neighbours` were compared, of
    `sample` points.
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


def effective(method: Method, parameters: Mapping[str, object]) -> Parameters:
    """All parameters of a method: those given, checked, and the defaults of the others.

    Raises InvalidInput, which names the parameter, for one that the method does not have, that is not a number (a
    whole one for n_neighbors), or is out of range.
    """
    known = _PARAMETERS[method]
    checked: Parameters = {name: allowed.default for name, allowed in known.items()}
    for name, value in parameters.items():
        field = f"parameters.{name}"
        if name not in known:
            has = " and ".join(known) or "no parameters"
            raise InvalidInput(field, f"{method} has {has}")
        allowed = known[name]
        whole = isinstance(allowed.default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InvalidInput(field, f"must be a {'whole ' if whole else ''}number, not {value!r}")
        if not allowed.lowest <= value <= allowed.highest:  # also refuses NaN
            raise InvalidInput(field, f"must be from {allowed.lowest} to {allowed.highest}, not {value}")
        checked[name] = value if whole else float(value)
    return checked


def neighbours_needed(method: Method, count: int, parameters: Mapping[str, object]) -> int:
    """How many neighbours of each of `count` points a fit and a placement want; 0 where they want none."""
    given = effective(method, parameters)
    if method == "pca" or count < _FEWEST_FOR_NEIGHBOURS:
        return 0
    wanted = given["n_neighbors"] if method == "umap" else 3 * given["perplexity"] + 1
    return min(int(wanted), count - 1)


def placeable(method: Method, dimensions: int) -> bool:
    """Whether `place` knows how to put new points into a map of this kind."""
    return method != "tsne" or dimensions == 2


def fit(
    vectors: Vectors,
    method: Method,
    dimensions: int,
    *,
    seed: int = 0,
    parameters: Mapping[str, object],
    neighbours: Neighbours | None,
    progress: Progress = lambda _: None,
) -> Fit:
    """A map of (N, D) unit vectors; the same bytes for the same input and seed on the same machine.

    `neighbours` are `neighbours_needed` of each vector among the others; PCA takes None. Fewer than five vectors have
    no neighbourhoods to keep: they are laid out by PCA whatever the method. `progress` is told the share that is
    done, from 0 to 1, and what it raises goes through; t-SNE in three dimensions tells it nothing on the way.

    UMAP: McInnes, Healy, Melville 2018; t-SNE: van der Maaten, Hinton 2008, in two dimensions by interpolation
    (Linderman et al. 2019), in three by Barnes-Hut (van der Maaten 2014). Both start from PCA (Kobak, Linderman 2021).
    Raises InvalidInput for other dimensions than 2 and 3 and for parameters that `effective` refuses.
    """
    if dimensions not in (2, 3):
        raise InvalidInput("dimensions", f"must be 2 or 3, not {dimensions}")
    given, count = effective(method, parameters), len(vectors)
    progress(0.0)
    if count == 0:
        return Fit(np.zeros((0, dimensions), np.float32), {})
    flat = _pca(vectors, dimensions)
    if method == "pca" or count < _FEWEST_FOR_NEIGHBOURS:
        made = flat
    else:
        wanted = neighbours_needed(method, count, parameters)
        if neighbours is None or len(neighbours.rows) != count or neighbours.rows.shape[1] < wanted:
            raise ValueError(f"{method} of {count} vectors wants {wanted} neighbours of each")
        found = Neighbours(neighbours.rows[:, :wanted], neighbours.distances[:, :wanted])
        # Equal vectors would start, and then stay, in one place.
        start = _spread(flat.coordinates) + np.random.default_rng(seed).normal(0, 1e-3, flat.coordinates.shape)
        with _quiet():
            if method == "umap":
                made = fit_umap(vectors, start, found, given, seed, progress)
            else:
                made = Fit(fit_tsne(start * 1e-4, found, float(given["perplexity"]), seed, progress), {})
    progress(1.0)
    return made


def place(
    vectors: Vectors,
    fit: Fit,
    method: Method,
    *,
    parameters: Mapping[str, object],
    seed: int = 0,
    neighbours: Neighbours,
) -> Vectors:
    """(M, dimensions) float32: where (M, D) new vectors belong in a map. The map stays as it is.

    `neighbours` are `neighbours_needed` of each new vector among the fitted ones. Each point is placed on its own:
    the others in the call and their order change nothing. One that is equal to a fitted vector goes where that is.

    PCA projects. UMAP does what its own transform does: a start in the middle of the neighbours, weighted by
    membership, then its stochastic gradient descent with the fitted points held still. t-SNE: the minimum of its
    cost for the point, with openTSNE's settings for new points (Poličar, Stražar, Zupan 2023). Raises InvalidInput
    for a map that is not `placeable`, unless it is of so few points that PCA made it.
    """
    dimensions = fit.coordinates.shape[1]
    if "components" in fit.model:
        centred = vectors.astype(np.float64) - fit.model["mean"]
        # Not one product of matrices: its last digits would depend on how many rows it has.
        projected = [fit.model["components"] @ row for row in centred]
        return np.array(projected, dtype=np.float32).reshape(-1, dimensions)
    if not placeable(method, dimensions):
        raise InvalidInput("method", f"{method} takes no new points into a map of {dimensions} dimensions")
    if len(vectors) == 0:
        return np.zeros((0, dimensions), np.float32)
    if len(neighbours.rows) != len(vectors) or neighbours.rows.shape[1] == 0:
        raise ValueError(f"{len(vectors)} vectors do not fit neighbours of {neighbours.rows.shape}")
    given = effective(method, parameters)
    if method == "umap":
        placed = place_umap(fit, neighbours, int(given["n_neighbors"]), seed)
    else:
        placed = place_tsne(fit, neighbours)
    same = neighbours.distances[:, :1] <= _SAME
    return np.where(same, fit.coordinates[neighbours.rows[:, 0]], placed).astype(np.float32)


def quality(vectors: Vectors, coordinates: Vectors, *, neighbours: int, sample: int, seed: int = 0) -> Quality | None:
    """How good a map of (N, D) unit vectors is, on `sample` of its points drawn at random, each held against all.

    Trustworthiness is defined for fewer neighbours than half of the points, so as many are compared at most; None
    for fewer than three points.
    """
    count = len(vectors)
    k = min(neighbours, (count - 1) // 2)
    if k < 1:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
    intruders, shared = 0, 0
    for start in range(0, len(chosen), 64):
        rows = chosen[start : start + 64]
        # Comparing inner products is comparing distances, the other way round.
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
    """The projection of greatest variance (Pearson 1901), by the eigenvectors of the covariance."""
    mean = vectors.mean(axis=0, dtype=np.float64)

    def centred() -> Iterator[Vectors]:
        # In parts, whose products single precision bears and whose sum is a double's.
        for start in range(0, len(vectors), _CHUNK):
            yield vectors[start : start + _CHUNK] - mean.astype(np.float32)

    _, directions = np.linalg.eigh(sum((part.T @ part).astype(np.float64) for part in centred()))
    components = directions.T[::-1][:dimensions]
    # A direction's sign is arbitrary: the largest loading points up, so that a map does not flip.
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    components = np.pad(components * np.sign(largest)[:, None], ((0, dimensions - len(components)), (0, 0)))
    coordinates = np.concatenate([part @ components.T.astype(np.float32) for part in centred()])
    return Fit(coordinates, {"mean": mean, "components": components})


def _spread(coordinates: Vectors) -> npt.NDArray[np.float64]:
    """Coordinates whose first axis has a standard deviation of 1; zeros where all are equal."""
    wide = coordinates.astype(np.float64)
    deviation = wide[:, 0].std()
    return wide / deviation if deviation > 1e-6 else np.zeros_like(wide)


@contextmanager
def _quiet() -> Iterator[None]:
    """umap, numba, openTSNE and scikit-learn warn of how they use each other, and of small and equal inputs, which
    are met here on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
