"""Search queries: positive and negative examples, weights, filters, and the cursor that continues a page.

A cursor holds all that a page needs to continue exactly after the previous page, whatever videos were added or removed
meanwhile: a hash of the query, the statistics that its scores were computed with, and the last hit. The service keeps
no state between pages.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import Gone, InvalidInput
from service.models import MAX_WEIGHT, CategoryMode, Fusion, Vectors, Weights, check_k

GroupBy = Literal["video", "moment"]

MAX_DEPTH = 10_000
"""Hits that can be reached page by page."""
MAX_CURSOR_CHARACTERS = 64_000


@dataclass(frozen=True, slots=True)
class Scope:
    """Filter by category: which videos may be in the search results.

    The modes `same` and `other` refer to the categories of the query's references with a positive weight.
    """

    category: tuple[str, ...] = ()
    exclude_category: tuple[str, ...] = ()
    category_mode: CategoryMode = "any"


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Reference:
    """Library video given as an example. With a negative weight, results should be unlike the video."""

    video_id: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class QueryVector:
    """Example from outside the library, given by its vectors, (D,) float32: a text, an image or a clip.

    `text` is None if the example has no text vector. With a negative weight, results should be unlike the example.
    `noise`, (R, D), are vectors of random examples of the same kind, to tell whether anything fits; None if there are
    none for this kind.
    """

    visual: Vectors
    text: Vectors | None
    weight: float = 1.0
    noise: Vectors | None = None

    def __post_init__(self) -> None:
        _check_weight(self.weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchQuery:
    """One search query. Raises InvalidInput if a value is not valid.

    Attributes:
        weights: Weights of the two modalities.
        fusion: How the two similarities become a score.
        references: Library videos given as examples, positive or negative by weight.
        vectors: Examples from outside the library.
        exclude: Ids of videos that must not be in the results. Ids that do not exist are ignored.
        k: Number of hits on a page.
        scope: Filter by category.
        diversity: From 0, the best hits, to 1, hits that differ from those before them.
        min_score: Hits with a lower score are left out.
        group_by: Whether a hit is a video or a moment.
        cursor: Where the page begins; None for the first page.
    """

    weights: Weights
    fusion: Fusion
    references: tuple[Reference, ...] = ()
    vectors: tuple[QueryVector, ...] = ()
    exclude: tuple[str, ...] = ()
    k: int = 10
    scope: Scope = EVERYWHERE
    diversity: float = 0.0
    min_score: float | None = None
    group_by: GroupBy = "video"
    cursor: str | None = None

    def __post_init__(self) -> None:
        check_k(self.k)
        if not self.references and not self.vectors:
            raise InvalidInput("positive", "needs at least one reference video, in positive or in negative")
        positive_ids = {reference.video_id for reference in self.references if reference.weight > 0}
        if conflicting_ids := positive_ids & {
            reference.video_id for reference in self.references if reference.weight < 0
        }:
            raise InvalidInput("negative", f"must not contain {min(conflicting_ids)}, which is also in positive")
        if not 0 <= self.diversity <= 1:
            raise InvalidInput("diversity", f"must be a number from 0 to 1, not {self.diversity}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InvalidInput("min_score", f"must be a finite number, not {self.min_score}")
        if self.group_by == "moment":
            if self.diversity:
                raise InvalidInput("diversity", "applies to videos only: omit it with group_by=moment")
            if self.weights.video == 0:
                raise InvalidInput(
                    "video_weight", "must be greater than 0 with group_by=moment: moments have only visual similarity"
                )

    @property
    def noise(self) -> Vectors | None:
        """Noise of the one example of this query; None if there are several, or none for its kind."""
        alone = len(self.vectors) == 1 and not self.references and self.vectors[0].weight > 0
        return self.vectors[0].noise if alone else None

    def digest(self) -> str:
        """Return a hash that is equal for all pages of one query.

        The vectors of the examples are not included; the cursor's `state` covers them.
        """
        parts = (
            [(reference.video_id, reference.weight) for reference in self.references],
            [vector.weight for vector in self.vectors],
            sorted(self.exclude),
            (self.weights.video, self.weights.text, self.fusion),
            (self.scope.category, self.scope.exclude_category, self.scope.category_mode),
            (self.diversity, self.min_score, self.group_by),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Start of a page.

    Attributes:
        query_digest: Digest of the query.
        state: Digest of what videos are compared with: generation, aggregation and query vectors.
        statistics: (mean, standard deviation) per modality, as on the first page.
        offset: Number of hits on the pages before.
        after: Sort key of the last hit: (-score, video id, frame number). None with diversity.
        shown: Primary keys of all videos on the pages before, if hits are not in the order of their scores.
    """

    query_digest: str
    state: str
    statistics: tuple[tuple[float, float], tuple[float, float]]
    offset: int
    after: tuple[float, str, int] | None = None
    shown: tuple[int, ...] = ()

    def encode(self) -> str:
        """Serialise the cursor as opaque text that is safe in a URL."""
        parts = [self.query_digest, self.state, self.statistics, self.offset, self.after, self.shown]
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(parts).encode())).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read text that `encode` returned. Raises InvalidInput for anything else."""
        try:
            if len(text) > MAX_CURSOR_CHARACTERS:
                raise ValueError("too long")
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), 16 * len(text) + 1024)
            if not unpacker.eof:
                raise ValueError("incomplete")
            return cls._from_parts(json.loads(data))
        except (ValueError, TypeError, KeyError, zlib.error, RecursionError) as error:
            raise InvalidInput("cursor", "is not valid: use the `next_cursor` of an earlier page, unchanged") from error

    @classmethod
    def _from_parts(cls, parts: Any) -> Cursor:
        query_digest, state, ((mean_v, std_v), (mean_t, std_t)), offset, after, shown = parts
        numbers = (mean_v, std_v, mean_t, std_t, *(after[:1] if after else ()))
        whole = (offset, *shown, *(after[2:] if after else ()))
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise ValueError("not a finite number")
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in whole):
            raise ValueError("not an integer in range")
        if max(offset, len(shown)) > MAX_DEPTH:
            raise ValueError("too many hits")
        if after is not None and (len(after) != 3 or not isinstance(after[1], str)):
            raise ValueError("not a hit")
        statistics = ((float(mean_v), float(std_v)), (float(mean_t), float(std_t)))
        return cls(query_digest, state, statistics, offset, None if after is None else tuple(after), tuple(shown))

    def check(self, query_digest: str, state: str) -> None:
        """Check that the cursor fits this query and what the query is compared with now.

        Raises:
            InvalidInput: The cursor belongs to another query.
            Gone: The model or the vectors of the examples have changed since the first page.
        """
        if self.query_digest != query_digest:
            raise InvalidInput("cursor", "belongs to another query: send it with the parameters of the first page")
        if self.state != state:
            raise Gone(
                "cursor: the model or the query's vectors changed after the first page; start again without a cursor"
            )


def _check_weight(weight: float) -> None:
    if not 0 < abs(weight) <= MAX_WEIGHT:  # also rejects NaN
        raise InvalidInput("weight", f"must be a number greater than 0 and at most {MAX_WEIGHT:.0f}, not {weight}")
