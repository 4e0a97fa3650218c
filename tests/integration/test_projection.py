"""Tests of projections: reproducible for any number of points, faithful to neighbours, and able to place new points."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput
from service.index import graph
from service.models import Neighbours
from service.projections.fits import Fit
from service.projections.reduction import (
    Method,
    can_transform,
    complete_parameters,
    fit,
    neighbours_needed,
    quality,
    transform,
)
from service.vectors import normalise
from tests.support.paths import ROOT
from tests.support.points import clusters
from tests.support.processes import CHILD_ENVIRONMENT

METHODS: tuple[Method, ...] = ("umap", "tsne", "pca")
KINDS = [(method, dimensions) for method in METHODS for dimensions in (2, 3)]


def _map(vectors: np.ndarray, method: Method, dimensions: int, **more: Any) -> Fit:
    given = {"seed": 0, "parameters": {}, **more}
    wanted = neighbours_needed(method, len(vectors), given["parameters"])
    return fit(vectors, method, dimensions, neighbours=graph.neighbours(vectors, wanted) if wanted else None, **given)


def _placed(new: np.ndarray, vectors: np.ndarray, made: Fit, method: Method, **more: Any) -> np.ndarray:
    given = {"seed": 0, "parameters": {}, **more}
    wanted = neighbours_needed(method, len(vectors), given["parameters"])
    return transform(new, made, method, neighbours=graph.nearest(vectors, new, wanted), **given)


# --- projections


@pytest.mark.parametrize(("method", "dimensions"), KINDS)
def test_neighbours_stay_neighbours(method: Method, dimensions: int) -> None:
    vectors, labels = clusters(90)
    made = _map(vectors, method, dimensions).coordinates
    assert (made.shape, made.dtype) == ((90, dimensions), np.float32)
    distances = np.linalg.norm(made[:, None] - made[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.9


_CHILD = """
import hashlib, json, sys
import numpy as np
from service.index import graph
from tests.integration.test_projection import KINDS, clusters, _map, _placed
from service.projections.reduction import can_transform
graph.EXACT_UP_TO = 200
vectors, new = clusters(400)[0], clusters(4, seed=9)[0]
made = {}
for method, dimensions in KINDS:
    one = _map(vectors, method, dimensions, seed=3)
    parts = [one.coordinates, *one.model.values()]
    if can_transform(method, dimensions):
        parts.append(_placed(new, vectors, one, method, seed=3))
    made[f"{method} {dimensions}"] = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
