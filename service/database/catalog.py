"""The catalogue: rows and vectors of videos in the database, which is the truth. Knows no index and no file.

Every function takes the connection of a transaction that its caller holds, so that a row, its vectors, its job
and its change number are committed together or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

from service.database import db
from service.domain import (
    Embeddings,
    Entries,
    Generation,
    Kind,
    Probe,
    Sampling,
    Status,
    Vectors,
    Video,
)
from service.errors import NotFound
from service.vectors import pack, unpack

_Any = TypeVar("_Any")

# SQLite allows 32,766 parameters in one statement, PostgreSQL 65,535.
_CHUNK = 10_000

# The statements that every answer takes, built once: to build one costs more than to run it.
_VIDEO = sa.select(db.videos).where(db.videos.c.id == sa.bindparam("id"))
_VIDEOS = sa.select(db.videos).where(db.videos.c.key.in_(sa.bindparam("keys", expanding=True)))
_KINDS_OF_ONE = sa.select(db.embeddings.c.kind, db.embeddings.c.vectors).where(
    db.embeddings.c.video_key == sa.bindparam("key"),
    db.embeddings.c.generation == sa.bindparam("generation"),
    db.embeddings.c.kind.in_(sa.bindparam("kinds", expanding=True)),
)
_KIND_OF_MANY = (
    sa.select(db.embeddings.c.video_key, db.embeddings.c.vectors)
    .join(db.videos, db.videos.c.key == db.embeddings.c.video_key)
    .where(
        db.videos.c.status == "ready",
        db.embeddings.c.video_key.in_(sa.bindparam("keys", expanding=True)),
        db.embeddings.c.generation == sa.bindparam("generation"),
        db.embeddings.c.kind == sa.bindparam("kind"),
    )
)
_LAST_CHANGE = (
    sa.select(db.changes.c.number)
    .where(db.changes.c.generation == sa.bindparam("generation"))
    .order_by(db.changes.c.number.desc())
    .limit(1)
)


def library_id(connection: sa.Connection) -> str:
    """The id of this database, made when first asked for."""
    found = connection.execute(sa.select(db.library.c.id)).scalar()
    if found is None:
        found = secrets.token_hex(8)
        connection.execute(sa.insert(db.library).values(id=found))
    return found


# --- videos


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
    """A new row with `status: queued`. Its bytes must be in place already."""
    now = _now()
    key = connection.execute(
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
        .returning(db.videos.c.key)
    ).scalar_one()
    return video_by_key(connection, key)


def video(connection: sa.Connection, video_id: str) -> Video:
    """The video with this id. Raises NotFound."""
    row = connection.execute(_VIDEO, {"id": video_id}).first()
    if row is None:
        raise NotFound(f"there is no video {video_id!r}")
    return _video(row)


def video_by_key(connection: sa.Connection, key: int) -> Video:
    """The video with this key. Raises NotFound."""
    found = _one(connection, db.videos.c.key == key)
    if found is None:
        raise NotFound("the video was deleted")
    return found


def video_by_sha256(connection: sa.Connection, sha256: str) -> Video | None:
    """The video with these bytes, None where there is none."""
    return _one(connection, db.videos.c.sha256 == sha256)


def videos_by_key(connection: sa.Connection, keys: Iterable[int]) -> dict[int, Video]:
    """The videos with these keys; one that was deleted is missing."""
    found: dict[int, Video] = {}
    for chunk in _chunks(list(keys)):
        found.update((row[0], _video(row)) for row in connection.execute(_VIDEOS, {"keys": chunk}))
    return found


def keys_of(connection: sa.Connection, ids: Iterable[str]) -> set[int]:
    """The keys of those of these ids that exist."""
    found: set[int] = set()
    for chunk in _chunks(list(ids)):
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
    """Videos from the newest to the oldest, those older than the key `before` where it is given."""
    query = sa.select(db.videos).order_by(db.videos.c.key.desc()).limit(limit)
    if category is not None:
        query = query.where(db.videos.c.category == category)
    if status is not None:
        query = query.where(db.videos.c.status == status)
    if before is not None:
        query = query.where(db.videos.c.key < before)
    return [_video(row) for row in connection.execute(query)]


def update_video(connection: sa.Connection, key: int, **values: Any) -> None:
    """Set columns of a video."""
    connection.execute(sa.update(db.videos).where(db.videos.c.key == key).values(updated_at=_now(), **values))


def set_status(connection: sa.Connection, key: int, status: Status, progress: float, error: str | None = None) -> None:
    """Set status, progress (0 to 1) and error together."""
    update_video(connection, key, status=status, progress=progress, error=error)


def delete_video(connection: sa.Connection, key: int) -> None:
    """Remove a video's row, vectors, job and sources, and tell the followers."""
    connection.execute(sa.delete(db.videos).where(db.videos.c.key == key))
    record_change(connection, key)


def categories(connection: sa.Connection) -> list[tuple[str | None, int]]:
    """Every category with its number of videos, by name; None for those without one."""
    column = db.videos.c.category
    rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
    # Sorted here: databases differ in what comes first.
    return sorted(((name, count) for name, count in rows), key=lambda row: (row[0] is not None, row[0]))


