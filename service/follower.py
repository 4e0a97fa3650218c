"""Keeps a vector index equal to the catalogue. Knows how to catch up, not how to search.

The index holds the number of the last change that it has seen. Before every search it asks the database for what
came after (one small query), so a video can be found the moment its transaction is committed, whichever process
committed it. A snapshot on disk saves the reading at the next start; one that is missing, broken, of another
database, model or aggregation is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import structlog

from service import catalog
from service.db import Database
from service.domain import Aggregation, Generation
from service.index import VectorIndex
from service.index.flat import FlatIndex

log = structlog.get_logger(__name__)

_BATCH = 4096


class Follower:
    """The index of one generation and aggregation, always as new as the database.

    Use `current` for every search: FAISS must not be searched while it is changed, so searches and changes take
    turns. (A search keeps every core busy already; two at once would only wait for each other in there.)
    """

    def __init__(self, db: Database, folder: Path, generation: Generation, aggregation: Aggregation) -> None:
        self._db = db
        self._folder = folder
        self._generation = generation
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._index: VectorIndex = FlatIndex(generation.dimension)
        self._seen = 0
        self._saved = 0
        with db.write() as connection:
            self._library = catalog.library_id(connection)
        self._load()
        with self.current():
            pass  # catch up now rather than in the first search

    @property
    def generation(self) -> Generation:
        """Whose vectors these are."""
        return self._generation

    @contextmanager
    def current(self) -> Iterator[VectorIndex]:
        """The index, caught up, for as long as the block lasts."""
        with self._lock:
            self._catch_up()
            yield self._index

    def save(self) -> None:
        """Write a snapshot, unless nothing changed since the last one."""
        with self._lock:
            if self._seen == self._saved and self._manifest.exists():
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            # The manifest is renamed last and names its index file, so that the pair is whole or not there.
            target = self._folder / f"{self._manifest.stem}-{self._seen}.faiss"
            aside = target.with_suffix(f".{os.getpid()}.tmp")
            self._index.save(aside)
            manifest = {**self._identity, "seen": self._seen, "file": target.name, "sha256": _sha256(aside)}
            _sync(aside)
            aside.replace(target)
            aside.write_text(json.dumps(manifest))
            _sync(aside)
            aside.replace(self._manifest)
            self._saved = self._seen
            for old in self._folder.glob(f"{self._manifest.stem}-*.faiss"):
                if old != target:
                    old.unlink(missing_ok=True)

    @property
    def _manifest(self) -> Path:
        return self._folder / f"{self._generation.id}-{self._aggregation}.json"

    @property
    def _identity(self) -> dict[str, str]:
        return {"library": self._library, "generation": self._generation.id, "aggregation": self._aggregation}

    def _load(self) -> None:
        try:
            manifest = json.loads(self._manifest.read_text())
            if any(manifest.get(name) != value for name, value in self._identity.items()):
                raise ValueError("it belongs to another library")
            path = self._folder / Path(manifest["file"]).name
            if _sha256(path) != manifest["sha256"]:
                raise ValueError("its checksum is wrong")
            with self._db.read() as connection:
                if manifest["seen"] > catalog.last_change(connection):
                    raise ValueError("it is newer than the database")
            self._index = FlatIndex.load(path, self._generation.dimension)
            self._seen = self._saved = manifest["seen"]
        except FileNotFoundError:
            log.info("no index snapshot, building the index from the database")
        except (ValueError, KeyError, OSError) as error:
            log.warning("the index snapshot is not used, building from the database", reason=str(error))

    def _catch_up(self) -> None:
        with self._db.read() as connection:
            last = catalog.last_change(connection)
            if last == self._seen:
                return
            changed = catalog.changed_since(connection, self._seen)
            for start in range(0, len(changed), _BATCH):
                self._apply(connection, changed[start : start + _BATCH])
        self._seen = last

    def _apply(self, connection: sa.Connection, changed: list[int]) -> None:
        keys, pictures, captions = catalog.searchable(connection, changed, self._generation, self._aggregation)
        self._index.replace(np.array(changed, dtype=np.int64), keys, pictures, captions)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
