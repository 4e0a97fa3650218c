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
from service.errors import InvalidInput
from service.media import Decoder
from service.models import Aggregation, Sampling, clean_caption
from service.search.query import QueryVector
from service.vectors import aggregate

_KEPT = 64


class Loaded(Protocol):
    """Function that returns the model, with its image encoder if `pictures`."""

    def __call__(self, *, pictures: bool = False) -> Encoder:
        """Return the model. Raises ConfigurationError, ModelUnavailable."""
        ...


class QueryEncoder:
    """Embeds examples with the model of one generation.

    Every method raises Unavailable if that model is no longer available.
    """

    def __init__(self, decoder: Decoder, embedder: Loaded, aggregation: Aggregation) -> None:
        self._decoder = decoder
        self._embedder = embedder
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._kept: LRUCache[Hashable, QueryVector] = LRUCache(_KEPT)

    def text(self, query: str, weight: float = 1.0) -> QueryVector:
        """Embed a text, which is compared with the visual and the text vectors. Raises InvalidInput if it is empty."""
        if not query.strip():
            raise InvalidInput("query", "must not be empty")
        embedder = self._embedder()

        def made() -> QueryVector:
            vector = embedder.embed_texts([query])[0]
            return QueryVector(vector, vector)

        return self._again(("text", query), made, weight)

    def picture(self, path: Path, weight: float = 1.0) -> QueryVector:
        """Embed an image, which is compared with the visual and the text vectors. Raises Undecodable, InvalidInput."""
        embedder = self._embedder(pictures=True)

        def made() -> QueryVector:
            vector = embedder.embed_pictures(self._decoder.picture(path, embedder.picture)[None])[0]
            return QueryVector(vector, vector)

        return self._again(("picture", _digest(path)), made, weight)

    def clip(self, path: Path, caption: str | None, sampling: Sampling, weight: float = 1.0) -> QueryVector:
        """Embed a clip and its caption as a video of the library is embedded. Raises Undecodable, InvalidInput."""
        embedder = self._embedder(pictures=True)
        caption = clean_caption(caption)

        def made() -> QueryVector:
            sample = self._decoder.sample(path, sampling, embedder.picture)
            text = embedder.embed_texts([caption])[0] if caption else None
            vectors = aggregate(embedder.embed_pictures(sample.pixels), text)
            return QueryVector(vectors.mean if self._aggregation == "mean" else vectors.max, vectors.text)

        return self._again(("clip", _digest(path), caption, sampling), made, weight)

    def _again(self, key: Hashable, made: Callable[[], QueryVector], weight: float) -> QueryVector:
        """Return the cached example, or create and cache it, with this weight."""
        with self._lock:
            example = self._kept.get(key)
        if example is None:
            example = made()
        with self._lock:
            self._kept[key] = example
        return replace(example, weight=weight)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
