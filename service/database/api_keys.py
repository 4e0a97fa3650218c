"""API keys: create, revoke, list and look up. API keys from the settings are not stored here.

An API key has 256 random bits, so its SHA-256 is enough to store. A slow hash protects passwords that people choose,
which can be guessed one after another. Here it would cost every request as much as it costs a guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from service.database import db
from service.errors import InvalidInput, NotFound

Right = Literal["read", "write", "admin"]
RIGHTS: tuple[Right, ...] = ("read", "write", "admin")  # each right includes those before it

# Lets people and secret scanners recognise an API key in a log or a repository.
PREFIX = "reelsrs_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """An API key as stored, without its secret."""

    name: str
    right: Right
    created_at: datetime


def create(connection: sa.Connection, name: str, right: Right) -> str:
    """Create an API key and return its secret, which cannot be retrieved again.

    Call inside a write transaction.

    Raises:
        InvalidInput: if the name is malformed or already taken.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "name",
            "must start with a letter or digit, and have at most 64 letters, digits, dots, dashes and underscores, "
            f"not {name!r}",
        )
    if connection.execute(sa.select(db.keys.c.id).where(db.keys.c.name == name)).first():
        raise InvalidInput("name", f"API key {name} already exists; revoke it first, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(db.keys).values(
            id=secrets.token_hex(8),
            name=name,
            sha256=_digest(secret),
            rights=right,
            created_at=datetime.now(UTC).replace(tzinfo=None),
        )
    )
    return secret


def revoke(connection: sa.Connection, name: str) -> None:
    """Delete an API key, which stops working at once. Raises NotFound.

    Call inside a write transaction.
    """
    if not connection.execute(sa.delete(db.keys).where(db.keys.c.name == name)).rowcount:
        raise NotFound(f"API key {name} does not exist; `reelsrs keys list` shows all API keys")


def all_api_keys(connection: sa.Connection) -> list[ApiKey]:
    """Return all API keys, sorted by name."""
    return [_api_key(row) for row in connection.execute(sa.select(db.keys).order_by(db.keys.c.name))]


def any_api_key(connection: sa.Connection) -> bool:
    """Return whether there is any API key."""
    return connection.execute(sa.select(db.keys.c.id).limit(1)).first() is not None


def look_up(connection: sa.Connection, secret: str) -> ApiKey | None:
    """Return the API key with this secret, or None."""
    digest = _digest(secret)
    row = connection.execute(sa.select(db.keys).where(db.keys.c.sha256 == digest)).first()
    # The index look-up is not constant-time. It compares hashes, and a caller can choose only a few bytes of a hash.
    # The row found is compared once more, in constant time.
    return _api_key(row) if row is not None and hmac.compare_digest(row.sha256, digest) else None


def includes(held: Right, needed: Right) -> bool:
    """Return whether the right `held` includes the right `needed`."""
    return RIGHTS.index(held) >= RIGHTS.index(needed)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _api_key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(row.name, row.rights, row.created_at)
