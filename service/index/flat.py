"""The exact index: FAISS, every vector as it is, compared with every query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from service.domain import Keys, Vectors
from service.vectors import Moments


class FlatIndex:
    """Exact inner products over [v ; t ; flag]; removals and filters are exact too.

    Not safe to search while it is changed (FAISS crashes): `follower.py` holds the lock.
    """

    exact = True
    kind = "flat"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(2 * dimension + 1))
        self._pictures, self._captions = Moments(dimension), Moments(dimension)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def replace(self, gone: Keys, keys: Keys, pictures: Vectors, captions: Mapping[int, Vectors]) -> None:
        """See the protocol."""
        present = gone[np.isin(gone, self._keys())]
        if len(present):
            self._count(*self.get(present), sign=-1)
            self._index.remove_ids(faiss.IDSelectorBatch(present))
        if not len(keys):
            return
        rows = np.zeros((len(keys), 2 * self.dimension + 1), dtype=np.float32)
        rows[:, : self.dimension] = pictures
        for row, key in zip(rows, keys.tolist(), strict=True):
            caption = captions.get(key)
            if caption is None:
                row[-1] = 1
            else:
                row[self.dimension : -1] = caption
        self._index.add_with_ids(rows, keys)
        self._count(*self._split(rows), sign=1)

    def search(self, query: Vectors, k: int, *, only: Keys | None, without: Keys) -> tuple[Keys, Vectors]:
        """See the protocol."""
        selector: Any = None
        if only is not None:
            only = np.setdiff1d(only, without)
            count = min(k, len(only))
            selector = faiss.IDSelectorBatch(only)
        else:
            count = min(k, len(self))
            if len(without):
                selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(without))
        if count == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        parameters = faiss.SearchParameters(sel=selector) if selector is not None else None  # type: ignore[call-arg]
        products, keys = self._index.search(query.reshape(1, -1), count, params=parameters)
        found = keys[0] >= 0
        return keys[0][found], products[0][found]

    def get(self, keys: Keys) -> tuple[Vectors, Vectors, Vectors]:
        """See the protocol."""
        if not len(keys):
            empty = np.zeros((0, self.dimension), dtype=np.float32)
            return empty, empty, np.zeros(0, dtype=np.float32)
        try:
            return self._split(self._index.reconstruct_batch(keys))
        except RuntimeError as error:
            raise KeyError("a key is not in the index") from error

    def similarity(self, picture: Vectors, caption: Vectors) -> tuple[tuple[float, float], tuple[float, float]]:
        """See the protocol."""
        return self._pictures.similarity(picture), self._captions.similarity(caption)

    def save(self, path: Path) -> None:
        """See the protocol."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, dimension: int) -> FlatIndex:
        """See the protocol."""
        try:
            read = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"not an index: {error}") from error
        if not isinstance(read, faiss.IndexIDMap2) or read.d != 2 * dimension + 1:
            raise ValueError(f"an index of another kind or dimension: {type(read).__name__}, {read.d}")
        loaded = cls(dimension)
        loaded._index = read
        keys = loaded._keys()
        for start in range(0, len(keys), 8192):
            loaded._count(*loaded.get(keys[start : start + 8192]), sign=1)
        return loaded

    def _keys(self) -> Keys:
        return np.asarray(faiss.vector_to_array(self._index.id_map), dtype=np.int64)

    def _split(self, rows: Vectors) -> tuple[Vectors, Vectors, Vectors]:
        return rows[:, : self.dimension], rows[:, self.dimension : -1], rows[:, -1]

    def _count(self, pictures: Vectors, captions: Vectors, flags: Vectors, *, sign: int) -> None:
        self._pictures.add(pictures, sign)
        self._captions.add(captions[flags == 0], sign)
