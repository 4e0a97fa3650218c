"""How well and how fast the vector index answers, what it costs, and how that compares.

    python tests/bench/search.py [--videos 10000 100000 1000000] [--data clustered real] [--catalogue] [--no-peer]

Made-up libraries of 512 + 512 numbers a video, in two kinds. `real`: spread around real CLIP text vectors, read from
--vectors. `clustered`: spread around 1,000 random directions. Popular centres have more videos, half of the captions
say what is seen, a fifth of the videos has none. The questions are 100 videos of the library, asked one at a time.

For each library, each of five pairs of weights and each filter (none; categories of 50 %, 1 % and 0.01 % of the
videos): recall@10 against all products computed exactly, and the 50th and 99th percentile of the milliseconds of one
search. A row counts as right if its score is at least that of the true tenth.

    ours    as the service builds it: exact up to a size, compressed above it; saved, and loaded in a process of its
            own, whose memory is measured and in which the searches are timed
    flat    faiss.IndexFlatIP over the same rows, with as many threads as faiss takes by itself and (`flat_one_thread`)
            with one; all weights without a filter, (0.5, 0.5) with each; for a large library fewer questions
    peer    another library on the same task, the query [w_v q_v ; w_t q_t] over [v ; t] with the mean caption where
            one is missing. It is no dependency of ReelsRS: it is compared if it can be imported, from --peer-packages
            where that is given

`of_flat` and so on are our 50th percentile divided by theirs in the same run, with the same weights and filter;
`of_scan` by that of the faster of the two flat scans without a filter. Loading is measured twice, checksums included:
with the files in the page cache, and (`cold`) without.

--catalogue also fills a database with the library, and measures the service around the index: the first start, the
next one, how long after its commit an upload is answered, and whole answers with and without changes meanwhile. It
needs some 20 kB of disk a video below --folder. The last line is JSON; `reached` in it judges the largest libraries.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from service.database import catalog, change_log, db, generation_rows, vector_rows
from service.database.db import Database
from service.domain import (
    EVERY_CATEGORY,
    Categories,
    Entries,
    Flags,
    Generation,
    Keys,
    Probe,
    Sampling,
    Vectors,
    Weights,
)
from service.errors import ReelsError
from service.index.compressed import TRAINING_ROWS, CompressedIndex
from service.index.files import digest
from service.index.flat import FlatIndex
from service.index.follower import EXACT_UP_TO, Follower
from service.index.rows import Index, Layout, Rows, SavedFile
from service.search.question import Like, Question
from service.search.recommend import Recommender
from service.vectors import aggregate, normalise, pack

D = 512
K = 10
QUERIES = 100
SPARE = 4096
"""Videos that are made beside a library, to be added to it."""
ADDS = 1000
SLICE = 4096
PEER = "scann"
PEER_PARAMETERS = {"dimensions_per_block": 4, "anisotropic_quantization_threshold": 0.2}
TIE = 1e-6
"""Scores so close are one: single precision cannot tell them apart."""

Pair = tuple[float, float]
Cell = tuple[Pair, str]
PAIRS: tuple[Pair, ...] = ((1.0, 0.0), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.0, 1.0))
EVEN: Pair = (0.5, 0.5)
NAMES = ("rest", "half", "percent", "rare")
FILTERS: dict[str, Categories] = {
    "none": EVERY_CATEGORY,
    "50%": Categories(frozenset({"half"})),
    "1%": Categories(frozenset({"percent"})),
    "0.01%": Categories(frozenset({"rare"})),
}
CELLS: tuple[Cell, ...] = tuple((pair, name) for name in FILTERS for pair in PAIRS)
LAYOUT = Layout(D, captions=True)
GENERATION = Generation("g-bench", "bench", D, "float32")
PROBE = Probe("video/mp4", "h264", 640, 360, 1.0, 25.0)
KINDS: dict[str, type[Index]] = {"flat": FlatIndex, "compressed": CompressedIndex}
NOBODY: Keys = np.zeros(0, dtype=np.int64)

Figures = dict[str, Any]
_Any = TypeVar("_Any")


# --- a library


@dataclass(frozen=True, slots=True)
class Library:
    """`count` videos and SPARE more, mapped from files: pictures and captions (N, D) float32 of unit length, captioned
    (N,) bool, codes (N,) uint8: the category's place in NAMES. A video's key is its row."""

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
        """Rows as an index takes them in."""
        captioned = np.array(self.captioned[start:stop])
        return Entries(
            np.arange(start, stop, dtype=np.int64),
            np.array(self.pictures[start:stop]),
            self.captions[start:stop] * captioned[:, None],
            captioned,
            tuple(NAMES[code] for code in self.codes[start:stop]),
        )

    def slices(self) -> Iterator[tuple[int, int]]:
        """Bounds of what is done at once."""
        return ((start, min(start + SLICE, self.count)) for start in range(0, self.count, SLICE))

    def queries(self) -> Rows:
        """(QUERIES,) the videos that are asked about; all have a caption."""
        captioned = np.flatnonzero(self.captioned[: self.count])
        return np.random.default_rng(5).choice(captioned, QUERIES, replace=False)

    def removed(self) -> Keys:
        """A hundredth of the videos, none of them a question."""
        others = np.setdiff1d(np.arange(self.count), self.queries())
        return np.sort(np.random.default_rng(6).choice(others, self.count // 100, replace=False))

    def allowed(self, name: str) -> Flags | None:
        """(count,) what a filter lets through; None: everything."""
        if FILTERS[name] == EVERY_CATEGORY:
            return None
        return np.array([category in FILTERS[name] for category in NAMES])[self.codes[: self.count]]

    def mean_caption(self, without: Keys = NOBODY) -> npt.NDArray[np.float64]:
        """(D,) the mean of the captions of all videos but some."""
        kept = np.array(self.captioned[: self.count])
        kept[without] = False
        total = sum(self.captions[a:b][kept[a:b]].sum(axis=0, dtype=np.float64) for a, b in self.slices())
        return np.asarray(total) / np.count_nonzero(kept)


def centres(kind: str, vectors: Path) -> tuple[Vectors, float]:
    """(C, D) unit vectors that videos are spread around, and how far."""
    if kind == "real":
        rows = [np.load(path).astype(np.float32) for path in sorted(vectors.glob("*.npy"))]
        if not rows:
            raise SystemExit(f"no vectors in {vectors}: name their folder with --vectors, or leave out --data real")
        return normalise(np.concatenate(rows)), 0.6
    return normalise(np.random.default_rng(7).standard_normal((1000, D))), 0.8


def make(folder: Path, kind: str, count: int, vectors: Path) -> None:
    """Write a library."""
    folder.mkdir(parents=True)
    around, sigma = centres(kind, vectors)
    rng, total = np.random.default_rng(1), count + SPARE
    popularity = np.arange(1, len(around) + 1) ** -0.7
    popularity = rng.permutation(popularity / popularity.sum())

    def new(name: str, *shape: int, dtype: str = "float32") -> npt.NDArray[Any]:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)

    def spread(which: Rows) -> Vectors:
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
    """All products of the questions with the library, (QUERIES, count) each: of pictures and of captions."""

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

    def remove(self, gone: Keys) -> None:
        """These videos are no answers any more."""
        self._gone = gone
        self._impute(self._library.mean_caption(without=gone))

    def recall(self, cell: Cell, answers: Sequence[Rows]) -> float:
        """The share of the true ten, or of as many as there are, that the answers to the first questions hold."""
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


# --- asking


@dataclass(frozen=True, slots=True)
class Answers:
    """What one search after the other gave: rows without the question's own, and milliseconds."""

    rows: list[Rows]
    milliseconds: list[float]

    def figures(self, truth: Truth, cell: Cell) -> Figures:
        """As the report shows them."""
        return {"recall": round(truth.recall(cell, self.rows), 4), **percentiles(self.milliseconds)}


