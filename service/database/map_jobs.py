"""Layouts of maps as work to be done.

A map is asked for (`queued`), laid out by whoever claims it with a lease (`running`), and from then on (`ready`) kept:
videos that come later are placed into it. A map that is laid out anew serves its old points until the new ones are
there.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from service.database import change_log, db
from service.database.common import utc_now
from service.database.leases import FREE, LEASE_SECONDS, Leases
from service.database.maps import METHODS, Map, Spec, by_key, change, insert_points, row_by_key
from service.models import Method, Vectors

_LEASES = Leases(db.projections, db.projections.c.key)
CANCELLED = "cancelled"


def ask(connection: sa.Connection, spec: Spec) -> tuple[Map, bool]:
    """The map of this spec, and whether it was queued by this: where it is new, or had failed."""
    row = connection.execute(
        sa.select(db.projections.c.key, db.projections.c.status).where(db.projections.c.digest == spec.digest)
    ).first()
    if row is None:
        values = asdict(spec)
        key = connection.execute(
            sa.insert(db.projections)
            .values(
                id=secrets.token_hex(8),
                digest=spec.digest,
                **values,
                status="queued",
                progress=0.0,
                version=0,
                seen=0,
                created_at=utc_now(),
            )
            .returning(db.projections.c.key)
        ).scalar_one()
        return by_key(connection, key), True
    if row.status == "failed":
        queue(connection, row.key)
    return by_key(connection, row.key), row.status == "failed"


def queue(connection: sa.Connection, key: int) -> None:
    """Have a map laid out (again); one that is being laid out starts afresh."""
    change(connection, key, status="queued", progress=0.0, error=None, **FREE)


def cancel(connection: sa.Connection, key: int) -> None:
    """Give up the layout that is queued or running. A map that has points keeps them; another one has failed."""
    state = row_by_key(connection, key)
    if state.status not in ("queued", "running"):
        return
    if state.fitted_at is None:
        end: dict[str, Any] = {"status": "failed", "error": CANCELLED}
    else:
        end = {"status": "ready", "error": None}
    change(connection, key, **end, progress=1.0, **FREE)


def waiting(connection: sa.Connection, methods: Collection[Method] = METHODS, key: int | None = None) -> int | None:
    """The key of the oldest map that waits to be laid out by one of these methods, or this one if it does; None where
    there is none."""
    query = sa.select(db.projections.c.key).where(_claimable(connection), db.projections.c.method.in_(methods))
    if key is not None:
        query = query.where(db.projections.c.key == key)
    found: int | None = connection.execute(query.order_by(db.projections.c.key).limit(1)).scalar()
    return found


def claim(
    connection: sa.Connection,
    owner: str,
    methods: Collection[Method] = METHODS,
    key: int | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> int | None:
    """Claim what `waiting` finds for `owner`, for `lease_seconds`. Return its key, None if there is nothing."""
    found = waiting(connection, methods, key)
    if found is not None:
        _LEASES.take(
            connection, found, owner, db.now(connection) + lease_seconds, status="running", progress=0.0, error=None
        )
    return found


def renew(
    connection: sa.Connection,
    key: int,
    owner: str,
    progress: float | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> bool:
    """Hold on to a claim for `lease_seconds` from now on, and say how far it is. False once it is not `owner`'s any
    more: cancelled, deleted, queued again, or claimed by another worker after the lease expired."""
    values = {} if progress is None else {"progress": progress}
    return _LEASES.renew(connection, owner, lease_seconds, key, **values) == 1


def release(connection: sa.Connection, owner: str) -> None:
    """Give back what `owner` holds, under that name or one that goes on after a colon, to be laid out by another."""
    names = db.projections.c.owner
    connection.execute(
        sa.update(db.projections)
        .where(sa.or_(names == owner, names.startswith(f"{owner}:", autoescape=True)))
        .values(status="queued", progress=0.0, **FREE)
    )


def owns(connection: sa.Connection, key: int, owner: str) -> bool:
    """Whether the layout is still `owner`'s to make."""
    return _LEASES.owns(connection, key, owner)


def fail(connection: sa.Connection, key: int, owner: str | None, reason: str) -> None:
    """The end of a layout of `owner`'s that could not be made, or with None of a placement. Points that are there
    stay."""
    connection.execute(
        sa.update(db.projections)
        .where(db.projections.c.key == key, db.projections.c.owner == owner)
        .values(status="failed", progress=1.0, error=reason, **FREE)
    )


def finish(
    connection: sa.Connection,
    key: int,
    *,
    points: Iterable[tuple[int, Vectors]],
    seen: int,
    basis: str,
    model: bytes,
    quality: dict[str, float] | None,
) -> None:
    """Put a layout in place of the one before: coordinates by video key, as of the change `seen`. Videos that have
    changed since are left out, to be placed by what they are now. `basis` names what was laid out, `model` is what
    placing more into it needs."""
    generation = connection.execute(
        sa.select(db.projections.c.generation).where(db.projections.c.key == key)
    ).scalar_one()
    changed = set(change_log.changed_since(connection, seen, generation))
    connection.execute(sa.delete(db.coordinates).where(db.coordinates.c.projection_key == key))
    insert_points(connection, key, ((video, rows) for video, rows in points if video not in changed), placed=False)
    version = sa.select(db.projections.c.version).where(db.projections.c.key == key).scalar_subquery()
    change(
        connection,
        key,
        status="ready",
        progress=1.0,
        error=None,
        **FREE,
        version=version + 1,
        seen=seen,
        basis=basis,
        model=model,
        quality=quality,
        fitted_at=utc_now(),
    )


def _claimable(connection: sa.Connection) -> sa.ColumnElement[bool]:
    rows = db.projections.c
    return sa.or_(
        rows.status == "queued",
        sa.and_(rows.status == "running", _LEASES.free(db.now(connection))),
    )
