"""Vector compression for the compressed index: product quantisation codes and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
import numpy.typing as npt

from service.index.layout import Layout
from service.models import Vectors

_GROUP = 4  # numbers per 4-bit code


@dataclass(frozen=True, slots=True)
class Codec:
    """Compress rows in two ways: into 4-bit product quantisation codes and into one byte per number.

    `quantiser` is a trained, empty FAISS index. `trained_for` is the number of rows that the codec was trained for.
    `low` and `step`, (width,) float32, define the bytes: number = low + step * byte.
    """

    quantiser: Any
    low: Vectors
    step: Vectors
    trained_for: int

    @classmethod
    def train(cls, layout: Layout, sample: Vectors, rows: int) -> Codec:
        """Fit a codec to `sample`, (N, width) float32, for an index of about `rows` rows.

        Per dimension, the bytes cover the range of the sample and 5 % more on each side.
        """
        low, high = sample.min(axis=0), sample.max(axis=0)
        room = 0.05 * (high - low)
        low, step = low - room, (high - low + 2 * room) / 255
        step[step == 0] = 1
        if layout.has_text:
            low[-1], step[-1] = 0, 1 / 255  # the flag, 0 or 1, is stored exactly
        width = -(-layout.width // _GROUP) * _GROUP
        # One cell, so no row is missed. IVFPQ is used because its FastScan (codes in registers) accepts a row filter.
        quantiser = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatIP(width), width, 1, width // _GROUP, 4, faiss.METRIC_INNER_PRODUCT
        )
        quantiser.cp.min_points_per_centroid = quantiser.pq.cp.min_points_per_centroid = 1  # avoids a warning
        made = cls(quantiser, low, step, max(rows, len(sample)))
        quantiser.train(made.pad(sample))
        return made

    def pad(self, rows: Vectors) -> Vectors:
        """Append zero columns to (N, width) float32 rows until the width is a multiple of the group, 4."""
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % _GROUP))).astype(np.float32, copy=False)

    def quantise(self, rows: Vectors) -> npt.NDArray[np.uint8]:
        """Quantise rows to (N, width) uint8, clipped to the range of the bytes."""
        scaled: Vectors = np.rint((rows - self.low) / self.step)
        return scaled.clip(0, 255).astype(np.uint8)

    def byte_weights(self, query: Vectors) -> tuple[Vectors, float]:
        """Return (`byte_weights`, `constant`) such that bytes @ weights + constant estimates <query, row>.

        `query` may be padded. `byte_weights` has shape (width,).
        """
        query = query[: len(self.low)]
        return query * self.step, float(query @ self.low)

    def write(self, file: IO[bytes]) -> None:
        """Write the codec to an open binary file, in NumPy's npz format."""
        quantiser = faiss.serialize_index(self.quantiser)
        np.savez(file, quantiser=quantiser, low=self.low, step=self.step, rows=self.trained_for)

    @classmethod
    def load(cls, path: Path) -> Codec:
        """Read a codec that `write` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            quantiser = faiss.deserialize_index(arrays["quantiser"])
            return cls(quantiser, arrays["low"], arrays["step"], int(arrays["rows"]))
