"""Differences between SQLite and PostgreSQL: connections, the write lock, upserts, and the clock.

On both, one transaction writes at a time. Changes therefore appear in the order of their numbers, on which the
synchronisation of indexes relies. A condition that is checked at the start of a write transaction holds until its end.
SQLite works this way by itself. On PostgreSQL every write transaction first takes one advisory lock, and its end
releases the lock. Readers see the last commit and never wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import ConfigurationError
from service.names import readable

BUSY_TIMEOUT_SECONDS = 5
"""Seconds that a write waits for the lock if a client waits for the response."""

_LOCK = 7_330_275_291_847_351  # arbitrary; no other application of the database may use this number
_SCHEMA_LOCK_SECONDS = 600
_POOL_SIZE = 20  # connections that a process keeps for reading, and as many for writing; twice as many under load
_IDLE_TRANSACTION_SECONDS = 60  # the lock of a writer whose machine is gone is released after that
# Detect within a minute that a server or a network is silently gone.
_KEEPALIVE_OPTIONS = {
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_SQLITE_OPTIONS = frozenset({"uri", "timeout", "isolation_level", "detect_types", "check_same_thread"})  # of a URL

Insert = sqlite.Insert | postgresql.Insert


class Dialect(Protocol):
    """Operations that differ between database systems."""

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        """Return an engine whose transactions only read, or write if `writes` is True."""

    def acquire_write_lock(self, connection: sa.Connection, seconds: float) -> None:
        """Wait for the write lock, and begin to write.

        Must be the first statement of a transaction of a writing engine. If other writers hold the lock for longer than
        `seconds`, this raises an error that `system_errors.from_error` translates to Unavailable.
        """

    def insert(self, table: sa.Table) -> Insert:
        """Return an INSERT that has `on_conflict_do_update` and `on_conflict_do_nothing`."""

    def now(self, connection: sa.Connection, /) -> float:
        """Return seconds since the epoch, by a clock that all processes with this database share."""

    def try_lock(self, engine: sa.Engine, name: str) -> AbstractContextManager[bool]:
        """Try to take the named lock across all processes; yield whether it was taken.

        Does not wait. A lock that was taken is held until the block ends.
        """

    def set_last_number(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        """Make the numbers that this column assigns automatically greater than `number`."""

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """Begin to change the schema, after waiting for the write lock for up to 10 minutes."""


class SQLite:
    """An SQLite file, which has one writer at a time.

    Every write transaction starts with `BEGIN IMMEDIATE`. A transaction that reads first and writes later fails with
    "database is locked" if another one wrote in between, whatever the timeout.
    """

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        """Return an engine with a write-ahead log, full synchronisation and foreign keys."""
        engine = sa.create_engine(
            url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, pool_timeout=BUSY_TIMEOUT_SECONDS
        )

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # transactions begin explicitly, not where sqlite3 guesses
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged upload survives a power cut
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            if not writes:
                connection.exec_driver_sql("BEGIN")

        return engine

    def acquire_write_lock(self, connection: sa.Connection, seconds: float) -> None:
        """Begin an immediate transaction, waiting up to `seconds` for the write lock."""
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def insert(self, table: sa.Table) -> Insert:
        """Return an INSERT that has `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return sqlite.insert(table)

    def now(self, _connection: sa.Connection) -> float:
        """Return seconds since the epoch, by the clock of this machine."""
        return time.time()  # one file, one machine

    @contextmanager
    def try_lock(self, engine: sa.Engine, name: str) -> Iterator[bool]:
        """Try to lock a file beside the database; yield whether the lock was taken.

        Does not wait. A lock that was taken is held until the block ends.
        """
        lock = FileLock(f"{engine.url.database}-{name}.lock", is_singleton=False, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def set_last_number(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        """Set the AUTOINCREMENT counter of the column's table to `number`."""
        values = {"name": column.table.name, "number": number}
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)"), values)

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """Turn foreign keys off, and begin to write within 10 minutes."""
        # A migration may drop a table to make it again. That must not delete the rows that refer to the table.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        self.acquire_write_lock(connection, _SCHEMA_LOCK_SECONDS)


class PostgreSQL:
    """A PostgreSQL server, which many machines share."""

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        """Return a pooled engine. Raises ConfigurationError if psycopg is not installed."""
        try:
            return sa.create_engine(
                url,
                # All statements of a read transaction see the same snapshot, as on SQLite.
                isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
                pool_size=_POOL_SIZE,
                max_overflow=_POOL_SIZE,
                pool_timeout=BUSY_TIMEOUT_SECONDS,
                pool_pre_ping=True,  # connections that a restart of the server broke are replaced
                connect_args={
                    "connect_timeout": BUSY_TIMEOUT_SECONDS,
                    "application_name": "reelsrs",
                    "options": f"-c idle_in_transaction_session_timeout={_IDLE_TRANSACTION_SECONDS}s -c timezone=UTC",
                    **_KEEPALIVE_OPTIONS,
                },
            )
        except ImportError as error:
            raise ConfigurationError(
                f"REELSRS_DATABASE_URL: PostgreSQL needs more packages: pip install 'reelsrs[postgres]' ({error})"
            ) from error

    def acquire_write_lock(self, connection: sa.Connection, seconds: float) -> None:
        """Take the advisory lock until the transaction ends, waiting up to `seconds`."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, int(seconds * 1000))}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def insert(self, table: sa.Table) -> Insert:
        """Return an INSERT that has `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return postgresql.insert(table)

    def now(self, connection: sa.Connection) -> float:
        """Return seconds since the epoch, by the clock of the server."""
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())

    @contextmanager
    def try_lock(self, engine: sa.Engine, name: str) -> Iterator[bool]:
        """Try to take a named advisory lock of the session; yield whether it was taken.

        Does not wait. A lock that was taken is held until the block ends.
        """
        # The lock belongs to the connection, outside any transaction, and is released however the process ends. If the
        # connection breaks during the block, another process may enter the block too. Callers must tolerate that.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            lock = sa.func.hashtextextended(name, _LOCK)
            taken: bool = connection.execute(sa.select(sa.func.pg_try_advisory_lock(lock))).scalar_one()
            try:
                yield taken
            finally:
                if taken:
                    with suppress(sa.exc.DBAPIError):  # already released with its connection
                        connection.execute(sa.select(sa.func.pg_advisory_unlock(lock)))

    def set_last_number(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        """Set the sequence of this column so that its next numbers are greater than `number`."""
        sequence = sa.func.pg_get_serial_sequence(column.table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, max(1, number), number > 0)))

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """Take the advisory lock, waiting up to 10 minutes."""
        self.acquire_write_lock(connection, _SCHEMA_LOCK_SECONDS)


