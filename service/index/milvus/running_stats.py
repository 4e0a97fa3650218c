"""Running statistics of a collection.

The statistics are updated with each batch, because reading the whole collection would take too long.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from service.index.rows import Layout
from service.models import Entries
from service.vectors import Moments


class RunningStats:
    """Row count, largest video primary key, and the statistics of all visual and all text vectors.

    The statistics are exact under adding and removing rows. See `Moments`.
    """

    def __init__(self, layout: Layout) -> None:
        self.count = 0
        self.largest = -1
        self.moments = (Moments(layout.dimension), Moments(layout.dimension))

    def add(self, entries: Entries, sign: int) -> None:
        """Add rows to the statistics; remove them if `sign` is -1."""
        self.count += sign * len(entries.keys)
        self.largest = max(self.largest, int(entries.keys.max(initial=-1)))
        self.moments[0].add(entries.pictures, sign)
        if entries.captions is not None:
            self.moments[1].add(entries.captions[entries.captioned], sign)

    def pack(self) -> bytes:
        """Serialise the statistics of the vectors for the database, in NumPy's npz format."""
        file = io.BytesIO()
        parts = [moments.state() for moments in self.moments]
        arrays: dict[str, Any] = {
            f"{n}_{name}": _half(value) for n, one in enumerate(parts) for name, value in one.items()
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def of(cls, layout: Layout, row: sa.Row[Any]) -> RunningStats:
        """Read the statistics from a row of the `collections` table."""
        made = cls(layout)
        made.count, made.largest = row.size, row.largest
        with np.load(io.BytesIO(row.moments), allow_pickle=False) as arrays:
            first, second = (
                Moments.of({name: _whole(arrays[f"{n}_{name}"], name, layout.dimension) for name in Moments.PARTS})
                for n in (0, 1)
            )
        made.moments = first, second
        return made


def _half(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the upper triangle of a symmetric matrix, such as second moments; other arrays unchanged."""
    return value[np.triu_indices(len(value))] if value.ndim == 2 else value


def _whole(value: npt.NDArray[Any], name: str, dimension: int) -> npt.NDArray[Any]:
    if name != "outer":
        return value
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = value
    return np.asarray(square + np.triu(square, 1).T)
