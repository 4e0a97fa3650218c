"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

FUSION = "How what is seen and what is written are brought together."

K = Annotated[int, typer.Option("--k", min=1, max=1000, help="Number of hits.")]
VideoWeight = Annotated[float, typer.Option(min=0, help="Weight of what is seen.")]
TextWeight = Annotated[float, typer.Option(min=0, help="Weight of what is written.")]
CategoryOption = Annotated[list[str] | None, typer.Option("--category", help="Only this one; repeatable.")]
ExcludeOption = Annotated[list[str] | None, typer.Option("--exclude-category", help="Not this one; repeatable.")]
Diversity = Annotated[
    float, typer.Option(min=0, max=1, help="0: the best hits; towards 1: hits unlike those before them.")
]
MinScore = Annotated[float | None, typer.Option(help="Leave out hits with a lower score.")]
MethodOption = Annotated[Literal["umap", "tsne", "pca"], typer.Option("--method", help="How it is laid out.")]
Dimensions = Annotated[int, typer.Option(min=2, max=3, help="2 or 3.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed, the same map.")]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]