def ask(search: Callable[[Vectors], Rows], queries: Sequence[Vectors], own: Rows, rounds: int = 1) -> Answers:
    """Each question alone, after a few that are not timed."""
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
    """What is asked about: rows (Q,), their pictures and captions (Q, D). A copy, for a map of the library would count
    as memory of whoever asks."""

    rows: Rows
    pictures: Vectors
    captions: Vectors

    @classmethod
    def of(cls, library: Library) -> Questions:
        rows = library.queries()
        return cls(rows, np.array(library.pictures[rows]), np.array(library.captions[rows]))

    def first(self, count: int) -> Questions:
        """Fewer of them."""
        return Questions(self.rows[:count], self.pictures[:count], self.captions[:count])

    def vectors(self, pair: Pair, mean: npt.NDArray[np.float64]) -> list[Vectors]:
        """(2 D + 1,) each, as the service asks."""
        parts = [pair[0] * self.pictures, pair[1] * self.captions, pair[1] * (self.captions @ mean)[:, None]]
        return list(np.concatenate(parts, axis=1).astype(np.float32))


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """The 50th and the 99th."""
    return {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 99)}


def resident() -> int:
    """Bytes of this process in memory: its own, and what it maps from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))


def alone(do: Callable[..., _Any], *arguments: Any) -> _Any:
    """The result of a function that runs in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(do, *arguments).result()


