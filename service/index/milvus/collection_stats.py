"""Running statistics of a collection.

The statistics are updated with each batch, because reading the whole collection would take too long.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from service.index.layout import Layout
from service.models import Entries
from service.vectors import VectorStats


class CollectionStats:
    """Row count, largest video primary key, and the statistics of all visual and all text vectors.

    The statistics are exact under adding and removing rows. See `VectorStats`.
    """

    def __init__(self, layout: Layout) -> None:
        self.count = 0
        self.largest = -1
        self.statistics = (VectorStats(layout.dimension), VectorStats(layout.dimension))

    def add(self, entries: Entries, sign: int) -> None:
        """Add rows to the statistics; remove them if `sign` is -1."""
        self.count += sign * len(entries.video_pks)
        self.largest = max(self.largest, int(entries.video_pks.max(initial=-1)))
        self.statistics[0].add(entries.visual, sign)
        if entries.text is not None:
            self.statistics[1].add(entries.text[entries.has_text], sign)

    def pack(self) -> bytes:
        """Serialise the statistics of the vectors for the database, in NumPy's npz format."""
        file = io.BytesIO()
        parts = [moments.state() for moments in self.statistics]
        arrays: dict[str, Any] = {
            f"{n}_{name}": _upper_triangle(value) for n, one in enumerate(parts) for name, value in one.items()
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_row(cls, layout: Layout, row: sa.Row[Any]) -> CollectionStats:
        """Read the statistics from a row of the `collections` table."""
        made = cls(layout)
        made.count, made.largest = row.size, row.largest
        with np.load(io.BytesIO(row.moments), allow_pickle=False) as arrays:
            first, second = (
                VectorStats.from_state(
                    {name: _symmetric(arrays[f"{n}_{name}"], name, layout.dimension) for name in VectorStats.PARTS}
                )
                for n in (0, 1)
            )
        made.statistics = first, second
        return made


def _upper_triangle(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the upper triangle of a symmetric matrix, such as second moments; other arrays unchanged."""
    return value[np.triu_indices(len(value))] if value.ndim == 2 else value


def _symmetric(value: npt.NDArray[Any], name: str, dimension: int) -> npt.NDArray[Any]:
    if name != "outer":
        return value
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = value
    return np.asarray(square + np.triu(square, 1).T)
