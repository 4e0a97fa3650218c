"""Commands `similar`, `search` and `duplicates`: searches in the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from service.cli.console import cell, err, out, progress
from service.cli.options import (
    FUSION,
    AsJson,
    CategoryOption,
    Diversity,
    ExcludeOption,
    K,
    MinScore,
    TextWeight,
    VideoWeight,
)
from service.cli.session import open_runtime
from service.errors import InvalidInput
from service.names import readable, shown

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.search.query import QueryVector, Reference
    from service.search.results import SearchResults


def similar(
    video: Annotated[str, typer.Argument(help="Clip file, in the library or not, or id of a video.")],
    k: K = 10,
    video_weight: VideoWeight = 0.7,
    text_weight: TextWeight = 0.3,
    fusion: Annotated[Literal["cosine", "zscore"], typer.Option(help=FUSION)] = "cosine",
    category: CategoryOption = None,
    exclude_category: ExcludeOption = None,
    category_mode: Annotated[
        Literal["any", "same", "other"], typer.Option(help="Categories to search, relative to the video's own.")
    ] = "any",
    diversity: Diversity = 0.0,
    min_score: MinScore = None,
    as_json: AsJson = False,
) -> None:
    """Find the videos that are most similar to a clip or a video.

    The hits are ranked and printed with their scores. All categories are searched by default.
    """
    from service import config
    from service.models import Weights
    from service.search.query import Scope, SearchQuery

    weights = Weights(video_weight, text_weight)
    scope = Scope(tuple(map(readable, category or ())), tuple(map(readable, exclude_category or ())), category_mode)
    with open_runtime(config.load()) as runtime:
        references, vectors = _resolve_video(runtime, video)
        if vectors and category_mode != "any":
            needed = f"{category_mode!r} needs a video of the library; {shown(video)} is not in it"
            raise InvalidInput("category_mode", needed)
        query = SearchQuery(
            references=references,
            vectors=vectors,
            weights=weights,
            fusion=fusion,
            k=k,
            scope=scope,
            diversity=diversity,
            min_score=min_score,
        )
        results = runtime.serving.recommender.search(query)
        _warn_other_model(runtime)
    _print_results(results, as_json)


def search(
    query: Annotated[str | None, typer.Argument(help="Text to search for.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Query image; repeatable.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Query clip; repeatable.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="Id of a video that hits should resemble; repeatable.")] = None,
    unlike: Annotated[
        list[str] | None, typer.Option(help="Id of a video that hits should differ from; repeatable.")
    ] = None,
    k: K = 10,
    video_weight: VideoWeight = 0.7,
    text_weight: TextWeight = 0.3,
    fusion: Annotated[
        Literal["cosine", "zscore"] | None,
        typer.Option(help=FUSION + " [zscore for text or images, cosine between videos]"),
    ] = None,
    category: CategoryOption = None,
    exclude_category: ExcludeOption = None,
    diversity: Diversity = 0.0,
    min_score: MinScore = None,
    moments: Annotated[
        bool, typer.Option("--moments", help="Find moments (time spans in clips), not whole videos.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find videos or moments by text, image, clip or reference video.

    These can be combined in one search.
    """
    from service import config
    from service.models import Weights
    from service.search.query import Scope, SearchQuery

    images, clips = image or [], video or []
    _require_files(("image", images), ("video", clips))
    if query is None and not (images or clips or like or unlike):
        raise InvalidInput("query", "missing; give a text, or one of --image, --video, --like, --unlike")
    weights = Weights(video_weight, text_weight)
    needs_images = bool(images or clips)
    with open_runtime(config.load(), pictures=needs_images) as runtime:
        references, vectors = _encode_examples(runtime, None if query is None else readable(query), images, clips)
        search_query = SearchQuery(
            references=(*_references(like, 1.0), *_references(unlike, -1.0), *references),
            vectors=tuple(vectors),
            weights=weights,
            fusion=fusion or ("cosine" if query is None and not images else "zscore"),
            k=k,
            scope=Scope(tuple(map(readable, category or ())), tuple(map(readable, exclude_category or ()))),
            diversity=diversity,
            min_score=min_score,
            group_by="moment" if moments else "video",
        )
        results = runtime.serving.recommender.search(search_query)
        _warn_other_model(runtime)
    _print_results(results, as_json)


def _references(video_ids: list[str] | None, weight: float) -> list[Reference]:
    from service.search.query import Reference

    return [Reference(readable(video_id), weight) for video_id in video_ids or ()]


def _encode_examples(
    runtime: Runtime, words: str | None, images: list[Path], clips: list[Path]
) -> tuple[list[Reference], list[QueryVector]]:
    """Return the reference videos and the query vectors for the given text, images and clips."""
    encoder = runtime.serving.query_encoder
    references: list[Reference] = []
    vectors = [] if words is None else [encoder.text(words)]
    vectors += [encoder.image(path) for path in images]
    for path in clips:
        clip_references, clip_vectors = _resolve_video(runtime, str(path))
        references += clip_references
        vectors += clip_vectors
    return references, vectors


