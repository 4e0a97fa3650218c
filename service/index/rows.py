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
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.models import EVERY_CATEGORY, Categories, Entries, Flags, Keys, Vectors
from service.vectors import Moments

Rows = npt.NDArray[np.int64]
"""(N,) int64: row numbers of one index."""

_Number = TypeVar("_Number", bound=np.generic)

_MASKS = 16
_DEAD_SHARE = 0.25
_DEAD_ANYWAY = 1000


@dataclass(frozen=True, slots=True)
class Layout:
    """Content of a row: [v ; t ; flag] if `captions`, otherwise v.

    v is the visual vector and t the text vector, each of `dimension` numbers. The flag is 1 if the caption is missing.
    """

    dimension: int
    captions: bool

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return 2 * self.dimension + 1 if self.captions else self.dimension

    def join(self, pictures: Vectors, captions: Vectors | None, captioned: Flags) -> Vectors:
        """Return rows, (N, width) float32, of visual vectors, text vectors and whether each caption exists."""
        if not self.captions:
            return np.ascontiguousarray(pictures, dtype=np.float32)
        assert captions is not None
        return np.concatenate([pictures, captions, ~captioned[:, None]], axis=1, dtype=np.float32)

    def split(self, rows: Vectors) -> tuple[Vectors, Vectors, Flags]:
        """Split rows into visual vectors (N, D), text vectors (N, D) and whether each caption exists (N,).

        In a layout without captions, the text vectors are zero and no caption exists.
        """
        if not self.captions:
            return rows, np.zeros_like(rows), np.zeros(len(rows), dtype=np.bool_)
        return rows[:, : self.dimension], rows[:, self.dimension : -1], rows[:, -1] == 0


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

    def search(self, query: Vectors, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Vectors]:
        """Return the numbers of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Only rows whose category is in `where` count; if there are fewer, fewer are
        returned.
        """

    def keys(self, rows: Rows) -> Keys:
        """Return the video primary key of each row."""

    def get(self, rows: Rows) -> Vectors:
        """Return the rows as (N, width) float32, bit by bit as they were added."""

    def rows_of(self, keys: Keys) -> Rows:
        """Return the numbers of the rows of these videos."""

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows of <picture, v>, and the same of <caption, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0.
        """

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
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
        self._keys: _Column[np.int64] = _Column(np.int64)
        self._categories: _Column[np.int32] = _Column(np.int32)
        self._alive: _Column[np.bool_] = _Column(np.bool_)
        self._names: dict[str | None, int] = {}
        self._largest_key = -1
        self._moments = (Moments(layout.dimension), Moments(layout.dimension))
        self._dead = 0
        self._masks: dict[Categories, tuple[Flags, int]] = {}

    def __len__(self) -> int:
        """Return the number of rows that are alive."""
        return self.rows - self._dead

    @property
    def rows(self) -> int:
        """Number of rows, dead rows included."""
        return len(self._keys.values)

    @property
    def stale(self) -> bool:
        """Whether a new index of the same rows would be better, because too many rows are dead."""
        return self._dead > max(_DEAD_ANYWAY, _DEAD_SHARE * self.rows)

    def replace(self, gone: Keys, entries: Entries) -> None:
        """Remove the rows of the videos in `gone`, then add `entries`. The caller must keep searches out meanwhile.

        Primary keys in `gone` that the index does not hold are ignored.
        """
        self._masks.clear()
        self._remove(gone)
        if not len(entries.keys):
            return
        rows = self.layout.join(entries.pictures, entries.captions, entries.captioned)
        categories = [self._names.setdefault(name, len(self._names)) for name in entries.categories]
        start = 0
        while start < len(rows):
            # If a full disk stops the loop, the rows up to here are consistent. The next attempt replaces them again.
            stop = start + self._append(rows[start:])
            self._keys.extend(entries.keys[start:stop])
            self._categories.extend(categories[start:stop])
            self._alive.extend(np.ones(stop - start, dtype=np.bool_))
            self._largest_key = max(self._largest_key, int(entries.keys[start:stop].max()))
            self._count(rows[start:stop], sign=1)
            start = stop

    def search(self, query: Vectors, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Vectors]:
        """Return the numbers of the best `count` rows and their inner products with `query`, best first.

        `query` is (width,) float32. Only rows whose category is in `where` count; if there are fewer, fewer are
        returned.
        """
        allowed, available = self._allowed(where)
        if min(count, available) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return self._search(query, min(count, available), allowed, available)

    def keys(self, rows: Rows) -> Keys:
        """Return the video primary key of each row."""
        return self._keys.values[rows]

    def rows_of(self, keys: Keys) -> Rows:
        """Return the numbers of the rows of these videos that are alive."""
        return np.flatnonzero(np.isin(self._keys.values, keys) & self._alive.values)

    def entries(self, start: int, stop: int) -> Entries:
        """Return the rows from `start` to before `stop` that are alive, as they were added."""
        return self.entries_at(start + np.flatnonzero(self._alive.values[start:stop]))

    def entries_at(self, rows: Rows) -> Entries:
        """Return these rows as they were added."""
        pictures, captions, captioned = self.layout.split(self.get(rows))
        names = list(self._names)
        return Entries(
            self._keys.values[rows],
            pictures,
            captions if self.layout.captions else None,
            captioned,
            tuple(names[code] for code in self._categories.values[rows].tolist()),
        )

    def alive(self) -> Rows:
        """Return the rows that are alive, sorted by video primary key; rows of one video stay in order."""
        rows = np.flatnonzero(self._alive.values)
        return rows[np.argsort(self._keys.values[rows], kind="stable")]

    def some(self, count: int, seed: int = 0) -> Rows:
        """Return at most `count` random rows that are alive, in ascending order."""
        alive = np.flatnonzero(self._alive.values)
        return np.sort(np.random.default_rng(seed).choice(alive, min(count, len(alive)), replace=False))

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard deviation) over all rows that are alive of <picture, v>, and the same of <caption, t>.

        Rows without a caption do not count for the second. Without `deviations`, the standard deviations are 0. The
        values follow from running statistics; no row is read.
        """
        seen, read = self._moments
        return seen.similarity(picture, deviation=deviations), read.similarity(caption, deviation=deviations)

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """Mean of all text vectors, (D,) float64; zero if there is none.

        A missing caption counts as this vector.
        """
        return self._moments[1].mean

    @abstractmethod
    def get(self, rows: Rows) -> Vectors:
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
    def _search(self, query: Vectors, count: int, allowed: Flags | None, available: int, /) -> tuple[Rows, Vectors]:
        """Search as `search` does, among the rows that `allowed`, (rows,) bool, marks. None allows every row.

        `available` is the number of these rows, at least 1.
        """

    def _allowed(self, where: Categories) -> tuple[Flags | None, int]:
        """Return a mask of the rows in `where` that are alive, (rows,) bool or None for every row, and their number."""
        if where == EVERY_CATEGORY and not self._dead:
            return None, self.rows
        known = self._masks.get(where)
        if known is None:
            table = np.array([name in where for name in self._names], dtype=np.bool_)
            mask: Flags = table[self._categories.values] & self._alive.values
            known = mask, int(np.count_nonzero(mask))
            if len(self._masks) >= _MASKS:
                self._masks.clear()
            self._masks[where] = known  # until the next change: for a million rows, a mask takes a millisecond
        return known

    def _remove(self, gone: Keys) -> None:
        known = gone[gone <= self._largest_key]  # primary keys ascend: a new video has no row yet
        if not len(known):
            return
        keys = self._keys.values
        found = keys == known[0] if len(known) == 1 else np.isin(keys, known)
        rows = np.flatnonzero(found & self._alive.values)
        if len(rows):
            self._count(self.get(rows), sign=-1)
            self._alive.values[rows] = False
            self._dead += len(rows)

    def _count(self, rows: Vectors, *, sign: int) -> None:
        pictures, captions, captioned = self.layout.split(rows)
        self._moments[0].add(pictures, sign)
        if self.layout.captions:
            self._moments[1].add(captions[captioned], sign)

    def _table(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "keys": self._keys.values,
            "categories": self._categories.values,
            "alive": self._alive.values,
        }
        for name, moments in zip(("pictures", "captions"), self._moments, strict=True):
            arrays.update({f"{name}_{part}": value for part, value in moments.state().items()})
        return {name: array.copy() for name, array in arrays.items()}

    def _load_table(self, path: Path, names: list[str | None]) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._keys.extend(arrays["keys"])
            self._categories.extend(arrays["categories"])
            self._alive.extend(arrays["alive"])
            self._moments = (
                Moments.of({part: arrays[f"pictures_{part}"] for part in Moments.PARTS}),
                Moments.of({part: arrays[f"captions_{part}"] for part in Moments.PARTS}),
            )
        self._names = {name: code for code, name in enumerate(names)}
        self._largest_key = int(self._keys.values.max(initial=-1))
        self._dead = int(np.count_nonzero(~self._alive.values))


class _Column(Generic[_Number]):
    """Array that grows at its end."""

    def __init__(self, kind: type[_Number]) -> None:
        self._data = np.zeros(1024, dtype=kind)
        self._count = 0

    @property
    def values(self) -> npt.NDArray[_Number]:
        """View of the values, (N,). Writing to the view changes the column."""
        return self._data[: self._count]

    def extend(self, more: npt.ArrayLike) -> None:
        """Append values."""
        new = np.asarray(more, dtype=self._data.dtype)
        needed = self._count + len(new)
        if needed > len(self._data):
            larger = np.zeros(max(needed, len(self._data) * 5 // 4), dtype=self._data.dtype)
            larger[: self._count] = self.values
            self._data = larger
        self._data[self._count : needed] = new
        self._count = needed
