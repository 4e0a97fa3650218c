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

from service.database import vector_rows, video_rows
from service.index.base import Searchable
from service.index.factory import VectorIndex
from service.models import Aggregation, Generation, Vectors, Video, VideoPks, Weights
from service.search.match import MATCHED_HITS, match_of
from service.search.query import MAX_DEPTH, Cursor, SearchQuery
from service.search.ranking import Line, Numbers, interval, lines, rounded, sort_key, spans
from service.search.results import Candidate, Contribution, Hit, Match, Moment, SearchResults
from service.search.scoring import (
    EXTRA_ROWS,
    CombinedQuery,
    VideoSearch,
    category_filter,
    margin_of,
    passes_filters,
    rest_below_min_score,
    similarities_of,
)

_FRAMES_PER_MOMENT = 4  # frames that are searched for each moment, at first
# For near-duplicates, at most: frames searched per video, nearest frames of each, videos proposed.
_MAX_COMPARED_FRAMES, _NEIGHBOURS_PER_FRAME, _MAX_CANDIDATES = 10, 256, 100


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

    def search(self, query: SearchQuery) -> SearchResults:
        """Run a query and return the best hits of the requested page.

        Library videos that are examples are never hits. If no example has a text vector, the text weight is 0.

        Raises:
            NotFound: A reference video does not exist.
            NotReady: A reference video has no vectors yet.
            InvalidInput: The query or its cursor is not valid.
            Gone: The cursor is outdated, because the model or a reference's vectors changed.
        """
        if query.group_by == "moment":
            return self._search_moments(query)
        with self._videos.current() as (index, connection):
            combined = CombinedQuery.from_query(connection, query, self.generation, self._aggregation)
            cursor = _read_cursor(query, combined)
            statistics = (
                cursor.statistics
                if cursor
                else index.similarity(combined.visual, combined.text_or_zero, deviations=query.fusion == "zscore")
            )
            video_search = VideoSearch(
                index, connection, combined, lines(statistics, combined.weights, query.fusion), query
            )
            found, more = video_search.find_diverse(cursor) if query.diversity else video_search.find_best(cursor)
            offset = cursor.offset if cursor else 0
            frames = vector_rows.vectors_of(connection, [one.video.pk for one in found], self.generation, "frame")
            moments = _best_moments(found, frames, combined.visual)
            hits = tuple(
                Hit(
                    video=one.video,
                    score=one.score,
                    visual=one.visual,
                    text=one.text,
                    rank=rank,
                    moment=moment,
                )
                for rank, (one, moment) in enumerate(zip(found, moments, strict=True), offset + 1)
            )
            next_cursor = None
            if more and found and offset + len(found) < MAX_DEPTH:
                shown = (*(cursor.shown if cursor else ()), *(one.video.pk for one in found))
                next_cursor = Cursor(
                    query.digest(),
                    combined.state,
                    statistics,
                    offset + len(found),
                    after=None if query.diversity else sort_key(found[-1].score, found[-1].video.id),
                    shown=shown if query.diversity else (),
                ).encode()
            match = None if cursor else _match(index, query, combined.weights, found)
        return SearchResults(hits, combined.weights, query.fusion, self.generation.id, index.exact, next_cursor, match)

    def near_duplicate_candidates(self, video: Video) -> list[Video]:
        """Return the candidates for near-duplicates of a video, the most likely first, at most 100.

        The videos with the most similar frames are returned. Frames are compared, not whole videos: the mean vector of
        a part of a clip, or of a clip with other parts added, differs from that of the clip.
        """
        nearest: dict[int, float] = {}
        with self._frames().current() as (index, connection):
            frames = vector_rows.vectors(connection, video.pk, self.generation, "frame")
            if frames is None:
                return []
            for frame in frames[:: -(-len(frames) // _MAX_COMPARED_FRAMES)]:
                rows, products = index.search(frame, _NEIGHBOURS_PER_FRAME)
                for pk, product in zip(index.video_pks(rows).tolist(), products.tolist(), strict=True):
                    nearest[pk] = max(product, nearest.get(pk, -1.0))
            nearest.pop(video.pk, None)
            candidate_pks = sorted(nearest, key=lambda pk: (-round(nearest[pk], 6), pk))[:_MAX_CANDIDATES]
            videos = video_rows.videos_by_pk(connection, candidate_pks)
        return [videos[pk] for pk in candidate_pks if pk in videos]

    def _search_moments(self, query: SearchQuery) -> SearchResults:
        """Search for moments.

        The search is repeated with four times as many frames until all moments of the page are certain.
        """
        with self._frames().current() as (index, connection):
            combined = CombinedQuery.from_query(connection, query, self.generation, self._aggregation)
            combined = replace(combined, text=None, weights=replace(combined.weights, text=0.0))
            cursor = _read_cursor(query, combined)
            statistics = cursor.statistics if cursor else index.similarity(combined.visual, combined.text_or_zero)
            visual_line, _ = lines(statistics, combined.weights, query.fusion)
            where = category_filter(query.scope, combined)
            limit, offset = query.k + 1, cursor.offset if cursor else 0
            count = _FRAMES_PER_MOMENT * (limit + offset) + EXTRA_ROWS
            index_query = (visual_line.a * combined.visual).astype(np.float32)
            while True:
                rows, products = index.search(index_query, count, where)
                whole = len(rows) < count
                # `floor` bounds the score of every frame that was not found. A moment whose best frame scores higher is
                # certain: every frame that is as good, of any video, was found too.
                floor = (
                    -np.inf if whole else float(products[-1]) - visual_line.a * visual_line.b + margin_of(index_query)
                )
                hits = sorted(
                    self._score_moments(connection, index.video_pks(rows), combined, visual_line, statistics[0][1]),
                    key=lambda hit: sort_key(hit.score, hit.video.id, hit.moment.frame),
                )
                hits = [hit for hit in hits if hit.score > floor and passes_filters(query, cursor, hit)]
                if len(hits) >= limit or whole or rest_below_min_score(query, floor):
                    break
                count *= 4
            page = tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits[: query.k], offset + 1))
            next_cursor = None
            if len(hits) > query.k and offset + len(page) < MAX_DEPTH:
                last = page[-1]
                after = sort_key(last.score, last.video.id, last.moment.frame)
                next_cursor = Cursor(
                    query.digest(), combined.state, statistics, offset + len(page), after=after
                ).encode()
        return SearchResults(page, combined.weights, query.fusion, self.generation.id, index.exact, next_cursor)

    def _score_moments(
        self, connection: sa.Connection, video_pks: VideoPks, combined: CombinedQuery, visual_line: Line, std: float
    ) -> Iterator[Hit]:
        """Yield every moment of these videos as a hit without a rank."""
        known = [pk for pk in dict.fromkeys(video_pks.tolist()) if pk not in combined.excluded_pks]
        videos = video_rows.videos_by_pk(connection, known)
        frames = vector_rows.vectors_of(connection, known, self.generation, "frame")
        for pk, vectors in frames.items():
            video = videos[pk]
            similarities = similarities_of(vectors, combined.visual)
            for span in spans(similarities, std):
                similarity = float(similarities[span.best])
                score = visual_line.a * (similarity - visual_line.b)
                start, end = interval(video.frame_times, span, video.duration_seconds)
                yield Hit(
                    rank=0,
                    score=score,
                    video=video,
                    visual=Contribution(similarity, combined.weights.video, score),
                    text=Contribution(None, 0.0, 0.0),
                    moment=Moment(video.frame_times[span.best], span.best, similarity, start, end),
                )


