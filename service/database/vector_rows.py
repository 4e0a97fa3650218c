"""The embeddings table: vectors of videos, by generation and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import sqlalchemy as sa

from service.database import db
from service.database.common import chunks
from service.models import Embeddings, Entries, Generation, Kind, Vectors
from service.vectors import pack, unpack

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


def put_embeddings(connection: sa.Connection, key: int, generation: Generation, embeddings: Embeddings) -> None:
    """Replace all vectors of a video in one generation.

    Points that stand for the old vectors are deleted. Call inside a write transaction.
    """
    put_text(connection, key, generation, embeddings.text)
    _put(connection, key, generation, "frame", embeddings.frames)
    _put(connection, key, generation, "mean", embeddings.mean)
    _put(connection, key, generation, "max", embeddings.max)


def put_text(connection: sa.Connection, key: int, generation: Generation, text: Vectors | None) -> None:
    """Replace the (D,) float32 text vector of a video in one generation; None deletes it.

    Points that stand for the old text vector are deleted. Call inside a write transaction.
    """
    if text is not None:
        _put(connection, key, generation, "text", text)
        return
    of_it = sa.and_(db.embeddings.c.generation == generation.id, db.embeddings.c.kind == "text")
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, of_it))
    same = sa.and_(db.projections.c.generation == generation.id, db.projections.c.kind == "text")
    take_off_maps(connection, key, same)


def forget_texts(connection: sa.Connection, key: int) -> None:
    """Delete the text vectors of a video in every generation, because its caption changed.

    Points that stand for them are deleted too. Call inside a write transaction.
    """
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, db.embeddings.c.kind == "text"))
    take_off_maps(connection, key, db.projections.c.kind == "text")


def forget_others(connection: sa.Connection, key: int, generation: Generation) -> None:
    """Delete the vectors of a video in all other generations, because its frames changed.

    Points that stand for them are deleted too. Call inside a write transaction.
    """
    others = db.embeddings.c.generation != generation.id
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == key, others))
    take_off_maps(connection, key, db.projections.c.generation != generation.id)


def vectors(connection: sa.Connection, key: int, generation: Generation, kind: Kind) -> Vectors | None:
    """Return the (N, D) float32 vectors of one video and kind, or None if there are none."""
    return kinds(connection, key, generation, kind).get(kind)


def kinds(connection: sa.Connection, key: int, generation: Generation, *wanted: Kind) -> dict[Kind, Vectors]:
    """Return the (N, D) float32 vectors of one video by kind. A kind without vectors is missing."""
    values = {"key": key, "generation": generation.id, "kinds": wanted}
    rows = connection.execute(_KINDS_OF_ONE, values)
    return {kind: unpack(data, generation.dimension) for kind, data in rows}


def vectors_of(
    connection: sa.Connection, keys: Iterable[int], generation: Generation, kind: Kind
) -> dict[int, Vectors]:
    """Return the (N, D) float32 vectors of one kind, by video primary key.

    Videos that are not ready, or that have no such vectors, are missing.
    """
    found: dict[int, Vectors] = {}
    for chunk in chunks(list(keys)):
        rows = connection.execute(_KIND_OF_MANY, {"keys": chunk, "generation": generation.id, "kind": kind})
        found.update((key, unpack(data, generation.dimension)) for key, data in rows)
    return found


def searchable(connection: sa.Connection, keys: Sequence[int], generation: Generation, kind: Kind) -> Entries:
    """Return the entries of an index for those of these videos that can be searched.

    With the kind `mean` or `max` there is one row per video, with its text vector. With the kind `frame` there is one
    row per frame, in order, without text vectors.
    """
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


def take_off_maps(connection: sa.Connection, key: int, which: sa.ColumnElement[bool]) -> None:
    """Delete the points of a video from the projections that match the condition `which`.

    Points stand for vectors. If a vector changes, its points are deleted, and the video is transformed into the
    projection again later. Call inside a write transaction.
    """
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


def _categories_of(connection: sa.Connection, keys: Iterable[int]) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for chunk in chunks(list(keys)):
        rows = connection.execute(sa.select(db.videos.c.key, db.videos.c.category).where(db.videos.c.key.in_(chunk)))
        found.update((key, category) for key, category in rows)
    return found
