"""Tests of the database schema and of read and write transactions."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from service.database import change_log, db
from service.errors import StorageFull
from tests.support.database_properties import DatabaseProperties


class TestDatabase(DatabaseProperties):
    """Run the database properties against SQLite, which the fixture `url` provides."""


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/reelsrs.db"
    db.upgrade(url)
    database = db.Database(url)
    with pytest.raises(StorageFull, match="cannot be written"), database.write() as connection:
        pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()
        connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
        for key in range(10_000):
            change_log.record_change(connection, key)
    database.close()
