"""Who is whose nearest neighbour: of all rows among each other, and of new rows among all. Knows FAISS and NumPy.

Up to `EXACT_UP_TO` rows every row is compared with every other. Above it the rows are cut into cells by k-means, and
a row is compared with those in the cells nearest to it (Sivic, Zisserman 2003). FAISS's own inverted file asks row by
row; here all the rows that look into one cell are asked at once, which is one product of two matrices and many times
as fast. The same input gives the same answer on the same machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import faiss
import numpy as np
import numpy.typing as npt

from service.models import Neighbours, Vectors

Rows = npt.NDArray[np.int64]
"""(N,) int64: numbers of rows."""

EXACT_UP_TO = 20_000
_RECALL = 0.97
_WORTH_IT = 0.5
_SAMPLE = 500
_BLOCK = 4096
_CLOSE = 0.999


def neighbours(vectors: Vectors, count: int, progress: Callable[[float], None] = lambda _: None) -> Neighbours:
    """The `count` nearest of each of (N, D) unit vectors among the others, or all N - 1 where there are fewer.

    Above `EXACT_UP_TO` rows some of the true neighbours are missed, about one in thirty. `progress` is told the
    share that is done, from 0 to 1; what it raises goes through.
    """
    total = len(vectors)
    count = max(min(count, total - 1), 0)
    if count == 0:
        return Neighbours(np.zeros((total, 0), np.int32), np.zeros((total, 0), np.float32))
    _use_cores(total)
    everyone = np.arange(total)
    # One more than asked for: a row finds itself, and is taken out below.
    best = faiss.ResultHeap(total, count + 1, keep_max=True)
    whole = [everyone], [everyone]
    cells, askers = _cells(vectors, count + 1) if total > EXACT_UP_TO else whole
    work, done = _work(cells, askers), 0
    if work > _WORTH_IT * total * total:
        # Vectors without clusters: many small products would take longer than the one large one.
        (cells, askers), work = whole, total * total
    for cell, asking in zip(cells, askers, strict=True):
        inside = np.ascontiguousarray(vectors[cell])
        for start in range(0, len(asking), _BLOCK):
            these = asking[start : start + _BLOCK]
            _search(best, these, vectors[these], cell, inside)
            done += len(these) * len(cell)
            progress(done / work)
    best.finalize()
    rows, products = best.I, best.D
    # Cells of few rows may hold too few; those rows are compared with all.
    lacking = np.flatnonzero(rows[:, -1] < 0)
    if len(lacking):
        products[lacking], rows[lacking] = faiss.knn(vectors[lacking], vectors, count + 1, faiss.METRIC_INNER_PRODUCT)
    itself = rows == everyone[:, None]
    # Among many equal rows it may not be there; then the last goes.
    itself[:, -1] |= ~itself.any(axis=1)
    rows, products = rows[~itself].reshape(total, count), products[~itself].reshape(total, count)
    return _measured(vectors, vectors, rows, products)


def nearest(matrix: Vectors, queries: Vectors, count: int) -> Neighbours:
    """The `count` nearest of each of (M, D) unit vectors among the (N, D) rows of `matrix`, or all N; exact.

    `matrix` may be mapped from a file. Each query is asked alone: FAISS computes many at once in another order, and
    the last digits of an answer would depend on who else asked.
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
    return _measured(queries, matrix, rows, products)


def _use_cores(rows: int) -> None:
    """All, of this thread; one for few rows: several would wait for each other, busily, longer than they compute."""
    faiss.omp_set_num_threads(1 if rows < 2000 else os.cpu_count() or 1)


def _cells(vectors: Vectors, count: int) -> tuple[list[Rows], list[Rows]]:
    """The rows in each cell, and the rows that look into it.

    How many cells a row looks into is measured: a sample's true neighbours say how far away their cells are.
    """
    cells = math.isqrt(len(vectors)) // 4  # few and large: a large product is computed faster than small ones
    settings = {"niter": 8, "min_points_per_centroid": 1, "max_points_per_centroid": 64, "spherical": True, "seed": 1}
    kmeans = faiss.Kmeans(vectors.shape[1], cells, **settings)
    kmeans.train(vectors)
    home = kmeans.index.search(vectors, 1)[1][:, 0]
    sample = np.random.default_rng(1).permutation(len(vectors))[:_SAMPLE]
    true = faiss.knn(vectors[sample], vectors, count, faiss.METRIC_INNER_PRODUCT)[1]
    nearest_cells = kmeans.index.search(vectors[sample], cells)[1]
    place = np.argsort(nearest_cells, axis=1)  # of each cell in that order
    probes = 1 + int(np.quantile(np.take_along_axis(place, home[true], axis=1), _RECALL, method="higher"))
    visited = kmeans.index.search(vectors, probes)[1]
    return _grouped(home, cells), [rows // probes for rows in _grouped(visited.ravel(), cells)]


def _work(cells: list[Rows], askers: list[Rows]) -> int:
    """How many products that is."""
    return sum(len(cell) * len(asking) for cell, asking in zip(cells, askers, strict=True))


def _grouped(labels: Rows, count: int) -> list[Rows]:
    """The places of each label from 0 to `count` - 1."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))


def _search(best: faiss.ResultHeap, asking: Rows, queries: Vectors, cell: Rows, rows: Vectors) -> None:
    """Give `best` what the queries find in one cell."""
    if not len(rows):
        return
    products, places = faiss.knn(queries, rows, min(best.k, len(rows)), faiss.METRIC_INNER_PRODUCT)
    best.add_result_subset(asking, products, cell[places])


def _measured(queries: Vectors, matrix: Vectors, rows: Rows, products: Vectors) -> Neighbours:
    """With distances, nearest first, equally near in the order of their rows."""
    distances = np.sqrt(np.maximum(2 - 2 * products, 0))
    # A product near 1 says little of a small distance: single precision has lost it.
    asking, place = np.nonzero(products > _CLOSE)
    for start in range(0, len(asking), _BLOCK):
        a, p = asking[start : start + _BLOCK], place[start : start + _BLOCK]
        distances[a, p] = np.linalg.norm(queries[a] - matrix[rows[a, p]], axis=1)
    order = np.lexsort((rows, distances), axis=1)
    return Neighbours(
        np.take_along_axis(rows, order, axis=1).astype(np.int32), np.take_along_axis(distances, order, axis=1)
    )
