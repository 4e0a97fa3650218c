"""Write an evaluation as one HTML file: figures, differences, curves, and the worst queries with pictures.

The file needs no other file, no network and no script. Titles and captions are untrusted text and are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from service.bootstrap import Runtime
from service.database import video_rows
from service.errors import InvalidInput, NotFound, Unavailable
from service.models import Video
from service.operations.evaluation.curves import AGGREGATIONS, FUSIONS, Point
from service.operations.evaluation.evaluate import Evaluated, Evaluation
from service.operations.evaluation.figures import Figure, Worst
from service.operations.visualize import Curve, Panel, draw_curves

_TEMPLATE = Path(__file__).with_name("report.html")
_COLOURS = Path(__file__).parents[2] / "explore" / "colours.css"
_ENDINGS = (".html", ".htm")
_THUMBNAIL_SIDE = 240  # pixels
_CAPTION_CHARACTERS = 300

_MEANINGS = {
    "captions": "A caption should find its own clip. The caption itself is left out of the ranking.",
    "categories": "The nearest neighbours of a video should have its category.",
    "moments": "A frame should find the clip that it is from, among all other frames.",
    "queries": "Your own queries should find the videos that you named.",
    "copies": "A copy of a clip should be recognised, and nothing else.",
}


def check_ending(path: Path) -> None:
    """Raise InvalidInput unless the file name ends in .html."""
    if path.suffix.lower() not in _ENDINGS:
        raise InvalidInput("report", f"must end in .html, not {path.suffix or 'nothing'}")


def write_report(runtime: Runtime, evaluation: Evaluation, path: Path) -> None:
    """Write the report to `path`; missing parent folders are created. Raises InvalidInput if it is no .html."""
    check_ending(path)
    pks = {pk for one in evaluation.generations for case in one.worst for pk in (case.video_pk, *dict(case.hits))}
    with runtime.db.read() as connection:
        videos = video_rows.videos_by_pk(connection, pks)
    pictures = {pk: _picture(runtime, video) for pk, video in videos.items()}
    body = [_figures(evaluation)]
    for one in evaluation.generations:
        body += [_curves(one), _worst(one, videos, pictures)]
    common, options = evaluation.common, evaluation.options
    summary = (
        f"{len(common.video_pks):,} of {common.ready:,} videos, {int(common.has_text.sum()):,} with captions, "
        f"{len(common.names):,} categories. At most {options.sample:,} of them are queries (seed {options.seed}). "
        f"Weights of the fused ranking: video {options.weights.video:g}, text {options.weights.text:g}."
    )
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title="Evaluation of the library",
        colours=_COLOURS.read_text(encoding="utf-8"),
        summary=escape(summary),
        body="\n".join(body),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _figures(evaluation: Evaluation) -> str:
    """Return a table of the figures of all generations for each measure."""
    parts = ["<h2>Figures</h2>", "<p>In brackets: the 95 % interval, from resamples of the queries.</p>"]
    first = evaluation.generations[0].figures
    heads = ["ranked by", "figure", *(_name(one) for one in evaluation.generations)]
    heads += ["chance"] if len(evaluation.generations) == 1 else []
    heads += [f"{_name(one)} minus the first" for one in evaluation.generations[1:]]
    heads += ["queries", "left out"]
    for measure, meaning in _MEANINGS.items():
        rows = [_row(evaluation, number) for number, figure in enumerate(first) if figure.measure == measure]
        if rows:
            parts += [f"<h3>{measure.capitalize()}</h3>", f'<p class="muted">{meaning}</p>', _table(heads, rows)]
    return "\n".join(parts)


def _row(evaluation: Evaluation, number: int) -> list[str]:
    figure = evaluation.generations[0].figures[number]
    cells = [figure.ranking, figure.name, *(_interval(one.figures[number]) for one in evaluation.generations)]
    if len(evaluation.generations) == 1:
        cells.append("-" if figure.chance is None else f"{figure.chance:.3f}")
    cells += [
        f"{_interval(difference[number], '+')} {difference[number].interval.verdict}"
        for difference in evaluation.differences
    ]
    return [*cells, f"{figure.queries:,}", f"{figure.left_out:,}"]


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="Figures"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _interval(figure: Figure, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.3f") for number in _numbers(figure))
    return f"{value} [{low}, {high}]"


def _numbers(figure: Figure) -> tuple[float, float, float]:
    return figure.interval.value, figure.interval.low, figure.interval.high


def _name(one: Evaluated) -> str:
    return f"{one.generation.model}, {one.generation.precision} ({one.generation.id})"


# --- curves


def curve_panels(one: Evaluated) -> list[Panel]:
    """Return the diagrams of a generation's curves, without those that have no curve."""
    panels = [
        Panel("Neighbours of the same category: precision@5", "visual weight", _by_weight(one.curves, "precision@5")),
        Panel("Captions and their own clips: recall@5", "visual weight", _by_weight(one.curves, "recall@5")),
        Panel("The same by picture, with fewer frames", "frames of a clip", _by_frames(one.curves, "recall@5")),
    ]
    return [panel for panel in panels if panel.curves]


