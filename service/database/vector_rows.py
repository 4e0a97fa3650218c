"""Vectors of videos, by generation and kind."""

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
    for chunk in chunks(list(keys)):
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


def _categories_of(connection: sa.Connection, keys: Iterable[int]) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for chunk in chunks(list(keys)):
        rows = connection.execute(sa.select(db.videos.c.key, db.videos.c.category).where(db.videos.c.key.in_(chunk)))
        found.update((key, category) for key, category in rows)
    return found
