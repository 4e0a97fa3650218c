"""Tests of the neighbour graph that UMAP and t-SNE share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.index import graph
from service.models import Neighbours
from tests.support.points import clusters

# --- the graph


def _truth(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return np.linalg.norm(queries[:, None].astype(np.float64) - vectors[None], axis=2)


def test_small_graphs_are_exact() -> None:
    vectors, _ = clusters(200)
    found = graph.neighbours(vectors, 7)
    assert (found.rows.shape, found.rows.dtype, found.distances.dtype) == ((200, 7), np.int32, np.float32)
    distances = _truth(vectors, vectors)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :7], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(distances, found.rows, axis=1), found.distances, atol=1e-4)
    new, _ = clusters(5, seed=1)
    found = graph.nearest(vectors, new, 4)
    np.testing.assert_allclose(found.distances, np.sort(_truth(vectors, new), axis=1)[:, :4], atol=1e-4)


def test_a_graph_of_few_rows_has_as_many_neighbours_as_there_are() -> None:
    for count in (0, 1, 2, 4):
        vectors, _ = clusters(count)
        assert graph.neighbours(vectors, 10).rows.shape == (count, max(count - 1, 0))
        assert graph.nearest(vectors, clusters(3)[0], 10).rows.shape == (3, count)
    with pytest.raises(ValueError, match="must have the same shape"):
        Neighbours(np.zeros((2, 3), np.int32), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("copies", [1, 40])
def test_large_graphs_find_nearly_all_neighbours_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    vectors = np.repeat(clusters(8000 // copies, clusters=50, dimension=64)[0], copies, axis=0)
    exact = graph.neighbours(vectors, 10)
    monkeypatch.setattr(graph, "EXACT_UP_TO", 1000)
    told: list[float] = []
    found = graph.neighbours(vectors, 10, told.append)
    assert (found.distances <= exact.distances[:, -1:] + 1e-4).mean() >= 0.95
    assert told == sorted(told)
    assert told[-1] == 1
    assert not (found.rows == np.arange(len(vectors))[:, None]).any()
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert all(len(set(row)) == 10 for row in found.rows.tolist())
    again = graph.neighbours(vectors, 10)
    assert found.rows.tobytes() + found.distances.tobytes() == again.rows.tobytes() + again.distances.tobytes()
    if copies > 1:
        assert (found.distances == 0).all()


def test_rows_whose_cells_hold_too_few_are_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EXACT_UP_TO", 1000)
    vectors, _ = clusters(1200)
    found = graph.neighbours(vectors, 600)
    assert found.rows.min() >= 0
    assert all(len(set(row)) == 600 for row in found.rows.tolist())


def test_new_rows_are_asked_each_on_its_own_of_a_matrix_in_a_file(tmp_path: Path) -> None:
    vectors, _ = clusters(3000, dimension=512)
    np.save(tmp_path / "matrix.npy", vectors)
    mapped = np.load(tmp_path / "matrix.npy", mmap_mode="r")
    new, _ = clusters(64, dimension=512, seed=5)
    together = graph.nearest(mapped, new, 9)
    for row in range(0, 64, 7):
        alone = graph.nearest(vectors, new[row : row + 1], 9)
        assert alone.rows.tobytes() == together.rows[row].tobytes()
        assert alone.distances.tobytes() == together.distances[row].tobytes()


def test_a_graph_can_be_cancelled() -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graph.neighbours(clusters(50)[0], 3, stop)
