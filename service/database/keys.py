"""API keys: made, revoked, listed, looked up. Knows no HTTP, and nothing of keys that stand in the settings.

A key is 256 random bits, so its SHA-256 is enough to keep: a slow hash is for words that people think of, which can be
guessed one after another, and would cost every request what it costs a guess.
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
RIGHTS: tuple[Right, ...] = ("read", "write", "admin")  # each includes those before it

# Tells a key that lies in a log or a repository from other random text, for people and for scanners.
PREFIX = "reelsrs_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Key:
    """What is known of a key once it was given out."""

    name: str
    right: Right
    created_at: datetime


def create(connection: sa.Connection, name: str, right: Right) -> str:
    """Make a key and give its secret, which nobody can ever be told again. Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "name", "must be letters, digits, dots, dashes and underscores, at most 64, a letter or digit first"
        )
    if connection.execute(sa.select(db.keys.c.id).where(db.keys.c.name == name)).first():
        raise InvalidInput("name", f"there is a key {name} already; revoke it first, or take another name")
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
    """From now on the key opens nothing. Raises NotFound."""
    if not connection.execute(sa.delete(db.keys).where(db.keys.c.name == name)).rowcount:
        raise NotFound(f"there is no key {name}; `reelsrs keys list` names those there are")


def every(connection: sa.Connection) -> list[Key]:
    """All of them, by name."""
    return [_key(row) for row in connection.execute(sa.select(db.keys).order_by(db.keys.c.name))]


def exist(connection: sa.Connection) -> bool:
    """Whether there is any."""
    return connection.execute(sa.select(db.keys.c.id).limit(1)).first() is not None


def look_up(connection: sa.Connection, secret: str) -> Key | None:
    """The key of this secret."""
    digest = _digest(secret)
    row = connection.execute(sa.select(db.keys).where(db.keys.c.sha256 == digest)).first()
    # The index compares hashes, of which a caller can choose no more than a few bytes; what it finds is compared once
    # more, in constant time.
    return _key(row) if row is not None and hmac.compare_digest(row.sha256, digest) else None


def includes(held: Right, needed: Right) -> bool:
    """Whether who holds the one right may do what needs the other."""
    return RIGHTS.index(held) >= RIGHTS.index(needed)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.Row[tuple[object, ...]]) -> Key:
    return Key(row.name, row.rights, row.created_at)
