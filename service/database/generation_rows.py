"""Generations: which models have embedded the library, and which of them answers."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from service.database import db
from service.database.common import utc_now
from service.errors import NotFound, Unavailable
from service.models import Generation


def library_id(connection: sa.Connection) -> str:
    """The id of this database, made when first asked for."""
    found = connection.execute(sa.select(db.library.c.id)).scalar()
    if found is None:
        found = secrets.token_hex(8)
        connection.execute(sa.insert(db.library).values(id=found))
    return found


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
            created_at=utc_now(),
        )
        .on_conflict_do_nothing()
    )


def activate_generation(connection: sa.Connection, generation: Generation) -> None:
    """Make this generation the one that answers queries; made known where it is new."""
    add_generation(connection, generation)
    library_id(connection)
    connection.execute(sa.update(db.library).values(active_generation=generation.id))


def require_active(connection: sa.Connection, wanted: Generation) -> None:
    """Raises Unavailable unless this is the generation that answers."""
    active = active_generation(connection)
    if active is None or active.id != wanted.id:
        raise Unavailable("another model took over just now; try again")
