"""Helpers that the modules of all tables share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

_Any = TypeVar("_Any")
_CHUNK = 10_000


def chunks(items: Sequence[_Any], size: int = _CHUNK) -> Iterator[Sequence[_Any]]:
    """Yield consecutive parts of `items`, each of at most `size`.

    SQLite allows 32,766 parameters in one statement, PostgreSQL 65,535.
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def utc_now() -> datetime:
    """Return the current UTC time without a time zone, as rows store it."""
    # SQLite has no type for a time with a zone, so rows store UTC without one.
    return datetime.now(UTC).replace(tzinfo=None)
