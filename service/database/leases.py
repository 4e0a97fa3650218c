"""Leases on rows: who works on a row, and until when.

Embedding jobs (`jobs.py`) and fits of projections (`projection_jobs.py`) both use leases.

The owner renews its lease while it works. If the owner dies, the lease expires and another worker may claim the row.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from service.database import db
from service.timing import Timing

LEASE_SECONDS = Timing().lease_seconds

FREE: dict[str, Any] = {"owner": None, "lease_expires_at": None}
"""Column values of a row without an owner."""


class Leases:
    """Leases on the rows of one table, which has the columns `owner` and `lease_expires_at`.

    All methods run inside the caller's transaction on `connection`.
    """

    def __init__(self, table: sa.Table, pk_column: sa.Column[int]) -> None:
        self._table = table
        self._pk_column = pk_column

    def is_free(self, now: float) -> sa.ColumnElement[bool]:
        """Return the SQL condition that a row has no lease, or that its lease has expired.

        `now` is in seconds since the epoch, by the clock of `db.now`.
        """
        expires_at = self._table.c.lease_expires_at
        return sa.or_(expires_at.is_(None), expires_at < now)

    def held_by(self, owner: str) -> sa.ColumnElement[bool]:
        """Return the SQL condition that `owner` holds a row, or an owner whose name starts with `owner` and a colon."""
        names = self._table.c.owner
        return sa.or_(names == owner, names.startswith(f"{owner}:", autoescape=True))

    def assign(self, connection: sa.Connection, row_pk: int, owner: str, until: float, **values: Any) -> None:
        """Make `owner` the owner of a row, with a lease until `until`.

        Does not check whether the row is free. `until` is in seconds since the epoch. `values` are written to other
        columns of the row. Call inside a write transaction.
        """
        mine = sa.update(self._table).where(self._pk_column == row_pk)
        connection.execute(mine.values(owner=owner, lease_expires_at=until, **values))

    def renew(
        self, connection: sa.Connection, owner: str, seconds: float, row_pk: int | None = None, **values: Any
    ) -> int:
        """Extend leases of `owner` to `seconds` from now; return the number of rows renewed.

        With `row_pk`, only the lease on that row is extended. `values` are written to other columns of the same rows.
        An expired lease is renewed too if no other worker has claimed the row. Call inside a write transaction.
        """
        mine = self._table.c.owner == owner
        if row_pk is not None:
            mine = sa.and_(mine, self._pk_column == row_pk)
        until = db.now(connection) + seconds
        return connection.execute(sa.update(self._table).where(mine).values(lease_expires_at=until, **values)).rowcount

    def owns(self, connection: sa.Connection, row_pk: int, owner: str) -> bool:
        """Return whether `owner` still owns the row.

        False if another worker claimed the row, or if the row was released or deleted.
        """
        held = connection.execute(sa.select(self._table.c.owner).where(self._pk_column == row_pk)).scalar()
        return held is not None and held == owner
