"""Composition root: the only module that builds the parts of the service from its settings.

Heavy parts are built on first use, so that a command that needs no model loads none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cached_property

import structlog

from service.config import Settings
from service.database import db, generation_rows, spellings
from service.database.db import Database
from service.embedding import loading
from service.embedding.encoder import Encoder
from service.errors import ConfigurationError, InvalidInput, NotReady, Unavailable, WeightsMismatch
from service.generations import generations
from service.generations.generations import State
from service.generations.reembed import Reembedding
from service.ingestion.ingest import Ingest
from service.ingestion.pipeline import Pipeline
from service.ingestion.uploads import UploadSink
from service.media import Decoder, Limits
from service.models import Generation
from service.projections.encoded import EncodedPoints
from service.projections.projections import Projections
from service.serving import Serving
from service.storage import open_store
from service.timing import Timing

log = structlog.get_logger(__name__)


class Runtime:
    """All parts that one process needs, connected to each other.

    The library decides which model is used: the model of its active generation.

    Args:
        settings: Settings of this process.
        image_tower: If False, load the model without its image tower until an image has to be embedded.
        model: A loaded model to share with other runtimes, used for the generation that it belongs to.
        decoder: A decoder to share with other runtimes; `close` leaves it open.
        timing: Pauses and leases; the defaults if None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        image_tower: bool = True,
        model: Encoder | None = None,
        decoder: Decoder | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.settings = settings
        self.timing = timing or Timing()
        self._image_tower = image_tower
        self._last_model = model  # the model loaded last
        self._shared_decoder = decoder
        self._loading = threading.Lock()
        self._switching = threading.RLock()
        self._serving: Serving | None = None
        self.switch_error: str | None = None
        """Why this process could not switch to the active generation; None if it could."""
        self._previous: list[tuple[float, Serving]] = []
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db.upgrade(settings.database)
        self.db = Database(settings.database)
        spellings.normalise_categories(self.db)
        self.files = open_store(settings.storage, settings.data_dir, link_seconds=settings.link_seconds)

    @property
    def decoder(self) -> Decoder:
        """Decoder of clips and images; its child processes start with the first clip."""
        return self._shared_decoder or self._own_decoder

    @cached_property
    def _own_decoder(self) -> Decoder:
        limits = Limits(self.settings.max_duration_seconds, self.settings.max_pixels)
        return Decoder(limits, self._decoder_processes, keyframes=self.settings.frames == "keyframes")

    @property
    def _decoder_processes(self) -> int:
        return min(16, os.cpu_count() or 1)  # one GPU can embed the output of many decoders

    def load(self, generation: Generation, *, image_tower: bool = False) -> Encoder:
        """Return the model of a generation, loading it if needed; with `image_tower`, including its image tower.

        Raises:
            ConfigurationError: The model, device or precision cannot be used.
            ModelUnavailable: The weights cannot be loaded.
            WeightsMismatch: The weights are not those of the generation.
        """
        with self._loading:
            model = self._last_model
            if model is None or model.generation.id != generation.id or (image_tower and not model.has_image_tower):
                model = self._load_model(generation.model, generation.precision, image_tower=image_tower)
                if model.generation.id != generation.id:
                    raise WeightsMismatch(
                        f"model {generation.model} in {generation.precision}: its weights ({model.generation.id}) "
                        f"are not those that the library was embedded with ({generation.id}); restore those weights, "
                        "or re-embed the library",
                        model.generation,
                    )
                self._last_model = model
            return model

    def _load_model(self, model: str, precision: str, *, image_tower: bool) -> Encoder:
        return loading.load(
            model,
            device=self.settings.device,
            precision=precision,
            image_tower=image_tower or self._image_tower,
            cache_dir=self.settings.data_dir / "models",
        )

    @cached_property
    def ingest(self) -> Ingest:
        """Service that adds, edits and deletes videos."""
        return Ingest(self.db, self.files, self.decoder, self._encoder, max_upload_bytes=self.settings.max_upload_bytes)

    @cached_property
    def pipeline(self) -> Pipeline:
        """Pipeline that embeds videos with the model of the active generation."""
        return Pipeline(self.db, self.files, self.decoder, self._encoder, threads=self._decoder_processes)

    def uploads(self, owner: str) -> UploadSink:
        """Return the pipeline sink that stores the results of jobs leased by `owner`."""
        return UploadSink(self.db, self.files, self._encoder, owner, self.timing)

    def _encoder(self) -> Encoder:
        return self.serving.encoder()

    def reembedding(self, generation: Generation) -> Reembedding:
        """Return the task that re-embeds all videos into another generation."""
        return Reembedding(
            self.db,
            self.files,
            self.decoder,
            lambda: self.load(generation, image_tower=True),
            generation=generation,
            threads=self._decoder_processes,
        )

    @cached_property
    def projections(self) -> Projections:
        """Projections of the library."""
        return Projections(self.db, self.settings.data_dir / "atlas", self.generation, self.settings.aggregation)

    @cached_property
    def encoded_points(self) -> EncodedPoints:
        """Cache of projection points, encoded for clients."""
        return EncodedPoints(self.db)

    def generation(self) -> Generation:
        """Return the active generation. Raises ConfigurationError if nothing was ever embedded."""
        generation = self._active()
        if generation is None:
            raise ConfigurationError(
                f"the library in {self.settings.data_dir} is empty: add videos with `reelsrs embed` or `reelsrs serve`"
            )
        return generation

    def _active(self) -> Generation | None:
        with self.db.read() as connection:
            return generation_rows.active_generation(connection)

    # --- the generation that is served

    @property
    def serving(self) -> Serving:
        """Model and indexes that answer requests now. Raises ConfigurationError if nothing was ever embedded."""
        serving = self._serving
        if serving is None:
            with self._switching:
                serving = self._serving = self._serving or Serving(self, self.generation())
        return serving

    # --- switching to another generation

    def initialise(self, *, request_changes: bool = True) -> Generation:
        """Initialise a new library with the configured model; check an existing one for a changed model.

        For an existing library, start re-embedding if the configured model changed since it was last recorded, or if
        the weights of the active model changed. The new generation becomes active once it is complete. Videos without
        vectors of the active generation are queued. If the active model cannot be loaded but a target generation
        exists, only log a warning.

        Args:
            request_changes: If False, do not start re-embedding of an existing library.

        Returns:
            The generation that is served.

        Raises:
            ConfigurationError: A model that is needed cannot be used.
            ModelUnavailable: The weights of a model that is needed cannot be loaded.
        """
        active = self._active()
        model, precision = self.settings.requested_model
        requested = f"{model or ''} {precision or ''}"
        if active is None:
            loaded = self._last_model or self._load_model(
                self.settings.model, self.settings.precision, image_tower=False
            )
            self._last_model = loaded
            with self.db.write() as connection:
                generations.record_requested_model(connection, requested)
                generation_rows.activate_generation(connection, loaded.generation)
            return loaded.generation
        with self.db.read() as connection:
            recorded = generations.recorded_model_setting(connection)
        if request_changes and requested != recorded:
            same = model in (None, active.model) and precision in (None, active.precision)
            if not same:
                found = self._load_model(model or active.model, precision or self.settings.precision, image_tower=False)
                self._set_target(found.generation, activate=True, because="the configured model changed")
            with self.db.write() as connection:
                generations.record_requested_model(connection, requested)
        self.follow()
        try:
            self.serving.encoder()
        except WeightsMismatch as error:
            log.warning("model unavailable; text and image search disabled", reason=str(error))
            if request_changes:
                self._set_target(error.found, activate=True, because="the weights of the model changed")
        except (ConfigurationError, Unavailable) as error:
            with self.db.read() as connection:
                target = generations.target(connection)
            if target is None:
                raise
            log.warning("model unavailable; text and image search disabled", reason=str(error), until=target.id)
        self.follow()
        self._queue_missing()
        return self.serving.generation

    def _queue_missing(self) -> None:
        """Queue every ready video that lacks vectors of the served generation, whatever the reason."""
        generation = self.serving.generation
        with self.db.read() as connection:
            lacking = sum(map(len, generations.missing(connection, generation.id)))
        if lacking:
            with self.db.write() as connection:
                lacking = generations.queue_missing(connection, generation.id)
            log.warning("embedding videos that lack vectors", videos=lacking)

    def request_model(self, model: str, precision: str, *, activate: bool) -> tuple[State, bool]:
        """Start re-embedding with another model, beside the active generation.

        Args:
            model: Name of the requested model.
            precision: Requested precision.
            activate: Whether to switch to the new generation once it is complete.

        Returns:
            The state of the generation, and whether it was neither active nor the target generation before.

        Raises:
            InvalidInput: The model or precision does not exist or cannot be used.
            ModelUnavailable: The weights cannot be loaded.
        """
        try:
            found = self._load_model(model, precision, image_tower=False).generation
        except ConfigurationError as error:
            raise InvalidInput("model", str(error).removeprefix("REELSRS_MODEL: ")) from error
        with self.db.read() as connection:
            known = next((one for one in generations.states(connection) if one.generation.id == found.id), None)
        is_new = known is None or not (known.active or known.is_target)
        if is_new or (known is not None and known.is_target and activate != known.activate):
            self._set_target(found, activate=activate, because="requested by a client")
        with self.db.read() as connection:
            return generations.state(connection, found.id), is_new

    def _set_target(self, generation: Generation, *, activate: bool, because: str) -> None:
        """Make a generation the target; if no video lacks its vectors, complete it at once."""
        with self.db.write() as connection:
            generations.set_target(connection, generation, activate=activate)
            is_complete = generations.missing(connection, generation.id) == ([], [])
            if is_complete:
                generations.complete(connection, generation)
        if not is_complete:
            log.warning("re-embedding started", model=generation.model, reason=because)

    def switch(self, generation_id: str) -> State:
        """Make another generation the active one, and serve it from now on.

        The model is loaded first, so that the library never switches to a model that cannot be loaded.

        Raises:
            NotFound: There is no generation with this id.
            NotReady: The generation was never complete.
            ConfigurationError: The model of the generation cannot be used.
            ModelUnavailable: The weights of the generation cannot be loaded.
        """
        with self._switching:
            with self.db.read() as connection:
                state = generations.state(connection, generation_id)
            if not state.active:
                if state.completed_at is None:
                    raise NotReady(generation_id, state.status, "generation")
                serving = self._serving_of(state.generation)
                serving.encoder()
                serving.warm()
                with self.db.write() as connection:
                    queued = generations.switch(connection, generation_id)
                log.warning("generation activated", model=state.generation.model, queued=queued)
                self._replace_serving(serving)
                serving.index.save()
            with self.db.read() as connection:
                return generations.state(connection, generation_id)

    def reembed(self, on_progress: Callable[[float], None]) -> None:
        """Re-embed all videos into the target generation in this process, and serve it.

        Do nothing unless the target generation is to be activated. `on_progress` receives the share done, 0 to 1.

        Raises:
            ConfigurationError: The model of the target generation cannot be used.
            ModelUnavailable: The weights of the target generation cannot be loaded.
        """
        with self.db.read() as connection:
            targets = [one.generation for one in generations.states(connection) if one.is_target and one.activate]
        for generation in targets:
            self.reembedding(generation).run(
                threading.Event(), keep_up=False, on_progress=lambda done, total: on_progress(done / max(1, total))
            )
        self.follow()

    def follow(self, *, warm: bool = False) -> None:
        """Serve the generation that is active now, whichever process activated it.

        With `warm`, load the new model and indexes first; the previous generation serves until they are loaded. Without
        it, they are loaded on first use. Generations replaced more than `linger_seconds` ago are closed.

        Raises:
            ConfigurationError: The model of the active generation cannot be used.
            ModelUnavailable: The weights of the active generation cannot be loaded.
        """
        with self._switching:
            active, serving_now = self._active(), self._serving
            if active is not None and serving_now is not None and serving_now.generation.id != active.id:
                serving = self._serving_of(active)
                if warm:
                    serving.encoder()
                    serving.warm()
                self._replace_serving(serving)
            while self._previous and time.monotonic() - self._previous[0][0] > self.timing.linger_seconds:
                self._previous.pop(0)[1].close()

    def _serving_of(self, generation: Generation) -> Serving:
        known = [serving for _, serving in self._previous if serving.generation.id == generation.id]
        return known[0] if known else Serving(self, generation)

    def _replace_serving(self, serving: Serving) -> None:
        self._previous = [(since, one) for since, one in self._previous if one is not serving]
        if self._serving is not None:
            self._previous.append((time.monotonic(), self._serving))
        self._serving = serving

    def close(self) -> None:
        """Save the index snapshots, end the decoder unless it is shared, and close the database."""
        for _, serving in self._previous:
            serving.close()
        if self._serving is not None:
            self._serving.close()
        if "_own_decoder" in self.__dict__:
            self._own_decoder.close()
        self.db.close()
