"""The stored bytes of clips and the pictures of their frames, in a local folder. Knows no row and no vector.

    incoming/                uploads on their way, locked by who writes them; emptied of strays at start
    incoming/abcdef.unsettled    a mark: bytes are placed or removed, and their row is not committed yet
    ab/abcdef.../video       the bytes, under their SHA-256
    ab/abcdef.../0003.jpg    the picture of frame 3; 32 hex digits and .sent: one that has no number yet
    ab/abcdef.../fingerprint what it looks like, for comparisons; made when first asked for

A file is written aside, synced and renamed, so that a name always stands for all of its bytes. One folder holds
all that is kept of a clip, so that deleting it leaves nothing behind.
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
from service.storage.incoming import UNSETTLED, Incoming, room, sweep

_TRIAL_BYTES = 1 << 16
_ASIDE = ".sent"


class FolderStore:
    """The store, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        with room():
            self._incoming.mkdir(parents=True, exist_ok=True)

    def receive(self, limit_bytes: int) -> Incoming:
        """A place for the bytes of a new clip; use it as a context manager."""
        with room():
            return Incoming(self._incoming, limit_bytes)

    def place(self, incoming: Incoming, _media_type: str) -> None:
        """Give finished bytes their name. What is there already under that name is the same, and stays."""
        folder = self._folder(incoming.sha256)
        with room():
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / "video"
            if not target.exists():
                # The file was synced under its temporary name: from here on the name stands for all of it.
                incoming.path.rename(target)
            for changed in (folder, folder.parent, self._root):
                sync(changed)

    def folder(self, sha256: str) -> Path:
        """Where all that is kept of a clip lies. Raises NotFound."""
        return _existing(self._folder(sha256) / "video").parent

    def send(self, _incoming: Incoming, _media_type: str) -> None:
        """Nothing: to give bytes that are here their name is quick."""

    def video(self, sha256: str) -> Blob:
        """A clip's bytes. Raises NotFound."""
        return _blob(_existing(self._folder(sha256) / "video"))

    def link(self, _sha256: str) -> None:
        """None: nobody else reads this folder."""

    def picture(self, sha256: str, number: int, _seconds: float) -> Blob:
        """A frame's JPEG. Raises NotFound."""
        return _blob(_existing(self._folder(sha256) / f"{number:04d}.jpg"))

    def send_pictures(self, sha256: str, _times: Sequence[float], jpegs: Sequence[bytes]) -> None:
        """Write the pictures of a clip's frames aside, under names of their contents: `put_pictures`, which is called
        under the database's lock, has only to rename them."""
        folder = self._folder(sha256)
        paths = [folder / _aside(jpeg) for jpeg in jpegs]
        with room(), suppress(FileNotFoundError):  # deleted meanwhile
            try:
                for path, jpeg in zip(paths, jpegs, strict=True):
                    _put(path, jpeg)
            except OSError:
                for path in paths:  # room is what is wanted
                    with suppress(OSError):
                        path.unlink()
                raise

    def put_pictures(self, sha256: str, jpegs: Sequence[bytes]) -> None:
        """Replace the pictures of a clip's frames. They can be made again, so they are renamed but not synced."""
        folder = self._folder(sha256)
        _existing(folder / "video")  # a clip that was deleted meanwhile must not come back as a folder
        with room():
            for number, jpeg in enumerate(jpegs):
                name = f"{number:04d}.jpg"
                try:
                    (folder / _aside(jpeg)).replace(folder / name)
                except FileNotFoundError:  # two frames that are the same, or it was put by another worker
                    _put(folder / name, jpeg)
            for stale in folder.glob("*.jpg"):
                if int(stale.stem) >= len(jpegs):
                    stale.unlink()
            for left in folder.glob(f"*{_ASIDE}"):  # of a worker that lost the job
                left.unlink(missing_ok=True)

    def fingerprint(self, sha256: str) -> bytes | None:
        """A clip's fingerprint as it was put; None where there is none."""
        try:
            return (self._folder(sha256) / "fingerprint").read_bytes()
        except FileNotFoundError:
            return None

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint. Like the pictures it can be made again: renamed, but not synced. Two must not
        be put at the same time. Raises NotFound, StorageFull."""
        folder = self._folder(sha256)
        _existing(folder / "video")
        with room():
            _put(folder / "fingerprint", data)

    def delete(self, sha256: str) -> None:
        """Remove a clip and all that was made of it; nothing happens where there is none."""
        folder = self._folder(sha256)
        with room():
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # something was put into it meanwhile, or it cannot be removed: then say so
                shutil.rmtree(folder)
            try:
                folder.parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def sweep(self) -> None:
        """Remove uploads whose process died on the way."""
        sweep(self._incoming)

    @contextmanager
    def unsettled(self, sha256: str) -> Iterator[None]:
        """While a clip's bytes may stand here without a row that refers to them. A process that dies in it, or cannot
        finish, leaves a mark; `doubtful` lists them."""
        mark = self._incoming / f"{sha256}{UNSETTLED}"
        # A clip can be deleted on a full disk, too; only a crash could then leave bytes behind.
        try:
            mark.touch()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with room():
                    raise
        yield
        mark.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raises what storing a clip would raise for want of room; leaves nothing behind."""
        with self.receive(_TRIAL_BYTES) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.finish()

    def doubtful(self) -> list[str]:
        """The SHA-256 of every clip whose bytes may have no row."""
        return [mark.stem for mark in self._incoming.glob(f"*{UNSETTLED}")]

    def settle(self, sha256: str) -> None:
        """It is known now whether they have one."""
        (self._incoming / f"{sha256}{UNSETTLED}").unlink(missing_ok=True)

    def _folder(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFound(f"there is no stored file {path.parent.name[:12]}/{path.name}")
    return path


def _blob(path: Path) -> Blob:
    def read(start: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return Blob(path.stat().st_size, read, path)


def _aside(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32] + _ASIDE


def _put(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError:
        with suppress(OSError):  # what a full disk took of it is room for others
            aside.unlink()
        raise


def sync(folder: Path) -> None:
    """Have what was made, renamed or removed in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
