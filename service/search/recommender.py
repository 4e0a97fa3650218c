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

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import sqlalchemy as sa

from service.database import catalog, vector_rows
from service.index.factory import VectorIndex
from service.models import Aggregation, Generation, Keys, Vectors, Video
from service.search.answers import Candidate, Hit, Moment, Part, SearchResults
from service.search.query import MAX_DEPTH, Cursor, SearchQuery
from service.search.ranking import Line, Numbers, interval, lines, order, rounded, spans
from service.search.scoring import EXTRA, Search, Target, below, is_wanted, margin_of, similarities_of, where_of

_FRAMES_PER_MOMENT = 4
_LOOKS, _LOOKED_AT, _LOOKALIKES = 10, 256, 100


class Recommender:
    """Answers questions about one library. `frames` gives the index of all frames when a moment is first asked for."""

    def __init__(self, videos: VectorIndex, frames: Callable[[], VectorIndex], aggregation: Aggregation) -> None:
        self._videos = videos
        self._frames = frames
        self._aggregation = aggregation

    @property
    def generation(self) -> Generation:
        """The generation that is searched."""
        return self._videos.generation

    def answer(self, question: SearchQuery) -> SearchResults:
        """The best hits of a page. A video that is an example is never a hit.

        Without a caption among the examples the text weight is 0. Raises NotFound, NotReady, InvalidInput, and Gone
        for a cursor whose question has another answer now.
        """
        if question.group_by == "moment":
            return self._moments(question)
        with self._videos.current() as (index, connection):
            target = Target.of(connection, question, self.generation, self._aggregation)
            cursor = _cursor(question, target)
            statistics = (
                cursor.statistics
                if cursor
                else index.similarity(target.picture, target.words, deviations=question.fusion == "zscore")
            )
            search = Search(index, connection, target, lines(statistics, target.weights, question.fusion), question)
            found, more = search.diverse(cursor) if question.diversity else search.best(cursor)
            offset = cursor.offset if cursor else 0
            frames = vector_rows.vectors_of(connection, [one.video.key for one in found], self.generation, "frame")
            moments = _best_moments(found, frames, target.picture)
            hits = tuple(
                Hit(
                    video=one.video,
                    score=one.score,
                    video_part=one.video_part,
                    text_part=one.text_part,
                    rank=rank,
                    moment=moment,
                )
                for rank, (one, moment) in enumerate(zip(found, moments, strict=True), offset + 1)
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
        return SearchResults(hits, target.weights, question.fusion, self.generation.id, index.exact, following)

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

    def _moments(self, question: SearchQuery) -> SearchResults:
        with self._frames().current() as (index, connection):
            target = Target.of(connection, question, self.generation, self._aggregation)
            target = replace(target, caption=None, weights=replace(target.weights, text=0.0))
            cursor = _cursor(question, target)
            statistics = cursor.statistics if cursor else index.similarity(target.picture, target.words)
            seen, _ = lines(statistics, target.weights, question.fusion)
            where = where_of(question.scope, target)
            wanted, offset = question.k + 1, cursor.offset if cursor else 0
            count = _FRAMES_PER_MOMENT * (wanted + offset) + EXTRA
            query = (seen.a * target.picture).astype(np.float32)
            while True:
                rows, products = index.search(query, count, where)
                whole = len(rows) < count
                # A moment is complete if its best frame is clearly better than the last that was found: then every
                # frame as good as that, of whatever video, was found too.
                floor = -np.inf if whole else float(products[-1]) - seen.a * seen.b + margin_of(query)
                hits = sorted(
                    self._spans(connection, index.keys(rows), target, seen, statistics[0][1]),
                    key=lambda hit: order(hit.score, hit.video.id, hit.moment.frame),
                )
                hits = [hit for hit in hits if hit.score > floor and is_wanted(question, cursor, hit)]
                if len(hits) >= wanted or whole or below(question, floor):
                    break
                count *= 4
            page = tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits[: question.k], offset + 1))
            following = None
            if len(hits) > question.k and offset + len(page) < MAX_DEPTH:
                last = page[-1]
                after = order(last.score, last.video.id, last.moment.frame)
                following = Cursor(question.digest(), target.state, statistics, offset + len(page), after=after).write()
        return SearchResults(page, target.weights, question.fusion, self.generation.id, index.exact, following)

    def _spans(self, connection: sa.Connection, keys: Keys, target: Target, seen: Line, std: float) -> Iterator[Hit]:
        """Every moment of these videos."""
        known = [key for key in dict.fromkeys(keys.tolist()) if key not in target.without]
        videos = catalog.videos_by_key(connection, known)
        frames = vector_rows.vectors_of(connection, known, self.generation, "frame")
        for key, vectors in frames.items():
            video = videos[key]
            similarities = similarities_of(vectors, target.picture)
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


def _cursor(question: SearchQuery, target: Target) -> Cursor | None:
    if question.cursor is None:
        return None
    cursor = Cursor.read(question.cursor)
    cursor.check(question.digest(), target.state)
    return cursor


def _best_moments(found: list[Candidate], frames: dict[int, Vectors], picture: Numbers) -> Iterator[Moment]:
    if not found:
        return
    counts = [len(frames[one.video.key]) for one in found]
    together = similarities_of(np.concatenate([frames[one.video.key] for one in found]), picture)
    for one, similarities in zip(found, np.split(together, np.cumsum(counts)[:-1]), strict=True):
        best = int(np.argmax(rounded(similarities)))
        yield Moment(one.video.frame_times[best], best, float(similarities[best]))
