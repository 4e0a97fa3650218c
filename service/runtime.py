"""The composition root, and the only one: settings in, a working service out. Heavy parts are built when first
asked for, so that a command which needs no model loads none."""

from __future__ import annotations

import os
import threading
from functools import cached_property

import structlog

from service import catalog, db, embedder, jobs
from service.config import Settings
from service.db import Database
from service.domain import Generation
from service.embedder import Embedder
from service.errors import ConfigurationError
from service.files import Files
from service.follower import Follower
from service.ingest import Ingest
from service.recommend import Recommender
from service.video import Decoder, Limits

log = structlog.get_logger(__name__)


class Runtime:
    """Everything that one process needs, wired.

    `pictures` False leaves the picture tower out of the model. `asking` is for those that only ask: where no model is
    set, theirs is the one that the library was embedded with.
    """

    def __init__(self, settings: Settings, *, asking: bool = False, pictures: bool = True) -> None:
        self.settings = settings
        self._pictures = pictures
        self._building = threading.RLock()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db.upgrade(settings.database)
        self.db = Database(settings.database)
        self.files = Files(settings.storage)
        if asking and "model" not in settings.model_fields_set and (active := self._active()):
            self.settings = settings.model_copy(update={"model": active.model})

    @cached_property
    def decoder(self) -> Decoder:
        """Child processes start with the first clip."""
        limits = Limits(self.settings.max_duration_seconds, self.settings.max_pixels)
        return Decoder(limits, self._decoders)

    @property
    def _decoders(self) -> int:
        return max(1, min(4, os.cpu_count() or 1))

    def embedder(self) -> Embedder:
        """The model, loaded when first asked for. Raises ConfigurationError, ModelUnavailable."""
        with self._building:
            return self._embedder

    @cached_property
    def _embedder(self) -> Embedder:
        settings = self.settings
        return embedder.load(
            settings.model, device=settings.device, precision=settings.precision, pictures=self._pictures
        )

    @cached_property
    def ingest(self) -> Ingest:
        """The way in."""
        return Ingest(
            self.db,
            self.files,
            self.decoder,
            self.embedder,
            max_upload_bytes=self.settings.max_upload_bytes,
            threads=self._decoders,
        )

    @cached_property
    def follower(self) -> Follower:
        """The index of the active generation. Raises ConfigurationError where nothing was ever embedded."""
        generation = self._active()
        if generation is None:
            raise ConfigurationError(
                f"the library in {self.settings.data_dir} is empty: add videos with `reelsrs embed` or `reelsrs serve`"
            )
        return Follower(self.db, self.settings.data_dir / "index", generation, self.settings.aggregation)

    def _active(self) -> Generation | None:
        with self.db.read() as connection:
            return catalog.active_generation(connection)

    @cached_property
    def recommender(self) -> Recommender:
        """The way out."""
        return Recommender(self.db, self.follower, self.settings.aggregation, self.embedder)

    def activate(self) -> Generation:
        """Make the model of the settings the library's. Videos that have no vectors of it yet are queued again;
        those of the former model are kept, so that going back costs nothing. Raises ModelUnavailable."""
        generation = self.embedder().generation
        with self.db.write() as connection:
            before = catalog.active_generation(connection)
            catalog.activate_generation(connection, generation)
            missing = catalog.keys_without_embeddings(connection, generation.id)
            for key in missing:
                jobs.enqueue(connection, key)
        if missing:
            log.warning(
                "the model changed: its videos are embedded again",
                before=before.model if before else None,
                now=generation.model,
                videos=len(missing),
            )
        return generation

    def close(self) -> None:
        """Save the index snapshot if there is one to save, end the child processes, close the database."""
        if "follower" in self.__dict__:
            self.follower.save()
        if "decoder" in self.__dict__:
            self.decoder.close()
        self.db.close()
