"""Numbered changes, by which indexes and maps follow the database."""

from __future__ import annotations

import sqlalchemy as sa

from service.database import db

_LAST_CHANGE = (
    sa.select(db.changes.c.number)
    .where(db.changes.c.generation == sa.bindparam("generation"))
    .order_by(db.changes.c.number.desc())
    .limit(1)
)


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
