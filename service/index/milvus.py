"""Vectors in Milvus, kept equal to the catalogue: what `follower.py` and `index/` do with FAISS, on a server that many
processes share. The home of pymilvus.

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

import io
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import make_url

from service.database import catalog, change_log, db, generation_rows, vector_rows
from service.database.db import Database
from service.domain import EVERY_CATEGORY, MAX_FRAMES, MAX_NAME_CHARACTERS, Categories, Entries, Generation, Keys, Kind
from service.domain import Vectors as Matrix
from service.errors import ConfigurationError, ReelsError, Unavailable
from service.index.follower import EXACT_UP_TO, differences
from service.index.rows import Layout, Rows
from service.timing import Timing
from service.vectors import Moments

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = structlog.get_logger(__name__)

PREFIX = "milvus+"

_SECONDS = 10.0  # for an answer of Milvus
_PATIENCE_SECONDS = 15.0  # for another process that brings the collection up to date
_LINGER_SECONDS = 5.0  # what served until a moment ago may still be asked
_TRIES = 4
_BATCH = 1024  # videos; of rows, what one message holds
_MOST = 16_384  # rows of an answer, Milvus's own limit
_FRAMES = 1 << 16  # ids of frames: the video's key times this, and the frame's number
_BREADTH = 512  # how many candidates HNSW keeps in sight, at least
_GRAPH = {"M": 32, "efConstruction": 200}


class MilvusFollower:
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
        self._uri = uri
        self._generation = generation
        self.kind = kind
        self.layout = Layout(generation.dimension, captions=kind != "frame")
        self._turn = threading.Lock()
        self._connecting = threading.Lock()
        self._connection = client
        self._seen = ""  # the collection that was there when this process last looked
        self._tally: tuple[tuple[str, int], Tally] | None = None  # of a collection's version
        self._renewing: threading.Thread | None = None
        self._timing = timing or Timing()
        self._not_before = 0.0
        self._closing = threading.Event()
        _import()

    @property
    def generation(self) -> Generation:
        """Whose vectors these are."""
        return self._generation

    @property
    def collection(self) -> str:
        """The name of the collection that serves; empty while there is none."""
        row = self._fetch()
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
                row = self._row(connection)
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
        with self.current() as (view, _), _reached():
            if not self._is_there(view.name):
                self._seen = ""
                raise Unavailable("the collection of vectors is not there; it is being made anew")

    def save(self) -> None:
        """Have the alias point here if this is the generation that answers. There is nothing else to save."""
        if self.kind == "frame":
            return
        with self._db.read() as connection:
            active, row = generation_rows.active_generation(connection), self._row(connection)
            alias = _name(generation_rows.library_id(connection))
        if row is None or not row.name or active is None or active.id != self._generation.id:
            return
        with _reached():
            there = self.client.list_aliases(row.name, timeout=_SECONDS).get("aliases", ())
            if alias not in there:
                try:
                    self.client.alter_alias(row.name, alias, timeout=_SECONDS)
                except Exception:  # Lite and the server raise different ones where there is none yet
                    self.client.create_alias(row.name, alias, timeout=_SECONDS)

    def rebuild(self) -> None:
        """Make the collection anew from the database, and put it in the place of the one that serves meanwhile."""
        with self._alone():
            old = self._fetch()
            name = self._announce(old)
        self._build(name, old)

    def differences(self) -> list[str]:
        """In what the collection differs from the rows that it stands for, number by number: in nothing, that is."""
        found = []
        with self.current() as (view, connection), _reached():
            expected = catalog.ready_keys(connection)
            for start in range(0, len(expected), _BATCH):
                some = expected[start : start + _BATCH]
                theirs = vector_rows.searchable(connection, some, self._generation, self.kind)
                order = np.argsort(theirs.keys, kind="stable")
                found += differences(self._held(view.name, some), theirs, order)
            known = set(expected)
            found += [
                f"the index holds video {key}, which is not ready or not there"
                for key in sorted({_key(self.kind, row) for row in self._ids(view.name)} - known)
            ]
        return found

    def close(self, *, save: bool = True) -> None:  # noqa: ARG002  (there is nothing to save)
        """Let go of the connection."""
        self._closing.set()
        if (renewing := self._renewing) is not None:
            renewing.join()
        if self._connection is not None:
            self._connection.close()

    # --- one process at a time

    def _catch_up(self) -> None:
        """Have the collection hold what the database holds, whoever does it."""
        with self._alone():
            row = self._fetch()
            if row is None or not row.name or (row.name != self._seen and not self._is_there(row.name)):
                if row is not None and row.name:
                    log.warning("the collection is not there any more, making it anew", collection=row.name)
                row = self._build(self._announce(row), row, alone=True)
            self._seen = row.name
            if row.batch is not None:
                row = self._arrive(row, _Batch.of(row.batch))
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, row.number, self._generation.id)
                for start in range(0, len(changed), _BATCH):
                    tally = Tally.of(self.layout, row)
                    batch = self._plan(connection, row.name, tally, changed[start : start + _BATCH])
                    number = last if start + _BATCH >= len(changed) else row.number
                    if batch.empty:  # what was only queued
                        row = self._put(row, number=number)
                        continue
                    row = self._put(
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
                        with _reached():
                            yield
                        return
                if time.monotonic() > deadline:
                    raise busy
                time.sleep(0.02)
        finally:
            self._turn.release()

    def _arrive(self, row: sa.Row[Any], batch: _Batch) -> sa.Row[Any]:
        self._send(row.name, batch)
        self.await_visible(row.name)
        return self._put(row, number=row.coming, batch=None)

    # --- rows of the table

    def _row(self, connection: sa.Connection, *, whole: bool = False) -> sa.Row[Any] | None:
        columns = [one for one in db.collections.c if whole or one.name not in ("moments", "batch")]
        return connection.execute(
            sa.select(*columns).where(
                db.collections.c.generation == self._generation.id, db.collections.c.kind == self.kind
            )
        ).first()

    def _fetch(self) -> sa.Row[Any] | None:
        with self._db.read() as connection:
            return self._row(connection, whole=True)

    def _put(self, before: sa.Row[Any] | None, **values: Any) -> sa.Row[Any]:
        mine = {"generation": self._generation.id, "kind": self.kind}
        table = db.collections
        with self._db.write() as connection:
            if before is None:
                numbers = dict.fromkeys(("version", "number", "coming", "size"), 0)
                first = {"name": "", "index_type": "", **numbers, "largest": -1, "moments": b"", **values}
                connection.execute(sa.insert(table).values(**mine, **first))
            else:
                same = sa.and_(table.c.generation == self._generation.id, table.c.kind == self.kind)
                unchanged = sa.and_(table.c.name == before.name, table.c.number == before.number)
                done = connection.execute(sa.update(table).where(same, unchanged).values(**values))
                if done.rowcount != 1:  # the lock was lost with its connection, and another went on
                    raise Unavailable("the vectors are being brought up to date; try again")
            row = self._row(connection, whole=True)
        assert row is not None, "it was just written"
        return row

    def tally(self, connection: sa.Connection, row: sa.Row[Any]) -> Tally:
        """Of a state that is only read; the last one is kept, for it is megabytes."""
        known, state = self._tally, (row.name, row.version)
        if known is None or known[0] != state:
            whole = self._row(connection, whole=True)
            assert whole is not None, "`row` is of the same snapshot"
            known = self._tally = state, Tally.of(self.layout, whole)
        return known[1]

    # --- collections

    def _announce(self, row: sa.Row[Any] | None) -> str:
        """The name of a collection to come, written down so that one that never came to be is known, and removed."""
        if row is not None and row.next and self._is_there(row.next):
            self.client.drop_collection(row.next, timeout=_SECONDS)
        with self._db.write() as connection:
            library = generation_rows.library_id(connection)
        name = _name(library, self._generation.id, self.kind, secrets.token_hex(4))
        self._put(row, next=name)
        return name

    def _build(self, name: str, old: sa.Row[Any] | None, *, alone: bool = False) -> sa.Row[Any]:
        """Make and fill a collection and put it in the place of the `old` one; `alone` where this process holds the
        lock already."""
        started = time.perf_counter()
        with self._db.read() as connection:
            index = self._wanted_index(self._expected(connection), old.index_type if old is not None else "")
        with _reached():
            self._create(name, index)
            tally, number = Tally(self.layout), 0
            with self._db.read() as connection:
                last = change_log.last_change(connection, self._generation.id)
                changed = change_log.changed_since(connection, 0, self._generation.id)
                for start in range(0, len(changed), _BATCH):
                    batch = self._plan(connection, name, tally, changed[start : start + _BATCH], empty=True)
                    self._send(name, batch)
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
                    for start in range(0, len(changed), _BATCH):
                        self._send(name, self._plan(connection, name, tally, changed[start : start + _BATCH]))
                        self.await_visible(name)
                row = self._install(name, index, tally, last)
        seconds = round(time.perf_counter() - started, 1)
        log.info("a collection was made", collection=name, index=index, rows=tally.count, seconds=seconds)
        if old is not None and old.name and old.name != name:
            if not alone:
                self._closing.wait(_LINGER_SECONDS)
            with _reached():
                self.client.drop_collection(old.name, timeout=_SECONDS)
        return row

    def _install(self, name: str, index: str, tally: Tally, number: int) -> sa.Row[Any]:
        self.await_visible(name)
        row = self._put(
            self._fetch(),
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

    # --- Milvus

    @property
    def client(self) -> MilvusClient:
        """The connection, made when first asked for."""
        with self._connecting:
            if self._connection is None:
                self._connection = _connect(self._uri)
            return self._connection

    def _is_there(self, name: str) -> bool:
        return bool(self.client.has_collection(name, timeout=_SECONDS))

    def _create(self, name: str, index: str) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("video", DataType.INT64)
        schema.add_field("category", DataType.VARCHAR, max_length=4 * MAX_NAME_CHARACTERS)  # bytes; "" for none
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.layout.width)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=_GRAPH if index == "HNSW" else {})
        self.client.create_collection(name, schema=schema, index_params=indexes, timeout=60)

    def _plan(
        self, connection: sa.Connection, name: str, tally: Tally, keys: list[int], *, empty: bool = False
    ) -> _Batch:
        """What has to be sent so that the collection holds of these videos what the database does; the tally is
        brought to what it is then. With `empty` nothing of them is there yet."""
        entries = vector_rows.searchable(connection, keys, self._generation, self.kind)
        # Keys ascend: of what is new nothing can be there, and asking for it takes a fifth of a second.
        known = [] if empty else [key for key in keys if key <= tally.largest]
        gone: list[int] = []
        if known:
            tally.add(self._held(name, known, gone), -1)
        tally.add(entries, 1)
        batch = _Batch.from_entries(self.layout, self.kind, entries)
        staying = set(batch.ids.tolist())
        batch.gone = np.array([row for row in gone if row not in staying], dtype=np.int64)
        return batch

    def _send(self, name: str, batch: _Batch) -> None:
        for ids in _chunks(batch.gone.tolist()):
            self.client.delete(name, ids=ids, timeout=_SECONDS)
        for places in _chunks(range(len(batch.ids))):
            rows = [
                {
                    "id": int(batch.ids[n]),
                    "video": int(batch.keys[n]),
                    "category": batch.categories[n] or "",
                    "vector": batch.rows[n],
                }
                for n in places
            ]
            self.client.upsert(name, rows, timeout=4 * _SECONDS)

    def await_visible(self, name: str) -> None:
        """Wait until all that was sent can be found: searches need not wait, then, each by itself."""
        nobody, fields = "id in [-1]", ["id"]
        self.client.query(name, filter=nobody, output_fields=fields, consistency_level="Strong", timeout=_SECONDS)

    def _held(self, name: str, keys: Iterable[int], ids: list[int] | None = None) -> Entries:
        """What the collection holds of these videos, by key and frame; their row numbers are put into `ids`."""
        found: list[dict[str, Any]] = []
        for some in _chunks(list(keys), _MOST // MAX_FRAMES if self.kind == "frame" else _BATCH):
            found += self.client.query(
                name,
                filter=f"video in {some}",
                output_fields=["id", "video", "category", "vector"],
                consistency_level="Strong",
                timeout=_SECONDS,
            )
        found.sort(key=lambda row: int(row["id"]))
        if ids is not None:
            ids += [int(row["id"]) for row in found]
        rows = np.array([row["vector"] for row in found], dtype=np.float32).reshape(-1, self.layout.width)
        pictures, captions, captioned = self.layout.split(rows)
        return Entries(
            np.array([row["video"] for row in found], dtype=np.int64),
            pictures,
            captions if self.layout.captions else None,
            captioned,
            tuple(row["category"] or None for row in found),
        )

    def _ids(self, name: str) -> Iterator[int]:
        rows = self.client.query_iterator(
            name, batch_size=_BATCH, filter="id >= 0", output_fields=["id"], timeout=_SECONDS
        )
        try:
            while some := rows.next():
                yield from (int(row["id"]) for row in some)
        finally:
            rows.close()

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Row numbers and inner products of the best `count`, best first."""
        index: dict[str, Any] = {"ef": min(2 * _MOST, max(_BREADTH, count))} if row.index_type == "HNSW" else {}
        try:
            with _reached():
                hits = self.client.search(
                    row.name,
                    [query.tolist()],
                    filter=_expression(where),
                    limit=count,
                    output_fields=["id"],
                    search_params={"metric_type": "IP", "params": index},
                    # Nothing has to be waited for: `_settle` did, and what serves never goes back.
                    consistency_level="Bounded",
                    timeout=_SECONDS,
                )[0]
        except Unavailable:
            self._seen = ""  # look whether it is there
            raise
        ids = np.array([hit["id"] for hit in hits], dtype=np.int64)
        return ids, np.array([hit["distance"] for hit in hits], dtype=np.float32)


