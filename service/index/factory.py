"""Which engine keeps the vectors: FAISS in the process, or Milvus. Nobody else asks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa

from service.config import Settings
from service.database import db
from service.database.db import Database
from service.index.milvus import PREFIX, MilvusIndex
from service.index.rows import Searchable
from service.index.sync import SyncedIndex
from service.models import Generation, Kind
from service.timing import Timing


class VectorIndex(Protocol):
    """The vectors of one generation, always as new as the database, whoever keeps them."""

    exact_up_to: int
    """Rows from which on not every vector is compared any more."""
    refused: str | None
    """Why a snapshot that is there could not be used; None where it was, or where there is none."""

    @property
    def generation(self) -> Generation:
        """Whose vectors these are."""

    def current(self) -> AbstractContextManager[tuple[Searchable, sa.Connection]]:
        """What can be searched, and a snapshot of the database, of the same state, for as long as the block lasts."""

    def check(self) -> None:
        """Raises what a question would raise now."""

    def save(self) -> None:
        """Have the next start find what is here."""

    def differences(self) -> list[str]:
        """In what it differs from the rows that it stands for, number by number: in nothing, that is."""

    def close(self, *, save: bool = True) -> None:
        """Let go of everything; nothing can be searched afterwards."""


def follow(
    settings: Settings, database: Database, generation: Generation, kind: Kind, timing: Timing | None = None
) -> VectorIndex:
    """The index of a generation's videos, or with `kind` "frame" of its frames."""
    if settings.vector_store.startswith(PREFIX):
        uri = settings.vector_store.removeprefix(PREFIX)
        return MilvusIndex(database, uri, generation, kind, timing=timing)
    return SyncedIndex(database, settings.data_dir / "index", generation, kind, timing=timing)


def rebuilt(settings: Settings, database: Database, generation: Generation, kind: Kind) -> VectorIndex:
    """The same, made anew from the database, for the processes of now or for the next start."""
    if settings.vector_store.startswith(PREFIX):
        collection = MilvusIndex(database, settings.vector_store.removeprefix(PREFIX), generation, kind)
        collection.rebuild()
        return collection
    index = SyncedIndex(database, settings.data_dir / "index", generation, kind, fresh=True)
    index.replace_snapshot()
    return index


def kinds(settings: Settings, database: Database, generation: Generation) -> list[Kind]:
    """The index of videos, and that of frames where it was ever asked for."""
    if settings.vector_store.startswith(PREFIX):
        row = sa.select(db.collections.c.kind).where(
            db.collections.c.generation == generation.id, db.collections.c.kind == "frame"
        )
        with database.read() as connection:
            frames = connection.execute(row).first() is not None
    else:
        frames = (settings.data_dir / "index" / f"{generation.id}-frame.json").exists()
    return [settings.aggregation, "frame"] if frames else [settings.aggregation]
