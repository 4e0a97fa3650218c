"""Generations: whose vectors answer, whose are made beside them, and how far that is. Rows only; knows no model.

One generation is active. Another may be wanted: it is embedded beside the active one, which goes on answering, and is
complete once every video that can be searched has its vectors, a caption's too. Switching is one row in one
transaction; the vectors of the generation before stay, so that going back is one row as well. What lacks vectors at
that moment (it came in since, or could not be embedded beside) is queued as if it had just been uploaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from service.database import db, generation_rows, jobs
from service.errors import NotFound, NotReady
from service.models import Generation

Status = Literal["active", "ready", "embedding", "stopped"]


@dataclass(frozen=True, slots=True)
class State:
    """A generation and how far it is: it has vectors of `embedded` of the `total` videos that can be searched."""

    generation: Generation
    active: bool
    wanted: bool
    activate: bool
    embedded: int
    total: int
    error: str | None
    created_at: datetime
    completed_at: datetime | None

    @property
    def status(self) -> Status:
        """`ready` was complete once and can be switched to; `stopped` was given up for another."""
        if self.active:
            return "active"
        return "ready" if self.completed_at else "embedding" if self.wanted else "stopped"


def states(connection: sa.Connection) -> list[State]:
    """All of them, the newest first."""
    active = generation_rows.active_generation(connection)
    ready = db.videos.c.status == "ready"
    total = connection.execute(sa.select(sa.func.count()).select_from(db.videos).where(ready)).scalar_one()
    whole = db.embeddings.c.kind == "frame"
    counts = (
        sa.select(db.embeddings.c.generation, sa.func.count())
        .join(db.videos, db.videos.c.key == db.embeddings.c.video_key)
        .where(ready, whole)
        .group_by(db.embeddings.c.generation)
    )
    embedded = {row[0]: row[1] for row in connection.execute(counts)}
    rows = connection.execute(sa.select(db.generations).order_by(db.generations.c.created_at.desc()))
    return [
        State(
            generation=Generation(row.id, row.model, row.dimension, row.precision),
            active=active is not None and row.id == active.id,
            wanted=row.wanted,
            activate=row.activate,
            embedded=embedded.get(row.id, 0),
            total=total,
            error=row.error,
            created_at=row.created_at.replace(tzinfo=UTC),
            completed_at=row.completed_at and row.completed_at.replace(tzinfo=UTC),
        )
        for row in rows
    ]


def state(connection: sa.Connection, generation_id: str) -> State:
    """One of them. Raises NotFound."""
    for found in states(connection):
        if found.generation.id == generation_id:
            return found
    raise NotFound(f"there is no generation {generation_id!r}")


def heard(connection: sa.Connection) -> str | None:
    """What the settings asked for when they were last heard, None before the first time."""
    return connection.execute(sa.select(db.library.c.model_setting)).scalar()


def hear(connection: sa.Connection, setting: str) -> None:
    """Remember it, so that a later start with the same settings is no new wish."""
    generation_rows.library_id(connection)
    connection.execute(sa.update(db.library).values(model_setting=setting))


def want(connection: sa.Connection, generation: Generation, *, activate: bool) -> None:
    """Have it embedded beside the active one, and with `activate` switched to once it is complete. One at a time: a
    generation that was wanted before is given up, and keeps what it has."""
    generation_rows.add_generation(connection, generation)
    connection.execute(sa.update(db.generations).values(wanted=False, activate=False))
    active = generation_rows.active_generation(connection)
    if active is None or active.id != generation.id:
        _set(connection, generation.id, wanted=True, activate=activate, error=None)


def wanted(connection: sa.Connection) -> Generation | None:
    """The one that is embedded beside the active one, None where there is none."""
    row = connection.execute(sa.select(db.generations).where(db.generations.c.wanted)).first()
    return None if row is None else Generation(row.id, row.model, row.dimension, row.precision)


def missing(connection: sa.Connection, generation_id: str) -> tuple[list[int], list[int]]:
    """Keys of the videos that can be searched and have no vectors in this generation, and of those that lack their
    caption's only; the oldest first."""

    def without(kind: str, condition: sa.ColumnElement[bool]) -> list[int]:
        column = db.embeddings.c.video_key
        present = sa.select(column).where(db.embeddings.c.generation == generation_id, db.embeddings.c.kind == kind)
        query = sa.select(db.videos.c.key).where(db.videos.c.status == "ready", condition)
        query = query.where(db.videos.c.key.not_in(present)).order_by(db.videos.c.key)
        return list(connection.execute(query).scalars())

    pictures = without("frame", sa.true())
    lacking = set(pictures)
    return pictures, [key for key in without("text", db.videos.c.caption.is_not(None)) if key not in lacking]


def report(connection: sa.Connection, generation_id: str, error: str | None) -> None:
    """Say what stands in its way, None where nothing does."""
    _set(connection, generation_id, error=error)


def complete(connection: sa.Connection, generation: Generation) -> bool:
    """It has all that can be had; whether that switched to it."""
    row = connection.execute(sa.select(db.generations).where(db.generations.c.id == generation.id)).one()
    if row.completed_at is None:
        _set(connection, generation.id, completed_at=_now())
    if not (row.wanted and row.activate):
        return False
    switch(connection, generation.id)
    return True


def switch(connection: sa.Connection, generation_id: str) -> int:
    """Make it the one that answers; of how many videos that lack its vectors and are queued for them. The one
    before stays as complete as it is. Raises NotFound, and NotReady for one that was never complete."""
    now = state(connection, generation_id)
    if now.active:
        return 0
    if now.completed_at is None:
        raise NotReady(generation_id, now.status, "generation")
    before = generation_rows.active_generation(connection)
    if before is not None:  # what answered until now had every video
        _set(connection, before.id, completed_at=sa.func.coalesce(db.generations.c.completed_at, _now()))
    # Whoever switches by hand has decided: nothing else is to switch by itself later.
    connection.execute(sa.update(db.generations).values(activate=False))
    _set(connection, generation_id, wanted=False, error=None)
    generation_rows.activate_generation(connection, now.generation)
    return queue_missing(connection, generation_id)


def queue_missing(connection: sa.Connection, generation_id: str) -> int:
    """Queue what lacks vectors of the active generation, as if it had just been uploaded; how many videos."""
    pictures, texts = missing(connection, generation_id)
    for key in (*pictures, *texts):
        jobs.enqueue(connection, key)
    return len(pictures) + len(texts)


def _set(connection: sa.Connection, generation_id: str, **values: object) -> None:
    connection.execute(sa.update(db.generations).where(db.generations.c.id == generation_id).values(**values))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # stored without a zone, always UTC
