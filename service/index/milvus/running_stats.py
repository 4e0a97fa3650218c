"""Statistics of what a collection holds, kept up with what comes and goes, for it is not asked for all of it."""

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
    """What is to be known of all rows at once."""

    def __init__(self, layout: Layout) -> None:
        self.count = 0
        self.largest = -1
        self.moments = (Moments(layout.dimension), Moments(layout.dimension))

    def add(self, entries: Entries, sign: int) -> None:
        """Count rows in, or with `sign` -1 out."""
        self.count += sign * len(entries.keys)
        self.largest = max(self.largest, int(entries.keys.max(initial=-1)))
        self.moments[0].add(entries.pictures, sign)
        if entries.captions is not None:
            self.moments[1].add(entries.captions[entries.captioned], sign)

    def pack(self) -> bytes:
        """The moments, for the database."""
        file = io.BytesIO()
        parts = [moments.state() for moments in self.moments]
        arrays: dict[str, Any] = {
            f"{n}_{name}": _half(value) for n, one in enumerate(parts) for name, value in one.items()
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def of(cls, layout: Layout, row: sa.Row[Any]) -> RunningStats:
        """What was written down."""
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
    """Of a symmetric matrix, which second moments are, one half will do."""
    return value[np.triu_indices(len(value))] if value.ndim == 2 else value


def _whole(value: npt.NDArray[Any], name: str, dimension: int) -> npt.NDArray[Any]:
    if name != "outer":
        return value
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = value
    return np.asarray(square + np.triu(square, 1).T)
