"""A collection as a search sees it."""

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
    """What a view needs of the follower that gave it."""

    kind: Kind

    @property
    def generation(self) -> Generation:
        """Whose vectors these are."""

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Row numbers and inner products of the best `count`, best first."""

    def tally(self, connection: sa.Connection, row: sa.Row[Any]) -> RunningStats:
        """Statistics of that state of the collection."""


class View:
    """A collection in one state of the database, as a search wants it (`index/rows.py`: Searchable)."""

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
        """Number of rows."""
        return int(self._row.size)

    def search(self, query: Matrix, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Matrix]:
        """Rows and inner products with `query` (width,) of the best `count`, best first; fewer where there are fewer,
        and never more than Milvus gives, 16,384."""
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
            asked += count  # some of them came after the snapshot of this answer

    def keys(self, rows: Rows) -> Keys:
        """Whose these rows are."""
        return rows if self.layout.captions else rows // FRAMES

    def get(self, rows: Rows) -> Matrix:
        """(N, width) the rows, as the database has them."""
        found = [self._vectors[row] for row in rows.tolist()]
        return np.stack(found) if found else np.zeros((0, self.layout.width), dtype=np.float32)

    def rows_of(self, keys: Keys) -> Rows:
        """The rows of these videos that are there."""
        self._read(keys)
        return np.array([key for key in keys.tolist() if key in self._vectors], dtype=np.int64)

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation, over all that is there, of <picture, v> and of <caption, t>; without
        `deviations` they are 0."""
        seen, read = self._follower.tally(self._connection, self._row).moments
        return seen.similarity(picture, deviation=deviations), read.similarity(caption, deviation=deviations)

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """(D,) the mean of all captions, what a missing one counts as; zero where there is none."""
        return self._follower.tally(self._connection, self._row).moments[1].mean

    def _read(self, rows: Rows) -> None:
        new = [row for row in rows.tolist() if row not in self._vectors]
        entries = vector_rows.searchable(self._connection, new, self._follower.generation, self._follower.kind)
        whole = self.layout.join(entries.pictures, entries.captions, entries.captioned)
        self._vectors.update(zip(entries.keys.tolist(), whole, strict=True))