def status_counts(connection: sa.Connection) -> dict[str, int]:
    """Number of videos by status."""
    rows = connection.execute(sa.select(db.videos.c.status, sa.func.count()).group_by(db.videos.c.status))
    return {row[0]: row[1] for row in rows}


def ready_keys(connection: sa.Connection, category: str | None = None) -> list[int]:
    """Keys of the videos that can be searched, ascending; of one category where it is given."""
    query = sa.select(db.videos.c.key).where(db.videos.c.status == "ready").order_by(db.videos.c.key)
    if category is not None:
        query = query.where(db.videos.c.category == category)
    return list(connection.execute(query).scalars())


def existing_keys(connection: sa.Connection, keys: Iterable[int]) -> set[int]:
    """Those of these keys whose videos are there, ready or not."""
    found: set[int] = set()
    for chunk in _chunks(list(keys)):
        found.update(connection.execute(sa.select(db.videos.c.key).where(db.videos.c.key.in_(chunk))).scalars())
    return found


# --- generations and embeddings


def active_generation(connection: sa.Connection) -> Generation | None:
    """The generation that answers queries, None before the first."""
    row = connection.execute(
        sa.select(db.generations).join(db.library, db.library.c.active_generation == db.generations.c.id)
    ).first()
    return None if row is None else Generation(row.id, row.model, row.dimension, row.precision)


def generation(connection: sa.Connection, generation_id: str) -> Generation:
    """The generation with this id. Raises NotFound."""
    row = connection.execute(sa.select(db.generations).where(db.generations.c.id == generation_id)).first()
    if row is None:
        raise NotFound(f"there is no generation {generation_id!r}")
    return Generation(row.id, row.model, row.dimension, row.precision)


def add_generation(connection: sa.Connection, generation: Generation) -> None:
    """Make it known; nothing happens where it is."""
    connection.execute(
        db.insert(connection, db.generations)
        .values(
            id=generation.id,
            model=generation.model,
            dimension=generation.dimension,
            precision=generation.precision,
            created_at=_now(),
        )
        .on_conflict_do_nothing()
    )


def activate_generation(connection: sa.Connection, generation: Generation) -> None:
    """Make this generation the one that answers queries; made known where it is new."""
    add_generation(connection, generation)
    library_id(connection)
    connection.execute(sa.update(db.library).values(active_generation=generation.id))


def put_embeddings(connection: sa.Connection, key: int, generation: Generation, embeddings: Embeddings) -> None:
    """Replace all vectors of a video in this generation."""
    put_text(connection, key, generation, embeddings.text)
    _put(connection, key, generation, "frame", embeddings.frames)
    _put(connection, key, generation, "mean", embeddings.mean)
    _put(connection, key, generation, "max", embeddings.max)


def put_text(connection: sa.Connection, key: int, generation: Generation, text: Vectors | None) -> None:
    """Replace the caption's vector in this generation; None takes it away."""
    if text is not None:
        _put(connection, key, generation, "text", text)
        return
    of_it = sa.and_(db.embeddings.c.generation == generation.id, db.embeddings.c.kind == "text")
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, of_it))
    same = sa.and_(db.projections.c.generation == generation.id, db.projections.c.kind == "text")
    take_off_maps(connection, key, same)


def forget_texts(connection: sa.Connection, key: int) -> None:
    """The caption is another one: what was made of the old one goes, in every generation."""
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, db.embeddings.c.kind == "text"))
    take_off_maps(connection, key, db.projections.c.kind == "text")


def forget_others(connection: sa.Connection, key: int, generation: Generation) -> None:
    """The frames are other ones: what the other generations made of the old ones goes."""
    others = db.embeddings.c.generation != generation.id
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, others))
    take_off_maps(connection, key, db.projections.c.generation != generation.id)


def vectors(connection: sa.Connection, key: int, generation: Generation, kind: Kind) -> Vectors | None:
    """(N, D) vectors of one kind, None where there are none."""
    return kinds(connection, key, generation, kind).get(kind)


def kinds(connection: sa.Connection, key: int, generation: Generation, *wanted: Kind) -> dict[Kind, Vectors]:
    """(N, D) vectors of one video by kind; a kind that there is none of is missing."""
    values = {"key": key, "generation": generation.id, "kinds": wanted}
    rows = connection.execute(_KINDS_OF_ONE, values)
    return {kind: unpack(data, generation.dimension) for kind, data in rows}


def vectors_of(
    connection: sa.Connection, keys: Iterable[int], generation: Generation, kind: Kind
) -> dict[int, Vectors]:
    """(N, D) vectors of one kind by video key, for ready videos only."""
    found: dict[int, Vectors] = {}
    for chunk in _chunks(list(keys)):
        rows = connection.execute(_KIND_OF_MANY, {"keys": chunk, "generation": generation.id, "kind": kind})
        found.update((key, unpack(data, generation.dimension)) for key, data in rows)
    return found


