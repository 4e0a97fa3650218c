"""The generations table: which models have embedded the library, and which generation is active."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from service.database import db
from service.database.common import utc_now
from service.errors import NotFound, Unavailable
from service.models import Generation


def library_id(connection: sa.Connection) -> str:
    """Return the id of this database, creating the id if there is none.

    Call inside a write transaction if the id may not exist yet.
    """
    found = connection.execute(sa.select(db.library.c.id)).scalar()
    if found is None:
        found = secrets.token_hex(8)
        connection.execute(sa.insert(db.library).values(id=found))
    return found


def active_generation(connection: sa.Connection) -> Generation | None:
    """Return the generation that serves searches, or None before the first activation."""
    row = connection.execute(
        sa.select(db.generations).join(db.library, db.library.c.active_generation == db.generations.c.id)
    ).first()
    return None if row is None else Generation(row.id, row.model, row.dimension, row.precision)


def generation(connection: sa.Connection, generation_id: str) -> Generation:
    """Return the generation with this id. Raises NotFound."""
    row = connection.execute(sa.select(db.generations).where(db.generations.c.id == generation_id)).first()
    if row is None:
        raise NotFound(f"generation {generation_id!r} does not exist")
    return Generation(row.id, row.model, row.dimension, row.precision)


def add_generation(connection: sa.Connection, generation: Generation) -> None:
    """Insert a generation; do nothing if it exists. Call inside a write transaction."""
    connection.execute(
        db.insert(connection, db.generations)
        .values(
            id=generation.id,
            model=generation.model,
            dimension=generation.dimension,
            precision=generation.precision,
            created_at=utc_now(),
        )
        .on_conflict_do_nothing()
    )


def activate_generation(connection: sa.Connection, generation: Generation) -> None:
    """Make a generation the active one, which serves searches. Insert its row if it is new.

    Call inside a write transaction.
    """
    add_generation(connection, generation)
    library_id(connection)
    connection.execute(sa.update(db.library).values(active_generation=generation.id))


def require_active(connection: sa.Connection, expected: Generation) -> None:
    """Raise Unavailable unless `expected` is the active generation."""
    active = active_generation(connection)
    if active is None or active.id != expected.id:
        raise Unavailable("another model became active meanwhile; try again")
