"""Copy a library to another database and another store, of any kind: from files to servers, or back.

Stored bytes are copied first, by their SHA-256, so that no row refers to missing bytes. Then all rows are copied in one
transaction, so that the target has either the complete library or none. Videos uploaded meanwhile are included until
the rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from service.config import Settings
from service.database import db, dialects
from service.database.db import Database
from service.errors import ConfigurationError, NotFound
from service.storage import Store, open_store

ProgressCallback = Callable[[int, int], None]
"""Progress callback: receives the number of videos whose bytes are copied, and the number to copy."""

_BATCH_ROWS = 500  # per batch
_NUMBERED_COLUMNS = (db.videos.c.key, db.changes.c.number, db.projections.c.key)
"""Columns whose values the database generates."""


@dataclass
class CopyReport:
    """Result of a copy.

    `damaged` lists the ids of videos that were left out, because their bytes are missing or do not match their SHA-256.
    """

    videos: int = 0
    size_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def copy(
    settings: Settings, database_url: str, storage_url: str, progress: ProgressCallback = lambda *_: None
) -> CopyReport:
    """Copy the library of `settings` to another database and store; the library may be in use.

    Everything that was acknowledged before the rows are read is copied. If the copy fails, the target has no library
    yet; the same call continues the copy.

    Raises:
        ConfigurationError: The target already holds a library.
        Unavailable: A database or a store cannot be reached.
        StorageFull: The target has no room.
    """
    for url in (settings.database, database_url):
        db.upgrade(url)
    source, target = open_store(settings.storage, settings.data_dir), open_store(storage_url, settings.data_dir)
    with closing(Database(settings.database)) as source_db, closing(Database(database_url)) as target_db:
        target_db.lock_seconds = db.BACKGROUND_LOCK_SECONDS
        with target_db.read() as connection:
            for table in (db.library, db.videos):
                if connection.execute(sa.select(table).limit(1)).first() is not None:
                    raise ConfigurationError(
                        f"{dialects.shown_url(target_db.url)} already holds a library: copy to an empty database"
                    )
        done: dict[str, int] = {}  # SHA-256 -> size in bytes
        damaged: set[str] = set()
        while True:
            with source_db.read() as reading:
                rows = list(reading.execute(sa.select(db.videos)))
                missing = [row for row in rows if row.sha256 not in done and row.sha256 not in damaged]
                if not missing:
                    with target_db.write() as writing:
                        _copy_rows(reading, writing, {row.key for row in rows if row.sha256 in damaged})
                    break
            for number, row in enumerate(missing):
                progress(number, len(missing))
                size_bytes = _copy_bytes(source, target, row)
                if size_bytes is None:
                    damaged.add(row.sha256)
                else:
                    done[row.sha256] = size_bytes
        kept = {row.sha256 for row in rows} - damaged
        for sha256 in done.keys() - kept:  # deleted from the source meanwhile
            target.delete(sha256)
    size = sum(done[sha256] for sha256 in kept)
    return CopyReport(len(kept), size, [row.id for row in rows if row.sha256 in damaged])


def _copy_bytes(source: Store, target: Store, row: sa.Row[Any]) -> int | None:
    """Copy the stored files of a video; return its size in bytes, None if bytes are missing or damaged."""
    try:
        blob = source.video(row.sha256)
        with target.receive(blob.size_bytes) as incoming:
            for piece in _readable(blob.pieces()):
                incoming.write(piece)
            incoming.finish()
            if incoming.sha256 != row.sha256:
                return None
            target.upload(incoming, row.media_type)
            target.commit(incoming, row.media_type)
        pictures = [source.thumbnail(row.sha256, n, seconds) for n, seconds in enumerate(row.frame_times)]
        jpegs = [b"".join(_readable(picture.pieces())) for picture in pictures]
        target.upload_thumbnails(row.sha256, row.frame_times, jpegs)
        target.commit_thumbnails(row.sha256, jpegs)
        if (fingerprint := source.fingerprint(row.sha256)) is not None:
            target.put_fingerprint(row.sha256, fingerprint)
    except NotFound:
        return None
    return blob.size_bytes


def _readable(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a stored file of the source. Raises NotFound if the file cannot be read."""
    try:
        yield from pieces
    except OSError as error:  # such as a bad sector: a fault of this file, and the others are copied
        raise NotFound(f"a stored file cannot be read: {error.strerror}") from error


def _copy_rows(reading: sa.Connection, writing: sa.Connection, without: set[int]) -> None:
    """Copy all rows, except those of the videos whose primary keys are in `without`.

    Leases are released. Generated numbers of the target continue above the copied ones. Call inside a read transaction
    of the source and a write transaction of the target.
    """
    for table in db.metadata.sorted_tables:
        if table is db.collections:  # Milvus collections are not copied
            continue
        own = {"videos": "key"}.get(table.name, "video_key")
        for rows in reading.execution_options(yield_per=_BATCH_ROWS).execute(sa.select(table)).partitions():
            values = [
                _without_lease(table, dict(row._mapping))  # noqa: SLF001
                for row in rows
                if getattr(row, own, None) not in without
            ]
            if values:
                writing.execute(sa.insert(table), values)
    for column in _NUMBERED_COLUMNS:
        highest = [writing.execute(sa.select(sa.func.max(column))).scalar() or 0]
        if column is db.videos.c.key:  # keys of deleted videos are not used again either
            highest.append(writing.execute(sa.select(sa.func.max(db.changes.c.video_key))).scalar() or 0)
        dialects.dialect_of(writing).set_last_number(writing, column, max(highest))


def _without_lease(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return the row without its lease; unfinished work is queued again."""
    if "lease_expires_at" in row:
        row |= {"owner": None, "lease_expires_at": None}
    if (table is db.videos and row["status"] == "processing") or (
        table is db.projections and row["status"] == "running"
    ):
        row |= {"status": "queued", "progress": 0.0}
    return row
