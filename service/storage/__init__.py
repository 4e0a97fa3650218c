"""The stored bytes of clips and the pictures of their frames. Knows no row and no vector.

    incoming.py     a clip on its way in
    folder.py       in a local folder
    bucket.py       in a bucket of an object store that speaks S3

Bytes are kept under their SHA-256, and whatever was made of them beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from service.errors import ConfigurationError
from service.models import Blob
from service.storage.folder import FolderStore
from service.storage.incoming import Incoming

__all__ = ["FolderStore", "Incoming", "Store", "open_store"]


class Store(Protocol):
    """Where clips are kept. Whatever cannot be had for now raises Unavailable, no room StorageFull."""

    def receive(self, limit_bytes: int) -> Incoming:
        """A place for the bytes of a new clip; use it as a context manager."""

    def send(self, incoming: Incoming, media_type: str, /) -> None:
        """Bring finished bytes there, where that takes long enough not to be done under a lock."""

    def place(self, incoming: Incoming, media_type: str, /) -> None:
        """Give finished bytes their name, synced. What is there already under that name is the same, and stays."""

    def video(self, sha256: str) -> Blob:
        """A clip's bytes. Raises NotFound."""

    def link(self, sha256: str, /) -> str | None:
        """An address that gives a clip's bytes to whoever has it, for a while; None where clips are not lent so."""

    def picture(self, sha256: str, number: int, seconds: float, /) -> Blob:
        """The JPEG of the frame with this number, which is the one at this time. Raises NotFound."""

    def send_pictures(self, sha256: str, times: Sequence[float], jpegs: Sequence[bytes], /) -> None:
        """Bring the pictures of a clip's frames there, where that is not done under a lock. Of a clip that is deleted
        meanwhile they stay: whoever sent them looks, and deletes it once more."""

    def put_pictures(self, sha256: str, jpegs: Sequence[bytes], /) -> None:
        """Have the pictures of a clip's frames be these, which were sent. Raises NotFound."""

    def fingerprint(self, sha256: str) -> bytes | None:
        """A clip's fingerprint as it was put; None where there is none."""

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint. Two must not be put at the same time. Raises NotFound."""

    def delete(self, sha256: str) -> None:
        """Remove a clip and all that was made of it; nothing happens where there is none."""

    def sweep(self) -> None:
        """Remove uploads whose process died on the way."""

    def unsettled(self, sha256: str) -> AbstractContextManager[None]:
        """While a clip's bytes may stand here without a row that refers to them. A process that dies in it, or cannot
        finish, leaves a mark."""

    def doubtful(self) -> list[str]:
        """The SHA-256 of every clip that carries one."""

    def settle(self, sha256: str) -> None:
        """Take the mark away."""

    def check_writable(self) -> None:
        """Raises what storing a clip would raise for want of room; leaves nothing behind."""


def open_store(url: str, data_dir: Path, *, link_seconds: int | None = None) -> Store:
    """The store at a URL: `s3://bucket/prefix`, or a folder. Raises ConfigurationError."""
    if url.startswith("s3://"):
        try:
            from service.storage.bucket import BucketStore
        except ImportError as error:
            raise ConfigurationError(
                f"REELSRS_STORAGE_URL: {url} needs a package more: pip install 'reelsrs[s3]' ({error})"
            ) from error
        return BucketStore(url, data_dir / "incoming", link_seconds)
    return FolderStore(Path(url))
