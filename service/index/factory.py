"""Choose the engine that holds the vectors: FAISS in this process, or Milvus.

Both have the interface `VectorIndex`, so no search depends on this choice. The setting `vector_store` names the engine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa

from service.config import Settings
from service.database import db
from service.database.db import Database
from service.index.base import Searchable
from service.index.milvus import PREFIX, MilvusIndex
from service.index.sync import SyncedIndex
from service.models import Generation, Kind
from service.timing import Timing


class VectorIndex(Protocol):
    """Vectors of one generation, kept as new as the database. The engine may be FAISS or Milvus."""

    exact_up_to: int
    """Largest number of rows at which a search compares every vector."""
    snapshot_error: str | None
    """Why the snapshot on disk could not be used; None if it was used or if there is none."""

    @property
    def generation(self) -> Generation:
        """Generation of the vectors."""

    def current(self) -> AbstractContextManager[tuple[Searchable, sa.Connection]]:
        """Yield the searchable vectors and a connection with a database snapshot of the same state.

        Both are valid until the block ends.
        """

    def check(self) -> None:
        """Prepare a search without running it. Raises the errors that a search would raise now."""

    def save(self) -> None:
        """Make the present state available to the next start."""

    def differences(self) -> list[str]:
        """Return the differences between index and database; empty if they agree."""

    def close(self, *, save: bool = True) -> None:
        """Save if `save` is true, then release all resources. No search is possible afterwards."""


def open_index(
    settings: Settings, database: Database, generation: Generation, kind: Kind, timing: Timing | None = None
) -> VectorIndex:
    """Open the index of a generation's videos, or of its frames if `kind` is "frame"."""
    if settings.vector_store.startswith(PREFIX):
        uri = settings.vector_store.removeprefix(PREFIX)
        return MilvusIndex(database, uri, generation, kind, timing=timing)
    return SyncedIndex(database, settings.data_dir / "index", generation, kind, timing=timing)


def rebuild_index(settings: Settings, database: Database, generation: Generation, kind: Kind) -> VectorIndex:
    """Rebuild the index from the database and return it.

    With Milvus, running processes switch to the new collection. With FAISS, the next start loads the new snapshot.
    """
    if settings.vector_store.startswith(PREFIX):
        collection = MilvusIndex(database, settings.vector_store.removeprefix(PREFIX), generation, kind)
        collection.rebuild()
        return collection
    index = SyncedIndex(database, settings.data_dir / "index", generation, kind, fresh=True)
    index.replace_snapshot()
    return index


def indexed_kinds(settings: Settings, database: Database, generation: Generation) -> list[Kind]:
    """Return the kinds that have an index: always that of videos; that of frames if one was ever built."""
    if settings.vector_store.startswith(PREFIX):
        row = sa.select(db.collections.c.kind).where(
            db.collections.c.generation == generation.id, db.collections.c.kind == "frame"
        )
        with database.read() as connection:
            frames = connection.execute(row).first() is not None
    else:
        frames = (settings.data_dir / "index" / f"{generation.id}-frame.json").exists()
    return [settings.aggregation, "frame"] if frames else [settings.aggregation]
