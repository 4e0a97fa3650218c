"""Codes of vectors: what the scan of the compressed index reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
import numpy.typing as npt

from service.index.rows import Layout
from service.models import Vectors

_GROUP = 4  # numbers to a code of 4 bits


@dataclass(frozen=True, slots=True)
class Codec:
    """How rows become codes. `low` and `step` (width,) are of the bytes: number = low + step x byte."""

    quantiser: Any
    low: Vectors
    step: Vectors
    trained_for: int

    @classmethod
    def train(cls, layout: Layout, sample: Vectors, rows: int) -> Codec:
        low, high = sample.min(axis=0), sample.max(axis=0)
        room = 0.05 * (high - low)
        low, step = low - room, (high - low + 2 * room) / 255
        step[step == 0] = 1
        if layout.captions:
            low[-1], step[-1] = 0, 1 / 255  # the flag is 0 or 1, exactly
        width = -(-layout.width // _GROUP) * _GROUP
        # One cell: an inverted file in name only, but the one whose scan in registers can leave rows out.
        quantiser = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatIP(width), width, 1, width // _GROUP, 4, faiss.METRIC_INNER_PRODUCT
        )
        quantiser.cp.min_points_per_centroid = quantiser.pq.cp.min_points_per_centroid = 1  # or it warns
        made = cls(quantiser, low, step, max(rows, len(sample)))
        quantiser.train(made.pad(sample))
        return made

    def pad(self, rows: Vectors) -> Vectors:
        """(N, a multiple of the group) with zeros behind."""
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % _GROUP))).astype(np.float32, copy=False)

    def bytes_of(self, rows: Vectors) -> npt.NDArray[np.uint8]:
        """(N, width) uint8."""
        scaled: Vectors = np.rint((rows - self.low) / self.step)
        return scaled.clip(0, 255).astype(np.uint8)

    def weights(self, query: Vectors) -> tuple[Vectors, float]:
        """What to multiply bytes with, and what to add, for the product with the numbers."""
        query = query[: len(self.low)]
        return query * self.step, float(query @ self.low)

    def write(self, file: IO[bytes]) -> None:
        quantiser = faiss.serialize_index(self.quantiser)
        np.savez(file, quantiser=quantiser, low=self.low, step=self.step, rows=self.trained_for)

    @classmethod
    def load(cls, path: Path) -> Codec:
        with np.load(path, allow_pickle=False) as arrays:
            quantiser = faiss.deserialize_index(arrays["quantiser"])
            return cls(quantiser, arrays["low"], arrays["step"], int(arrays["rows"]))
