"""Model, indexes and search components that answer requests, for one generation."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Protocol

from service.config import Settings
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import ConfigurationError, Unavailable
from service.index.factory import VectorIndex, open_index
from service.media import Decoder
from service.models import Generation, Kind
from service.search.duplicates import Duplicates
from service.search.query_encoder import QueryEncoder
from service.search.recommender import Recommender
from service.storage import Store
from service.timing import Timing


class ServingDependencies(Protocol):
    """Parts of the process that `Serving` uses."""

    settings: Settings
    timing: Timing
    db: Database
    files: Store

    @property
    def decoder(self) -> Decoder:
        """Decoder of clips and images."""

    def load(self, generation: Generation, *, image_tower: bool = False) -> Encoder:
        """Return the model of a generation; with `image_tower`, including its image tower."""


class Serving:
    """Model, indexes and search components of one generation, each built on first use."""

    def __init__(self, dependencies: ServingDependencies, generation: Generation) -> None:
        self.generation = generation
        self._dependencies = dependencies
        self._model: Encoder | None = None
        self._building = threading.RLock()

    def encoder(self, *, image_tower: bool = False) -> Encoder:
        """Return the model, loading it if needed; with `image_tower`, including its image tower.

        Raises:
            ConfigurationError: The model, device or precision cannot be used.
            ModelUnavailable: The weights cannot be loaded.
            WeightsMismatch: The weights are not those of the generation.
        """
        model = self._model
        if model is None or (image_tower and not model.has_image_tower):
            model = self._model = self._dependencies.load(self.generation, image_tower=image_tower)
        return model

    @property
    def device(self) -> str:
        """Device that the model runs on, or `unavailable` if the model cannot be loaded."""
        try:
            return self.encoder().device
        except (ConfigurationError, Unavailable):
            return "unavailable"

    def warm(self) -> None:
        """Build everything that the first search would wait for, except the model, which may be unavailable.

        Call this in one thread before requests arrive, because concurrent requests would each build their own parts.
        """
        self.index.check()  # builds the index and catches up with the database
        self.index.save()
        _ = self.recommender, self.query_encoder, self.duplicates
        if self._model is not None:
            self.query_encoder.noise()

    @cached_property
    def index(self) -> VectorIndex:
        """Index of the generation's videos."""
        return self._open_index(self._dependencies.settings.aggregation)

    def frames(self) -> VectorIndex:
        """Return the index of the generation's frames, building it on first use. Safe to call from several threads."""
        with self._building:
            return self._frames

    @cached_property
    def _frames(self) -> VectorIndex:
        return self._open_index("frame")

    def _open_index(self, kind: Kind) -> VectorIndex:
        dependencies = self._dependencies
        return open_index(dependencies.settings, dependencies.db, self.generation, kind, dependencies.timing)

    @cached_property
    def recommender(self) -> Recommender:
        """Search and recommendations over the indexes of this generation."""
        return Recommender(self.index, self.frames, self._dependencies.settings.aggregation)

    @cached_property
    def duplicates(self) -> Duplicates:
        """Near-duplicate detector of this generation."""
        dependencies = self._dependencies
        return Duplicates(
            dependencies.db, dependencies.files, dependencies.decoder, self.recommender.near_duplicate_candidates
        )

    @cached_property
    def query_encoder(self) -> QueryEncoder:
        """Encoder that turns query text, images and clips into query vectors."""
        return QueryEncoder(self._dependencies.decoder, self.encoder, self._dependencies.settings.aggregation)

    def close(self) -> None:
        """Close the indexes that were built, and save their snapshots."""
        for name in ("index", "_frames"):
            if name in self.__dict__:
                getattr(self, name).close()
