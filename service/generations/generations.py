"""State of the generations: the active one, the target, and its progress. Rows only; no model is loaded here.

One generation is active. Another one may be the target: it is embedded beside the active one, which serves searches
meanwhile. A generation is complete once every video that can be searched has its vectors, text vectors included.

A switch changes one row, in one transaction. The vectors of the former generation stay, so switching back also changes
one row. Videos that lack vectors of the new active generation are queued as if they had just been uploaded. Such videos
were added meanwhile, or could not be embedded.
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
    """A generation and its progress.

    Attributes:
        active: the generation serves searches.
        is_target: the generation is the target, embedded beside the active one.
        activate: switch to the generation once it is complete.
        embedded: number of videos that can be searched and have vectors of the generation.
        total: number of videos that can be searched.
        error: what prevents the generation from becoming complete, or None.
        completed_at: when the generation was first complete, or None.
    """

    generation: Generation
    active: bool
    is_target: bool
    activate: bool
    embedded: int
    total: int
    error: str | None
    created_at: datetime
    completed_at: datetime | None

    @property
    def status(self) -> Status:
        """`active`, `ready`, `embedding` or `stopped`.

        A `ready` generation was complete once, and can be switched to. A `stopped` generation was given up for another
        one.
        """
        if self.active:
            return "active"
        return "ready" if self.completed_at else "embedding" if self.is_target else "stopped"


def states(connection: sa.Connection) -> list[State]:
    """Return the states of all generations, newest first."""
    active = generation_rows.active_generation(connection)
    ready = db.videos.c.status == "ready"
    total = connection.execute(sa.select(sa.func.count()).select_from(db.videos).where(ready)).scalar_one()
    frames = db.embeddings.c.kind == "frame"
    counts = (
        sa.select(db.embeddings.c.generation, sa.func.count())
        .join(db.videos, db.videos.c.key == db.embeddings.c.video_key)
        .where(ready, frames)
        .group_by(db.embeddings.c.generation)
    )
    embedded = {row[0]: row[1] for row in connection.execute(counts)}
    rows = connection.execute(sa.select(db.generations).order_by(db.generations.c.created_at.desc()))
    return [
        State(
            generation=Generation(row.id, row.model, row.dimension, row.precision),
            active=active is not None and row.id == active.id,
            is_target=row.wanted,
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
    """Return the state of one generation. Raises NotFound."""
    for found in states(connection):
        if found.generation.id == generation_id:
            return found
    raise NotFound(f"generation {generation_id!r} does not exist")


def recorded_model_setting(connection: sa.Connection) -> str | None:
    """Return the model and precision setting that was recorded last, or None before the first start."""
    return connection.execute(sa.select(db.library.c.model_setting)).scalar()


def record_requested_model(connection: sa.Connection, setting: str) -> None:
    """Record the model and precision setting.

    A later start with the same settings then does not start re-embedding. Call inside a write transaction.
    """
    generation_rows.library_id(connection)
    connection.execute(sa.update(db.library).values(model_setting=setting))


def set_target(connection: sa.Connection, generation: Generation, *, activate: bool) -> None:
    """Make a generation the target: it is embedded beside the active one.

    With `activate`, the library switches to the generation once it is complete. There is one target at a time: a former
    target is given up, and keeps its vectors. If the generation is active already, there is no target afterwards. Call
    inside a write transaction.
    """
    generation_rows.add_generation(connection, generation)
    connection.execute(sa.update(db.generations).values(wanted=False, activate=False))
    active = generation_rows.active_generation(connection)
    if active is None or active.id != generation.id:
        _set(connection, generation.id, wanted=True, activate=activate, error=None)


def target(connection: sa.Connection) -> Generation | None:
    """Return the target generation, or None."""
    row = connection.execute(sa.select(db.generations).where(db.generations.c.wanted)).first()
    return None if row is None else Generation(row.id, row.model, row.dimension, row.precision)


def missing(connection: sa.Connection, generation_id: str) -> tuple[list[int], list[int]]:
    """Return the primary keys of searchable videos that lack vectors of a generation, in two lists.

    The first list holds the videos without any vectors, the second those that lack only the text vector of their
    caption. Both start with the oldest video.
    """

    def without(kind: str, condition: sa.ColumnElement[bool]) -> list[int]:
        column = db.embeddings.c.video_key
        present = sa.select(column).where(db.embeddings.c.generation == generation_id, db.embeddings.c.kind == kind)
        query = sa.select(db.videos.c.key).where(db.videos.c.status == "ready", condition)
        query = query.where(db.videos.c.key.not_in(present)).order_by(db.videos.c.key)
        return list(connection.execute(query).scalars())

    all_vectors = without("frame", sa.true())
    lacking = set(all_vectors)
    return all_vectors, [pk for pk in without("text", db.videos.c.caption.is_not(None)) if pk not in lacking]


def record_error(connection: sa.Connection, generation_id: str, error: str | None) -> None:
    """Record what prevents a generation from becoming complete; None if nothing does.

    Call inside a write transaction.
    """
    _set(connection, generation_id, error=error)


def complete(connection: sa.Connection, generation: Generation) -> bool:
    """Mark a generation as complete, and switch to it if requested; return whether it was switched to.

    Videos that cannot be embedded do not prevent a generation from being complete. Call inside a write transaction.
    """
    row = connection.execute(sa.select(db.generations).where(db.generations.c.id == generation.id)).one()
    if row.completed_at is None:
        _set(connection, generation.id, completed_at=_now())
    if not (row.wanted and row.activate):
        return False
    switch(connection, generation.id)
    return True


def switch(connection: sa.Connection, generation_id: str) -> int:
    """Make a generation the active one; return the number of videos that lack its vectors and were queued.

    The former generation counts as complete, so that switching back is possible. If the generation is active already,
    nothing happens. Call inside a write transaction.

    Raises:
        NotFound: if there is no such generation.
        NotReady: if the generation was never complete.
    """
    chosen = state(connection, generation_id)
    if chosen.active:
        return 0
    if chosen.completed_at is None:
        raise NotReady(generation_id, chosen.status, "generation")
    previous = generation_rows.active_generation(connection)
    if previous is not None:  # the active generation had every video
        _set(connection, previous.id, completed_at=sa.func.coalesce(db.generations.c.completed_at, _now()))
    # A manual switch is a decision: no generation becomes active by itself afterwards.
    connection.execute(sa.update(db.generations).values(activate=False))
    _set(connection, generation_id, wanted=False, error=None)
    generation_rows.activate_generation(connection, chosen.generation)
    return queue_missing(connection, generation_id)


def queue_missing(connection: sa.Connection, generation_id: str) -> int:
    """Queue videos that lack vectors of the active generation; return their number.

    They are queued as if they had just been uploaded. Call inside a write transaction.
    """
    all_vectors, texts = missing(connection, generation_id)
    for video_pk in (*all_vectors, *texts):
        jobs.enqueue(connection, video_pk)
    return len(all_vectors) + len(texts)


def _set(connection: sa.Connection, generation_id: str, **values: object) -> None:
    connection.execute(sa.update(db.generations).where(db.generations.c.id == generation_id).values(**values))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # rows store UTC without a time zone
