"""Batches of rows for a collection, and the numbering of frame rows."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np

from service.index.layout import Layout, RowNumbers
from service.models import Entries, Kind, VideoPks
from service.models import Vectors as Matrix

BATCH_SIZE = 1024  # videos in a batch, and rows in a request
FRAME_ID_STRIDE = 1 << 16  # id of a frame's row: video primary key * FRAME_ID_STRIDE + frame number


@dataclass
class Batch:
    """Rows to upsert, and ids of rows to delete.

    Attributes:
        ids: Row ids, (N,) int64.
        video_pks: Video primary keys, (N,) int64.
        rows: Vectors, (N, width) float32.
        categories: N names; None for a video without a category.
        deleted_ids: Ids of the rows to delete, (M,) int64.
    """

    ids: RowNumbers
    video_pks: VideoPks
    rows: Matrix
    categories: list[str | None]
    deleted_ids: RowNumbers

    @classmethod
    def from_entries(cls, layout: Layout, kind: Kind, entries: Entries) -> Batch:
        """Create a batch that upserts these entries and deletes nothing."""
        ids = entries.video_pks
        if kind == "frame":
            starts = np.r_[True, ids[1:] != ids[:-1]] if len(ids) else np.zeros(0, dtype=np.bool_)
            places = np.arange(len(ids))
            ids = ids * FRAME_ID_STRIDE + places - np.maximum.accumulate(np.where(starts, places, 0))
        rows = layout.join(entries.visual, entries.text, entries.has_text)
        return cls(ids, entries.video_pks, rows, list(entries.categories), np.zeros(0, dtype=np.int64))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to upsert and nothing to delete."""
        return not len(self.ids) and not len(self.deleted_ids)

    def pack(self) -> bytes:
        """Serialise the batch for the database, in NumPy's npz format."""
        file = io.BytesIO()
        names = np.frombuffer(json.dumps(self.categories).encode(), dtype=np.uint8)
        np.savez(file, ids=self.ids, keys=self.video_pks, rows=self.rows, categories=names, gone=self.deleted_ids)
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Batch:
        """Read a batch that `pack` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = json.loads(arrays["categories"].tobytes())
            return cls(arrays["ids"], arrays["keys"], arrays["rows"], names, arrays["gone"])


def video_pk_of(kind: Kind, row: int) -> int:
    """Return the primary key of the video that a row id belongs to."""
    return row // FRAME_ID_STRIDE if kind == "frame" else row
