"""Store the bytes of clips, the thumbnails of their frames, and their fingerprints.

    incoming.py     an upload in progress
    folder.py       store in a local folder
    bucket.py       store in a bucket of an S3-compatible object store

A clip is stored under the SHA-256 of its bytes, together with everything that is derived from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from service.errors import ConfigurationError
from service.models import Blob
from service.storage.folder import FolderStore
from service.storage.incoming import IncomingUpload

__all__ = ["FolderStore", "IncomingUpload", "Store", "open_store"]


class Store(Protocol):
    """Store of clips and of the files derived from them.

    Methods raise Unavailable if the store cannot be used for now, and StorageFull if it has no space left.
    """

    def receive(self, limit_bytes: int) -> IncomingUpload:
        """Return an upload in progress that receives the bytes of a new clip, at most `limit_bytes`.

        Use the upload as a context manager.
        """

    def upload(self, incoming: IncomingUpload, media_type: str, /) -> None:
        """Transfer finished bytes to the store, before `commit` and outside a write transaction.

        A store that needs no slow transfer does nothing here.
        """

    def commit(self, incoming: IncomingUpload, media_type: str, /) -> None:
        """Store finished bytes under their SHA-256, synced to disk.

        Bytes that are already stored under that name are the same, and stay. May be called inside a write transaction.
        """

    def video(self, sha256: str) -> Blob:
        """Return a clip's bytes. Raises NotFound."""

    def signed_url(self, sha256: str, /) -> str | None:
        """Return a URL at which anyone who has it can read a clip for a while; None if there are no such URLs."""

    def thumbnail(self, sha256: str, number: int, seconds: float, /) -> Blob:
        """Return the thumbnail (JPEG) of a frame. Raises NotFound.

        `number` and `seconds` name the same frame; some stores use its number, others its time.
        """

    def upload_thumbnails(self, sha256: str, times: Sequence[float], thumbnails: Sequence[bytes], /) -> None:
        """Transfer the thumbnails of a clip's frames, before `commit_thumbnails` and outside a write transaction.

        Thumbnails of a clip that is deleted meanwhile may stay. The caller must check for that and call `delete` again.
        """

    def commit_thumbnails(self, sha256: str, thumbnails: Sequence[bytes], /) -> None:
        """Replace the thumbnails of a clip's frames with `thumbnails`. Raises NotFound.

        `upload_thumbnails` must have transferred them. May be called inside a write transaction.
        """

    def fingerprint(self, sha256: str) -> bytes | None:
        """Return a clip's fingerprint as it was stored; None if there is none."""

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint. Raises NotFound.

        Two calls must not run at the same time.
        """

    def delete(self, sha256: str) -> None:
        """Delete a clip and everything derived from it; do nothing if it does not exist."""

    def remove_stray_uploads(self) -> None:
        """Remove unfinished uploads whose process died."""

    def mark(self, sha256: str) -> AbstractContextManager[None]:
        """Mark a clip for the duration of the block, in which its bytes may exist without a row that refers to them.

        The mark stays if the process dies inside the block, or the block raises.
        """

    def marked(self) -> list[str]:
        """Return the SHA-256 of every clip that carries a mark."""

    def unmark(self, sha256: str) -> None:
        """Remove the mark of a clip."""

    def check_writable(self) -> None:
        """Raise the error that storing a clip would raise now for lack of space; leave nothing behind."""


def open_store(url: str, data_dir: Path, *, link_seconds: int | None = None) -> Store:
    """Open the store at a URL: `s3://bucket/prefix`, or a folder. Raises ConfigurationError.

    An object store keeps uploads in progress in `data_dir`, and its links are valid for `link_seconds`; None means no
    links.
    """
    if url.startswith("s3://"):
        try:
            from service.storage.bucket import BucketStore
        except ImportError as error:
            raise ConfigurationError(
                f"REELSRS_STORAGE_URL: {url} needs a package that is missing ({error}); run pip install 'reelsrs[s3]'"
            ) from error
        return BucketStore(url, data_dir / "incoming", link_seconds)
    return FolderStore(Path(url))
