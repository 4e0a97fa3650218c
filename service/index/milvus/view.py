"""View of a Milvus collection for one search."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from service.database import vector_rows
from service.index.milvus.batch import FRAMES
from service.index.milvus.collections import MOST
from service.index.milvus.running_stats import RunningStats
from service.index.rows import Layout, Rows
from service.models import EVERY_CATEGORY, Categories, Generation, Keys, Kind
from service.models import Vectors as Matrix


class Source(Protocol):
    """Operations of `MilvusIndex` that a view needs."""

    kind: Kind

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Return the ids of the best `count` rows and their inner products, best first."""

    def tally(self, connection: sa.Connection, row: sa.Row[Any]) -> RunningStats:
        """Return the running statistics of this state of the collection."""


class View:
    """Collection in one state of the database. Implements `Searchable` (`index/rows.py`).

    Milvus finds the rows; their vectors and statistics come from the database, in the snapshot of `connection`.
    """

    def __init__(self, follower: Source, row: sa.Row[Any], connection: sa.Connection) -> None:
        self.name: str = row.name
        self.kind = f"milvus {row.index_type.lower()}"
        self.exact: bool = row.index_type == "FLAT"
        self.layout = Layout(follower.generation.dimension, captions=follower.kind != "frame")
        self._follower = follower
        self._row = row
        self._connection = connection
        self._vectors: dict[int, Matrix] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._row.size)

    def search(self, query: Matrix, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Matrix]:
        """Return the ids of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Fewer rows are returned if there are fewer in `where`, and never more than 16,384,
        Milvus's limit.
        """
        if where.include == frozenset():
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        asked = count
        while True:
            rows, products = self._follower.find(self._row, query, min(asked, MOST), where)
            if not self.layout.captions:
                return rows, products
            self._read(rows)
            known = np.array([row in self._vectors for row in rows.tolist()], dtype=np.bool_)
            if len(rows) < asked or known.sum() >= count:
                return rows[known][:count], products[known][:count]
            asked += count  # some rows are newer than the snapshot of this search

    def keys(self, rows: Rows) -> Keys:
        """Return the video primary key of each row."""
        return rows if self.layout.captions else rows // FRAMES

    def get(self, rows: Rows) -> Matrix:
        """Return the rows as (N, width) float32, as they are in the database."""
        found = [self._vectors[row] for row in rows.tolist()]
        return np.stack(found) if found else np.zeros((0, self.layout.width), dtype=np.float32)

    def rows_of(self, keys: Keys) -> Rows:
        """Return the ids of the rows of these videos, if they have one in the database."""
        self._read(keys)
        return np.array([key for key in keys.tolist() if key in self._vectors], dtype=np.int64)

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows of <picture, v>, and the same of <caption, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0.
        """
        seen, read = self._follower.tally(self._connection, self._row).moments
        return seen.similarity(picture, deviation=deviations), read.similarity(caption, deviation=deviations)

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """Mean of all text vectors, (D,) float64; zero if there is none.

        A missing caption counts as this vector.
        """
        return self._follower.tally(self._connection, self._row).moments[1].mean

    def _read(self, rows: Rows) -> None:
        new = [row for row in rows.tolist() if row not in self._vectors]
        entries = vector_rows.searchable(self._connection, new, self._follower.generation, self._follower.kind)
        whole = self.layout.join(entries.pictures, entries.captions, entries.captioned)
        self._vectors.update(zip(entries.keys.tolist(), whole, strict=True))
