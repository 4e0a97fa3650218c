"""Re-embed the library into another generation, beside the active one.

Re-embedding starts from the stored bytes, like an upload. It changes neither the status nor the thumbnails of a video.
The remaining work is derived from the vectors that exist, so a run can be stopped and continued at any time. Uploads go
first: re-embedding waits while an upload waits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import structlog

from service.database import change_log, jobs, vector_rows, video_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, NotFound, StorageFull, Unavailable, Undecodable
from service.generations import generations
from service.ingestion.pipeline import Embedded, Pipeline
from service.media import Decoder
from service.models import Generation, Vectors, Video
from service.storage import Store
from service.vectors import aggregate

log = structlog.get_logger(__name__)

_CLAIM_VIDEOS = 4
_CAPTION_BATCH = 64
_POLL_SECONDS = 0.5


class Reembedding:
    """Re-embeds the library into one generation, whose model `encoder` returns.

    One process at a time does this, across all machines. The remaining work is derived from the vectors that exist, so
    two processes would do the same work twice.
    """

    def __init__(
        self,
        db: Database,
        files: Store,
        decoder: Decoder,
        encoder: Callable[[], Encoder],
        *,
        generation: Generation,
        threads: int,
    ) -> None:
        self._db = db
        self._encoder = encoder
        self._pipeline = Pipeline(db, files, decoder, encoder, threads=threads)
        self._generation = generation
        self._remaining: list[int] = []
        self._attempts: Counter[int] = Counter()
        self._failed: dict[int, str] = {}  # not tried again here; queued like uploads after a switch

    def run(
        self, stop: threading.Event, *, keep_up: bool = True, on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Re-embed until the generation is active, is no longer the target, or `stop` is set.

        Args:
            stop: ends the run early. A later run continues.
            keep_up: if the generation is complete but not active, keep it complete so that it can be switched to. If
                False, return as soon as the generation is complete.
            on_progress: called with the number of videos done and the number of all videos.

        Raises:
            ConfigurationError: if the model's name, device or precision cannot be used.
            ModelUnavailable: if the weights cannot be loaded.
            WeightsMismatch: if the weights differ from those of the generation.
        """
        while True:
            with self._db.try_lock("generations") as locked:
                if locked:
                    self._run(stop, keep_up, on_progress)
                    return
            if stop.wait(_POLL_SECONDS) or not self._is_target():
                return

    def _run(self, stop: threading.Event, keep_up: bool, on_progress: Callable[[int, int], None]) -> None:
        self._encoder()
        checked_change = -1
        while not stop.is_set() and self._is_target():
            with self._db.read() as connection:
                last_change = change_log.last_change(connection, self._generation.id)
                if last_change == checked_change:  # complete, and nothing changed since
                    missing: list[int] = []
                    texts, total = missing, 0
                else:
                    missing, texts = generations.missing(connection, self._generation.id)
                    total = len(video_rows.ready_pks(connection))
            self._remaining = [pk for pk in missing if pk not in self._failed]
            captions = [pk for pk in texts if pk not in self._failed]
            if self._uploads_wait() or last_change == checked_change:
                stop.wait(_POLL_SECONDS)
            elif self._remaining:
                self._pipeline.run(partial(self._claim, stop, total, on_progress), self)
            elif captions:
                self._embed_captions(captions, stop)
            else:
                on_progress(total, total)
                if self._complete() or not keep_up:
                    return
                checked_change = last_change

    def _claim(self, stop: threading.Event, total: int, on_progress: Callable[[int, int], None]) -> list[int]:
        if stop.is_set() or self._uploads_wait() or not self._is_target():
            return []
        claimed, self._remaining = self._remaining[:_CLAIM_VIDEOS], self._remaining[_CLAIM_VIDEOS:]
        on_progress(total - len(self._remaining), total)
        return claimed

    def _is_target(self) -> bool:
        with self._db.read() as connection:
            target = generations.target(connection)
        return target is not None and target.id == self._generation.id

    def _uploads_wait(self) -> bool:
        with self._db.read() as connection:
            return jobs.waiting(connection)

    def _complete(self) -> bool:
        """Mark the generation as complete, unless work is left; return whether it became active."""
        with self._db.write() as connection:
            missing, texts = generations.missing(connection, self._generation.id)
            if {*missing, *texts} - self._failed.keys():
                return False  # videos were added meanwhile
            failed = [f"{video_rows.video_by_pk(connection, pk).id} ({self._failed[pk]})" for pk in missing[:5]]
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            reason = f"could not be embedded: {', '.join(failed)}{more}" if failed else None
            generations.record_error(connection, self._generation.id, reason)
            switched = generations.complete(connection, self._generation)
        if switched:
            log.warning("generation activated", model=self._generation.model)
        return switched

    # --- the sink of the pipeline

    def on_decoded(self, video: Video) -> None:
        """Do nothing, because the video stays ready meanwhile."""

    def store(self, clip: Embedded) -> None:
        """Store the vectors of a clip in this generation. Its status and thumbnails stay as they are.

        A video that was deleted or queued meanwhile is skipped. If its frames differ from those of the active
        generation, the video is queued, so that both generations have the same frames.
        """
        video, sample, texts = clip.video, clip.sample, clip.texts
        with self._db.write() as connection:
            try:
                now = video_rows.video_by_pk(connection, video.pk)
            except NotFound:
                return
            if now.status != "ready" or now.sampling != video.sampling:
                return  # being embedded again, and missing again afterwards
            if len(sample.times) != len(now.frame_times) or not np.allclose(sample.times, now.frame_times, atol=1e-3):
                # Another setting or decoder picked other frames. The active generation must have the same frames.
                jobs.enqueue(connection, video.pk)
                return
            text = texts.get(now.caption) if now.caption else None  # an edited caption stays missing
            vector_rows.put_embeddings(connection, video.pk, self._generation, aggregate(clip.frames, text))
            change_log.record_change(connection, video.pk, self._generation.id)

    def fail(self, video: Video, error: Exception, *, transient: bool | None = None) -> None:
        """Count a failed attempt, and leave the video out of this generation if no attempt is left.

        Raises `error` if the machine is at fault and not the video.
        """
        if isinstance(error, StorageFull | Unavailable) if transient is None else transient:
            raise error  # the machine's fault, not a clip's; the work left is tried again later
        self._attempts[video.pk] += 1
        reason = str(error) or type(error).__name__
        log.warning("video not re-embedded", video=video.id, reason=reason)
        if isinstance(error, Undecodable | InvalidInput) or self._attempts[video.pk] >= jobs.MAX_ATTEMPTS:
            self._failed[video.pk] = reason

    def _embed_captions(self, video_pks: list[int], stop: threading.Event) -> None:
        """Embed the captions of videos that lack only their text vector."""
        for start in range(0, len(video_pks), _CAPTION_BATCH):
            if stop.is_set() or self._uploads_wait():
                return
            with self._db.read() as connection:
                videos = video_rows.videos_by_pk(connection, video_pks[start : start + _CAPTION_BATCH])
            texts = self._embed_texts([video for video in videos.values() if video.caption])
            if not texts:
                continue
            with self._db.write() as connection:
                for video_pk, now in video_rows.videos_by_pk(connection, videos).items():
                    if now.caption in texts:
                        vector_rows.put_text(connection, video_pk, self._generation, texts[now.caption])
                        change_log.record_change(connection, video_pk, self._generation.id)

    def _embed_texts(self, videos: list[Video]) -> dict[str, Vectors]:
        """Return the text vectors (D,) of captions. A caption that the model refuses fails its own video only."""
        captions = [video.caption or "" for video in videos]
        try:
            return dict(zip(captions, self._encoder().embed_texts(captions), strict=True)) if captions else {}
        except Exception as error:
            if len(videos) > 1:
                return {text: vector for one in videos for text, vector in self._embed_texts([one]).items()}
            self._encoder().embed_texts(["word"])  # raises if the model is at fault, and not the caption
            self.fail(videos[0], error, transient=False)
            return {}
