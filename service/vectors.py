"""Arithmetic on embeddings, and their binary format in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.models import Embeddings, Vectors

_STORAGE_DTYPE = np.dtype("<f4")


def pack(vectors: Vectors) -> bytes:
    """Return vectors as little-endian float32 bytes, row by row; the bytes are the same on every machine."""
    return np.ascontiguousarray(vectors, dtype=_STORAGE_DTYPE).tobytes()


def unpack(data: bytes, dimension: int) -> Vectors:
    """Return the (N, dimension) float32 vectors that `pack` has written.

    Raises ValueError if the length of `data` does not fit the dimension.
    """
    return np.frombuffer(data, dtype=_STORAGE_DTYPE).astype(np.float32).reshape(-1, dimension)


def normalise(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Return float32 vectors scaled to unit length along the last axis.

    A zero vector stays zero, because it is similar to nothing.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    norm = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.where(norm > 0, norm, 1), dtype=np.float32)


def aggregate(frames: Vectors, text: Vectors | None) -> Embeddings:
    """Return all vectors of a video, given its frame vectors (N, D) and its text vector (D,) or None.

    The mean is the usual zero-shot baseline for clips (CLIP4Clip, Luo et al. 2021). The maximum keeps, for each
    dimension, what any single frame shows strongly.
    """
    return Embeddings(
        frames=np.ascontiguousarray(frames, dtype=np.float32),
        mean=normalise(frames.mean(axis=0, dtype=np.float64)),
        max=normalise(frames.max(axis=0)),
        text=text,
    )


class VectorStats:
    """Running statistics of a set of vectors, exact under adding and removing.

    For any query q, the mean and standard deviation of <q, x> over the whole set follow without a scan:
    mean = <q, m>, variance = q' (S / n) q - mean^2, with n vectors, their mean m and the sum S of their outer products.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._sum = np.zeros(dimension, dtype=np.float64)
        self._outer = np.zeros((dimension, dimension), dtype=np.float64)

    def add(self, vectors: Vectors, sign: int = 1) -> None:
        """Add (N, D) vectors to the set; with `sign` -1, remove them."""
        wide = vectors.astype(np.float64)
        self.count += sign * len(wide)
        self._sum += sign * wide.sum(axis=0)
        self._outer += sign * (wide.T @ wide)

    PARTS = ("count", "sum", "outer")
    """Names of the arrays that `state` returns."""

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays from which `from_state` restores these statistics."""
        return {"count": np.array(self.count), "sum": self._sum, "outer": self._outer}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> VectorStats:
        """Restore the statistics from the arrays that `state` returned."""
        made = cls(len(state["sum"]))
        made.count, made._sum, made._outer = int(state["count"]), state["sum"], state["outer"]
        return made

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of the set, (D,) float64; zero if the set is empty."""
        return self._sum / max(self.count, 1)

    def similarity(self, query: npt.NDArray[np.floating], *, deviation: bool = True) -> tuple[float, float]:
        """Return mean and standard deviation of <query, x> over the set; (0, 0) if the set is empty.

        `query` is (D,). Without `deviation` the standard deviation is 0, which saves a product with a (D, D) matrix.
        """
        if self.count == 0:
            return 0.0, 0.0
        wide = query.astype(np.float64)
        mean = float(wide @ self._sum) / self.count
        if not deviation:
            return mean, 0.0
        variance = float(wide @ self._outer @ wide) / self.count - mean * mean
        return mean, float(np.sqrt(max(variance, 0.0)))
