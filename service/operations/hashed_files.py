"""Readers that hash the bytes as they are read."""

from __future__ import annotations

import hashlib
from typing import IO


class HashedReader:
    """Reader of a file; `sha256` is that of the bytes read so far, in hex."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; all if it is negative."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes read so far, in hex."""
        return self._hash.hexdigest()


class PaddedReader(HashedReader):
    """Reader that gives zeros for bytes that are missing or cannot be read.

    The size that was announced stays right, and the SHA-256 shows that the bytes are damaged.
    """

    def read(self, size: int = -1) -> bytes:
        """Read exactly `size` bytes."""
        try:
            data = self._file.read(size)
        except OSError:
            data = b""
        data += bytes(max(0, size - len(data)))
        self._hash.update(data)
        return data
