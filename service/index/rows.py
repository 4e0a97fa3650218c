"""What every engine keeps beside its vectors: whose a row is, whether it is alive, its category, and moments.

Rows are numbered as they come and never move: a video that changes or goes leaves a dead row behind, and what comes
is appended. So a snapshot's files never change, and a search needs no lock against anything but an append. When too
much is dead, a new index is built beside the old one (`sync.py`).
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
"""(N,) int64: numbers of rows in one index."""

_Number = TypeVar("_Number", bound=np.generic)

_MASKS = 16
_DEAD_SHARE = 0.25
_DEAD_ANYWAY = 1000


@dataclass(frozen=True, slots=True)
class Layout:
    """What a row holds: [v ; t ; flag] with captions, v without. `dimension` is that of v and of t."""

    dimension: int
    captions: bool

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return 2 * self.dimension + 1 if self.captions else self.dimension

    def join(self, pictures: Vectors, captions: Vectors | None, captioned: Flags) -> Vectors:
        """(N, width) rows."""
        if not self.captions:
            return np.ascontiguousarray(pictures, dtype=np.float32)
        assert captions is not None
        return np.concatenate([pictures, captions, ~captioned[:, None]], axis=1, dtype=np.float32)

    def split(self, rows: Vectors) -> tuple[Vectors, Vectors, Flags]:
        """Pictures (N, D), captions (N, D) and which of them exist (N,)."""
        if not self.captions:
            return rows, np.zeros_like(rows), np.zeros(len(rows), dtype=np.bool_)
        return rows[:, : self.dimension], rows[:, self.dimension : -1], rows[:, -1] == 0


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file of a snapshot: its first `size_bytes` bytes and their SHA-256. What follows them is not part of it."""

    name: str
    size_bytes: int
    sha256: str


Writer = Callable[[Path], tuple[dict[str, Any], list[SavedFile]]]


