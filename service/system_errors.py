"""Convert errors of the operating system and the database to StorageFull or Unavailable.

Examples are a full disk, too many open files, and a lock that another process holds. Such faults pass, and no request
or video causes them: clients receive an error that says to try again, and jobs run again later. The conversion depends
on error numbers only, not on the operation that failed.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ReelsError, StorageFull, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TEMPORARY = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.EIO)

_UNWRITABLE = "the database cannot be written: {error}"
_UNUSABLE = "the database cannot be used: {error}"
_CORRUPT = _UNUSABLE + "; `reelsrs doctor` shows details, `reelsrs restore` restores a backup"

_SQLITE: dict[str, tuple[type[ReelsError], str]] = {
    "SQLITE_BUSY": (Unavailable, "the database is busy; try again"),
    "SQLITE_LOCKED": (Unavailable, "the database is busy; try again"),
    # SQLite often reports a full disk, or one that became read-only, as a failed read or write.
    "SQLITE_FULL": (StorageFull, _UNWRITABLE),
    "SQLITE_IOERR": (StorageFull, _UNWRITABLE),
    "SQLITE_READONLY": (StorageFull, _UNWRITABLE),
    "SQLITE_CANTOPEN": (Unavailable, _UNUSABLE),
    "SQLITE_NOMEM": (Unavailable, _UNUSABLE),
    "SQLITE_PROTOCOL": (Unavailable, _UNUSABLE),
    "SQLITE_CORRUPT": (Unavailable, _CORRUPT),
    "SQLITE_NOTADB": (Unavailable, _CORRUPT),
}

# Prefixes of the SQLSTATE of PostgreSQL; see https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL: dict[str, tuple[type[ReelsError], str]] = {
    "53100": (StorageFull, _UNWRITABLE),  # disk full
    "25006": (Unavailable, _UNWRITABLE),  # read-only: a standby, or a demoted primary
    "55P03": (Unavailable, "the database is busy; try again"),
    "40": (Unavailable, "the database is busy; try again"),  # rolled back: conflict with another transaction
    "53": (Unavailable, _UNUSABLE),  # out of memory or connections
    "57": (Unavailable, _UNUSABLE),  # the server shuts down or starts
    "58": (StorageFull, _UNWRITABLE),  # error of the server's system
    "08": (Unavailable, _UNUSABLE),
    "25P": (Unavailable, _UNUSABLE),  # transaction idle for too long
    "XX": (Unavailable, _UNUSABLE),
    "28": (Unavailable, _UNUSABLE),  # authentication failed
    "3D": (Unavailable, _UNUSABLE),  # no such database
}


@contextmanager
def converted(what: str) -> Iterator[None]:
    """Convert OSErrors of the block to StorageFull or Unavailable with the message "`what`: reason".

    OSErrors that are not faults of the machine, and all other errors, are raised unchanged.
    """
    try:
        yield
    except OSError as error:
        fault = from_error(error, what)
        if fault is None:
            raise
        raise fault from error


def from_error(error: BaseException | None, what: str = "") -> ReelsError | None:
    """Return the StorageFull or Unavailable for an error; None if the error is not a fault of the machine.

    `error` may be an OSError, or an error of sqlite3 or psycopg. `what` starts the message of an OSError.
    """
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return StorageFull(f"{what}: {error.strerror}")
        return Unavailable(f"{what}: {error.strerror}") if error.errno in _TEMPORARY else None
    if isinstance(error, sqlite3.Error):
        table, name = _SQLITE, getattr(error, "sqlite_errorname", "")
    elif type(error).__module__.startswith("psycopg"):  # by name, because psycopg is optional
        table, name = _POSTGRESQL, getattr(error, "sqlstate", None) or ""
        if not name and type(error).__name__ == "OperationalError":
            name = "08"  # no SQLSTATE: the server went away, or was never reached
    else:
        return None
    kind, words = next((found for start, found in table.items() if name.startswith(start)), (None, ""))
    return None if kind is None else kind(words.format(error=" ".join(str(error).split())))
