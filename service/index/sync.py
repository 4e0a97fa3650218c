"""Keep a FAISS index equal to the database.

The database numbers its changes, and the index stores the number of the last change that it has applied. Every search
begins with a database snapshot and first brings the index to exactly that state. If nothing changed, this is one small
query. A video can be found as soon as its transaction is committed, whichever process committed it, and no search
mixes two states.

The index is exact up to `exact_up_to` rows and compressed above. If it grows past that size, shrinks to half of it, or
has too many dead rows, another index is built beside it from its own rows. Searches and changes continue meanwhile, and
the switch is one assignment.

A snapshot on disk saves the next start from reading all vectors from the database. A snapshot that is missing, damaged,
or of another database, model or aggregation is not used; then the index is built from the database.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from filelock import FileLock, Timeout

from service import system_errors
from service.database import catalog, change_log, generation_rows, vector_rows
from service.database.db import Database, library
from service.index.compressed import TRAINING_ROWS, CompressedIndex
from service.index.differences import differences
from service.index.files import digest, write_whole
from service.index.flat import FlatIndex
from service.index.gate import Gate
from service.index.rows import Index, Layout, SavedFile
from service.models import Generation, Kind
from service.timing import Timing

log = structlog.get_logger(__name__)
EXACT_UP_TO = 50_000
"""Most rows of an exact index; a larger index is compressed. An exact scan of so many takes about 15 ms."""
_BATCH = 4096
_SAVE_EVERY = 20_000  # changes between two snapshots on disk
_STRAY_SECONDS = 7 * 24 * 3600  # age from which on no process uses a file that no snapshot names
_KINDS: dict[str, type[Index]] = {"flat": FlatIndex, "compressed": CompressedIndex}


class SyncedIndex:
    """FAISS index of one generation, always as new as the database: of videos, or of frames if `kind` is "frame".

    Use `current` for every search. FAISS must not be searched while its index is changed. Searches therefore pass the
    gate as readers, which share the index, and changes pass it as writers, each alone.
    """

    def __init__(
        self,
        db: Database,
        folder: Path,
        generation: Generation,
        kind: Kind,
        *,
        exact_up_to: int = EXACT_UP_TO,
        fresh: bool = False,
        timing: Timing | None = None,
    ) -> None:
        """Load the snapshot on disk unless `fresh`, then catch up. Only `timing.renewal_pause_seconds` is used."""
        self.exact_up_to = exact_up_to
        self.refused: str | None = None
        """Why the snapshot on disk could not be used; None if it was used or if there is none."""
        self._db = db
        self._folder = folder
        self._generation = generation
        self._kind = kind
        self._layout = Layout(generation.dimension, captions=kind != "frame")
        self._gate = Gate()
        self._saving = threading.Lock()
        self._index: Index = FlatIndex(self._layout)
        self._seen = 0
        self._saved = -1
        self._owner = FileLock(folder / f"{self._manifest.stem}.lock", is_singleton=False, thread_local=False)
        self._building: threading.Thread | None = None
        self._timing = timing or Timing()
        self._retry_at: float | None = None  # monotonic seconds; None unless the last renewal failed
        self._closed = False
        # Try without a write transaction first: a search that opens the index of frames must not wait for a writer.
        with db.read() as connection:
            self._library = connection.execute(sa.select(library.c.id)).scalar() or ""
        if not self._library:
            with db.write() as connection:
                self._library = generation_rows.library_id(connection)
        with _named():
            if not fresh:
                self._load()
            with self._db.read() as connection:
                self._catch_up(connection, now=True)  # here rather than in the first search
        self._index.serving = True

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""
        return self._generation

    @property
    def saved(self) -> int | None:
        """Number of the last change in the snapshot on disk; None if this index has no snapshot."""
        return None if self._saved < 0 else self._saved

    def settle(self) -> None:
        """Wait until no rebuild and no save runs in the background."""
        if (building := self._building) is not None:
            building.join()

    @contextmanager
    def current(self) -> Iterator[tuple[Index, sa.Connection]]:
        """Yield the index and a connection with a database snapshot of the same state, until the block ends.

        A search compares the change numbers as a reader of the gate. If the index lacks changes, the search applies
        them as a writer and tries again with a new snapshot.
        """
        # The first statement of a transaction takes its snapshot. It runs inside the gate, so that the index holds no
        # change that the snapshot lacks. The connection is opened outside the gate: a thread in the gate must not wait
        # for a connection that is held by a thread that waits for the gate.
        for _ in range(8):
            with self._db.read() as connection:
                with self._gate.reading():
                    known = self._seen == change_log.last_change(connection, self._generation.id)
                    if known and not (self._retry_at and self._may_renew()):
                        yield self._index, connection
                        return
                with self._gate.writing(), _named():
                    self._catch_up(connection)
        # Each time, another change came in between: now hold the gate alone until the block ends.
        with self._db.read() as connection, self._gate.writing():
            with _named():
                self._catch_up(connection)
            yield self._index, connection

    def check(self) -> None:
        """Prepare a search without running it. Raises the errors that a search would raise now."""
        with self.current():
            pass

    def save(self) -> None:
        """Write a snapshot to disk, unless nothing changed since the last one or another process owns the snapshot.

        Searches and changes continue meanwhile. A failure is only logged, because it only makes the next start slower.
        """
        try:
            self._save()
        except OSError as error:
            log.warning("the index snapshot could not be saved", reason=str(error))

    def replace_snapshot(self) -> None:
        """Replace the snapshot on disk by one of this index, even if another process owns the snapshot.

        Files of the old snapshot stay for processes that may use them, until `_sweep`. Raises StorageFull.
        """
        with _named():
            self._save(anyway=True)

    def differences(self) -> list[str]:
        """Return the differences between index and database; empty if they agree."""
        found = []
        with self.current() as (index, connection):
            alive = index.alive()
            keys = index.keys(alive)
            expected = catalog.ready_keys(connection)
            for start in range(0, len(expected), _BATCH):
                some = expected[start : start + _BATCH]
                low, high = np.searchsorted(keys, some[0]), np.searchsorted(keys, some[-1], side="right")
                mine = index.entries_at(alive[low:high])
                theirs = vector_rows.searchable(connection, some, self._generation, self._kind)
                order = np.argsort(theirs.keys, kind="stable")
                found += differences(mine, theirs, order)
            strangers = np.setdiff1d(keys, np.array(expected, dtype=np.int64))
            found += [f"the index holds video {key}, which is not ready or not there" for key in strangers]
        return found

    def close(self, *, save: bool = True) -> None:
        """Save if `save` is true, then close all files. No search is possible afterwards."""
        self._closed = True
        self.settle()
        if save:
            self.save()
        self._index.close()
        self._owner.release()

    # --- the snapshot on disk

    def _save(self, *, anyway: bool = False) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._saving:
            try:
                self._owner.acquire(blocking=False)  # until `close`: only one process writes and removes
            except Timeout:
                if not anyway:
                    return
            with self._gate.reading():
                seen, index = self._seen, self._index
                if seen == self._saved:
                    return
                write = index.freeze()
            state, files = write(self._folder)
            manifest = {
                **self._identity,
                "seen": seen,
                "index": index.kind,
                "state": state,
                "files": [astuple(file) for file in files],
            }
            before = {file.name for file in _files(_json(self._manifest))}
            # The manifest is renamed last, once all files that it names are synced: a snapshot is complete or absent.
            aside = self._manifest.with_suffix(f".{os.getpid()}.tmp")
            write_whole(aside, lambda file: file.write(json.dumps(manifest).encode()))
            aside.replace(self._manifest)
            self._saved = seen
            for name in () if anyway else before - {file.name for file in files}:
                (self._folder / name).unlink(missing_ok=True)

    @property
    def _manifest(self) -> Path:
        return self._folder / f"{self._generation.id}-{self._kind}.json"

    @property
    def _identity(self) -> dict[str, str]:
        return {"library": self._library, "generation": self._generation.id, "kind": self._kind}

    def _load(self) -> None:
        if not self._manifest.exists():
            log.info("no index snapshot, building the index from the database", kind=self._kind)
            return
        try:
            manifest = _json(self._manifest)
            if any(manifest.get(name) != value for name, value in self._identity.items()):
                raise ValueError("it cannot be read, or belongs to another library")
            with self._db.read() as connection:
                if manifest["seen"] > change_log.last_change(connection, self._generation.id):
                    raise ValueError("it is newer than the database")
            self._verify(_files(manifest))
            self._index = _KINDS[manifest["index"]].load(self._layout, self._folder, manifest["state"])
            self._seen = self._saved = manifest["seen"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.refused = str(error)
            log.warning("the index snapshot is not used, building from the database", reason=self.refused)
        self._sweep()

    def _verify(self, files: list[SavedFile]) -> None:
        def wrong(file: SavedFile) -> bool:
            return digest(self._folder / file.name, file.size_bytes) != file.sha256

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            broken = [file.name for file, bad in zip(files, pool.map(wrong, files), strict=True) if bad]
        if broken:
            raise ValueError(f"the checksum of {broken[0]} is wrong")

    def _sweep(self) -> None:
        """Remove files that a killed process left behind, once no process can use them any more."""
        named = {file.name for path in self._folder.glob("*.json") for file in _files(_json(path))}
        for path in self._folder.iterdir():
            if path.suffix not in (".json", ".lock") and path.name not in named:
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STRAY_SECONDS:
                        path.unlink()

    # --- catching up with the database

    def _catch_up(self, connection: sa.Connection, *, now: bool = False) -> None:
        """Apply the changes since the last applied one. The caller holds the gate as a writer.

        Then start a rebuild or a save in the background if one is due. With `now`, rebuild here instead.
        """
        last = change_log.last_change(connection, self._generation.id)
        changed = change_log.changed_since(connection, self._seen, self._generation.id)
        for start in range(0, len(changed), _BATCH):
            self._apply(connection, self._index, changed[start : start + _BATCH])
            if now and self._wants_another():
                self._index, old = self._copied(self._index), self._index
                old.close()
        self._seen = max(self._seen, last)
        if not now and self._may_renew():
            self._retry_at = None
            if self._wants_another():
                self._start(self._rebuild)
            elif self._seen - self._saved > _SAVE_EVERY:
                self._start(self.save)

    def _apply(self, connection: sa.Connection, index: Index, changed: list[int]) -> None:
        entries = vector_rows.searchable(connection, changed, self._generation, self._kind)
        index.replace(np.array(changed, dtype=np.int64), entries)

    # --- building another index beside this one

    def _wanted_kind(self) -> str:
        # Return to an exact index only at half the size, so that a library near the limit does not alternate.
        border = self.exact_up_to if self._index.kind == "flat" else self.exact_up_to // 2
        return "flat" if len(self._index) <= border else "compressed"

    def _wants_another(self) -> bool:
        return self._index.stale or self._wanted_kind() != self._index.kind

    def _may_renew(self) -> bool:
        return self._building is None and not self._closed and time.monotonic() >= (self._retry_at or 0)

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                self._retry_at = time.monotonic() + self._timing.renewal_pause_seconds
                log.exception("the index could not be renewed; the old one serves on", reason=str(error))
            finally:
                self._building = None

        self._building = threading.Thread(target=run, name="index", daemon=True)
        self._building.start()

    def _rebuild(self) -> None:
        """Build another index from the rows of this one, which serves meanwhile, then switch to it.

        Later changes are applied to the new index in batches; only the last batch and the switch stop searches.
        """
        started = time.perf_counter()
        with self._gate.reading():
            old, seen, rows = self._index, self._seen, self._index.rows
        new = self._copied(old, rows=rows, gate=self._gate)
        try:
            while True:
                with self._db.read() as connection:
                    changed = change_log.changed_since(connection, seen, self._generation.id)
                    if len(changed) <= _BATCH or self._closed:
                        break
                    last = change_log.last_change(connection, self._generation.id)
                    for start in range(0, len(changed), _BATCH):
                        self._apply(connection, new, changed[start : start + _BATCH])
                    seen = last
            with self._saving, self._db.read() as connection, self._gate.writing():
                last = change_log.last_change(connection, self._generation.id)
                self._apply(connection, new, change_log.changed_since(connection, seen, self._generation.id))
                self._index, self._seen = new, last
                self._index.serving = True
                self._saved = -1
                old.close()
        except BaseException:
            if self._index is not new:
                new.close()  # its files are useless, and perhaps filled the disk
            raise
        seconds = round(time.perf_counter() - started, 1)
        log.info("the index was renewed", kind=new.kind, rows=new.rows, seconds=seconds)
        self.save()

    def _copied(self, old: Index, rows: int | None = None, gate: Gate | None = None) -> Index:
        """Build an index of the right kind from the rows of `old` that are alive, among its first `rows` rows.

        `gate` is held only while rows are read. The caller applies the changes that come in between.
        """
        gate = gate or Gate()
        with gate.reading():
            kind, count = self._wanted_kind(), len(old)
            some = old.some(TRAINING_ROWS)
        new: Index = FlatIndex(self._layout)
        if kind == "compressed":
            sample = []
            for start in range(0, len(some), _BATCH):
                with gate.reading():
                    sample.append(old.get(some[start : start + _BATCH]))
            new = CompressedIndex.train(self._layout, self._folder, np.concatenate(sample), count)
        nobody = np.zeros(0, dtype=np.int64)
        stop = old.rows if rows is None else rows
        try:
            for start in range(0, stop, _BATCH):
                with gate.reading():
                    entries = old.entries(start, min(start + _BATCH, stop))
                new.replace(nobody, entries)
        except BaseException:
            new.close()
            raise
        return new


def _named() -> AbstractContextManager[None]:
    return system_errors.named("the index cannot be brought up to date")


def _json(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _files(manifest: dict[str, Any]) -> list[SavedFile]:
    return [SavedFile(Path(name).name, size, sha256) for name, size, sha256 in manifest.get("files", ())]
