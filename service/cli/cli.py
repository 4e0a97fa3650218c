"""The commands. Data goes to stdout, progress and words to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 some items failed (each named). Heavy imports wait inside the
commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from service import __version__
from service.errors import InvalidInput, ReelsError

if TYPE_CHECKING:
    from service.config import Settings
    from service.database.db import Database
    from service.domain import Sampling
    from service.media.drawing import Scene
    from service.operations.doctor import Finding
    from service.operations.folder import Entry, Summary
    from service.runtime import Runtime
    from service.search.question import Example, Like
    from service.search.recommend import Answer

app = typer.Typer(
    name="reelsrs",
    help="Video recommendations: embed clips, ask for more like this, serve it over REST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
database = typer.Typer(help="The database.", no_args_is_help=True)
app.add_typer(database, name="db")
keyring = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keyring, name="keys")
vectors = typer.Typer(help="The vector index.", no_args_is_help=True)
app.add_typer(vectors, name="index")

# Tables keep their columns when they go to a file or a pipe.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)

_DEMO_CLIPS = 48
_DEMO_SEED = 7

_FUSION = "How what is seen and what is written are brought together."

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


def run() -> None:
    """The command line, with errors as a sentence and an exit status."""
    sys.exit(status(sys.argv[1:]))


def status(arguments: list[str]) -> int:
    """Run one command; return its exit status, with errors said in a sentence."""
    try:
        app(args=arguments, prog_name="reelsrs")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except InvalidInput as error:
        err.print(f"reelsrs: {error}", style="red", markup=False)
        return 2
    except ReelsError as error:
        err.print(f"reelsrs: {error}", style="red", markup=False)
        return 1
    except BrokenPipeError:  # `reelsrs search … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        err.print(f"reelsrs: {error}", style="red", markup=False)
        return 1
    return 0


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"reelsrs {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    """Video recommendations: embed clips, ask for more like this, serve it over REST.

    Settings come from environment variables that begin with REELSRS_ and from a file .env: `reelsrs config`
    shows them all.
    """


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    worker: Annotated[bool, typer.Option(help="Embed uploads too, in a process beside.")] = True,
    allow_anyone: Annotated[
        bool,
        typer.Option("--allow-anyone", help="Need no key on an address that others can reach, where there is none."),
    ] = False,
) -> None:
    """Serve the REST API, the explorer page and the embedding worker."""
    from service import config

    _serve(config.load(host=host, port=port, allow_anyone=allow_anyone or None), worker=worker)


@app.command()
def embed(
    data_folder: Annotated[
        Path, typer.Option("--data-folder", "--data_folder", help="Folder of <Category>/<clip>.")
    ] = Path("Data"),
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", "--num_frames", help="Frames per clip. [REELSRS_NUM_FRAMES]")
    ] = None,
    frame_interval: Annotated[
        int | None,
        typer.Option(
            "--frame-interval",
            "--frame_interval",
            help="Every Nth frame; unset: spread evenly. [REELSRS_FRAME_INTERVAL]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Embed every video below Data/<Category>/, each with its caption from <stem>.txt beside it.

    A second run embeds only what is new or changed. A bad file is reported and skipped (exit status 3).
    """
    from service import config
    from service.domain import Sampling
    from service.embedding.embedder import choose_device
    from service.operations.folder import scan

    settings = config.load()
    default = settings.sampling
    sampling = Sampling(
        default.num_frames if num_frames is None else num_frames,
        default.frame_interval if frame_interval is None else frame_interval,
    )
    entries = scan(data_folder)
    device, precision, because = choose_device(settings.device, settings.precision)
    err.print(f"{settings.model} on {device} in {precision}: {because}", style="dim", markup=False)
    with _runtime(settings) as runtime:
        summary = _import(runtime, entries, sampling)
    for path, reason in summary.duplicates:
        err.print(f"duplicate {path}: {reason}", style="yellow", markup=False, soft_wrap=True)
    for path, reason in summary.failures:
        err.print(f"failed {path}: {reason}", style="red", markup=False, soft_wrap=True)
    if as_json:
        pairs = {"duplicates": summary.duplicates, "failures": summary.failures}
        typer.echo(
            json.dumps(
                {
                    "embedded": summary.embedded,
                    "updated": summary.updated,
                    "unchanged": summary.unchanged,
                    **{
                        name: [{"path": str(path), "reason": reason} for path, reason in found]
                        for name, found in pairs.items()
                    },
                }
            )
        )
    else:
        typer.echo(
            f"{summary.embedded} embedded, {summary.updated} updated, {summary.unchanged} unchanged, "
            f"{len(summary.duplicates)} duplicates, {len(summary.failures)} failed"
        )
    if summary.failures:
        raise typer.Exit(3)


