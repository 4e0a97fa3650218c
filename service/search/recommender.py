"""Searches and recommendations: each query becomes one query vector and one search in the index.

A video has the visual vector v and the text vector t, the query has q_v and q_t. With the similarities s_v = <q_v, v>
and s_t = <q_t, t>, and the weights w_v and w_t, the score is

    score = a_v (s_v - b_v) + a_t (s_t - b_t)

    cosine:  a_m = w_m / (w_v + w_t)            b_m = 0
    zscore:  a_m = w_m / (w_v + w_t) / std_m    b_m = mean_m    (a_m = 0 if std_m < 1e-6)

for the modalities m = v, t. mean_m and std_m are the mean and the standard deviation of s_m over the library; for the
text, over the videos with a caption. Stored vectors have unit length, so s_m is a cosine similarity for one example.

Missing caption: the video counts as one of average text similarity, s_t = mean_t. This is neither a reward nor a
penalty; with zscore, the contribution of the text is 0.

Several examples: q_v is the weighted mean of their visual vectors, sum(w_i q_i) / sum(|w_i|), and q_t that of their
text vectors. Negative examples have a negative weight. The similarity is then the same mean of the single similarities.

The score is linear in v and t. The index therefore finds the best videos in one search by inner product:

    index row     x = [v ; t ; 0]        without a caption: [v ; 0 ; 1]
    query vector  q = [a_v q_v ; a_t q_t ; a_t mean_t]
    score         = <q, x> - (a_v b_v + a_t b_t)

The scores of the best candidates, with both contributions, are then computed again in double precision.

Moments are found in the same way in the index of all frames, with x = v. A caption says nothing about a single moment,
so only the visual similarity counts.
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

_FRAMES_PER_MOMENT = 4  # frames that are searched for each moment, at first
# For near-duplicates, at most: frames searched per video, nearest frames of each, videos proposed.
_LOOKS, _LOOKED_AT, _LOOKALIKES = 10, 256, 100


class Recommender:
    """Searches one library.

    `frames` is called when a search for moments first needs the index of all frames.
    """

    def __init__(self, videos: VectorIndex, frames: Callable[[], VectorIndex], aggregation: Aggregation) -> None:
        self._videos = videos
        self._frames = frames
        self._aggregation = aggregation

    @property
    def generation(self) -> Generation:
        """The generation that is searched."""
        return self._videos.generation

    def answer(self, question: SearchQuery) -> SearchResults:
        """Run a query and return the best hits of the requested page.

        Library videos that are examples are never hits. If no example has a text vector, the text weight is 0.

        Raises:
            NotFound: A reference video does not exist.
            NotReady: A reference video has no vectors yet.
            InvalidInput: The query or its cursor is not valid.
            Gone: The cursor is outdated, because the model or a reference's vectors changed.
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
        """Return the candidates for near-duplicates of a video, the most likely first, at most 100.

        The videos with the most similar frames are returned. Frames are compared, not whole videos: the mean vector of
        a part of a clip, or of a clip with other parts added, differs from that of the clip.
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
        """Search for moments.

        The search is repeated with four times as many frames until all moments of the page are certain.
        """
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
                # `floor` bounds the score of every frame that was not found. A moment whose best frame scores higher is
                # certain: every frame that is as good, of any video, was found too.
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
        """Yield every moment of these videos as a hit without a rank."""
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
    """Read and check the query's cursor; None if there is none. Raises InvalidInput, Gone."""
    if question.cursor is None:
        return None
    cursor = Cursor.read(question.cursor)
    cursor.check(question.digest(), target.state)
    return cursor


def _best_moments(found: list[Candidate], frames: dict[int, Vectors], picture: Numbers) -> Iterator[Moment]:
    """Yield the best matching frame of each candidate, in order."""
    if not found:
        return
    counts = [len(frames[one.video.key]) for one in found]
    together = similarities_of(np.concatenate([frames[one.video.key] for one in found]), picture)
    for one, similarities in zip(found, np.split(together, np.cumsum(counts)[:-1]), strict=True):
        best = int(np.argmax(rounded(similarities)))
        yield Moment(one.video.frame_times[best], best, float(similarities[best]))
