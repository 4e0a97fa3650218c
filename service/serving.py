"""What answers: the model, the indexes and what asks them, of one generation."""

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
    """What it takes from the process that it is part of."""

    settings: Settings
    timing: Timing
    db: Database
    files: Store

    @property
    def decoder(self) -> Decoder:
        """Reads clips and pictures."""

    def load(self, generation: Generation, *, pictures: bool = False) -> Encoder:
        """The model of a generation."""


class Serving:
    """What answers, of one generation: its model, its indexes, and what asks them, each built when first asked for."""

    def __init__(self, runtime: Parts, generation: Generation) -> None:
        self.generation = generation
        self._runtime = runtime
        self._model: Encoder | None = None
        self._building = threading.RLock()

    def embedder(self, *, pictures: bool = False) -> Encoder:
        """The model; with `pictures`, one that has its picture tower. Raises ConfigurationError, ModelUnavailable,
        OtherWeights."""
        model = self._model
        if model is None or (pictures and not model.sees):
            model = self._model = self._runtime.load(self.generation, pictures=pictures)
        return model

    @property
    def device(self) -> str:
        """Where the model runs; that it cannot be had, where that is so."""
        try:
            return self.embedder().device
        except (ConfigurationError, Unavailable):
            return "unavailable"

    def warm(self) -> None:
        """Build everything that the first question would wait for, the model apart. Here, once: the threads that answer
        would each build their own."""
        self.follower.check()  # built and caught up by then
        self.follower.save()
        _ = self.recommender, self.examples, self.duplicates

    @cached_property
    def follower(self) -> VectorIndex:
        """The index of the generation's videos."""
        return self._follow(self._runtime.settings.aggregation)

    def frames(self) -> VectorIndex:
        """The index of its frames, built when first asked for."""
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
        """The way out."""
        return Recommender(self.follower, self.frames, self._runtime.settings.aggregation)

    @cached_property
    def duplicates(self) -> Duplicates:
        """Who is a copy of whom."""
        runtime = self._runtime
        return Duplicates(runtime.db, runtime.files, runtime.decoder, self.recommender.lookalikes)

    @cached_property
    def examples(self) -> QueryEncoder:
        """What somebody searches with."""
        return QueryEncoder(self._runtime.decoder, self.embedder, self._runtime.settings.aggregation)

    def close(self) -> None:
        """Save the index snapshots if there are any to save."""
        for follower in ("follower", "_frames"):
            if follower in self.__dict__:
                getattr(self, follower).close()
