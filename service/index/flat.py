"""Exact index: FAISS compares each query with every vector, uncompressed."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from service.index.base import Index, SavedFile, Writer
from service.index.files import write_all
from service.index.layout import Layout, RowNumbers
from service.models import Flags, Vectors


class FlatIndex(Index):
    """Exact inner products, with and without filters. All in memory: 4 bytes per number."""

    kind = "flat"
    exact = True

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._index: Any = faiss.IndexFlatIP(layout.width)

    def get(self, rows: RowNumbers) -> Vectors:
        """See the base class."""
        return np.asarray(faiss.rev_swig_ptr(self._index.get_xb(), self._index.ntotal * self.layout.width)).reshape(
            -1, self.layout.width
        )[rows]

    def freeze(self) -> Writer:
        """See the base class."""
        vectors, table, names = self.get(np.arange(self.rows)), self._table(), list(self._category_codes)

        def write(folder: Path) -> tuple[dict[str, Any], list[SavedFile]]:
            name = secrets.token_hex(6)
            files = write_all(
                folder,
                {
                    f"{name}.flat": lambda file: file.write(vectors.tobytes()),
                    f"{name}.npz": lambda file: np.savez(file, **table),
                },
            )
            return {"vectors": files[0].name, "table": files[1].name, "names": names}, files

        return write

    @classmethod
    def load(cls, layout: Layout, folder: Path, state: dict[str, Any]) -> FlatIndex:
        """See the base class."""
        loaded = cls(layout)
        loaded._load_table(folder / state["table"], state["names"])
        vectors = np.fromfile(folder / state["vectors"], dtype=np.float32).reshape(-1, layout.width)
        if len(vectors) != loaded.rows:
            raise ValueError(f"the snapshot has {len(vectors)} vectors for {loaded.rows} rows")
        loaded._index.add(vectors)
        return loaded

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _append(self, rows: Vectors) -> int:
        faiss.omp_set_num_threads(1)
        self._index.add(rows)
        return len(rows)

    def _search(self, query: Vectors, count: int, allowed: Flags | None, _available: int) -> tuple[RowNumbers, Vectors]:
        faiss.omp_set_num_threads(1)  # per thread; for one query, more threads would only wait for each other
        parameters = None
        if allowed is not None:
            selector: Any = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[arg-type, call-arg]
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        products, rows = self._index.search(query.reshape(1, -1), count, params=parameters)
        found = rows[0] >= 0
        return rows[0][found], products[0][found]
