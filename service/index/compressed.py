"""Index for large libraries: scan short codes of all rows, then compare the best rows exactly.

A search has three stages. Each stage reads fewer rows, with more bits per number:

    1. Scan every row that passes the filter by its product quantisation code: 4 bits for every 4 numbers, 128 bytes
       for a row of 1,024 numbers (Jégou et al. 2011; the scan in registers: André et al. 2017).
    2. Estimate the best 4,096 rows, or 8 times `count` if that is more, from one byte per number.
    3. Compute the exact products of the best `count` + 32 rows. The rows are read from a file as they were added.

The scan is exhaustive: unlike an inverted file, the index has no cells that a search could miss. The recall is
therefore the same for all weights, and a filter only leaves rows out of the scan. The tables of stages 1 and 2 are
in memory (the second is memory-mapped): about 1.2 kB for a row of 1,025 numbers. The rows of stage 3 are on disk.
If the filter leaves no more rows than stage 2 takes, stage 1 is skipped.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import structlog

from service import system_errors
from service.index.base import Index, SavedFile, Writer
from service.index.codec import Codec
from service.index.files import RowFile, write_all, write_synced
from service.index.layout import Layout, RowNumbers
from service.index.parallel import parallel_map
from service.models import Flags, Vectors

log = structlog.get_logger(__name__)
TRAINING_ROWS = 20_000
_SEGMENT_ROWS = 65_536
_COPY_BELOW_ROWS = _SEGMENT_ROWS // 4  # rows; a smaller segment of a snapshot is copied to append to it
_MIN_SCAN_ROWS = 4096  # rows, at least, that the scan passes on to stage 2
_SCAN_ROWS_PER_RESULT = 8  # the same, per requested result
_MIN_SEGMENT_ROWS_SCANNED = 512  # rows, at least, that the scan first takes from each segment
_EXTRA_EXACT_ROWS = 32  # rows beyond `count` that are compared exactly
_BLOCK_ROWS = 256  # rows of bytes that are decoded at once, to fit into a core's cache
_MAX_GROWTH = 4  # times the rows that the codes were trained for


class CompressedIndex(Index):
    """Approximate index: codes choose the rows, but the inner products that it returns are exact.

    Create an index with `train`, which fits the codes to a sample of the rows. The index is `stale` once it holds more
    than four times the rows that the codes were trained for.
    """

    kind = "compressed"
    exact = False

    def __init__(self, layout: Layout, folder: Path, codec: Codec) -> None:
        super().__init__(layout)
        self._folder = folder
        self._codec = codec
        self._segments: list[_Segment] = []

    @classmethod
    def train(cls, layout: Layout, folder: Path, sample: Vectors, rows: int) -> CompressedIndex:
        """Create an empty index whose codes are fitted to a sample of its future rows.

        Args:
            layout: Content of a row.
            folder: Folder for the files of the index.
            sample: Some of the rows, (N, width) float32.
            rows: Expected number of rows.
        """
        return cls(layout, folder, Codec.train(layout, sample, rows))

    @property
    def stale(self) -> bool:
        """Whether a new index of the same rows would be better.

        This holds if too many rows are dead, if the index has outgrown its codes, or if some rows are in memory only.
        """
        outgrown = len(self) > _MAX_GROWTH * self._codec.trained_for
        return super().stale or outgrown or self.in_memory

    @property
    def in_memory(self) -> bool:
        """Whether some rows are in memory only, because the disk was full."""
        return any(segment.in_memory for segment in self._segments)

    def get(self, rows: RowNumbers) -> Vectors:
        """See the base class."""
        found = np.empty((len(rows), self.layout.width), dtype=np.float32)
        for segment, places in self._by_segment(rows):
            found[places] = segment.read(rows[places])
        return found

    def freeze(self) -> Writer:
        """See the base class."""
        table, names = self._table(), list(self._category_codes)
        writers = [segment.freeze() for segment in self._segments]

        def write(folder: Path) -> tuple[dict[str, Any], list[SavedFile]]:
            name = secrets.token_hex(6)
            files = write_all(
                folder,
                {f"{name}.npz": lambda file: np.savez(file, **table), f"{name}.codec": self._codec.write},
            )
            segments = []
            for writer in writers:
                state, segment_files = writer(folder)
                segments.append(state)
                files += segment_files
            return {"table": files[0].name, "codec": files[1].name, "names": names, "segments": segments}, files

        return write

    @classmethod
    def load(cls, layout: Layout, folder: Path, state: dict[str, Any]) -> CompressedIndex:
        """See the base class."""
        loaded = cls(layout, folder, Codec.load(folder / state["codec"]))
        loaded._load_table(folder / state["table"], state["names"])
        for one in state["segments"]:
            start = sum(segment.count for segment in loaded._segments)
            loaded._segments.append(_Segment.load(folder, start, loaded._codec, one))
        if sum(segment.count for segment in loaded._segments) != loaded.rows:
            raise ValueError("the segments and the table of the snapshot have different numbers of rows")
        return loaded

    def close(self) -> None:
        """See the base class."""
        for segment in self._segments:
            segment.close()

    def _append(self, rows: Vectors) -> int:
        last = self._segments[-1] if self._segments else None
        try:
            if last is None or last.count >= (_SEGMENT_ROWS if last.is_writable else _COPY_BELOW_ROWS):
                last = _Segment.create(self._folder, self.rows, self._codec)
                self._segments.append(last)
            elif not last.is_writable:
                copy = last.copy(self._folder)  # otherwise every start would leave a small segment behind
                last.close()
                self._segments[-1] = last = copy
            fitting = rows[: _SEGMENT_ROWS - last.count]
            last.append(fitting)
        except OSError as error:
            if system_errors.from_error(error) is None or not self.serving or not hasattr(os, "memfd_create"):
                raise
            # Searches continue. These rows stay in memory until the disk has room for another index.
            log.warning("no room for index files; keeping new rows in memory", reason=str(error))
            if last is not None and not last.count:
                self._segments.remove(last)
                last.close()
            last = _Segment.create(self._folder, self.rows, self._codec, in_memory=True)
            self._segments.append(last)
            fitting = rows[:_SEGMENT_ROWS]
            last.append(fitting)
        return len(fitting)

    def _search(self, query: Vectors, count: int, allowed: Flags | None, available: int) -> tuple[RowNumbers, Vectors]:
        padded = self._codec.pad(query.reshape(1, -1))
        wanted = max(_MIN_SCAN_ROWS, _SCAN_ROWS_PER_RESULT * count)
        if available > wanted:
            rows = self._scan(padded, wanted, allowed)
        else:
            rows = np.arange(self.rows) if allowed is None else np.flatnonzero(allowed)
        rows = _best(rows, self._estimate(padded[0], rows), count + _EXTRA_EXACT_ROWS)
        products = self.get(rows) @ query
        order = np.argsort(-products, kind="stable")[:count]
        return rows[order], products[order]

    def _scan(self, query: Vectors, wanted: int, allowed: Flags | None) -> RowNumbers:
        """Return the best `wanted` rows of all segments by their codes (stage 1)."""

        def scan(segment: _Segment, count: int) -> tuple[RowNumbers, Vectors]:
            return segment.scan(query, count, None if allowed is None else allowed[segment.start : segment.stop])

        # Usually the best rows are spread over all segments, so each segment first returns a share only. If even the
        # last row of a share is among the best, that segment is scanned again for more rows.
        share = min(wanted, max(_MIN_SEGMENT_ROWS_SCANNED, 2 * wanted // len(self._segments)))
        found = parallel_map(lambda segment: scan(segment, share), self._segments)
        floor = _floor(np.concatenate([products for _, products in found]), wanted)
        cut = [n for n, (_, products) in enumerate(found) if len(products) == share and products[-1] > floor]
        for n, more in zip(cut, parallel_map(lambda n: scan(self._segments[n], wanted), cut), strict=True):
            found[n] = more
        rows, products = (np.concatenate(column) for column in zip(*found, strict=True))
        return _best(rows, products, wanted)

    def _estimate(self, query: Vectors, rows: RowNumbers) -> Vectors:
        """Return the estimated products of these rows, (N,) float32, from their bytes (stage 2).

        Runs in this thread only: the steps are so short that several threads would wait for each other.
        """
        byte_weights, constant = self._codec.byte_weights(query)
        products = np.empty(len(rows), dtype=np.float32)
        for segment, places in self._by_segment(rows):
            products[places] = segment.estimate(byte_weights, rows[places])
        return products + constant

    def _by_segment(self, rows: RowNumbers) -> list[tuple[_Segment, RowNumbers]]:
        """Return each segment that holds some of `rows`, and their positions in `rows`, in file order."""
        order = np.argsort(rows, kind="stable")
        starts = [segment.start for segment in self._segments]
        bounds = np.searchsorted(rows[order], [*starts, self.rows])
        parts = [order[low:high] for low, high in pairwise(bounds)]
        return [(segment, part) for segment, part in zip(self._segments, parts, strict=True) if len(part)]


class _Segment:
    """Up to 65,536 rows: their codes in memory, their bytes memory-mapped, the rows themselves in a file."""

    def __init__(self, start: int, codec: Codec, codes: Any, small: RowFile, full: RowFile) -> None:
        self.start = start
        self._codec = codec
        self._codes = codes
        self._codes_saved: SavedFile | None = None
        self._small, self._full = small, full
        self._bytes = small.map(_SEGMENT_ROWS)

    @classmethod
    def create(cls, folder: Path, start: int, codec: Codec, *, in_memory: bool = False) -> _Segment:
        name, width = secrets.token_hex(6), len(codec.low)
        if not in_memory:
            folder.mkdir(parents=True, exist_ok=True)
        small = RowFile(folder / f"{name}.bytes", width, in_memory=in_memory)
        try:
            full = RowFile(folder / f"{name}.rows", 4 * width, in_memory=in_memory)
        except OSError:
            small.close()
            raise
        return cls(start, codec, faiss.clone_index(codec.quantiser), small, full)

    @classmethod
    def load(cls, folder: Path, start: int, codec: Codec, state: dict[str, Any]) -> _Segment:
        codes, small, full = (SavedFile(*state[name]) for name in ("codes", "bytes", "rows"))
        width = len(codec.low)
        try:
            table = faiss.read_index(str(folder / codes.name))
        except RuntimeError as error:
            raise ValueError(f"{codes.name} is not a table of codes: {error}") from error
        made = cls(
            start,
            codec,
            table,
            RowFile(folder / small.name, width, small),
            RowFile(folder / full.name, 4 * width, full),
        )
        made._codes_saved = codes
        if not made.count == made._small.count == made._full.count:
            raise ValueError("the files of a segment have different numbers of rows")
        return made

    @property
    def count(self) -> int:
        return int(self._codes.ntotal)

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def in_memory(self) -> bool:
        """Whether the rows are in memory only."""
        return self._full.in_memory

    @property
    def is_writable(self) -> bool:
        """Whether this process created the files of the segment, and may append to them."""
        return self._full.is_writable

    def append(self, rows: Vectors) -> None:
        faiss.omp_set_num_threads(1 if len(rows) < _BLOCK_ROWS else os.cpu_count() or 1)
        small = self._codec.quantise(rows)
        self._small.write(small)
        self._full.write(rows)
        self._codes.add(self._codec.pad(rows))
        self._small.commit(small)
        self._full.commit(rows)
        self._codes_saved = None

    def copy(self, folder: Path) -> _Segment:
        """Copy the rows into new files, which this process may append to."""
        made = _Segment.create(folder, self.start, self._codec)
        pairs = ((self._small, made._small, np.uint8), (self._full, made._full, np.float32))  # noqa: SLF001
        try:
            for low in range(0, self.count, 4096):
                rows = np.arange(low, min(low + 4096, self.count))
                for source, target, kind in pairs:
                    data = source.read(rows, kind)
                    target.write(data)
                    target.commit(data)
        except OSError:
            made.close()
            raise
        made._codes = faiss.clone_index(self._codes)  # noqa: SLF001
        return made

    def scan(self, query: Vectors, wanted: int, allowed: Flags | None) -> tuple[RowNumbers, Vectors]:
        """Return the best `wanted` rows by their codes, and their products, estimated from the codes."""
        parameters = None
        if allowed is not None:
            wanted = min(wanted, int(np.count_nonzero(allowed)))
            selector: Any = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[arg-type, call-arg]
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=1)  # type: ignore[call-arg]
        if wanted == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        products, rows = self._codes.search(query, min(wanted, self.count), params=parameters)
        found = rows[0] >= 0
        return self.start + rows[0][found], products[0][found]

    def estimate(self, byte_weights: Vectors, rows: RowNumbers) -> Vectors:
        """Return the products of `byte_weights` with the bytes of `rows`, (N,) float32."""
        rows = rows - self.start
        products = np.empty(len(rows), dtype=np.float32)
        for low in range(0, len(rows), _BLOCK_ROWS):
            block = self._bytes[rows[low : low + _BLOCK_ROWS]]
            products[low : low + _BLOCK_ROWS] = block.astype(np.float32) @ byte_weights
        return products

    def read(self, rows: RowNumbers) -> Vectors:
        """Return these rows as (N, width) float32, as they were added."""
        return self._full.read(rows - self.start, np.float32)

    def freeze(self) -> Writer:
        known = self._codes_saved
        data = None if known else faiss.serialize_index(self._codes)
        small, full = self._small.freeze(), self._full.freeze()

        def write(folder: Path) -> tuple[dict[str, Any], list[SavedFile]]:
            codes = known
            if codes is None:
                codes = write_synced(folder / f"{secrets.token_hex(6)}.codes", lambda file: file.write(data))
                if self.count == small.size_bytes // len(self._codec.low):
                    self._codes_saved = codes
            files = {"codes": codes, "bytes": self._small.sync(small), "rows": self._full.sync(full)}
            return {name: astuple(file) for name, file in files.items()}, list(files.values())

        return write

    def close(self) -> None:
        self._small.close()
        self._full.close()


def _best(rows: RowNumbers, products: Vectors, count: int) -> RowNumbers:
    """Return the `count` rows with the greatest products, in no particular order."""
    if len(rows) <= count:
        return rows
    return rows[np.argpartition(-products, count)[:count]]


def _floor(products: Vectors, count: int) -> float:
    """Return the least of the `count` greatest products; minus infinity if there are fewer."""
    return float(-np.partition(-products, count - 1)[count - 1]) if len(products) >= count else -np.inf
