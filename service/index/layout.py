"""Content of an index row: visual vector, text vector, and whether the text vector is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.models import Flags, Vectors

RowNumbers = npt.NDArray[np.int64]
"""(N,) int64: row numbers of one index."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Content of a row: [v ; t ; flag] if `has_text`, otherwise v.

    v is the visual vector and t the text vector, each of `dimension` numbers. The flag is 1 if the caption is missing.
    """

    dimension: int
    has_text: bool

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return 2 * self.dimension + 1 if self.has_text else self.dimension

    def join(self, visual: Vectors, text: Vectors | None, has_text: Flags) -> Vectors:
        """Return rows, (N, width) float32, of visual vectors, text vectors and whether each caption exists."""
        if not self.has_text:
            return np.ascontiguousarray(visual, dtype=np.float32)
        assert text is not None
        return np.concatenate([visual, text, ~has_text[:, None]], axis=1, dtype=np.float32)

    def split(self, rows: Vectors) -> tuple[Vectors, Vectors, Flags]:
        """Split rows into visual vectors (N, D), text vectors (N, D) and whether each caption exists (N,).

        In a layout without text vectors, these are zero and no caption exists.
        """
        if not self.has_text:
            return rows, np.zeros_like(rows), np.zeros(len(rows), dtype=np.bool_)
        return rows[:, : self.dimension], rows[:, self.dimension : -1], rows[:, -1] == 0