class Searchable(Protocol):
    """What a search asks of vectors, whoever keeps them. A row is one of them; its number means nothing elsewhere."""

    layout: Layout
    kind: str
    exact: bool

    def __len__(self) -> int:
        """Number of rows."""

    def search(self, query: Vectors, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Vectors]:
        """Rows and inner products with `query` (width,) of the best `count`, best first; fewer where there are
        fewer."""

    def keys(self, rows: Rows) -> Keys:
        """Whose these rows are."""

    def get(self, rows: Rows) -> Vectors:
        """(N, width) the rows as they were put in, bit by bit."""

    def rows_of(self, keys: Keys) -> Rows:
        """The rows of these videos."""

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation, over all rows, of <picture, v> and of <caption, t>."""

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """(D,) the mean of all captions."""


class Index(ABC):
    """Rows of vectors, searched by inner product. Not safe to search while `replace` runs."""

    kind: str
    exact: bool
    serving = False
    """Whether searches ask it now: then what is new must be taken in, whatever the disk says."""

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
        """Number of rows that are alive."""
        return self.rows - self._dead

    @property
    def rows(self) -> int:
        """Number of rows, dead ones included."""
        return len(self._keys.values)

    @property
    def stale(self) -> bool:
        """Whether a new index of the same rows would be better."""
        return self._dead > max(_DEAD_ANYWAY, _DEAD_SHARE * self.rows)

    def replace(self, gone: Keys, entries: Entries) -> None:
        """Take the rows of `gone` out (what is not in is ignored), then put `entries` in. The caller keeps searches
        out meanwhile."""
        self._masks.clear()
        self._remove(gone)
        if not len(entries.keys):
            return
        rows = self.layout.join(entries.pictures, entries.captions, entries.captioned)
        categories = [self._names.setdefault(name, len(self._names)) for name in entries.categories]
        start = 0
        while start < len(rows):
            # What a full disk stops half-way is whole up to here: the next try replaces it again.
            stop = start + self._append(rows[start:])
            self._keys.extend(entries.keys[start:stop])
            self._categories.extend(categories[start:stop])
            self._alive.extend(np.ones(stop - start, dtype=np.bool_))
            self._largest_key = max(self._largest_key, int(entries.keys[start:stop].max()))
            self._count(rows[start:stop], sign=1)
            start = stop

    def search(self, query: Vectors, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Vectors]:
        """Rows and inner products with `query` (width,) of the best `count`, best first; fewer where there are
        fewer."""
        allowed, available = self._allowed(where)
        if min(count, available) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return self._search(query, min(count, available), allowed, available)

    def keys(self, rows: Rows) -> Keys:
        """Whose these rows are."""
        return self._keys.values[rows]

    def rows_of(self, keys: Keys) -> Rows:
        """The rows that are alive of these videos."""
        return np.flatnonzero(np.isin(self._keys.values, keys) & self._alive.values)

    def entries(self, start: int, stop: int) -> Entries:
        """What is alive among these rows, as it was put in."""
        return self.entries_at(start + np.flatnonzero(self._alive.values[start:stop]))

    def entries_at(self, rows: Rows) -> Entries:
        """These rows, as they were put in."""
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
        """The rows that are alive, by their keys; those of one video in order."""
        rows = np.flatnonzero(self._alive.values)
        return rows[np.argsort(self._keys.values[rows], kind="stable")]

    def some(self, count: int, seed: int = 0) -> Rows:
        """At most `count` random rows that are alive, ascending."""
        alive = np.flatnonzero(self._alive.values)
        return np.sort(np.random.default_rng(seed).choice(alive, min(count, len(alive)), replace=False))

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation, over all that is alive, of <picture, v> and of <caption, t>; without
        `deviations` they are 0."""
        seen, read = self._moments
        return seen.similarity(picture, deviation=deviations), read.similarity(caption, deviation=deviations)

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """(D,) the mean of all captions, what a missing one counts as; zero where there is none."""
        return self._moments[1].mean

    @abstractmethod
    def get(self, rows: Rows) -> Vectors:
        """(N, width) the rows as they were put in, bit by bit."""

    @abstractmethod
    def freeze(self) -> Writer:
        """What writes the index as it is now into files of a folder and syncs them, later, while the index may go
        on changing. It returns what `load` wants, as JSON can hold it, and the files."""

    @classmethod
    @abstractmethod
    def load(cls, layout: Layout, folder: Path, state: dict[str, Any]) -> Index:
        """Read what a `Writer` wrote. Raises ValueError, KeyError or OSError where it is something else."""

    @abstractmethod
    def close(self) -> None:
        """Let go of its files; the index is of no use afterwards."""

    @abstractmethod
    def _append(self, rows: Vectors) -> int:
        """Put (N, width) rows behind the last, and say how many were taken: at least one, all or nothing of them."""

    @abstractmethod
    def _search(self, query: Vectors, count: int, allowed: Flags | None, available: int, /) -> tuple[Rows, Vectors]:
        """As `search`, among the `available` rows that `allowed` (rows,) names, at least one of which there is."""

    def _allowed(self, where: Categories) -> tuple[Flags | None, int]:
        """(rows,) which may be answered, None for all of them; and how many those are."""
        if where == EVERY_CATEGORY and not self._dead:
            return None, self.rows
        known = self._masks.get(where)
        if known is None:
            table = np.array([name in where for name in self._names], dtype=np.bool_)
            mask: Flags = table[self._categories.values] & self._alive.values
            known = mask, int(np.count_nonzero(mask))
            if len(self._masks) >= _MASKS:
                self._masks.clear()
            self._masks[where] = known  # until the next change: at a million rows it takes a millisecond to make
        return known

    def _remove(self, gone: Keys) -> None:
        known = gone[gone <= self._largest_key]  # keys ascend: what is new cannot be in
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
    """An array that grows at its end."""

    def __init__(self, kind: type[_Number]) -> None:
        self._data = np.zeros(1024, dtype=kind)
        self._count = 0

    @property
    def values(self) -> npt.NDArray[_Number]:
        """(N,) a view; what is written to it stays."""
        return self._data[: self._count]

    def extend(self, more: npt.ArrayLike) -> None:
        """Append."""
        new = np.asarray(more, dtype=self._data.dtype)
        needed = self._count + len(new)
        if needed > len(self._data):
            larger = np.zeros(max(needed, len(self._data) * 5 // 4), dtype=self._data.dtype)
            larger[: self._count] = self.values
            self._data = larger
        self._data[self._count : needed] = new
        self._count = needed
