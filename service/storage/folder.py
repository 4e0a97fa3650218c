"""Store clips and everything derived from them in a local folder.

    incoming/                   uploads in progress, locked by their writers; strays are removed at start
    incoming/abcdef.unsettled   a mark: bytes are placed or removed, and their row is not committed yet
    ab/abcdef.../video          the bytes, under their SHA-256
    ab/abcdef.../0003.jpg       the thumbnail of frame 3
    ab/abcdef.../0123....sent   a thumbnail that has no frame number yet, named by 32 hex digits
    ab/abcdef.../fingerprint    the clip's fingerprint; made when it is first needed

A clip is written under a temporary name, synced and renamed, so its final name always stands for all of its bytes. One
folder holds everything that belongs to a clip, so deleting the folder leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import NotFound
from service.models import Blob
from service.storage.incoming import MARK_SUFFIX, IncomingUpload, remove_stray_uploads, storage_errors

_TRIAL_BYTES = 1 << 16
_PENDING_SUFFIX = ".sent"


class FolderStore:
    """Store below one local folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        with storage_errors():
            self._incoming.mkdir(parents=True, exist_ok=True)

    def receive(self, limit_bytes: int) -> IncomingUpload:
        """Return an upload in progress that receives the bytes of a new clip, at most `limit_bytes`.

        Use the upload as a context manager.
        """
        with storage_errors():
            return IncomingUpload(self._incoming, limit_bytes)

    def commit(self, incoming: IncomingUpload, _media_type: str) -> None:
        """Rename finished bytes to their final name and sync the folders.

        Bytes that are already stored under that name are the same, and stay.
        """
        folder = self._folder(incoming.sha256)
        with storage_errors():
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / "video"
            if not target.exists():
                # The file was synced under its temporary name, so its final name stands for all bytes.
                incoming.path.rename(target)
            for changed in (folder, folder.parent, self._root):
                sync(changed)

    def folder(self, sha256: str) -> Path:
        """Return the folder that holds everything that belongs to a clip. Raises NotFound."""
        return _require_file(self._folder(sha256) / "video").parent

    def upload(self, _incoming: IncomingUpload, _media_type: str) -> None:
        """Do nothing: `commit` only has to rename local bytes, which is fast."""

    def video(self, sha256: str) -> Blob:
        """Return a clip's bytes. Raises NotFound."""
        return _blob(_require_file(self._folder(sha256) / "video"))

    def signed_url(self, _sha256: str) -> None:
        """Return None, because clients cannot read this folder."""

    def thumbnail(self, sha256: str, number: int, _seconds: float) -> Blob:
        """Return the thumbnail (JPEG) of a frame, by its number. Raises NotFound."""
        return _blob(_require_file(self._folder(sha256) / f"{number:04d}.jpg"))

    def upload_thumbnails(self, sha256: str, _times: Sequence[float], thumbnails: Sequence[bytes]) -> None:
        """Write the thumbnails of a clip's frames under names derived from their contents.

        `commit_thumbnails` runs inside a write transaction and therefore only renames them. Do nothing if the clip was
        deleted meanwhile. Raises StorageFull.
        """
        folder = self._folder(sha256)
        paths = [folder / _pending_name(thumbnail) for thumbnail in thumbnails]
        with storage_errors(), suppress(FileNotFoundError):  # the clip was deleted meanwhile
            try:
                for path, thumbnail in zip(paths, thumbnails, strict=True):
                    _put(path, thumbnail)
            except OSError:
                for path in paths:  # free the space that they take
                    with suppress(OSError):
                        path.unlink()
                raise

    def commit_thumbnails(self, sha256: str, thumbnails: Sequence[bytes]) -> None:
        """Replace the thumbnails of a clip's frames. Raises NotFound, StorageFull.

        Thumbnails can be made again, so they are renamed but not synced.
        """
        folder = self._folder(sha256)
        _require_file(folder / "video")  # a clip that was deleted meanwhile must not get a folder again
        with storage_errors():
            for number, thumbnail in enumerate(thumbnails):
                name = f"{number:04d}.jpg"
                try:
                    (folder / _pending_name(thumbnail)).replace(folder / name)
                except FileNotFoundError:  # two frames are equal, or another worker has renamed the file
                    _put(folder / name, thumbnail)
            for stale in folder.glob("*.jpg"):
                if int(stale.stem) >= len(thumbnails):
                    stale.unlink()
            for left in folder.glob(f"*{_PENDING_SUFFIX}"):  # left by a worker that lost the job
                left.unlink(missing_ok=True)

    def fingerprint(self, sha256: str) -> bytes | None:
        """Return a clip's fingerprint as it was stored; None if there is none."""
        try:
            return (self._folder(sha256) / "fingerprint").read_bytes()
        except FileNotFoundError:
            return None

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint. Raises NotFound, StorageFull.

        A fingerprint can be made again, so it is renamed but not synced. Two calls must not run at the same time.
        """
        folder = self._folder(sha256)
        _require_file(folder / "video")
        with storage_errors():
            _put(folder / "fingerprint", data)

    def delete(self, sha256: str) -> None:
        """Delete a clip and everything derived from it; do nothing if it does not exist."""
        folder = self._folder(sha256)
        with storage_errors():
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # a file was added meanwhile, or removal failed: raise the error
                shutil.rmtree(folder)
            try:
                folder.parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def remove_stray_uploads(self) -> None:
        """Remove unfinished uploads whose process died."""
        remove_stray_uploads(self._incoming)

    @contextmanager
    def mark(self, sha256: str) -> Iterator[None]:
        """Mark a clip for the duration of the block, in which its bytes may exist without a row that refers to them.

        The mark stays if the process dies inside the block, or the block raises; `marked` lists the marks.
        """
        path = self._incoming / f"{sha256}{MARK_SUFFIX}"
        # A clip can be deleted even if the disk is too full for a mark. Only a crash could then leave bytes behind.
        try:
            path.touch()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with storage_errors():
                    raise
        yield
        path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raise the error that storing a clip would raise now for lack of space; leave nothing behind."""
        with self.receive(_TRIAL_BYTES) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.finish()

    def marked(self) -> list[str]:
        """Return the SHA-256 of every clip that carries a mark: its bytes may have no row."""
        return [path.stem for path in self._incoming.glob(f"*{MARK_SUFFIX}")]

    def unmark(self, sha256: str) -> None:
        """Remove the mark of a clip, once it is known whether its bytes have a row."""
        (self._incoming / f"{sha256}{MARK_SUFFIX}").unlink(missing_ok=True)

    def _folder(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise NotFound(f"stored file {path.parent.name[:12]}/{path.name} does not exist")
    return path


def _blob(path: Path) -> Blob:
    def read(start: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return Blob(path.stat().st_size, read, path)


def _pending_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32] + _PENDING_SUFFIX


def _put(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it; leave no partial file."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # free the space that the partial file takes
            temporary.unlink()
        raise


def sync(folder: Path) -> None:
    """Sync a folder, so that files created, renamed or removed in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