class View:
    """A collection in one state of the database, as a search wants it (`index/rows.py`: Searchable)."""

    def __init__(self, follower: MilvusFollower, row: sa.Row[Any], connection: sa.Connection) -> None:
        self.name: str = row.name
        self.kind = f"milvus {row.index_type.lower()}"
        self.exact: bool = row.index_type == "FLAT"
        self.layout = Layout(follower.generation.dimension, captions=follower.kind != "frame")
        self._follower = follower
        self._row = row
        self._connection = connection
        self._vectors: dict[int, Matrix] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._row.size)

    def search(self, query: Matrix, count: int, where: Categories = EVERY_CATEGORY) -> tuple[Rows, Matrix]:
        """Rows and inner products with `query` (width,) of the best `count`, best first; fewer where there are fewer,
        and never more than Milvus gives, 16,384."""
        if where.include == frozenset():
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        asked = count
        while True:
            rows, products = self._follower.find(self._row, query, min(asked, _MOST), where)
            if not self.layout.captions:
                return rows, products
            self._read(rows)
            known = np.array([row in self._vectors for row in rows.tolist()], dtype=np.bool_)
            if len(rows) < asked or known.sum() >= count:
                return rows[known][:count], products[known][:count]
            asked += count  # some of them came after the snapshot of this answer

    def keys(self, rows: Rows) -> Keys:
        """Whose these rows are."""
        return rows if self.layout.captions else rows // _FRAMES

    def get(self, rows: Rows) -> Matrix:
        """(N, width) the rows, as the database has them."""
        found = [self._vectors[row] for row in rows.tolist()]
        return np.stack(found) if found else np.zeros((0, self.layout.width), dtype=np.float32)

    def rows_of(self, keys: Keys) -> Rows:
        """The rows of these videos that are there."""
        self._read(keys)
        return np.array([key for key in keys.tolist() if key in self._vectors], dtype=np.int64)

    def similarity(
        self, picture: npt.NDArray[np.floating], caption: npt.NDArray[np.floating], *, deviations: bool = True
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation, over all that is there, of <picture, v> and of <caption, t>; without
        `deviations` they are 0."""
        seen, read = self._follower.tally(self._connection, self._row).moments
        return seen.similarity(picture, deviation=deviations), read.similarity(caption, deviation=deviations)

    @property
    def mean_caption(self) -> npt.NDArray[np.float64]:
        """(D,) the mean of all captions, what a missing one counts as; zero where there is none."""
        return self._follower.tally(self._connection, self._row).moments[1].mean

    def _read(self, rows: Rows) -> None:
        new = [row for row in rows.tolist() if row not in self._vectors]
        entries = vector_rows.searchable(self._connection, new, self._follower.generation, self._follower.kind)
        whole = self.layout.join(entries.pictures, entries.captions, entries.captioned)
        self._vectors.update(zip(entries.keys.tolist(), whole, strict=True))


class Tally:
    """What is to be known of all rows at once."""

    def __init__(self, layout: Layout) -> None:
        self.count = 0
        self.largest = -1
        self.moments = (Moments(layout.dimension), Moments(layout.dimension))

    def add(self, entries: Entries, sign: int) -> None:
        """Count rows in, or with `sign` -1 out."""
        self.count += sign * len(entries.keys)
        self.largest = max(self.largest, int(entries.keys.max(initial=-1)))
        self.moments[0].add(entries.pictures, sign)
        if entries.captions is not None:
            self.moments[1].add(entries.captions[entries.captioned], sign)

    def pack(self) -> bytes:
        """The moments, for the database."""
        file = io.BytesIO()
        parts = [moments.state() for moments in self.moments]
        arrays: dict[str, Any] = {
            f"{n}_{name}": _half(value) for n, one in enumerate(parts) for name, value in one.items()
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def of(cls, layout: Layout, row: sa.Row[Any]) -> Tally:
        """What was written down."""
        made = cls(layout)
        made.count, made.largest = row.size, row.largest
        with np.load(io.BytesIO(row.moments), allow_pickle=False) as arrays:
            first, second = (
                Moments.of({name: _whole(arrays[f"{n}_{name}"], name, layout.dimension) for name in Moments.PARTS})
                for n in (0, 1)
            )
        made.moments = first, second
        return made


def _half(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of a symmetric matrix, which second moments are, one half will do."""
    return value[np.triu_indices(len(value))] if value.ndim == 2 else value


def _whole(value: npt.NDArray[Any], name: str, dimension: int) -> npt.NDArray[Any]:
    if name != "outer":
        return value
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = value
    return np.asarray(square + np.triu(square, 1).T)


@dataclass
class _Batch:
    """Rows to put in (in place of those with the same id), and ids to take out."""

    ids: Rows
    keys: Keys
    rows: Matrix
    categories: list[str | None]
    gone: Rows

    @classmethod
    def from_entries(cls, layout: Layout, kind: Kind, entries: Entries) -> _Batch:
        ids = entries.keys
        if kind == "frame":
            starts = np.r_[True, entries.keys[1:] != entries.keys[:-1]] if len(ids) else np.zeros(0, dtype=np.bool_)
            places = np.arange(len(ids))
            ids = ids * _FRAMES + places - np.maximum.accumulate(np.where(starts, places, 0))
        rows = layout.join(entries.pictures, entries.captions, entries.captioned)
        return cls(ids, entries.keys, rows, list(entries.categories), np.zeros(0, dtype=np.int64))

    @property
    def empty(self) -> bool:
        return not len(self.ids) and not len(self.gone)

    def pack(self) -> bytes:
        file = io.BytesIO()
        names = np.frombuffer(json.dumps(self.categories).encode(), dtype=np.uint8)
        np.savez(file, ids=self.ids, keys=self.keys, rows=self.rows, categories=names, gone=self.gone)
        return file.getvalue()

    @classmethod
    def of(cls, data: bytes) -> _Batch:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = json.loads(arrays["categories"].tobytes())
            return cls(arrays["ids"], arrays["keys"], arrays["rows"], names, arrays["gone"])


def _key(kind: Kind, row: int) -> int:
    return row // _FRAMES if kind == "frame" else row


def _name(*parts: str) -> str:
    """Milvus takes letters, digits and underscores."""
    return re.sub(r"\W", "_", "_".join(("reelsrs", *parts)), flags=re.ASCII)


def _expression(where: Categories) -> str:
    """Of categories, in Milvus's language. A video without one has the empty name, which no category can have."""

    def names(some: frozenset[str | None]) -> str:
        # Literals are those of JSON, but as they are: escapes of letters are not understood.
        return json.dumps(sorted(name or "" for name in some), ensure_ascii=False)

    parts = []
    if where.include is not None:
        parts.append(f"category in {names(where.include)}")
    if where.exclude:
        parts.append(f"category not in {names(where.exclude)}")
    return " and ".join(parts)


def _chunks(items: Any, size: int = _BATCH) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _import() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C part prints how connections come and go
    try:
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"REELSRS_VECTOR_STORE: Milvus needs a package more: pip install 'reelsrs[milvus]' ({error})"
        ) from error
    # It prints what it raises, with a traceback; whoever catches it says it once.
    for name in ("pymilvus", "grpc._server"):  # the second is that of Lite, in this process
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(uri: str) -> MilvusClient:
    from pymilvus import MilvusClient

    if "://" not in uri:
        return MilvusClient(uri, timeout=_SECONDS)
    url = make_url(uri)
    return MilvusClient(
        f"{url.drivername}://{url.host}:{url.port or 19530}",
        user=url.username or "",
        password=url.password or "",
        db_name=url.database or "",
        timeout=_SECONDS,
    )


@contextmanager
def _reached() -> Iterator[None]:
    """Turns what pymilvus raises into Unavailable."""
    import grpc
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = " ".join(str(getattr(error, "message", "") or error).split())
        raise Unavailable(f"the vectors cannot be reached: {said[:300]}") from error
