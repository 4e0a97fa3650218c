"""State of each Milvus collection, as the database records it: one row per generation and kind."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from service.database import db
from service.database.db import Database
from service.errors import Unavailable
from service.models import Generation, Kind


class CollectionState:
    """Database row of one collection.

    The row holds the collection's name, its last applied change, a batch in transit, and its running statistics.
    """

    def __init__(self, database: Database, generation: Generation, kind: Kind) -> None:
        self._db = database
        self._generation = generation.id
        self._kind = kind

    def row(self, connection: sa.Connection, *, with_blobs: bool = False) -> sa.Row[Any] | None:
        """Return the row, without its large columns unless `with_blobs`; None if there is none yet."""
        columns = [one for one in db.collections.c if with_blobs or one.name not in ("moments", "batch")]
        return connection.execute(
            sa.select(*columns).where(
                db.collections.c.generation == self._generation, db.collections.c.kind == self._kind
            )
        ).first()

    def fetch(self) -> sa.Row[Any] | None:
        """Return the row with all columns, in a transaction of its own; None if there is none yet."""
        with self._db.read() as connection:
            return self.row(connection, with_blobs=True)

    def compare_and_set(self, before: sa.Row[Any] | None, **values: Any) -> sa.Row[Any]:
        """Update the row if it still equals `before`, or insert the first row if `before` is None. Return the new row.

        Raises Unavailable if another process updated the row first.
        """
        identity = {"generation": self._generation, "kind": self._kind}
        table = db.collections
        with self._db.write() as connection:
            if before is None:
                numbers = dict.fromkeys(("version", "number", "coming", "size"), 0)
                first = {"name": "", "index_type": "", **numbers, "largest": -1, "moments": b"", **values}
                connection.execute(sa.insert(table).values(**identity, **first))
            else:
                same = sa.and_(table.c.generation == self._generation, table.c.kind == self._kind)
                unchanged = sa.and_(table.c.name == before.name, table.c.number == before.number)
                done = connection.execute(sa.update(table).where(same, unchanged).values(**values))
                if done.rowcount != 1:  # the lock was lost with its connection, and another process continued
                    raise Unavailable("the vector collection is being updated; try again")
            row = self.row(connection, with_blobs=True)
        assert row is not None, "the row was just written"
        return row
