"""The stored bytes of clips and the pictures of their frames, in a local folder. Knows no row and no vector.

    incoming/                uploads on their way, locked by who writes them; emptied of strays at start
    incoming/abcdef.unsettled    a mark: bytes are placed or removed, and their row is not committed yet
    ab/abcdef.../video       the bytes, under their SHA-256
    ab/abcdef.../0003.jpg    the picture of frame 3
    ab/abcdef.../fingerprint what it looks like, for comparisons; made when first asked for

A file is written aside, synced and renamed, so that a name always stands for all of its bytes. One folder holds
all that is kept of a clip, so that deleting it leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from service import faults
from service.errors import NotFound, TooLarge

_UNSETTLED = ".unsettled"
_TRIAL_BYTES = 1 << 16
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
        with _room():
            self._file.write(data)

    def finish(self) -> None:
        """Sync the bytes to disk; afterwards `sha256` is known and nothing more can be written."""
        with _room():
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


class Files:
    """The store, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        with _room():
            self._incoming.mkdir(parents=True, exist_ok=True)

    def receive(self, limit_bytes: int) -> Incoming:
        """A place for the bytes of a new clip; use it as a context manager."""
        with _room():
            return Incoming(self._incoming, limit_bytes)

    def place(self, incoming: Incoming) -> None:
        """Give finished bytes their name. What is there already under that name is the same, and stays."""
        folder = self._folder(incoming.sha256)
        with _room():
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / "video"
            if not target.exists():
                # The file was synced under its temporary name: from here on the name stands for all of it.
                incoming.path.rename(target)
            for changed in (folder, folder.parent, self._root):
                _sync(changed)

    def video(self, sha256: str) -> Path:
        """The path of a clip's bytes. Raises NotFound."""
        return _existing(self._folder(sha256) / "video")

    def picture(self, sha256: str, number: int) -> Path:
        """The path of a frame's JPEG. Raises NotFound."""
        return _existing(self._folder(sha256) / f"{number:04d}.jpg")

    def put_pictures(self, sha256: str, jpegs: Sequence[bytes]) -> None:
        """Replace the pictures of a clip's frames. They can be made again, so they are renamed but not synced."""
        folder = self._folder(sha256)
        _existing(folder / "video")  # a clip that was deleted meanwhile must not come back as a folder
        with _room():
            for number, jpeg in enumerate(jpegs):
                _put(folder / f"{number:04d}.jpg", jpeg)
            for stale in folder.glob("*.jpg"):
                if int(stale.stem) >= len(jpegs):
                    stale.unlink()

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
        with _room():
            _put(folder / "fingerprint", data)

    def delete(self, sha256: str) -> None:
        """Remove a clip and all that was made of it; nothing happens where there is none."""
        folder = self._folder(sha256)
        with _room():
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # something was put into it meanwhile, or it cannot be removed: then say so
                shutil.rmtree(folder)
            try:
                folder.parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def sweep(self) -> None:
        """Remove uploads whose process died on the way: nobody holds their lock."""
        for stray in self._incoming.iterdir():
            try:
                if stray.suffix != _UNSETTLED and time.time() - stray.stat().st_mtime > _STRAY_SECONDS:
                    with stray.open("rb") as file:
                        _lock(file)
                    stray.unlink()
            except FileNotFoundError:
                continue  # placed or removed by its owner meanwhile
            except (BlockingIOError, PermissionError):
                continue  # still on its way; Windows does not remove what is open

    @contextmanager
    def unsettled(self, sha256: str) -> Iterator[None]:
        """While a clip's bytes may stand here without a row that refers to them. A process that dies in it, or cannot
        finish, leaves a mark; `doubtful` lists them."""
        mark = self._incoming / f"{sha256}{_UNSETTLED}"
        # A clip can be deleted on a full disk, too; only a crash could then leave bytes behind.
        try:
            mark.touch()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with _room():
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
        return [mark.stem for mark in self._incoming.glob(f"*{_UNSETTLED}")]

    def settle(self, sha256: str) -> None:
        """It is known now whether they have one."""
        (self._incoming / f"{sha256}{_UNSETTLED}").unlink(missing_ok=True)

    def _folder(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFound(f"there is no stored file {path.parent.name[:12]}/{path.name}")
    return path


def _put(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError:
        with suppress(OSError):  # what a full disk took of it is room for others
            aside.unlink()
        raise


def _lock(file: IO[bytes]) -> None:
    """Hold the file until it is closed. Raises BlockingIOError where another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows, which locks whatever is open
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room() -> AbstractContextManager[None]:
    return faults.named("the clip cannot be stored")
