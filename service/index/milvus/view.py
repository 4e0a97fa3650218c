"""View of a Milvus collection for one search."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from service.database import vector_rows
from service.index.layout import Layout, RowNumbers
from service.index.milvus.batch import FRAME_ID_STRIDE
from service.index.milvus.collection_stats import CollectionStats
from service.index.milvus.collections import MAX_RESPONSE_ROWS
from service.models import EVERY_CATEGORY, CategoryFilter, Generation, Kind, VideoPks
from service.models import Vectors as Matrix


class Source(Protocol):
    """Operations of `MilvusIndex` that a view needs."""

    kind: Kind

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""

    def search(self, row: sa.Row[Any], query: Matrix, count: int, where: CategoryFilter) -> tuple[RowNumbers, Matrix]:
        """Return the ids of the best `count` rows and their inner products, best first."""

    def load_stats(self, connection: sa.Connection, row: sa.Row[Any]) -> CollectionStats:
        """Return the running statistics of this state of the collection."""


class View:
    """Collection in one state of the database. Implements `Searchable` (`index/base.py`).

    Milvus finds the rows; their vectors and statistics come from the database, in the snapshot of `connection`.
    """

    def __init__(self, source: Source, row: sa.Row[Any], connection: sa.Connection) -> None:
        self.name: str = row.name
        self.kind = f"milvus {row.index_type.lower()}"
        self.exact: bool = row.index_type == "FLAT"
        self.layout = Layout(source.generation.dimension, has_text=source.kind != "frame")
        self._source = source
        self._row = row
        self._connection = connection
        self._vectors: dict[int, Matrix] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._row.size)

    def search(self, query: Matrix, count: int, where: CategoryFilter = EVERY_CATEGORY) -> tuple[RowNumbers, Matrix]:
        """Return the ids of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Fewer rows are returned if there are fewer in `where`, and never more than 16,384,
        Milvus's limit.
        """
        if where.include == frozenset():
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        requested = count
        while True:
            rows, products = self._source.search(self._row, query, min(requested, MAX_RESPONSE_ROWS), where)
            if not self.layout.has_text:
                return rows, products
            self._fetch(rows)
            known = np.array([row in self._vectors for row in rows.tolist()], dtype=np.bool_)
            if len(rows) < requested or known.sum() >= count:
                return rows[known][:count], products[known][:count]
            requested += count  # some rows are newer than the snapshot of this search

    def video_pks(self, rows: RowNumbers) -> VideoPks:
        """Return the video primary key of each row."""
        return rows if self.layout.has_text else rows // FRAME_ID_STRIDE

    def get(self, rows: RowNumbers) -> Matrix:
        """Return the rows as (N, width) float32, as they are in the database."""
        found = [self._vectors[row] for row in rows.tolist()]
        return np.stack(found) if found else np.zeros((0, self.layout.width), dtype=np.float32)

    def rows_of(self, video_pks: VideoPks) -> RowNumbers:
        """Return the ids of the rows of these videos, if they have one in the database."""
        self._fetch(video_pks)
        return np.array([pk for pk in video_pks.tolist() if pk in self._vectors], dtype=np.int64)

    def similarity(
        self, visual: npt.NDArray[np.floating], text: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows of <visual, v>, and the same of <text, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0.
        """
        visual_stats, text_stats = self._source.load_stats(self._connection, self._row).statistics
        return visual_stats.similarity(visual, deviation=deviations), text_stats.similarity(text, deviation=deviations)

    @property
    def mean_text(self) -> npt.NDArray[np.float64]:
        """Mean of all text vectors, (D,) float64; zero if there is none.

        A missing caption counts as this vector.
        """
        return self._source.load_stats(self._connection, self._row).statistics[1].mean

    def _fetch(self, rows: RowNumbers) -> None:
        new = [row for row in rows.tolist() if row not in self._vectors]
        entries = vector_rows.index_entries(self._connection, new, self._source.generation, self._source.kind)
        whole = self.layout.join(entries.visual, entries.text, entries.has_text)
        self._vectors.update(zip(entries.video_pks.tolist(), whole, strict=True))
