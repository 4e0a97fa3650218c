"""The entry point of the command line: its commands and their exit statuses.

Data goes to stdout, progress and messages go to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 3 some items
failed (each is named). Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from service import __version__
from service.cli import backup, demo, embed, evaluate, export, keys, maintenance, search, serve, worker
from service.cli.console import accept_every_character, err
from service.errors import InvalidInput, ReelsError

app = typer.Typer(
    name="reelsrs",
    help="Recommend videos: embed clips, find similar ones, serve them over REST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve.serve)
app.command()(embed.embed)
app.command()(search.similar)
app.command()(search.search)
app.command()(search.duplicates)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(export.visualize)
app.command("config")(maintenance.show_config)
app.command("doctor")(maintenance.examine)
app.command()(backup.backup)
app.command()(backup.restore)
app.command("copy")(backup.copy_library)
app.command()(worker.worker)
app.command("lay-out", hidden=True)(worker.fit_projection)
app.command(hidden=True)(worker.reembed)
app.command()(demo.demo)

database = typer.Typer(help="Manage the database.", no_args_is_help=True)
database.command("upgrade")(maintenance.db_upgrade)
app.add_typer(database, name="db")

keyring = typer.Typer(help="Manage API keys.", no_args_is_help=True)
keyring.command("create")(keys.keys_create)
keyring.command("list")(keys.keys_list)
keyring.command("revoke")(keys.keys_revoke)
app.add_typer(keyring, name="keys")

vectors = typer.Typer(help="Check or rebuild the vector index.", no_args_is_help=True)
vectors.command("verify")(maintenance.index_verify)
vectors.command("rebuild")(maintenance.index_rebuild)
app.add_typer(vectors, name="index")


def run() -> None:
    """Run the command line with the arguments of this process, and exit with its status."""
    sys.exit(status(sys.argv[1:]))


def status(arguments: list[str]) -> int:
    """Run one command and return its exit status. Errors are printed to stderr as one sentence."""
    accept_every_character()
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
    except BrokenPipeError:  # the reader ended early: `reelsrs search … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a full disk, or a folder without write permission
        err.print(f"reelsrs: {error}", style="red", markup=False)
        return 1
    return 0


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"reelsrs {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recommend videos: embed clips, find similar ones, serve them over REST.

    Settings come from environment variables that begin with REELSRS_ and from a file .env: `reelsrs config` shows them
    all.
    """
