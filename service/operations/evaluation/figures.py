"""Figures of one generation: which videos are queries, and what is measured for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sqlalchemy as sa

from service.models import Aggregation, Flags, Fusion, Generation, Weights
from service.operations.evaluation.bootstrap import Bootstrap, Interval
from service.operations.evaluation.library import Common, frame_pages, sample_rows
from service.operations.evaluation.measures import (
    NO_CATEGORY,
    TEXT,
    VISUAL,
    Catalogue,
    Numbers,
    Queries,
    Rows,
    Setting,
    at_least,
    best_first,
    evenly,
    own_precisions,
    own_ranks,
    recall,
    reciprocal,
)

Measure = Literal["captions", "categories", "moments", "queries", "copies"]
Ranking = Literal["visual", "text", "fused", "pixels"]

SAMPLE = 2_000
"""Videos that are queries, at most, unless another number is given."""
DEFAULT_WEIGHTS = Weights(0.7, 0.3)
_RECALLS = (1, 5, 10)
_WORST_HITS = 5
_MOMENT_RECALLS = (1, 5)
_PRECISIONS = (5, 10)


@dataclass(frozen=True, slots=True)
class Options:
    """What is evaluated.

    Attributes:
        weights: Weights of the fused rankings.
        fusion: Fusion of the fused rankings; None for that of the product, which is zscore for queries in words and
            cosine between videos.
        aggregation: Aggregation of the visual vectors.
        sample: Videos that are queries, at most.
        candidates: Videos that are ranked, at most; None for all.
        seed: Seed of the samples and of the intervals.
        curves: Whether to compute the curves.
        worst: Number of the worst queries to return with their best hits.
    """

    weights: Weights = DEFAULT_WEIGHTS
    fusion: Fusion | None = None
    aggregation: Aggregation = "mean"
    sample: int = SAMPLE
    candidates: int | None = None
    seed: int = 0
    curves: bool = False
    worst: int = 0

    def fused(self, fusion: Fusion) -> Setting:
        """Return the setting of the fused ranking, whose default fusion is `fusion`."""
        return Setting(self.weights, self.fusion or fusion)


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean of a measure over its queries, or the difference of two generations in it.

    `left_out` is the number of videos that cannot be such a query. `chance` is what a random ranking reaches on
    average; None if that is not known.
    """

    measure: Measure
    ranking: Ranking
    name: str
    interval: Interval
    queries: int
    left_out: int
    chance: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Values of one measure in one ranking: `values` (Q, M) has a row for each query and a column for each name."""

    measure: Measure
    ranking: Ranking
    names: tuple[str, ...]
    values: Numbers
    left_out: int
    chances: tuple[float | None, ...]

    def figures(self, bootstrap: Bootstrap) -> Iterator[Figure]:
        """Yield the figure of each name."""
        columns = zip(self.names, bootstrap.intervals(self.values), self.chances, strict=True)
        for name, interval, chance in columns:
            yield Figure(self.measure, self.ranking, name, interval, len(self.values), self.left_out, chance)

    def differences(self, base: Group, bootstrap: Bootstrap) -> Iterator[Figure]:
        """Yield the difference of each figure from that of `base`, which has the same queries."""
        intervals = bootstrap.intervals(self.values - base.values)
        for name, interval in zip(self.names, intervals, strict=True):
            yield Figure(self.measure, self.ranking, name, interval, len(self.values), self.left_out)


def caption_rows(catalogue: Catalogue, sample: int, seed: int) -> Rows:
    """Return the videos whose captions are queries."""
    return sample_rows(np.flatnonzero(catalogue.has_text), sample, seed)


def captions(catalogue: Catalogue, rows: Rows, options: Options) -> tuple[list[Group], Numbers]:
    """Measure how well the captions of these videos find their own clips; return the visual ranks, too.

    The caption itself is left out of the ranking: its clip counts as a video without a caption. Otherwise, the query
    would find itself.
    """
    queries = Queries.captions(catalogue, rows)
    ranks = own_ranks(catalogue, queries, [Setting(VISUAL, "cosine"), options.fused("zscore")])
    left_out, candidates = int(np.count_nonzero(~catalogue.has_text)), len(catalogue.visual)
    groups = [
        rank_group("captions", "visual", ranks[0], _RECALLS, left_out, candidates),
        rank_group("captions", "fused", ranks[1], _RECALLS, left_out, candidates),
    ]
    return groups, ranks[0]


@dataclass(frozen=True, slots=True)
class Worst:
    """Caption that finds its own clip badly by picture: primary key and rank of the clip, and the best hits.

    Each hit is the primary key of a video and the similarity of its frames with the caption. The clip has the
    similarity `similarity`.
    """

    video_pk: int
    rank: int
    similarity: float
    hits: tuple[tuple[int, float], ...]


def worst_captions(catalogue: Catalogue, common: Common, rows: Rows, ranks: Numbers, count: int) -> tuple[Worst, ...]:
    """Return the captions whose own clips have the worst visual ranks, at most `count`, without those at rank 1.

    `ranks` (Q,) are the visual ranks of the clips in `rows` (Q,).
    """
    order = np.argsort(-ranks, kind="stable")[:count]
    order = order[ranks[order] > 1]
    found = []
    for row, rank in zip(rows[order].tolist(), ranks[order].tolist(), strict=True):
        similarities = catalogue.visual @ catalogue.text[row]
        best = best_first(similarities[None], _WORST_HITS)[0]
        hits = tuple((int(common.video_pks[hit]), float(similarities[hit])) for hit in best.tolist())
        found.append(Worst(int(common.video_pks[row]), int(rank), float(similarities[row]), hits))
    return tuple(found)


def categories(catalogue: Catalogue, options: Options) -> list[Group]:
    """Measure how many of a video's nearest neighbours have its category.

    Videos without a category, or alone in theirs, are left out; so are videos without a caption in the ranking by text.
    """
    sizes = np.bincount(catalogue.categories[catalogue.categories != NO_CATEGORY], minlength=1)
    measurable = (catalogue.categories != NO_CATEGORY) & (sizes[catalogue.categories] > 1)
    names = tuple(f"precision@{k}" for k in _PRECISIONS)
    visual, text, fused = Setting(VISUAL, "cosine"), Setting(TEXT, "cosine"), options.fused("cosine")
    captioned = measurable & catalogue.has_text
    found: dict[Ranking, Group] = {}
    # Rankings of the same videos together, because the similarities take longest.
    parts: list[tuple[Flags, dict[Ranking, Setting]]] = [
        (measurable, {"visual": visual} if fused.weights.video == 0 else {"visual": visual, "fused": fused}),
        (captioned, {"text": text, "fused": fused} if fused.weights.video == 0 else {"text": text}),
    ]
    for usable, settings in parts:
        rows = sample_rows(np.flatnonzero(usable), options.sample, options.seed)
        values = own_precisions(catalogue, Queries.videos(catalogue, rows), list(settings.values()), _PRECISIONS)
        others = sizes[catalogue.categories[rows]] - 1
        chance = float(others.mean()) / (len(usable) - 1) if len(rows) else None
        left_out = int(np.count_nonzero(~usable))
        for ranking, precisions in zip(settings, values, strict=True):
            found[ranking] = Group("categories", ranking, names, precisions.T, left_out, (chance,) * len(names))
    return [found["visual"], found["text"], found["fused"]]


def moments(connection: sa.Connection, generation: Generation, common: Common, options: Options) -> Group:
    """Measure how well single frames find their own clips among the other frames.

    A clip is as similar as its most similar frame; the query itself is left out. A query is one frame of a clip, or
    several in a small library, whose values are averaged: the frames of a clip are not independent. Clips with one
    frame are left out.
    """
    queries, least, owners = _frames_as_queries(connection, generation, common, options)
    ranks = np.ones(len(owners))
    for page in frame_pages(connection, generation, common) if len(owners) else ():
        ranks += at_least(queries, page.frames, least, owners[:, None] == page.rows, page.starts)
    clips, place = np.unique(owners, return_inverse=True)
    whole = rank_group("moments", "visual", ranks, _MOMENT_RECALLS, 0, len(common.video_pks))
    sums = [np.bincount(place, column, len(clips)) for column in whole.values.T]
    values = np.stack(sums, axis=1) / np.bincount(place, minlength=len(clips))[:, None]
    sampled = min(options.sample, len(common.video_pks))
    return Group("moments", "visual", whole.names, values, sampled - len(clips), whole.chances)


def rank_group(
    measure: Measure, ranking: Ranking, ranks: Numbers, ks: Sequence[int], left_out: int, candidates: int
) -> Group:
    """Return recall at each k, and the reciprocal rank, of queries with one relevant video each. `ranks` is (Q,)."""
    names = (*(f"recall@{k}" for k in ks), "mrr")
    values = np.stack([*(recall(ranks, k) for k in ks), reciprocal(ranks)], axis=1)
    every = np.arange(1.0, max(candidates, 1) + 1)
    chances = (*(float(recall(every, k).mean()) for k in ks), float(reciprocal(every).mean()))
    return Group(measure, ranking, names, values, left_out, chances)


def _frames_as_queries(
    connection: sa.Connection, generation: Generation, common: Common, options: Options
) -> tuple[np.ndarray, Numbers, Rows]:
    """Return frames as queries, (Q, D), the similarity of each to its own clip, (Q,), and that clip's row, (Q,)."""
    rows = sample_rows(np.arange(len(common.video_pks)), options.sample, options.seed)
    each = max(1, options.sample // max(1, len(rows)))
    vectors, least, owners = [np.zeros((0, generation.dimension), np.float32)], [np.zeros(0)], []
    for page in frame_pages(connection, generation, common, rows):
        for row, frames in zip(page.rows.tolist(), np.split(page.frames, page.starts[1:]), strict=True):
            if len(frames) < 2:
                continue
            chosen = evenly(len(frames), each)
            similarities = (frames[chosen] @ frames.T).astype(np.float64)
            similarities[np.arange(len(chosen)), chosen] = -np.inf
            vectors.append(frames[chosen])
            least.append(similarities.max(axis=1))
            owners += [row] * len(chosen)
    return np.concatenate(vectors), np.concatenate(least), np.array(owners, dtype=np.int64)
