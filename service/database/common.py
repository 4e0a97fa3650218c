"""What the modules of all tables need."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TypeVar

_Any = TypeVar("_Any")
# SQLite allows 32,766 parameters in one statement, PostgreSQL 65,535.
_CHUNK = 10_000


def chunks(keys: list[_Any]) -> Iterator[list[_Any]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]


def utc_now() -> datetime:
    # Stored without a zone, always UTC: SQLite has no type for one.
    return datetime.now(UTC).replace(tzinfo=None)
