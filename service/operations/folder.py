"""Imports a folder of clips, `Data/<Category>/<clip>`, the way an upload goes. Knows no terminal.

The category is the name of the first folder, the caption stands in a sidecar `<stem>.txt` beside the clip. A
second run reads the bytes of what is new or changed only, by size and time of change; what a sidecar, a moved
folder or other sampling changed is brought up to date. A bad file is named and skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.bootstrap import Runtime
from service.database import catalog
from service.errors import InvalidInput, ReelsError
from service.ingestion.ingest import Description, describe
from service.media import SUFFIXES
from service.models import Sampling, Video
from service.worker.worker import Worker

Outcome = Literal["embedded", "updated", "unchanged", "duplicate", "failed"]
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip in the folder."""

    path: Path
    category: str


@dataclass
class ImportReport:
    """What an import did. `failures` and `duplicates` are (path, reason)."""

    embedded: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def scan(folder: Path) -> list[Entry]:
    """Every clip below `folder/<Category>/`, by name; hidden ones are left out.

    Raises InvalidInput where there is no such folder or nothing in it.
    """
    if not folder.is_dir():
        raise InvalidInput("data_folder", f"there is no folder {folder}")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in inside)
        if len(inside) >= 2 and not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            entries.append(Entry(path, inside[0]))
    if not entries:
        raise InvalidInput("data_folder", f"there are no clips below {folder}/<Category>/")
    return entries


def sidecar(path: Path) -> str | None:
    """The caption beside a clip, None where there is none."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None


class FolderImport:
    """One import. `on_done` hears of every clip as it is settled."""

    def __init__(
        self, runtime: Runtime, sampling: Sampling, on_done: Callable[[Path, Outcome], None] = lambda *_: None
    ) -> None:
        self._runtime = runtime
        self._sampling = sampling
        self._on_done = on_done
        self._summary = ImportReport()
        self._pending: dict[int, Path] = {}
        self._looked = 0.0

    def run(self, entries: list[Entry]) -> ImportReport:
        """Import every entry; embedding goes on in a thread while the next are read. Raises ModelUnavailable and
        ConfigurationError; what is wrong with one file goes into the summary."""
        self._runtime.adopt()
        stop = threading.Event()
        worker = threading.Thread(target=Worker(self._runtime).run, args=(stop,), name="worker")
        worker.start()
        try:
            for entry in entries:
                try:
                    self.offer(entry)
                except (ReelsError, OSError) as error:
                    self._settle(entry.path, "failed", str(error))
                self._collect()
            while self._pending and worker.is_alive():
                time.sleep(_POLL_SECONDS)
                self._collect()
        finally:
            stop.set()
            worker.join()
        for path in self._pending.values():
            self._settle(path, "failed", "the worker stopped before it was embedded; run the import again")
        return self._summary

    def offer(self, entry: Entry) -> None:
        """Take one clip in, or bring its video up to date. Raises ReelsError, OSError where the clip cannot be had."""
        stat = entry.path.stat()
        path = str(entry.path.resolve())
        with self._runtime.db.read() as connection:
            source = catalog.source(connection, path)
            known = None if source is None else catalog.video_by_key(connection, source.video_key)
        description = describe(
            entry.path.name, sampling=self._sampling, caption=sidecar(entry.path), category=entry.category
        )
        if known and source and (source.size_bytes, source.modified_ns) == (stat.st_size, stat.st_mtime_ns):
            self._refresh(entry, description, known)
            return
        ingest = self._runtime.ingest
        with ingest.receive() as incoming:
            with entry.path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    incoming.write(chunk)
            incoming.finish()
            video, outcome = ingest.accept(incoming, description)
        with self._runtime.db.write() as connection:
            catalog.put_source(connection, path, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns, key=video.key)
            orphaned = known and known.key != video.key and not catalog.source_paths(connection, known.key)
        if known and orphaned:
            ingest.delete(known.id)  # the file's bytes are others now, and no other file has the old ones
        if outcome == "existing":
            self._refresh(entry, description, video)
        else:
            self._pending[video.key] = entry.path

    def _refresh(self, entry: Entry, description: Description, video: Video) -> None:
        """Bring the row of a clip whose bytes are known up to date with the folder around it. Of several files with
        the same bytes the first by name decides, in this run and in the next."""
        with self._runtime.db.read() as connection:
            first = catalog.source_paths(connection, video.key)[0]
        if first != str(entry.path.resolve()):
            self._settle(entry.path, "duplicate", f"the same bytes as {first}")
            return
        changes = {
            name: new
            for name, new, old in (
                ("caption", description.caption, video.caption),
                ("category", description.category, video.category),
            )
            if new != old
        }
        if changes:
            self._runtime.ingest.edit(video.id, changes)
        if video.sampling != self._sampling or video.status == "failed":
            self._runtime.ingest.resample(video.id, self._sampling)
            self._pending[video.key] = entry.path
        elif video.status != "ready":
            self._pending[video.key] = entry.path
        else:
            self._settle(entry.path, "updated" if changes else "unchanged")

    def _collect(self) -> None:
        """Settle what the worker has finished since the last look. A clip that failed is taken out again: the
        folder still has it, and the next run tries it again."""
        now = time.monotonic()
        if not self._pending or now - self._looked < _POLL_SECONDS:
            return  # a large folder is offered much faster than it is embedded: do not list all that waits each time
        self._looked = now
        with self._runtime.db.read() as connection:
            videos = catalog.videos_by_key(connection, list(self._pending))
        for key, path in list(self._pending.items()):
            video = videos.get(key)
            if video is None or video.status in ("ready", "failed"):
                del self._pending[key]
            if video is None:
                self._settle(path, "failed", "it was deleted while it was embedded")
            elif video.status == "ready":
                self._settle(path, "embedded")
            elif video.status == "failed":
                self._settle(path, "failed", video.error or "unknown")
                self._runtime.ingest.delete(video.id)

    def _settle(self, path: Path, outcome: Outcome, reason: str = "") -> None:
        if outcome == "embedded":
            self._summary.embedded += 1
        elif outcome == "updated":
            self._summary.updated += 1
        elif outcome == "unchanged":
            self._summary.unchanged += 1
        elif outcome == "duplicate":
            self._summary.duplicates.append((path, reason))
        else:
            self._summary.failures.append((path, reason))
        self._on_done(path, outcome)
