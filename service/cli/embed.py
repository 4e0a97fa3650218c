"""Command `embed`: import a folder of clips into the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import err, progress
from service.cli.options import AsJson
from service.cli.session import make_model, open_runtime

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.models import Sampling
    from service.operations.folder_import import Entry, ImportReport


def embed(
    data_folder: Annotated[
        Path, typer.Option("--data-folder", "--data_folder", help="Folder with <Category>/<clip> files.")
    ] = Path("Data"),
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", "--num_frames", help="Frames per clip. [REELSRS_NUM_FRAMES]")
    ] = None,
    frame_interval: Annotated[
        int | None,
        typer.Option(
            "--frame-interval",
            "--frame_interval",
            help="Every Nth frame from the start; unset: spread evenly. [REELSRS_FRAME_INTERVAL]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Embed every clip below Data/<Category>/, with its caption.

    The caption of a clip is read from <stem>.txt beside it. A second run embeds only what is new or changed. A bad file
    is reported and skipped (exit status 3).
    """
    from service import config
    from service.embedding.devices import choose_device
    from service.models import Sampling
    from service.operations.folder_import import scan

    settings = config.load()
    default = settings.sampling
    sampling = Sampling(
        default.num_frames if num_frames is None else num_frames,
        default.frame_interval if frame_interval is None else frame_interval,
    )
    entries = scan(data_folder)
    make_model(settings)
    device, precision, because = choose_device(settings.device, settings.precision)
    err.print(f"{settings.model} on {device} in {precision}: {because}", style="dim", markup=False)
    with open_runtime(settings) as runtime:
        report = import_folder(runtime, entries, sampling)
    print_report(report, as_json=as_json)
    if report.failures:
        raise typer.Exit(3)


def print_report(report: ImportReport, *, as_json: bool = False) -> None:
    """Print the duplicates and failures of an import, and its counts."""
    for path, reason in report.duplicates:
        err.print(f"duplicate {path}: {reason}", style="yellow", markup=False, soft_wrap=True)
    for path, reason in report.failures:
        err.print(f"failed {path}: {reason}", style="red", markup=False, soft_wrap=True)
    if as_json:
        pairs = {"duplicates": report.duplicates, "failures": report.failures}
        typer.echo(
            json.dumps(
                {
                    "embedded": report.embedded,
                    "updated": report.updated,
                    "unchanged": report.unchanged,
                    **{
                        name: [{"path": str(path), "reason": reason} for path, reason in found]
                        for name, found in pairs.items()
                    },
                }
            )
        )
    else:
        typer.echo(
            f"{report.embedded} embedded, {report.updated} updated, {report.unchanged} unchanged, "
            f"{len(report.duplicates)} duplicates, {len(report.failures)} failed"
        )


def import_folder(runtime: Runtime, entries: list[Entry], sampling: Sampling) -> ImportReport:
    """Import the clips of a folder, with progress bars.

    If the configured model has changed, the library is re-embedded first.
    """
    from service.operations.folder_import import FolderImport

    runtime.initialise()  # load the model before there is a bar that its messages would disturb
    with progress("re-embedding", share=True) as bar:
        runtime.reembed(bar.share)
    with progress("embedding", len(entries)) as bar:
        report = FolderImport(runtime, sampling, lambda path, _: bar.advance(path.name)).run(entries)
    runtime.serving.index.check()  # build the index now, not in the first search; it is saved at the end
    return report
