"""Commands `export` and `visualize`: write the vectors and the maps of the library to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.console import err, progress
from service.cli.options import Dimensions, MethodOption, Seed
from service.cli.session import open_runtime
from service.errors import InvalidInput
from service.names import readable, shown


def export(
    folder: Annotated[Path | None, typer.Argument(help="Folder to write to; created if missing.")] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write one Parquet file instead, with the position of each video on a map.")
    ] = None,
    method: MethodOption = "umap",
    dimensions: Dimensions = 2,
    seed: Seed = 0,
) -> None:
    """Write the embeddings of the library to files.

    The folder gets frame, aggregated and text embeddings as .npy files, with the metadata as JSON, per category and
    video. With --parquet everything goes into one Parquet file, which data tools open. Exit status 3 if some videos
    could not be written; each is named.
    """
    from service import config
    from service.database import video_rows
    from service.operations.export import export_folder, export_table

    if (folder is None) == (parquet is None):
        raise InvalidInput("folder", "give either FOLDER or --parquet FILE")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InvalidInput("folder", f"{shown(folder)} is not a folder")
    with open_runtime(config.load()) as runtime:
        with runtime.db.read() as connection:
            total = video_rows.status_counts(connection).get("ready", 0)
        if folder is not None:
            with progress("exporting", total) as bar:
                report = export_folder(runtime, folder, lambda video: bar.advance(video.title))
        else:
            assert parquet is not None, "one of the two is given"
            spec = runtime.projections.spec("aggregated", method, dimensions, seed=seed)
            with progress("fitting the map", share=True) as bar:
                state = runtime.projections.fit_and_wait(spec, progress=bar.share)
            with progress("exporting", total) as bar:
                report = export_table(runtime, parquet, state, lambda video: bar.advance(video.title))
    for name, reason in report.failures:
        err.print(f"video {name}: {reason}", style="red", markup=False, soft_wrap=True)
    typer.echo(f"{report.videos} videos exported to {shown(folder or parquet or '')}")
    if report.failures:
        raise typer.Exit(3)


def visualize(
    embedding_type: Annotated[
        Literal["frame", "aggregated", "text"], typer.Option(help="Embeddings to show: of frames, videos or captions.")
    ] = "aggregated",
    dimensions: Dimensions = 2,
    method: MethodOption = "umap",
    output: Annotated[Path, typer.Option(help="File to write: .html, .png or .svg.")] = Path("embeddings.html"),
    seed: Seed = 0,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    neighbors: Annotated[int | None, typer.Option(help="umap: number of neighbours. [15]")] = None,
    min_dist: Annotated[float | None, typer.Option(help="umap: minimum distance between points. [0.1]")] = None,
    perplexity: Annotated[float | None, typer.Option(help="tsne: approximate number of neighbours. [30]")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit the map again if it is stored already.")] = False,
) -> None:
    """Write a map of the embeddings as interactive HTML, PNG or SVG.

    Points are coloured by category. A map is stored: later videos are placed into it, and no other point moves.
    """
    from service import config
    from service.operations.visualize import write_projection

    given = {"n_neighbors": neighbors, "min_dist": min_dist, "perplexity": perplexity}
    parameters = {name: value for name, value in given.items() if value is not None}
    with open_runtime(config.load()) as runtime:
        only = None if category is None else readable(category)
        spec = runtime.projections.spec(
            embedding_type, method, dimensions, seed=seed, parameters=parameters, category=only
        )
        with progress("fitting the map", share=True) as bar:
            state = write_projection(runtime, output, spec, refit=refit, progress=bar.share)
    typer.echo(f"{state.points} points in {shown(output)}")
    if state.transformed:
        err.print(f"{state.transformed} of them were placed since the fit; --refit fits the map again")
    if state.missing:
        err.print(f"{state.missing} new videos cannot be placed into such a map; --refit fits the map again")
