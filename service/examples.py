"""Words, pictures and clips from outside the library, as examples to search with. Knows no index and keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from service.domain import Aggregation, Generation, Sampling, clean_caption
from service.embedder import Embedder
from service.errors import InvalidInput, Unavailable
from service.question import Example
from service.vectors import aggregate
from service.video import Decoder


class Loaded(Protocol):
    """Gives the model, with its picture tower where it is needed."""

    def __call__(self, *, pictures: bool = False) -> Embedder:
        """Raises ConfigurationError, ModelUnavailable."""
        ...


class Examples:
    """Embeds what somebody searches with, for the library of one generation.

    Every method raises Unavailable while the library is being moved to another model than the one at hand.
    """

    def __init__(self, decoder: Decoder, embedder: Loaded, generation: Generation, aggregation: Aggregation) -> None:
        self._decoder = decoder
        self._embedder = embedder
        self._generation = generation
        self._aggregation = aggregation

    def text(self, query: str, weight: float = 1.0) -> Example:
        """Words, compared with what is seen and with what is written. Raises InvalidInput where there are none."""
        if not query.strip():
            raise InvalidInput("query", "must not be empty")
        vector = self._model().embed_texts([query])[0]
        return Example(vector, vector, weight)

    def picture(self, path: Path, weight: float = 1.0) -> Example:
        """A picture, compared with what is seen and with what is written. Raises Undecodable, InvalidInput."""
        embedder = self._model(pictures=True)
        vector = embedder.embed_pictures(self._decoder.picture(path, embedder.picture)[None])[0]
        return Example(vector, vector, weight)

    def clip(self, path: Path, caption: str | None, sampling: Sampling, weight: float = 1.0) -> Example:
        """A clip and what is written of it, as a video of the library would be. Raises Undecodable, InvalidInput."""
        embedder = self._model(pictures=True)
        caption = clean_caption(caption)
        sample = self._decoder.sample(path, sampling, embedder.picture)
        vectors = aggregate(
            embedder.embed_pictures(sample.pixels), embedder.embed_texts([caption])[0] if caption else None
        )
        return Example(vectors.mean if self._aggregation == "mean" else vectors.max, vectors.text, weight)

    def _model(self, *, pictures: bool = False) -> Embedder:
        embedder = self._embedder(pictures=pictures)
        if embedder.generation.id != self._generation.id:
            made, given = (
                f"{one.model} ({one.id}, {one.precision})" for one in (self._generation, embedder.generation)
            )
            raise Unavailable(
                f"the library was embedded with {made}, the settings give {given}: set REELSRS_MODEL, or run "
                "`reelsrs embed` to move the library over"
            )
        return embedder
