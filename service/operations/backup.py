"""Write a library to one tar file, and restore a library from such a file.

A backup is taken while the library is in use. The database is copied first, as of one point in time. Then the stored
files of each row in that copy are added; the bytes of a clip never change under their name. If a video is deleted
meanwhile, its row is removed from the copy. A backup therefore always has all bytes of all its rows. It holds no model
and no index, because an index is derived from the rows. The tar file holds, in this order:

    reelsrs.json            header: format, version of ReelsRS, revision of the schema, time of creation
    media/ab/abcdef.../*    stored files of a clip: video, thumbnails, fingerprint
    reelsrs.db              SQLite database
    manifest.json           size and SHA-256 of every member before it
    manifest.sha256         SHA-256 of the manifest; a file without it is incomplete

A restore does not trust the file. It accepts only these names, as plain files, once each. Everything is checked before
anything is moved into the data folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from service import __version__, system_errors
from service.config import Settings
from service.database import db, dialects, video_rows
from service.database.db import Database
from service.errors import ConfigurationError, InvalidInput, NotFound
from service.names import sqlite_url
from service.operations.hashed_files import HashedReader, PaddedReader
from service.storage import FolderStore
from service.storage.folder import sync

_FORMAT = 1
_CHUNK_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 31  # largest manifest accepted; a million clips with ten thumbnails each need 1.6 GB
_HEADER, _DATABASE, _MANIFEST, _SEAL = "reelsrs.json", "reelsrs.db", "manifest.json", "manifest.sha256"
_MEDIA = re.compile(r"media/([0-9a-f]{2})/(\1[0-9a-f]{62})/(video|fingerprint|[0-9]{4}\.jpg)")

ProgressCallback = Callable[[int, int], None]
"""Progress callback: receives the number of clips done and their total, 0 if the total is unknown."""


@dataclass
class BackupReport:
    """Contents of a backup.

    `damaged` lists the ids of videos whose stored bytes are missing or do not match their SHA-256. Videos with missing
    bytes are left out of the backup; mismatching bytes are included unchanged.
    """

    videos: int = 0
    size_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


# --- backup


def back_up(settings: Settings, target: Path | None, progress: ProgressCallback = lambda *_: None) -> BackupReport:
    """Write a backup of the library to `target`, or to stdout if `target` is None.

    The file appears under its name only once it is complete.

    Raises:
        ConfigurationError: There is no library, or it is not kept in SQLite and a local folder.
        StorageFull: There is no room for the backup.
        Unavailable: The database is busy, or the system temporarily refuses an operation.
    """
    url = dialects.parse_url(settings.database)
    if url.get_backend_name() != "sqlite" or "://" in settings.storage:
        raise ConfigurationError(
            "only a library in SQLite and a local folder can be backed up: copy this one to such a library with "
            "`reelsrs copy`, or use the backups of its servers"
        )
    source = Path(url.database or "")
    if not source.is_file():
        raise ConfigurationError(f"no library in {settings.data_dir}: check REELSRS_DATA_DIR")
    with (
        system_errors.converted("the backup cannot be written"),
        tempfile.TemporaryDirectory(
            prefix=".reelsrs-", dir=None if target is None else target.absolute().parent
        ) as folder,
    ):
        copy = Path(folder) / _DATABASE
        _copy_database(source, copy)
        if target is None:
            return _write_backup(settings, copy, sys.stdout.buffer, progress)
        aside = Path(folder) / "backup"
        with aside.open("wb") as file:
            report = _write_backup(settings, copy, file, progress)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        sync(target.absolute().parent)
    return report


def _copy_database(source: Path, copy: Path) -> None:
    """Copy the database, as of one point in time, to a single file."""
    try:
        # In one step: a copy page by page would start again with every write of the service.
        with _sqlite(source) as live, _sqlite(copy) as made:
            live.backup(made)
            made.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise system_errors.from_error(error) or error from error


def _write_backup(settings: Settings, copy: Path, file: IO[bytes], progress: ProgressCallback) -> BackupReport:
    files = FolderStore(Path(settings.storage))
    revision = db.revision(sqlite_url(copy))
    copied, live = Database(sqlite_url(copy)), Database(settings.database)
    try:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            members = _Members(tar)
            header = {"format": _FORMAT, "version": __version__, "revision": revision}
            header["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            members.add(_HEADER, io.BytesIO(json.dumps(header).encode()))
            report = _write_media(members, files, copied, live, progress)
            copied.close()
            _settle_journal(copy)
            with copy.open("rb") as content:
                members.add(_DATABASE, content)
            manifest = json.dumps({"files": members.listed}).encode()
            members.add(_MANIFEST, io.BytesIO(manifest))
            members.add(_SEAL, io.BytesIO(hashlib.sha256(manifest).hexdigest().encode()))
    finally:
        copied.close()
        live.close()
    report.size_bytes = members.size_bytes
    return report


class _Members:
    """Writer of a tar file that records the size and SHA-256 of every member."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.listed: dict[str, list[Any]] = {}
        self.size_bytes = 0

    def add(self, name: str, content: IO[bytes]) -> str:
        """Write a member from the seekable file `content`; return its SHA-256 in hex."""
        content.seek(0, os.SEEK_END)
        info = tarfile.TarInfo(name)
        info.size, info.mode = content.tell(), 0o644
        content.seek(0)
        reader = PaddedReader(content)
        self._tar.addfile(info, reader)
        self.listed[name] = [info.size, reader.sha256]
        self.size_bytes += info.size
        return reader.sha256


