"""What SQLite and PostgreSQL do differently, in one place: how a connection is made, how a write waits for its turn,
how a row is put in place of another, and whose clock counts. Knows no table.

On both, one transaction writes at a time. It makes the numbers of changes appear in their order, which the followers
rely on, and a check at the start of a transaction hold until its end. SQLite is so by itself; on PostgreSQL every write
begins by taking one advisory lock, which its end gives back. Readers see the last commit and never wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import ConfigurationError

BUSY_TIMEOUT_SECONDS = 5
"""How long a write waits for its turn where somebody waits for the answer."""

_LOCK = 7_330_275_291_847_351  # any number that other applications of one database do not take
_UPGRADE_SECONDS = 600
_POOL = 20  # connections of one process that are kept, reading and writing alike; as many again where it must
_GONE_SECONDS = 60  # a writer whose machine is gone gives its turn back after that
# A server or a network that went away without a word is noticed within a minute.
_NOTICED = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000}

Insert = sqlite.Insert | postgresql.Insert


class Dialect(Protocol):
    """Of one kind of database."""

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        """Connections whose transactions only read, or `writes`."""

    def await_turn(self, connection: sa.Connection, seconds: float) -> None:
        """Begin to write, once nobody else does: the first statement of a transaction of a writing engine. Fails, as
        `faults.of` knows, where others take longer than `seconds`."""

    def insert(self, table: sa.Table) -> Insert:
        """An INSERT that has `on_conflict_do_update`."""

    def now(self, connection: sa.Connection, /) -> float:
        """Seconds since the epoch, by a clock that all who use the database share."""

    def alone(self, engine: sa.Engine, name: str) -> AbstractContextManager[bool]:
        """Whether nobody else is in a block of that name, on any machine; until the block ends nobody will be."""

    def go_on_after(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        """Have the numbers that this column gives by itself be greater than that from now on."""

    def upgrade_alone(self, connection: sa.Connection) -> None:
        """Begin to change the schema, once nobody else does."""


class SQLite:
    """A file. It has one writer at a time: every write transaction says so at its start (`BEGIN IMMEDIATE`), because
    one that reads first and writes later fails with "database is locked" when another got in between, however long the
    time-out."""

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        engine = sa.create_engine(
            url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, pool_timeout=BUSY_TIMEOUT_SECONDS
        )

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
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

    def await_turn(self, connection: sa.Connection, seconds: float) -> None:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def insert(self, table: sa.Table) -> Insert:
        return sqlite.insert(table)

    def now(self, _connection: sa.Connection) -> float:
        return time.time()  # one file, one machine

    @contextmanager
    def alone(self, engine: sa.Engine, name: str) -> Iterator[bool]:
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

    def go_on_after(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        values = {"name": column.table.name, "number": number}
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)"), values)

    def upgrade_alone(self, connection: sa.Connection) -> None:
        # A table that is made anew is dropped on the way: its rows' relations are not to go with it.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        self.await_turn(connection, _UPGRADE_SECONDS)


class PostgreSQL:
    """A server, shared by many machines."""

    def engine(self, url: sa.URL, *, writes: bool) -> sa.Engine:
        try:
            return sa.create_engine(
                url,
                # A reader's statements all see what its first one saw, as on SQLite.
                isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
                pool_size=_POOL,
                max_overflow=_POOL,
                pool_timeout=BUSY_TIMEOUT_SECONDS,
                pool_pre_ping=True,  # a server that was started again is met with new connections
                connect_args={
                    "connect_timeout": BUSY_TIMEOUT_SECONDS,
                    "application_name": "reelsrs",
                    "options": f"-c idle_in_transaction_session_timeout={_GONE_SECONDS}s -c timezone=UTC",
                    **_NOTICED,
                },
            )
        except ImportError as error:
            raise ConfigurationError(
                f"REELSRS_DATABASE_URL: PostgreSQL needs a package more: pip install 'reelsrs[postgres]' ({error})"
            ) from error

    def await_turn(self, connection: sa.Connection, seconds: float) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, int(seconds * 1000))}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def insert(self, table: sa.Table) -> Insert:
        return postgresql.insert(table)

    def now(self, connection: sa.Connection) -> float:
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())

    @contextmanager
    def alone(self, engine: sa.Engine, name: str) -> Iterator[bool]:
        # Of the connection, outside of any transaction: it is given back with it, however its process ends. Should the
        # connection break meanwhile, two may be in the block, which must be no worse than a waste.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            lock = sa.func.hashtextextended(name, _LOCK)
            taken: bool = connection.execute(sa.select(sa.func.pg_try_advisory_lock(lock))).scalar_one()
            try:
                yield taken
            finally:
                if taken:
                    with suppress(sa.exc.DBAPIError):  # it went with its connection
                        connection.execute(sa.select(sa.func.pg_advisory_unlock(lock)))

    def go_on_after(self, connection: sa.Connection, column: sa.Column[int], number: int) -> None:
        sequence = sa.func.pg_get_serial_sequence(column.table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, max(1, number), number > 0)))

    def upgrade_alone(self, connection: sa.Connection) -> None:
        self.await_turn(connection, _UPGRADE_SECONDS)


_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL()}


def of(it: sa.URL | sa.Connection) -> Dialect:
    """The dialect of a database or of a connection to one."""
    return _DIALECTS[it.get_backend_name() if isinstance(it, sa.URL) else it.dialect.name]
