"""The database: its tables, its transactions, its schema. Knows no video; `catalog.py` gives rows meaning.

SQLite in the data folder, or PostgreSQL; `dialects.py` has what they do differently.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from service import system_errors
from service.database import dialects
from service.errors import ConfigurationError, Unavailable

PATIENT_SECONDS = 60
"""The same where nobody does, and work would be done again."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# Of a video, a map or a change: 64 bits. SQLite gives numbers by itself under the name INTEGER only, and means 64 bits.
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")

library = sa.Table(
    "library",
    metadata,
    # One row. The id tells an index snapshot whether it belongs to this database at all.
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("active_generation", sa.String, nullable=True),
    # What the settings asked for when they were last heard: only a change of them is a wish.
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
    # A key is never used again, so an index entry can never come to mean another video.
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
    sa.Column("wanted", sa.Boolean, nullable=False, server_default=sa.false()),  # embedded beside the active one
    sa.Column("activate", sa.Boolean, nullable=False, server_default=sa.false()),  # once it is complete
    sa.Column("completed_at", sa.DateTime, nullable=True),  # when it first had every video
    sa.Column("error", sa.Text, nullable=True),
)


def _of_a_video() -> sa.ForeignKey:
    return sa.ForeignKey("videos.key", ondelete="CASCADE")


embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("video_key", Number, _of_a_video(), primary_key=True),
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),  # frame (N, D); mean, max, text (1, D)
    sa.Column("vectors", sa.LargeBinary, nullable=False),
)

changes = sa.Table(
    "changes",
    metadata,
    # The last change of every video that ever was, in order. An index that has seen number S asks for what
    # came after it; a video that is gone by then is taken out. What changed in one generation alone says so, and
    # the indexes of the others need not look; empty stands for all.
    sa.Column("number", Number, primary_key=True),
    sa.Column("video_key", Number, nullable=False),
    sa.Column("generation", sa.String, nullable=False, server_default="", index=True),
    sa.UniqueConstraint("video_key", "generation"),
    sqlite_autoincrement=True,
)

collections = sa.Table(
    "collections",
    metadata,
    # What a collection of vectors holds that is kept outside (milvus.py). Derived, and of one place: no backup and no
    # copy takes it along.
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),  # empty until the first is filled
    sa.Column("next", sa.String, nullable=False, server_default=""),  # one that is being filled
    sa.Column("index_type", sa.String, nullable=False),  # as Milvus names it
    sa.Column("version", Number, nullable=False),  # counts the batches
    sa.Column("number", Number, nullable=False),  # of the last change that is in it
    sa.Column("coming", Number, nullable=False),  # the same once `batch` has arrived
    sa.Column("size", sa.BigInteger, nullable=False),  # rows, with `batch`
    sa.Column("largest", Number, nullable=False),  # key of a video that was ever in it, with `batch`
    sa.Column("moments", sa.LargeBinary, nullable=False),  # with `batch`
    sa.Column("batch", sa.LargeBinary, nullable=True),  # what is on its way
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("video_key", Number, _of_a_video(), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("available_at", sa.Float, nullable=False),  # seconds since the epoch
    sa.Column("owner", sa.String, nullable=True),
    sa.Column("lease_expires_at", sa.Float, nullable=True),  # seconds since the epoch
)

keys = sa.Table(
    "keys",
    metadata,
    # API keys, by their hash: what is stored here opens nothing.
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False, unique=True),
    sa.Column("rights", sa.String, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
)

sources = sa.Table(
    "sources",
    metadata,
    # Which file of a folder became which video, so that a second run reads only what is new or changed.
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("video_key", Number, _of_a_video(), nullable=False, index=True),
)