def _write_media(
    members: _Members, files: FolderStore, copied: Database, live: Database, progress: ProgressCallback
) -> BackupReport:
    """Write the stored files of every video in `copied`; delete the rows of `copied` that have no stored bytes."""
    report = BackupReport()
    with copied.read() as connection:
        rows = connection.execute(sa.select(db.videos.c.key, db.videos.c.id, db.videos.c.sha256)).all()
    gone = []
    for number, (video_pk, name, sha256) in enumerate(rows):
        progress(number, len(rows))
        with ExitStack() as stack:
            # All files are open before the first is read, so they can be read even if the video is deleted now.
            opened = _open(files, sha256, stack)
            if opened is None:
                gone.append(video_pk)
                with live.read() as connection:
                    if video_rows.video_by_sha256(connection, sha256) is not None:
                        report.damaged.append(name)
                continue
            for part, content in opened.items():
                found = members.add(f"media/{sha256[:2]}/{sha256}/{part}", content)
                if part == "video" and found != sha256:
                    report.damaged.append(name)
        report.videos += 1
    with copied.write() as connection:
        for video_pk in gone:
            video_rows.delete_video(connection, video_pk)
        connection.execute(sa.delete(db.collections))  # Milvus collections are not part of a backup
    return report


def _open(files: FolderStore, sha256: str, stack: ExitStack) -> dict[str, IO[bytes]] | None:
    """Open all stored files of a clip, by file name; return None if its bytes are missing or cannot be read.

    `stack` closes the files.
    """
    try:
        folder = files.folder(sha256)
        kept: dict[str, IO[bytes]] = {"video": stack.enter_context((folder / "video").open("rb"))}
        for path in sorted(folder.iterdir()):
            if path.suffix == ".jpg" or path.name == "fingerprint":
                # A new sampling may have fewer frames: a thumbnail that is missing now does not belong to the clip.
                with suppress(FileNotFoundError):
                    kept[path.name] = stack.enter_context(path.open("rb"))
        files.video(sha256)  # raises NotFound if a deletion has begun; otherwise no file is missing
    except NotFound:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # not the fault of this clip
            raise
        return None
    return kept


