"""Bring the category names of earlier versions to NFC, the only spelling that is stored and searched for."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
import structlog

from service.database import change_log, db, projection_rows
from service.database.db import Database
from service.errors import ReelsError
from service.names import normalised

log = structlog.get_logger(__name__)


def normalise_categories(database: Database) -> None:
    """Rename categories whose names are not in NFC, in videos and projections; indexes catch up by the change log.

    Reads one row for each category, and writes only if there is something to rename. If it cannot be written now, the
    next start does it.
    """
    try:
        with database.read() as connection:
            if not _others(connection, db.videos) and not _others(connection, db.projections):
                return
        with database.write() as connection:
            for name in _others(connection, db.videos):
                _rename_videos(connection, name)
            for name in _others(connection, db.projections):
                _rename_projections(connection, name)
    except ReelsError as error:  # such as a full disk, on which searches continue
        log.warning("categories not renamed", reason=str(error))


def _others(connection: sa.Connection, table: sa.Table) -> list[str]:
    """Return the categories of a table that are not in NFC."""
    found = []
    name = connection.execute(sa.select(sa.func.min(table.c.category))).scalar()
    while name is not None:  # from name to name by the index: DISTINCT would read a row for each video
        if name != normalised(name):
            found.append(name)
        name = connection.execute(sa.select(sa.func.min(table.c.category)).where(table.c.category > name)).scalar()
    return found


def _rename_videos(connection: sa.Connection, name: str) -> None:
    own = db.videos.c.category == name
    video_pks = connection.execute(sa.select(db.videos.c.key).where(own)).scalars().all()
    connection.execute(sa.update(db.videos).where(own).values(category=normalised(name)))
    for video_pk in video_pks:
        change_log.record_change(connection, video_pk)


def _rename_projections(connection: sa.Connection, name: str) -> None:
    """Rename the category of projections. One that exists under the new name, too, is kept once."""
    for projection in projection_rows.of_category(connection, name):
        spec = replace(projection.spec, category=normalised(name))
        twin = sa.select(db.projections.c.key).where(db.projections.c.digest == spec.digest)
        if connection.execute(twin).first() is None:
            projection_rows.update_projection(connection, projection.pk, category=spec.category, digest=spec.digest)
        else:
            connection.execute(sa.delete(db.projections).where(db.projections.c.key == projection.pk))
