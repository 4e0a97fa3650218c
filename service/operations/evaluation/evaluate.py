"""The whole evaluation of one generation, or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from service.database.db import Database
from service.models import Generation, Vectors
from service.operations.evaluation import figures
from service.operations.evaluation.bootstrap import RESAMPLES, Bootstrap
from service.operations.evaluation.curves import Point, frame_curve, weight_curves
from service.operations.evaluation.figures import Figure, Group, Options, Worst
from service.operations.evaluation.library import Common, common_videos, read_catalogue
from service.operations.evaluation.measures import Rows
from service.operations.evaluation.queries import Judgement, judged, relevant_rows

ProgressCallback = Callable[[str], None]
Embed = Callable[[Generation, list[str]], Vectors]
"""Function that embeds texts with the model of a generation; (Q, D) float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """Evaluation of one generation. `worst` are the captions that find their own clips worst, the worst first."""

    generation: Generation
    figures: tuple[Figure, ...]
    curves: tuple[Point, ...]
    worst: tuple[Worst, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Evaluation of some generations on the same videos.

    `differences` has a list for each generation after the first: its figures minus those of the first.
    """

    common: Common
    options: Options
    generations: tuple[Evaluated, ...]
    differences: tuple[tuple[Figure, ...], ...]


def evaluate(
    db: Database,
    generations: Sequence[Generation],
    options: Options,
    *,
    judgements: Sequence[Judgement] = (),
    embed: Embed | None = None,
    copy: Callable[[Sequence[Generation], Common], list[Group]] | None = None,
    progress: ProgressCallback = lambda _: None,
) -> Evaluation:
    """Evaluate generations on the videos that have vectors in all of them.

    Args:
        db: Database of the library.
        generations: The generations; the others are compared with the first.
        options: What is evaluated.
        judgements: The user's own queries, with the videos that are relevant.
        embed: Embeds the texts of `judgements`.
        copy: Measures how well copies are recognised; None to leave that out.
        progress: Called with the name of each step.

    Raises:
        InvalidInput: No video has vectors in all generations, or a judgement names a video without vectors.
        ConfigurationError: The model of a generation cannot be used for `judgements`.
        ModelUnavailable: The weights of a generation cannot be loaded for `judgements`.
    """
    with db.read() as connection:  # report a wrong name before a model is loaded
        relevant_rows(connection, common_videos(connection, generations), judgements)
    texts = [one.query for one in judgements]
    vectors = [embed(one, texts) if embed is not None and texts else None for one in generations]
    bootstrap = Bootstrap(options.seed)
    found: list[Evaluated] = []
    measured: list[list[Group]] = []
    with db.read() as connection:
        common = common_videos(connection, generations, options.candidates, options.seed)
        relevant = relevant_rows(connection, common, judgements)
        for generation, queries in zip(generations, vectors, strict=True):
            progress(f"measuring {generation.model}")
            groups, worst = _measure(connection, generation, common, options, relevant, queries)
            measured.append(groups)
            progress(f"curves of {generation.model}")
            found.append(Evaluated(generation, (), _curves(connection, generation, common, options), worst))
    if copy is not None:  # outside of the transaction, because it takes minutes
        measured = [[*groups, copied] for groups, copied in zip(measured, copy(generations, common), strict=True)]
    measured = [[group for group in groups if len(group.values)] for groups in measured]
    return Evaluation(
        common,
        options,
        tuple(
            replace(one, figures=tuple(figure for group in groups for figure in group.figures(bootstrap)))
            for one, groups in zip(found, measured, strict=True)
        ),
        tuple(tuple(_differences(measured[0], other, bootstrap)) for other in measured[1:]),
    )


def _measure(
    connection: sa.Connection,
    generation: Generation,
    common: Common,
    options: Options,
    relevant: Sequence[Rows],
    queries: Vectors | None,
) -> tuple[list[Group], tuple[Worst, ...]]:
    """Return all groups of one generation, and its worst captions. `queries` are the vectors of judged queries."""
    catalogue = read_catalogue(connection, generation, common, options.aggregation)
    rows = figures.caption_rows(catalogue, options.sample, options.seed)
    groups, ranks = figures.captions(catalogue, rows, options)
    groups += figures.categories(catalogue, options)
    groups.append(figures.moments(connection, generation, common, options))
    if queries is not None:
        groups += judged(catalogue, queries, relevant, options)
    return groups, figures.worst_captions(catalogue, common, rows, ranks, options.worst)


def _differences(base: Sequence[Group], other: Sequence[Group], bootstrap: Bootstrap) -> Iterator[Figure]:
    for group, its_base in zip(other, base, strict=True):
        yield from group.differences(its_base, bootstrap)


def _curves(connection: sa.Connection, generation: Generation, common: Common, options: Options) -> tuple[Point, ...]:
    if not options.curves:
        return ()
    return (
        *weight_curves(connection, generation, common, options),
        *frame_curve(connection, generation, common, options),
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return all figures as JSON can hold them."""
    common, options = evaluation.common, evaluation.options
    return {
        "videos": len(common.video_pks),
        "ready_videos": common.ready,
        "captioned_videos": int(common.has_text.sum()),
        "categories": len(common.names),
        "weights": {"video": options.weights.video, "text": options.weights.text},
        "fusion": options.fusion,
        "aggregation": options.aggregation,
        "sample": options.sample,
        "seed": options.seed,
        "resamples": RESAMPLES,
        "generations": [
            {
                "id": one.generation.id,
                "model": one.generation.model,
                "precision": one.generation.precision,
                "figures": [figure_json(figure) for figure in one.figures],
                "curves": [_point_json(point) for point in one.curves],
            }
            for one in evaluation.generations
        ],
        "differences": [
            {
                "generation": other.generation.id,
                "minus": evaluation.generations[0].generation.id,
                "figures": [{**figure_json(figure), "verdict": figure.interval.verdict} for figure in difference],
            }
            for other, difference in zip(evaluation.generations[1:], evaluation.differences, strict=True)
        ],
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """Return one figure as JSON can hold it."""
    return {
        "measure": figure.measure,
        "ranking": figure.ranking,
        "name": figure.name,
        "value": round(figure.interval.value, 6),
        "low": round(figure.interval.low, 6),
        "high": round(figure.interval.high, 6),
        "queries": figure.queries,
        "left_out": figure.left_out,
        "chance": None if figure.chance is None else round(figure.chance, 6),
    }


def _point_json(point: Point) -> dict[str, Any]:
    return {
        "curve": point.curve,
        "aggregation": point.aggregation,
        "fusion": point.fusion,
        "video_weight": point.weights.video,
        "text_weight": point.weights.text,
        "frames": point.frames,
        "measure": point.measure,
        "name": point.name,
        "value": round(point.interval.value, 6),
        "low": round(point.interval.low, 6),
        "high": round(point.interval.high, 6),
        "queries": point.queries,
    }