assert "umap" in sys.modules
print(json.dumps(made))
"""


def _child(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=CHILD_ENVIRONMENT,
    )


def test_two_processes_make_the_same_bytes_of_the_same_seed() -> None:
    children = [_child(_CHILD), _child(_CHILD)]
    one, two = (json.loads(child.communicate(timeout=120)[0]) for child in children)
    assert one == two
    assert len(one) == len(KINDS)


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_makes_another_map_but_of_pca(method: Method) -> None:
    vectors, _ = clusters(60)
    maps = [_map(vectors, method, 2, seed=seed).coordinates for seed in (3, 4)]
    assert np.array_equal(*maps) == (method == "pca")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 11])
def test_few_points_and_equal_points(method: Method, count: int) -> None:
    apart, new = clusters(count)[0], clusters(2, seed=2)[0]
    halves = apart[np.arange(count) // 2]
    for vectors in (apart, np.tile(apart[:1], (count, 1)), halves):
        for dimensions in (2, 3):
            made = _map(vectors, method, dimensions)
            assert made.coordinates.shape == (count, dimensions)
            assert np.isfinite(made.coordinates).all()
            if can_transform(method, dimensions) or "components" in made.model:
                assert np.isfinite(_placed(new, vectors, made, method)).all()
    if count == 1:
        assert not made.coordinates.any()


@pytest.mark.parametrize(("method", "dimensions"), KINDS)
def test_nothing_makes_an_empty_map(method: Method, dimensions: int) -> None:
    made = _map(np.zeros((0, 8), np.float32), method, dimensions)
    assert made.coordinates.shape == (0, dimensions)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InvalidInput, match="2 or 3"):
        _map(np.ones((3, 4), np.float32), "pca", 4)
    vectors, _ = clusters(20)
    with pytest.raises(ValueError, match="needs 15 neighbours"):
        fit(vectors, "umap", 2, parameters={}, neighbours=None)
    with pytest.raises(ValueError, match="needs 15 neighbours"):
        fit(vectors, "umap", 2, parameters={}, neighbours=graph.neighbours(vectors, 3))


def test_pca_is_the_projection_of_greatest_variance() -> None:
    vectors, _ = clusters(40)
    made = _map(vectors, "pca", 2).coordinates
    spread = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(made, axis=0), spread, rtol=1e-4)


@pytest.mark.parametrize(("method", "dimensions"), KINDS)
def test_progress_rises_to_one_and_an_exception_in_it_cancels(method: Method, dimensions: int) -> None:
    vectors, _ = clusters(300)
    told: list[float] = []
    _map(vectors, method, dimensions, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)
    if (method, dimensions) in (("umap", 2), ("umap", 3), ("tsne", 2)):
        assert len(told) > 3

    class Cancelled(Exception):
        pass

    def stop(share: float) -> None:
        if share > told[0]:
            raise Cancelled

    with pytest.raises(Cancelled):
        _map(vectors, method, dimensions, progress=stop)


# --- parameters


def test_parameters_have_defaults() -> None:
    assert complete_parameters("umap", {}) == {"n_neighbors": 15, "min_dist": 0.1}
    assert complete_parameters("umap", {"min_dist": 0}) == {"n_neighbors": 15, "min_dist": 0.0}
    assert complete_parameters("tsne", {"perplexity": 5}) == {"perplexity": 5.0}
    assert complete_parameters("pca", {}) == {}
    assert neighbours_needed("pca", 100, {}) == 0
    assert neighbours_needed("umap", 100, {"n_neighbors": 40}) == 40
    assert neighbours_needed("umap", 10, {"n_neighbors": 40}) == 9
    assert neighbours_needed("umap", 4, {}) == 0


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        *(("umap", "n_neighbors", value) for value in (1, 201, 15.5, 15.0, "15", True, None, float("nan"))),
        *(("umap", "min_dist", value) for value in (-0.1, 1, "0.1", False, float("nan"), float("inf"), None)),
        *(("tsne", "perplexity", value) for value in (1.9, 101, "30", True, float("nan"), [30])),
        ("umap", "perplexity", 30),
        ("tsne", "learning_rate", 1),
        ("pca", "n_neighbors", 15),
    ],
)
def test_parameters_are_refused_by_name(method: Method, name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        complete_parameters(method, {name: value})
    assert refused.value.field == f"parameters.{name}"


def test_parameters_change_the_map() -> None:
    vectors, _ = clusters(60)
    for method, parameters in (("umap", {"n_neighbors": 4, "min_dist": 0.5}), ("tsne", {"perplexity": 4})):
        assert not np.array_equal(
            _map(vectors, method, 2).coordinates,  # type: ignore[arg-type]
            _map(vectors, method, 2, parameters=parameters).coordinates,  # type: ignore[arg-type]
        )


# --- new points


PLACEABLE = [kind for kind in KINDS if can_transform(*kind)]


def test_t_sne_in_three_dimensions_takes_no_new_points() -> None:
    assert [kind for kind in KINDS if kind not in PLACEABLE] == [("tsne", 3)]
    vectors, _ = clusters(60)
    with pytest.raises(InvalidInput, match="cannot place new points"):
        _placed(vectors[:2], vectors, Fit(np.zeros((60, 3), np.float32), {}), "tsne")


@pytest.mark.parametrize(("method", "dimensions"), PLACEABLE)
def test_new_points_land_among_their_neighbours_whoever_comes_along(method: Method, dimensions: int) -> None:
    vectors, labels = clusters(240, clusters=6)
    new, theirs = clusters(18, clusters=6, seed=7)
    made = _map(vectors, method, dimensions)
    before = made.coordinates.copy()
    placed = _placed(new, vectors, made, method)
    assert (placed.shape, placed.dtype) == ((18, dimensions), np.float32)
    np.testing.assert_array_equal(made.coordinates, before)
    to_all = np.linalg.norm(placed[:, None] - made.coordinates[None], axis=2)
    if method != "pca":
        assert (labels[to_all.argmin(axis=1)] == theirs).all()
    order = np.random.default_rng(1).permutation(18)
    assert _placed(new[order], vectors, made, method).tobytes() == placed[order].tobytes()
    for row in (0, 5, 17):
        assert _placed(new[row : row + 1], vectors, made, method).tobytes() == placed[row].tobytes()
    assert _placed(new[:0], vectors, made, method).shape == (0, dimensions)


@pytest.mark.parametrize(("method", "dimensions"), PLACEABLE)
def test_a_copy_lands_where_its_original_is(method: Method, dimensions: int) -> None:
    vectors, _ = clusters(100)
    made = _map(vectors, method, dimensions)
    copies = normalise(vectors[[3, 70]] + np.float32(1e-6))
    np.testing.assert_allclose(_placed(copies, vectors, made, method), made.coordinates[[3, 70]], atol=1e-4)


def test_placing_does_as_umaps_own_transform_does_and_needs_no_umap() -> None:
    vectors, _ = clusters(600, clusters=6)
    new, _ = clusters(60, clusters=6, seed=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of UMAP, numba and scikit-learn
        from umap import UMAP

        model = UMAP(random_state=0, n_jobs=1).fit(vectors)
        theirs = model.transform(new)
    made = Fit(model.embedding_, {"a": np.array(model._a), "b": np.array(model._b)})  # noqa: SLF001
    ours = _placed(new, vectors, made, "umap")
    near = graph.nearest(vectors, new, 15).rows
    middle = made.coordinates[near].mean(axis=1)
    off_ours, off_theirs = (np.linalg.norm(one - middle, axis=1).mean() for one in (ours, theirs))
    assert off_ours < 1.2 * off_theirs
    code = (
        "import sys, service.projections.reduction, service.index.graph; "
        "print({'umap', 'numba', 'sklearn'} & set(sys.modules))"
    )
    assert _child(code).communicate(timeout=60)[0].strip() == "set()"


def test_few_points_are_placed_by_pca_whatever_the_method() -> None:
    vectors, new = clusters(4)[0], clusters(2, seed=3)[0]
    for method in METHODS:
        made = _map(vectors, method, 2)
        none = Neighbours(np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32))
        placed = transform(new, made, method, parameters={}, neighbours=none)
        np.testing.assert_allclose(placed, (new - vectors.mean(axis=0)) @ made.model["components"].T, atol=1e-5)
        np.testing.assert_allclose(_placed(vectors, vectors, made, method), made.coordinates, atol=1e-5)


def test_neighbours_that_do_not_belong_to_the_points_are_refused() -> None:
    vectors, _ = clusters(30)
    made = _map(vectors, "umap", 2)
    with pytest.raises(ValueError, match="do not belong to"):
        transform(vectors[:2], made, "umap", parameters={}, neighbours=graph.nearest(vectors, vectors[:3], 15))


# --- quality


@pytest.mark.parametrize("dimensions", [2, 3])
def test_quality_is_scikit_learns_trustworthiness_where_all_points_are_drawn(dimensions: int) -> None:
    from sklearn.manifold import trustworthiness

    vectors = normalise(np.random.default_rng(0).standard_normal((300, 20)))
    for coordinates in (_map(vectors, "pca", dimensions).coordinates, vectors[:, 5 : 5 + dimensions]):
        found = quality(vectors, coordinates, neighbours=12, sample=300)
        assert found is not None
        assert found.trustworthiness == pytest.approx(trustworthiness(vectors, coordinates, n_neighbors=12), abs=1e-6)
        true, shown = (graph_of(points)[:, :12] for points in (vectors, coordinates))
        shares = [len(set(a) & set(b)) / 12 for a, b in zip(true.tolist(), shown.tolist(), strict=True)]
        assert found.neighbourhood_overlap == pytest.approx(np.mean(shares))
        assert (found.neighbours, found.sample) == (12, 300)
        sampled = quality(vectors, coordinates, neighbours=12, sample=100, seed=2)
        assert sampled is not None
        assert sampled.trustworthiness == pytest.approx(found.trustworthiness, abs=0.05)
        assert sampled == quality(vectors, coordinates, neighbours=12, sample=100, seed=2)


def graph_of(points: np.ndarray) -> np.ndarray:
    """Return the row numbers of all points, nearest first, for each point: (N, N); each row ends with the point."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.argsort(axis=1)


def test_quality_of_few_points() -> None:
    for count in range(3):
        assert quality(clusters(count)[0], np.zeros((count, 2), np.float32), neighbours=15, sample=100) is None
    for count in (3, 4, 20):
        vectors, _ = clusters(count)
        found = quality(vectors, vectors[:, :2], neighbours=15, sample=100)
        assert found is not None
        assert (found.neighbours, found.sample) == ((count - 1) // 2, count)
        assert 0 <= found.trustworthiness <= 1
    perfect = quality(vectors, vectors, neighbours=5, sample=100)
    assert perfect is not None
    assert (perfect.trustworthiness, perfect.neighbourhood_overlap) == (1, 1)
