"""The queue of fits: projections that are to be computed.

A projection is requested (`queued`), fitted by the worker that claims it with a lease (`running`), and kept from then
on (`ready`). Videos that are added later are transformed into it. A projection that is fitted again serves its old
points until the new ones are stored.
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
from service.database.projection_rows import (
    METHODS,
    Projection,
    ProjectionSpec,
    by_pk,
    insert_points,
    row_by_pk,
    update_projection,
)
from service.models import Method, Vectors

_LEASES = Leases(db.projections, db.projections.c.key)
CANCELLED = "cancelled"


def request(connection: sa.Connection, spec: ProjectionSpec) -> tuple[Projection, bool]:
    """Return the projection of this specification, and whether this call queued it.

    A projection that is new, or whose fit had failed, is queued. Call inside a write transaction.
    """
    row = connection.execute(
        sa.select(db.projections.c.key, db.projections.c.status).where(db.projections.c.digest == spec.digest)
    ).first()
    if row is None:
        values = asdict(spec)
        projection_pk = connection.execute(
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
        return by_pk(connection, projection_pk), True
    if row.status == "failed":
        queue(connection, row.key)
    return by_pk(connection, row.key), row.status == "failed"


def queue(connection: sa.Connection, projection_pk: int) -> None:
    """Queue a projection to be fitted, for the first time or again.

    A running fit loses its claim, and the projection is fitted from the start. Call inside a write transaction.
    """
    update_projection(connection, projection_pk, status="queued", progress=0.0, error=None, **FREE)


def cancel(connection: sa.Connection, projection_pk: int) -> None:
    """Cancel the fit of a projection, if it is queued or running. Raises NotFound.

    A projection that has points keeps them and is `ready` again. One without points is `failed`. Call inside a write
    transaction.
    """
    state = row_by_pk(connection, projection_pk)
    if state.status not in ("queued", "running"):
        return
    if state.fitted_at is None:
        values: dict[str, Any] = {"status": "failed", "error": CANCELLED}
    else:
        values = {"status": "ready", "error": None}
    update_projection(connection, projection_pk, **values, progress=1.0, **FREE)


def waiting(
    connection: sa.Connection, methods: Collection[Method] = METHODS, projection_pk: int | None = None
) -> int | None:
    """Return the primary key of the oldest projection that waits to be fitted by one of `methods`, or None.

    With `projection_pk`, only this projection is considered. A fit whose lease has expired waits again.
    """
    query = sa.select(db.projections.c.key).where(_claimable(connection), db.projections.c.method.in_(methods))
    if projection_pk is not None:
        query = query.where(db.projections.c.key == projection_pk)
    found: int | None = connection.execute(query.order_by(db.projections.c.key).limit(1)).scalar()
    return found


def claim(
    connection: sa.Connection,
    owner: str,
    methods: Collection[Method] = METHODS,
    projection_pk: int | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> int | None:
    """Claim the projection that `waiting` returns; return its primary key, or None if there is none.

    `owner` then holds the projection for `lease_seconds`. Call inside a write transaction.
    """
    found = waiting(connection, methods, projection_pk)
    if found is not None:
        _LEASES.assign(
            connection, found, owner, db.now(connection) + lease_seconds, status="running", progress=0.0, error=None
        )
    return found


def renew(
    connection: sa.Connection,
    projection_pk: int,
    owner: str,
    progress: float | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> bool:
    """Extend a claim to `lease_seconds` from now, and return whether `owner` still held it.

    `progress`, from 0 to 1, is stored if given. The claim is lost if the fit was cancelled or queued again, or if the
    projection was deleted. It is also lost if another worker claimed the projection after the lease had expired. Call
    inside a write transaction.
    """
    values = {} if progress is None else {"progress": progress}
    return _LEASES.renew(connection, owner, lease_seconds, projection_pk, **values) == 1


def release(connection: sa.Connection, owner: str) -> None:
    """Queue the claimed projections of `owner` again, so that another worker can fit them.

    This includes owners whose name starts with `owner` and a colon. Call inside a write transaction.
    """
    connection.execute(
        sa.update(db.projections).where(_LEASES.held_by(owner)).values(status="queued", progress=0.0, **FREE)
    )


def owns(connection: sa.Connection, projection_pk: int, owner: str) -> bool:
    """Return whether `owner` still holds the claim on a projection."""
    return _LEASES.owns(connection, projection_pk, owner)


def fail(connection: sa.Connection, projection_pk: int, owner: str | None, reason: str) -> None:
    """Mark a projection as failed, with `reason` as its error. Existing points are kept.

    Nothing happens if `owner` does not hold the claim any more. Pass None as `owner` if no fit is running, but new
    points could not be transformed. Call inside a write transaction.
    """
    connection.execute(
        sa.update(db.projections)
        .where(db.projections.c.key == projection_pk, db.projections.c.owner == owner)
        .values(status="failed", progress=1.0, error=reason, **FREE)
    )


def finish(
    connection: sa.Connection,
    projection_pk: int,
    *,
    points: Iterable[tuple[int, Vectors]],
    applied_change: int,
    vectors_digest: str,
    model: bytes,
    quality: dict[str, float] | None,
) -> None:
    """Replace the points of a projection by those of a new fit, and mark it as ready.

    Videos that changed after `applied_change` are left out. They are transformed later, from their present vectors.
    Call inside a write transaction.

    Args:
        connection: a write transaction.
        projection_pk: primary key of the projection.
        points: (N, 2) or (N, 3) float32 coordinates by video primary key, one row per frame or one per video.
        applied_change: number of the last change that the fitted vectors reflect.
        vectors_digest: digest of the vectors that were fitted.
        model: what transforming new points needs besides the points, as .npz.
        quality: quality measures of the fit; None if there are too few points.
    """
    generation = connection.execute(
        sa.select(db.projections.c.generation).where(db.projections.c.key == projection_pk)
    ).scalar_one()
    changed = set(change_log.changed_since(connection, applied_change, generation))
    connection.execute(sa.delete(db.coordinates).where(db.coordinates.c.projection_key == projection_pk))
    insert_points(
        connection, projection_pk, ((video, rows) for video, rows in points if video not in changed), transformed=False
    )
    version = sa.select(db.projections.c.version).where(db.projections.c.key == projection_pk).scalar_subquery()
    update_projection(
        connection,
        projection_pk,
        status="ready",
        progress=1.0,
        error=None,
        **FREE,
        version=version + 1,
        seen=applied_change,
        basis=vectors_digest,
        model=model,
        quality=quality,
        fitted_at=utc_now(),
    )


def _claimable(connection: sa.Connection) -> sa.ColumnElement[bool]:
    rows = db.projections.c
    return sa.or_(
        rows.status == "queued",
        sa.and_(rows.status == "running", _LEASES.is_free(db.now(connection))),
    )