def _curves(one: Evaluated) -> str:
    panels = curve_panels(one)
    if not panels:
        return ""
    drawing = draw_curves(panels, one.generation.id).replace(
        "<svg ", f'<svg role="img" aria-label="{escape("; ".join(panel.title for panel in panels))}" ', 1
    )
    return (
        f"<h2>Curves of {escape(_name(one))}</h2>\n"
        "<p>The bands are the 95 % intervals of the mean aggregation. The curve of the captions falls with the text "
        "weight whatever the model: a clip without its own caption competes with clips that have theirs. Choose "
        "weights by the categories, or by your own queries.</p>\n"
        f'<div class="wide">{drawing}</div>'
    )


def _by_weight(points: Sequence[Point], name: str) -> tuple[Curve, ...]:
    found = [point for point in points if point.curve == "weights" and point.name == name]
    return tuple(
        curve
        for colour, fusion in enumerate(FUSIONS)
        for aggregation in AGGREGATIONS
        for line in [[one for one in found if (one.fusion, one.aggregation) == (fusion, aggregation)]]
        for curve in _curve(f"{aggregation}, {fusion}", colour, line, [one.weights.video for one in line])
    )


def _by_frames(points: Sequence[Point], name: str) -> tuple[Curve, ...]:
    found = [point for point in points if point.curve == "frames" and point.name == name]
    return tuple(
        curve
        for aggregation in AGGREGATIONS
        for line in [[one for one in found if one.aggregation == aggregation]]
        for curve in _curve(f"{aggregation}, {FUSIONS[0]}", 0, line, [float(one.frames or 0) for one in line])
    )


def _curve(label: str, colour: int, line: Sequence[Point], x: Sequence[float]) -> list[Curve]:
    """Return the curve through these points in a list, which is empty if there are none."""
    if not line:
        return []
    is_mean = line[0].aggregation == AGGREGATIONS[0]
    low = [one.interval.low for one in line] if is_mean else []
    high = [one.interval.high for one in line] if is_mean else []
    return [Curve(label, colour, not is_mean, x, [one.interval.value for one in line], low, high)]


# --- the worst queries


def _worst(one: Evaluated, videos: dict[int, Video], pictures: dict[int, str]) -> str:
    cases = [_case(case, videos, pictures) for case in one.worst if case.video_pk in videos]
    if not cases:
        return ""
    return (
        f"<h2>Worst captions of {escape(_name(one))}</h2>\n"
        "<p>The captions that find their own clips worst by picture: first the clip itself, with its rank, then the "
        "five best hits. Read them before you blame the model: many such captions say what no frame shows.</p>\n"
        + "\n".join(cases)
    )


def _case(case: Worst, videos: dict[int, Video], pictures: dict[int, str]) -> str:
    own = videos[case.video_pk]
    caption = own.caption or ""
    shown = caption if len(caption) <= _CAPTION_CHARACTERS else caption[:_CAPTION_CHARACTERS] + "…"
    items = [_item(own, pictures[own.pk], f"own clip: rank {case.rank:,}, {case.similarity:.3f}", is_own=True)]
    for place, (pk, similarity) in enumerate(case.hits, 1):
        if pk in videos:
            items.append(_item(videos[pk], pictures[pk], f"{place}: {similarity:.3f}", is_own=pk == own.pk))
    return (
        f"<section><h3>{escape(shown)}</h3>\n"
        f'<div class="wide" tabindex="0" role="group" aria-label="Hits"><ul>{"".join(items)}</ul></div></section>'
    )


def _item(video: Video, picture: str, words: str, *, is_own: bool) -> str:
    image = f'<img src="{picture}" alt="">' if picture else '<span class="none"></span>'
    category = f" ({escape(video.category)})" if video.category else ""
    kind = ' class="own"' if is_own else ""
    return f"<li{kind}>{image}{escape(words)}<br>{escape(video.title)}{category}</li>"


def _picture(runtime: Runtime, video: Video) -> str:
    """Return a small picture of the video's middle frame as a data URI; empty if its thumbnail is not in the store."""
    number = video.thumbnail_frame
    if number is None:
        return ""
    try:
        blob = runtime.files.thumbnail(video.sha256, number, video.frame_times[number])
        data = b"".join(blob.pieces())
    except (NotFound, Unavailable):  # deleted meanwhile, or the bucket does not respond
        return ""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        output = io.BytesIO()
        image.convert("RGB").save(output, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(output.getvalue()).decode()}"