def searchable(connection: sa.Connection, keys: Sequence[int], generation: Generation, kind: Kind) -> Entries:
    """What an index needs of those videos that can be searched: with `mean` or `max` a row a video, its caption
    beside it; with `frame` a row a frame, in order, and no captions."""
    pictures = vectors_of(connection, keys, generation, kind)
    counts = [len(rows) for rows in pictures.values()]
    nothing = np.zeros((0, generation.dimension), dtype=np.float32)
    matrix = np.concatenate([nothing, *pictures.values()])
    names = _categories_of(connection, pictures)
    captioned = np.zeros(len(matrix), dtype=np.bool_)
    captions = None
    if kind != "frame":
        captions = np.zeros_like(matrix)
        known = vectors_of(connection, pictures, generation, "text")
        for number, key in enumerate(pictures):
            if key in known:
                captions[number], captioned[number] = known[key][0], True
    return Entries(
        np.repeat(np.array(list(pictures), dtype=np.int64), counts),
        matrix,
        captions,
        captioned,
        tuple(names[key] for key, count in zip(pictures, counts, strict=True) for _ in range(count)),
    )


# --- changes


def record_change(connection: sa.Connection, key: int, generation: str = "") -> None:
    """Tell the followers that this video's vectors or its category came, changed or went; of one generation's where
    only those of that `generation` have."""
    before = sa.delete(db.changes).where(db.changes.c.video_key == key)
    connection.execute(before.where(db.changes.c.generation == generation) if generation else before)
    connection.execute(sa.insert(db.changes).values(video_key=key, generation=generation))


def last_change(connection: sa.Connection, generation: str) -> int:
    """The number of the last change, as far as that generation goes; 0 before the first."""
    # Two look-ups in an index; the greatest of both by one statement would be a scan.
    return max(connection.execute(_LAST_CHANGE, {"generation": which}).scalar() or 0 for which in ("", generation))


def changed_since(connection: sa.Connection, number: int, generation: str) -> list[int]:
    """Keys of the videos that changed after that number, as far as that generation goes; oldest first."""
    query = sa.select(db.changes.c.video_key).where(
        db.changes.c.number > number, db.changes.c.generation.in_(("", generation))
    )
    return list(dict.fromkeys(connection.execute(query.order_by(db.changes.c.number)).scalars()))


# --- files that were imported


def source(connection: sa.Connection, path: str) -> sa.Row[Any] | None:
    """The row of an imported file: path, size_bytes, modified_ns, video_key."""
    return connection.execute(sa.select(db.sources).where(db.sources.c.path == path)).first()


def put_source(connection: sa.Connection, path: str, *, size_bytes: int, modified_ns: int, key: int) -> None:
    """Remember which video a file became."""
    values = {"size_bytes": size_bytes, "modified_ns": modified_ns, "video_key": key}
    connection.execute(
        db.insert(connection, db.sources)
        .values(path=path, **values)
        .on_conflict_do_update(index_elements=["path"], set_=values)
    )


def source_paths(connection: sa.Connection, key: int) -> list[str]:
    """Every imported file that became this video, by name."""
    return sorted(connection.execute(sa.select(db.sources.c.path).where(db.sources.c.video_key == key)).scalars())


# --- inside


def take_off_maps(connection: sa.Connection, key: int, which: sa.ColumnElement[bool]) -> None:
    """Points stand for vectors: those of a vector that is not the same any more go, and are placed anew."""
    maps = sa.select(db.projections.c.key).where(which)
    connection.execute(
        sa.delete(db.coordinates).where(db.coordinates.c.video_key == key, db.coordinates.c.projection_key.in_(maps))
    )


def _put(connection: sa.Connection, key: int, generation: Generation, kind: Kind, vectors: Vectors) -> None:
    same = sa.and_(db.projections.c.generation == generation.id, db.projections.c.kind == kind)
    take_off_maps(connection, key, same)
    values = {"vectors": pack(vectors)}
    connection.execute(
        db.insert(connection, db.embeddings)
        .values(video_key=key, generation=generation.id, kind=kind, **values)
        .on_conflict_do_update(index_elements=["video_key", "generation", "kind"], set_=values)
    )


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Video | None:
    row = connection.execute(sa.select(db.videos).where(condition)).first()
    return None if row is None else _video(row)


def _video(row: sa.Row[Any]) -> Video:
    # Unpacked, for to ask a row for 22 columns by name takes longer than to read it. They stand as the table has them.
    key, name, sha256, size_bytes, filename, title, caption, category, status, progress, error, *rest = tuple(row)
    num_frames, frame_interval, media_type, codec, width, height, seconds, rate, times, created, updated = rest
    return Video(
        key=key,
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


def _categories_of(connection: sa.Connection, keys: Iterable[int]) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for chunk in _chunks(list(keys)):
        rows = connection.execute(sa.select(db.videos.c.key, db.videos.c.category).where(db.videos.c.key.in_(chunk)))
        found.update((key, category) for key, category in rows)
    return found


def _chunks(keys: list[_Any]) -> Iterator[list[_Any]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]


def _now() -> datetime:
    # Stored without a zone, always UTC: SQLite has no type for one.
    return datetime.now(UTC).replace(tzinfo=None)
