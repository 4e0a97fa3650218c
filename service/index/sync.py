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

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import structlog

from service import system_errors
from service.database import change_log, generation_rows, vector_rows, video_rows
from service.database.db import Database, library
from service.index.base import Index
from service.index.compressed import TRAINING_ROWS, CompressedIndex
from service.index.differences import differences
from service.index.flat import FlatIndex
from service.index.layout import Layout
from service.index.readers_writer_lock import ReadersWriterLock
from service.index.snapshot import Snapshot
from service.models import Generation, Kind
from service.timing import Timing

log = structlog.get_logger(__name__)
EXACT_UP_TO = 50_000
"""Most rows of an exact index; a larger index is compressed. An exact scan of so many takes about 15 ms."""
_BATCH_SIZE = 4096
_SAVE_EVERY_CHANGES = 20_000  # changes between two snapshots on disk


class SyncedIndex:
    """FAISS index of one generation, always as new as the database: of videos, or of frames if `kind` is "frame".

    Use `current` for every search. FAISS must not be searched while its index is changed. Searches therefore hold
    a lock as readers, which share the index, and changes hold it as writers, each alone.
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
        self.snapshot_error: str | None = None
        """Why the snapshot on disk could not be used; None if it was used or if there is none."""
        self._db = db
        self._folder = folder
        self._generation = generation
        self._kind = kind
        self._layout = Layout(generation.dimension, has_text=kind != "frame")
        self._lock = ReadersWriterLock()
        self._saving = threading.Lock()
        self._index: Index = FlatIndex(self._layout)
        self._applied_change = 0
        self._saved_change = -1
        self._background: threading.Thread | None = None
        self._timing = timing or Timing()
        self._retry_at: float | None = None  # monotonic seconds; None unless the last renewal failed
        self._closed = False
        # Try without a write transaction first: a search that opens the index of frames must not wait for a writer.
        with db.read() as connection:
            library_id = connection.execute(sa.select(library.c.id)).scalar() or ""
        if not library_id:
            with db.write() as connection:
                library_id = generation_rows.library_id(connection)
        self._snapshot = Snapshot(folder, self._layout, library=library_id, generation=generation.id, kind=kind)
        with _system_errors():
            if not fresh:
                self._load()
            with self._db.read() as connection:
                self._catch_up(connection, in_foreground=True)  # here rather than in the first search
        self._index.serving = True

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""
        return self._generation

    @property
    def saved_change(self) -> int | None:
        """Number of the last change in the snapshot on disk; None if this index has no snapshot."""
        return None if self._saved_change < 0 else self._saved_change

    def settle(self) -> None:
        """Wait until no rebuild and no save runs in the background."""
        if (background := self._background) is not None:
            background.join()

    @contextmanager
    def current(self) -> Iterator[tuple[Index, sa.Connection]]:
        """Yield the index and a connection with a database snapshot of the same state, until the block ends.

        A search compares the change numbers as a reader of the lock. If the index lacks changes, the search applies
        them as a writer and tries again with a new snapshot.
        """
        # The first statement of a transaction takes its snapshot. It runs inside the lock, so that the index holds no
        # change that the snapshot lacks. The connection is opened outside the lock: a thread in the lock must not wait
        # for a connection that is held by a thread that waits for the lock.
        for _ in range(8):
            with self._db.read() as connection:
                with self._lock.reading():
                    known = self._applied_change == change_log.last_change(connection, self._generation.id)
                    if known and not (self._retry_at and self._may_renew()):
                        yield self._index, connection
                        return
                with self._lock.writing(), _system_errors():
                    self._catch_up(connection)
        # Each time, another change came in between: now hold the lock alone until the block ends.
        with self._db.read() as connection, self._lock.writing():
            with _system_errors():
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
            log.warning("index snapshot not saved", reason=str(error))

    def replace_snapshot(self) -> None:
        """Replace the snapshot on disk by one of this index, even if another process owns the snapshot.

        Files of the old snapshot stay for processes that may use them, until they are swept. Raises StorageFull.
        """
        with _system_errors():
            self._save(force=True)

    def differences(self) -> list[str]:
        """Return the differences between index and database; empty if they agree."""
        found = []
        with self.current() as (index, connection):
            alive = index.alive()
            pks = index.video_pks(alive)
            expected = video_rows.ready_pks(connection)
            for start in range(0, len(expected), _BATCH_SIZE):
                batch = expected[start : start + _BATCH_SIZE]
                low, high = np.searchsorted(pks, batch[0]), np.searchsorted(pks, batch[-1], side="right")
                index_rows = index.entries_at(alive[low:high])
                database_rows = vector_rows.index_entries(connection, batch, self._generation, self._kind)
                order = np.argsort(database_rows.video_pks, kind="stable")
                found += differences(index_rows, database_rows, order)
            extra_pks = np.setdiff1d(pks, np.array(expected, dtype=np.int64))
            found += [f"the index contains video {pk}, which is not ready or does not exist" for pk in extra_pks]
        return found

    def close(self, *, save: bool = True) -> None:
        """Save if `save` is true, then close all files. No search is possible afterwards."""
        self._closed = True
        self.settle()
        if save:
            self.save()
        self._index.close()
        self._snapshot.release()

    # --- the snapshot on disk

    def _save(self, *, force: bool = False) -> None:
        with self._saving:
            if not self._snapshot.acquire() and not force:
                return
            with self._lock.reading():
                applied, index = self._applied_change, self._index
                if applied == self._saved_change:
                    return
                write = index.freeze()
            replaced = self._snapshot.write(index.kind, applied, write)
            self._saved_change = applied
            if not force:
                self._snapshot.remove(replaced)

    def _load(self) -> None:
        if not self._snapshot.exists:
            log.info("no index snapshot; building the index", kind=self._kind)
            return
        try:
            self._index, self._applied_change = self._snapshot.load(self._last_change)
            self._saved_change = self._applied_change
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.snapshot_error = str(error)
            log.warning("index snapshot rejected; building the index", reason=self.snapshot_error)
        self._snapshot.sweep()

    def _last_change(self) -> int:
        with self._db.read() as connection:
            return change_log.last_change(connection, self._generation.id)

    # --- catching up with the database

    def _catch_up(self, connection: sa.Connection, *, in_foreground: bool = False) -> None:
        """Apply the changes since the last applied one. The caller holds the lock as a writer.

        Then start a rebuild or a save in the background if one is due. With `in_foreground`, rebuild here instead.
        """
        last = change_log.last_change(connection, self._generation.id)
        changed = change_log.changed_since(connection, self._applied_change, self._generation.id)
        for start in range(0, len(changed), _BATCH_SIZE):
            self._apply(connection, self._index, changed[start : start + _BATCH_SIZE])
            if in_foreground and self._rebuild_due():
                self._index, old = self._build_copy(self._index), self._index
                old.close()
        self._applied_change = max(self._applied_change, last)
        if not in_foreground and self._may_renew():
            self._retry_at = None
            if self._rebuild_due():
                self._start(self._rebuild)
            elif self._applied_change - self._saved_change > _SAVE_EVERY_CHANGES:
                self._start(self.save)

    def _apply(self, connection: sa.Connection, index: Index, changed: list[int]) -> None:
        entries = vector_rows.index_entries(connection, changed, self._generation, self._kind)
        index.replace(np.array(changed, dtype=np.int64), entries)

    # --- building another index beside this one

    def _target_kind(self) -> str:
        # Return to an exact index only at half the size, so that a library near the limit does not alternate.
        limit = self.exact_up_to if self._index.kind == "flat" else self.exact_up_to // 2
        return "flat" if len(self._index) <= limit else "compressed"

    def _rebuild_due(self) -> bool:
        return self._index.stale or self._target_kind() != self._index.kind

    def _may_renew(self) -> bool:
        return self._background is None and not self._closed and time.monotonic() >= (self._retry_at or 0)

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                self._retry_at = time.monotonic() + self._timing.renewal_pause_seconds
                log.exception("index rebuild failed; keeping the old index", reason=str(error))
            finally:
                self._background = None

        self._background = threading.Thread(target=run, name="index", daemon=True)
        self._background.start()

    def _rebuild(self) -> None:
        """Build another index from the rows of this one, which serves meanwhile, then switch to it.

        Later changes are applied to the new index in batches; only the last batch and the switch stop searches.
        """
        started = time.perf_counter()
        with self._lock.reading():
            old, applied, rows = self._index, self._applied_change, self._index.rows
        new = self._build_copy(old, rows=rows, lock=self._lock)
        try:
            while True:
                with self._db.read() as connection:
                    changed = change_log.changed_since(connection, applied, self._generation.id)
                    if len(changed) <= _BATCH_SIZE or self._closed:
                        break
                    last = change_log.last_change(connection, self._generation.id)
                    for start in range(0, len(changed), _BATCH_SIZE):
                        self._apply(connection, new, changed[start : start + _BATCH_SIZE])
                    applied = last
            with self._saving, self._db.read() as connection, self._lock.writing():
                last = change_log.last_change(connection, self._generation.id)
                self._apply(connection, new, change_log.changed_since(connection, applied, self._generation.id))
                self._index, self._applied_change = new, last
                self._index.serving = True
                self._saved_change = -1
                old.close()
        except BaseException:
            if self._index is not new:
                new.close()  # its files are useless, and perhaps filled the disk
            raise
        seconds = round(time.perf_counter() - started, 1)
        log.info("index rebuilt", kind=new.kind, rows=new.rows, seconds=seconds)
        self.save()

    def _build_copy(self, old: Index, rows: int | None = None, lock: ReadersWriterLock | None = None) -> Index:
        """Build an index of the right kind from the rows of `old` that are alive, among its first `rows` rows.

        `lock` is held only while rows are read. The caller applies the changes that come in between.
        """
        lock = lock or ReadersWriterLock()
        with lock.reading():
            kind, count = self._target_kind(), len(old)
            sample_rows = old.sample_rows(TRAINING_ROWS)
        new: Index = FlatIndex(self._layout)
        if kind == "compressed":
            sample = []
            for start in range(0, len(sample_rows), _BATCH_SIZE):
                with lock.reading():
                    sample.append(old.get(sample_rows[start : start + _BATCH_SIZE]))
            new = CompressedIndex.train(self._layout, self._folder, np.concatenate(sample), count)
        no_pks = np.zeros(0, dtype=np.int64)
        stop = old.rows if rows is None else rows
        try:
            for start in range(0, stop, _BATCH_SIZE):
                with lock.reading():
                    entries = old.entries(start, min(start + _BATCH_SIZE, stop))
                new.replace(no_pks, entries)
        except BaseException:
            new.close()
            raise
        return new


def _system_errors() -> AbstractContextManager[None]:
    return system_errors.converted("the index cannot be updated")
