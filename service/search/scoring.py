"""Candidates of one question, scored exactly, in order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa

from service.database import catalog, vector_rows
from service.errors import InvalidInput, NotReady
from service.index.rows import Rows, Searchable
from service.models import Aggregation, Categories, Generation, Keys, Vectors, Weights
from service.search.answers import Candidate, Hit, Part
from service.search.query import Cursor, Scope, SearchQuery
from service.search.ranking import Line, Numbers, diverse, order, rounded

EXTRA = 32
_POOL = 10
_POOL_LEAST, _POOL_MORE = 100, 1000


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The examples of a question as one: vectors (D,), weights that can be used, and which videos they were."""

    picture: Numbers
    caption: Numbers | None
    weights: Weights
    without: frozenset[int]
    categories: frozenset[str | None]
    state: str

    @property
    def words(self) -> Numbers:
        return np.zeros_like(self.picture) if self.caption is None else self.caption

    @classmethod
    def of(
        cls, connection: sa.Connection, question: SearchQuery, generation: Generation, aggregation: Aggregation
    ) -> Target:
        pictures = [(example.picture, example.weight) for example in question.examples]
        captions = [(one.caption, one.weight) for one in question.examples if one.caption is not None]
        without: set[int] = set()
        categories: set[str | None] = set()
        for like in question.likes:
            video = catalog.video(connection, like.video_id)
            known = vector_rows.kinds(connection, video.key, generation, aggregation, "text")
            if video.status != "ready" or aggregation not in known:
                raise NotReady(video.id, video.status)
            pictures.append((known[aggregation][0], like.weight))
            if "text" in known:
                captions.append((known["text"][0], like.weight))
            without.add(video.key)
            if like.weight > 0:
                categories.add(video.category)
        weights = question.weights
        if not captions:
            if weights.video == 0:
                raise InvalidInput(
                    "video_weight",
                    "the query video has no caption, so a video_weight of 0 leaves nothing to compare",
                )
            weights = replace(weights, text=0.0)
        seen, read = _mean(pictures), _mean(captions) if captions else None
        compared = hashlib.sha256(generation.id.encode() + aggregation.encode() + seen.tobytes())
        compared.update(b"" if read is None else read.tobytes())
        if question.exclude:
            without |= catalog.keys_of(connection, question.exclude)
        return cls(seen, read, weights, frozenset(without), frozenset(categories), compared.hexdigest()[:16])


