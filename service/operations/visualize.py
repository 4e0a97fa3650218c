"""Draw data: a projection of the library as an interactive page, a PNG or an SVG; curves as SVG for a page.

Points of a projection are coloured by category.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from service.bootstrap import Runtime
from service.database import video_rows
from service.database.projection_rows import Points, Projection, ProjectionSpec
from service.errors import InvalidInput
from service.models import Video

# The colours of Okabe and Ito, which colour-blind people can tell apart, then lighter ones.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F"),
    *("#8C564B", "#9467BD", "#17BECF", "#BCBD22", "#AEC7E8", "#FFBB78", "#98DF8A", "#FF9896"),
)
_ENDINGS = (".html", ".htm", ".png", ".svg")
_UNCATEGORISED = "no category"
_RASTER_POINTS = 5_000
"""Number of points above which an SVG holds them as a raster image, and a page draws them with WebGL."""

_INK = "#010203"
"""Colour that stands for that of the page's text in an SVG."""
_CURVE_COLOURS = ("#0072B2", "#D55E00")  # both are readable on light and on dark pages


@dataclass(frozen=True, slots=True)
class Curve:
    """Line through points (x, y), with an interval from `low` to `high` at each, or none if they are empty.

    Curves with the same `colour`, 0 or 1, belong together; `dashed` tells them apart.
    """

    label: str
    colour: int
    dashed: bool
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram of several curves; y runs from 0 to 1."""

    title: str
    x_label: str
    curves: tuple[Curve, ...]


def write_projection(
    runtime: Runtime,
    output: Path,
    spec: ProjectionSpec,
    *,
    refit: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Projection:
    """Write the projection of `spec` to `output`, in the format of its extension: .html, .png or .svg.

    Args:
        runtime: The library to show.
        output: The file to write; missing parent folders are created.
        spec: The projection; fitted first if it does not exist.
        refit: Fit the projection again even if it exists.
        progress: Receives the progress of the fit, from 0 to 1.

    Returns:
        The projection that was written.

    Raises:
        InvalidInput: The extension is not supported, or the projection has no points.
        ReelsError: The projection could not be fitted.
    """
    ending = output.suffix.lower()
    if ending not in _ENDINGS:
        raise InvalidInput("output", f"must end in .html, .png or .svg, not {ending or 'nothing'}")
    state = runtime.projections.fit_and_wait(spec, refit=refit, progress=progress)
    if state.points == 0:
        raise InvalidInput("embedding_type", f"the library has no {spec.embedding} embeddings")
    points = runtime.projections.points(state)
    title = f"{len(points.ids):,} {spec.embedding} embeddings, {spec.method.upper()}"
    output.parent.mkdir(parents=True, exist_ok=True)
    if ending in (".png", ".svg"):
        _draw(output, points, title)
        return state
    with runtime.db.read() as connection:
        videos = video_rows.videos_by_pk(connection, set(points.video_pks.tolist()))
    # The script is embedded in the file, so that the page opens without a network.
    _figure(points, videos, title).write_html(
        output, include_plotlyjs=True, default_height="96vh", config={"displaylogo": False, "responsive": True}
    )
    return state


def _groups(points: Points) -> list[tuple[str, str, np.ndarray]]:
    """Return name, colour and row numbers of each category, by name; points without a category come last."""
    names = np.array([name if name is not None else "" for name in points.categories])
    found = sorted(set(points.categories) - {None}, key=str)
    groups = [
        (str(name), colour, np.flatnonzero(names == name)) for name, colour in zip(found, cycle(_COLOURS), strict=False)
    ]
    rest = np.flatnonzero([name is None for name in points.categories])
    return [*groups, (_UNCATEGORISED, "#999999", rest)] if len(rest) else groups


def _size(count: int) -> tuple[float, float]:
    """Return a diameter in points and an opacity, chosen so that `count` dots can be told apart in dense areas."""
    crowd = np.log10(max(count, 1) / 300)
    return float(np.clip(9 - 2.4 * crowd, 2, 9)), float(np.clip(0.85 - 0.15 * crowd, 0.35, 0.85))


def _figure(points: Points, videos: dict[int, Video], title: str) -> Any:
    import plotly.graph_objects as go

    spatial = points.coordinates.shape[1] == 3
    size, opacity = _size(len(points.ids))
    flat = go.Scattergl if len(points.ids) > _RASTER_POINTS else go.Scatter
    figure = go.Figure()
    for name, colour, rows in _groups(points):
        x, y, *z = points.coordinates[rows].T
        shared = {
            "mode": "markers",
            "name": escape(name),
            "marker": {"size": size / 2 if spatial else size, "opacity": opacity, "color": colour},
            "text": [_label(points, row, videos.get(int(points.video_pks[row]))) for row in rows],
            "hovertemplate": "%{text}<extra></extra>",
        }
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z[0], **shared) if spatial else flat(x=x, y=y, **shared))
    bare = {"showticklabels": False, "title": "", "zeroline": False, "showgrid": spatial}
    layout: dict[str, Any] = (
        {"scene": dict.fromkeys(("xaxis", "yaxis", "zaxis"), bare)}
        if spatial
        # Both axes have the same scale, because distances carry the meaning of the projection.
        else {"xaxis": bare, "yaxis": {**bare, "scaleanchor": "x"}}
    )
    figure.update_layout(
        title=title,
        template="plotly_white",
        legend={"title": "category", "itemsizing": "constant"},
        margin={"l": 20, "r": 20, "t": 60, "b": 20},
        **layout,
    )
    return figure


def _label(points: Points, row: int, video: Video | None) -> str:
    """Return the hover text of a point as HTML. Title and caption are untrusted text and are escaped.

    `video` None: it was deleted after the points were read.
    """
    lines = ["deleted" if video is None else f"<b>{escape(video.title)}</b>"]
    if points.frames[row] >= 0:
        lines.append(f"frame {points.frames[row]} at {points.times[row]:.2f} s")
    if video is not None and video.caption:
        lines.append(escape(video.caption if len(video.caption) <= 80 else video.caption[:79] + "…"))
    return "<br>".join(lines)


def _draw(output: Path, points: Points, title: str) -> None:
    # Not pyplot, which keeps every figure in memory and may need a display.
    from matplotlib.figure import Figure

    spatial = points.coordinates.shape[1] == 3
    size, opacity = _size(len(points.ids))
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d" if spatial else None)
    drawn = []
    for name, colour, rows in _groups(points):
        dots = axes.scatter(
            *points.coordinates[rows].T,
            s=size**2,
            color=colour,
            alpha=opacity,
            linewidths=0,
            rasterized=len(points.ids) > _RASTER_POINTS,
        )
        # matplotlib starts a formula at a dollar sign, and omits labels that start with _ from the legend.
        drawn.append((dots, (" " if name.startswith("_") else "") + name.replace("$", r"\$")))
    axes.set_title(title, loc="left")
    bare: dict[str, Any] = {"zticks": []} if spatial else {"aspect": "equal"}
    axes.set(xticks=[], yticks=[], **bare)
    axes.spines[:].set_visible(False)
    legend: Any = figure.legend(*zip(*drawn, strict=True), loc="outside right upper", title="category", frameon=False)
    for handle in legend.legend_handles:
        handle.set(sizes=[36], alpha=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such a character is drawn as a box
        figure.savefig(output, dpi=160)


def draw_curves(panels: Sequence[Panel], salt: str, columns: int = 3) -> str:
    """Draw diagrams in rows of `columns`, with one legend, as an `<svg>` element for an HTML page.

    Text and axes have the colour of the page's text. `salt` makes the ids of the element differ from those of another.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10, "font.family": "sans-serif"}
    inked: tuple[Any, ...] = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    with mpl.rc_context({**style, **dict.fromkeys(inked, _INK)}):
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.2 * columns, 3.8 * rows), layout="constrained")
        drawn: dict[str, Any] = {}
        for panel, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
            for curve in panel.curves:
                colour, dashes = _CURVE_COLOURS[curve.colour], "--" if curve.dashed else "-"
                (line,) = axes.plot(curve.x, curve.y, dashes, color=colour, marker="o", markersize=3.5, linewidth=1.6)
                drawn.setdefault(curve.label, line)
                if len(curve.low):
                    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
            axes.set(ylim=(0, 1.02), xlabel=panel.x_label)
            axes.set_title(panel.title, loc="left", fontsize=10)
            axes.grid(color=_INK, alpha=0.12)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower left", ncols=len(drawn), frameon=False)
        output = io.StringIO()
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    drawing = output.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    return drawing.replace(_INK, "currentColor")
