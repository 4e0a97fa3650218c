"""Commands `config`, `db`, `index` and `doctor`: inspect and repair a library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.cli.console import cell, err, out, plain
from service.cli.options import AsJson

if TYPE_CHECKING:
    from service.operations.doctor import Finding


def show_config(as_json: AsJson = False) -> None:
    """Print every setting with its value and its source.

    Secrets are masked.
    """
    from service import config

    rows = config.describe(config.load())
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "source", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column in ("setting", "source"))
    for row in rows:
        table.add_row(*(cell(row[name] or "") for name in ("name", "value", "source", "description")))
    out.print(table)


def db_upgrade() -> None:
    """Upgrade the schema of the database.

    `serve` and `embed` do the same when they start.
    """
    from service import config
    from service.database import db, dialects

    settings = config.load()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    db.upgrade(settings.database)
    typer.echo(f"{dialects.shown_url(settings.database)} is up to date")


def index_verify(
    deep: Annotated[bool, typer.Option("--deep", help="Also read every stored byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the index, the stored clips and the database.

    The index and the stored clips are compared with the database. Nothing is changed, and the service may run. Exit
    status 1 if there is a problem.
    """
    from service import config
    from service.operations import doctor

    settings = config.load()
    with examining() as step:
        found = doctor.verify(settings, deep=deep, progress=step)
    print_findings(found, as_json)


def index_rebuild() -> None:
    """Rebuild the index from the database.

    The new snapshot replaces the old one. A running service keeps the index that it has in memory, and reads the new
    one when it starts again.
    """
    from service import config
    from service.operations import doctor

    settings = config.load()
    with examining() as step:
        step("index")
        count = doctor.rebuild(settings)
    typer.echo(f"index rebuilt: {count} videos")


def examine(as_json: AsJson = False) -> None:
    """Diagnose the library and this machine, and suggest fixes.

    Nothing is changed, and the service may run. Exit status 1 if there is a problem.
    """
    from service import config
    from service.operations import doctor

    settings = config.load()
    with examining() as step:
        found = doctor.diagnose(settings, step)
    print_findings(found, as_json)


@contextmanager
def examining() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a terminal.

    Only errors are logged until the block ends, because the findings report everything else.
    """
    import logging

    from service import telemetry

    telemetry.configure_logging(logging.ERROR)
    with err.status("settings") as status:
        yield status.update


def print_findings(found: list[Finding], as_json: bool) -> None:
    """Print the findings as text or JSON. Raises Exit with status 1 if there is a problem."""
    if as_json:
        rows = [{"check": one.check, "state": one.state, "said": one.message, "do": one.fix} for one in found]
        typer.echo(json.dumps({"findings": rows}, indent=2))
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        for one in found:
            suffix = f": {one.fix}" if one.fix else ""
            line = f"[{colours[one.state]}]{one.state:8}[/] {one.check}: {plain(one.message + suffix)}"
            out.print(line, soft_wrap=True)
    if any(one.state == "problem" for one in found):
        raise typer.Exit(1)