def parse_url(url: str | sa.URL) -> sa.URL:
    """Return the URL of a database. The file of an SQLite URL is percent-encoded, as `names.sqlite_url` writes it.

    Not all versions of SQLAlchemy decode it, and none keeps bytes that are not UTF-8. Raises ConfigurationError.
    """
    if isinstance(url, sa.URL):
        return url
    scheme, _, rest = url.partition(":///")
    if scheme != "sqlite":
        return sa.make_url(url)
    file, mark, query = rest.partition("?")
    options = dict(parse_qsl(query))
    if mark and not options.keys() & _SQLITE_OPTIONS:  # the path would end here, and another file would be opened
        raise ConfigurationError(f"{readable(url)}: write %3F for a question mark in the path of an SQLite database")
    return sa.URL.create(scheme, database=os.fsdecode(unquote_to_bytes(os.fsencode(file))), query=options)


def shown_url(url: str | sa.URL) -> str:
    """Return the URL of a database for a message, without its password and readable whatever its path."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return f"sqlite:///{readable(parsed.database or '')}"
    return parsed.render_as_string()


_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL()}


def dialect_of(it: sa.URL | sa.Connection) -> Dialect:
    """Return the dialect of a URL or of a connection."""
    return _DIALECTS[it.get_backend_name() if isinstance(it, sa.URL) else it.dialect.name]