@contextmanager
def stopwatch(into: Figures, name: str, digits: int = 2) -> Iterator[None]:
    """Notes the seconds that the block takes."""
    started = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - started, digits)


Others = dict[str, tuple[Figures, dict[Cell, Answers]]]
"""Name, figures and answers of what ours is compared with."""


# --- ours


def build(library_folder: Path, folder: Path) -> Figures:
    """Build an index as `Follower` does, and save it."""
    library, figures = Library.open(library_folder), Figures()
    folder.mkdir()
    index: Index = FlatIndex(LAYOUT)
    if library.count > EXACT_UP_TO:
        chosen = np.sort(np.random.default_rng(0).choice(library.count, TRAINING_ROWS, replace=False))
        captioned = library.captioned[chosen]
        sample = LAYOUT.join(library.pictures[chosen], library.captions[chosen] * captioned[:, None], captioned)
        with stopwatch(figures, "train_seconds"):
            index = CompressedIndex.train(LAYOUT, folder, sample, library.count)
    with stopwatch(figures, "build_seconds"):
        for start, stop in library.slices():
            index.replace(NOBODY, library.entries(start, stop))
    with stopwatch(figures, "save_seconds"):
        state, files = index.freeze()(folder)
    manifest = {"index": index.kind, "state": state, "files": [astuple(file) for file in files]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    index.close()
    size = sum(file.size_bytes for file in files)
    return {"engine": index.kind, **figures, "disk_bytes_per_video": round(size / library.count, 1)}


def load(folder: Path) -> Index:
    """Verify and read an index as `Follower` does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [SavedFile(*file) for file in manifest["files"]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, found in zip(
            files, pool.map(lambda one: digest(folder / one.name, one.size_bytes), files), strict=True
        ):
            if found != file.sha256:
                raise SystemExit(f"the checksum of {file.name} is wrong")
    return KINDS[manifest["index"]].load(LAYOUT, folder, manifest["state"])


def load_cold(folder: Path) -> Figures:
    """Load with none of the files in the page cache, where the system lets go of them."""
    figures = Figures()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with stopwatch(figures, "load_cold_seconds"):
        load(folder).close()
    return figures


def ours(
    library_folder: Path, folder: Path, asked: Questions, rounds: int
) -> tuple[Figures, dict[Cell, Answers], Answers]:
    """Load, ask, remove, ask again, add. The answers before and after the removal."""
    figures, before = Figures(), resident()
    with stopwatch(figures, "load_seconds"):
        index = load(folder)

    def search(where: Categories) -> Callable[[Vectors], Rows]:
        return lambda query: index.keys(index.search(query, K + 1, where)[0])

    vectors = {pair: asked.vectors(pair, index.mean_caption) for pair in PAIRS}
    with stopwatch(figures, "first_search_seconds", 4):
        search(EVERY_CATEGORY)(vectors[EVEN][0])
    answers = {cell: ask(search(FILTERS[cell[1]]), vectors[cell[0]], asked.rows, rounds) for cell in CELLS}
    figures["memory_bytes_per_video"] = round((resident() - before) / len(index), 1)
    library = Library.open(library_folder)
    with stopwatch(figures, "remove_one_percent_seconds"):
        index.replace(library.removed(), library.entries(0, 0))
    after = ask(search(EVERY_CATEGORY), asked.vectors(EVEN, index.mean_caption), asked.rows, rounds)
    one_by_one = [library.entries(row, row + 1) for row in range(library.count, library.count + ADDS)]
    with stopwatch(figures, "first_add_seconds", 4):
        index.replace(one_by_one[0].keys, one_by_one[0])
    with stopwatch(figures, "adds_1000_one_by_one_seconds", 3):
        for entry in one_by_one[1:]:
            index.replace(entry.keys, entry)
    batch = library.entries(library.count + ADDS, library.count + 2 * ADDS)
    with stopwatch(figures, "adds_1000_at_once_seconds", 3):
        index.replace(batch.keys, batch)
    index.close()
    return figures, answers, after


# --- others


def flat(library_folder: Path, asked: Questions) -> Others:
    """The exact scan that any index has to beat: with as many threads as faiss takes by itself, and with one."""
    library, built = Library.open(library_folder), Figures()
    index = faiss.IndexFlatIP(LAYOUT.width)
    with stopwatch(built, "build_seconds"):
        for start, stop in library.slices():
            entries = library.entries(start, stop)
            index.add(LAYOUT.join(entries.pictures, entries.captions, entries.captioned))
    few, mean = asked.first(min(QUERIES, max(20, 10_000_000 // library.count))), library.mean_caption()
    others: Others = {}
    for label, threads in (("flat", faiss.omp_get_max_threads()), ("flat_one_thread", 1)):
        faiss.omp_set_num_threads(threads)
        answers = {
            (pair, name): ask(_flat_search(index, library.allowed(name)), few.vectors(pair, mean), few.rows)
            for pair, name in CELLS
            if name == "none" or pair == EVEN
        }
        memory = {"memory_bytes_per_video": 4 * LAYOUT.width}
        others[label] = ({"threads": threads, "queries": len(few.rows), **built, **memory}, answers)
    return others


def _flat_search(index: Any, allowed: Flags | None) -> Callable[[Vectors], Rows]:
    parameters, bits = None, None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))

    def search(query: Vectors) -> Rows:
        found: Rows = index.search(query[None], K + 1, params=parameters)[1][0]
        return found

    return search


def peer(library_folder: Path, asked: Questions, packages: Path | None) -> tuple[Figures, dict[Cell, Answers]]:
    """ScaNN: like ours, 4 bits for every few numbers of every row, then the best again in single precision. It has no
    filters, and no adds in this form."""
    if packages is not None:
        sys.path.append(str(packages))
    if importlib.util.find_spec(PEER) is None:
        return {"missing": f"not installed: pip install {PEER}"}, {}
    import scann

    before, mean, rows = resident(), *_imputed(library_folder)
    parameters = {**PEER_PARAMETERS, "reorder": max(1000, len(rows) // 250)}
    figures: Figures = {"count": len(rows), "version": importlib.metadata.version(PEER), "parameters": parameters}
    with stopwatch(figures, "build_seconds"):
        made = scann.scann_ops_pybind.builder(rows, K + 1, "dot_product").score_ah(
            parameters["dimensions_per_block"],
            anisotropic_quantization_threshold=parameters["anisotropic_quantization_threshold"],
        )
        searcher = made.reorder(parameters["reorder"]).build()
    del rows, made

    def search(query: Vectors) -> Rows:
        found: Rows = searcher.search(query)[0]
        return found

    answers = {
        (pair, "none"): ask(search, [query[:-1] for query in asked.vectors(pair, mean)], asked.rows) for pair in PAIRS
    }
    figures["memory_bytes_per_video"] = round((resident() - before) / figures.pop("count"), 1)
    return figures, answers


def _imputed(library_folder: Path) -> tuple[npt.NDArray[np.float64], Vectors]:
    """The mean caption, and rows [v ; t] (N, 2 D) with it where one is missing."""
    library = Library.open(library_folder)
    mean = library.mean_caption()
    rows = np.empty((library.count, 2 * D), dtype=np.float32)
    for start, stop in library.slices():
        entries = library.entries(start, stop)
        rows[start:stop, :D] = entries.pictures
        rows[start:stop, D:] = np.where(entries.captioned[:, None], entries.captions, mean)
    return mean, rows


# --- the service around the index


class Service:
    """A database, its follower and its recommender, with a library in it; keys are rows + 1."""

    def __init__(self, library: Library, folder: Path) -> None:
        self.library, self._folder = library, folder
        url = f"sqlite:///{folder / 'reelsrs.db'}"
        db.upgrade(url)
        self.db = Database(url)
        self._next = library.count

    def fill(self) -> None:
        """Put the library into the database, many rows to a statement."""
        with self.db.write() as connection:
            generation_rows.activate_generation(connection, GENERATION)
        for start, stop in self.library.slices():
            entries = self.library.entries(start, stop)
            with self.db.write() as connection:
                connection.execute(
                    sa.insert(db.videos), [_video(row, entries, row - start) for row in range(start, stop)]
                )
                connection.execute(sa.insert(db.embeddings), list(_embeddings(entries)))
                connection.execute(sa.insert(db.changes), [{"video_key": row + 1} for row in range(start, stop)])

    def follow(self) -> Follower:
        """The index, made or loaded."""
        return Follower(self.db, self._folder / "index", GENERATION, "mean")

    def upload(self) -> tuple[int, str]:
        """Commit one more video, as an upload that was decoded and embedded: key and id."""
        row, self._next = self._next, self._next + 1
        entries = self.library.entries(row, row + 1)
        with self.db.write() as connection:
            video = catalog.add_video(
                connection,
                sha256=f"{row:064x}",
                size_bytes=1,
                filename=f"{row}.mp4",
                title=str(row),
                caption="caption" if entries.captioned[0] else None,
                category=entries.categories[0],
                sampling=Sampling(1),
                probe=PROBE,
            )
        assert entries.captions is not None
        text = entries.captions[0] if entries.captioned[0] else None
        embeddings = aggregate(entries.pictures, text)
        with self.db.write() as connection:
            vector_rows.put_embeddings(connection, video.key, GENERATION, embeddings)
            catalog.update_video(connection, video.key, status="ready", progress=1.0, frame_times=[0.0])
            change_log.record_change(connection, video.key)
        return video.key, video.id


def _name(row: int) -> str:
    return f"{row:016x}"


def _video(row: int, entries: Entries, place: int) -> Figures:
    now = datetime(2026, 1, 1)
    return {
        "key": row + 1,
        "id": _name(row),
        "sha256": f"{row:064x}",
        "size_bytes": 1,
        "filename": f"{row}.mp4",
        "title": str(row),
        "caption": "caption" if entries.captioned[place] else None,
        "category": entries.categories[place],
        "status": "ready",
        "progress": 1.0,
        "num_frames": 1,
        "media_type": PROBE.media_type,
        "codec": PROBE.codec,
        "width": PROBE.width,
        "height": PROBE.height,
        "duration_seconds": PROBE.duration_seconds,
        "frames_per_second": PROBE.frames_per_second,
        "frame_times": [0.0],
        "created_at": now,
        "updated_at": now,
    }


def _embeddings(entries: Entries) -> Iterator[dict[str, Any]]:
    assert entries.captions is not None
    for place, row in enumerate(entries.keys.tolist()):
        kinds = {"frame": entries.pictures[place], "mean": entries.pictures[place]}
        if entries.captioned[place]:
            kinds["text"] = entries.captions[place]
        for kind, vector in kinds.items():
            yield {"video_key": row + 1, "generation": GENERATION.id, "kind": kind, "vectors": pack(vector)}


def whole_service(library_folder: Path, folder: Path) -> Figures:
    """Start, start again, upload, answer; and answer while the library changes."""
    library, figures = Library.open(library_folder), Figures()
    service = Service(library, folder)
    with stopwatch(figures, "fill_seconds"):
        service.fill()
    figures["database_bytes_per_video"] = round((folder / "reelsrs.db").stat().st_size / library.count, 1)
    with stopwatch(figures, "start_from_database_seconds"):
        follower = service.follow()
    with stopwatch(figures, "close_seconds"):
        follower.close()
    with stopwatch(figures, "start_seconds"):
        follower = service.follow()
    recommender = Recommender(follower, lambda: follower, "mean")
    figures["searchable_after_seconds"] = _searchable_after(service, follower, recommender)
    names = [_name(row) for row in library.queries().tolist()]
    quiet, _ = _answers(recommender, names)
    figures["answer"] = percentiles(quiet)
    changed = _Changes(service)
    with changed:
        busy, errors = _answers(recommender, names)
    figures["answer_while_changing"] = {
        **percentiles(busy),
        "changes_per_second": round(changed.count / changed.seconds, 1),
        "errors": [*errors, *changed.errors],
    }
    follower.close()
    service.db.close()
    return figures


def _searchable_after(service: Service, follower: Follower, recommender: Recommender) -> dict[str, float]:
    """Seconds from a commit to an answer that took the new video into account."""
    seconds = []
    for pair in PAIRS * 4:
        before = _rows(follower)
        key, name = service.upload()
        started = time.perf_counter()
        _answer(recommender, name, pair if _has_caption(service, key) else (1.0, 0.0))
        seconds.append(time.perf_counter() - started)
        with follower.current() as (index, connection):
            assert len(index) == before + 1
            picture = vector_rows.vectors(connection, key, GENERATION, "mean")
            assert picture is not None
            query = np.concatenate([picture[0], np.zeros(D + 1, dtype=np.float32)])
            assert key in index.keys(index.search(query, 1)[0]), "the upload is not found by its own picture"
    return {"first": round(seconds[0], 4), "p50": round(float(np.median(seconds)), 4), "max": round(max(seconds), 4)}


def _rows(follower: Follower) -> int:
    with follower.current() as (index, _):
        return len(index)


def _has_caption(service: Service, key: int) -> bool:
    return bool(service.library.captioned[key - 1])


def _answer(recommender: Recommender, name: str, pair: Pair) -> None:
    recommender.answer(Question(likes=(Like(name),), weights=Weights(*pair), fusion="cosine", k=K))


def _answers(recommender: Recommender, names: list[str]) -> tuple[list[float], list[str]]:
    """Milliseconds of whole answers, and what went wrong."""
    milliseconds, errors = [], []
    for number, name in enumerate(names * 3):
        started = time.perf_counter()
        try:
            _answer(recommender, name, PAIRS[number % len(PAIRS)])
        except (ReelsError, RuntimeError, ValueError) as error:
            errors.append(repr(error))
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds, errors


class _Changes:
    """While its block lasts, a thread commits uploads and deletes the same videos again, some 20 a second."""

    def __init__(self, service: Service) -> None:
        self.count, self.seconds = 0, 0.0
        self.errors: list[str] = []
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                key, _ = self._service.upload()
                self._over.wait(0.05)
                with self._service.db.write() as connection:
                    catalog.delete_video(connection, key)
                self._over.wait(0.05)
                self.count += 2
        except Exception as error:
            self.errors.append(repr(error))


# --- one report


def measure(scratch: Path, kind: str, count: int, given: argparse.Namespace) -> Figures:
    """Everything about one library; nothing is left of it."""
    made, saved = scratch / "library", scratch / "index"
    say(f"{kind}, {count:,} videos: making them")
    make(made, kind, count, given.vectors)
    truth, asked = Truth(Library.open(made)), Questions.of(Library.open(made))
    say("building")
    figures = alone(build, made, saved)
    figures |= alone(load_cold, saved)
    say("asking")
    own, answers, after = alone(ours, made, saved, asked, given.rounds)
    shutil.rmtree(saved)
    say("the flat scan")
    others: Others = alone(flat, made, asked)
    if given.peer:
        say(f"the peer, {PEER}")
        try:
            others["peer"] = alone(peer, made, asked, given.peer_packages)
        except BrokenProcessPool:
            others["peer"] = {"missing": "its process died"}, {}
    report: Figures = {"data": kind, "videos": count, "load_average": os.getloadavg()[0], **figures, **own}
    report["cells"] = [_cell(cell, answers[cell], truth, others) for cell in CELLS]
    report |= {name: its for name, (its, _) in others.items()}
    library = Library.open(made)
    truth.remove(library.removed())
    report["recall_after_removing_one_percent"] = round(truth.recall((EVEN, "none"), after.rows), 4)
    del truth
    if given.catalogue:
        say("the service around it")
        folder = scratch / "service"
        folder.mkdir()
        report["service"] = alone(whole_service, made, folder)
        shutil.rmtree(folder)
    shutil.rmtree(made)
    show(report)
    return report


def _cell(cell: Cell, mine: Answers, truth: Truth, others: Others) -> Figures:
    line: Figures = {"weights": cell[0], "filter": cell[1], **mine.figures(truth, cell)}
    scans = [percentiles(others[name][1][cell[0], "none"].milliseconds) for name in ("flat", "flat_one_thread")]
    line["of_scan"] = _ratio(line, min(scans, key=lambda scan: scan["p50_ms"]))
    for name, (_, answers) in others.items():
        if cell in answers:
            line[name] = answers[cell].figures(truth, cell)
            line[f"of_{name}"] = _ratio(line, line[name])
    return line


def _ratio(mine: Figures, theirs: Figures) -> float:
    return round(mine["p50_ms"] / theirs["p50_ms"], 4)


def reached(report: Figures) -> dict[str, bool | None]:
    """What a library of a million is to reach; None: not measured."""
    cells, service = report["cells"], report.get("service")
    return {
        "recall_at_least_0.99": all(cell["recall"] >= 0.99 for cell in cells),
        "p50_at_most_10_ms": all(cell["p50_ms"] <= 10 for cell in cells),
        "p50_at_most_a_20th_of_the_flat_scan": all(cell["of_scan"] <= 1 / 20 for cell in cells),
        "p99_at_most_40_ms": all(cell["p99_ms"] <= 40 for cell in cells),
        "memory_at_most_1500_bytes_a_video": report["memory_bytes_per_video"] <= 1500,
        "load_at_most_10_seconds": report["load_seconds"] <= 10,
        "load_cold_at_most_10_seconds": report["load_cold_seconds"] <= 10,
        "upload_searchable_within_1_second": None
        if service is None
        else service["searchable_after_seconds"]["max"] <= 1,
        "no_errors_while_changing": None if service is None else not service["answer_while_changing"]["errors"],
    }


def say(text: str) -> None:
    """For who waits."""
    print(text, file=sys.stderr, flush=True)


def show(report: Figures) -> None:
    """A table of one library."""
    say(f"\n{report['data']}, {report['videos']:,} videos, {report['engine']}")
    say(f"{'weights':<11}{'filter':>7}{'recall':>8}{'p50 ms':>8}{'p99 ms':>8}{'of scan':>8}   others: recall, p50 ms")
    for cell in report["cells"]:
        line = f"{cell['weights']!s:<11}{cell['filter']:>7}{cell['recall']:>8.4f}{cell['p50_ms']:>8.2f}"
        line += f"{cell['p99_ms']:>8.2f}{cell['of_scan']:>8.3f}"
        for name in ("flat", "flat_one_thread", "peer"):
            if name in cell:
                line += (
                    f"   {name.replace('flat_one_thread', 'one')} {cell[name]['recall']:.4f} {cell[name]['p50_ms']:.2f}"
                )
        say(line)
    for name, value in report.items():
        if name not in ("cells", "data", "videos", "engine"):
            say(f"{name}: {value}")
    say("")


def main() -> None:
    """Each library in turn, then one line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments.add_argument("--data", nargs="+", choices=["clustered", "real"], default=["clustered", "real"])
    arguments.add_argument("--vectors", type=Path, default=Path("../shared/vectors"), help="a folder of .npy, (N, 512)")
    arguments.add_argument("--rounds", type=int, default=2, help="how often each question is asked")
    arguments.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    arguments.add_argument("--peer-packages", type=Path, help="a site-packages folder that holds the peer")
    arguments.add_argument("--catalogue", action="store_true", help="also measure the service around the index")
    arguments.add_argument("--folder", type=Path, help="where to put what is measured; removed again")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        reports = [measure(Path(scratch), kind, count, given) for count in given.videos for kind in given.data]
    largest = [reached(report) for report in reports if report["videos"] == max(given.videos)]
    together = {name: _all([one[name] for one in largest]) for name in largest[0]}
    head = {"benchmark": "search", "cores": os.cpu_count(), "dimension": D, "k": K, "queries": QUERIES}
    print(json.dumps({**head, "exact_up_to": EXACT_UP_TO, "libraries": reports, "reached": together}))


def _all(values: list[bool | None]) -> bool | None:
    return None if None in values else all(values)


if __name__ == "__main__":
    main()
