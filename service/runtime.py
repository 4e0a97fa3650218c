"""The composition root, and the only one: settings in, a working service out. Heavy parts are built when first
asked for, so that a command which needs no model loads none."""

from __future__ import annotations

import os
import threading
from functools import cached_property

import structlog

from service import catalog, db, embedder, jobs
from service.atlas import Atlas
from service.config import Settings
from service.db import Database
from service.domain import Generation, Kind
from service.duplicates import Duplicates
from service.embedder import Embedder
from service.errors import ConfigurationError
from service.examples import Examples
from service.files import Files
from service.follower import Follower
from service.ingest import Ingest
from service.recommend import Recommender
from service.video import Decoder, Limits

log = structlog.get_logger(__name__)


class Runtime:
    """Everything that one process needs, wired.

    `pictures` False leaves the picture tower out of the model until a picture is asked about. `asking` is for those
    that only ask: where no model is set, theirs is the one that the library was embedded with.
    """

    def __init__(self, settings: Settings, *, asking: bool = False, pictures: bool = True) -> None:
        self.settings = settings
        self._pictures = pictures
        self._model: Embedder | None = None
        self._loading = threading.Lock()
        self._building = threading.Lock()
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
        return Decoder(limits, self._decoders, keyframes=self.settings.frames == "keyframes")

    @property
    def _decoders(self) -> int:
        return min(16, os.cpu_count() or 1)  # a GPU takes what many of them give

    def embedder(self, *, pictures: bool = False) -> Embedder:
        """The model, loaded when first asked for; with `pictures`, one that has its picture tower. Raises
        ConfigurationError, ModelUnavailable."""
        model = self._model
        if model is None or (pictures and not model.sees):
            with self._loading:
                if self._model is None or (pictures and not self._model.sees):
                    settings = self.settings
                    self._model = embedder.load(
                        settings.model,
                        device=settings.device,
                        precision=settings.precision,
                        pictures=pictures or self._pictures,
                        keep=settings.data_dir / "models",
                    )
                model = self._model
        return model

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
        """The index of the active generation's videos. Raises ConfigurationError where nothing was ever embedded."""
        return self._follow(self.settings.aggregation)

    def frames(self) -> Follower:
        """The index of the active generation's frames, built when first asked for."""
        with self._building:
            return self._frames

    @cached_property
    def _frames(self) -> Follower:
        return self._follow("frame")

    def _follow(self, kind: Kind) -> Follower:
        return Follower(self.db, self.settings.data_dir / "index", self.generation(), kind)

    def generation(self) -> Generation:
        """The one that answers queries. Raises ConfigurationError where nothing was ever embedded."""
        generation = self._active()
        if generation is None:
            raise ConfigurationError(
                f"the library in {self.settings.data_dir} is empty: add videos with `reelsrs embed` or `reelsrs serve`"
            )
        return generation

    def _active(self) -> Generation | None:
        with self.db.read() as connection:
            return catalog.active_generation(connection)

    @cached_property
    def recommender(self) -> Recommender:
        """The way out."""
        return Recommender(self.follower, self.frames, self.settings.aggregation)

    @cached_property
    def duplicates(self) -> Duplicates:
        """Who is a copy of whom."""
        return Duplicates(self.db, self.files, self.decoder, self.recommender.lookalikes)

    @cached_property
    def atlas(self) -> Atlas:
        """The maps."""
        return Atlas(self.db, self.settings.data_dir / "atlas", self.generation, self.settings.aggregation)

    @cached_property
    def examples(self) -> Examples:
        """What somebody searches with."""
        return Examples(self.decoder, self.embedder, self.follower.generation, self.settings.aggregation)

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
        """Save the index snapshots if there are any to save, end the child processes, close the database."""
        for follower in ("follower", "_frames"):
            if follower in self.__dict__:
                getattr(self, follower).close()
        if "decoder" in self.__dict__:
            self.decoder.close()
        self.db.close()