projections = sa.Table(
    "projections",
    metadata,
    sa.Column("key", Number, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    # Of everything that decides where points come to lie: the same question is the same map.
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("generation", sa.String, sa.ForeignKey("generations.id"), nullable=False),
    sa.Column("embedding", sa.String, nullable=False),  # as users name it: frame, aggregated, text
    sa.Column("kind", sa.String, nullable=False),  # as `embeddings` names it: frame, mean, max, text
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
    sa.Column("version", sa.Integer, nullable=False),  # counts the changes of its points
    sa.Column("seen", Number, nullable=False),  # number of the last change that the points know of
    sa.Column("basis", sa.String, nullable=True),  # of the vectors that were laid out
    sa.Column("model", sa.LargeBinary, nullable=True),  # what placing needs besides points, as .npz
    sa.Column("quality", sa.JSON, nullable=True),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("fitted_at", sa.DateTime, nullable=True),
    sqlite_autoincrement=True,
)

coordinates = sa.Table(
    "coordinates",
    metadata,
    sa.Column("projection_key", Number, sa.ForeignKey("projections.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("video_key", Number, _of_a_video(), primary_key=True, index=True),
    sa.Column("points", sa.LargeBinary, nullable=False),  # (N, 2 or 3) float32, a row a frame or one
    sa.Column("placed", sa.Boolean, nullable=False),  # into a map that was fitted without it
    # Read map by map, so rows stand in the order of their key.
    sqlite_with_rowid=False,
)


class Database:
    """Two doors to one database: `read` and `write`.

    Both give a SQLAlchemy connection inside a transaction that is committed when the block ends well and
    rolled back when it does not. Raises Unavailable where the lock cannot be had within `patience_seconds`,
    StorageFull where the disk is full or cannot be written.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._dialect = dialects.of(self.url)
        self._reader = self._dialect.engine(self.url, writes=False)
        self._writer = self._dialect.engine(self.url, writes=True)
        # Threads of this process queue here in turn; the database's own lock only keeps processes apart.
        self._turn = threading.Lock()
        self.patience_seconds: float = dialects.BUSY_TIMEOUT_SECONDS

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A snapshot of the last commit."""
        with _wrapped(), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """The one writer; nothing else writes until the block ends."""
        with self._writing(self.patience_seconds) as connection:
            yield connection

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether nobody else is in a block of that name, in whatever process of whatever machine that uses this
        database; until this block ends nobody will be."""
        with _wrapped(), self._dialect.alone(self._reader, name) as taken:
            yield taken

    def check_writable(self, patience_seconds: float) -> None:
        """Raises what a write would raise that waits so long for its turn; changes nothing."""
        with self._writing(patience_seconds) as connection:
            row = connection.execute(sa.select(library.c.id)).scalar()
            connection.execute(sa.update(library).values(id=row))  # the same: what a full disk refuses
            transaction = connection.get_transaction()
            assert transaction is not None, "`_writing` begins one"
            transaction.rollback()

    @contextmanager
    def _writing(self, patience_seconds: float) -> Iterator[sa.Connection]:
        # In the queue, too: were each to wait for those before it, the last of many would wait for minutes.
        if not self._turn.acquire(timeout=patience_seconds):
            raise Unavailable("the database is busy; try again")
        try:
            with _wrapped(), self._writer.connect() as connection, connection.begin():
                self._dialect.await_turn(connection, patience_seconds)
                yield connection
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()


def insert(connection: sa.Connection, table: sa.Table) -> dialects.Insert:
    """An INSERT that has `on_conflict_do_update` and `on_conflict_do_nothing`."""
    return dialects.of(connection).insert(table)


def now(connection: sa.Connection) -> float:
    """Seconds since the epoch, by a clock that all who use the database share: leases are counted by it."""
    return dialects.of(connection).now(connection)


def upgrade(url: str) -> None:
    """Bring the schema to the newest revision, making the database where there is none.

    Raises ConfigurationError for a database that a newer ReelsRS has written.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    parsed = make_url(url)
    if parsed.database and parsed.get_backend_name() == "sqlite":
        with system_errors.named("the database cannot be used"):
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["url"] = url
    if revision(url) == newest_revision():
        return
    try:
        with _wrapped():
            command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"the database {parsed.render_as_string()} is at a revision that this version does not know: {error}"
        ) from error


def migrations_folder() -> Path:
    """Where the migrations are: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "migrations"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"


def newest_revision() -> str | None:
    """The revision of the schema that this version works with."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(migrations_folder())).get_current_head()


def revision(url: str) -> str | None:
    """The revision of a database's schema, None where it has none yet."""
    engine = dialects.of(make_url(url)).engine(make_url(url), writes=False)
    try:
        with _wrapped(), engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    finally:
        engine.dispose()


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        fault = system_errors.of(error.orig)
        if fault is None:
            raise
        raise fault from error
    except sqlite3.Error as error:  # while connecting, where SQLAlchemy lets it through
        fault = system_errors.of(error)
        if fault is None:
            raise
        raise fault from error
    except sa.exc.TimeoutError as error:
        raise Unavailable("the database has no connection left; try again") from error
