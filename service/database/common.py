"""What the modules of all tables need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

_Any = TypeVar("_Any")
_CHUNK = 10_000


def chunks(items: Sequence[_Any], size: int = _CHUNK) -> Iterator[Sequence[_Any]]:
    """Parts of at most `size`. SQLite allows 32,766 parameters in one statement, PostgreSQL 65,535."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def utc_now() -> datetime:
    """Now, as rows have it."""
    # Stored without a zone, always UTC: SQLite has no type for one.
    return datetime.now(UTC).replace(tzinfo=None)