@app.command()
def similar(
    video: Annotated[str, typer.Argument(help="A clip (indexed or not) or a video id.")],
    k: K = 10,
    video_weight: VideoWeight = 0.7,
    text_weight: TextWeight = 0.3,
    fusion: Annotated[Literal["cosine", "zscore"], typer.Option(help=_FUSION)] = "cosine",
    category: CategoryOption = None,
    exclude_category: ExcludeOption = None,
    category_mode: Annotated[
        Literal["any", "same", "other"], typer.Option(help="Relative to the video's own category.")
    ] = "any",
    diversity: Diversity = 0.0,
    min_score: MinScore = None,
    as_json: AsJson = False,
) -> None:
    """The most similar videos over all categories, ranked, with scores."""
    from service import config
    from service.domain import Weights
    from service.search.question import Question, Scope

    weights = Weights(video_weight, text_weight)
    scope = Scope(tuple(category or ()), tuple(exclude_category or ()), category_mode)
    with _runtime(config.load()) as runtime:
        likes, examples = _by_path(runtime, video)
        if examples and category_mode != "any":
            raise InvalidInput("category_mode", "same and other need a video that is in the library")
        question = Question(
            likes=likes,
            examples=examples,
            weights=weights,
            fusion=fusion,
            k=k,
            scope=scope,
            diversity=diversity,
            min_score=min_score,
        )
        answer = runtime.recommender.answer(question)
        _say_whose_answer(runtime)
    _print_answer(answer, as_json)


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="Words.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to be like; repeatable.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A clip to be like; repeatable.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="Id of a video to be like; repeatable.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="Id of a video to be unlike; repeatable.")] = None,
    k: K = 10,
    video_weight: VideoWeight = 0.7,
    text_weight: TextWeight = 0.3,
    fusion: Annotated[
        Literal["cosine", "zscore"] | None,
        typer.Option(help=_FUSION + " [zscore with words or a picture, cosine between videos]"),
    ] = None,
    category: CategoryOption = None,
    exclude_category: ExcludeOption = None,
    diversity: Diversity = 0.0,
    min_score: MinScore = None,
    moments: Annotated[bool, typer.Option("--moments", help="Find moments, over the frames of all videos.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find videos, or moments of them, by words, pictures, clips and examples, or all of them together."""
    from service import config
    from service.domain import Weights
    from service.search.question import Like, Question, Scope

    pictures, clips = image or [], video or []
    for option, path in [("image", path) for path in pictures] + [("video", path) for path in clips]:
        if not path.is_file():
            raise InvalidInput(option, f"there is no file {path}")
    if query is None and not (pictures or clips or like or unlike):
        raise InvalidInput("query", "give words, or one of --image, --video, --like, --unlike")
    weights = Weights(video_weight, text_weight)
    seeing = bool(pictures or clips)
    with _runtime(config.load(), pictures=seeing) as runtime:
        likes = [*(Like(one) for one in like or ()), *(Like(one, -1.0) for one in unlike or ())]
        examples = [] if query is None else [runtime.examples.text(query)]
        examples += [runtime.examples.picture(path) for path in pictures]
        for path in clips:
            known, strange = _by_path(runtime, str(path))
            likes += known
            examples += strange
        question = Question(
            likes=tuple(likes),
            examples=tuple(examples),
            weights=weights,
            fusion=fusion or ("cosine" if query is None and not pictures else "zscore"),
            k=k,
            scope=Scope(tuple(category or ()), tuple(exclude_category or ())),
            diversity=diversity,
            min_score=min_score,
            group_by="moment" if moments else "video",
        )
        answer = runtime.recommender.answer(question)
        _say_whose_answer(runtime)
    _print_answer(answer, as_json)


@app.command()
def duplicates(as_json: AsJson = False) -> None:
    """List videos that are copies of one another, as groups: the one to keep, then its copies.

    Copies are clips of the same recording, encoded again, resized, with black bars, trimmed or played backwards.
    """
    from service import config
    from service.api import schemas
    from service.database import catalog

    with _runtime(config.load(), pictures=False) as runtime:
        with runtime.db.read() as connection:
            total = catalog.status_counts(connection).get("ready", 0)
        with _progress(total, "comparing") as step:
            groups = runtime.duplicates.groups(lambda: step(""))
    if as_json:
        found = [
            {
                "best": schemas.VideoSummary.of(group.best).model_dump(),
                "copies": schemas.DuplicateList.of(group.copies).model_dump()["items"],
            }
            for group in groups
        ]
        typer.echo(json.dumps({"items": found}, indent=2))
        return
    if not groups:
        err.print("no copies found")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("group", "similarity"):
        table.add_column(column, justify="right")
    for column in ("category", "title", "size", "duration", "id"):
        table.add_column(column, no_wrap=column != "title")
    for number, group in enumerate(groups, 1):
        rows = [(group.best, "keep"), *((copy.video, f"{copy.similarity:.3f}") for copy in group.copies)]
        for one, mark in rows:
            seconds = "-" if one.duration_seconds is None else f"{one.duration_seconds:.1f} s"
            size = f"{one.width} x {one.height}"
            table.add_row(str(number), mark, one.category or "-", _plain(one.title), size, seconds, one.id)
    out.print(table)


@app.command()
def export(
    folder: Annotated[Path | None, typer.Argument(help="Where to write; made where it is missing.")] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write one Parquet file instead, with each video's place on a map.")
    ] = None,
    method: MethodOption = "umap",
    dimensions: Dimensions = 2,
    seed: Seed = 0,
) -> None:
    """Write frame, aggregated and text embeddings as .npy with a JSON of the metadata, per category and video; or all
    of it as one Parquet file, which data tools open."""
    from service import config
    from service.database import catalog
    from service.operations.export import export_folder, export_table

    if (folder is None) == (parquet is None):
        raise InvalidInput("folder", "give a folder, or --parquet FILE")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InvalidInput("folder", f"{folder} is not a folder")
    with _runtime(config.load()) as runtime:
        with runtime.db.read() as connection:
            total = catalog.status_counts(connection).get("ready", 0)
        if folder is not None:
            with _progress(total, "exporting") as step:
                count = export_folder(runtime, folder, lambda video: step(video.title))
        elif parquet is not None:
            spec = runtime.atlas.spec("aggregated", method, dimensions, seed=seed)
            with _share("projecting") as share:
                state = runtime.atlas.ready(spec, progress=share)
            with _progress(total, "exporting") as step:
                count = export_table(runtime, parquet, state, lambda video: step(video.title))
    typer.echo(f"{count} videos exported to {folder or parquet}")


@app.command()
def visualize(
    embedding_type: Annotated[
        Literal["frame", "aggregated", "text"], typer.Option(help="What is shown.")
    ] = "aggregated",
    dimensions: Dimensions = 2,
    method: MethodOption = "umap",
    output: Annotated[Path, typer.Option(help="The file to write: .html, .png or .svg.")] = Path("embeddings.html"),
    seed: Seed = 0,
    category: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    neighbors: Annotated[int | None, typer.Option(help="umap: how many make a neighbourhood. [15]")] = None,
    min_dist: Annotated[float | None, typer.Option(help="umap: how near points may lie. [0.1]")] = None,
    perplexity: Annotated[float | None, typer.Option(help="tsne: how many make a neighbourhood, about. [30]")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Lay the map out anew, where it is kept already.")] = False,
) -> None:
    """Write a map of the embeddings, coloured by category, as an interactive HTML file or as a picture.

    A map is kept: videos that came since are placed into it, and nothing else moves.
    """
    from service import config
    from service.operations.visualize import write_map

    given = {"n_neighbors": neighbors, "min_dist": min_dist, "perplexity": perplexity}
    parameters = {name: value for name, value in given.items() if value is not None}
    with _runtime(config.load()) as runtime:
        spec = runtime.atlas.spec(
            embedding_type, method, dimensions, seed=seed, parameters=parameters, category=category
        )
        with _share("projecting") as share:
            state = write_map(runtime, output, spec, refit=refit, progress=share)
    typer.echo(f"{state.points} points in {output}")
    if state.placed:
        err.print(f"{state.placed} of them were placed since the map was laid out; --refit lays it out anew")
    if state.missing:
        err.print(f"{state.missing} videos came since and cannot be placed into such a map; --refit lays it out anew")


@app.command("config")
def show_config(as_json: AsJson = False) -> None:
    """Print every setting with its value and where it came from; secrets are masked."""
    from service import config

    rows = config.describe(config.load())
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "source", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column in ("setting", "source"))
    for row in rows:
        table.add_row(*(str(row[name] or "") for name in ("name", "value", "source", "description")))
    out.print(table)


@database.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's schema up to date; `serve` and `embed` do the same when they start."""
    from service import config
    from service.database import db

    settings = config.load()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    db.upgrade(settings.database)
    typer.echo(f"{settings.database} is up to date")


@keyring.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    rights: Annotated[
        Literal["read", "write", "admin"], typer.Option(help="What it may do; each includes the one before.")
    ],
) -> None:
    """Make an API key. Its secret is printed this once and stored nowhere."""
    from service import config
    from service.database import keys

    with _database(config.load()) as opened, opened.write() as connection:
        secret = keys.create(connection, name, rights)
    err.print(f"key {name} with the right {rights}; it cannot be shown again", markup=False)
    typer.echo(secret)


