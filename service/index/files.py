"""Files of an index: append-only files of fixed-size rows, and small files written at once.

A snapshot names the first bytes of a file, with their SHA-256. A process appends only to files that it created.
The named bytes therefore never change, however many processes read them or keep an index in the same folder.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.index.base import SavedFile
from service.index.layout import RowNumbers


class RowFile:
    """Append-only file of rows of `row_bytes` bytes. Raises OSError if the disk refuses.

    With `in_memory` the rows are in memory, and no snapshot can name them. This serves while the disk is full.
    """

    def __init__(self, path: Path, row_bytes: int, saved: SavedFile | None = None, *, in_memory: bool = False) -> None:
        """Create a new file if `saved` is None. Otherwise open, read-only, the file that a snapshot names.

        Raises ValueError if the file is shorter than the snapshot says, and OSError.
        """
        self.in_memory = in_memory
        self.path = path
        self.is_writable = saved is None
        self._row_bytes = row_bytes
        self._saved = saved
        self._hash = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if self.is_writable else os.O_RDONLY
        if in_memory:
            self._descriptor = os.memfd_create(path.name)
        else:
            self._descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o644)
        self.count = 0 if saved is None else saved.size_bytes // row_bytes
        if saved is not None and os.fstat(self._descriptor).st_size < saved.size_bytes:
            self.close()
            raise ValueError(f"{path.name} is shorter than the snapshot says")

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Write rows behind the last counted row. They count once they are passed to `commit`.

        Until then the next `write` overwrites them, so a failed `write` does no harm.
        """
        data = memoryview(rows.tobytes())
        offset, done = self.count * self._row_bytes, 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)

    def commit(self, rows: npt.NDArray[Any]) -> None:
        """Count the rows that `write` wrote, and add them to the checksum."""
        self._hash.update(rows.tobytes())
        self.count += len(rows)

    def read(self, rows: RowNumbers, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return these rows as (N, width) of `dtype`.

        Read from the file, not through a memory map, so that the rows do not stay in memory.
        """
        size = self._row_bytes
        found = np.empty((len(rows), size), dtype=np.uint8)
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        for run in runs:
            first, last = int(run[0]), int(run[-1]) + 1
            data = os.pread(self._descriptor, size * (last - first), size * int(rows[first]))
            found[first:last] = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
        return found.view(dtype)

    def map(self, capacity: int) -> npt.NDArray[np.uint8]:
        """Map the file into memory as (capacity, row_bytes) uint8. Rows appended later appear in the array.

        The file of a snapshot never grows: it is mapped with the number of rows it has. It is loaded at once if the
        system can, because loading page by page would slow down the first thousand searches.
        """
        flags = mmap.MAP_SHARED
        if self.is_writable:
            os.ftruncate(self._descriptor, capacity * self._row_bytes)
        else:
            capacity = self.count
            flags |= getattr(mmap, "MAP_POPULATE", 0)
        mapped = mmap.mmap(self._descriptor, capacity * self._row_bytes, flags, mmap.PROT_READ)
        return np.frombuffer(mapped, dtype=np.uint8).reshape(capacity, self._row_bytes)

    def freeze(self) -> SavedFile:
        """Return the part of the file that a snapshot taken now would name."""
        if not self.is_writable:
            assert self._saved is not None
            return self._saved
        return SavedFile(self.path.name, self.count * self._row_bytes, self._hash.hexdigest())

    def sync(self, frozen: SavedFile) -> SavedFile:
        """Flush the file to disk for a snapshot that names it. From now on `close` keeps the file.

        Raises OSError if the rows are in memory only.
        """
        if self.in_memory:
            raise OSError(errno.ENOSPC, "some rows are only in memory because the disk was full", self.path.name)
        if self.is_writable:
            os.fsync(self._descriptor)
            self._saved = frozen
        return frozen

    def close(self) -> None:
        """Close the file. Remove it if no snapshot names it."""
        os.close(self._descriptor)
        if self._saved is None and not self.in_memory:
            self.path.unlink(missing_ok=True)


def write_synced(path: Path, write: Callable[[Any], None]) -> SavedFile:
    """Write and sync a file, and return its size and SHA-256.

    If an OSError is raised, the partial file is removed.
    """
    try:
        with path.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return SavedFile(path.name, path.stat().st_size, digest(path, path.stat().st_size))


def write_all(folder: Path, parts: dict[str, Callable[[Any], None]]) -> list[SavedFile]:
    """Write files, by name, as `write_synced` does. If one fails, none is left behind."""
    done: list[SavedFile] = []
    try:
        for name, write in parts.items():
            done.append(write_synced(folder / name, write))
    except OSError:
        for file in done:
            with suppress(OSError):
                (folder / file.name).unlink(missing_ok=True)
        raise
    return done


def digest(path: Path, size_bytes: int) -> str:
    """Return the SHA-256 of the first `size_bytes` bytes. Raises ValueError if the file is shorter."""
    found, left = hashlib.sha256(), size_bytes
    with path.open("rb") as file:
        while left and (data := file.read(min(left, 1 << 22))):
            found.update(data)
            left -= len(data)
    if left:
        raise ValueError(f"{path.name} is shorter than the snapshot says")
    return found.hexdigest()
