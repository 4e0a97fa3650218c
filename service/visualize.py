"""A map of the library's embeddings as one interactive HTML file, coloured by category. Knows no terminal."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from service import catalog
from service.domain import Kind, Video
from service.errors import InvalidInput
from service.index import graph
from service.projection import Method, fit, neighbours_needed
from service.runtime import Runtime

EmbeddingType = Literal["frame", "aggregated", "text"]

# Okabe and Ito's colours, which the colour-blind can tell apart, then lighter ones.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F"),
    *("#8C564B", "#9467BD", "#17BECF", "#BCBD22", "#AEC7E8", "#FFBB78", "#98DF8A", "#FF9896"),
)


def write_map(
    runtime: Runtime, output: Path, *, embedding: EmbeddingType, method: Method, dimensions: int, seed: int = 0
) -> int:
    """Project every embedding of that type and write the page; the number of points in it.

    Raises InvalidInput where there is nothing to show or `output` does not end in .html.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InvalidInput("output", f"must end in .html, not {output.suffix or 'nothing'}")
    kind: Kind = runtime.settings.aggregation if embedding == "aggregated" else embedding
    generation = runtime.follower.generation
    with runtime.db.read() as connection:
        keys = catalog.ready_keys(connection)
        vectors = catalog.vectors_of(connection, keys, generation, kind)
        videos = catalog.videos_by_key(connection, list(vectors))
    matrix = np.concatenate(list(vectors.values())) if vectors else np.zeros((0, generation.dimension), np.float32)
    owners = [(videos[key], n if embedding == "frame" else None) for key in vectors for n in range(len(vectors[key]))]
    if not len(matrix):
        raise InvalidInput("embedding_type", "there is no embedding of this type in the library")
    wanted = neighbours_needed(method, len(matrix), {})
    found = graph.neighbours(matrix, wanted) if wanted else None
    coordinates = fit(matrix, method, dimensions, seed=seed, parameters={}, neighbours=found).coordinates
    figure = _figure(coordinates, owners, f"{embedding} embeddings, {method.upper()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # The script travels inside the file: it opens anywhere, with no network.
    figure.write_html(
        output, include_plotlyjs=True, default_height="96vh", config={"displaylogo": False, "responsive": True}
    )
    return len(matrix)


def _figure(coordinates: np.ndarray, owners: list[tuple[Video, int | None]], title: str) -> Any:
    import plotly.graph_objects as go

    spatial = coordinates.shape[1] == 3
    names = sorted({video.category or "no category" for video, _ in owners})
    figure = go.Figure()
    for number, name in enumerate(names):
        rows = [row for row, (video, _) in enumerate(owners) if (video.category or "no category") == name]
        x, y, *z = coordinates[rows].T
        marker = {"size": 4 if spatial else 9, "opacity": 0.85, "color": _COLOURS[number % len(_COLOURS)]}
        shared = {
            "mode": "markers",
            "name": escape(name),
            "marker": marker,
            "text": [_label(*owners[row]) for row in rows],
            "hovertemplate": "%{text}<extra></extra>",
        }
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z[0], **shared) if spatial else go.Scatter(x=x, y=y, **shared))
    bare = {"showticklabels": False, "title": "", "zeroline": False, "showgrid": spatial}
    layout = {"scene": dict.fromkeys(("xaxis", "yaxis", "zaxis"), bare)} if spatial else {"xaxis": bare, "yaxis": bare}
    figure.update_layout(
        title=f"{len(owners):,} {title}",
        template="plotly_white",
        legend={"title": "category", "itemsizing": "constant"},
        margin={"l": 20, "r": 20, "t": 60, "b": 20},
        **layout,
    )
    return figure


def _label(video: Video, frame: int | None) -> str:
    """What the pointer shows: words of strangers, so nothing in them is markup."""
    lines = [f"<b>{escape(video.title)}</b>"]
    if frame is not None:
        lines.append(f"frame {frame} at {video.frame_times[frame]:.2f} s")
    if video.caption:
        lines.append(escape(video.caption if len(video.caption) <= 80 else video.caption[:79] + "…"))
    return "<br>".join(lines)
