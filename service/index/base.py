"""Base class of all FAISS indexes: row numbers and owners, rows that are alive, categories, running statistics.

Rows are numbered in the order in which they are added and never move. If a video changes or is deleted, its row stays
behind as a dead row; new rows are appended. The files of a snapshot therefore never change, and a search needs no
lock against anything but an append. If too many rows are dead, a new index is built beside the old one (`sync.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from service.index.column import Column
from service.index.layout import Layout, RowNumbers
from service.models import EVERY_CATEGORY, CategoryFilter, Entries, Flags, Vectors, VideoPks
from service.vectors import VectorStats

_MASK_CACHE_SIZE = 16
_MAX_DEAD_SHARE = 0.25
_ALLOWED_DEAD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class SavedFile:
    """File of a snapshot: its first `size_bytes` bytes and their SHA-256. Later bytes are not part of it."""

    name: str
    size_bytes: int
    sha256: str


Writer = Callable[[Path], tuple[dict[str, Any], list[SavedFile]]]
"""Write a frozen index into a folder. Return the state for `Index.load`, as JSON can hold it, and the files."""


class Searchable(Protocol):
    """Operations that a search needs, whichever engine holds the vectors.

    A row is one vector of the index. Its number has no meaning outside of this index.
    """

    layout: Layout
    kind: str
    exact: bool

    def __len__(self) -> int:
        """Return the number of rows."""

    def search(self, query: Vectors, count: int, where: CategoryFilter = EVERY_CATEGORY) -> tuple[RowNumbers, Vectors]:
        """Return the numbers of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Only rows whose category is in `where` count; if there are fewer, fewer are
        returned.
        """

    def video_pks(self, rows: RowNumbers) -> VideoPks:
        """Return the video primary key of each row."""

    def get(self, rows: RowNumbers) -> Vectors:
        """Return the rows as (N, width) float32, bit by bit as they were added."""

    def rows_of(self, video_pks: VideoPks) -> RowNumbers:
        """Return the numbers of the rows of these videos."""

    def similarity(
        self, visual: npt.NDArray[np.floating], text: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows of <visual, v>, and the same of <text, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0.
        """

    @property
    def mean_text(self) -> npt.NDArray[np.float64]:
        """Mean of all text vectors, (D,) float64."""


