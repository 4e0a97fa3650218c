"""Measures of one query each, from vectors. All functions are pure and depend on NumPy only.

Scores are those of a search: the formulas stand in `service/search/recommender.py`. Here they are computed for many
queries at once, in blocks of float32 matrix products of some queries with all videos.

Ties are decided against the product: a relevant item is ranked after every other item whose score is the same or at
most `TIE_SIMILARITY` lower, in units of a cosine similarity. Matrix products of equal vectors can differ by less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.models import Flags, Fusion, Vectors, Weights

Rows = npt.NDArray[np.int64]
"""(N,) int64: row numbers of a catalogue."""
Numbers = npt.NDArray[np.float64]

TIE_SIMILARITY = 1e-6
NO_CATEGORY = -1
VISUAL, TEXT = Weights(1.0, 0.0), Weights(0.0, 1.0)
_SMALLEST_STD = 1e-6  # as in `service/search/ranking.py`
_CELLS = 4_000_000  # similarities in memory at a time: 16 MB for each modality


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Vectors of N videos in one generation.

    visual, text (N, D) float32: of unit length, text zero if `has_text` (N,) is False. categories (N,) int64: number of
    the category, `NO_CATEGORY` for none.
    """

    visual: Vectors
    text: Vectors
    has_text: Flags
    categories: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Q queries for one catalogue.

    visual, text (Q, D) float32: query vectors; `has_text` (Q,): whether the query has a text vector. own (Q,) int64:
    row of the video that a query stands for, -1 for none. hides: what a search may not use of that video: its caption,
    so that it counts as a video without one; the video, which is then never a hit; or nothing.
    """

    visual: Vectors
    text: Vectors
    has_text: Flags
    own: Rows
    hides: Literal["caption", "video", "nothing"]

    @classmethod
    def captions(cls, catalogue: Catalogue, rows: Rows) -> Queries:
        """Return the captions of these videos as queries in words; each caption is left out of the catalogue."""
        text = np.asarray(catalogue.text[rows])
        return cls(text, text, catalogue.has_text[rows], rows, "caption")

    @classmethod
    def videos(cls, catalogue: Catalogue, rows: Rows) -> Queries:
        """Return these videos as queries for similar videos; a video is never its own hit."""
        return cls(catalogue.visual[rows], catalogue.text[rows], catalogue.has_text[rows], rows, "video")

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, part: slice) -> Queries:
        return replace(
            self, visual=self.visual[part], text=self.text[part], has_text=self.has_text[part], own=self.own[part]
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """How similarities become a score."""

    weights: Weights
    fusion: Fusion


class Similarities:
    """Similarities of a block of B queries with all N videos, and the scores that follow."""

    def __init__(self, catalogue: Catalogue, queries: Queries) -> None:
        self._queries = queries
        self._visual = queries.visual @ catalogue.visual.T
        self._text = queries.text @ catalogue.text.T
        counted = np.full(len(queries), float(np.count_nonzero(catalogue.has_text)))
        self._visual_moments = _moments(self._visual, np.full(len(queries), float(len(catalogue.visual))))
        hidden = np.zeros(len(queries))
        self._each = np.arange(len(queries))
        if queries.hides == "caption":
            hidden = self._text[self._each, queries.own].astype(np.float64)
            counted -= catalogue.has_text[queries.own]
        self._text_moments = _moments(self._text, counted, hidden)
        mean = self._text_moments[0]
        self._text[:, ~catalogue.has_text] = mean[:, None]
        if queries.hides == "caption":
            self._text[self._each, queries.own] = mean

    def scores(self, setting: Setting) -> tuple[Vectors, Numbers]:
        """Return all scores, (B, N) float32, and for each query, (B,), the difference in score that counts as a tie.

        A video that is its own query has the score minus infinity if the query hides the video.
        """
        weights = setting.weights
        visual_slope = np.where(self._queries.has_text, weights.video / (weights.video + weights.text), 1.0)
        text_slope = 1.0 - visual_slope
        offset = np.zeros(len(visual_slope))
        if setting.fusion == "zscore":
            visual_slope = _divided(visual_slope, self._visual_moments[1])
            text_slope = _divided(text_slope, self._text_moments[1])
            offset = visual_slope * self._visual_moments[0] + text_slope * self._text_moments[0]
        found: Vectors = self._visual * visual_slope[:, None].astype(np.float32)
        if text_slope.any():
            found += self._text * text_slope[:, None].astype(np.float32)
        found -= offset[:, None].astype(np.float32)
        if self._queries.hides == "video":
            found[self._each, self._queries.own] = -np.inf
        return found, TIE_SIMILARITY * np.maximum(visual_slope + text_slope, _SMALLEST_STD)


def blocks(catalogue: Catalogue, queries: Queries) -> Iterator[tuple[slice, Similarities]]:
    """Yield the similarities of all queries, some queries at a time, so that memory is bounded."""
    step = max(1, _CELLS // max(1, len(catalogue.visual)))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        yield part, Similarities(catalogue, queries[part])


def own_ranks(catalogue: Catalogue, queries: Queries, settings: Sequence[Setting]) -> Numbers:
    """Return the rank, from 1, of each query's own video among all videos, (S, Q) float64 for S settings."""
    ranks = np.zeros((len(settings), len(queries)))
    for part, similarities in blocks(catalogue, queries):
        for number, setting in enumerate(settings):
            scores, tie = similarities.scores(setting)
            own = scores[np.arange(len(scores)), queries.own[part]]
            # The own video counts itself, which makes the best rank 1.
            ranks[number, part] = np.count_nonzero(scores >= (own - tie)[:, None], axis=1)
    return ranks


