"""Snapshot of an index on disk: files, and a manifest that names them with their checksums.

The manifest is written last, so a snapshot is complete or absent. One process at a time writes and removes files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from service.index.base import Index, SavedFile, Writer
from service.index.compressed import CompressedIndex
from service.index.files import digest, write_synced
from service.index.flat import FlatIndex
from service.index.layout import Layout
from service.models import Kind

_STRAY_SECONDS = 7 * 24 * 3600  # age from which on no process uses a file that no snapshot names
_KINDS: dict[str, type[Index]] = {"flat": FlatIndex, "compressed": CompressedIndex}


class Snapshot:
    """Snapshot of the index of one generation and kind, in a folder that all indexes of a library share."""

    def __init__(self, folder: Path, layout: Layout, *, library: str, generation: str, kind: Kind) -> None:
        self._folder = folder
        self._layout = layout
        self._identity = {"library": library, "generation": generation, "kind": kind}
        self._manifest = folder / f"{generation}-{kind}.json"
        self._lock = FileLock(folder / f"{self._manifest.stem}.lock", is_singleton=False, thread_local=False)

    @property
    def exists(self) -> bool:
        """Whether there is a snapshot on disk, which may be unusable."""
        return self._manifest.exists()

    def acquire(self) -> bool:
        """Try to become the process that writes and removes files, until `release`. Return whether it succeeded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let another process write and remove files."""
        self._lock.release()

    def write(self, index_kind: str, change: int, write: Writer) -> set[str]:
        """Write a snapshot and replace the old one.

        Args:
            index_kind: Kind of the index, "flat" or "compressed".
            change: Number of the last change that the index has applied.
            write: Writes the files of the index.

        Returns:
            Names of the files that only the old snapshot used.
        """
        state, files = write(self._folder)
        manifest = {
            **self._identity,
            "seen": change,
            "index": index_kind,
            "state": state,
            "files": [astuple(file) for file in files],
        }
        old = {file.name for file in _files(_read_manifest(self._manifest))}
        # The manifest is renamed last, once all files that it names are synced: a snapshot is complete or absent.
        aside = self._manifest.with_suffix(f".{os.getpid()}.tmp")
        write_synced(aside, lambda file: file.write(json.dumps(manifest).encode()))
        aside.replace(self._manifest)
        return old - {file.name for file in files}

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of the folder."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def load(self, last_change: Callable[[], int]) -> tuple[Index, int]:
        """Read the snapshot. Return the index and the number of its last applied change.

        `last_change` returns the number of the last change in the database. Raises ValueError, KeyError, TypeError or
        OSError if the snapshot cannot be used.
        """
        manifest = _read_manifest(self._manifest)
        if any(manifest.get(name) != value for name, value in self._identity.items()):
            raise ValueError("the manifest cannot be read, or belongs to another index")
        change = manifest["seen"]
        if change > last_change():
            raise ValueError("the snapshot is newer than the database")
        self._verify(_files(manifest))
        return _KINDS[manifest["index"]].load(self._layout, self._folder, manifest["state"]), change

    def sweep(self) -> None:
        """Remove files that a killed process left behind, once no process can use them any more."""
        named = {file.name for path in self._folder.glob("*.json") for file in _files(_read_manifest(path))}
        for path in self._folder.iterdir():
            if path.suffix not in (".json", ".lock") and path.name not in named:
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STRAY_SECONDS:
                        path.unlink()

    def _verify(self, files: list[SavedFile]) -> None:
        def is_broken(file: SavedFile) -> bool:
            return digest(self._folder / file.name, file.size_bytes) != file.sha256

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            broken = [file.name for file, bad in zip(files, pool.map(is_broken, files), strict=True) if bad]
        if broken:
            raise ValueError(f"the checksum of {broken[0]} is wrong")


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest; an empty one if it cannot be read."""
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _files(manifest: dict[str, Any]) -> list[SavedFile]:
    return [SavedFile(Path(name).name, size, sha256) for name, size, sha256 in manifest.get("files", ())]
