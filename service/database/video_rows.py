"""The tables of videos, their categories and their imported files. These rows are the source of truth.

Every function takes the connection of the caller's transaction. A row, its vectors, its job and its change number are
therefore committed together or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from service.database import db
from service.database.change_log import record_change
from service.database.common import chunks, utc_now
from service.errors import NotFound
from service.models import Probe, Sampling, Status, Video
from service.names import normalised

# Every search runs these statements. They are built once, because building costs more than running.
_VIDEO = sa.select(db.videos).where(db.videos.c.id == sa.bindparam("id"))
_VIDEOS = sa.select(db.videos).where(db.videos.c.key.in_(sa.bindparam("keys", expanding=True)))


def add_video(
    connection: sa.Connection,
    *,
    sha256: str,
    size_bytes: int,
    filename: str,
    title: str,
    caption: str | None,
    category: str | None,
    sampling: Sampling,
    probe: Probe,
) -> Video:
    """Insert a video with the status `queued`, and return it.

    The clip's bytes must already be stored. Call inside a write transaction.
    """
    now = utc_now()
    row = connection.execute(
        sa.insert(db.videos)
        .values(
            id=secrets.token_hex(8),
            sha256=sha256,
            size_bytes=size_bytes,
            filename=filename,
            title=title,
            caption=caption,
            category=category,
            status="queued",
            progress=0.0,
            num_frames=sampling.num_frames,
            frame_interval=sampling.frame_interval,
            media_type=probe.media_type,
            codec=probe.codec,
            width=probe.width,
            height=probe.height,
            duration_seconds=probe.duration_seconds,
            frames_per_second=probe.frames_per_second,
            frame_times=[],
            created_at=now,
            updated_at=now,
        )
        .returning(*db.videos.c)
    ).one()
    return _video(row)


def video(connection: sa.Connection, video_id: str) -> Video:
    """Return the video with this public id. Raises NotFound."""
    row = connection.execute(_VIDEO, {"id": video_id}).first()
    if row is None:
        raise NotFound(f"video {video_id!r} does not exist")
    return _video(row)


def video_by_pk(connection: sa.Connection, video_pk: int) -> Video:
    """Return the video with this primary key. Raises NotFound."""
    found = _one(connection, db.videos.c.key == video_pk)
    if found is None:
        raise NotFound("the video was deleted")
    return found


def video_by_sha256(connection: sa.Connection, sha256: str) -> Video | None:
    """Return the video whose bytes have this SHA-256, or None."""
    return _one(connection, db.videos.c.sha256 == sha256)


def videos_by_pk(connection: sa.Connection, video_pks: Iterable[int]) -> dict[int, Video]:
    """Return the videos with these primary keys, by primary key. Deleted videos are missing."""
    found: dict[int, Video] = {}
    for chunk in chunks(list(video_pks)):
        found.update((row[0], _video(row)) for row in connection.execute(_VIDEOS, {"keys": chunk}))
    return found


def pks_of(connection: sa.Connection, ids: Iterable[str]) -> set[int]:
    """Return the primary keys of the videos with these public ids. Unknown ids are ignored."""
    found: set[int] = set()
    for chunk in chunks(list(ids)):
        found.update(connection.execute(sa.select(db.videos.c.key).where(db.videos.c.id.in_(chunk))).scalars())
    return found


def list_videos(
    connection: sa.Connection,
    *,
    category: str | None = None,
    status: str | None = None,
    before: int | None = None,
    limit: int,
) -> list[Video]:
    """Return at most `limit` videos, newest first, optionally of one category (in any spelling) or status.

    If `before` is given, return only videos with a smaller primary key, which are older.
    """
    query = sa.select(db.videos).order_by(db.videos.c.key.desc()).limit(limit)
    if category is not None:
        query = query.where(db.videos.c.category == normalised(category))
    if status is not None:
        query = query.where(db.videos.c.status == status)
    if before is not None:
        query = query.where(db.videos.c.key < before)
    return [_video(row) for row in connection.execute(query)]


def update_video(connection: sa.Connection, video_pk: int, **values: Any) -> None:
    """Set columns of a video, and its `updated_at`. Call inside a write transaction."""
    connection.execute(sa.update(db.videos).where(db.videos.c.key == video_pk).values(updated_at=utc_now(), **values))


def set_status(
    connection: sa.Connection, video_pk: int, status: Status, progress: float, error: str | None = None
) -> None:
    """Set status, progress (0 to 1) and error of a video together.

    Without `error`, an earlier error is cleared. Call inside a write transaction.
    """
    update_video(connection, video_pk, status=status, progress=progress, error=error)


def delete_video(connection: sa.Connection, video_pk: int) -> None:
    """Delete a video, and record the change so that indexes and projections catch up.

    The database also deletes the vectors, the job, the points and the sources of the video. Call inside a write
    transaction.
    """
    connection.execute(sa.delete(db.videos).where(db.videos.c.key == video_pk))
    record_change(connection, video_pk)


def categories(connection: sa.Connection) -> list[tuple[str | None, int]]:
    """Return every category with its number of videos, sorted by name.

    Videos without a category are counted under None, which comes first.
    """
    column = db.videos.c.category
    rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
    # Sorted here, because databases order names and NULL differently.
    return sorted(((name, count) for name, count in rows), key=lambda row: (row[0] is not None, row[0]))


def status_counts(connection: sa.Connection) -> dict[str, int]:
    """Return the number of videos by status. A status without videos is missing."""
    rows = connection.execute(sa.select(db.videos.c.status, sa.func.count()).group_by(db.videos.c.status))
    return {row[0]: row[1] for row in rows}


def names(connection: sa.Connection) -> list[sa.Row[Any]]:
    """Return key, id, filename and category of every video that can be searched."""
    columns = (db.videos.c.key, db.videos.c.id, db.videos.c.filename, db.videos.c.category)
    return list(connection.execute(sa.select(*columns).where(db.videos.c.status == "ready")))


def ready_pks(connection: sa.Connection, category: str | None = None) -> list[int]:
    """Return the primary keys of videos that can be searched, ascending; optionally of one category."""
    query = sa.select(db.videos.c.key).where(db.videos.c.status == "ready").order_by(db.videos.c.key)
    if category is not None:
        query = query.where(db.videos.c.category == category)
    return list(connection.execute(query).scalars())


def existing_pks(connection: sa.Connection, video_pks: Iterable[int]) -> set[int]:
    """Return those of these primary keys whose videos exist, ready or not."""
    found: set[int] = set()
    for chunk in chunks(list(video_pks)):
        found.update(connection.execute(sa.select(db.videos.c.key).where(db.videos.c.key.in_(chunk))).scalars())
    return found


def source(connection: sa.Connection, path: str) -> sa.Row[Any] | None:
    """Return the row of an imported file, or None.

    Its columns are path, size_bytes, modified_ns (nanoseconds since the epoch) and video_key.
    """
    return connection.execute(sa.select(db.sources).where(db.sources.c.path == path)).first()


def put_source(connection: sa.Connection, path: str, *, size_bytes: int, modified_ns: int, video_pk: int) -> None:
    """Record which video an imported file became, replacing an earlier record of the same path.

    `modified_ns` is the file's modification time in nanoseconds since the epoch. Call inside a write transaction.
    """
    values = {"size_bytes": size_bytes, "modified_ns": modified_ns, "video_key": video_pk}
    connection.execute(
        db.insert(connection, db.sources)
        .values(path=path, **values)
        .on_conflict_do_update(index_elements=["path"], set_=values)
    )


def source_paths(connection: sa.Connection, video_pk: int) -> list[str]:
    """Return the paths of all imported files that became this video, sorted."""
    return sorted(connection.execute(sa.select(db.sources.c.path).where(db.sources.c.video_key == video_pk)).scalars())


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Video | None:
    row = connection.execute(sa.select(db.videos).where(condition)).first()
    return None if row is None else _video(row)


def _video(row: sa.Row[Any]) -> Video:
    # Unpacked in the column order of the table: access to 22 columns by name takes longer than reading the row.
    pk, name, sha256, size_bytes, filename, title, caption, category, status, progress, error, *rest = tuple(row)
    num_frames, frame_interval, media_type, codec, width, height, seconds, rate, times, created, updated = rest
    return Video(
        pk=pk,
        id=name,
        sha256=sha256,
        size_bytes=size_bytes,
        filename=filename,
        title=title,
        caption=caption,
        category=category,
        status=status,
        progress=progress,
        error=error,
        sampling=Sampling(num_frames, frame_interval),
        media_type=media_type,
        codec=codec,
        width=width,
        height=height,
        duration_seconds=seconds,
        frames_per_second=rate,
        frame_times=tuple(times),
        created_at=created.replace(tzinfo=UTC),
        updated_at=updated.replace(tzinfo=UTC),
    )
