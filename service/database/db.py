"""The database: tables, transactions and schema. `video_rows.py` and the modules beside it give the rows meaning.

The database is SQLite in the data folder, or PostgreSQL. `dialects.py` holds the differences.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from service import system_errors
from service.database import dialects
from service.errors import ConfigurationError, Unavailable

BACKGROUND_LOCK_SECONDS = 60
"""Seconds that a write waits for the lock if no client waits and giving up would repeat work."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# Primary key or change number, 64 bits. SQLite assigns numbers only to the type INTEGER, which has 64 bits there.
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")

library = sa.Table(
    "library",
    metadata,
    # One row. The id shows whether an index snapshot belongs to this database.
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("active_generation", sa.String, nullable=True),
    # The model that the settings requested at the last start. Only a changed setting starts re-embedding.
    sa.Column("model_setting", sa.String, nullable=True),
)

videos = sa.Table(
    "videos",
    metadata,
    sa.Column("key", Number, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False, unique=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("title", sa.String, nullable=False),
    sa.Column("caption", sa.Text, nullable=True),
    sa.Column("category", sa.String, nullable=True, index=True),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("error", sa.Text, nullable=True),
    sa.Column("num_frames", sa.Integer, nullable=False),
    sa.Column("frame_interval", sa.Integer, nullable=True),
    sa.Column("media_type", sa.String, nullable=False),
    sa.Column("codec", sa.String, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("duration_seconds", sa.Float, nullable=True),
    sa.Column("frames_per_second", sa.Float, nullable=True),
    sa.Column("frame_times", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("updated_at", sa.DateTime, nullable=False),
    # A primary key is never reused, so an index entry never comes to mean another video.
    sqlite_autoincrement=True,
)

generations = sa.Table(
    "generations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("precision", sa.String, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("wanted", sa.Boolean, nullable=False, server_default=sa.false()),  # target, beside the active one
    sa.Column("activate", sa.Boolean, nullable=False, server_default=sa.false()),  # as soon as it is complete
    sa.Column("completed_at", sa.DateTime, nullable=True),  # when it first had vectors of every video
    sa.Column("error", sa.Text, nullable=True),
)


def _video_foreign_key() -> sa.ForeignKey:
    return sa.ForeignKey("videos.key", ondelete="CASCADE")


embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("video_key", Number, _video_foreign_key(), primary_key=True),
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),  # frame (N, D); mean, max, text (1, D)
    sa.Column("vectors", sa.LargeBinary, nullable=False),
)

changes = sa.Table(
    "changes",
    metadata,
    # The last change of every video, deleted ones included, in order. An index that has applied change S reads the
    # changes after S, and removes videos that no longer exist. A change of one generation alone names it, so that
    # the indexes of other generations skip the change. An empty generation stands for all.
    sa.Column("number", Number, primary_key=True),
    sa.Column("video_key", Number, nullable=False),
    sa.Column("generation", sa.String, nullable=False, server_default="", index=True),
    sa.UniqueConstraint("video_key", "generation"),
    sqlite_autoincrement=True,
)

collections = sa.Table(
    "collections",
    metadata,
    # State of the collections of vectors in Milvus. Derived, and valid for one deployment only: backups and copies of
    # the library leave this table out.
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),  # empty until the first collection is filled
    sa.Column("next", sa.String, nullable=False, server_default=""),  # collection that is being filled
    sa.Column("index_type", sa.String, nullable=False),  # as Milvus names it
    sa.Column("version", Number, nullable=False),  # incremented with each batch
    sa.Column("number", Number, nullable=False),  # last change that the collection holds
    sa.Column("coming", Number, nullable=False),  # `number` once `batch` is stored
    sa.Column("size", sa.BigInteger, nullable=False),  # rows, `batch` included
    sa.Column("largest", Number, nullable=False),  # largest video primary key ever held, `batch` included
    sa.Column("moments", sa.LargeBinary, nullable=False),  # running statistics, `batch` included
    sa.Column("batch", sa.LargeBinary, nullable=True),  # rows that are being sent
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("video_key", Number, _video_foreign_key(), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("available_at", sa.Float, nullable=False),  # seconds since the epoch
    sa.Column("owner", sa.String, nullable=True),
    sa.Column("lease_expires_at", sa.Float, nullable=True),  # seconds since the epoch
)

keys = sa.Table(
    "keys",
    metadata,
    # API keys as hashes: access to this table gives no API key away.
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False, unique=True),
    sa.Column("rights", sa.String, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
)

sources = sa.Table(
    "sources",
    metadata,
    # Which imported file became which video, so that a second import reads only new and changed files.
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("video_key", Number, _video_foreign_key(), nullable=False, index=True),
)

projections = sa.Table(
    "projections",
    metadata,
    sa.Column("key", Number, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    # Hash of everything that determines the coordinates: equal requests share one projection.
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), nullable=False),
    sa.Column("embedding", sa.String, nullable=False),  # name that users see: frame, aggregated, text
    sa.Column("kind", sa.String, nullable=False),  # name in `embeddings`: frame, mean, max, text
    sa.Column("method", sa.String, nullable=False),
    sa.Column("dimensions", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("category", sa.String, nullable=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("error", sa.Text, nullable=True),
    sa.Column("owner", sa.String, nullable=True),
    sa.Column("lease_expires_at", sa.Float, nullable=True),  # seconds since the epoch
    sa.Column("version", sa.Integer, nullable=False),  # incremented when the points change
    sa.Column("seen", Number, nullable=False),  # last change that the points reflect
    sa.Column("basis", sa.String, nullable=True),  # digest of the vectors that were fitted
    sa.Column("model", sa.LargeBinary, nullable=True),  # for transforming, besides points; .npz
    sa.Column("quality", sa.JSON, nullable=True),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("fitted_at", sa.DateTime, nullable=True),
    sqlite_autoincrement=True,
)

coordinates = sa.Table(
    "coordinates",
    metadata,
    sa.Column("projection_key", Number, sa.ForeignKey("projections.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("video_key", Number, _video_foreign_key(), primary_key=True, index=True),
    sa.Column("points", sa.LargeBinary, nullable=False),  # (N, 2 or 3) float32, one row per frame, or 1
    sa.Column("placed", sa.Boolean, nullable=False),  # transformed after the fit
    # Read one projection at a time, so rows are stored in the order of their primary key.
    sqlite_with_rowid=False,
)


class Database:
    """Transactions on one database: `read` and `write`.

    Both yield a SQLAlchemy connection inside a transaction. The transaction is committed if the block ends normally,
    and rolled back if the block raises.

    Raises:
        Unavailable: if the lock is not obtained within `lock_seconds`, or the database cannot be reached.
        StorageFull: if the disk is full or cannot be written.
    """

    def __init__(self, url: str) -> None:
        self.url = dialects.parse_url(url)
        self._dialect = dialects.dialect_of(self.url)
        self._reader = self._dialect.engine(self.url, writes=False)
        self._writer = self._dialect.engine(self.url, writes=True)
        # Threads of this process take turns here. The database's own lock only separates processes.
        self._turn = threading.Lock()
        self.lock_seconds: float = dialects.BUSY_TIMEOUT_SECONDS

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection that reads a snapshot of the last commit."""
        with _converted_errors(), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield the only connection that writes. All other writers wait until the block ends."""
        with self._writing(self.lock_seconds) as connection:
            yield connection

    @contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Try to take the named lock across all processes; yield whether it was taken.

        Does not wait. The lock covers all machines that use this database. A lock that was taken is held until the
        block ends.
        """
        with _converted_errors(), self._dialect.try_lock(self._reader, name) as taken:
            yield taken

    def check_writable(self, lock_seconds: float) -> None:
        """Write without committing. Raises the errors that a write would raise now.

        Waits up to `lock_seconds` for the lock, and changes nothing.
        """
        with self._writing(lock_seconds) as connection:
            row = connection.execute(sa.select(library.c.id)).scalar()
            connection.execute(sa.update(library).values(id=row))  # the same value, yet a full disk refuses the write
            transaction = connection.get_transaction()
            assert transaction is not None, "`_writing` begins one"
            transaction.rollback()

    @contextmanager
    def _writing(self, lock_seconds: float) -> Iterator[sa.Connection]:
        # The timeout applies here too. Otherwise the last of many waiting threads would wait for minutes.
        if not self._turn.acquire(timeout=lock_seconds):
            raise Unavailable("the database is busy; try again")
        try:
            with _converted_errors(), self._writer.connect() as connection, connection.begin():
                self._dialect.acquire_write_lock(connection, lock_seconds)
                yield connection
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close all connections."""
        self._reader.dispose()
        self._writer.dispose()


def insert(connection: sa.Connection, table: sa.Table) -> dialects.Insert:
    """Return an INSERT that has `on_conflict_do_update` and `on_conflict_do_nothing`."""
    return dialects.dialect_of(connection).insert(table)


def now(connection: sa.Connection) -> float:
    """Return seconds since the epoch, by a clock that all processes with this database share.

    Leases are measured by this clock.
    """
    return dialects.dialect_of(connection).now(connection)


def upgrade(url: str) -> None:
    """Upgrade the schema to the newest revision. Create the database if it does not exist.

    Raises:
        ConfigurationError: if a newer version of ReelsRS has written the database.
        Unavailable: if the database cannot be used now.
        StorageFull: if the disk is full or cannot be written.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    parsed = dialects.parse_url(url)
    if parsed.database and parsed.get_backend_name() == "sqlite":
        with system_errors.converted("the database cannot be used"):
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["url"] = url
    if revision(url) == newest_revision():
        return
    try:
        with _converted_errors():
            command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"database {dialects.shown_url(parsed)} has a schema revision that this version does not support; "
            f"install the newer version of ReelsRS that wrote it ({error})"
        ) from error


def migrations_folder() -> Path:
    """Return the folder of the migrations: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "migrations"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"


def newest_revision() -> str | None:
    """Return the schema revision that this version uses."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(migrations_folder())).get_current_head()


def revision(url: str) -> str | None:
    """Return the schema revision of a database, or None if there is no schema yet."""
    parsed = dialects.parse_url(url)
    engine = dialects.dialect_of(parsed).engine(parsed, writes=False)
    try:
        with _converted_errors(), engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    finally:
        engine.dispose()


@contextmanager
def _converted_errors() -> Iterator[None]:
    """Translate database errors of the machine into Unavailable or StorageFull."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        fault = system_errors.from_error(error.orig)
        if fault is None:
            raise
        raise fault from error
    except sqlite3.Error as error:  # raised while connecting; SQLAlchemy does not wrap it
        fault = system_errors.from_error(error)
        if fault is None:
            raise
        raise fault from error
    except sa.exc.TimeoutError as error:
        raise Unavailable("all connections to the database are in use; try again") from error
