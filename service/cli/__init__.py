"""Command line: `main` registers the commands, the other modules implement them."""

from service.cli.main import app, run, status

__all__ = ["app", "run", "status"]