def own_precisions(
    catalogue: Catalogue, queries: Queries, settings: Sequence[Setting], ks: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return the share of the first k hits that have the category of the query's own video.

    The result is (S, K, Q) float64 for S settings and K values of k. In a library of fewer videos, a missing hit counts
    as one of another category.
    """
    found = np.zeros((len(settings), len(ks), len(queries)))
    deepest = min(max(ks), len(catalogue.visual) - 1)
    if deepest < 1:
        return found
    for part, similarities in blocks(catalogue, queries):
        relevant = catalogue.categories == catalogue.categories[queries.own[part], None]
        for number, setting in enumerate(settings):
            scores, tie = similarities.scores(setting)
            scores -= relevant * tie[:, None].astype(np.float32)
            best = best_first(scores, deepest)
            hits = np.take_along_axis(relevant, best, axis=1)
            for place, k in enumerate(ks):
                found[number, place, part] = hits[:, :k].sum(axis=1) / k
    return found


def best_first(scores: Vectors, count: int) -> Rows:
    """Return the columns of the greatest `count` scores of each row, (B, count), the greatest first."""
    if count >= scores.shape[1]:
        every: Rows = np.argsort(-scores, axis=1, kind="stable")
        return every[:, :count]
    best = np.argpartition(-scores, count, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    found: Rows = np.take_along_axis(best, order, axis=1)
    return found


def relevant_ranks(scores: Vectors, tie: float, relevant: Rows) -> Numbers:
    """Return the ranks, from 1, of the relevant videos of one query, ascending, (R,) float64.

    `scores` are those of all videos, (N,). `tie` is the difference in score that counts as a tie.
    """
    own = np.sort(scores[relevant])[::-1]
    others = np.ones(len(scores), dtype=np.bool_)
    others[relevant] = False
    before: Rows = (scores[others] >= own[:, None] - tie).sum(axis=1)
    return before + np.arange(1.0, len(own) + 1)


def recall(ranks: Numbers, k: int) -> Numbers:
    """Return 1 for each rank up to k, else 0."""
    return (ranks <= k).astype(np.float64)


def reciprocal(ranks: Numbers) -> Numbers:
    """Return 1 / rank; its mean over all queries is the MRR."""
    return 1.0 / ranks


def ndcg(ranks: Numbers, k: int) -> float:
    """Return the normalised discounted cumulative gain of one query's relevant videos, which have these ranks, at k.

    A relevant video at rank r up to k gains 1 / log2(r + 1). The sum is divided by that of the best possible ranks.
    """
    gain = (1.0 / np.log2(ranks[ranks <= k] + 1)).sum()
    ideal = (1.0 / np.log2(np.arange(1.0, min(len(ranks), k) + 1) + 1)).sum()
    return float(gain / ideal)


def evenly(count: int, wanted: int) -> Rows:
    """Return the numbers of `wanted` of `count` frames, spread evenly; all of them if there are no more."""
    if wanted >= count:
        return np.arange(count)
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


def at_least(queries: Vectors, vectors: Vectors, least: Numbers, own: Flags, starts: Rows | None = None) -> Numbers:
    """Return for each query, (Q,), how many of the others are at least as similar as `least` (Q,), ties included.

    Args:
        queries: Query vectors, (Q, D).
        vectors: Vectors to compare, (F, D).
        least: Similarity that is exceeded, (Q,).
        own: Which of the compared items is the query's own and does not count, (Q, N).
        starts: First vector of each compared item, (N,), if an item has several and is as similar as its best.
    """
    similarities = queries @ vectors.T
    if starts is not None:
        similarities = np.maximum.reduceat(similarities, starts, axis=1)
    counted: Numbers = ((similarities >= (least - TIE_SIMILARITY)[:, None]) & ~own).sum(axis=1).astype(np.float64)
    return counted


def _moments(similarities: Vectors, counts: Numbers, hidden: Numbers | None = None) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation of each row, (B,), over `counts` (B,) of its numbers; the others are zero.

    `hidden` (B,) is one number of each row that does not count.
    """
    total = similarities.sum(axis=1, dtype=np.float64)
    squares = np.einsum("bn,bn->b", similarities, similarities, dtype=np.float64, casting="same_kind")
    if hidden is not None:
        total, squares = total - hidden, squares - hidden**2
    counts = np.maximum(counts, 1)
    mean = total / counts
    return mean, np.sqrt(np.maximum(squares / counts - mean**2, 0.0))


def _divided(weight: Numbers, std: Numbers) -> Numbers:
    return np.where(std >= _SMALLEST_STD, weight / np.maximum(std, _SMALLEST_STD), 0.0)
