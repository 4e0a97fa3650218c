"""Database tests on PostgreSQL."""

import secrets

import pytest

from service.database import change_log, db
from service.errors import Unavailable
from tests.support import services
from tests.support.database_properties import DatabaseAcrossProcesses, DatabaseProperties


class TestDatabase(DatabaseProperties):
    """Use the fixture `url` of this folder's conftest."""


class TestProcesses(DatabaseAcrossProcesses):
    """Use the fixture `url` of this folder's conftest."""


def test_a_server_that_stops_is_said_and_met_again(postgresql: services.PostgreSQL) -> None:
    url = postgresql.url(secrets.token_hex(8))
    db.upgrade(url)
    database = db.Database(url)
    try:
        with pytest.raises(Unavailable, match="cannot be used"), database.write() as connection:
            change_log.record_change(connection, 1)
            postgresql.stop("immediate")
            change_log.record_change(connection, 2)
        with pytest.raises(Unavailable, match="cannot be used"), database.read():
            pass
    finally:
        postgresql.start()
    with database.write() as connection:
        assert change_log.last_change(connection, "g") == 0
        change_log.record_change(connection, 3)
    with database.read() as connection:
        assert change_log.changed_since(connection, 0, "g") == [3]
    database.close()


def test_a_database_that_nobody_serves_is_named() -> None:
    with pytest.raises(Unavailable, match=r"cannot be used.*refused"):
        db.upgrade(f"postgresql+psycopg://reelsrs@127.0.0.1:{services.free_port()}/reelsrs")
