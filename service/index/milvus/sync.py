"""Keep Milvus collections equal to the database, as `index/sync.py` does with FAISS, shared by many processes.

A generation has a collection of videos, with the vector [v ; t ; flag] and the category of each. After the first
search for moments, the generation also has a collection of frames. Milvus finds candidates by inner product. Their
vectors come from the database, in the snapshot of the search, so both engines give the same scores to the last digit.

The database row in `collections` records the collection's last applied change, its row count, and the running
statistics that z-scores and missing captions need. One process at a time updates a collection: the process that
receives the first search after a change. A batch is stored in the database before it is sent, and removed after it has
arrived. After a crash, the next process sends the batch again, which changes nothing, and the statistics stay correct.

A new collection is built beside the one that serves and replaces it in one step. This happens if the collection is
lost, if `reelsrs index rebuild` requests it, and if the library crosses the size limit of an exact index.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
import structlog

from service.database import change_log, db, generation_rows, vector_rows, video_rows
from service.database.common import chunks
from service.database.db import Database
from service.errors import ReelsError, Unavailable
from service.index.differences import differences
from service.index.layout import Layout, RowNumbers
from service.index.milvus.batch import BATCH_SIZE, Batch, video_pk_of
from service.index.milvus.collection_state import CollectionState
from service.index.milvus.collection_stats import CollectionStats
from service.index.milvus.collections import Collections
from service.index.milvus.connection import REQUEST_TIMEOUT_SECONDS, require_pymilvus, translate_errors
from service.index.milvus.view import View
from service.index.sync import EXACT_UP_TO
from service.models import CategoryFilter, Generation, Kind
from service.models import Vectors as Matrix
from service.timing import Timing

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = structlog.get_logger(__name__)
_LOCK_TIMEOUT_SECONDS = 15.0  # wait for another process that updates the collection
_LINGER_SECONDS = 5.0  # a search may still use the collection that was replaced
_MAX_TRIES = 4


class MilvusIndex:
    """Milvus collection of one generation, always as new as the database: of videos, or of frames if `kind` is "frame".

    `uri` is that of a server, http://[USER:PASSWORD@]HOST:PORT[/DATABASE], or a file PATH.db of Milvus Lite, which only
    one process at a time may use.
    """

    snapshot_error: str | None = None  # there is no snapshot on disk

    def __init__(
        self,
        database: Database,
        uri: str,
        generation: Generation,
        kind: Kind,
        *,
        exact_up_to: int = EXACT_UP_TO,
        client: MilvusClient | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Use `client` if it is given; otherwise connect at first use.

        Raises ConfigurationError if pymilvus is not installed.
        """
        self.exact_up_to = exact_up_to
        self._db = database
        self._generation = generation
        self.kind = kind
        self.layout = Layout(generation.dimension, has_text=kind != "frame")
        self._thread_lock = threading.Lock()
        require_pymilvus()
        self._state = CollectionState(database, generation, kind)
        self.collections = Collections(uri, kind, self.layout, client)
        self._known_name = ""  # the collection that this process last found to exist
        self._cached_stats: tuple[tuple[str, int], CollectionStats] | None = None  # by collection and version
        self._renewing: threading.Thread | None = None
        self._timing = timing or Timing()
        self._retry_at = 0.0
        self._closing = threading.Event()

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""
        return self._generation

    @property
    def collection(self) -> str:
        """Name of the collection that serves; empty if there is none."""
        row = self._state.fetch()
        return "" if row is None else str(row.name)

    @contextmanager
    def current(self) -> Iterator[tuple[View, sa.Connection]]:
        """Yield the view to search and a connection with a database snapshot, until the block ends.

        The snapshot is never older than the call. Collection and snapshot have the same state unless a change is being
        applied. Then a changed video may be missing among the candidates, or be there early; its vectors come from the
        snapshot. Raises Unavailable.
        """
        needed: int | None = None
        for _ in range(_MAX_TRIES):
            with self._db.read() as connection:
                row = self._state.row(connection)
                if needed is None:
                    needed = change_log.last_change(connection, self._generation.id)
                if row is not None and row.name == self._known_name != "" and row.number >= needed:
                    if self._target_index(row.size, row.index_type) != row.index_type:
                        self._renew()
                    yield View(self, row, connection), connection
                    return
            self._catch_up()
        raise Unavailable("the vector collection is being updated; try again")

    def check(self) -> None:
        """Prepare a search, and check that the collection exists.

        Raises Unavailable, as a search would now.
        """
        with self.current() as (view, _), translate_errors():
            if not self.collections.exists(view.name):
                self._known_name = ""
                raise Unavailable("the vector collection does not exist; it is being rebuilt; try again")

    def save(self) -> None:
        """Point the library's alias to this collection if its generation is active. Nothing else needs saving."""
        if self.kind == "frame":
            return
        with self._db.read() as connection:
            active, row = generation_rows.active_generation(connection), self._state.row(connection)
            alias = _name(generation_rows.library_id(connection))
        if row is None or not row.name or active is None or active.id != self._generation.id:
            return
        with translate_errors():
            aliases = self.client.list_aliases(row.name, timeout=REQUEST_TIMEOUT_SECONDS).get("aliases", ())
            if alias not in aliases:
                try:
                    self.client.alter_alias(row.name, alias, timeout=REQUEST_TIMEOUT_SECONDS)
                except Exception:  # if there is no alias yet; Lite and server raise different errors
                    self.client.create_alias(row.name, alias, timeout=REQUEST_TIMEOUT_SECONDS)

    def rebuild(self) -> None:
        """Build the collection again from the database. The old collection serves until it is replaced."""
        with self._exclusive_lock():
            old = self._state.fetch()
            name = self._record_next_name(old)
        self._build(name, old)

    def differences(self) -> list[str]:
        """Return the differences between collection and database; empty if they agree."""
        found = []
        with self.current() as (view, connection), translate_errors():
            expected = video_rows.ready_pks(connection)
            for start in range(0, len(expected), BATCH_SIZE):
                batch_pks = expected[start : start + BATCH_SIZE]
                database_rows = vector_rows.index_entries(connection, batch_pks, self._generation, self.kind)
                order = np.argsort(database_rows.video_pks, kind="stable")
                found += differences(self.collections.fetch(view.name, batch_pks), database_rows, order)
            known = set(expected)
            found += [
                f"the index contains video {pk}, which is not ready or does not exist"
                for pk in sorted({video_pk_of(self.kind, row) for row in self.collections.ids(view.name)} - known)
            ]
        return found

    def close(self, *, save: bool = True) -> None:  # noqa: ARG002  (there is nothing to save)
        """Close the connection, after a rebuild in the background has stopped."""
        self._closing.set()
        if (renewing := self._renewing) is not None:
            renewing.join()
        self.collections.close()

    # --- one process at a time

    def _catch_up(self) -> None:
        """Bring the collection to the state of the database, unless another process already did."""
        with self._exclusive_lock():
            row = self._state.fetch()
            if row is None or not row.name or (row.name != self._known_name and not self.collections.exists(row.name)):
                if row is not None and row.name:
                    log.warning("collection missing; building it", collection=row.name)
                row = self._build(self._record_next_name(row), row, has_lock=True)
            self._known_name = row.name
            if row.batch is not None:
                row = self._deliver(row, Batch.unpack(row.batch))
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, row.number, self._generation.id)
                for start in range(0, len(changed), BATCH_SIZE):
                    stats = CollectionStats.from_row(self.layout, row)
                    batch = self._plan(connection, row.name, stats, changed[start : start + BATCH_SIZE])
                    number = last if start + BATCH_SIZE >= len(changed) else row.number
                    if batch.is_empty:  # the changed videos have no vectors, for example because they are queued
                        row = self._state.compare_and_set(row, number=number)
                        continue
                    row = self._state.compare_and_set(
                        row,
                        version=row.version + 1,
                        coming=number,
                        size=stats.count,
                        largest=stats.largest,
                        moments=stats.pack(),
                        batch=batch.pack(),
                    )
                    row = self._deliver(row, batch)

    @contextmanager
    def _exclusive_lock(self) -> Iterator[None]:
        """Hold the lock of the collection across all processes and machines. Raises Unavailable after 15 s."""
        busy = Unavailable("the vector collection is being updated; try again")
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        if not self._thread_lock.acquire(timeout=_LOCK_TIMEOUT_SECONDS):
            raise busy
        try:
            while True:
                with self._db.try_lock(f"vectors-{self._generation.id}-{self.kind}") as taken:
                    if taken:
                        with translate_errors():
                            yield
                        return
                if time.monotonic() > deadline:
                    raise busy
                time.sleep(0.02)
        finally:
            self._thread_lock.release()

    def _deliver(self, row: sa.Row[Any], batch: Batch) -> sa.Row[Any]:
        """Send the recorded batch, wait until it is visible, and record it as applied."""
        self.collections.send(row.name, batch)
        self.collections.await_visible(row.name)
        return self._state.compare_and_set(row, number=row.coming, batch=None)

    def load_stats(self, connection: sa.Connection, row: sa.Row[Any]) -> CollectionStats:
        """Return the running statistics of this state. The last are cached, because they take megabytes."""
        known, state = self._cached_stats, (row.name, row.version)
        if known is None or known[0] != state:
            whole = self._state.row(connection, with_blobs=True)
            assert whole is not None, "`row` is of the same snapshot"
            known = self._cached_stats = state, CollectionStats.from_row(self.layout, whole)
        return known[1]

    # --- collections

    def _record_next_name(self, row: sa.Row[Any] | None) -> str:
        """Record the name of a new collection, so that a build that is aborted is removed later; return it."""
        if row is not None and row.next and self.collections.exists(row.next):
            self.client.drop_collection(row.next, timeout=REQUEST_TIMEOUT_SECONDS)
        with self._db.write() as connection:
            library = generation_rows.library_id(connection)
        name = _name(library, self._generation.id, self.kind, secrets.token_hex(4))
        self._state.compare_and_set(row, next=name)
        return name

    def _build(self, name: str, old: sa.Row[Any] | None, *, has_lock: bool = False) -> sa.Row[Any]:
        """Build and fill a collection, and replace the `old` one by it.

        `has_lock` says that this process already holds the lock.
        """
        started = time.perf_counter()
        with self._db.read() as connection:
            index = self._target_index(self._expected(connection), old.index_type if old is not None else "")
        with translate_errors():
            self.collections.create(name, index)
            stats, number = CollectionStats(self.layout), 0
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, 0, self._generation.id)
                for batch_pks in chunks(changed, BATCH_SIZE):
                    batch = self._plan(connection, name, stats, batch_pks, empty=True)
                    self.collections.send(name, batch)
                    if self._closing.is_set():
                        raise Unavailable("the service is shutting down; try again later")
                number = last
        if has_lock:
            row = self._install(name, index, stats, number)
        else:
            with self._exclusive_lock():
                # Apply changes made meanwhile. No other process writes to the collection before it serves.
                with self._db.read() as connection:
                    last = change_log.last_change(connection, self._generation.id)
                    changed = change_log.changed_since(connection, number, self._generation.id)
                    for batch_pks in chunks(changed, BATCH_SIZE):
                        self.collections.send(name, self._plan(connection, name, stats, batch_pks))
                        self.collections.await_visible(name)
                row = self._install(name, index, stats, last)
        seconds = round(time.perf_counter() - started, 1)
        log.info("collection built", collection=name, index=index, rows=stats.count, seconds=seconds)
        if old is not None and old.name and old.name != name:
            if not has_lock:
                self._closing.wait(_LINGER_SECONDS)
            with translate_errors():
                self.client.drop_collection(old.name, timeout=REQUEST_TIMEOUT_SECONDS)
        return row

    def _install(self, name: str, index: str, stats: CollectionStats, number: int) -> sa.Row[Any]:
        self.collections.await_visible(name)
        row = self._state.compare_and_set(
            self._state.fetch(),
            name=name,
            next="",
            version=0,
            index_type=index,
            number=number,
            coming=number,
            size=stats.count,
            largest=stats.largest,
            moments=stats.pack(),
            batch=None,
        )
        self._known_name = name
        self.save()
        return row

    def _renew(self) -> None:
        """Start a rebuild in the background, unless a rebuild runs or failed a short time ago."""
        if self._renewing is not None or self._closing.is_set() or time.monotonic() < self._retry_at:
            return

        def run() -> None:
            pause = self._timing.renewal_pause_seconds
            try:
                with self._db.try_lock(f"renewal-{self._generation.id}-{self.kind}") as taken:
                    if taken:  # otherwise another process rebuilds it
                        self.rebuild()
                        pause = 0
            except ReelsError as error:
                log.warning("collection rebuild failed; keeping the old collection", reason=str(error))
            except Exception as error:
                log.exception("collection rebuild failed; keeping the old collection", reason=str(error))
            finally:
                self._retry_at = time.monotonic() + pause
                self._renewing = None

        self._renewing = threading.Thread(target=run, name="collection", daemon=True)
        self._renewing.start()

    def _target_index(self, rows: int, current: str) -> str:
        # Return to an exact index only at half the size, so that a library near the limit does not alternate.
        return "FLAT" if rows <= (self.exact_up_to // 2 if current == "HNSW" else self.exact_up_to) else "HNSW"

    def _expected(self, connection: sa.Connection) -> int:
        if self.kind != "frame":
            return len(video_rows.ready_pks(connection))
        size = sa.select(sa.func.sum(sa.func.length(db.embeddings.c.vectors))).where(
            db.embeddings.c.generation == self._generation.id, db.embeddings.c.kind == "frame"
        )
        return int(connection.execute(size).scalar() or 0) // (4 * self._generation.dimension)

    def _plan(
        self, connection: sa.Connection, name: str, stats: CollectionStats, pks: Sequence[int], *, empty: bool = False
    ) -> Batch:
        """Return the batch that gives the collection the database's state of these videos. Update `stats` accordingly.

        With `empty`, the collection holds no rows of these videos yet.
        """
        entries = vector_rows.index_entries(connection, pks, self._generation, self.kind)
        # Primary keys ascend, so a new video has no row there. A query for its rows takes a fifth of a second.
        known = [] if empty else [pk for pk in pks if pk <= stats.largest]
        present_ids: list[int] = []
        if known:
            stats.add(self.collections.fetch(name, known, present_ids), -1)
        stats.add(entries, 1)
        batch = Batch.from_entries(self.layout, self.kind, entries)
        staying = set(batch.ids.tolist())
        batch.deleted_ids = np.array([row for row in present_ids if row not in staying], dtype=np.int64)
        return batch

    @property
    def client(self) -> MilvusClient:
        """Client of Milvus, connected at first use."""
        return self.collections.client

    def search(self, row: sa.Row[Any], query: Matrix, count: int, where: CategoryFilter) -> tuple[RowNumbers, Matrix]:
        """Return the ids of the best `count` rows and their inner products, best first. Raises Unavailable."""
        try:
            return self.collections.search(row, query, count, where)
        except Unavailable:
            self._known_name = ""  # the next search checks whether the collection exists
            raise


def _name(*parts: str) -> str:
    """Join the parts into a name that Milvus accepts: letters, digits and underscores."""
    return re.sub(r"\W", "_", "_".join(("reelsrs", *parts)), flags=re.ASCII)
