"""The search engines of the benchmark: ours, flat FAISS, and a peer."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from service.index.base import Index, SavedFile
from service.index.compressed import TRAINING_ROWS, CompressedIndex
from service.index.files import digest
from service.index.flat import FlatIndex
from service.index.layout import RowNumbers
from service.index.sync import EXACT_UP_TO
from service.models import (
    EVERY_CATEGORY,
    CategoryFilter,
    Flags,
    Vectors,
)
from tests.bench.measuring import resident, stopwatch
from tests.bench.search_library import (
    CELLS,
    EVEN,
    FILTERS,
    LAYOUT,
    NOBODY,
    PAIRS,
    QUERIES,
    Answers,
    Cell,
    D,
    Figures,
    K,
    Library,
    Questions,
    ask,
)

ADDS = 1000
PEER = "scann"
PEER_PARAMETERS = {"dimensions_per_block": 4, "anisotropic_quantization_threshold": 0.2}
KINDS: dict[str, type[Index]] = {"flat": FlatIndex, "compressed": CompressedIndex}
Others = dict[str, tuple[Figures, dict[Cell, Answers]]]
"""By engine name: the figures, and the search results of each cell."""


def build(library_folder: Path, folder: Path) -> Figures:
    """Build an index as `SyncedIndex` does, and save it."""
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
    """Verify and load an index as `SyncedIndex` does."""
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
    """Load the index after dropping its files from the page cache, if the system allows that."""
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
    """Measure load, searches, removal, searches again, and additions.

    Returns:
        The figures, and the search results before and after the removal.
    """
    figures, before = Figures(), resident()
    with stopwatch(figures, "load_seconds"):
        index = load(folder)

    def search(where: CategoryFilter) -> Callable[[Vectors], RowNumbers]:
        return lambda query: index.video_pks(index.search(query, K + 1, where)[0])

    vectors = {pair: asked.vectors(pair, index.mean_text) for pair in PAIRS}
    with stopwatch(figures, "first_search_seconds", 4):
        search(EVERY_CATEGORY)(vectors[EVEN][0])
    answers = {cell: ask(search(FILTERS[cell[1]]), vectors[cell[0]], asked.rows, rounds) for cell in CELLS}
    figures["memory_bytes_per_video"] = round((resident() - before) / len(index), 1)
    library = Library.open(library_folder)
    with stopwatch(figures, "remove_one_percent_seconds"):
        index.replace(library.removed(), library.entries(0, 0))
    after = ask(search(EVERY_CATEGORY), asked.vectors(EVEN, index.mean_text), asked.rows, rounds)
    one_by_one = [library.entries(row, row + 1) for row in range(library.count, library.count + ADDS)]
    with stopwatch(figures, "first_add_seconds", 4):
        index.replace(one_by_one[0].video_pks, one_by_one[0])
    with stopwatch(figures, "adds_1000_one_by_one_seconds", 3):
        for entry in one_by_one[1:]:
            index.replace(entry.video_pks, entry)
    batch = library.entries(library.count + ADDS, library.count + 2 * ADDS)
    with stopwatch(figures, "adds_1000_at_once_seconds", 3):
        index.replace(batch.video_pks, batch)
    index.close()
    return figures, answers, after


def flat(library_folder: Path, asked: Questions) -> Others:
    """Measure the exact scan that any index must beat, with faiss's default number of threads and with one."""
    library, built = Library.open(library_folder), Figures()
    index = faiss.IndexFlatIP(LAYOUT.width)
    with stopwatch(built, "build_seconds"):
        for start, stop in library.slices():
            entries = library.entries(start, stop)
            index.add(LAYOUT.join(entries.visual, entries.text, entries.has_text))
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


def _flat_search(index: Any, allowed: Flags | None) -> Callable[[Vectors], RowNumbers]:
    parameters, bits = None, None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))

    def search(query: Vectors) -> RowNumbers:
        found: RowNumbers = index.search(query[None], K + 1, params=parameters)[1][0]
        return found

    return search


def peer(library_folder: Path, asked: Questions, packages: Path | None) -> tuple[Figures, dict[Cell, Answers]]:
    """Measure ScaNN, which has no filters and, in this form, no additions.

    Like our index, ScaNN stores 4 bits for every few numbers of a row, then compares the best rows in single precision.
    """
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

    def search(query: Vectors) -> RowNumbers:
        found: RowNumbers = searcher.search(query)[0]
        return found

    answers = {
        (pair, "none"): ask(search, [query[:-1] for query in asked.vectors(pair, mean)], asked.rows) for pair in PAIRS
    }
    figures["memory_bytes_per_video"] = round((resident() - before) / figures.pop("count"), 1)
    return figures, answers


def _imputed(library_folder: Path) -> tuple[npt.NDArray[np.float64], Vectors]:
    """Return the mean caption (D,) and the rows [v ; t] (N, 2 D) float32, with the mean for each missing caption."""
    library = Library.open(library_folder)
    mean = library.mean_caption()
    rows = np.empty((library.count, 2 * D), dtype=np.float32)
    for start, stop in library.slices():
        entries = library.entries(start, stop)
        rows[start:stop, :D] = entries.visual
        rows[start:stop, D:] = np.where(entries.has_text[:, None], entries.text, mean)
    return mean, rows
