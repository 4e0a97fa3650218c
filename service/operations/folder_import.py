"""Import a folder of clips, `Data/<Category>/<clip>`, through the same steps as an upload.

The name of the first folder is the category; a sidecar file `<stem>.txt` beside the clip holds the caption. A second
run reads the bytes of new and changed files only, detected by size and modification time. If only the sidecar, the
folder or the sampling changed, the existing video is updated. A file that cannot be imported is reported and skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.bootstrap import Runtime
from service.database import video_rows
from service.errors import InvalidInput, ReelsError
from service.ingestion.ingest import ClipMetadata, check_metadata
from service.media import SUFFIXES
from service.models import Sampling, Video
from service.worker.worker import Worker

Outcome = Literal["embedded", "updated", "unchanged", "duplicate", "failed"]
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """Clip found in the folder."""

    path: Path
    category: str


@dataclass
class ImportReport:
    """Counts of imported clips by outcome; `duplicates` and `failures` hold pairs of path and reason."""

    embedded: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def scan(folder: Path) -> list[Entry]:
    """Return every clip below `folder/<Category>/`, sorted by path; hidden files and folders are skipped.

    Raises InvalidInput if the folder does not exist or contains no clips.
    """
    if not folder.is_dir():
        raise InvalidInput("data_folder", f"folder {folder} does not exist")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in inside)
        if len(inside) >= 2 and not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            entries.append(Entry(path, inside[0]))
    if not entries:
        raise InvalidInput("data_folder", f"no clips found below {folder}/<Category>/")
    return entries


def sidecar(path: Path) -> str | None:
    """Return the content of the text file beside a clip, or None if there is no such file."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None


class FolderImport:
    """One import run. `on_done` is called with the path and outcome of each clip once its outcome is known."""

    def __init__(
        self, runtime: Runtime, sampling: Sampling, on_done: Callable[[Path, Outcome], None] = lambda *_: None
    ) -> None:
        self._runtime = runtime
        self._sampling = sampling
        self._on_done = on_done
        self._report = ImportReport()
        self._pending: dict[int, Path] = {}
        self._polled_at = 0.0

    def run(self, entries: list[Entry]) -> ImportReport:
        """Import every entry, while a worker thread embeds the clips imported so far.

        Errors of single files are recorded in the report.

        Raises:
            ConfigurationError: The model, device or precision cannot be used.
            ModelUnavailable: The weights of the model cannot be loaded.
        """
        self._runtime.initialise()
        stop = threading.Event()
        worker = threading.Thread(target=Worker(self._runtime).run, args=(stop,), name="worker")
        worker.start()
        try:
            for entry in entries:
                try:
                    self.import_clip(entry)
                except (ReelsError, OSError) as error:
                    self._record(entry.path, "failed", str(error))
                self._record_finished()
            while self._pending and worker.is_alive():
                time.sleep(_POLL_SECONDS)
                self._record_finished()
        finally:
            stop.set()
            worker.join()
        for path in self._pending.values():
            self._record(path, "failed", "not embedded, because the worker stopped; run the import again")
        return self._report

    def import_clip(self, entry: Entry) -> None:
        """Import one clip, or update the video that it became in an earlier run.

        Raises ReelsError if the clip is refused, OSError if its file cannot be read.
        """
        stat = entry.path.stat()
        path = str(entry.path.resolve())
        with self._runtime.db.read() as connection:
            source = video_rows.source(connection, path)
            known = None if source is None else video_rows.video_by_pk(connection, source.video_key)
        description = check_metadata(
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
            video_rows.put_source(
                connection, path, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns, video_pk=video.pk
            )
            orphaned = known and known.pk != video.pk and not video_rows.source_paths(connection, known.pk)
        if known and orphaned:
            ingest.delete(known.id)  # the bytes of the file changed, and no other file has the old bytes
        if outcome == "existing":
            self._refresh(entry, description, video)
        else:
            self._pending[video.pk] = entry.path

    def _refresh(self, entry: Entry, description: ClipMetadata, video: Video) -> None:
        """Update the caption, category and sampling of a video whose bytes are already stored.

        If several files have the same bytes, only the first by path updates the video, in this run and in later ones.
        The others are reported as duplicates.
        """
        with self._runtime.db.read() as connection:
            first = video_rows.source_paths(connection, video.pk)[0]
        if first != str(entry.path.resolve()):
            self._record(entry.path, "duplicate", f"the same bytes as {first}")
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
            self._pending[video.pk] = entry.path
        elif video.status != "ready":
            self._pending[video.pk] = entry.path
        else:
            self._record(entry.path, "updated" if changes else "unchanged")

    def _record_finished(self) -> None:
        """Record the outcome of clips that the worker has finished since the last call.

        A video that failed is deleted: the folder still has its file, and the next run tries it again.
        """
        now = time.monotonic()
        if not self._pending or now - self._polled_at < _POLL_SECONDS:
            return  # clips are offered faster than they are embedded: do not query all pending ones each time
        self._polled_at = now
        with self._runtime.db.read() as connection:
            videos = video_rows.videos_by_pk(connection, list(self._pending))
        for video_pk, path in list(self._pending.items()):
            video = videos.get(video_pk)
            if video is None or video.status in ("ready", "failed"):
                del self._pending[video_pk]
            if video is None:
                self._record(path, "failed", "the video was deleted before it was embedded")
            elif video.status == "ready":
                self._record(path, "embedded")
            elif video.status == "failed":
                self._record(path, "failed", video.error or "unknown")
                self._runtime.ingest.delete(video.id)

    def _record(self, path: Path, outcome: Outcome, reason: str = "") -> None:
        if outcome == "embedded":
            self._report.embedded += 1
        elif outcome == "updated":
            self._report.updated += 1
        elif outcome == "unchanged":
            self._report.unchanged += 1
        elif outcome == "duplicate":
            self._report.duplicates.append((path, reason))
        else:
            self._report.failures.append((path, reason))
        self._on_done(path, outcome)
