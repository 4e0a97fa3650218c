"""What the machine refuses, in the words of the product: no room, no more open files, a lock that others hold.

Such faults pass, and are nobody's fault: whoever waits is told so, and what was to be done is done later. Knows the
numbers of errors and nothing of what was being done.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ReelsError, StorageFull, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FOR_NOW = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.EIO)

_FAILED = "the database cannot be written: {error}"
_SAID = "the database cannot be used: {error}"
_BROKEN = _SAID + "; `reelsrs doctor` says more, `reelsrs restore` brings a backup back"

_SQLITE: dict[str, tuple[type[ReelsError], str]] = {
    "SQLITE_BUSY": (Unavailable, "the database is busy; try again"),
    "SQLITE_LOCKED": (Unavailable, "the database is busy; try again"),
    # Of many a full disk, and of one that went read-only under it, SQLite says that reading or writing failed.
    "SQLITE_FULL": (StorageFull, _FAILED),
    "SQLITE_IOERR": (StorageFull, _FAILED),
    "SQLITE_READONLY": (StorageFull, _FAILED),
    "SQLITE_CANTOPEN": (Unavailable, _SAID),
    "SQLITE_NOMEM": (Unavailable, _SAID),
    "SQLITE_PROTOCOL": (Unavailable, _SAID),
    "SQLITE_CORRUPT": (Unavailable, _BROKEN),
    "SQLITE_NOTADB": (Unavailable, _BROKEN),
}

# Of PostgreSQL, the class of SQLSTATE or all of it; https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL: dict[str, tuple[type[ReelsError], str]] = {
    "53100": (StorageFull, _FAILED),  # disk full
    "25006": (Unavailable, _FAILED),  # read-only: a standby, or a primary that was demoted
    "55P03": (Unavailable, "the database is busy; try again"),
    "40": (Unavailable, "the database is busy; try again"),  # rolled back for the sake of another transaction
    "53": (Unavailable, _SAID),  # out of memory, of connections
    "57": (Unavailable, _SAID),  # shut down, starting
    "58": (StorageFull, _FAILED),  # an error of its system
    "08": (Unavailable, _SAID),
    "25P": (Unavailable, _SAID),  # it was idle for too long
    "XX": (Unavailable, _SAID),
    "28": (Unavailable, _SAID),  # who are you
    "3D": (Unavailable, _SAID),  # there is no such database
}


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turns those of the block's OSErrors into StorageFull or Unavailable, "`what`: the reason"; others pass."""
    try:
        yield
    except OSError as error:
        fault = of(error, what)
        if fault is None:
            raise
        raise fault from error


def of(error: BaseException | None, what: str = "") -> ReelsError | None:
    """What an error of the system or of the database stands for; None where it is not the machine's."""
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return StorageFull(f"{what}: {error.strerror}")
        return Unavailable(f"{what}: {error.strerror}") if error.errno in _FOR_NOW else None
    if isinstance(error, sqlite3.Error):
        table, name = _SQLITE, getattr(error, "sqlite_errorname", "")
    elif type(error).__module__.startswith("psycopg"):  # it is not installed everywhere
        table, name = _POSTGRESQL, getattr(error, "sqlstate", None) or ""
        if not name and type(error).__name__ == "OperationalError":
            name = "08"  # it went away, or was never there
    else:
        return None
    kind, words = next((found for start, found in table.items() if name.startswith(start)), (None, ""))
    return None if kind is None else kind(words.format(error=" ".join(str(error).split())))
