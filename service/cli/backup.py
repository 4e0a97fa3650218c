"""Commands `backup`, `restore` and `copy`: the whole library as a file, or in another place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import err, progress
from service.errors import InvalidInput
from service.names import shown


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write, replaced if it exists; - for stdout.")],
) -> None:
    """Write the whole library to one tar file.

    The service may run meanwhile. Uploads after the start are not in the backup. Exit status 3 if stored clips are
    missing or damaged; each is named.
    """
    from service import config
    from service.operations.backup import back_up

    settings = config.load()
    with progress("backing up") as bar:
        report = back_up(settings, None if file == "-" else Path(file), bar.count)
    err.print(
        f"{report.videos} videos, {report.size_bytes / 1e6:,.1f} MB in {shown(file)}", markup=False, soft_wrap=True
    )
    for name in report.damaged:
        err.print(f"video {name}: the stored clip is missing or damaged", style="red", markup=False)
    if report.damaged:
        raise typer.Exit(3)


def restore(file: Annotated[str, typer.Argument(metavar="FILE", help="Backup file; - for stdin.")]) -> None:
    """Restore a backup into an empty data folder.

    The whole backup is checked before any file is put in place.
    """
    from service import config
    from service.operations import backup as backups

    settings = config.load()
    if file != "-" and not Path(file).is_file():
        raise InvalidInput("FILE", f"there is no file {shown(file)}")
    with progress("restoring") as bar:
        report = backups.restore(settings, None if file == "-" else Path(file), bar.count)
    typer.echo(f"{report.videos} videos, {report.size_bytes / 1e6:,.1f} MB in {shown(settings.data_dir)}")


def copy_library(
    to_database: Annotated[
        str, typer.Option(metavar="URL", help="Target database; must be empty. Same form as REELSRS_DATABASE_URL.")
    ],
    to_storage: Annotated[str, typer.Option(metavar="URL", help="Target store. Same form as REELSRS_STORAGE_URL.")],
) -> None:
    """Copy the library to another database and store.

    Both places may be files or servers. The service may run meanwhile. Uploads and changes after the end of the copy
    stay in the old library only. Exit status 3 if stored clips are missing or damaged; each is named and left out.
    """
    from service import config
    from service.operations.copy_library import copy

    target = config.load(database_url=to_database, storage_url=to_storage)
    with progress("copying") as bar:
        report = copy(config.load(), target.database, target.storage, bar.count)
    typer.echo(f"{report.videos} videos, {report.size_bytes / 1e6:,.1f} MB")
    for name in report.damaged:
        err.print(f"video {name}: not copied, because the clip is missing or damaged", style="red", markup=False)
    if report.damaged:
        raise typer.Exit(3)
