"""Every search and recommendation: one question, one query vector, one search. Knows no HTTP.

The score of a video for a question, per modality m with similarity s_m:

    score = sum over m of a_m (s_m - b_m)
        cosine:  a_m = w_m / (w_v + w_t),            b_m = 0
        zscore:  a_m = w_m / (w_v + w_t) / std_m,    b_m = mean_m     (a_m = 0 where std_m < 1e-6)

A video without a caption counts as one of average text similarity, s_t = mean_t, which is neither reward nor
punishment, and under zscore contributes 0. All of it is linear in the stored vectors, so the index answers it
exactly in one search; the best candidates are then computed again in double precision for the breakdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa

from service import catalog
from service.db import Database
from service.domain import (
    Aggregation,
    CategoryMode,
    Fusion,
    Generation,
    Keys,
    Vectors,
    Video,
    Weights,
    check_k,
)
from service.embedder import Embedder
from service.errors import InvalidInput, NotReady, Unavailable
from service.follower import Follower
from service.index import VectorIndex

_SMALLEST_STD = 1e-6
_EXTRA = 32
_NO_KEYS: Keys = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which videos may be answered. `same` and `other` are relative to the query video's category."""

    category: tuple[str, ...] = ()
    exclude_category: tuple[str, ...] = ()
    category_mode: CategoryMode = "any"


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Part:
    """What one modality added to a score. `similarity` is None where the question has no such vector."""

    similarity: float | None
    weight: float
    contribution: float
    imputed: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """The frame of a hit that answers best. `time` is seconds from the clip's start."""

    time: float
    frame: int
    similarity: float


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


@dataclass(frozen=True, slots=True)
class _Line:
    """The score of one modality: a (s - b), and what a missing caption counts as."""

    a: float
    b: float
    mean: float


class Recommender:
    """Answers questions about one library."""

    def __init__(
        self, db: Database, follower: Follower, aggregation: Aggregation, embedder: Callable[[], Embedder]
    ) -> None:
        self._db = db
        self._follower = follower
        self._aggregation = aggregation
        self._embedder = embedder

    @property
    def generation(self) -> Generation:
        """The generation that is searched."""
        return self._follower.generation

    def like_video(
        self,
        video_id: str,
        *,
        weights: Weights,
        fusion: Fusion = "cosine",
        k: int = 10,
        scope: Scope = EVERYWHERE,
    ) -> Answer:
        """The videos most like one in the catalogue, itself not among them.

        Without a caption the text weight is 0. Raises NotFound, NotReady, InvalidInput.
        """
        with self._db.read() as connection:
            video = catalog.video(connection, video_id)
            picture = catalog.vectors(connection, video.key, self.generation, self._aggregation)
            caption = catalog.vectors(connection, video.key, self.generation, "text")
        if video.status != "ready" or picture is None:
            raise NotReady(video.id, video.status)
        return self._answer(
            picture[0],
            None if caption is None else caption[0],
            weights=weights,
            fusion=fusion,
            k=k,
            scope=scope,
            own_category=(video.category,),
            without=np.array([video.key], dtype=np.int64),
        )

    def like_vectors(
        self,
        picture: Vectors,
        caption: Vectors | None,
        *,
        weights: Weights,
        fusion: Fusion = "cosine",
        k: int = 10,
        scope: Scope = EVERYWHERE,
    ) -> Answer:
        """The videos most like a clip that is not in the catalogue, by its vectors (D,)."""
        return self._answer(picture, caption, weights=weights, fusion=fusion, k=k, scope=scope)

    def by_text(
        self,
        query: str,
        *,
        weights: Weights,
        fusion: Fusion = "zscore",
        k: int = 10,
        scope: Scope = EVERYWHERE,
    ) -> Answer:
        """The videos that show, or whose captions say, what the query says. Raises InvalidInput, Unavailable."""
        if not query.strip():
            raise InvalidInput("query", "must not be empty")
        embedder = self._embedder()
        if embedder.generation.id != self.generation.id:
            raise Unavailable("the library is being moved to another model; try again later")
        vector = embedder.embed_texts([query])[0]
        return self._answer(vector, vector, weights=weights, fusion=fusion, k=k, scope=scope)

    def _answer(
        self,
        picture: Vectors,
        caption: Vectors | None,
        *,
        weights: Weights,
        fusion: Fusion,
        k: int,
        scope: Scope,
        own_category: tuple[str | None] | None = None,
        without: Keys = _NO_KEYS,
    ) -> Answer:
        check_k(k)
        if caption is None:
            if weights.video == 0:
                raise InvalidInput(
                    "video_weight",
                    "the query video has no caption, so a video_weight of 0 leaves nothing to compare",
                )
            weights = replace(weights, text=0.0)
        words = np.zeros_like(picture) if caption is None else caption
        with self._follower.current() as index, self._db.read() as connection:
            lines = _lines(index, picture, words, weights, fusion)
            only = _keys_in_scope(connection, scope, own_category)
            keys, pictures, captions, flags = _candidates(index, picture, words, lines, k, only, without)
            videos = catalog.videos_by_key(connection, keys.tolist())
            # A video that went, or is embedded anew, since the index's look at the database is no answer.
            ready = {key for key, video in videos.items() if video.status == "ready"}
            here = np.array([key in ready for key in keys.tolist()], dtype=bool)
            keys, flags = keys[here], flags[here]
            seen, read = _similarities(pictures[here], captions[here], flags, picture, words, lines)
            parts = [line.a * (similarity - line.b) for line, similarity in zip(lines, (seen, read), strict=True)]
            scores = parts[0] + parts[1]
            order = sorted(range(len(keys)), key=lambda i: (-round(float(scores[i]), 9), videos[int(keys[i])].id))[:k]
            frames = catalog.vectors_of(connection, keys[order].tolist(), self.generation, "frame")
            exact = index.exact
        hits: list[Hit] = []
        for i in order:
            video = videos[int(keys[i])]
            text_similarity = None if caption is None else float(read[i])
            hits.append(
                Hit(
                    rank=len(hits) + 1,
                    score=float(scores[i]),
                    video=video,
                    video_part=Part(float(seen[i]), weights.video, float(parts[0][i])),
                    text_part=Part(text_similarity, weights.text, float(parts[1][i]), bool(flags[i])),
                    moment=_moment(frames[video.key], picture, video),
                )
            )
        return Answer(tuple(hits), weights, fusion, self.generation.id, exact)


