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

from service.database import catalog, change_log, db, generation_rows, vector_rows
from service.database.common import chunks
from service.database.db import Database
from service.errors import ReelsError, Unavailable
from service.index.differences import differences
from service.index.milvus.batch import BATCH, Batch, video_of
from service.index.milvus.collections import Collections
from service.index.milvus.connection import SECONDS, reached, require
from service.index.milvus.running_stats import RunningStats
from service.index.milvus.states import States
from service.index.milvus.view import View
from service.index.rows import Layout, Rows
from service.index.sync import EXACT_UP_TO
from service.models import Categories, Generation, Kind
from service.models import Vectors as Matrix
from service.timing import Timing

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = structlog.get_logger(__name__)
_PATIENCE_SECONDS = 15.0  # wait for another process that updates the collection
_LINGER_SECONDS = 5.0  # a search may still use the collection that was replaced
_TRIES = 4


class MilvusIndex:
    """Milvus collection of one generation, always as new as the database: of videos, or of frames if `kind` is "frame".

    `uri` is that of a server, http://[USER:PASSWORD@]HOST:PORT[/DATABASE], or a file PATH.db of Milvus Lite, which only
    one process at a time may use.
    """

    refused: str | None = None  # there is no snapshot on disk

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
        self.layout = Layout(generation.dimension, captions=kind != "frame")
        self._turn = threading.Lock()
        require()
        self._states = States(database, generation, kind)
        self.collections = Collections(uri, kind, self.layout, client)
        self._seen = ""  # the collection that this process last found to exist
        self._tally: tuple[tuple[str, int], RunningStats] | None = None  # by collection and version
        self._renewing: threading.Thread | None = None
        self._timing = timing or Timing()
        self._not_before = 0.0
        self._closing = threading.Event()

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""
        return self._generation

    @property
    def collection(self) -> str:
        """Name of the collection that serves; empty if there is none."""
        row = self._states.fetch()
        return "" if row is None else str(row.name)

    @contextmanager
    def current(self) -> Iterator[tuple[View, sa.Connection]]:
        """Yield the view to search and a connection with a database snapshot, until the block ends.

        The snapshot is never older than the call. Collection and snapshot have the same state unless a change is being
        applied. Then a changed video may be missing among the candidates, or be there early; its vectors come from the
        snapshot. Raises Unavailable.
        """
        needed: int | None = None
        for _ in range(_TRIES):
            with self._db.read() as connection:
                row = self._states.row(connection)
                if needed is None:
                    needed = change_log.last_change(connection, self._generation.id)
                if row is not None and row.name == self._seen != "" and row.number >= needed:
                    if self._wanted_index(row.size, row.index_type) != row.index_type:
                        self._renew()
                    yield View(self, row, connection), connection
                    return
            self._catch_up()
        raise Unavailable("the vectors are being brought up to date; try again")

    def check(self) -> None:
        """Prepare a search, and check that the collection exists.

        Raises Unavailable, as a search would now.
        """
        with self.current() as (view, _), reached():
            if not self.collections.is_there(view.name):
                self._seen = ""
                raise Unavailable("the collection of vectors is not there; it is being made anew")

    def save(self) -> None:
        """Point the library's alias to this collection if its generation is active. Nothing else needs saving."""
        if self.kind == "frame":
            return
        with self._db.read() as connection:
            active, row = generation_rows.active_generation(connection), self._states.row(connection)
            alias = _name(generation_rows.library_id(connection))
        if row is None or not row.name or active is None or active.id != self._generation.id:
            return
        with reached():
            there = self.client.list_aliases(row.name, timeout=SECONDS).get("aliases", ())
            if alias not in there:
                try:
                    self.client.alter_alias(row.name, alias, timeout=SECONDS)
                except Exception:  # if there is no alias yet; Lite and server raise different errors
                    self.client.create_alias(row.name, alias, timeout=SECONDS)

    def rebuild(self) -> None:
        """Build the collection again from the database. The old collection serves until it is replaced."""
        with self._alone():
            old = self._states.fetch()
            name = self._announce(old)
        self._build(name, old)

    def differences(self) -> list[str]:
        """Return the differences between collection and database; empty if they agree."""
        found = []
        with self.current() as (view, connection), reached():
            expected = catalog.ready_keys(connection)
            for start in range(0, len(expected), BATCH):
                some = expected[start : start + BATCH]
                theirs = vector_rows.searchable(connection, some, self._generation, self.kind)
                order = np.argsort(theirs.keys, kind="stable")
                found += differences(self.collections.held(view.name, some), theirs, order)
            known = set(expected)
            found += [
                f"the index holds video {key}, which is not ready or not there"
                for key in sorted({video_of(self.kind, row) for row in self.collections.ids(view.name)} - known)
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
        with self._alone():
            row = self._states.fetch()
            if row is None or not row.name or (row.name != self._seen and not self.collections.is_there(row.name)):
                if row is not None and row.name:
                    log.warning("the collection is not there any more, making it anew", collection=row.name)
                row = self._build(self._announce(row), row, alone=True)
            self._seen = row.name
            if row.batch is not None:
                row = self._arrive(row, Batch.of(row.batch))
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, row.number, self._generation.id)
                for start in range(0, len(changed), BATCH):
                    tally = RunningStats.of(self.layout, row)
                    batch = self._plan(connection, row.name, tally, changed[start : start + BATCH])
                    number = last if start + BATCH >= len(changed) else row.number
                    if batch.empty:  # the changed videos have no vectors, for example because they are queued
                        row = self._states.put(row, number=number)
                        continue
                    row = self._states.put(
                        row,
                        version=row.version + 1,
                        coming=number,
                        size=tally.count,
                        largest=tally.largest,
                        moments=tally.pack(),
                        batch=batch.pack(),
                    )
                    row = self._arrive(row, batch)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the collection across all processes and machines. Raises Unavailable after 15 s."""
        busy = Unavailable("the vectors are being brought up to date; try again")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        if not self._turn.acquire(timeout=_PATIENCE_SECONDS):
            raise busy
        try:
            while True:
                with self._db.alone(f"vectors-{self._generation.id}-{self.kind}") as taken:
                    if taken:
                        with reached():
                            yield
                        return
                if time.monotonic() > deadline:
                    raise busy
                time.sleep(0.02)
        finally:
            self._turn.release()

    def _arrive(self, row: sa.Row[Any], batch: Batch) -> sa.Row[Any]:
        """Send the recorded batch, wait until it is visible, and record it as applied."""
        self.collections.send(row.name, batch)
        self.collections.await_visible(row.name)
        return self._states.put(row, number=row.coming, batch=None)

    def tally(self, connection: sa.Connection, row: sa.Row[Any]) -> RunningStats:
        """Return the running statistics of this state. The last are cached, because they take megabytes."""
        known, state = self._tally, (row.name, row.version)
        if known is None or known[0] != state:
            whole = self._states.row(connection, whole=True)
            assert whole is not None, "`row` is of the same snapshot"
            known = self._tally = state, RunningStats.of(self.layout, whole)
        return known[1]

    # --- collections

    def _announce(self, row: sa.Row[Any] | None) -> str:
        """Record the name of a new collection, so that a build that is aborted is removed later; return it."""
        if row is not None and row.next and self.collections.is_there(row.next):
            self.client.drop_collection(row.next, timeout=SECONDS)
        with self._db.write() as connection:
            library = generation_rows.library_id(connection)
        name = _name(library, self._generation.id, self.kind, secrets.token_hex(4))
        self._states.put(row, next=name)
        return name

    def _build(self, name: str, old: sa.Row[Any] | None, *, alone: bool = False) -> sa.Row[Any]:
        """Build and fill a collection, and replace the `old` one by it.

        `alone` says that this process already holds the lock.
        """
        started = time.perf_counter()
        with self._db.read() as connection:
            index = self._wanted_index(self._expected(connection), old.index_type if old is not None else "")
        with reached():
            self.collections.create(name, index)
            tally, number = RunningStats(self.layout), 0
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, 0, self._generation.id)
                for some in chunks(changed, BATCH):
                    batch = self._plan(connection, name, tally, some, empty=True)
                    self.collections.send(name, batch)
                    if self._closing.is_set():
                        raise Unavailable("the service stops")
                number = last
        if alone:
            row = self._install(name, index, tally, number)
        else:
            with self._alone():
                # Apply changes made meanwhile. No other process writes to the collection before it serves.
                with self._db.read() as connection:
                    last = change_log.last_change(connection, self._generation.id)
                    changed = change_log.changed_since(connection, number, self._generation.id)
                    for start in range(0, len(changed), BATCH):
                        self.collections.send(name, self._plan(connection, name, tally, changed[start : start + BATCH]))
                        self.collections.await_visible(name)
                row = self._install(name, index, tally, last)
        seconds = round(time.perf_counter() - started, 1)
        log.info("a collection was made", collection=name, index=index, rows=tally.count, seconds=seconds)
        if old is not None and old.name and old.name != name:
            if not alone:
                self._closing.wait(_LINGER_SECONDS)
            with reached():
                self.client.drop_collection(old.name, timeout=SECONDS)
        return row

    def _install(self, name: str, index: str, tally: RunningStats, number: int) -> sa.Row[Any]:
        self.collections.await_visible(name)
        row = self._states.put(
            self._states.fetch(),
            name=name,
            next="",
            version=0,
            index_type=index,
            number=number,
            coming=number,
            size=tally.count,
            largest=tally.largest,
            moments=tally.pack(),
            batch=None,
        )
        self._seen = name
        self.save()
        return row

    def _renew(self) -> None:
        """Start a rebuild in the background, unless a rebuild runs or failed a short time ago."""
        if self._renewing is not None or self._closing.is_set() or time.monotonic() < self._not_before:
            return

        def run() -> None:
            again = self._timing.renewal_pause_seconds
            try:
                with self._db.alone(f"renewal-{self._generation.id}-{self.kind}") as taken:
                    if taken:  # otherwise another process rebuilds it
                        self.rebuild()
                        again = 0
            except ReelsError as error:
                log.warning("the collection could not be renewed; the old one serves on", reason=str(error))
            except Exception as error:
                log.exception("the collection could not be renewed; the old one serves on", reason=str(error))
            finally:
                self._not_before = time.monotonic() + again
                self._renewing = None

        self._renewing = threading.Thread(target=run, name="collection", daemon=True)
        self._renewing.start()

    def _wanted_index(self, rows: int, now: str) -> str:
        # Return to an exact index only at half the size, so that a library near the limit does not alternate.
        return "FLAT" if rows <= (self.exact_up_to // 2 if now == "HNSW" else self.exact_up_to) else "HNSW"

    def _expected(self, connection: sa.Connection) -> int:
        if self.kind != "frame":
            return len(catalog.ready_keys(connection))
        size = sa.select(sa.func.sum(sa.func.length(db.embeddings.c.vectors))).where(
            db.embeddings.c.generation == self._generation.id, db.embeddings.c.kind == "frame"
        )
        return int(connection.execute(size).scalar() or 0) // (4 * self._generation.dimension)

    def _plan(
        self, connection: sa.Connection, name: str, tally: RunningStats, keys: Sequence[int], *, empty: bool = False
    ) -> Batch:
        """Return the batch that gives the collection the database's state of these videos. Update `tally` accordingly.

        With `empty`, the collection holds no rows of these videos yet.
        """
        entries = vector_rows.searchable(connection, keys, self._generation, self.kind)
        # Primary keys ascend, so a new video has no row there. A query for its rows takes a fifth of a second.
        known = [] if empty else [key for key in keys if key <= tally.largest]
        gone: list[int] = []
        if known:
            tally.add(self.collections.held(name, known, gone), -1)
        tally.add(entries, 1)
        batch = Batch.from_entries(self.layout, self.kind, entries)
        staying = set(batch.ids.tolist())
        batch.gone = np.array([row for row in gone if row not in staying], dtype=np.int64)
        return batch

    @property
    def client(self) -> MilvusClient:
        """Client of Milvus, connected at first use."""
        return self.collections.client

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Return the ids of the best `count` rows and their inner products, best first. Raises Unavailable."""
        try:
            return self.collections.find(row, query, count, where)
        except Unavailable:
            self._seen = ""  # the next search checks whether the collection exists
            raise


def _name(*parts: str) -> str:
    """Join the parts into a name that Milvus accepts: letters, digits and underscores."""
    return re.sub(r"\W", "_", "_".join(("reelsrs", *parts)), flags=re.ASCII)
