"""A clip on its way in: written aside on this machine, hashed and counted while it comes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from service import system_errors
from service.errors import TooLarge

UNSETTLED = ".unsettled"
_STRAY_SECONDS = 60  # between its last byte and its name, a file is not locked


class Incoming:
    """A clip on its way in: write its bytes, then `place` it in the store. Removed if it is never placed.

    Raises TooLarge as soon as more than `limit_bytes` were written, StorageFull where the disk has no room.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=folder)
        self.path = Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")
        _lock(self._file)
        self.size_bytes = 0
        self.sha256 = ""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.size_bytes += len(data)
        if self.size_bytes > self.limit_bytes:
            raise TooLarge(f"the file is larger than {self.limit_bytes:,} bytes")
        self._hash.update(data)
        with room():
            self._file.write(data)

    def finish(self) -> None:
        """Sync the bytes to disk; afterwards `sha256` is known and nothing more can be written."""
        with room():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self.sha256 = self._hash.hexdigest()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What a full disk did not take, it does not take now either; a file that stays is a stray for `sweep`.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove uploads whose process died on the way: nobody holds their lock."""
    for stray in folder.iterdir():
        try:
            if stray.suffix != UNSETTLED and time.time() - stray.stat().st_mtime > _STRAY_SECONDS:
                with stray.open("rb") as file:
                    _lock(file)
                stray.unlink()
        except FileNotFoundError:
            continue  # placed or removed by its owner meanwhile
        except (BlockingIOError, PermissionError):
            continue  # still on its way; Windows does not remove what is open


def room() -> AbstractContextManager[None]:
    """A full disk is said in the words of the product."""
    return system_errors.named("the clip cannot be stored")


def _lock(file: IO[bytes]) -> None:
    """Hold the file until it is closed. Raises BlockingIOError where another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows, which locks whatever is open
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
