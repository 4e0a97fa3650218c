"""Every search and recommendation: one question, one query vector, one search. Knows no HTTP.

The score of a video for a question, per modality m with similarity s_m:

    score = sum over m of a_m (s_m - b_m)
        cosine:  a_m = w_m / (w_v + w_t),            b_m = 0
        zscore:  a_m = w_m / (w_v + w_t) / std_m,    b_m = mean_m     (a_m = 0 where std_m < 1e-6)

A video without a caption counts as one of average text similarity, s_t = mean_t, which is neither reward nor
punishment, and under zscore contributes 0. Several examples are one: the mean of their vectors, each with its weight,
those to be unlike subtracted; its similarity is the same mean of the single similarities. All of it is linear in
the stored vectors, so the index answers it in one search; the best candidates are then computed again in double
precision for the breakdown.

Moments are the same over the index of all frames. A caption says nothing of a moment: only what is seen counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa

from service.database import catalog, vector_rows
from service.domain import Aggregation, Categories, Fusion, Generation, Keys, Vectors, Video, Weights
from service.errors import InvalidInput, NotReady
from service.index.engines import Follows
from service.index.rows import Rows, Searchable
from service.search.question import MAX_DEPTH, Cursor, Question, Scope
from service.search.ranking import Line, Numbers, diverse, interval, lines, order, rounded, spans

_EXTRA = 32
_POOL = 10
_POOL_LEAST, _POOL_MORE = 100, 1000
_FRAMES_PER_MOMENT = 4
_LOOKS, _LOOKED_AT, _LOOKALIKES = 10, 256, 100


@dataclass(frozen=True, slots=True)
class Part:
    """What one modality added to a score. `similarity` is None where the question has no such vector."""

    similarity: float | None
    weight: float
    contribution: float
    imputed: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """The frame of a hit that answers best. Seconds from the clip's start; `start` and `end` of the neighbouring
    frames that answer nearly as well are known with group_by=moment only."""

    time: float
    frame: int
    similarity: float
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer; the contributions of its two parts add up to `score`."""

    rank: int
    score: float
    video: Video
    video_part: Part
    text_part: Part
    moment: Moment


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits, best first, and how they were found. `weights` are those that were used."""

    hits: tuple[Hit, ...]
    weights: Weights
    fusion: Fusion
    generation: str
    exact: bool
    next_cursor: str | None


class Recommender:
    """Answers questions about one library. `frames` gives the index of all frames when a moment is first asked for."""

    def __init__(self, videos: Follows, frames: Callable[[], Follows], aggregation: Aggregation) -> None:
        self._videos = videos
        self._frames = frames
        self._aggregation = aggregation

    @property
    def generation(self) -> Generation:
        """The generation that is searched."""
        return self._videos.generation

    def answer(self, question: Question) -> Answer:
        """The best hits of a page. A video that is an example is never a hit.

        Without a caption among the examples the text weight is 0. Raises NotFound, NotReady, InvalidInput, and Gone
        for a cursor whose question has another answer now.
        """
        if question.group_by == "moment":
            return self._moments(question)
        with self._videos.current() as (index, connection):
            target = _Target.of(connection, question, self.generation, self._aggregation)
            cursor = _cursor(question, target)
            statistics = (
                cursor.statistics
                if cursor
                else index.similarity(target.picture, target.words, deviations=question.fusion == "zscore")
            )
            search = _Search(index, connection, target, lines(statistics, target.weights, question.fusion), question)
            found, more = search.diverse(cursor) if question.diversity else search.best(cursor)
            offset = cursor.offset if cursor else 0
            frames = vector_rows.vectors_of(connection, [one.video.key for one in found], self.generation, "frame")
            hits = tuple(
                Hit(
                    rank=rank,
                    score=one.score,
                    video=one.video,
                    video_part=Part(one.seen, target.weights.video, one.seen_part),
                    text_part=Part(
                        None if target.caption is None else one.read, target.weights.text, one.read_part, one.imputed
                    ),
                    moment=moment,
                )
                for (rank, one), moment in zip(
                    enumerate(found, offset + 1), _best_moments(found, frames, target.picture), strict=True
                )
            )
            following = None
            if more and found and offset + len(found) < MAX_DEPTH:
                shown = (*(cursor.shown if cursor else ()), *(one.video.key for one in found))
                following = Cursor(
                    question.digest(),
                    target.state,
                    statistics,
                    offset + len(found),
                    after=None if question.diversity else order(found[-1].score, found[-1].video.id),
                    shown=shown if question.diversity else (),
                ).write()
        return Answer(hits, target.weights, question.fusion, self.generation.id, index.exact, following)

    def lookalikes(self, video: Video) -> list[Video]:
        """The videos with the frames that are most like this one's: who might be a copy of it, the likeliest first.

        Frames, not whole videos: a part of a clip, or one with other parts beside it, has another mean.
        """
        nearest: dict[int, float] = {}
        with self._frames().current() as (index, connection):
            frames = vector_rows.vectors(connection, video.key, self.generation, "frame")
            if frames is None:
                return []
            for frame in frames[:: -(-len(frames) // _LOOKS)]:
                rows, products = index.search(frame, _LOOKED_AT)
                for key, product in zip(index.keys(rows).tolist(), products.tolist(), strict=True):
                    nearest[key] = max(product, nearest.get(key, -1.0))
            nearest.pop(video.key, None)
            likeliest = sorted(nearest, key=lambda key: (-round(nearest[key], 6), key))[:_LOOKALIKES]
            videos = catalog.videos_by_key(connection, likeliest)
        return [videos[key] for key in likeliest if key in videos]

    def _moments(self, question: Question) -> Answer:
        with self._frames().current() as (index, connection):
            target = _Target.of(connection, question, self.generation, self._aggregation)
            target = replace(target, caption=None, weights=replace(target.weights, text=0.0))
            cursor = _cursor(question, target)
            statistics = cursor.statistics if cursor else index.similarity(target.picture, target.words)
            seen, _ = lines(statistics, target.weights, question.fusion)
            where = _where(question.scope, target)
            wanted, offset = question.k + 1, cursor.offset if cursor else 0
            count = _FRAMES_PER_MOMENT * (wanted + offset) + _EXTRA
            query = (seen.a * target.picture).astype(np.float32)
            while True:
                rows, products = index.search(query, count, where)
                whole = len(rows) < count
                # A moment is complete if its best frame is clearly better than the last that was found: then every
                # frame as good as that, of whatever video, was found too.
                floor = -np.inf if whole else float(products[-1]) - seen.a * seen.b + _margin(query)
                hits = sorted(
                    self._spans(connection, index.keys(rows), target, seen, statistics[0][1]),
                    key=lambda hit: order(hit.score, hit.video.id, hit.moment.frame),
                )
                hits = [hit for hit in hits if hit.score > floor and _wanted(question, cursor, hit)]
                if len(hits) >= wanted or whole or _below(question, floor):
                    break
                count *= 4
            page = tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits[: question.k], offset + 1))
            following = None
            if len(hits) > question.k and offset + len(page) < MAX_DEPTH:
                last = page[-1]
                after = order(last.score, last.video.id, last.moment.frame)
                following = Cursor(question.digest(), target.state, statistics, offset + len(page), after=after).write()
        return Answer(page, target.weights, question.fusion, self.generation.id, index.exact, following)

    def _spans(self, connection: sa.Connection, keys: Keys, target: _Target, seen: Line, std: float) -> Iterator[Hit]:
        """Every moment of these videos."""
        known = [key for key in dict.fromkeys(keys.tolist()) if key not in target.without]
        videos = catalog.videos_by_key(connection, known)
        frames = vector_rows.vectors_of(connection, known, self.generation, "frame")
        for key, vectors in frames.items():
            video = videos[key]
            similarities = _similarities(vectors, target.picture)
            for span in spans(similarities, std):
                similarity = float(similarities[span.best])
                score = seen.a * (similarity - seen.b)
                start, end = interval(video.frame_times, span, video.duration_seconds)
                yield Hit(
                    rank=0,
                    score=score,
                    video=video,
                    video_part=Part(similarity, target.weights.video, score),
                    text_part=Part(None, 0.0, 0.0),
                    moment=Moment(video.frame_times[span.best], span.best, similarity, start, end),
                )


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
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
        cls, connection: sa.Connection, question: Question, generation: Generation, aggregation: Aggregation
    ) -> _Target:
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


@dataclass(frozen=True, slots=True)
class _Found:
    """A candidate with what its score is made of."""

    video: Video
    row: int
    score: float
    seen: float
    read: float
    seen_part: float
    read_part: float
    imputed: bool


class _Search:
    """One search over videos, in one state of index and database."""

    def __init__(
        self, index: Searchable, connection: sa.Connection, target: _Target, both: tuple[Line, Line], question: Question
    ) -> None:
        self._index = index
        self._connection = connection
        self._target = target
        self._seen, self._read = both
        self._question = question
        self._where = _where(question.scope, target)
        neutral = np.array([self._read.a * self._read.mean])
        parts = (self._seen.a * target.picture, self._read.a * target.words, neutral)
        self._query: Vectors = np.concatenate(parts).astype(np.float32)

    def best(self, cursor: Cursor | None) -> tuple[list[_Found], bool]:
        """The best k behind the cursor, and whether there are more."""
        k = self._question.k
        found = self._ranked(k + 1, cursor, self._target.without)
        return found[:k], len(found) > k

    def diverse(self, cursor: Cursor | None) -> tuple[list[_Found], bool]:
        """The next k by maximal marginal relevance, among the best of several times as many."""
        k, shown = self._question.k, cursor.shown if cursor else ()
        pool = max(_POOL_LEAST, min(_POOL * k, k + _POOL_MORE))
        found = self._ranked(pool, None, self._target.without | frozenset(shown))
        before = self._index.rows_of(np.array(shown, dtype=np.int64))
        taken = diverse(
            np.array([one.score for one in found]),
            *self._vectors(np.array([one.row for one in found], dtype=np.int64)),
            (self._seen, self._read),
            self._question.diversity,
            k,
            self._vectors(before),
        )
        return [found[place] for place in taken], len(found) > k

    def _ranked(self, wanted: int, cursor: Cursor | None, without: frozenset[int]) -> list[_Found]:
        """The best `wanted` behind the cursor and whatever ties with the last of them, in order, and no more than
        `wanted` of those."""
        count = wanted + (cursor.offset if cursor else 0) + len(without) + _EXTRA
        constant = self._seen.a * self._seen.b + self._read.a * self._read.b
        while True:
            rows, products = self._index.search(self._query, count, self._where)
            keys = self._index.keys(rows)
            kept = np.array([key not in without for key in keys.tolist()], dtype=np.bool_)
            scored = self._scored(rows[kept], keys[kept], wanted, cursor)
            found = [one for one in scored if _wanted(self._question, cursor, one)]
            found.sort(key=lambda one: order(one.score, one.video.id))
            if len(rows) < count:
                return found[:wanted]
            floor = float(products[-1]) - constant + _margin(self._query)
            if (len(found) >= wanted and found[wanted - 1].score > floor) or _below(self._question, floor):
                return found[:wanted]
            count *= 4

    def _scored(self, rows: Rows, keys: Keys, wanted: int, cursor: Cursor | None) -> list[_Found]:
        """Those that can be among the best `wanted` behind the cursor, with their videos: reading rows costs more than
        all arithmetic."""
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        seen = _similarities(pictures, self._target.picture)
        read = np.where(captioned, _similarities(captions, self._target.words), self._read.mean)
        seen_parts, read_parts = self._seen(seen), self._read(read)
        scores = rounded(seen_parts + read_parts)
        likely = np.ones(len(scores), dtype=np.bool_)
        if cursor is not None and cursor.after is not None:
            likely = -scores >= cursor.after[0]
            wanted += int(np.count_nonzero(-scores == cursor.after[0]))  # of a tie with the last hit, ids decide
        if np.count_nonzero(likely) > wanted:
            likely &= scores >= -np.partition(-scores[likely], wanted - 1)[wanted - 1]
        videos = catalog.videos_by_key(self._connection, keys[likely].tolist())
        return [
            _Found(
                video=videos[key],
                row=row,
                score=float(seen_parts[n] + read_parts[n]),
                seen=float(seen[n]),
                read=float(read[n]),
                seen_part=float(seen_parts[n]),
                read_part=float(read_parts[n]),
                imputed=not captioned[n],
            )
            for n, (row, key) in enumerate(zip(rows.tolist(), keys.tolist(), strict=True))
            if likely[n]
        ]

    def _vectors(self, rows: Rows) -> tuple[Numbers, Numbers]:
        """Pictures and captions (N, D) in double precision, the mean caption where one is missing."""
        pictures, captions, captioned = self._index.layout.split(self._index.get(rows))
        whole = np.where(captioned[:, None], captions, self._index.mean_caption)
        return pictures.astype(np.float64), whole.astype(np.float64)


def _cursor(question: Question, target: _Target) -> Cursor | None:
    if question.cursor is None:
        return None
    cursor = Cursor.read(question.cursor)
    cursor.check(question.digest(), target.state)
    return cursor


def _wanted(question: Question, cursor: Cursor | None, one: _Found | Hit) -> bool:
    """Whether a hit is good enough, and stands behind the cursor."""
    if question.min_score is not None and one.score < question.min_score:
        return False
    if cursor is None or cursor.after is None:
        return True
    return order(one.score, one.video.id, one.moment.frame if isinstance(one, Hit) else 0) > cursor.after


def _below(question: Question, floor: float) -> bool:
    """Whether all that was not found yet is not wanted."""
    return question.min_score is not None and floor < question.min_score


def _where(scope: Scope, target: _Target) -> Categories:
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


def _similarities(vectors: Vectors, query: Numbers) -> Numbers:
    # Row by row in double precision: equal vectors get equal scores, wherever in a matrix they stand.
    products: Numbers = (vectors.astype(np.float64) * query).sum(axis=1)
    return products


def _margin(query: Vectors) -> float:
    """What single precision and the order of a sum can do to a product, generously."""
    return 1e-5 * max(1.0, float(np.linalg.norm(query)))


def _best_moments(found: list[_Found], frames: dict[int, Vectors], picture: Numbers) -> Iterator[Moment]:
    if not found:
        return
    counts = [len(frames[one.video.key]) for one in found]
    together = _similarities(np.concatenate([frames[one.video.key] for one in found]), picture)
    for one, similarities in zip(found, np.split(together, np.cumsum(counts)[:-1]), strict=True):
        best = int(np.argmax(rounded(similarities)))
        yield Moment(one.video.frame_times[best], best, float(similarities[best]))
