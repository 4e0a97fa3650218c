"""Figures over weights, fusions, aggregations and numbers of frames, from stored vectors; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from service.models import Aggregation, Fusion, Generation, Vectors, Weights
from service.operations.evaluation.bootstrap import Bootstrap, Interval
from service.operations.evaluation.figures import Measure, Options, caption_rows
from service.operations.evaluation.library import (
    Common,
    FramePage,
    frame_pages,
    read_catalogue,
    read_texts,
    sample_rows,
)
from service.operations.evaluation.measures import (
    NO_CATEGORY,
    VISUAL,
    Numbers,
    Queries,
    Setting,
    at_least,
    evenly,
    own_precisions,
    own_ranks,
    recall,
    reciprocal,
)
from service.vectors import normalise

AGGREGATIONS: tuple[Aggregation, ...] = ("mean", "max")
FUSIONS: tuple[Fusion, ...] = ("cosine", "zscore")
MAX_QUERIES = 500
"""Videos that are queries of a curve, at most: a curve has many points, and its shape counts."""
_STEPS = 10
_K = 5
_FRAME_COUNTS = (1, 2, 3, 5, 8, 10, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class Point:
    """Point of a curve: one figure in one configuration. `frames` is None if all stored frames are used."""

    curve: str
    aggregation: Aggregation
    fusion: Fusion
    weights: Weights
    frames: int | None
    measure: Measure
    name: str
    interval: Interval
    queries: int


def weight_curves(connection: sa.Connection, generation: Generation, common: Common, options: Options) -> list[Point]:
    """Return figures over the visual weight from 0 to 1, for each aggregation and fusion.

    Captions begin above 0: with the weight 0, their own clips would be ranked without either modality.
    """
    bootstrap, found = Bootstrap(options.seed), []
    sample = min(options.sample, MAX_QUERIES)
    grid = [Weights(step / _STEPS, (_STEPS - step) / _STEPS) for step in range(_STEPS + 1)]
    for aggregation in AGGREGATIONS:
        catalogue = read_catalogue(connection, generation, common, aggregation)
        sizes = np.bincount(common.categories[common.categories != NO_CATEGORY], minlength=1)
        # With a caption, so that every point has the same queries.
        usable = (common.categories != NO_CATEGORY) & (sizes[common.categories] > 1) & common.has_text
        rows = sample_rows(np.flatnonzero(usable), sample, options.seed)
        settings = [Setting(weights, fusion) for fusion in FUSIONS for weights in grid]
        if len(rows):
            precisions = own_precisions(catalogue, Queries.videos(catalogue, rows), settings, (_K,))[:, 0]
            found += _points(aggregation, settings, precisions, "categories", f"precision@{_K}", bootstrap)
        rows = caption_rows(catalogue, sample, options.seed)
        settings = [one for one in settings if one.weights.video > 0]
        if len(rows):
            ranks = own_ranks(catalogue, Queries.captions(catalogue, rows), settings)
            found += _points(aggregation, settings, recall(ranks, _K), "captions", f"recall@{_K}", bootstrap)
            found += _points(aggregation, settings, reciprocal(ranks), "captions", "mrr", bootstrap)
    return found


def frame_curve(connection: sa.Connection, generation: Generation, common: Common, options: Options) -> list[Point]:
    """Return how well captions find their clips by picture if fewer of the stored frames are used, evenly taken.

    A clip with fewer frames uses all that it has. The last point uses all frames of every clip.
    """
    rows = sample_rows(np.flatnonzero(common.has_text), min(options.sample, MAX_QUERIES), options.seed)
    if not len(rows):
        return []
    queries = read_texts(connection, generation, common, rows)
    own_pages = list(frame_pages(connection, generation, common, rows))
    most = max(int(np.diff([*page.starts, len(page.frames)]).max()) for page in own_pages)
    counts = [count for count in _FRAME_COUNTS if count < most] + [most]
    configurations = [(aggregation, count) for aggregation in AGGREGATIONS for count in counts]
    least = np.zeros((len(configurations), len(rows)))
    for page in own_pages:
        places = np.searchsorted(rows, page.rows)
        for number, (aggregation, count) in enumerate(configurations):
            least[number, places] = (queries[places] * fewer(page, count, aggregation)).sum(axis=1)
    ranks = np.ones(least.shape)
    for page in frame_pages(connection, generation, common):
        own = rows[:, None] == page.rows
        for number, (aggregation, count) in enumerate(configurations):
            ranks[number] += at_least(queries, fewer(page, count, aggregation), least[number], own)
    bootstrap = Bootstrap(options.seed)
    found: list[Point] = []
    for name, values in ((f"recall@{_K}", recall(ranks, _K)), ("mrr", reciprocal(ranks))):
        intervals = bootstrap.intervals(values.T)
        for (aggregation, count), interval in zip(configurations, intervals, strict=True):
            found.append(Point("frames", aggregation, "cosine", VISUAL, count, "captions", name, interval, len(rows)))
    return found


def fewer(page: FramePage, count: int, aggregation: Aggregation) -> Vectors:
    """Return the aggregate of at most `count` frames of each video, evenly taken, (V, D) float32."""
    parts = [frames[evenly(len(frames), count)] for frames in np.split(page.frames, page.starts[1:])]
    if aggregation == "mean":
        return normalise(np.stack([part.mean(axis=0, dtype=np.float64) for part in parts]))
    return normalise(np.stack([part.max(axis=0) for part in parts]))


def _points(
    aggregation: Aggregation,
    settings: Sequence[Setting],
    values: Numbers,
    measure: Measure,
    name: str,
    bootstrap: Bootstrap,
) -> list[Point]:
    """Return one point for each setting. `values` is (S, Q)."""
    return [
        Point("weights", aggregation, one.fusion, one.weights, None, measure, name, interval, values.shape[1])
        for one, interval in zip(settings, bootstrap.intervals(values.T), strict=True)
    ]
