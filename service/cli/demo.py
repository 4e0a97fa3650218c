"""Command `demo`: make a small library of drawn clips or of a folder of clips, and serve it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import err, plain, progress
from service.cli.embed import import_folder, print_report
from service.cli.serve import run_server
from service.cli.session import make_model, open_runtime
from service.errors import InvalidInput
from service.names import shown, sqlite_url

if TYPE_CHECKING:
    from service.config import Settings
    from service.media.synthetic.scenes import Scene
    from service.operations.folder_scan import Entry

_DEMO_CLIPS = 48
_DEMO_SEED = 7
_EXAMPLE_WORDS = 8


def demo(
    data_folder: Annotated[
        Path | None,
        typer.Option("--data-folder", "--data_folder", help="Folder with <Category>/<clip> files; unset: drawn clips."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the demo library.")] = Path("reelsrs-demo"),
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    serve_it: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the library when it is complete.")] = True,
) -> None:
    """Make and serve a small demonstration library.

    With --data-folder, it holds these clips, embedded with the model `starter`: pip install "reelsrs[starter]". Without
    it, its clips are synthetic and embedded with the small model `tiny`. No model is downloaded.
    """
    from service.api.app import check_access
    from service.embedding.starter import store
    from service.operations.folder_scan import find

    settings = _settings(folder, own_clips=data_folder is not None, host=host, port=port)
    if data_folder is not None:  # fail now, before anything is written
        store.check_precision(settings.precision)
        store.check_available(settings.data_dir / "models")
        found = find(data_folder)
    if serve_it:  # fail now, not after everything is drawn and embedded
        with open_runtime(settings) as runtime:
            check_access(runtime)
    if data_folder is None:
        _draw_demo(folder / "Data")
        found = find(folder / "Data")
    make_model(settings)
    with open_runtime(settings) as runtime:
        report = import_folder(runtime, found, settings.sampling)
    if data_folder is not None:
        print_report(report)  # clips of a user may fail
    elif report.failures:
        path, reason = report.failures[0]
        raise InvalidInput("folder", f"{len(report.failures)} clips failed; the first is {shown(path)}: {reason}")
    example = _example(settings, found.entries)
    if not serve_it:
        clips = shown(data_folder or folder / "Data")
        typer.echo(f"{len(found.entries)} clips in {clips}, library in {shown(settings.data_dir)}")
        if data_folder is not None:
            typer.echo(f"search it by words: {example}")
        if report.failures:
            raise typer.Exit(3)
        return
    _print_addresses(settings, len(found.entries), example)
    run_server(settings, worker=True)


def _settings(folder: Path, *, own_clips: bool, host: str | None, port: int | None) -> Settings:
    """Return the settings of the demo library. Drawn clips and those of a user have a library each."""
    from service import config

    data = folder / ("own" if own_clips else "data")
    return config.load(
        data_dir=data,
        database_url=sqlite_url(data / "reelsrs.db"),
        storage_url=str(data / "media"),
        model="starter" if own_clips else "tiny",
        host=host,
        port=port,
    )


def _example(settings: Settings, entries: list[Entry]) -> str:
    """Return a command that searches the library: by words with `starter`, by a clip with `tiny`."""
    place = f"REELSRS_DATA_DIR={shlex.quote(str(settings.data_dir))} reelsrs"
    if settings.model == "tiny":
        return f"{place} similar {shlex.quote(str(entries[0].path))}"
    words = next(filter(None, map(_caption, entries)), entries[0].category.replace("_", " ")).split()
    return f"{place} search {shlex.quote(' '.join(words[:_EXAMPLE_WORDS]))}"


def _caption(entry: Entry) -> str | None:
    from service.operations.sidecars import read_sidecar

    try:
        return read_sidecar(entry.path).caption
    except InvalidInput:  # the import has named it
        return None


def _print_addresses(settings: Settings, clips: int, example: str) -> None:
    from service.embedding.starter import NOTE

    url = f"http://{settings.host}:{settings.port}"
    what = (
        "synthetic clips are embedded with the small model [b]tiny[/b] (not for production)."
        if settings.model == "tiny"
        else f"clips are embedded with the model [b]starter[/b]. {NOTE}"
    )
    err.print(
        f"\n{clips} {what}\n\n"
        f"  Explorer        [b]{url}/explore[/b]\n"
        f"  API docs        [b]{url}/docs[/b]\n"
        f"  From a shell    curl {url}/v1/videos?limit=3\n"
        f"                  {plain(example)}\n\n"
        "  Press Ctrl-C to stop.\n",
        soft_wrap=True,
    )


def _draw_demo(clips: Path) -> None:
    """Draw the clips that are missing, in several processes."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from service.media.synthetic.scenes import distinct_scenes

    scenes = distinct_scenes(_DEMO_CLIPS, seed=_DEMO_SEED)
    targets = [clips / scene.category / f"clip_{number:02d}.mp4" for number, scene in enumerate(scenes)]
    missing = [pair for pair in zip(scenes, targets, strict=True) if not pair[1].exists()]
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn) as pool, progress("drawing", len(missing)) as bar:
        for future in as_completed([pool.submit(_draw_clip, scene, target) for scene, target in missing]):
            bar.advance(future.result())


def _draw_clip(scene: Scene, target: Path) -> str:
    """Write the clip of a scene with its caption; return the file's name."""
    from service.media.synthetic.drawing import write_clip

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.stem}.part.mp4")  # hidden, so that an import skips it until it is complete
    write_clip(scene, aside)
    target.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    aside.replace(target)
    return target.name