def _lines(
    index: VectorIndex, picture: Vectors, words: Vectors, weights: Weights, fusion: Fusion
) -> tuple[_Line, _Line]:
    statistics = index.similarity(picture, words)
    total = weights.video + weights.text
    lines = []
    for (mean, std), weight in zip(statistics, (weights.video, weights.text), strict=True):
        if fusion == "zscore":
            lines.append(_Line(weight / total / std if std >= _SMALLEST_STD else 0.0, mean, mean))
        else:
            lines.append(_Line(weight / total, 0.0, mean))
    return lines[0], lines[1]


def _keys_in_scope(connection: sa.Connection, scope: Scope, own_category: tuple[str | None] | None) -> Keys | None:
    include: Sequence[str | None] | None = scope.category or None
    exclude: tuple[str | None, ...] = scope.exclude_category
    if scope.category_mode != "any":
        if own_category is None:
            raise InvalidInput("category_mode", "same and other need a query video that is in the catalogue")
        if scope.category_mode == "other":
            exclude = (*exclude, *own_category)
        elif include is None or own_category[0] in include:
            include = own_category
        else:
            return _NO_KEYS
    if include is None and not exclude:
        return None
    return catalog.keys_in_categories(connection, include=include, exclude=exclude)


def _candidates(
    index: VectorIndex,
    picture: Vectors,
    words: Vectors,
    lines: tuple[_Line, _Line],
    k: int,
    only: Keys | None,
    without: Keys,
) -> tuple[Keys, Vectors, Vectors, Vectors]:
    """The best k and whatever ties with the last of them, so that ties can be broken by id."""
    seen, read = lines
    query = np.concatenate([seen.a * picture, read.a * words, [read.a * read.mean]]).astype(np.float32)
    count = k + _EXTRA
    while True:
        keys, products = index.search(query, count, only=only, without=without)
        # What single precision and the order of a sum can do to a product, generously.
        margin = 1e-5 * max(1.0, float(np.linalg.norm(query)))
        if len(keys) < count or products[k - 1] - products[-1] > margin:
            return keys, *index.get(keys)
        count *= 4


def _similarities(
    pictures: Vectors,
    captions: Vectors,
    flags: Vectors,
    picture: Vectors,
    words: Vectors,
    lines: tuple[_Line, _Line],
) -> tuple[np.ndarray, np.ndarray]:
    # Row by row in double precision: equal vectors get equal scores, wherever in a matrix they stand.
    seen = (pictures.astype(np.float64) * picture.astype(np.float64)).sum(axis=1)
    read = (captions.astype(np.float64) * words.astype(np.float64)).sum(axis=1)
    return seen, np.where(flags > 0, lines[1].mean, read)


def _moment(frames: Vectors, picture: Vectors, video: Video) -> Moment:
    similarities = frames.astype(np.float64) @ picture.astype(np.float64)
    best = int(np.argmax(similarities))
    return Moment(time=video.frame_times[best], frame=best, similarity=float(similarities[best]))