class Index(ABC):
    """Rows of vectors, searched by inner product.

    Not thread-safe: no search may run while `replace` runs. `SyncedIndex` ensures this.
    """

    kind: str
    exact: bool
    serving = False
    """Whether searches use this index now. Then new rows must be accepted even if the disk is full."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._video_pks: Column[np.int64] = Column(np.int64)
        self._categories: Column[np.int32] = Column(np.int32)
        self._alive: Column[np.bool_] = Column(np.bool_)
        self._category_codes: dict[str | None, int] = {}
        self._largest_pk = -1
        self._statistics = (VectorStats(layout.dimension), VectorStats(layout.dimension))
        self._dead = 0
        self._masks: dict[CategoryFilter, tuple[Flags, int]] = {}

    def __len__(self) -> int:
        """Return the number of rows that are alive."""
        return self.rows - self._dead

    @property
    def rows(self) -> int:
        """Number of rows, dead rows included."""
        return len(self._video_pks.values)

    @property
    def stale(self) -> bool:
        """Whether a new index of the same rows would be better, because too many rows are dead."""
        return self._dead > max(_ALLOWED_DEAD_ROWS, _MAX_DEAD_SHARE * self.rows)

    def replace(self, removed_pks: VideoPks, entries: Entries) -> None:
        """Remove the rows of the videos `removed_pks`, then add `entries`. The caller must keep searches out meanwhile.

        Primary keys that the index does not hold are ignored.
        """
        self._masks.clear()
        self._remove(removed_pks)
        if not len(entries.video_pks):
            return
        rows = self.layout.join(entries.visual, entries.text, entries.has_text)
        categories = [self._category_codes.setdefault(name, len(self._category_codes)) for name in entries.categories]
        start = 0
        while start < len(rows):
            # If a full disk stops the loop, the rows up to here are consistent. The next attempt replaces them again.
            stop = start + self._append(rows[start:])
            self._video_pks.extend(entries.video_pks[start:stop])
            self._categories.extend(categories[start:stop])
            self._alive.extend(np.ones(stop - start, dtype=np.bool_))
            self._largest_pk = max(self._largest_pk, int(entries.video_pks[start:stop].max()))
            self._count(rows[start:stop], sign=1)
            start = stop

    def search(self, query: Vectors, count: int, where: CategoryFilter = EVERY_CATEGORY) -> tuple[RowNumbers, Vectors]:
        """Return the numbers of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Only rows whose category is in `where` count; if there are fewer, fewer are
        returned.
        """
        allowed, available = self._allowed(where)
        if min(count, available) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return self._search(query, min(count, available), allowed, available)

    def video_pks(self, rows: RowNumbers) -> VideoPks:
        """Return the video primary key of each row."""
        return self._video_pks.values[rows]

    def rows_of(self, video_pks: VideoPks) -> RowNumbers:
        """Return the numbers of the rows of these videos that are alive."""
        return np.flatnonzero(np.isin(self._video_pks.values, video_pks) & self._alive.values)

    def entries(self, start: int, stop: int) -> Entries:
        """Return the rows from `start` to before `stop` that are alive, as they were added."""
        return self.entries_at(start + np.flatnonzero(self._alive.values[start:stop]))

    def entries_at(self, rows: RowNumbers) -> Entries:
        """Return these rows as they were added."""
        visual, text, has_text = self.layout.split(self.get(rows))
        names = list(self._category_codes)
        return Entries(
            self._video_pks.values[rows],
            visual,
            text if self.layout.has_text else None,
            has_text,
            tuple(names[code] for code in self._categories.values[rows].tolist()),
        )

    def alive(self) -> RowNumbers:
        """Return the rows that are alive, sorted by video primary key; rows of one video stay in order."""
        rows = np.flatnonzero(self._alive.values)
        return rows[np.argsort(self._video_pks.values[rows], kind="stable")]

    def sample_rows(self, count: int, seed: int = 0) -> RowNumbers:
        """Return at most `count` random rows that are alive, in ascending order."""
        alive = np.flatnonzero(self._alive.values)
        return np.sort(np.random.default_rng(seed).choice(alive, min(count, len(alive)), replace=False))

    def similarity(
        self, visual: npt.NDArray[np.floating], text: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows that are alive of <visual, v>, and the same of <text, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0. The
        values follow from running statistics; no row is read.
        """
        visual_stats, text_stats = self._statistics
        return visual_stats.similarity(visual, deviation=deviations), text_stats.similarity(text, deviation=deviations)

    @property
    def mean_text(self) -> npt.NDArray[np.float64]:
        """Mean of all text vectors, (D,) float64; zero if there is none.

        A missing caption counts as this vector.
        """
        return self._statistics[1].mean

    @abstractmethod
    def get(self, rows: RowNumbers) -> Vectors:
        """Return the rows as (N, width) float32, bit by bit as they were added."""

    @abstractmethod
    def freeze(self) -> Writer:
        """Capture the index as it is now, and return a function that writes this state to a folder.

        The function may run later, while the index changes. It syncs the files, and returns the state for `load`, as
        JSON can hold it, and the files.
        """

    @classmethod
    @abstractmethod
    def load(cls, layout: Layout, folder: Path, state: dict[str, Any]) -> Index:
        """Read what a `Writer` wrote. Raises ValueError, KeyError or OSError for anything else."""

    @abstractmethod
    def close(self) -> None:
        """Close the files of the index. The index cannot be used afterwards."""

    @abstractmethod
    def _append(self, rows: Vectors) -> int:
        """Append rows, (N, width) float32, behind the last, and return how many were accepted, at least one.

        The accepted rows are appended together or, if an error is raised, not at all.
        """

    @abstractmethod
    def _search(
        self, query: Vectors, count: int, allowed: Flags | None, available: int, /
    ) -> tuple[RowNumbers, Vectors]:
        """Search as `search` does, among the rows that `allowed`, (rows,) bool, marks. None allows every row.

        `available` is the number of these rows, at least 1.
        """

    def _allowed(self, where: CategoryFilter) -> tuple[Flags | None, int]:
        """Return a mask of the rows in `where` that are alive, (rows,) bool or None for every row, and their number."""
        if where == EVERY_CATEGORY and not self._dead:
            return None, self.rows
        known = self._masks.get(where)
        if known is None:
            table = np.array([name in where for name in self._category_codes], dtype=np.bool_)
            mask: Flags = table[self._categories.values] & self._alive.values
            known = mask, int(np.count_nonzero(mask))
            if len(self._masks) >= _MASK_CACHE_SIZE:
                self._masks.clear()
            self._masks[where] = known  # until the next change: for a million rows, a mask takes a millisecond
        return known

    def _remove(self, removed_pks: VideoPks) -> None:
        known = removed_pks[removed_pks <= self._largest_pk]  # primary keys ascend: a new video has no row yet
        if not len(known):
            return
        video_pks = self._video_pks.values
        found = video_pks == known[0] if len(known) == 1 else np.isin(video_pks, known)
        rows = np.flatnonzero(found & self._alive.values)
        if len(rows):
            self._count(self.get(rows), sign=-1)
            self._alive.values[rows] = False
            self._dead += len(rows)

    def _count(self, rows: Vectors, *, sign: int) -> None:
        visual, text, has_text = self.layout.split(rows)
        self._statistics[0].add(visual, sign)
        if self.layout.has_text:
            self._statistics[1].add(text[has_text], sign)

    def _table(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "keys": self._video_pks.values,
            "categories": self._categories.values,
            "alive": self._alive.values,
        }
        for name, moments in zip(("pictures", "captions"), self._statistics, strict=True):
            arrays.update({f"{name}_{part}": value for part, value in moments.state().items()})
        return {name: array.copy() for name, array in arrays.items()}

    def _load_table(self, path: Path, names: list[str | None]) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._video_pks.extend(arrays["keys"])
            self._categories.extend(arrays["categories"])
            self._alive.extend(arrays["alive"])
            self._statistics = (
                VectorStats.from_state({part: arrays[f"pictures_{part}"] for part in VectorStats.PARTS}),
                VectorStats.from_state({part: arrays[f"captions_{part}"] for part in VectorStats.PARTS}),
            )
        self._category_codes = {name: code for code, name in enumerate(names)}
        self._largest_pk = int(self._video_pks.values.max(initial=-1))
        self._dead = int(np.count_nonzero(~self._alive.values))
