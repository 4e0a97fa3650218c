"""Commands `keys create`, `keys list` and `keys revoke`: API keys."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.table import Table

from service.cli.console import cell, err, out
from service.cli.options import AsJson
from service.cli.session import open_database
from service.names import readable


def keys_create(
    name: Annotated[str, typer.Argument(help="Name of the key: its user or purpose.")],
    rights: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(help="What the key allows; each includes the previous one."),
    ],
) -> None:
    """Create an API key and print its secret.

    The secret is printed only once and is not stored.
    """
    from service import config
    from service.database import api_keys

    name = readable(name)
    with open_database(config.load()) as opened, opened.write() as connection:
        secret = api_keys.create(connection, name, rights)
    err.print(f"API key {name} with the right {rights}; its secret cannot be shown again", markup=False)
    typer.echo(secret)


def keys_list(as_json: AsJson = False) -> None:
    """List the API keys with their names and rights.

    Secrets are never shown. API keys in the settings are not listed.
    """
    from service import config
    from service.database import api_keys

    with open_database(config.load()) as opened, opened.read() as connection:
        found = api_keys.all_api_keys(connection)
    if as_json:
        rows = [
            {"name": key.name, "rights": key.right, "created_at": f"{key.created_at.isoformat()}Z"} for key in found
        ]
        typer.echo(json.dumps({"items": rows}, indent=2))
        return
    if not found:
        err.print("there are no API keys")
        return
    table = Table("name", "rights", "created", box=None, pad_edge=False)
    for key in found:
        table.add_row(cell(key.name), key.right, f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(table)


def keys_revoke(name: Annotated[str, typer.Argument(help="Name of the key, as `keys list` shows it.")]) -> None:
    """Revoke an API key.

    This takes effect at once, also in a running server.
    """
    from service import config
    from service.database import api_keys

    name = readable(name)
    settings = config.load()
    with open_database(settings) as opened, opened.write() as connection:
        api_keys.revoke(connection, name)
        any_left = api_keys.any_api_key(connection) or bool(settings.api_keys)
    err.print(f"API key {name} is revoked", markup=False)
    if not any_left:
        err.print("no API key is left: this machine's own addresses need none now", style="yellow")
