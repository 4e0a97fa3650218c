"""Embed texts, images and clips from outside the library as examples to search with.

The vectors of the last few examples are cached. The same example often comes again, with other weights or for the next
page, and to decode and embed a clip takes far longer than to search with it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cachetools import LRUCache

from service.embedding.encoder import Encoder
from service.embedding.random_words import random_words
from service.errors import InvalidInput
from service.media import Decoder
from service.models import Aggregation, Sampling, Vectors, clean_caption
from service.names import normalised
from service.search.query import QueryVector
from service.vectors import aggregate

_CACHE_SIZE = 64
_NOISE_WORDS = 128  # more are hardly better, and each costs the text tower as much as a query


class EncoderProvider(Protocol):
    """Function that returns the model, with its image encoder if `image_tower`."""

    def __call__(self, *, image_tower: bool = False) -> Encoder:
        """Return the model. Raises ConfigurationError, ModelUnavailable."""
        ...


class QueryEncoder:
    """Embeds examples with the model of one generation.

    Every method raises Unavailable if that model is no longer available.
    """

    def __init__(self, decoder: Decoder, encoder_provider: EncoderProvider, aggregation: Aggregation) -> None:
        self._decoder = decoder
        self._encoder_provider = encoder_provider
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._cache: LRUCache[Hashable, QueryVector] = LRUCache(_CACHE_SIZE)
        self._noise_lock = threading.Lock()
        self._noise: Vectors | None = None

    def text(self, query: str, weight: float = 1.0) -> QueryVector:
        """Embed a text, which is compared with the visual and the text vectors. Raises InvalidInput if it is empty."""
        if not query.strip():
            raise InvalidInput("query", "must not be empty")
        query = normalised(query)  # like captions
        encoder = self._encoder_provider()

        def encode() -> QueryVector:
            vector = encoder.embed_texts([query])[0]
            return QueryVector(vector, vector, noise=self.noise())

        return self._cached(("text", query), encode, weight)

    def noise(self) -> Vectors:
        """Return the vectors of 128 random words, (128, D), which are computed once."""
        with self._noise_lock:
            if self._noise is None:
                self._noise = self._encoder_provider().embed_texts(random_words(_NOISE_WORDS))
            return self._noise

    def image(self, path: Path, weight: float = 1.0) -> QueryVector:
        """Embed an image, which is compared with the visual and the text vectors. Raises Undecodable, InvalidInput."""
        encoder = self._encoder_provider(image_tower=True)

        def encode() -> QueryVector:
            vector = encoder.embed_images(self._decoder.image(path, encoder.image_spec)[None])[0]
            return QueryVector(vector, vector)

        return self._cached(("picture", _digest(path)), encode, weight)

    def clip(self, path: Path, caption: str | None, sampling: Sampling, weight: float = 1.0) -> QueryVector:
        """Embed a clip and its caption as a video of the library is embedded. Raises Undecodable, InvalidInput."""
        encoder = self._encoder_provider(image_tower=True)
        caption = clean_caption(caption)

        def encode() -> QueryVector:
            sample = self._decoder.sample(path, sampling, encoder.image_spec)
            text = encoder.embed_texts([caption])[0] if caption else None
            vectors = aggregate(encoder.embed_images(sample.pixels), text)
            return QueryVector(vectors.mean if self._aggregation == "mean" else vectors.max, vectors.text)

        return self._cached(("clip", _digest(path), caption, sampling), encode, weight)

    def _cached(self, key: Hashable, encode: Callable[[], QueryVector], weight: float) -> QueryVector:
        """Return the cached example, or create and cache it, with this weight."""
        with self._lock:
            vector = self._cache.get(key)
        if vector is None:
            vector = encode()
        with self._lock:
            self._cache[key] = vector
        return replace(vector, weight=weight)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
