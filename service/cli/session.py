"""The database or the runtime of a command, closed when the command ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.config import Settings
    from service.database.db import Database


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Upgrade and open the database; close it when the block ends."""
    from service.database import db

    db.upgrade(settings.database)
    opened = db.Database(settings.database)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def open_runtime(settings: Settings, *, pictures: bool = True) -> Iterator[Runtime]:
    """Open the runtime of a command; close it when the block ends.

    `pictures` False leaves out the image tower of the model until an image must be embedded. Logging shows warnings
    only, unless it is configured already.
    """
    import logging

    from service import telemetry
    from service.bootstrap import Runtime
    from service.database.db import BACKGROUND_LOCK_SECONDS

    if not logging.getLogger().handlers:
        telemetry.configure_logging(logging.WARNING)
    runtime = Runtime(settings, image_tower=pictures)
    runtime.db.lock_seconds = BACKGROUND_LOCK_SECONDS  # no client waits, so a lock may take longer
    try:
        yield runtime
    finally:
        runtime.close()


def make_model(settings: Settings) -> None:
    """Make the model `starter` with a progress bar, if the settings select it and it is not made yet.

    Other models need no such step. Raises ConfigurationError if the model cannot be made or used with these settings.
    """
    from service.cli.console import progress
    from service.embedding.starter import NAME, store

    if settings.model == NAME:
        store.check_precision(settings.precision)
        with progress("making the model starter", share=True) as bar:
            store.made(settings.data_dir / "models", bar.share)