def _require_files(*options: tuple[str, list[Path]]) -> None:
    for option, paths in options:
        for path in paths:
            if not path.is_file():
                raise InvalidInput(option, f"there is no file {shown(path)}")


def duplicates(as_json: AsJson = False) -> None:
    """List groups of near-duplicates.

    A group names the video to keep and why, then its near-duplicates: clips of the same recording, encoded again,
    resized, with black bars, trimmed, or played backwards.
    """
    from service import config
    from service.api import schemas
    from service.database import video_rows

    with open_runtime(config.load(), pictures=False) as runtime:
        with runtime.db.read() as connection:
            total = video_rows.status_counts(connection).get("ready", 0)
        with progress("comparing", total) as bar:
            groups = runtime.serving.duplicates.groups(bar.advance)
    if as_json:
        found = [schemas.DuplicateGroup.from_group(group).model_dump() for group in groups]
        typer.echo(json.dumps({"items": found}, indent=2))
        return
    if not groups:
        err.print("no near-duplicates found")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("group", "similarity"):
        table.add_column(column, justify="right")
    for column in ("because", "category", "title", "size", "duration", "id"):
        table.add_column(column, no_wrap=column != "title")
    for number, group in enumerate(groups, 1):
        rows = [
            (group.best, "keep", group.keep.because),
            *((duplicate.video, f"{duplicate.similarity:.3f}", "") for duplicate in group.near_duplicates),
        ]
        for one, mark, because in rows:
            seconds = "-" if one.duration_seconds is None else f"{one.duration_seconds:.1f} s"
            size = f"{one.width} x {one.height}"
            table.add_row(str(number), mark, because, cell(one.category or "-"), cell(one.title), size, seconds, one.id)
    out.print(table)


def _resolve_video(runtime: Runtime, video: str) -> tuple[tuple[Reference, ...], tuple[QueryVector, ...]]:
    """Return the reference video for an id or a path, or the query vector of a clip that is not in the library.

    Raises NotFound if `video` is neither a file nor an id.
    """
    import hashlib

    from service.database import video_rows
    from service.errors import NotFound
    from service.operations.sidecars import read_sidecar
    from service.search.query import Reference

    runtime.generation()  # report an empty library before a model is loaded
    path = Path(video)
    if not path.is_file():
        with runtime.db.read() as connection:
            try:
                return (Reference(video_rows.video(connection, readable(video)).id),), ()
            except NotFound:
                raise NotFound(
                    f"{shown(video)!r} is neither a file nor the id of a video in {shown(runtime.settings.data_dir)}"
                ) from None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with runtime.db.read() as connection:
        known = video_rows.video_by_sha256(connection, sha256)
    if known and known.status == "ready":
        return (Reference(known.id),), ()
    return (), (runtime.serving.query_encoder.clip(path, read_sidecar(path).caption, runtime.settings.sampling),)


def _print_results(results: SearchResults, as_json: bool) -> None:
    if as_json:
        from service.api import schemas

        # Escaped by `json`, so that it is JSON in whatever encoding the output has.
        typer.echo(json.dumps(schemas.Answer.from_results(results).model_dump(mode="json"), indent=2))
        return
    if not results.hits:
        err.print("no hits")
        return
    if results.match and results.match.level == "none":
        err.print("nothing in this library seems to fit the text; the nearest videos are:")
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "score", "visual", "text", "seconds"):
        table.add_column(column, justify="right")
    for column in ("category", "title", "caption", "id"):
        table.add_column(column, no_wrap=column == "id")
    for hit in results.hits:
        text_similarity, moment = hit.text.similarity, hit.moment
        marked = "-" if text_similarity is None else f"{text_similarity:.3f}{'*' if hit.text.imputed else ''}"
        table.add_row(
            str(hit.rank),
            f"{hit.score:.4f}",
            f"{hit.visual.similarity:.3f}",
            marked,
            f"{moment.time:.1f}" if moment.start is None else f"{moment.start:.1f}-{moment.end:.1f}",
            cell(hit.video.category or "-"),
            cell(hit.video.title),
            cell((hit.video.caption or "-")[:100]),
            hit.video.id,
        )
    out.print(table)
    weights = f"weights: video {results.weights.video:g}, text {results.weights.text:g}; {results.fusion}"
    imputed = any(hit.text.imputed for hit in results.hits) and results.weights.text > 0
    err.print(weights + ("; *: no caption, so the average text similarity counts" if imputed else ""), style="dim")


def _warn_other_model(runtime: Runtime) -> None:
    """Tell the user if the configured model is not the one that answered.

    A library uses a newly configured model only after it was re-embedded.
    """
    model, precision = runtime.settings.requested_model
    active = runtime.serving.generation
    if model not in (None, active.model) or precision not in (None, active.precision):
        words = f"searched with {active.model} in {active.precision}, because the library is embedded with this model"
        err.print(f"{words}; `reelsrs embed` re-embeds it with the configured model", style="yellow", markup=False)
