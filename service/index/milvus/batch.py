"""Rows on their way into a collection, and how those of frames are numbered."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np

from service.index.rows import Layout, Rows
from service.models import Entries, Keys, Kind
from service.models import Vectors as Matrix

BATCH = 1024  # videos; of rows, what one message holds
FRAMES = 1 << 16  # ids of frames: the video's key times this, and the frame's number


@dataclass
class Batch:
    """Rows to put in (in place of those with the same id), and ids to take out."""

    ids: Rows
    keys: Keys
    rows: Matrix
    categories: list[str | None]
    gone: Rows

    @classmethod
    def from_entries(cls, layout: Layout, kind: Kind, entries: Entries) -> Batch:
        ids = entries.keys
        if kind == "frame":
            starts = np.r_[True, entries.keys[1:] != entries.keys[:-1]] if len(ids) else np.zeros(0, dtype=np.bool_)
            places = np.arange(len(ids))
            ids = ids * FRAMES + places - np.maximum.accumulate(np.where(starts, places, 0))
        rows = layout.join(entries.pictures, entries.captions, entries.captioned)
        return cls(ids, entries.keys, rows, list(entries.categories), np.zeros(0, dtype=np.int64))

    @property
    def empty(self) -> bool:
        return not len(self.ids) and not len(self.gone)

    def pack(self) -> bytes:
        file = io.BytesIO()
        names = np.frombuffer(json.dumps(self.categories).encode(), dtype=np.uint8)
        np.savez(file, ids=self.ids, keys=self.keys, rows=self.rows, categories=names, gone=self.gone)
        return file.getvalue()

    @classmethod
    def of(cls, data: bytes) -> Batch:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = json.loads(arrays["categories"].tobytes())
            return cls(arrays["ids"], arrays["keys"], arrays["rows"], names, arrays["gone"])


def video_of(kind: Kind, row: int) -> int:
    """The key of the video that a row number is of."""
    return row // FRAMES if kind == "frame" else row
