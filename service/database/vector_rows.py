"""The embeddings table: vectors of videos, by generation and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import sqlalchemy as sa

from service.database import db
from service.database.common import chunks
from service.models import Embeddings, Entries, Generation, Kind, Vectors
from service.vectors import pack, unpack

_VECTORS_OF_VIDEO = sa.select(db.embeddings.c.kind, db.embeddings.c.vectors).where(
    db.embeddings.c.video_key == sa.bindparam("key"),
    db.embeddings.c.generation == sa.bindparam("generation"),
    db.embeddings.c.kind.in_(sa.bindparam("kinds", expanding=True)),
)
_VECTORS_OF_VIDEOS = (
    sa.select(db.embeddings.c.video_key, db.embeddings.c.vectors)
    .join(db.videos, db.videos.c.key == db.embeddings.c.video_key)
    .where(
        db.videos.c.status == "ready",
        db.embeddings.c.video_key.in_(sa.bindparam("keys", expanding=True)),
        db.embeddings.c.generation == sa.bindparam("generation"),
        db.embeddings.c.kind == sa.bindparam("kind"),
    )
)


def put_embeddings(connection: sa.Connection, video_pk: int, generation: Generation, embeddings: Embeddings) -> None:
    """Replace all vectors of a video in one generation.

    Points that stand for the old vectors are deleted. Call inside a write transaction.
    """
    put_text(connection, video_pk, generation, embeddings.text)
    _put(connection, video_pk, generation, "frame", embeddings.frames)
    _put(connection, video_pk, generation, "mean", embeddings.mean)
    _put(connection, video_pk, generation, "max", embeddings.max)


def put_text(connection: sa.Connection, video_pk: int, generation: Generation, text: Vectors | None) -> None:
    """Replace the (D,) float32 text vector of a video in one generation; None deletes it.

    Points that stand for the old text vector are deleted. Call inside a write transaction.
    """
    if text is not None:
        _put(connection, video_pk, generation, "text", text)
        return
    its_text = sa.and_(db.embeddings.c.generation == generation.id, db.embeddings.c.kind == "text")
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == video_pk, its_text))
    same_vectors = sa.and_(db.projections.c.generation == generation.id, db.projections.c.kind == "text")
    delete_points(connection, video_pk, same_vectors)


def delete_text_vectors(connection: sa.Connection, video_pk: int) -> None:
    """Delete the text vectors of a video in every generation, because its caption changed.

    Points that stand for them are deleted too. Call inside a write transaction.
    """
    connection.execute(
        sa.delete(db.embeddings).where(db.embeddings.c.video_key == video_pk, db.embeddings.c.kind == "text")
    )
    delete_points(connection, video_pk, db.projections.c.kind == "text")


def delete_other_generations(connection: sa.Connection, video_pk: int, generation: Generation) -> None:
    """Delete the vectors of a video in all other generations, because its frames changed.

    Points that stand for them are deleted too. Call inside a write transaction.
    """
    others = db.embeddings.c.generation != generation.id
    connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.video_key == video_pk, others))
    delete_points(connection, video_pk, db.projections.c.generation != generation.id)


def vectors(connection: sa.Connection, video_pk: int, generation: Generation, kind: Kind) -> Vectors | None:
    """Return the (N, D) float32 vectors of one video and kind, or None if there are none."""
    return vectors_by_kind(connection, video_pk, generation, kind).get(kind)


def vectors_by_kind(
    connection: sa.Connection, video_pk: int, generation: Generation, *kinds: Kind
) -> dict[Kind, Vectors]:
    """Return the (N, D) float32 vectors of one video by kind. A kind without vectors is missing."""
    values = {"key": video_pk, "generation": generation.id, "kinds": kinds}
    rows = connection.execute(_VECTORS_OF_VIDEO, values)
    return {kind: unpack(data, generation.dimension) for kind, data in rows}


def vectors_of(
    connection: sa.Connection, video_pks: Iterable[int], generation: Generation, kind: Kind
) -> dict[int, Vectors]:
    """Return the (N, D) float32 vectors of one kind, by video primary key.

    Videos that are not ready, or that have no such vectors, are missing.
    """
    found: dict[int, Vectors] = {}
    for chunk in chunks(list(video_pks)):
        rows = connection.execute(_VECTORS_OF_VIDEOS, {"keys": chunk, "generation": generation.id, "kind": kind})
        found.update((video_pk, unpack(data, generation.dimension)) for video_pk, data in rows)
    return found


def embedded_pks(connection: sa.Connection, generation: Generation, kind: Kind) -> set[int]:
    """Return the primary keys of the ready videos that have vectors of this kind in a generation."""
    rows = (
        sa.select(db.embeddings.c.video_key)
        .join(db.videos, db.videos.c.key == db.embeddings.c.video_key)
        .where(
            db.videos.c.status == "ready",
            db.embeddings.c.generation == generation.id,
            db.embeddings.c.kind == kind,
        )
    )
    return set(connection.execute(rows).scalars())


def index_entries(connection: sa.Connection, video_pks: Sequence[int], generation: Generation, kind: Kind) -> Entries:
    """Return the entries of an index for those of these videos that can be searched.

    With the kind `mean` or `max` there is one row per video, with its text vector. With the kind `frame` there is one
    row per frame, in order, without text vectors.
    """
    visual = vectors_of(connection, video_pks, generation, kind)
    counts = [len(rows) for rows in visual.values()]
    nothing = np.zeros((0, generation.dimension), dtype=np.float32)
    matrix = np.concatenate([nothing, *visual.values()])
    names = categories_of(connection, visual)
    captioned = np.zeros(len(matrix), dtype=np.bool_)
    text = None
    if kind != "frame":
        text = np.zeros_like(matrix)
        text_by_pk = vectors_of(connection, visual, generation, "text")
        for number, video_pk in enumerate(visual):
            if video_pk in text_by_pk:
                text[number], captioned[number] = text_by_pk[video_pk][0], True
    return Entries(
        np.repeat(np.array(list(visual), dtype=np.int64), counts),
        matrix,
        text,
        captioned,
        tuple(names[pk] for pk, count in zip(visual, counts, strict=True) for _ in range(count)),
    )


def delete_points(connection: sa.Connection, video_pk: int, which: sa.ColumnElement[bool]) -> None:
    """Delete the points of a video from the projections that match the condition `which`.

    Points stand for vectors. If a vector changes, its points are deleted, and the video is transformed into the
    projection again later. Call inside a write transaction.
    """
    projections = sa.select(db.projections.c.key).where(which)
    connection.execute(
        sa.delete(db.coordinates).where(
            db.coordinates.c.video_key == video_pk, db.coordinates.c.projection_key.in_(projections)
        )
    )


def _put(connection: sa.Connection, video_pk: int, generation: Generation, kind: Kind, vectors: Vectors) -> None:
    same_vectors = sa.and_(db.projections.c.generation == generation.id, db.projections.c.kind == kind)
    delete_points(connection, video_pk, same_vectors)
    values = {"vectors": pack(vectors)}
    connection.execute(
        db.insert(connection, db.embeddings)
        .values(video_key=video_pk, generation=generation.id, kind=kind, **values)
        .on_conflict_do_update(index_elements=["video_key", "generation", "kind"], set_=values)
    )


def categories_of(connection: sa.Connection, video_pks: Iterable[int]) -> dict[int, str | None]:
    """Return the category of each video, by primary key. Deleted videos are missing."""
    found: dict[int, str | None] = {}
    for chunk in chunks(list(video_pks)):
        rows = connection.execute(sa.select(db.videos.c.key, db.videos.c.category).where(db.videos.c.key.in_(chunk)))
        found.update((video_pk, category) for video_pk, category in rows)
    return found
