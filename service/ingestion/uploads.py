"""Sink for uploads in the pipeline: a video becomes ready or failed, or is tried again."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from service import telemetry
from service.database import change_log, generation_rows, jobs, vector_rows, video_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, StorageFull, Unavailable, Undecodable
from service.ingestion.pipeline import Embedded
from service.models import Video
from service.storage import Store
from service.timing import Timing, backoff
from service.vectors import aggregate

log = structlog.get_logger(__name__)


class UploadSink:
    """Sink for the jobs that `owner` holds. Jobs that `owner` lost meanwhile are left alone."""

    def __init__(self, db: Database, files: Store, embedder: Callable[[], Encoder], owner: str, timing: Timing) -> None:
        self._db = db
        self._files = files
        self._embedder = embedder
        self._owner = owner
        self._timing = timing
        self._faults = 0  # of the machine, since the last success

    def on_decoded(self, video: Video) -> None:
        """Set the progress of the video to one half."""
        with self._db.write() as connection:
            if jobs.owns(connection, video.pk, self._owner):
                video_rows.set_status(connection, video.pk, "processing", 0.5)

    def store(self, clip: Embedded) -> None:
        """Store the vectors and thumbnails of a clip, mark the video as ready and finish its job.

        Raises Unavailable if another generation is active by now.
        """
        video, sample, texts = clip.video, clip.sample, clip.texts
        embedder = self._embedder()
        self._files.upload_thumbnails(video.sha256, sample.times.tolist(), sample.thumbnails)
        with self._db.write() as connection:
            if not jobs.owns(connection, video.pk, self._owner):  # deleted, queued again, or claimed by another worker
                if video_rows.video_by_sha256(connection, video.sha256) is None:
                    self._files.delete(video.sha256)  # thumbnails may have been sent after the deletion
                return
            generation_rows.require_active(connection, embedder.generation)
            caption = video_rows.video_by_pk(connection, video.pk).caption
            if caption and caption not in texts:  # edited while the frames were embedded
                texts = {caption: embedder.embed_texts([caption])[0]}
            self._files.commit_thumbnails(video.sha256, sample.thumbnails)
            embeddings = aggregate(clip.frames, texts[caption] if caption else None)
            vector_rows.put_embeddings(connection, video.pk, embedder.generation, embeddings)
            if sample.times.tolist() != list(video.frame_times):
                vector_rows.delete_other_generations(connection, video.pk, embedder.generation)
            video_rows.update_video(
                connection,
                video.pk,
                status="ready",
                progress=1.0,
                error=None,
                frame_times=sample.times.tolist(),
                width=sample.probe.width,
                height=sample.probe.height,
                duration_seconds=sample.probe.duration_seconds,
            )
            lag = jobs.age(connection, video.pk)
            jobs.finish(connection, video.pk)
            change_log.record_change(connection, video.pk)
        telemetry.CLIPS.labels("ready").inc()
        telemetry.LAG.observe(lag)
        self._faults = 0

    def fail(self, video: Video, error: Exception, *, transient: bool | None = None) -> None:
        """Postpone, retry or give up the job of a video that could not be embedded.

        A fault of the machine postpones the job, each time for longer, and costs no attempt. Undecodable and
        InvalidInput give the job up. Any other error costs one attempt. `transient` is True for a fault of the machine,
        and False for one of the video. None leaves it to the type of `error`.
        """
        reason = str(error) or type(error).__name__
        pause = 0.0
        if isinstance(error, StorageFull | Unavailable) if transient is None else transient:
            self._faults += 1
            pause = backoff(self._faults, self._timing.fault_pause_seconds, self._timing.max_fault_pause_seconds)
        log.warning("video not embedded", video=video.id, reason=reason, again_in_seconds=pause or None)
        with self._db.write() as connection:
            if not jobs.owns(connection, video.pk, self._owner):
                return
            if pause:
                jobs.postpone(connection, video.pk, reason, pause)
            elif isinstance(error, Undecodable | InvalidInput):
                jobs.fail(connection, video.pk, reason)
            else:
                jobs.retry(connection, video.pk, reason, self._timing.backoff_seconds)
        telemetry.CLIPS.labels("put off" if pause else "failed").inc()
