"""Score the candidates of one query exactly, and sort them.

The index returns rows by their score in single precision. `VideoSearch` computes the scores again in double precision.
It requests more rows from the index until no other row can belong to the page. See `recommender.py` for the formulas.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa

from service.database import vector_rows, video_rows
from service.errors import InvalidInput, NotReady
from service.index.base import Searchable
from service.index.layout import RowNumbers
from service.models import Aggregation, CategoryFilter, Generation, Vectors, VideoPks, Weights
from service.names import normalised
from service.search.query import Cursor, Scope, SearchQuery
from service.search.ranking import Line, Numbers, rounded, select_diverse, sort_key
from service.search.results import Candidate, Contribution, Hit

EXTRA_ROWS = 32  # rows requested from the index beyond those needed
_POOL_PER_HIT = 10  # candidates per hit with diversity, within the limits below
_MIN_POOL, _MAX_EXTRA_POOL = 100, 1000


@dataclass(frozen=True, slots=True, eq=False)
class CombinedQuery:
    """All examples of a query combined.

    Attributes:
        visual: Visual query vector q_v, (D,) float64.
        text: Text query vector q_t, (D,) float64; None if no example has text.
        weights: Weights to use; the text weight is 0 if `text` is None.
        excluded_pks: Primary keys of videos that must not be hits: the references and the excluded videos.
        categories: Categories of the references with a positive weight; None for a video without a category.
        state: Digest of generation, aggregation and query vectors, for the cursor.
    """

    visual: Numbers
    text: Numbers | None
    weights: Weights
    excluded_pks: frozenset[int]
    categories: frozenset[str | None]
    state: str

    @property
    def text_or_zero(self) -> Numbers:
        """Text query vector, (D,) float64; zero if there is none."""
        return np.zeros_like(self.visual) if self.text is None else self.text

    @classmethod
    def from_query(
        cls, connection: sa.Connection, query: SearchQuery, generation: Generation, aggregation: Aggregation
    ) -> CombinedQuery:
        """Combine the examples of a query. The vectors of references are read from the database.

        Raises:
            NotFound: A reference video does not exist.
            NotReady: A reference video has no vectors of this generation yet.
            InvalidInput: The visual weight is 0, and no example has a text vector.
        """
        visual_vectors = [(vector.visual, vector.weight) for vector in query.vectors]
        text_vectors = [(vector.text, vector.weight) for vector in query.vectors if vector.text is not None]
        excluded_pks: set[int] = set()
        categories: set[str | None] = set()
        for reference in query.references:
            video = video_rows.video(connection, reference.video_id)
            known = vector_rows.vectors_by_kind(connection, video.pk, generation, aggregation, "text")
            if video.status != "ready" or aggregation not in known:
                raise NotReady(video.id, video.status)
            visual_vectors.append((known[aggregation][0], reference.weight))
            if "text" in known:
                text_vectors.append((known["text"][0], reference.weight))
            excluded_pks.add(video.pk)
            if reference.weight > 0:
                categories.add(video.category)
        weights = query.weights
        if not text_vectors:
            if weights.video == 0:
                raise InvalidInput(
                    "video_weight",
                    "must be greater than 0, because the query has no caption to compare",
                )
            weights = replace(weights, text=0.0)
        visual, text = _mean(visual_vectors), _mean(text_vectors) if text_vectors else None
        state = hashlib.sha256(generation.id.encode() + aggregation.encode() + visual.tobytes())
        state.update(b"" if text is None else text.tobytes())
        if query.exclude:
            excluded_pks |= video_rows.pks_of(connection, query.exclude)
        return cls(visual, text, weights, frozenset(excluded_pks), frozenset(categories), state.hexdigest()[:16])


class VideoSearch:
    """One search for videos, in one state of index and database."""

    def __init__(
        self,
        index: Searchable,
        connection: sa.Connection,
        combined: CombinedQuery,
        lines: tuple[Line, Line],
        query: SearchQuery,
    ) -> None:
        self._index = index
        self._connection = connection
        self._combined = combined
        self._visual_line, self._text_line = lines
        self._query = query
        self._where = category_filter(query.scope, combined)
        self._rows: dict[int, int] = {}  # row of each video that was scored, by primary key
        neutral = np.array([self._text_line.a * self._text_line.mean])
        parts = (self._visual_line.a * combined.visual, self._text_line.a * combined.text_or_zero, neutral)
        self._index_query: Vectors = np.concatenate(parts).astype(np.float32)

    def find_best(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """Return the best k candidates after the cursor, and whether there are more."""
        k = self._query.k
        found = self._rank_candidates(k + 1, cursor, self._combined.excluded_pks)
        return found[:k], len(found) > k

    def find_diverse(self, cursor: Cursor | None) -> tuple[list[Candidate], bool]:
        """Return the next k candidates by maximal marginal relevance, and whether there are more.

        They are chosen among the best 10 k candidates that were not shown yet, but at least 100 and at most k + 1,000.
        """
        k, shown = self._query.k, cursor.shown if cursor else ()
        pool = max(_MIN_POOL, min(_POOL_PER_HIT * k, k + _MAX_EXTRA_POOL))
        found = self._rank_candidates(pool, None, self._combined.excluded_pks | frozenset(shown))
        before = self._index.rows_of(np.array(shown, dtype=np.int64))
        taken = select_diverse(
            np.array([one.score for one in found]),
            *self._vectors(np.array([self._rows[one.video.pk] for one in found], dtype=np.int64)),
            (self._visual_line, self._text_line),
            self._query.diversity,
            k,
            self._vectors(before),
        )
        return [found[place] for place in taken], len(found) > k

    def _rank_candidates(self, limit: int, cursor: Cursor | None, excluded_pks: frozenset[int]) -> list[Candidate]:
        """Return the best `limit` candidates after the cursor, in order.

        The index is searched for more and more rows until the result is certain: until the last candidate scores higher
        than any row that was not found can score, or until all other rows are below `min_score`. Ties with the last
        candidate are therefore found, too, and decided by video id. Rows that an approximate index misses are not
        found.

        Args:
            limit: Number of candidates; fewer are returned if there are fewer.
            cursor: Start of the page; None for the first page.
            excluded_pks: Primary keys of videos to leave out.
        """
        count = limit + (cursor.offset if cursor else 0) + len(excluded_pks) + EXTRA_ROWS
        constant = self._visual_line.a * self._visual_line.b + self._text_line.a * self._text_line.b
        while True:
            rows, products = self._index.search(self._index_query, count, self._where)
            video_pks = self._index.video_pks(rows)
            kept = np.array([pk not in excluded_pks for pk in video_pks.tolist()], dtype=np.bool_)
            scored = self._score(rows[kept], video_pks[kept], limit, cursor)
            found = [one for one in scored if passes_filters(self._query, cursor, one)]
            found.sort(key=lambda one: sort_key(one.score, one.video.id))
            if len(rows) < count:
                return found[:limit]
            floor = float(products[-1]) - constant + margin_of(self._index_query)
            if (len(found) >= limit and found[limit - 1].score > floor) or rest_below_min_score(self._query, floor):
                return found[:limit]
            count *= 4

    def _score(self, rows: RowNumbers, video_pks: VideoPks, limit: int, cursor: Cursor | None) -> list[Candidate]:
        """Score rows exactly. Return those that can be among the best `limit` after the cursor, with their videos.

        The others are dropped before their videos are read, because reading database rows costs more than all
        arithmetic.
        """
        visual, text, has_text = self._index.layout.split(self._index.get(rows))
        visual_similarities = similarities_of(visual, self._combined.visual)
        text_similarities = np.where(has_text, similarities_of(text, self._combined.text_or_zero), self._text_line.mean)
        visual_parts, text_parts = self._visual_line(visual_similarities), self._text_line(text_similarities)
        scores = rounded(visual_parts + text_parts)
        may_be_hit = np.ones(len(scores), dtype=np.bool_)
        if cursor is not None and cursor.after is not None:
            may_be_hit = -scores >= cursor.after[0]
            limit += int(np.count_nonzero(-scores == cursor.after[0]))  # ties with the last hit: the id decides
        if np.count_nonzero(may_be_hit) > limit:
            may_be_hit &= scores >= -np.partition(-scores[may_be_hit], limit - 1)[limit - 1]
        self._rows |= zip(video_pks[may_be_hit].tolist(), rows[may_be_hit].tolist(), strict=True)
        videos = video_rows.videos_by_pk(self._connection, video_pks[may_be_hit].tolist())
        weights, written = self._combined.weights, self._combined.text is not None
        return [
            Candidate(
                video=videos[pk],
                score=float(visual_parts[n] + text_parts[n]),
                visual=Contribution(float(visual_similarities[n]), weights.video, float(visual_parts[n])),
                text=Contribution(
                    float(text_similarities[n]) if written else None,
                    weights.text,
                    float(text_parts[n]),
                    not has_text[n],
                ),
            )
            for n, pk in enumerate(video_pks.tolist())
            if may_be_hit[n]
        ]

    def _vectors(self, rows: RowNumbers) -> tuple[Numbers, Numbers]:
        """Return visual and text vectors of these rows, (N, D) float64; the mean if a caption is missing."""
        visual, text, has_text = self._index.layout.split(self._index.get(rows))
        whole = np.where(has_text[:, None], text, self._index.mean_text)
        return visual.astype(np.float64), whole.astype(np.float64)


def passes_filters(query: SearchQuery, cursor: Cursor | None, one: Candidate) -> bool:
    """Return whether a candidate reaches `min_score` and comes after the cursor."""
    if query.min_score is not None and one.score < query.min_score:
        return False
    if cursor is None or cursor.after is None:
        return True
    return sort_key(one.score, one.video.id, one.moment.frame if isinstance(one, Hit) else 0) > cursor.after


def rest_below_min_score(query: SearchQuery, floor: float) -> bool:
    """Return whether every row that was not found yet is below `min_score`. `floor` bounds their scores."""
    return query.min_score is not None and floor < query.min_score


def category_filter(scope: Scope, combined: CombinedQuery) -> CategoryFilter:
    """Return the category filter of a query.

    Raises InvalidInput if the modes `same` or `other` are used without a positive reference.
    """
    include: frozenset[str | None] | None = frozenset(map(normalised, scope.category)) or None
    exclude: frozenset[str | None] = frozenset(map(normalised, scope.exclude_category))
    if scope.category_mode != "any" and not combined.categories:
        raise InvalidInput("category_mode", "same and other need a reference video of the library")
    if scope.category_mode == "other":
        exclude |= combined.categories
    elif scope.category_mode == "same":
        include = combined.categories if include is None else include & combined.categories
    return CategoryFilter(include, exclude)


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
