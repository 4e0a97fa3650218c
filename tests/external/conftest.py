"""Fixtures of the tests that use external servers."""

from __future__ import annotations

import secrets

import pytest

from tests.support import services


@pytest.fixture
def url(postgresql: services.PostgreSQL) -> str:
    """Return the address of a PostgreSQL database without a schema."""
    return postgresql.url(secrets.token_hex(8))
