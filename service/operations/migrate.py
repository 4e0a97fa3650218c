"""A library brought to another database and another store, of whatever kind: from files to servers, and back.

Bytes go first, by their hash, so that nothing refers to what is not there; then all rows in one transaction, so that
the library is there whole or not at all. Who uploads meanwhile is taken along until the rows are read. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from service.config import Settings
from service.database import db, dialects
from service.database.db import Database
from service.errors import ConfigurationError, NotFound
from service.storage import Store, open_store

Step = Callable[[int, int], None]

_ROWS = 500  # at a time
_NUMBERED = (db.videos.c.key, db.changes.c.number, db.projections.c.key)


@dataclass
class Copied:
    """What was copied, and the ids of the videos whose bytes were not what they should be, which were left out."""

    videos: int = 0
    size_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def copy(settings: Settings, database_url: str, storage_url: str, step: Step = lambda *_: None) -> Copied:
    """Copy the library of `settings`, also while it is served: all that was acknowledged before the end. `step` hears
    how many of how many videos are done.

    Raises ConfigurationError where there is something in that place already, Unavailable, StorageFull; what was copied
    by then is no library, and the same command goes on with it.
    """
    for url in (settings.database, database_url):
        db.upgrade(url)
    source, target = open_store(settings.storage, settings.data_dir), open_store(storage_url, settings.data_dir)
    with closing(Database(settings.database)) as old, closing(Database(database_url)) as new:
        new.patience_seconds = db.PATIENT_SECONDS
        with new.read() as connection:
            for table in (db.library, db.videos):
                if connection.execute(sa.select(table).limit(1)).first() is not None:
                    raise ConfigurationError(f"there is a library in {new.url.render_as_string()} already")
        done: dict[str, int] = {}  # size by hash
        damaged: set[str] = set()
        while True:
            with old.read() as reading:
                rows = list(reading.execute(sa.select(db.videos)))
                missing = [row for row in rows if row.sha256 not in done and row.sha256 not in damaged]
                if not missing:
                    with new.write() as writing:
                        _rows(reading, writing, {row.key for row in rows if row.sha256 in damaged})
                    break
            for number, row in enumerate(missing):
                step(number, len(missing))
                size_bytes = _bytes(source, target, row)
                if size_bytes is None:
                    damaged.add(row.sha256)
                else:
                    done[row.sha256] = size_bytes
        stay = {row.sha256 for row in rows} - damaged
        for sha256 in done.keys() - stay:  # deleted on the way
            target.delete(sha256)
    size = sum(done[sha256] for sha256 in stay)
    return Copied(len(stay), size, [row.id for row in rows if row.sha256 in damaged])


def _bytes(source: Store, target: Store, row: sa.Row[Any]) -> int | None:
    """Copy what is kept of a clip; its size, None where it is not what it was or not there."""
    try:
        blob = source.video(row.sha256)
        with target.receive(blob.size_bytes) as incoming:
            for piece in blob.pieces():
                incoming.write(piece)
            incoming.finish()
            if incoming.sha256 != row.sha256:
                return None
            target.send(incoming, row.media_type)
            target.place(incoming, row.media_type)
        pictures = [source.picture(row.sha256, n, seconds) for n, seconds in enumerate(row.frame_times)]
        jpegs = [picture.read(0, picture.size_bytes) for picture in pictures]
        target.send_pictures(row.sha256, row.frame_times, jpegs)
        target.put_pictures(row.sha256, jpegs)
        if (fingerprint := source.fingerprint(row.sha256)) is not None:
            target.put_fingerprint(row.sha256, fingerprint)
    except NotFound:
        return None
    return blob.size_bytes


def _rows(reading: sa.Connection, writing: sa.Connection, without: set[int]) -> None:
    """Copy all rows but those of the videos with these keys. Work that somebody holds is given back."""
    for table in db.metadata.sorted_tables:
        if table is db.collections:  # they are of the other place
            continue
        own = {"videos": "key"}.get(table.name, "video_key")
        for rows in reading.execution_options(yield_per=_ROWS).execute(sa.select(table)).partitions():
            values = [_free(table, dict(row._mapping)) for row in rows if getattr(row, own, None) not in without]  # noqa: SLF001
            if values:
                writing.execute(sa.insert(table), values)
    for column in _NUMBERED:
        highest = [writing.execute(sa.select(sa.func.max(column))).scalar() or 0]
        if column is db.videos.c.key:  # of those that are gone, too
            highest.append(writing.execute(sa.select(sa.func.max(db.changes.c.video_key))).scalar() or 0)
        dialects.of(writing).go_on_after(writing, column, max(highest))


def _free(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    if "lease_expires_at" in row:
        row |= {"owner": None, "lease_expires_at": None}
    if (table is db.videos and row["status"] == "processing") or (
        table is db.projections and row["status"] == "running"
    ):
        row |= {"status": "queued", "progress": 0.0}
    return row