def _match(index: Searchable, query: SearchQuery, weights: Weights, found: list[Candidate]) -> Match | None:
    """Return how well the best candidate fits the query, which is one text; None for other queries."""
    if (noise := query.noise) is None:
        return None
    if not found:
        return Match("none", None)
    rows = index.rows_of(np.array([one.video.pk for one in found[:MATCHED_HITS]], dtype=np.int64))
    visual, text = weights.video > 0, weights.text > 0
    return match_of(query.vectors[0].visual, noise, index.get(rows), index.layout, visual=visual, text=text)


def _read_cursor(query: SearchQuery, combined: CombinedQuery) -> Cursor | None:
    """Read and check the query's cursor; None if there is none. Raises InvalidInput, Gone."""
    if query.cursor is None:
        return None
    cursor = Cursor.decode(query.cursor)
    cursor.check(query.digest(), combined.state)
    return cursor


def _best_moments(found: list[Candidate], frames: dict[int, Vectors], visual: Numbers) -> Iterator[Moment]:
    """Yield the best matching frame of each candidate, in order."""
    if not found:
        return
    counts = [len(frames[one.video.pk]) for one in found]
    all_similarities = similarities_of(np.concatenate([frames[one.video.pk] for one in found]), visual)
    for one, similarities in zip(found, np.split(all_similarities, np.cumsum(counts)[:-1]), strict=True):
        best = int(np.argmax(rounded(similarities)))
        yield Moment(one.video.frame_times[best], best, float(similarities[best]))
