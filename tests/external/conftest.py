"""What the tests of outside parts share."""

from __future__ import annotations

import secrets

import pytest

from tests.support import services


@pytest.fixture
def url(postgresql: services.PostgreSQL) -> str:
    """The address of a database in PostgreSQL that has no schema yet."""
    return postgresql.url(secrets.token_hex(8))
