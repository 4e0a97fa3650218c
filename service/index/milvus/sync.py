"""Vectors in Milvus, kept equal to the catalogue: what `index/sync.py` does with FAISS, on a server that many
processes share.

A generation has a collection of videos, the vector [v ; t ; flag] and the category beside it, and one of frames once
somebody asks for moments. Milvus names candidates by inner product; their numbers come from the database, in the same
snapshot as all else of an answer, so scores are the same to the last digit whichever engine found them.

What a collection holds is written down in the database, in the row of `collections`: up to which change, how many rows,
and the moments that z-scores and missing captions need. One process at a time brings it up to date, and any may: that
which is first asked a question after a change. A batch is written down before it is sent and struck out after it has
arrived, so whoever comes after a crash sends it once more, which changes nothing, and the moments are never in doubt.

A collection is made beside the one that serves and put in its place in one step: where it is lost, where
`reelsrs index rebuild` asks for it, and where the library has grown out of comparing every vector, or back.
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
_PATIENCE_SECONDS = 15.0  # for another process that brings the collection up to date
_LINGER_SECONDS = 5.0  # what served until a moment ago may still be asked
_TRIES = 4


class MilvusIndex:
    """The collection of one generation, always as new as the database: of videos, or with `kind` "frame" of frames.

    `uri` is that of a server, http://[USER:PASSWORD@]HOST:PORT[/DATABASE], or a file PATH.db of Milvus Lite, which one
    process at a time may use.
    """

    refused: str | None = None  # there is no snapshot that could be

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
        """Connects when first asked, where no `client` is given. Raises ConfigurationError where pymilvus is not
        installed."""
        self.exact_up_to = exact_up_to
        self._db = database
        self._generation = generation
        self.kind = kind
        self.layout = Layout(generation.dimension, captions=kind != "frame")
        self._turn = threading.Lock()
        require()
        self._states = States(database, generation, kind)
        self.collections = Collections(uri, kind, self.layout, client)
        self._seen = ""  # the collection that was there when this process last looked
        self._tally: tuple[tuple[str, int], RunningStats] | None = None  # of a collection's version
        self._renewing: threading.Thread | None = None
        self._timing = timing or Timing()
        self._not_before = 0.0
        self._closing = threading.Event()

    @property
    def generation(self) -> Generation:
        """Whose vectors these are."""
        return self._generation

    @property
    def collection(self) -> str:
        """The name of the collection that serves; empty while there is none."""
        row = self._states.fetch()
        return "" if row is None else str(row.name)

    @contextmanager
    def current(self) -> Iterator[tuple[View, sa.Connection]]:
        """What can be searched, and a snapshot of the database, for as long as the block lasts: of the same state,
        where nothing changes at that moment, and never older than the call.

        What is changed meanwhile may be missing among the candidates, or be one already; numbers come from the
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
        """Raises what a question would raise now: Unavailable."""
        with self.current() as (view, _), reached():
            if not self.collections.is_there(view.name):
                self._seen = ""
                raise Unavailable("the collection of vectors is not there; it is being made anew")

    def save(self) -> None:
        """Have the alias point here if this is the generation that answers. There is nothing else to save."""
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
                except Exception:  # Lite and the server raise different ones where there is none yet
                    self.client.create_alias(row.name, alias, timeout=SECONDS)

    def rebuild(self) -> None:
        """Make the collection anew from the database, and put it in the place of the one that serves meanwhile."""
        with self._alone():
            old = self._states.fetch()
            name = self._announce(old)
        self._build(name, old)

    def differences(self) -> list[str]:
        """In what the collection differs from the rows that it stands for, number by number: in nothing, that is."""
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
        """Let go of the connection."""
        self._closing.set()
        if (renewing := self._renewing) is not None:
            renewing.join()
        self.collections.close()

    # --- one process at a time

    def _catch_up(self) -> None:
        """Have the collection hold what the database holds, whoever does it."""
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
                    if batch.empty:  # what was only queued
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
        """Until the block ends nobody else changes the collection, on whatever machine."""
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
        self.collections.send(row.name, batch)
        self.collections.await_visible(row.name)
        return self._states.put(row, number=row.coming, batch=None)

    def tally(self, connection: sa.Connection, row: sa.Row[Any]) -> RunningStats:
        """Of a state that is only read; the last one is kept, for it is megabytes."""
        known, state = self._tally, (row.name, row.version)
        if known is None or known[0] != state:
            whole = self._states.row(connection, whole=True)
            assert whole is not None, "`row` is of the same snapshot"
            known = self._tally = state, RunningStats.of(self.layout, whole)
        return known[1]

    # --- collections

    def _announce(self, row: sa.Row[Any] | None) -> str:
        """The name of a collection to come, written down so that one that never came to be is known, and removed."""
        if row is not None and row.next and self.collections.is_there(row.next):
            self.client.drop_collection(row.next, timeout=SECONDS)
        with self._db.write() as connection:
            library = generation_rows.library_id(connection)
        name = _name(library, self._generation.id, self.kind, secrets.token_hex(4))
        self._states.put(row, next=name)
        return name

    def _build(self, name: str, old: sa.Row[Any] | None, *, alone: bool = False) -> sa.Row[Any]:
        """Make and fill a collection and put it in the place of the `old` one; `alone` where this process holds the
        lock already."""
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
                # What came meanwhile; nothing else writes to it before it serves.
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
        """Begin to make a collection anew beside the questions, unless one is, or just went wrong."""
        if self._renewing is not None or self._closing.is_set() or time.monotonic() < self._not_before:
            return

        def run() -> None:
            again = self._timing.renewal_pause_seconds
            try:
                with self._db.alone(f"renewal-{self._generation.id}-{self.kind}") as taken:
                    if taken:  # else another process is at it
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
        # Back to exact only well below, so that a library at the border does not go to and fro.
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
        """What has to be sent so that the collection holds of these videos what the database does; the tally is
        brought to what it is then. With `empty` nothing of them is there yet."""
        entries = vector_rows.searchable(connection, keys, self._generation, self.kind)
        # Keys ascend: of what is new nothing can be there, and asking for it takes a fifth of a second.
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
        """The connection, made when first asked for."""
        return self.collections.client

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Row numbers and inner products of the best `count`, best first. Raises Unavailable."""
        try:
            return self.collections.find(row, query, count, where)
        except Unavailable:
            self._seen = ""  # look whether it is there
            raise


def _name(*parts: str) -> str:
    """Milvus takes letters, digits and underscores."""
    return re.sub(r"\W", "_", "_".join(("reelsrs", *parts)), flags=re.ASCII)
