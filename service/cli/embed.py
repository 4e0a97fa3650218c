"""Command `embed`: import a folder of clips into the library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import err, progress
from service.cli.options import AsJson
from service.cli.session import make_model, open_runtime
from service.names import path_text, shown

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.models import Sampling
    from service.operations.folder_import import ImportReport
    from service.operations.folder_scan import Found


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
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave out paths below the folder, such as 'raw/*' or '*_draft.mp4'; repeatable."
        ),
    ] = None,
    list_skipped: Annotated[
        bool, typer.Option("--list-skipped", help="List everything in the folder that was left out, with the reason.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Embed every clip below Data/<Category>/, with its caption.

    The caption of a clip is read from <stem>.json, .txt, .vtt or .srt beside it. A second run embeds only what is new
    or changed. A bad file is reported and skipped (exit status 3).
    """
    from service import config
    from service.embedding.devices import choose_device
    from service.models import Sampling
    from service.operations.folder_scan import find

    settings = config.load()
    default = settings.sampling
    sampling = Sampling(
        default.num_frames if num_frames is None else num_frames,
        default.frame_interval if frame_interval is None else frame_interval,
    )
    found = find(data_folder, exclude or ())
    make_model(settings)
    device, precision, because = choose_device(settings.device, settings.precision)
    err.print(f"{settings.model} on {device} in {precision}: {because}", style="dim", markup=False)
    with open_runtime(settings) as runtime:
        report = import_folder(runtime, found, sampling)
    print_report(report, as_json=as_json, list_skipped=list_skipped)
    if report.failures:
        raise typer.Exit(3)


def print_report(report: ImportReport, *, as_json: bool = False, list_skipped: bool = False) -> None:
    """Print the duplicates and failures of an import, its counts, and what was skipped or how many for each reason."""
    named = [
        *((f"duplicate {shown(path)}: {reason}", "yellow") for path, reason in report.duplicates),
        *((f"failed {shown(path)}: {reason}", "red") for path, reason in report.failures),
        *((f"skipped {shown(path)}: {reason}", "dim") for path, reason in report.skipped if list_skipped),
    ]
    for line, style in named:
        err.print(line, style=style, markup=False, soft_wrap=True)
    if report.skipped and not list_skipped:
        reasons = Counter(reason.partition(":")[0] for _, reason in report.skipped)
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        err.print(f"skipped: {counted}; --list-skipped names them", style="dim", markup=False, soft_wrap=True)
    if as_json:
        pairs = {"duplicates": report.duplicates, "failures": report.failures, "skipped": report.skipped}
        typer.echo(
            json.dumps(
                {
                    "embedded": report.embedded,
                    "updated": report.updated,
                    "unchanged": report.unchanged,
                    **{
                        name: [{"path": path_text(path), "reason": reason} for path, reason in found]
                        for name, found in pairs.items()
                    },
                }
            )
        )
    else:
        typer.echo(
            f"{report.embedded} embedded, {report.updated} updated, {report.unchanged} unchanged, "
            f"{len(report.duplicates)} duplicates, {len(report.failures)} failed, {len(report.skipped)} skipped"
        )


def import_folder(runtime: Runtime, found: Found, sampling: Sampling) -> ImportReport:
    """Import the clips of a folder, with progress bars.

    If the configured model has changed, the library is re-embedded first.
    """
    from service.operations.folder_import import FolderImport

    runtime.initialise()  # load the model before there is a bar that its messages would disturb
    with progress("re-embedding", share=True) as bar:
        runtime.reembed(bar.share)
    with progress("embedding", len(found.entries)) as bar:
        report = FolderImport(runtime, sampling, lambda path, _: bar.advance(shown(path.name))).run(found)
    runtime.serving.index.check()  # build the index now, not in the first search; it is saved at the end
    return report
