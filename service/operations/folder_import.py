"""Import a folder of clips, `Data/<Category>/<clip>`, through the same steps as an upload.

The name of the first folder is the category; a sidecar beside the clip (`sidecars`) holds the caption. A second run
reads the bytes of new and changed files only, detected by size and modification time. If only the sidecar, the folder
or the sampling changed, the existing video is updated. A file that cannot be imported is reported and skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from service.bootstrap import Runtime
from service.database import video_rows
from service.errors import NotFound, ReelsError
from service.ingestion.ingest import ClipMetadata, check_metadata
from service.models import Sampling, Video
from service.names import path_from_text, path_text, readable
from service.operations.folder_scan import Entry, Found
from service.operations.sidecars import read_sidecar
from service.worker.worker import Worker

log = structlog.get_logger(__name__)

Outcome = Literal["embedded", "updated", "unchanged", "duplicate", "failed"]
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1


@dataclass
class ImportReport:
    """Counts of imported clips by outcome.

    `duplicates`, `failures` and `skipped` hold pairs of path and reason. What is skipped is a sidecar or a part of one
    that was not used, besides what `folder_scan.find` skipped.
    """

    embedded: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


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

    def run(self, found: Found | list[Entry]) -> ImportReport:
        """Import every entry, while a worker thread embeds the clips imported so far.

        Errors of single files are recorded in the report, with what was skipped and could not be read when the folder
        was searched.

        Raises:
            ConfigurationError: The model, device or precision cannot be used.
            ModelUnavailable: The weights of the model cannot be loaded.
        """
        if isinstance(found, list):
            found = Found(found)
        self._report.skipped += found.skipped
        self._report.failures += found.failures
        self._runtime.initialise()
        stop = threading.Event()
        worker = threading.Thread(target=Worker(self._runtime).run, args=(stop,), name="worker")
        worker.start()
        try:
            for entry in found.entries:
                try:
                    self.import_clip(entry)
                except OSError as error:  # without the path, which is named anyway
                    self._record(entry.path, "failed", error.strerror or str(error))
                except ReelsError as error:
                    self._record(entry.path, "failed", str(error))
                except Exception as error:  # of a library, about this file: the others must not fail with it
                    self._record(entry.path, "failed", f"unexpected {type(error).__name__}: {error}")
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
        path = path_text(entry.path.resolve())
        with self._runtime.db.read() as connection:
            source = video_rows.source(connection, path)
            known = None if source is None else video_rows.video_by_pk(connection, source.video_key)
        sidecar = read_sidecar(entry.path)
        self._report.skipped += sidecar.notes
        description = check_metadata(
            # On Linux a backslash is part of a name; `check_metadata` takes it for the end of a folder's name.
            readable(entry.path.name).replace("\\", "%5C"),
            sampling=self._sampling,
            title=sidecar.title,
            caption=sidecar.caption,
            category=entry.category if sidecar.category is None else sidecar.category,
        )
        if known and source and (source.size_bytes, source.modified_ns) == (stat.st_size, stat.st_mtime_ns):
            self._refresh(entry, description, known, sidecar.title)
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
            self._refresh(entry, description, video, sidecar.title)
        else:
            self._pending[video.pk] = entry.path

    def _refresh(self, entry: Entry, description: ClipMetadata, video: Video, title: str | None) -> None:
        """Update the caption, category and sampling of a video whose bytes are already stored; its title, if given.

        If several files have the same bytes, only the first by path updates the video, in this run and in later ones.
        The others are reported as duplicates.
        """
        with self._runtime.db.read() as connection:
            first = video_rows.source_paths(connection, video.pk)[0]
        if first != path_text(entry.path.resolve()):
            self._record(entry.path, "duplicate", f"the same bytes as {readable(path_from_text(first))}")
            return
        changes = {
            name: new
            for name, new, old in (
                ("caption", description.caption, video.caption),
                ("category", description.category, video.category),
                ("title", description.title if title else video.title, video.title),
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
                try:
                    self._runtime.ingest.delete(video.id)
                except NotFound:
                    continue  # someone else deleted it
                except (ReelsError, OSError) as error:  # it stays as failed; the next run tries it again
                    log.warning("failed clip not removed", video=video.id, reason=str(error))

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
