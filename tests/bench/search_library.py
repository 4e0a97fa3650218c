"""Generated libraries to search, the queries, and the correct results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.index.layout import Layout, RowNumbers
from service.models import (
    EVERY_CATEGORY,
    CategoryFilter,
    Entries,
    Flags,
    Vectors,
    VideoPks,
)
from service.vectors import normalise

D = 512
K = 10
QUERIES = 100
SPARE = 4096
"""Number of extra videos made with a library, to be added later."""
SLICE = 4096
TIE = 1e-6
"""Scores within this distance count as equal: single precision cannot distinguish them."""
Pair = tuple[float, float]
Cell = tuple[Pair, str]
PAIRS: tuple[Pair, ...] = ((1.0, 0.0), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.0, 1.0))
EVEN: Pair = (0.5, 0.5)
NAMES = ("rest", "half", "percent", "rare")
FILTERS: dict[str, CategoryFilter] = {
    "none": EVERY_CATEGORY,
    "50%": CategoryFilter(frozenset({"half"})),
    "1%": CategoryFilter(frozenset({"percent"})),
    "0.01%": CategoryFilter(frozenset({"rare"})),
}
CELLS: tuple[Cell, ...] = tuple((pair, name) for name in FILTERS for pair in PAIRS)
LAYOUT = Layout(D, has_text=True)
NOBODY: VideoPks = np.zeros(0, dtype=np.int64)
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Library:
    """`count` videos and SPARE more, mapped from files. A video's primary key is its row number.

    Pictures and captions are (N, D) float32 of unit length, `captioned` is (N,) bool. `codes` (N,) uint8 are the
    categories as indices into NAMES.
    """

    count: int
    pictures: Vectors
    captions: Vectors
    captioned: Flags
    codes: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> Library:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls.__slots__[1:]]
        return cls(len(arrays[0]) - SPARE, *arrays)

    def entries(self, start: int, stop: int) -> Entries:
        """Return the rows as entries to put into an index."""
        captioned = np.array(self.captioned[start:stop])
        return Entries(
            np.arange(start, stop, dtype=np.int64),
            np.array(self.pictures[start:stop]),
            self.captions[start:stop] * captioned[:, None],
            captioned,
            tuple(NAMES[code] for code in self.codes[start:stop]),
        )

    def slices(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of the slices that are processed at once."""
        return ((start, min(start + SLICE, self.count)) for start in range(0, self.count, SLICE))

    def queries(self) -> RowNumbers:
        """Return the rows (QUERIES,) of the query videos; all have a caption."""
        captioned = np.flatnonzero(self.captioned[: self.count])
        return np.random.default_rng(5).choice(captioned, QUERIES, replace=False)

    def removed(self) -> VideoPks:
        """Return the keys of a hundredth of the videos, to be removed; no query video is among them."""
        others = np.setdiff1d(np.arange(self.count), self.queries())
        return np.sort(np.random.default_rng(6).choice(others, self.count // 100, replace=False))

    def allowed(self, name: str) -> Flags | None:
        """Return the mask (count,) bool of the rows that a filter accepts; None for no filter."""
        if FILTERS[name] == EVERY_CATEGORY:
            return None
        return np.array([category in FILTERS[name] for category in NAMES])[self.codes[: self.count]]

    def mean_caption(self, without: VideoPks = NOBODY) -> npt.NDArray[np.float64]:
        """Return the mean (D,) of the captions of all videos except `without`."""
        kept = np.array(self.captioned[: self.count])
        kept[without] = False
        total = sum(self.captions[a:b][kept[a:b]].sum(axis=0, dtype=np.float64) for a, b in self.slices())
        return np.asarray(total) / np.count_nonzero(kept)


def centres(kind: str, vectors: Path) -> tuple[Vectors, float]:
    """Return (C, D) unit vectors that videos are spread around, and the scale of the spread."""
    if kind == "real":
        rows = [np.load(path).astype(np.float32) for path in sorted(vectors.glob("*.npy"))]
        if not rows:
            raise SystemExit(f"no vectors in {vectors}: name their folder with --vectors, or leave out --data real")
        return normalise(np.concatenate(rows)), 0.6
    return normalise(np.random.default_rng(7).standard_normal((1000, D))), 0.8


def make(folder: Path, kind: str, count: int, vectors: Path) -> None:
    """Write a library into `folder`."""
    folder.mkdir(parents=True)
    around, sigma = centres(kind, vectors)
    rng, total = np.random.default_rng(1), count + SPARE
    popularity = np.arange(1, len(around) + 1) ** -0.7
    popularity = rng.permutation(popularity / popularity.sum())

    def new(name: str, *shape: int, dtype: str = "float32") -> npt.NDArray[Any]:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)

    def spread(which: RowNumbers) -> Vectors:
        noise = rng.standard_normal((len(which), D), dtype=np.float32) * np.float32(sigma / math.sqrt(D))
        noise += around[which]
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        return noise

    pictures, captions = new("pictures", total, D), new("captions", total, D)
    for start in range(0, total, SLICE):
        stop = min(start + SLICE, total)
        seen = rng.choice(len(around), stop - start, p=popularity)
        other = rng.choice(len(around), stop - start, p=popularity)
        said = np.where(rng.random(stop - start) < 0.5, seen, other)
        pictures[start:stop], captions[start:stop] = spread(seen), spread(said)
    new("captioned", total, dtype="bool")[:] = rng.random(total) >= 0.2
    codes = np.zeros(total, dtype=np.uint8)
    order, placed = rng.permutation(count), 0
    for code, size in ((1, count // 2), (2, count // 100), (3, max(K, count // 10_000))):
        codes[order[placed : placed + size]] = code
        placed += size
    new("codes", total, dtype="uint8")[:] = codes


class Truth:
    """Exact dot products of the queries with the library: (QUERIES, count) float32 for pictures and for captions."""

    def __init__(self, library: Library) -> None:
        self._library, self._own = library, library.queries()
        self._seen = np.empty((QUERIES, library.count), dtype=np.float32)
        self._read = np.empty_like(self._seen)
        self._captions = np.array(library.captions[self._own])
        pictures = np.array(library.pictures[self._own])
        for start, stop in library.slices():
            np.matmul(pictures, library.pictures[start:stop].T, out=self._seen[:, start:stop])
            np.matmul(self._captions, library.captions[start:stop].T, out=self._read[:, start:stop])
        self._impute(library.mean_caption())
        self._gone = NOBODY

    def remove(self, gone: VideoPks) -> None:
        """Leave these videos out of the correct results."""
        self._gone = gone
        self._impute(self._library.mean_caption(without=gone))

    def recall(self, cell: Cell, answers: Sequence[RowNumbers]) -> float:
        """Return the mean share of the true ten (or of all, if fewer) found by the first queries."""
        (a, b), name = cell
        allowed = self._library.allowed(name)
        shares = []
        for number, rows in enumerate(answers):
            scores = a * self._seen[number] + b * self._read[number]
            scores[self._own[number]] = scores[self._gone] = -np.inf
            if allowed is not None:
                scores[~allowed] = -np.inf
            true = min(K, int(np.count_nonzero(np.isfinite(scores))))
            tenth = np.partition(scores, -true)[-true]
            found = np.unique(rows[rows >= 0])  # FAISS fills up with -1
            shares.append(min(true, int(np.count_nonzero(scores[found] >= tenth - TIE))) / true)
        return float(np.mean(shares))

    def _impute(self, mean: npt.NDArray[np.float64]) -> None:
        missing = ~self._library.captioned[: self._library.count]
        self._read[:, missing] = (self._captions @ mean)[:, None]


@dataclass(frozen=True, slots=True)
class Answers:
    """Results of consecutive searches: rows without the query video itself, and milliseconds."""

    rows: list[RowNumbers]
    milliseconds: list[float]

    def figures(self, truth: Truth, cell: Cell) -> Figures:
        """Return recall and percentiles as the report shows them."""
        return {"recall": round(truth.recall(cell, self.rows), 4), **percentiles(self.milliseconds)}


def ask(
    search: Callable[[Vectors], RowNumbers], queries: Sequence[Vectors], own: RowNumbers, rounds: int = 1
) -> Answers:
    """Run each query alone, after five that are not timed."""
    for query in queries[:5]:
        search(query)
    rows, milliseconds = [], []
    for turn in range(rounds):
        for query, itself in zip(queries, own, strict=True):
            started = time.perf_counter()
            found = search(query)
            milliseconds.append(1000 * (time.perf_counter() - started))
            if turn == 0:
                rows.append(found[found != itself][:K])
    return Answers(rows, milliseconds)


@dataclass(frozen=True, slots=True)
class Questions:
    """The query videos: rows (Q,), their pictures and captions (Q, D) float32.

    The arrays are copies, because a memory-mapped library would count as memory of the searching process.
    """

    rows: RowNumbers
    pictures: Vectors
    captions: Vectors

    @classmethod
    def of(cls, library: Library) -> Questions:
        rows = library.queries()
        return cls(rows, np.array(library.pictures[rows]), np.array(library.captions[rows]))

    def first(self, count: int) -> Questions:
        """Return the first `count` queries."""
        return Questions(self.rows[:count], self.pictures[:count], self.captions[:count])

    def vectors(self, pair: Pair, mean: npt.NDArray[np.float64]) -> list[Vectors]:
        """Return the query vectors, (2 D + 1,) float32 each, as the service builds them."""
        parts = [pair[0] * self.pictures, pair[1] * self.captions, pair[1] * (self.captions @ mean)[:, None]]
        return list(np.concatenate(parts, axis=1).astype(np.float32))


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the 50th and the 99th percentile."""
    return {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 99)}