@keyring.command("list")
def keys_list(as_json: AsJson = False) -> None:
    """List the API keys: their names and rights, never their secrets. Those in the settings are not among them."""
    from service import config
    from service.database import keys

    with _database(config.load()) as opened, opened.read() as connection:
        found = keys.every(connection)
    if as_json:
        rows = [
            {"name": key.name, "rights": key.right, "created_at": f"{key.created_at.isoformat()}Z"} for key in found
        ]
        typer.echo(json.dumps({"items": rows}, indent=2))
        return
    if not found:
        err.print("there are no keys")
        return
    table = Table("name", "rights", "created", box=None, pad_edge=False)
    for key in found:
        table.add_row(key.name, key.right, f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(table)


@keyring.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """Take an API key back, in a running server too."""
    from service import config
    from service.database import keys

    settings = config.load()
    with _database(settings) as opened, opened.write() as connection:
        keys.revoke(connection, name)
        left = keys.exist(connection) or bool(settings.api_keys)
    err.print(f"key {name} opens nothing any more", markup=False)
    if not left:
        err.print("no key is left: on this machine's own addresses nobody needs one now", style="yellow")


@vectors.command("verify")
def index_verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every stored byte, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold the index and the stored clips against the database, and the database against itself. Changes nothing; the
    service may run. Exit status 1 where something is wrong."""
    from service import config
    from service.operations import doctor

    settings = config.load()
    with _examining() as step:
        found = doctor.verify(settings, deep=deep, step=step)
    _print_findings(found, as_json)


@vectors.command("rebuild")
def index_rebuild() -> None:
    """Throw the index's snapshot away and build it anew from the database. A service that runs goes on with the index
    that it has in memory, and reads this one when it starts."""
    from service import config
    from service.operations import doctor

    settings = config.load()
    with _examining() as step:
        step("index")
        count = doctor.rebuild(settings)
    typer.echo(f"the index of {count} videos is built anew")


@app.command("doctor")
def examine(as_json: AsJson = False) -> None:
    """Say what is the matter with this library and this machine, and what to do. Changes nothing; the service may run.
    Exit status 1 where something is wrong."""
    from service import config
    from service.operations import doctor

    settings = config.load()
    with _examining() as step:
        found = doctor.examine(settings, step)
    _print_findings(found, as_json)


@app.command()
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write, which is replaced; - for stdout.")],
) -> None:
    """Write the whole library to one file (tar), while it is served. What is uploaded after the start is not in it."""
    from service import config
    from service.operations.backup import back_up

    settings = config.load()
    with _clips("backing up") as step:
        summary = back_up(settings, None if file == "-" else Path(file), step)
    err.print(f"{summary.videos} videos, {summary.size_bytes / 1e6:,.1f} MB in {file}", markup=False, soft_wrap=True)
    for name in summary.damaged:
        err.print(f"damaged in the library: video {name}", style="red", markup=False)
    if summary.damaged:
        raise typer.Exit(3)


@app.command()
def restore(file: Annotated[str, typer.Argument(metavar="FILE", help="A backup; - for stdin.")]) -> None:
    """Put a backup into an empty data folder. All of it is checked before anything is put in place."""
    from service import config
    from service.operations import backup as backups

    settings = config.load()
    if file != "-" and not Path(file).is_file():
        raise InvalidInput("FILE", f"there is no file {file}")
    with _clips("restoring") as step:
        summary = backups.restore(settings, None if file == "-" else Path(file), step)
    typer.echo(f"{summary.videos} videos, {summary.size_bytes / 1e6:,.1f} MB in {settings.data_dir}")


@app.command("copy")
def copy_library(
    to_database: Annotated[str, typer.Option(metavar="URL", help="As REELSRS_DATABASE_URL; must be empty.")],
    to_storage: Annotated[str, typer.Option(metavar="URL", help="As REELSRS_STORAGE_URL.")],
) -> None:
    """Copy the library to another database and store, from files to servers or back, while it is served. What is
    uploaded or changed after the end stays here."""
    from service import config
    from service.operations.copying import copy

    target = config.load(database_url=to_database, storage_url=to_storage)
    with _clips("copying") as step:
        copied = copy(config.load(), target.database, target.storage, step)
    typer.echo(f"{copied.videos} videos, {copied.size_bytes / 1e6:,.1f} MB")
    for name in copied.damaged:
        err.print(f"damaged in the library, and left out: video {name}", style="red", markup=False)
    if copied.damaged:
        raise typer.Exit(3)


@app.command()
def worker(
    while_stdin_is_open: Annotated[bool, typer.Option("--while-stdin-is-open", hidden=True)] = False,
    lay_out: Annotated[int | None, typer.Option("--lay-out", hidden=True)] = None,
    owner: Annotated[str, typer.Option("--owner", hidden=True)] = "",
    generation: Annotated[str, typer.Option("--generation", hidden=True)] = "",
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="answer Prometheus there, under /metrics")] = "",
) -> None:
    """Embed what is queued, and lay out the maps that were asked for, until interrupted. `serve` starts one of its
    own."""
    import signal
    import threading

    from service import config, figures, log
    from service.database import catalog
    from service.errors import ConfigurationError
    from service.generations import generations
    from service.projections.atlas import Cancelled
    from service.worker.worker import Worker, lower_priority, stop_with_stdin

    log.configure()
    stop = threading.Event()
    if while_stdin_is_open or lay_out is not None or generation:
        stop_with_stdin(stop)
    lower_priority()
    if lay_out is not None:
        with _runtime(config.load()) as runtime, suppress(Cancelled):
            runtime.atlas.lay_out(lay_out, owner)
        return
    if generation:
        lower_priority()  # once more: uploads go first
        with _runtime(config.load()) as runtime:
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            with runtime.db.read() as connection:
                other = catalog.generation(connection, generation)
            try:
                runtime.reembedding(other).run(stop)
            except Exception as error:
                with runtime.db.write() as connection:
                    generations.report(connection, generation, str(error))
                raise
        return
    if metrics:
        host, _, port = metrics.rpartition(":")
        if not (host and port.isdigit() and int(port) < 65536):
            raise typer.BadParameter("must be HOST:PORT", param_hint="--metrics")
        try:
            figures.show(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigurationError(f"--metrics: {metrics} cannot be listened on: {error.strerror}") from error
    with _runtime(config.load()) as runtime:
        runtime.adopt(wishes=False)
        # From here on a signal ends the work in order; while the model was loading it simply ended the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        Worker(runtime).run(stop)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demonstration lives.")] = Path("reelsrs-demo"),
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    serve_it: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve it once it is made.")] = True,
) -> None:
    """Make a small library of drawn clips, embed it with the small model `tiny`, and serve it. Needs no network."""
    from service import config
    from service.api.app import check_access
    from service.operations.folder import scan

    data = folder / "data"
    settings = config.load(
        data_dir=data,
        database_url=f"sqlite:///{data / 'reelsrs.db'}",
        storage_url=str(data / "media"),
        model="tiny",
        host=host,
        port=port,
    )
    clips = folder / "Data"
    if serve_it:  # said now, and not once all is drawn and embedded
        with _runtime(settings) as runtime:
            check_access(runtime)
    _draw_demo(clips)
    entries = scan(clips)
    with _runtime(settings) as runtime:
        summary = _import(runtime, entries, settings.sampling)
    if summary.failures:
        path, reason = summary.failures[0]
        raise InvalidInput("folder", f"{len(summary.failures)} clips failed, the first {path}: {reason}")
    if not serve_it:
        typer.echo(f"{len(entries)} clips in {clips}, their library in {settings.data_dir}")
        return
    url = f"http://{settings.host}:{settings.port}"
    example = entries[0].path
    err.print(
        f"\n{len(entries)} drawn clips are embedded with the small model [b]tiny[/b] (not for production).\n\n"
        f"  Look around     [b]{url}/explore[/b]\n"
        f"  API, to try     [b]{url}/docs[/b]\n"
        f"  From a shell    curl {url}/v1/videos?limit=3\n"
        f"                  REELSRS_DATA_DIR={settings.data_dir} reelsrs similar {example}\n\n"
        "  Ctrl-C stops it.\n",
        soft_wrap=True,
    )
    _serve(settings, worker=True)


# --- inside


def _serve(settings: Settings, *, worker: bool) -> None:
    import gc

    import uvicorn

    from service import log
    from service.api.app import create_app, start
    from service.api.guard import Protocol, allow_many_connections
    from service.worker.worker import WorkerProcess

    log.configure()
    allow_many_connections()
    # Built before the server, so that what cannot be had is a sentence and not a failed start-up event.
    application = create_app(settings, worker=WorkerProcess if worker else None, started=start(settings))
    # What is there now stays: the collector would look through a million objects of the model's libraries each time
    # that an answer of many rows is put together.
    gc.freeze()
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,  # streams of events never end by themselves
    )


def _import(runtime: Runtime, entries: list[Entry], sampling: Sampling) -> Summary:
    from service.operations.folder import FolderImport

    runtime.adopt()  # the model is loaded, and has said what it has to say, before there is a bar to disturb
    with _share("another model embeds what is there") as share:
        runtime.move_over(share)
    with _progress(len(entries), "embedding") as step:
        summary = FolderImport(runtime, sampling, lambda path, _: step(path.name)).run(entries)
    assert runtime.follower is not None  # the index is built now, and saved at the end, rather than by the first search
    return summary


def _by_path(runtime: Runtime, video: str) -> tuple[tuple[Like, ...], tuple[Example, ...]]:
    """What a path, of a clip in the library or not, or an id stands for."""
    import hashlib

    from service.database import catalog
    from service.errors import NotFound
    from service.operations.folder import sidecar
    from service.search.question import Like

    assert runtime.recommender is not None  # an empty library is said before a model is loaded for nothing
    path = Path(video)
    if not path.is_file():
        with runtime.db.read() as connection:
            try:
                return (Like(catalog.video(connection, video).id),), ()
            except NotFound:
                raise NotFound(
                    f"{video!r} is neither a file nor the id of a video in {runtime.settings.data_dir}"
                ) from None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with runtime.db.read() as connection:
        known = catalog.video_by_sha256(connection, sha256)
    if known and known.status == "ready":
        return (Like(known.id),), ()
    return (), (runtime.examples.clip(path, sidecar(path), runtime.settings.sampling),)


def _print_answer(answer: Answer, as_json: bool) -> None:
    if as_json:
        from service.api import schemas

        typer.echo(schemas.Answer.of(answer).model_dump_json(indent=2))
        return
    if not answer.hits:
        err.print("nothing found")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "score", "seen", "written", "seconds"):
        table.add_column(column, justify="right")
    for column in ("category", "title", "caption", "id"):
        table.add_column(column, no_wrap=column == "id")
    for hit in answer.hits:
        written, moment = hit.text_part.similarity, hit.moment
        marked = "-" if written is None else f"{written:.3f}{'*' if hit.text_part.imputed else ''}"
        table.add_row(
            str(hit.rank),
            f"{hit.score:.4f}",
            f"{hit.video_part.similarity:.3f}",
            marked,
            f"{moment.time:.1f}" if moment.start is None else f"{moment.start:.1f}-{moment.end:.1f}",
            hit.video.category or "-",
            _plain(hit.video.title),
            _plain((hit.video.caption or "-")[:100]),
            hit.video.id,
        )
    out.print(table)
    weights = f"weights: video {answer.weights.video:g}, text {answer.weights.text:g}; {answer.fusion}"
    imputed = any(hit.text_part.imputed for hit in answer.hits) and answer.weights.text > 0
    err.print(weights + ("; * has no caption, counts as average" if imputed else ""), style="dim")


def _say_whose_answer(runtime: Runtime) -> None:
    """Where the settings ask for another model than the library has: it is theirs only once it was moved over."""
    model, precision = runtime.settings.wish
    answering = runtime.serving.generation
    if model not in (None, answering.model) or precision not in (None, answering.precision):
        words = f"answered by {answering.model} in {answering.precision}, which the library was embedded with"
        err.print(f"{words}; `reelsrs embed` moves it to the model of the settings", style="yellow", markup=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _draw_demo(clips: Path) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from service.media.drawing import distinct_scenes

    scenes = distinct_scenes(_DEMO_CLIPS, seed=_DEMO_SEED)
    targets = [clips / scene.category / f"clip_{number:02d}.mp4" for number, scene in enumerate(scenes)]
    missing = [pair for pair in zip(scenes, targets, strict=True) if not pair[1].exists()]
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn) as pool, _progress(len(missing), "drawing") as step:
        for future in as_completed([pool.submit(_draw_clip, scene, target) for scene, target in missing]):
            step(future.result())


def _draw_clip(scene: Scene, target: Path) -> str:
    from service.media.drawing import write_clip

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.stem}.part.mp4")  # hidden from an import until it is whole
    write_clip(scene, aside)
    target.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    aside.replace(target)
    return target.name


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    from service.database import db

    db.upgrade(settings.database)
    opened = db.Database(settings.database)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _runtime(settings: Settings, *, pictures: bool = True) -> Iterator[Runtime]:
    import logging

    from service import log
    from service.database.db import PATIENT_SECONDS
    from service.runtime import Runtime

    if not logging.getLogger().handlers:
        log.configure(logging.WARNING)
    runtime = Runtime(settings, pictures=pictures)
    runtime.db.patience_seconds = PATIENT_SECONDS  # nobody waits for an answer
    try:
        yield runtime
    finally:
        runtime.close()


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """A bar with rate and time left on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False, style="dim"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", name="")

        def step(name: str) -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "", name=name[:40])

        yield step


@contextmanager
def _clips(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of clips on a terminal, of which it may become known only later how many there are."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def _examining() -> Iterator[Callable[[str], None]]:
    """What is looked at now, on a terminal; the log is quiet, for what it would say is among the findings."""
    import logging

    from service import log

    log.configure(logging.ERROR)
    with err.status("settings") as status:
        yield status.update


def _print_findings(found: list[Finding], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in found]}, indent=2))
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        for one in found:
            then = f": {one.do}" if one.do else ""
            line = f"[{colours[one.state]}]{one.state:8}[/] {one.check}: {_plain(one.said + then)}"
            out.print(line, soft_wrap=True)
    if any(one.state == "problem" for one in found):
        raise typer.Exit(1)


@contextmanager
def _share(what: str) -> Iterator[Callable[[float], None]]:
    """A bar of what is done, 0 to 1, on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)
