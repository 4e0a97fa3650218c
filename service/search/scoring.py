"""Score the candidates of one query exactly, and sort them.

The index returns rows by their score in single precision. `Search` computes the scores again in double precision. It
requests more rows from the index until no other row can belong to the page. See `recommender.py` for the formulas.
"""

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

EXTRA = 32  # rows requested from the index beyond those needed
_POOL = 10  # candidates per hit with diversity, within the limits below
_POOL_LEAST, _POOL_MORE = 100, 1000


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """All examples of a query combined.

    Attributes:
        picture: Visual query vector q_v, (D,) float64.
        caption: Text query vector q_t, (D,) float64; None if no example has text.
        weights: Weights to use; the text weight is 0 if `caption` is None.
        without: Primary keys of videos that must not be hits: the references and the excluded videos.
        categories: Categories of the references with a positive weight; None for a video without a category.
        state: Digest of generation, aggregation and query vectors, for the cursor.
    """

    picture: Numbers
    caption: Numbers | None
    weights: Weights
    without: frozenset[int]
    categories: frozenset[str | None]
    state: str

    @property
    def words(self) -> Numbers:
        """Text query vector, (D,) float64; zero if there is none."""
        return np.zeros_like(self.picture) if self.caption is None else self.caption

    @classmethod
    def of(
        cls, connection: sa.Connection, question: SearchQuery, generation: Generation, aggregation: Aggregation
    ) -> Target:
        """Combine the examples of a query. The vectors of references are read from the database.

        Raises:
            NotFound: A reference video does not exist.
            NotReady: A reference video has no vectors of this generation yet.
            InvalidInput: The visual weight is 0, and no example has a text vector.
        """
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
    """One search for videos, in one state of index and database."""

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
        self._rows: dict[int, int] = {}  # row of each video that was scored, by primary key
        neutral = np.array([self._read.a * self._read.mean])
        parts = (self._seen.a * target.picture, self._read.a * target.words, neutral)
        self._query: Vectors = np.concatenate(parts).astype(np.float32)

    def best(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """Return the best k candidates after the cursor, and whether there are more."""
        k = self._question.k
        found = self._ranked(k + 1, cursor, self._target.without)
        return found[:k], len(found) > k

    def diverse(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """Return the next k candidates by maximal marginal relevance, and whether there are more.

        They are chosen among the best 10 k candidates that were not shown yet, but at least 100 and at most k + 1,000.
        """
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
        """Return the best `wanted` candidates after the cursor, in order.

        The index is searched for more and more rows until the result is certain: until the last candidate scores higher
        than any row that was not found can score, or until all other rows are below `min_score`. Ties with the last
        candidate are therefore found, too, and decided by video id. Rows that an approximate index misses are not
        found.

        Args:
            wanted: Number of candidates; fewer are returned if there are fewer.
            cursor: Start of the page; None for the first page.
            without: Primary keys of videos to leave out.
        """
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
        """Score rows exactly. Return those that can be among the best `wanted` after the cursor, with their videos.

        The others are dropped before their videos are read, because reading database rows costs more than all
        arithmetic.
        """
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        seen = similarities_of(pictures, self._target.picture)
        read = np.where(captioned, similarities_of(captions, self._target.words), self._read.mean)
        seen_parts, read_parts = self._seen(seen), self._read(read)
        scores = rounded(seen_parts + read_parts)
        likely = np.ones(len(scores), dtype=np.bool_)
        if cursor is not None and cursor.after is not None:
            likely = -scores >= cursor.after[0]
            wanted += int(np.count_nonzero(-scores == cursor.after[0]))  # ties with the last hit: the id decides
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
        """Return visual and text vectors of these rows, (N, D) float64; the mean if a caption is missing."""
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        whole = np.where(captioned[:, None], captions, self._index.mean_caption)
        return pictures.astype(np.float64), whole.astype(np.float64)


def is_wanted(question: SearchQuery, cursor: Cursor | None, one: Candidate) -> bool:
    """Return whether a candidate reaches `min_score` and comes after the cursor."""
    if question.min_score is not None and one.score < question.min_score:
        return False
    if cursor is None or cursor.after is None:
        return True
    return order(one.score, one.video.id, one.moment.frame if isinstance(one, Hit) else 0) > cursor.after


def below(question: SearchQuery, floor: float) -> bool:
    """Return whether every row that was not found yet is below `min_score`. `floor` bounds their scores."""
    return question.min_score is not None and floor < question.min_score


def where_of(scope: Scope, target: Target) -> Categories:
    """Return the category filter of a query.

    Raises InvalidInput if the modes `same` or `other` are used without a positive reference.
    """
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
    """Return the weighted mean of vectors (D,): sum(w_i v_i) / sum(|w_i|), (D,) float64."""
    total = sum(abs(weight) for _, weight in weighted)
    parts = [vector.astype(np.float64) * (weight / total) for vector, weight in weighted]
    mean: Numbers = np.sum(parts, axis=0, dtype=np.float64)
    return mean


def similarities_of(vectors: Vectors, query: Numbers) -> Numbers:
    """Return the inner product of each vector, (N, D), with `query`, (D,), as (N,) float64."""
    # Row by row in double precision: equal vectors get equal scores, wherever they are in the matrix.
    products: Numbers = (vectors.astype(np.float64) * query).sum(axis=1)
    return products


def margin_of(query: Vectors) -> float:
    """Return a generous bound of the error of an inner product with `query` in the index.

    The error comes from single precision and from the order of a sum.
    """
    return 1e-5 * max(1.0, float(np.linalg.norm(query)))
