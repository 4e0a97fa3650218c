"""The command line: `main` names the commands, the other files are what they do."""

from service.cli.main import app, run, status

__all__ = ["app", "run", "status"]
