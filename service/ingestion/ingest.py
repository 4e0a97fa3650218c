"""Operations on videos: add, edit, queue again, delete.

`accept` acknowledges a clip only after its bytes are synced and its row and its job are committed. Bytes are placed and
removed under the database's write lock, so that an upload and a deletion of the same bytes cannot interleave. A crash
in between leaves at worst bytes without a row, which `repair` removes. It never leaves a row without bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from service.database import change_log, generation_rows, jobs, projection_rows, vector_rows, video_rows
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
from service.storage import IncomingUpload, Store

log = structlog.get_logger(__name__)

Outcome = Literal["created", "existing", "requeued"]


@dataclass(frozen=True, slots=True)
class ClipMetadata:
    """Checked metadata of a clip. Created by `check_metadata`."""

    filename: str
    title: str
    caption: str | None
    category: str | None
    sampling: Sampling


def check_metadata(
    filename: str | None,
    *,
    sampling: Sampling,
    title: str | None = None,
    caption: str | None = None,
    category: str | None = None,
) -> ClipMetadata:
    """Check the metadata of a clip. Raises InvalidInput, which names the field.

    The title defaults to the file name without its suffix.
    """
    clean = clean_filename(filename)
    return ClipMetadata(
        filename=clean,
        title=clean_title(title) or clean.rsplit(".", 1)[0] or clean,
        caption=clean_caption(caption),
        category=clean_category(category),
        sampling=sampling,
    )


class Ingest:
    """Adds, edits, queues and deletes videos."""

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

    def receive(self) -> IncomingUpload:
        """Return a context manager that receives the bytes of a clip, up to the size limit."""
        return self._files.receive(self._max_upload_bytes)

    def accept(self, incoming: IncomingUpload, metadata: ClipMetadata) -> tuple[Video, Outcome]:
        """Add a finished upload to the library; return the video and the outcome.

        If a video with the same bytes exists, that video is returned. If it had failed, it is queued again.

        Raises:
            Undecodable: if the bytes are not a video, or if a video with these bytes was deleted at this moment.
            InvalidInput: if the clip is longer, or its frames are larger, than the limits.
            StorageFull: if there is no space left.
        """
        if incoming.size_bytes == 0:
            raise Undecodable("the file is empty")
        with self._db.read() as connection:
            known = video_rows.video_by_sha256(connection, incoming.sha256)
        # A known clip was probed when it was added. Probing is slow, so it happens before any lock is taken.
        probe = None if known else self._decoder.probe(incoming.path)
        try:
            return self._add_upload(incoming, metadata, probe)
        except StorageFull:
            # The bytes may be stored although their row was refused. They are removed at once if possible, to free
            # space. Otherwise the mark stays, and the next start removes them.
            with suppress(ReelsError):
                self._repair_one(incoming.sha256)
            raise

    def _add_upload(
        self, incoming: IncomingUpload, metadata: ClipMetadata, probe: Probe | None
    ) -> tuple[Video, Outcome]:
        """Store bytes, row and job of an upload, or return the video that has these bytes."""
        with self._files.mark(incoming.sha256):
            if probe is not None:
                self._files.upload(incoming, probe.media_type)
            with self._db.write() as connection:
                existing = video_rows.video_by_sha256(connection, incoming.sha256)
                if existing is None:
                    if probe is None:  # deleted since the first look-up
                        raise Undecodable(
                            "the video was deleted while the same bytes were being uploaded; upload them again"
                        )
                    self._files.commit(incoming, probe.media_type)
                    video = video_rows.add_video(
                        connection,
                        sha256=incoming.sha256,
                        size_bytes=incoming.size_bytes,
                        filename=metadata.filename,
                        title=metadata.title,
                        caption=metadata.caption,
                        category=metadata.category,
                        sampling=metadata.sampling,
                        probe=probe,
                    )
                    jobs.add(connection, video.pk)
                    return video, "created"
                if existing.status != "failed":
                    return existing, "existing"
                jobs.enqueue(connection, existing.pk)
                return video_rows.video_by_pk(connection, existing.pk), "requeued"

    def edit(self, video_id: str, changes: dict[str, str | None]) -> Video:
        """Change `caption`, `category` or `title` of a video, those that `changes` contains.

        A new caption only embeds text.

        Raises:
            NotFound: if there is no such video.
            InvalidInput: if a value cannot be used.
            Unavailable: if another generation became active at this moment.
        """
        checks = {"caption": clean_caption, "category": clean_category, "title": clean_title}
        values = {name: checks[name](value) for name, value in changes.items()}
        if "title" in values and values["title"] is None:
            raise InvalidInput("title", "must not be empty")
        with self._db.read() as connection:
            video_rows.video(connection, video_id)  # raises NotFound before a model is loaded
        caption = values.get("caption")
        embedder = self._embedder() if caption else None
        vector = embedder.embed_texts([caption])[0] if embedder and caption else None
        with self._db.write() as connection:
            video = video_rows.video(connection, video_id)
            video_rows.update_video(connection, video.pk, **values)
            other = "caption" in values and caption != video.caption
            if other:
                vector_rows.delete_text_vectors(connection, video.pk)
            if video.status == "ready":
                if other and embedder is not None:
                    generation_rows.require_active(connection, embedder.generation)
                    vector_rows.put_text(connection, video.pk, embedder.generation, vector)
                if "category" in values:
                    projection_rows.delete_points_outside(connection, video.pk, values["category"])
                if values.keys() & {"caption", "category"}:
                    change_log.record_change(connection, video.pk)
            return video_rows.video(connection, video_id)

    def resample(self, video_id: str, sampling: Sampling) -> Video:
        """Queue a video to be decoded and embedded again with this sampling. Raises NotFound."""
        with self._db.write() as connection:
            video = video_rows.video(connection, video_id)
            video_rows.update_video(
                connection, video.pk, num_frames=sampling.num_frames, frame_interval=sampling.frame_interval
            )
            jobs.enqueue(connection, video.pk)
            return video_rows.video(connection, video_id)

    def retry(self, video_id: str) -> Video:
        """Queue a video again if it has failed, and return the video. Raises NotFound."""
        with self._db.write() as connection:
            video = video_rows.video(connection, video_id)
            if video.status != "failed":
                return video
            jobs.enqueue(connection, video.pk)
            return video_rows.video(connection, video_id)

    def delete(self, video_id: str) -> None:
        """Delete a video: first row, vectors and job, then bytes and thumbnails. Raises NotFound."""
        with self._db.read() as connection:
            video = video_rows.video(connection, video_id)
        with self._files.mark(video.sha256):
            with self._db.write() as connection:
                video_rows.delete_video(connection, video_rows.video(connection, video_id).pk)
            # Only after the deletion is committed, under the lock, and only if the bytes were not uploaded again.
            with self._db.write() as connection:
                if video_rows.video_by_sha256(connection, video.sha256) is None:
                    self._files.delete(video.sha256)

    def repair(self) -> int:
        """Remove what crashes left of unacknowledged uploads and of deleted videos; return the number of clips.

        Bytes without a mark are kept, because they may belong to another database.
        """
        self._files.remove_stray_uploads()
        removed = 0
        for sha256 in self._files.marked():
            removed += self._repair_one(sha256)
        if removed:
            log.warning("leftovers of a crash removed", clips=removed)
        return removed

    def _repair_one(self, sha256: str) -> bool:
        """Remove bytes that no row refers to, and their mark; return whether bytes were removed."""
        with self._db.write() as connection:
            stray = video_rows.video_by_sha256(connection, sha256) is None
            if stray:
                self._files.delete(sha256)
            self._files.unmark(sha256)
        return stray
