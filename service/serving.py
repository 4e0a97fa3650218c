"""Model, indexes and search components that answer requests, for one generation."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Protocol

from service.config import Settings
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import ConfigurationError, Unavailable
from service.index.factory import VectorIndex, follow
from service.media import Decoder
from service.models import Generation, Kind
from service.search.duplicates import Duplicates
from service.search.query_encoder import QueryEncoder
from service.search.recommender import Recommender
from service.storage import Store
from service.timing import Timing


class Parts(Protocol):
    """Parts of the process that `Serving` uses."""

    settings: Settings
    timing: Timing
    db: Database
    files: Store

    @property
    def decoder(self) -> Decoder:
        """Decoder of clips and images."""

    def load(self, generation: Generation, *, pictures: bool = False) -> Encoder:
        """Return the model of a generation; with `pictures`, including its image tower."""


class Serving:
    """Model, indexes and search components of one generation, each built on first use."""

    def __init__(self, runtime: Parts, generation: Generation) -> None:
        self.generation = generation
        self._runtime = runtime
        self._model: Encoder | None = None
        self._building = threading.RLock()

    def embedder(self, *, pictures: bool = False) -> Encoder:
        """Return the model, loading it if needed; with `pictures`, including its image tower.

        Raises:
            ConfigurationError: The model, device or precision cannot be used.
            ModelUnavailable: The weights cannot be loaded.
            OtherWeights: The weights are not those of the generation.
        """
        model = self._model
        if model is None or (pictures and not model.sees):
            model = self._model = self._runtime.load(self.generation, pictures=pictures)
        return model

    @property
    def device(self) -> str:
        """Device that the model runs on, or `unavailable` if the model cannot be loaded."""
        try:
            return self.embedder().device
        except (ConfigurationError, Unavailable):
            return "unavailable"

    def warm(self) -> None:
        """Build everything that the first search would wait for, except the model.

        Call this in one thread before requests arrive, because concurrent requests would each build their own parts.
        """
        self.follower.check()  # builds the index and catches up with the database
        self.follower.save()
        _ = self.recommender, self.examples, self.duplicates

    @cached_property
    def follower(self) -> VectorIndex:
        """Index of the generation's videos."""
        return self._follow(self._runtime.settings.aggregation)

    def frames(self) -> VectorIndex:
        """Return the index of the generation's frames, building it on first use. Safe to call from several threads."""
        with self._building:
            return self._frames

    @cached_property
    def _frames(self) -> VectorIndex:
        return self._follow("frame")

    def _follow(self, kind: Kind) -> VectorIndex:
        runtime = self._runtime
        return follow(runtime.settings, runtime.db, self.generation, kind, runtime.timing)

    @cached_property
    def recommender(self) -> Recommender:
        """Search and recommendations over the indexes of this generation."""
        return Recommender(self.follower, self.frames, self._runtime.settings.aggregation)

    @cached_property
    def duplicates(self) -> Duplicates:
        """Near-duplicate detector of this generation."""
        runtime = self._runtime
        return Duplicates(runtime.db, runtime.files, runtime.decoder, self.recommender.lookalikes)

    @cached_property
    def examples(self) -> QueryEncoder:
        """Encoder that turns query text, images and clips into query vectors."""
        return QueryEncoder(self._runtime.decoder, self.embedder, self._runtime.settings.aggregation)

    def close(self) -> None:
        """Close the indexes that were built, and save their snapshots."""
        for follower in ("follower", "_frames"):
            if follower in self.__dict__:
                getattr(self, follower).close()
