"""Numbered changes, from which indexes and projections catch up with the database."""

from __future__ import annotations

import sqlalchemy as sa

from service.database import db

_LAST_CHANGE = (
    sa.select(db.changes.c.number)
    .where(db.changes.c.generation == sa.bindparam("generation"))
    .order_by(db.changes.c.number.desc())
    .limit(1)
)


def record_change(connection: sa.Connection, video_pk: int, generation: str = "") -> None:
    """Record that the vectors or the category of a video were added, changed or removed.

    If only vectors of one generation changed, pass `generation`: the indexes of other generations then skip the change.
    Otherwise the change concerns all generations and replaces every earlier change of the video. Call inside a write
    transaction.
    """
    before = sa.delete(db.changes).where(db.changes.c.video_key == video_pk)
    connection.execute(before.where(db.changes.c.generation == generation) if generation else before)
    connection.execute(sa.insert(db.changes).values(video_key=video_pk, generation=generation))


def last_change(connection: sa.Connection, generation: str) -> int:
    """Return the number of the last change that concerns a generation, or 0 if there is none."""
    # Two index look-ups: a single statement for the greater number would need a scan.
    return max(connection.execute(_LAST_CHANGE, {"generation": which}).scalar() or 0 for which in ("", generation))


def changed_since(connection: sa.Connection, number: int, generation: str) -> list[int]:
    """Return the primary keys of videos that changed after the change `number`, oldest change first.

    Only changes that concern `generation` count.
    """
    query = sa.select(db.changes.c.video_key).where(
        db.changes.c.number > number, db.changes.c.generation.in_(("", generation))
    )
    return list(dict.fromkeys(connection.execute(query.order_by(db.changes.c.number)).scalars()))
