"""Runs the migrations over the URL that `service.db.upgrade` hands in."""

import sqlalchemy as sa
from alembic import context

from service.db import metadata


def run() -> None:
    """Bring one database to the asked revision, in one transaction."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _run_on(given)
        return
    engine = sa.create_engine(context.config.attributes["url"])
    try:
        with engine.connect() as connection:
            _run_on(connection)
    finally:
        engine.dispose()


def _run_on(connection: sa.Connection) -> None:
    # SQLite cannot alter most of a table in place: batch mode makes a new one and moves the rows.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
