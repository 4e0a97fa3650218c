"""Nearest-neighbour graphs: of all rows among each other, and of new rows among all.

Up to `EXACT_UP_TO` rows, every row is compared with every other row. Above that, k-means divides the rows into cells,
and a row is compared with the rows of the cells nearest to it (Sivic, Zisserman 2003). FAISS's own inverted file
searches row by row. Here all rows that probe a cell are searched together, as one product of two matrices, which is
many times as fast. The same input gives the same result on the same machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import faiss
import numpy as np

from service.index.layout import RowNumbers
from service.models import Neighbours, Vectors

EXACT_UP_TO = 20_000
_TARGET_RECALL = 0.97
_MAX_CELL_WORK = 0.5
_SAMPLE_ROWS = 500
_BLOCK_ROWS = 4096
_RECOMPUTE_ABOVE_PRODUCT = 0.999


def neighbours(vectors: Vectors, count: int, progress: Callable[[float], None] = lambda _: None) -> Neighbours:
    """Return the `count` nearest neighbours of each of (N, D) unit vectors among the others.

    If there are fewer, all N - 1 are returned. Above `EXACT_UP_TO` rows, about one in thirty true neighbours is missed.
    `progress` is called with the share that is done, from 0 to 1; exceptions that it raises propagate.
    """
    total = len(vectors)
    count = max(min(count, total - 1), 0)
    if count == 0:
        return Neighbours(np.zeros((total, 0), np.int32), np.zeros((total, 0), np.float32))
    _use_cores(total)
    all_rows = np.arange(total)
    # One more than requested, because a row finds itself, which is removed below.
    best = faiss.ResultHeap(total, count + 1, keep_max=True)
    whole = [all_rows], [all_rows]
    cells, probing_rows = _cells(vectors, count + 1) if total > EXACT_UP_TO else whole
    work, done = _work(cells, probing_rows), 0
    if work > _MAX_CELL_WORK * total * total:
        # The vectors have no clusters: many small products would take longer than one large product.
        (cells, probing_rows), work = whole, total * total
    for cell, probing in zip(cells, probing_rows, strict=True):
        inside = np.ascontiguousarray(vectors[cell])
        for start in range(0, len(probing), _BLOCK_ROWS):
            these = probing[start : start + _BLOCK_ROWS]
            _search(best, these, vectors[these], cell, inside)
            done += len(these) * len(cell)
            progress(done / work)
    best.finalize()
    rows, products = best.I, best.D
    # Small cells may yield too few neighbours. The rows concerned are compared with all rows.
    incomplete = np.flatnonzero(rows[:, -1] < 0)
    if len(incomplete):
        products[incomplete], rows[incomplete] = faiss.knn(
            vectors[incomplete], vectors, count + 1, faiss.METRIC_INNER_PRODUCT
        )
    itself = rows == all_rows[:, None]
    # Among many equal rows, a row may not find itself. Then the last neighbour is removed.
    itself[:, -1] |= ~itself.any(axis=1)
    rows, products = rows[~itself].reshape(total, count), products[~itself].reshape(total, count)
    return _to_neighbours(vectors, vectors, rows, products)


def nearest(matrix: Vectors, queries: Vectors, count: int) -> Neighbours:
    """Return the `count` nearest rows of `matrix`, (N, D), for each of (M, D) unit vectors, exactly.

    If there are fewer, all N are returned. `matrix` may be mapped from a file. Each query is searched alone: FAISS sums
    in another order if it searches many at once, and then the last digits of a result would depend on the other
    queries.
    """
    count = min(count, len(matrix))
    rows = np.zeros((len(queries), count), np.int64)
    products = np.zeros((len(queries), count), np.float32)
    if count:
        _use_cores(1)
        for number, query in enumerate(queries):
            products[number], rows[number] = (
                found[0] for found in faiss.knn(query[None], matrix, count, faiss.METRIC_INNER_PRODUCT)
            )
    return _to_neighbours(queries, matrix, rows, products)


def _use_cores(rows: int) -> None:
    """Set FAISS to all cores for this thread, or to one core for few rows.

    With few rows, several threads would busy-wait for each other longer than they compute.
    """
    faiss.omp_set_num_threads(1 if rows < 2000 else os.cpu_count() or 1)


def _cells(vectors: Vectors, count: int) -> tuple[list[RowNumbers], list[RowNumbers]]:
    """Return the rows in each cell, and the rows that probe each cell.

    How many cells a row probes is measured with a sample: so many nearest cells that they hold the share
    `_TARGET_RECALL` of the sample's true neighbours.
    """
    cells = math.isqrt(len(vectors)) // 4  # few and large: one large product is faster than many small ones
    settings = {"niter": 8, "min_points_per_centroid": 1, "max_points_per_centroid": 64, "spherical": True, "seed": 1}
    kmeans = faiss.Kmeans(vectors.shape[1], cells, **settings)
    kmeans.train(vectors)
    home = kmeans.index.search(vectors, 1)[1][:, 0]
    sample = np.random.default_rng(1).permutation(len(vectors))[:_SAMPLE_ROWS]
    true = faiss.knn(vectors[sample], vectors, count, faiss.METRIC_INNER_PRODUCT)[1]
    nearest_cells = kmeans.index.search(vectors[sample], cells)[1]
    place = np.argsort(nearest_cells, axis=1)  # rank of each cell, by distance from the sample row
    probes = 1 + int(np.quantile(np.take_along_axis(place, home[true], axis=1), _TARGET_RECALL, method="higher"))
    visited = kmeans.index.search(vectors, probes)[1]
    return _group(home, cells), [rows // probes for rows in _group(visited.ravel(), cells)]


def _work(cells: list[RowNumbers], probing_rows: list[RowNumbers]) -> int:
    """Return the number of inner products to compute."""
    return sum(len(cell) * len(probing) for cell, probing in zip(cells, probing_rows, strict=True))


def _group(labels: RowNumbers, count: int) -> list[RowNumbers]:
    """Return the positions of each label from 0 to `count` - 1."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))


def _search(best: faiss.ResultHeap, probing: RowNumbers, queries: Vectors, cell: RowNumbers, rows: Vectors) -> None:
    """Add the neighbours that the queries find in one cell to `best`."""
    if not len(rows):
        return
    products, places = faiss.knn(queries, rows, min(best.k, len(rows)), faiss.METRIC_INNER_PRODUCT)
    best.add_result_subset(probing, products, cell[places])


def _to_neighbours(queries: Vectors, matrix: Vectors, rows: RowNumbers, products: Vectors) -> Neighbours:
    """Convert inner products to distances, and sort: nearest first, ties by row number."""
    distances = np.sqrt(np.maximum(2 - 2 * products, 0))
    # If a product is near 1, single precision has lost the small distance: compute it from the vectors.
    near, place = np.nonzero(products > _RECOMPUTE_ABOVE_PRODUCT)
    for start in range(0, len(near), _BLOCK_ROWS):
        a, p = near[start : start + _BLOCK_ROWS], place[start : start + _BLOCK_ROWS]
        distances[a, p] = np.linalg.norm(queries[a] - matrix[rows[a, p]], axis=1)
    order = np.lexsort((rows, distances), axis=1)
    return Neighbours(
        np.take_along_axis(rows, order, axis=1).astype(np.int32), np.take_along_axis(distances, order, axis=1)
    )
