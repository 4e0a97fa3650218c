"""`backup`, `restore` and `copy`: the whole library elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import err, progress
from service.errors import InvalidInput


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write, which is replaced; - for stdout.")],
) -> None:
    """Write the whole library to one file (tar), while it is served. What is uploaded after the start is not in it."""
    from service import config
    from service.operations.backup import back_up

    settings = config.load()
    with progress("backing up") as bar:
        summary = back_up(settings, None if file == "-" else Path(file), bar.count)
    err.print(f"{summary.videos} videos, {summary.size_bytes / 1e6:,.1f} MB in {file}", markup=False, soft_wrap=True)
    for name in summary.damaged:
        err.print(f"damaged in the library: video {name}", style="red", markup=False)
    if summary.damaged:
        raise typer.Exit(3)


def restore(file: Annotated[str, typer.Argument(metavar="FILE", help="A backup; - for stdin.")]) -> None:
    """Put a backup into an empty data folder. All of it is checked before anything is put in place."""
    from service import config
    from service.operations import backup as backups

    settings = config.load()
    if file != "-" and not Path(file).is_file():
        raise InvalidInput("FILE", f"there is no file {file}")
    with progress("restoring") as bar:
        summary = backups.restore(settings, None if file == "-" else Path(file), bar.count)
    typer.echo(f"{summary.videos} videos, {summary.size_bytes / 1e6:,.1f} MB in {settings.data_dir}")


def copy_library(
    to_database: Annotated[str, typer.Option(metavar="URL", help="As REELSRS_DATABASE_URL; must be empty.")],
    to_storage: Annotated[str, typer.Option(metavar="URL", help="As REELSRS_STORAGE_URL.")],
) -> None:
    """Copy the library to another database and store, from files to servers or back, while it is served. What is
    uploaded or changed after the end stays here."""
    from service import config
    from service.operations.migrate import copy

    target = config.load(database_url=to_database, storage_url=to_storage)
    with progress("copying") as bar:
        copied = copy(config.load(), target.database, target.storage, bar.count)
    typer.echo(f"{copied.videos} videos, {copied.size_bytes / 1e6:,.1f} MB")
    for name in copied.damaged:
        err.print(f"damaged in the library, and left out: video {name}", style="red", markup=False)
    if copied.damaged:
        raise typer.Exit(3)