def _settle_journal(path: Path) -> None:
    """Merge the write-ahead log into the database file, so that one file holds everything."""
    with _sqlite(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


# --- restore


def restore(settings: Settings, source: Path | None, progress: ProgressCallback = lambda *_: None) -> BackupReport:
    """Restore a backup into an empty or missing data folder, from stdin if `source` is None.

    The index is built at the next start. If the restore fails, the data folder is left as it was.

    Raises:
        ConfigurationError: The data folder is not empty, the settings place the database or the clips outside of it,
            or a newer version of ReelsRS wrote the backup.
        InvalidInput: The file is not a complete backup.
        StorageFull: There is no room for the library.
        Unavailable: The system temporarily refuses an operation.
    """
    data = settings.data_dir
    if settings.storage != str(data / "media") or settings.database != sqlite_url(data / _DATABASE):
        raise ConfigurationError(
            "a backup can only be restored to the data folder: unset REELSRS_DATABASE_URL and REELSRS_STORAGE_URL"
        )
    created = not data.exists()
    with system_errors.converted("the backup cannot be restored"):
        if not created and (not data.is_dir() or any(data.iterdir())):
            raise ConfigurationError(f"{data} is not empty: restore the backup to an empty or a new folder")
        data.mkdir(parents=True, exist_ok=True)
        # Inside the data folder, which may be a separate file system: files are renamed into place later.
        aside = data / ".restoring"
        try:
            aside.mkdir()
            with ExitStack() as stack:
                if source is None:
                    file: IO[bytes] = sys.stdin.buffer
                else:
                    file = stack.enter_context(source.open("rb"))
                report = _read_backup(file, aside, progress)
            _check_restored(aside)
            for folder, _, names in os.walk(aside, topdown=False):
                for name in names:
                    sync(Path(folder) / name)
                sync(Path(folder))
            if (aside / "media").exists():
                (aside / "media").rename(data / "media")
            # The database is moved last, because a library exists as soon as its database does.
            (aside / _DATABASE).rename(data / _DATABASE)
            sync(data)
        except BaseException:
            for name in (".restoring", "media"):
                shutil.rmtree(data / name, ignore_errors=True)
            if created:
                with suppress(OSError):
                    data.rmdir()
            raise
        shutil.rmtree(aside)
    return report


def _read_backup(file: IO[bytes], aside: Path, progress: ProgressCallback) -> BackupReport:
    """Unpack a backup into `aside`, and check every member against the manifest. Raises InvalidInput."""
    found: dict[str, list[Any]] = {}
    texts: dict[str, bytes] = {}
    videos = 0
    try:
        with tarfile.open(fileobj=file, mode="r|", errorlevel=2) as tar:
            for member in tar:
                _unpack_member(tar, member, aside, found, texts)
                if member.name.endswith("/video"):
                    videos += 1
                    progress(videos, 0)
        if _SEAL not in texts or _MANIFEST not in texts:
            raise _incomplete("the file is truncated")
        if hashlib.sha256(texts[_MANIFEST]).hexdigest().encode() != texts[_SEAL]:
            raise _incomplete("the manifest is damaged")
        listed = json.loads(texts[_MANIFEST])["files"]
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(str(error) or type(error).__name__) from error
    del found[_MANIFEST], found[_SEAL]
    if _DATABASE not in found or found.keys() != listed.keys():
        raise _incomplete("its members are not those that the manifest lists")
    for name, is_found in found.items():
        if is_found != listed[name]:
            raise _incomplete(f"{name} is damaged")
    return BackupReport(videos, sum(size for size, _ in found.values()))


def _unpack_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, aside: Path, found: dict[str, list[Any]], texts: dict[str, bytes]
) -> None:
    """Read one member of an untrusted tar file, and record its size and SHA-256 in `found`.

    The database and stored files are written below `aside`; the content of other members is added to `texts`. Raises
    InvalidInput if the member is not allowed, truncated or too large.
    """
    name = member.name
    is_stored = name == _DATABASE or _MEDIA.fullmatch(name) is not None
    if not is_stored and name not in (_HEADER, _MANIFEST, _SEAL):
        raise _incomplete(f"unexpected member {name[:100]!r}")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise _incomplete(f"{name!r} is not a regular file")
    if name in found:
        raise _incomplete(f"{name!r} occurs twice")
    if not found and name != _HEADER:
        raise _incomplete(f"its first member is not {_HEADER}")
    content = tar.extractfile(member)
    assert content is not None
    reader = HashedReader(content)
    if is_stored:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        with (aside / name).open("xb") as out:
            while data := reader.read(_CHUNK_BYTES):
                out.write(data)
            size = out.tell()
    elif member.size > _MAX_TEXT_BYTES:
        raise _incomplete(f"{name} has {member.size} bytes, more than {_MAX_TEXT_BYTES}")
    else:
        texts[name] = reader.read()
        size = len(texts[name])
    if size != member.size:
        raise _incomplete("the file is truncated")
    found[name] = [size, reader.sha256]
    if name == _HEADER:
        _check_header(texts[name])


def _check_header(data: bytes) -> None:
    found = json.loads(data)["format"]
    if found != _FORMAT:
        raise _incomplete(f"its format is {found!r}, but this version reads format {_FORMAT}")


def _check_restored(aside: Path) -> None:
    """Upgrade the restored database, check its integrity, and check that every video has its bytes."""
    url = sqlite_url(aside / _DATABASE)
    db.upgrade(url)
    database = Database(url)
    try:
        with database.read() as connection:
            if (result := connection.execute(sa.text("PRAGMA quick_check")).scalar()) != "ok":
                raise _incomplete(f"the database is damaged: {result}")
            for sha256 in connection.execute(sa.select(db.videos.c.sha256)).scalars():
                if not _MEDIA.fullmatch(name := f"media/{sha256[:2]}/{sha256}/video") or not (aside / name).is_file():
                    raise _incomplete(f"the bytes of clip {sha256[:12]} are missing")
    finally:
        database.close()
    _settle_journal(aside / _DATABASE)


def _incomplete(reason: str) -> InvalidInput:
    return InvalidInput("FILE", f"not a complete backup of ReelsRS: {reason}")


@contextmanager
def _sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=db.BACKGROUND_LOCK_SECONDS, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