class Search:
    """One search over videos, in one state of index and database."""

    def __init__(
        self,
        index: Searchable,
        connection: sa.Connection,
        target: Target,
        both: tuple[Line, Line],
        question: SearchQuery,
    ) -> None:
        self._index = index
        self._connection = connection
        self._target = target
        self._seen, self._read = both
        self._question = question
        self._where = where_of(question.scope, target)
        self._rows: dict[int, int] = {}  # of what was scored, by key
        neutral = np.array([self._read.a * self._read.mean])
        parts = (self._seen.a * target.picture, self._read.a * target.words, neutral)
        self._query: Vectors = np.concatenate(parts).astype(np.float32)

    def best(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """The best k behind the cursor, and whether there are more."""
        k = self._question.k
        found = self._ranked(k + 1, cursor, self._target.without)
        return found[:k], len(found) > k

    def diverse(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """The next k by maximal marginal relevance, among the best of several times as many."""
        k, shown = self._question.k, cursor.shown if cursor else ()
        pool = max(_POOL_LEAST, min(_POOL * k, k + _POOL_MORE))
        found = self._ranked(pool, None, self._target.without | frozenset(shown))
        before = self._index.rows_of(np.array(shown, dtype=np.int64))
        taken = diverse(
            np.array([one.score for one in found]),
            *self._vectors(np.array([self._rows[one.video.key] for one in found], dtype=np.int64)),
            (self._seen, self._read),
            self._question.diversity,
            k,
            self._vectors(before),
        )
        return [found[place] for place in taken], len(found) > k

    def _ranked(self, wanted: int, cursor: Cursor | None, without: frozenset[int]) -> list[Candidate]:
        """The best `wanted` behind the cursor and whatever ties with the last of them, in order, and no more than
        `wanted` of those."""
        count = wanted + (cursor.offset if cursor else 0) + len(without) + EXTRA
        constant = self._seen.a * self._seen.b + self._read.a * self._read.b
        while True:
            rows, products = self._index.search(self._query, count, self._where)
            keys = self._index.keys(rows)
            kept = np.array([key not in without for key in keys.tolist()], dtype=np.bool_)
            scored = self._scored(rows[kept], keys[kept], wanted, cursor)
            found = [one for one in scored if is_wanted(self._question, cursor, one)]
            found.sort(key=lambda one: order(one.score, one.video.id))
            if len(rows) < count:
                return found[:wanted]
            floor = float(products[-1]) - constant + margin_of(self._query)
            if (len(found) >= wanted and found[wanted - 1].score > floor) or below(self._question, floor):
                return found[:wanted]
            count *= 4

    def _scored(self, rows: Rows, keys: Keys, wanted: int, cursor: Cursor | None) -> list[Candidate]:
        """Those that can be among the best `wanted` behind the cursor, with their videos: reading rows costs more than
        all arithmetic."""
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        seen = similarities_of(pictures, self._target.picture)
        read = np.where(captioned, similarities_of(captions, self._target.words), self._read.mean)
        seen_parts, read_parts = self._seen(seen), self._read(read)
        scores = rounded(seen_parts + read_parts)
        likely = np.ones(len(scores), dtype=np.bool_)
        if cursor is not None and cursor.after is not None:
            likely = -scores >= cursor.after[0]
            wanted += int(np.count_nonzero(-scores == cursor.after[0]))  # of a tie with the last hit, ids decide
        if np.count_nonzero(likely) > wanted:
            likely &= scores >= -np.partition(-scores[likely], wanted - 1)[wanted - 1]
        self._rows |= zip(keys[likely].tolist(), rows[likely].tolist(), strict=True)
        videos = catalog.videos_by_key(self._connection, keys[likely].tolist())
        weights, written = self._target.weights, self._target.caption is not None
        return [
            Candidate(
                video=videos[key],
                score=float(seen_parts[n] + read_parts[n]),
                video_part=Part(float(seen[n]), weights.video, float(seen_parts[n])),
                text_part=Part(
                    float(read[n]) if written else None, weights.text, float(read_parts[n]), not captioned[n]
                ),
            )
            for n, key in enumerate(keys.tolist())
            if likely[n]
        ]

    def _vectors(self, rows: Rows) -> tuple[Numbers, Numbers]:
        """Pictures and captions (N, D) in double precision, the mean caption where one is missing."""
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        whole = np.where(captioned[:, None], captions, self._index.mean_caption)
        return pictures.astype(np.float64), whole.astype(np.float64)


def is_wanted(question: SearchQuery, cursor: Cursor | None, one: Candidate) -> bool:
    """Whether a hit is good enough, and stands behind the cursor."""
    if question.min_score is not None and one.score < question.min_score:
        return False
    if cursor is None or cursor.after is None:
        return True
    return order(one.score, one.video.id, one.moment.frame if isinstance(one, Hit) else 0) > cursor.after


def below(question: SearchQuery, floor: float) -> bool:
    """Whether all that was not found yet is not wanted."""
    return question.min_score is not None and floor < question.min_score


def where_of(scope: Scope, target: Target) -> Categories:
    include: frozenset[str | None] | None = frozenset(scope.category) or None
    exclude: frozenset[str | None] = frozenset(scope.exclude_category)
    if scope.category_mode != "any" and not target.categories:
        raise InvalidInput("category_mode", "same and other need a video of the library to be like")
    if scope.category_mode == "other":
        exclude |= target.categories
    elif scope.category_mode == "same":
        include = target.categories if include is None else include & target.categories
    return Categories(include, exclude)


def _mean(weighted: list[tuple[Vectors, float]]) -> Numbers:
    """(D,) the mean of vectors, each with its weight, whose sign counts."""
    total = sum(abs(weight) for _, weight in weighted)
    parts = [vector.astype(np.float64) * (weight / total) for vector, weight in weighted]
    mean: Numbers = np.sum(parts, axis=0, dtype=np.float64)
    return mean


def similarities_of(vectors: Vectors, query: Numbers) -> Numbers:
    # Row by row in double precision: equal vectors get equal scores, wherever in a matrix they stand.
    products: Numbers = (vectors.astype(np.float64) * query).sum(axis=1)
    return products


def margin_of(query: Vectors) -> float:
    """What single precision and the order of a sum can do to a product, generously."""
    return 1e-5 * max(1.0, float(np.linalg.norm(query)))
