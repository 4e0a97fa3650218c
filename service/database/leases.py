"""Leases on rows: who works on one, and until when. Of jobs (`jobs.py`) and of layouts (`map_jobs.py`) alike.

A holder renews its lease while it works. When it dies the lease runs out, and another may take the row.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from service.database import db
from service.timing import Timing

LEASE_SECONDS = Timing().lease_seconds

FREE: dict[str, Any] = {"owner": None, "lease_expires_at": None}
"""Values of a row that nobody holds."""


class Leases:
    """Those on the rows of one table, which has columns `owner` and `lease_expires_at`. All methods take part in the
    transaction of `connection`."""

    def __init__(self, table: sa.Table, key: sa.Column[int]) -> None:
        self._table = table
        self._key = key

    def free(self, now: float) -> sa.ColumnElement[bool]:
        """The condition that nobody holds a row, or nobody does any more."""
        expires_at = self._table.c.lease_expires_at
        return sa.or_(expires_at.is_(None), expires_at < now)

    def take(self, connection: sa.Connection, key: int, owner: str, until: float, **values: Any) -> None:
        """Have `owner` hold a row until then; `values` of other columns go with it."""
        mine = sa.update(self._table).where(self._key == key)
        connection.execute(mine.values(owner=owner, lease_expires_at=until, **values))

    def renew(
        self, connection: sa.Connection, owner: str, seconds: float, key: int | None = None, **values: Any
    ) -> int:
        """Extend the leases of `owner`, or the one on this row, to so long from now on. Return how many there are."""
        mine = self._table.c.owner == owner
        if key is not None:
            mine = sa.and_(mine, self._key == key)
        until = db.now(connection) + seconds
        return connection.execute(sa.update(self._table).where(mine).values(lease_expires_at=until, **values)).rowcount

    def owns(self, connection: sa.Connection, key: int, owner: str) -> bool:
        """Whether `owner` still holds the row: not so once another took it, or it was given back or deleted."""
        held = connection.execute(sa.select(self._table.c.owner).where(self._key == key)).scalar()
        return held is not None and held == owner
