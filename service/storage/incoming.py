"""Receive the upload of a clip: write it to a temporary file, count and hash its bytes as they arrive."""

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

MARK_SUFFIX = ".unsettled"
_STRAY_SECONDS = 60  # an upload is not locked between its last byte and its final name


class IncomingUpload:
    """Upload in progress: write the bytes, then call `commit` of the store.

    Use as a context manager; on exit, the temporary file is removed unless it was placed. `sha256` is empty until
    `finish`.

    Raises:
        TooLarge: As soon as more than `limit_bytes` are written.
        StorageFull: If the disk is full.
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
        """Append bytes. Raises TooLarge, StorageFull."""
        self.size_bytes += len(data)
        if self.size_bytes > self.limit_bytes:
            raise TooLarge(f"the file is larger than the limit of {self.limit_bytes:,} bytes")
        self._hash.update(data)
        with storage_errors():
            self._file.write(data)

    def finish(self) -> None:
        """Sync the bytes to disk and set `sha256`; nothing more can be written afterwards."""
        with storage_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self.sha256 = self._hash.hexdigest()

    def __enter__(self) -> IncomingUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing flushes bytes that a full disk refuses again. If the file stays, `remove_stray_uploads` removes it.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def remove_stray_uploads(folder: Path) -> None:
    """Remove uploads whose process died, which no process locks any more."""
    for stray in folder.iterdir():
        try:
            if stray.suffix != MARK_SUFFIX and time.time() - stray.stat().st_mtime > _STRAY_SECONDS:
                with stray.open("rb") as file:
                    _lock(file)
                stray.unlink()
        except FileNotFoundError:
            continue  # placed or removed by its owner meanwhile
        except (BlockingIOError, PermissionError):
            continue  # still being written; Windows does not remove an open file


def storage_errors() -> AbstractContextManager[None]:
    """Convert the errors of a full disk and other system errors in the block to StorageFull or Unavailable."""
    return system_errors.converted("the clip cannot be stored")


def _lock(file: IO[bytes]) -> None:
    """Lock the file until it is closed. Raises BlockingIOError if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows, which locks every open file
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
