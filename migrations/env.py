"""Run the migrations on the database whose URL `service.database.db.upgrade` passes in."""

from alembic import context

from service.database import dialects
from service.database.db import metadata


def run() -> None:
    """Bring the database to the requested revision in one transaction, also on SQLite."""
    url = dialects.parse_url(context.config.attributes["url"])
    dialect = dialects.dialect_of(url)
    engine = dialect.engine(url, writes=True)
    try:
        with engine.connect() as connection:
            # SQLite cannot alter most of a table in place: batch mode creates a new table and copies the rows.
            context.configure(
                connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
            )
            with context.begin_transaction():
                dialect.begin_schema_change(connection)
                context.run_migrations()
    finally:
        engine.dispose()


run()
