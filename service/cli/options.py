"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

FUSION = "How visual and text similarity are combined."

K = Annotated[int, typer.Option("--k", min=1, max=1000, help="Number of hits.")]
VideoWeight = Annotated[float, typer.Option(min=0, help="Weight of the visual similarity (frames).")]
TextWeight = Annotated[float, typer.Option(min=0, help="Weight of the text similarity (captions).")]
CategoryOption = Annotated[list[str] | None, typer.Option("--category", help="Only this category; repeatable.")]
ExcludeOption = Annotated[list[str] | None, typer.Option("--exclude-category", help="Not this category; repeatable.")]
Diversity = Annotated[
    float, typer.Option(min=0, max=1, help="0: the best hits; towards 1: hits unlike those above them.")
]
MinScore = Annotated[float | None, typer.Option(help="Leave out hits with a lower score.")]
MethodOption = Annotated[Literal["umap", "tsne", "pca"], typer.Option("--method", help="Projection method.")]
Dimensions = Annotated[int, typer.Option(min=2, max=3, help="Dimensions of the map: 2 or 3.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same map.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
