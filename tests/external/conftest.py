"""What the tests of outside parts share."""

from __future__ import annotations

import secrets

import pytest

from tests.support import services


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process for all that use the servers: each is started once."""
    for item in items:
        if "external" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("external"))


@pytest.fixture
def url(postgresql: services.PostgreSQL) -> str:
    """The address of a database in PostgreSQL that has no schema yet."""
    return postgresql.url(secrets.token_hex(8))
