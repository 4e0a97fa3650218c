"""Command `evaluate`: how good search and recommendations are on this library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from service.cli.console import err, out, plain
from service.cli.options import FUSION, AsJson, TextWeight, VideoWeight
from service.cli.session import open_runtime
from service.names import readable, shown

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.models import Generation
    from service.operations.evaluation.evaluate import Evaluation
    from service.operations.evaluation.figures import Figure, Group, Options
    from service.operations.evaluation.library import Common
    from service.operations.evaluation.queries import Judgement

_WORST = 12  # queries in a report


def evaluate(
    generation: Annotated[
        list[str] | None,
        typer.Option(help="Id of a generation; repeatable, to compare the others with the first. [the active one]"),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help='Your own queries: lines of {"query": "...", "relevant": ["ID or file name"]}.')
    ] = None,
    video_weight: VideoWeight = 0.7,
    text_weight: TextWeight = 0.3,
    fusion: Annotated[
        Literal["cosine", "zscore"] | None,
        typer.Option(help=FUSION + " [zscore for words, cosine between videos]"),
    ] = None,
    sample: Annotated[int, typer.Option(min=10, help="Videos that are queries, at most.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    copies: Annotated[
        bool, typer.Option("--copies", help="Also make copies of ten clips, and see which are recognised: minutes.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with figures, curves and the worst queries: an .html file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how good search and recommendations are on this library.

    No labels are needed: captions should find their own clips, neighbours should have the same category, and frames
    should find the clips that they are from. Each figure has a 95 % interval. Nothing is changed, and the service may
    run.
    """
    from service import config
    from service.models import Weights, check_seed
    from service.operations.evaluation.figures import Options
    from service.operations.evaluation.queries import read_judgements
    from service.operations.evaluation.report import check_ending, write_report

    if report is not None:
        check_ending(report)
    judgements = () if queries is None else read_judgements(queries)
    options = Options(
        Weights(video_weight, text_weight),
        fusion,
        sample=sample,
        seed=check_seed(seed),
        curves=as_json or report is not None,
        worst=_WORST if report is not None else 0,
    )
    with open_runtime(config.load(), pictures=False) as runtime, err.status("evaluating") as status:
        found = _evaluate(runtime, list(map(readable, generation or ())), options, judgements, copies, status.update)
        if report is not None:
            write_report(runtime, found, report)
    (_print_json if as_json else _print)(found)
    if report is not None:
        err.print(f"report: {shown(report)}", markup=False)


def _evaluate(
    runtime: Runtime,
    ids: list[str],
    options: Options,
    judgements: tuple[Judgement, ...],
    with_copies: bool,
    progress: Callable[[str], None],
) -> Evaluation:
    from service.operations.evaluation.copies import copies
    from service.operations.evaluation.evaluate import evaluate

    def copy(generations: Sequence[Generation], common: Common) -> list[Group]:
        return copies(runtime, generations, common, options.seed, progress)

    return evaluate(
        runtime.db,
        _generations(runtime, ids),
        replace(options, aggregation=runtime.settings.aggregation),
        judgements=judgements,
        embed=lambda generation, texts: runtime.load(generation).embed_texts(texts),
        copy=copy if with_copies else None,
        progress=progress,
    )


def _generations(runtime: Runtime, ids: list[str]) -> list[Generation]:
    """Return the generations with these ids, each once; the active one if there are none. Raises NotFound."""
    from service.database import generation_rows

    active = runtime.generation()
    with runtime.db.read() as connection:
        return [generation_rows.generation(connection, one) for one in dict.fromkeys(ids)] or [active]


def _print_json(found: Evaluation) -> None:
    from service.operations.evaluation.evaluate import as_json

    typer.echo(json.dumps(as_json(found), indent=2))


def _print(found: Evaluation) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("measure", "ranked by", "figure"):
        table.add_column(column)
    for one in found.generations:
        table.add_column(plain(_name(found, one.generation)), justify="right", no_wrap=True)
    if len(found.generations) == 1:
        table.add_column("chance", justify="right")
    for other in found.generations[1:]:
        table.add_column(plain(f"{_name(found, other.generation)} minus the first"), justify="right", no_wrap=True)
    table.add_column("queries", justify="right")
    table.add_column("left out", justify="right")
    for number, figure in enumerate(found.generations[0].figures):
        cells = [_interval(one.figures[number]) for one in found.generations]
        if len(found.generations) == 1:
            cells.append("-" if figure.chance is None else f"{figure.chance:.3f}")
        cells += [_difference(difference[number]) for difference in found.differences]
        counts = (str(figure.queries), str(figure.left_out))
        table.add_row(figure.measure, figure.ranking, figure.name, *cells, *counts)
    out.print(table)
    common, options = found.common, found.options
    weights = f"weights: video {options.weights.video:g}, text {options.weights.text:g}"
    counts_said = f"{len(common.video_pks)} of {common.ready} videos, {int(common.has_text.sum())} captions"
    sampled = f"; at most {options.sample} are queries, seed {options.seed}"
    err.print(f"{counts_said}, {len(common.names)} categories{sampled}; {weights}", style="dim")


def _name(found: Evaluation, generation: Generation) -> str:
    """Return the model of a generation, with the precision or the id as far as another one has the same model."""
    same = [one.generation for one in found.generations if one.generation.model == generation.model]
    if len(same) == 1:
        return generation.model
    precisions = [one.precision for one in same]
    return f"{generation.model} {generation.precision if len(set(precisions)) == len(same) else generation.id}"


def _interval(figure: Figure) -> str:
    return f"{figure.interval.value:.3f} [{figure.interval.low:.3f}, {figure.interval.high:.3f}]".replace("[", r"\[")


def _difference(figure: Figure) -> str:
    interval = figure.interval
    return rf"{interval.value:+.3f} \[{interval.low:+.3f}, {interval.high:+.3f}] {interval.verdict}"
