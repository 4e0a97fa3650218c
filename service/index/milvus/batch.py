"""Batches of rows for a collection, and the numbering of frame rows."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np

from service.index.rows import Layout, Rows
from service.models import Entries, Keys, Kind
from service.models import Vectors as Matrix

BATCH = 1024  # videos in a batch, and rows in a request
FRAMES = 1 << 16  # id of a frame's row: video primary key * FRAMES + frame number


@dataclass
class Batch:
    """Rows to upsert, and ids of rows to delete.

    Attributes:
        ids: Row ids, (N,) int64.
        keys: Video primary keys, (N,) int64.
        rows: Vectors, (N, width) float32.
        categories: N names; None for a video without a category.
        gone: Ids of the rows to delete, (M,) int64.
    """

    ids: Rows
    keys: Keys
    rows: Matrix
    categories: list[str | None]
    gone: Rows

    @classmethod
    def from_entries(cls, layout: Layout, kind: Kind, entries: Entries) -> Batch:
        """Create a batch that upserts these entries and deletes nothing."""
        ids = entries.keys
        if kind == "frame":
            starts = np.r_[True, entries.keys[1:] != entries.keys[:-1]] if len(ids) else np.zeros(0, dtype=np.bool_)
            places = np.arange(len(ids))
            ids = ids * FRAMES + places - np.maximum.accumulate(np.where(starts, places, 0))
        rows = layout.join(entries.pictures, entries.captions, entries.captioned)
        return cls(ids, entries.keys, rows, list(entries.categories), np.zeros(0, dtype=np.int64))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to upsert and nothing to delete."""
        return not len(self.ids) and not len(self.gone)

    def pack(self) -> bytes:
        """Serialise the batch for the database, in NumPy's npz format."""
        file = io.BytesIO()
        names = np.frombuffer(json.dumps(self.categories).encode(), dtype=np.uint8)
        np.savez(file, ids=self.ids, keys=self.keys, rows=self.rows, categories=names, gone=self.gone)
        return file.getvalue()

    @classmethod
    def of(cls, data: bytes) -> Batch:
        """Read a batch that `pack` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = json.loads(arrays["categories"].tobytes())
            return cls(arrays["ids"], arrays["keys"], arrays["rows"], names, arrays["gone"])


def video_of(kind: Kind, row: int) -> int:
    """Return the primary key of the video that a row id belongs to."""
    return row // FRAMES if kind == "frame" else row
