"""Command `demo`: make a small library of synthetic clips, and serve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import err, progress
from service.cli.embed import import_folder
from service.cli.serve import run_server
from service.cli.session import open_runtime
from service.errors import InvalidInput

if TYPE_CHECKING:
    from service.media.synthetic.scenes import Scene

_DEMO_CLIPS = 48
_DEMO_SEED = 7


def demo(
    folder: Annotated[Path, typer.Option(help="Folder of the demo library.")] = Path("reelsrs-demo"),
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    serve_it: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the library when it is complete.")] = True,
) -> None:
    """Make and serve a small demonstration library.

    Its clips are synthetic and embedded with the small model `tiny`. No network is needed.
    """
    from service import config
    from service.api.app import check_access
    from service.operations.folder_import import scan

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
    if serve_it:  # fail now, not after everything is drawn and embedded
        with open_runtime(settings) as runtime:
            check_access(runtime)
    _draw_demo(clips)
    entries = scan(clips)
    with open_runtime(settings) as runtime:
        report = import_folder(runtime, entries, settings.sampling)
    if report.failures:
        path, reason = report.failures[0]
        raise InvalidInput("folder", f"{len(report.failures)} clips failed; the first is {path}: {reason}")
    if not serve_it:
        typer.echo(f"{len(entries)} clips in {clips}, library in {settings.data_dir}")
        return
    url = f"http://{settings.host}:{settings.port}"
    example = entries[0].path
    err.print(
        f"\n{len(entries)} synthetic clips are embedded with the small model [b]tiny[/b] (not for production).\n\n"
        f"  Explorer        [b]{url}/explore[/b]\n"
        f"  API docs        [b]{url}/docs[/b]\n"
        f"  From a shell    curl {url}/v1/videos?limit=3\n"
        f"                  REELSRS_DATA_DIR={settings.data_dir} reelsrs similar {example}\n\n"
        "  Press Ctrl-C to stop.\n",
        soft_wrap=True,
    )
    run_server(settings, worker=True)


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
