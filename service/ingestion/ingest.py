"""What is done with videos: taken in, edited, queued again, deleted. Knows no HTTP and no command line.

`accept` acknowledges a clip only once its bytes are synced and its row and job are committed. Bytes are placed and
removed while the database's write lock is held, so that an upload and a deletion of the same bytes cannot cross; a
crash in between leaves at worst bytes without a row, which `repair` removes, never a row without bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from service.database import catalog, change_log, generation_rows, jobs, maps, vector_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, ReelsError, StorageFull, Undecodable
from service.media import Decoder
from service.models import (
    Probe,
    Sampling,
    Video,
    clean_caption,
    clean_category,
    clean_filename,
    clean_title,
)
from service.storage import Incoming, Store

log = structlog.get_logger(__name__)

Outcome = Literal["created", "existing", "requeued"]


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about a clip, already checked. Build it with `describe`."""

    filename: str
    title: str
    caption: str | None
    category: str | None
    sampling: Sampling


def describe(
    filename: str | None,
    *,
    sampling: Sampling,
    title: str | None = None,
    caption: str | None = None,
    category: str | None = None,
) -> Description:
    """Checks every word that came with a clip. Raises InvalidInput, naming the field."""
    clean = clean_filename(filename)
    return Description(
        filename=clean,
        title=clean_title(title) or clean.rsplit(".", 1)[0] or clean,
        caption=clean_caption(caption),
        category=clean_category(category),
        sampling=sampling,
    )


class Ingest:
    """The way in, and out again."""

    def __init__(
        self,
        db: Database,
        files: Store,
        decoder: Decoder,
        embedder: Callable[[], Encoder],
        *,
        max_upload_bytes: int,
    ) -> None:
        self._db = db
        self._files = files
        self._decoder = decoder
        self._embedder = embedder
        self._max_upload_bytes = max_upload_bytes

    def receive(self) -> Incoming:
        """A place for the bytes of a clip, with the size limit; a context manager."""
        return self._files.receive(self._max_upload_bytes)

    def accept(self, incoming: Incoming, description: Description) -> tuple[Video, Outcome]:
        """Take finished bytes into the catalogue. The same bytes again are the video that is there; one that had
        failed is queued once more.

        Raises Undecodable, InvalidInput (longer or larger than the limits), StorageFull.
        """
        if incoming.size_bytes == 0:
            raise Undecodable("the file is empty")
        with self._db.read() as connection:
            known = catalog.video_by_sha256(connection, incoming.sha256)
        # A clip that is known was probed when it came; before any lock is taken, for this takes its time.
        probe = None if known else self._decoder.probe(incoming.path)
        try:
            return self._take_in(incoming, description, probe)
        except StorageFull:
            # The bytes may lie there by now, and their row was refused. They go at once where that can be had, for room
            # is what is wanted; else the mark stays, and the next start removes them.
            with suppress(ReelsError):
                self._repair_one(incoming.sha256)
            raise

    def _take_in(self, incoming: Incoming, description: Description, probe: Probe | None) -> tuple[Video, Outcome]:
        with self._files.unsettled(incoming.sha256):
            if probe is not None:
                self._files.send(incoming, probe.media_type)
            with self._db.write() as connection:
                existing = catalog.video_by_sha256(connection, incoming.sha256)
                if existing is None:
                    if probe is None:  # deleted since the first look
                        raise Undecodable("the video was deleted while its bytes were sent again; send them once more")
                    self._files.place(incoming, probe.media_type)
                    video = catalog.add_video(
                        connection,
                        sha256=incoming.sha256,
                        size_bytes=incoming.size_bytes,
                        filename=description.filename,
                        title=description.title,
                        caption=description.caption,
                        category=description.category,
                        sampling=description.sampling,
                        probe=probe,
                    )
                    jobs.add(connection, video.key)
                    return video, "created"
                if existing.status != "failed":
                    return existing, "existing"
                jobs.enqueue(connection, existing.key)
                return catalog.video_by_key(connection, existing.key), "requeued"

    def edit(self, video_id: str, changes: dict[str, str | None]) -> Video:
        """Change `caption`, `category` or `title`, whichever are given. A new caption embeds text, nothing else.

        Raises NotFound, InvalidInput, and Unavailable in the moment in which another model takes over.
        """
        checks = {"caption": clean_caption, "category": clean_category, "title": clean_title}
        values = {name: checks[name](value) for name, value in changes.items()}
        if "title" in values and values["title"] is None:
            raise InvalidInput("title", "must not be empty")
        with self._db.read() as connection:
            catalog.video(connection, video_id)  # before a model is asked for the sake of nobody
        caption = values.get("caption")
        embedder = self._embedder() if caption else None
        vector = embedder.embed_texts([caption])[0] if embedder and caption else None
        with self._db.write() as connection:
            video = catalog.video(connection, video_id)
            catalog.update_video(connection, video.key, **values)
            other = "caption" in values and caption != video.caption
            if other:
                vector_rows.forget_texts(connection, video.key)
            if video.status == "ready":
                if other and embedder is not None:
                    generation_rows.require_active(connection, embedder.generation)
                    vector_rows.put_text(connection, video.key, embedder.generation, vector)
                if "category" in values:
                    maps.moved(connection, video.key, values["category"])
                if values.keys() & {"caption", "category"}:
                    change_log.record_change(connection, video.key)
            return catalog.video(connection, video_id)

    def resample(self, video_id: str, sampling: Sampling) -> Video:
        """Decode and embed a video again, with this sampling. Raises NotFound."""
        with self._db.write() as connection:
            video = catalog.video(connection, video_id)
            catalog.update_video(
                connection, video.key, num_frames=sampling.num_frames, frame_interval=sampling.frame_interval
            )
            jobs.enqueue(connection, video.key)
            return catalog.video(connection, video_id)

    def retry(self, video_id: str) -> Video:
        """Queue a video again that has failed; another one stays as it is. Raises NotFound."""
        with self._db.write() as connection:
            video = catalog.video(connection, video_id)
            if video.status != "failed":
                return video
            jobs.enqueue(connection, video.key)
            return catalog.video(connection, video_id)

    def delete(self, video_id: str) -> None:
        """Remove a video: row, vectors, job, then bytes and pictures. Raises NotFound."""
        with self._db.read() as connection:
            video = catalog.video(connection, video_id)
        with self._files.unsettled(video.sha256):
            with self._db.write() as connection:
                catalog.delete_video(connection, catalog.video(connection, video_id).key)
            # Only now that the row is gone for good; under the lock, and only if nobody brought the bytes back.
            with self._db.write() as connection:
                if catalog.video_by_sha256(connection, video.sha256) is None:
                    self._files.delete(video.sha256)

    def repair(self) -> int:
        """Remove what a crash left of uploads that were never acknowledged and of videos that were deleted; of how
        many. Bytes that carry no mark are left alone: they may be another database's."""
        self._files.sweep()
        removed = 0
        for sha256 in self._files.doubtful():
            removed += self._repair_one(sha256)
        if removed:
            log.warning("removed what a crash left", clips=removed)
        return removed

    def _repair_one(self, sha256: str) -> bool:
        """Remove bytes that no row refers to; whether it was so."""
        with self._db.write() as connection:
            stray = catalog.video_by_sha256(connection, sha256) is None
            if stray:
                self._files.delete(sha256)
            self._files.settle(sha256)
        return stray
