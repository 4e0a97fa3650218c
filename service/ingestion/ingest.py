"""The way of an upload: store, decode, embed, aggregate, persist, index. Knows no HTTP and no command line.

`accept` acknowledges a clip only once its bytes are synced and its row and job are committed. `process` does the
work of claimed jobs. Bytes are placed and removed while the database's write lock is held, so that an upload and a
deletion of the same bytes cannot cross; a crash in between leaves at worst bytes without a row, which `repair` removes,
never a row without bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sqlalchemy as sa
import structlog

from service import figures
from service.database import catalog, change_log, generation_rows, jobs, maps, vector_rows
from service.database.db import Database
from service.domain import (
    Probe,
    Sampling,
    Vectors,
    Video,
    clean_caption,
    clean_category,
    clean_filename,
    clean_title,
)
from service.embedding.embedder import Embedder
from service.errors import InvalidInput, ReelsError, StorageFull, Unavailable, Undecodable
from service.media import Decoder, Sample
from service.storage import Incoming, Store
from service.timing import Timing
from service.vectors import aggregate

log = structlog.get_logger(__name__)

Outcome = Literal["created", "existing", "requeued"]

AHEAD_FRAMES = 128  # 25 MB; captions, too, are several times as fast in a batch
_LOOK_SECONDS = 0.2  # while a long clip is decoded, others may come


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


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """A clip with the vectors of its frames (N, D), and those of all captions that were embedded beside it."""

    video: Video
    sample: Sample
    frames: Vectors
    texts: dict[str, Vectors]


class Ingest:
    """The way in, and out again."""

    def __init__(
        self,
        db: Database,
        files: Store,
        decoder: Decoder,
        embedder: Callable[[], Embedder],
        *,
        max_upload_bytes: int,
        threads: int,
        timing: Timing | None = None,
    ) -> None:
        self._timing = timing or Timing()
        self._db = db
        self._files = files
        self._decoder = decoder
        self._embedder = embedder
        self._max_upload_bytes = max_upload_bytes
        self._threads = threads
        self._faults = 0  # of the machine, since something last went well

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
                    jobs.enqueue(connection, video.key)
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
                    _still_active(connection, embedder)
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

    def process(self, claim: Callable[[], list[int]], owner: str) -> None:
        """Do the work of jobs for as long as `claim` gives keys of some that are now `owner`'s.

        A pipeline of three: decoders work on the next clips while the frames of the last are embedded, all that are
        there at once, and those before are stored. It asks for no more than keeps the model busy, so neither a long
        queue nor a long clip takes more memory. What goes wrong with one video stays with it.
        """
        batch = self._embedder().batch
        running: dict[Future[Sample], Video] = {}
        storing: Future[None] | None = None
        with ThreadPoolExecutor(self._threads, "decode") as decoders, ThreadPoolExecutor(1, "store") as store:
            while True:
                while self._hungry(running, batch) and (keys := claim()):
                    with self._db.read() as connection:
                        videos = catalog.videos_by_key(connection, keys)
                    running |= {decoders.submit(self._decode, video, owner): video for video in videos.values()}
                if not running:
                    break
                done, _ = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
                decoded = list(self._results({future: running.pop(future) for future in done}, owner))
                if decoded:
                    embedded = self._embed(decoded, owner)
                    if storing:
                        storing.result()  # one batch waits at most
                    storing = store.submit(self._store, embedded, owner)
            if storing:
                storing.result()

    def _hungry(self, running: dict[Future[Sample], Video], batch: int) -> bool:
        """Whether the clips that are being decoded might leave a decoder or the model without work."""
        frames = sum(video.sampling.num_frames for video in running.values())
        return len(running) <= self._threads or frames < max(2 * batch, AHEAD_FRAMES)

    def _decode(self, video: Video, owner: str) -> Sample:
        with figures.SECONDS.labels("decode").time():
            sample = self._decoder.sample(self._files.video(video.sha256), video.sampling, self._embedder().picture)
        with self._db.write() as connection:
            if jobs.owns(connection, video.key, owner):
                catalog.set_status(connection, video.key, "processing", 0.5)
        return sample

    def _results(self, done: dict[Future[Sample], Video], owner: str) -> Iterator[tuple[Video, Sample]]:
        for future, video in done.items():
            try:
                yield video, future.result()
            except Exception as error:
                self._settle(video, owner, error)

    def _embed(self, batch: list[tuple[Video, Sample]], owner: str) -> list[_Embedded]:
        embedder = self._embedder()
        try:
            pixels = np.concatenate([sample.pixels for _, sample in batch])
            with figures.SECONDS.labels("embed").time():
                frames = embedder.embed_pictures(pixels)
            figures.FRAMES.inc(len(frames))
            figures.BATCH_FILL.observe(len(frames) / embedder.batch)
            captions = list({video.caption: None for video, _ in batch if video.caption})
            texts = dict(zip(captions, embedder.embed_texts(captions), strict=True)) if captions else {}
        except Exception as error:
            if len(batch) > 1:  # one of them may be too much: the others are not to suffer by it
                return [embedded for one in batch for embedded in self._embed([one], owner)]
            self._settle(batch[0][0], owner, error, passing=not self._model_works())
            return []
        ends = np.cumsum([len(sample.times) for _, sample in batch])
        own = np.split(frames, ends[:-1])
        return [_Embedded(video, sample, rows, texts) for (video, sample), rows in zip(batch, own, strict=True)]

    def _model_works(self) -> bool:
        """Whether it is the video that the model fails at, and not the model: a blank picture and a word tell."""
        embedder = self._embedder()
        try:
            embedder.embed_pictures(np.zeros((1, embedder.picture.height, embedder.picture.width, 3), np.uint8))
            embedder.embed_texts(["word"])
        except Exception as error:
            log.warning("the model fails at anything", reason=str(error))
            return False
        return True

    def _store(self, batch: list[_Embedded], owner: str) -> None:
        for one in batch:
            try:
                with figures.SECONDS.labels("store").time():
                    self._persist(one.video, one.sample, one.frames, one.texts, owner)
                self._faults = 0
            except Exception as error:
                self._settle(one.video, owner, error)

    def _persist(self, video: Video, sample: Sample, frames: Vectors, texts: dict[str, Vectors], owner: str) -> None:
        embedder = self._embedder()
        self._files.send_pictures(video.sha256, sample.times.tolist(), sample.jpegs)
        with self._db.write() as connection:
            if not jobs.owns(connection, video.key, owner):  # deleted, or queued afresh, or another worker has it
                if catalog.video_by_sha256(connection, video.sha256) is None:
                    self._files.delete(video.sha256)  # its pictures may have been sent since
                return
            _still_active(connection, embedder)
            caption = catalog.video_by_key(connection, video.key).caption
            if caption and caption not in texts:  # edited while the frames were embedded
                texts = {caption: embedder.embed_texts([caption])[0]}
            self._files.put_pictures(video.sha256, sample.jpegs)
            embeddings = aggregate(frames, texts[caption] if caption else None)
            vector_rows.put_embeddings(connection, video.key, embedder.generation, embeddings)
            if sample.times.tolist() != list(video.frame_times):
                vector_rows.forget_others(connection, video.key, embedder.generation)
            catalog.update_video(
                connection,
                video.key,
                status="ready",
                progress=1.0,
                error=None,
                frame_times=sample.times.tolist(),
                width=sample.probe.width,
                height=sample.probe.height,
                duration_seconds=sample.probe.duration_seconds,
            )
            lag = jobs.age(connection, video.key)
            jobs.finish(connection, video.key)
            change_log.record_change(connection, video.key)
        figures.CLIPS.labels("ready").inc()
        figures.LAG.observe(lag)

    def _settle(self, video: Video, owner: str, error: Exception, *, passing: bool | None = None) -> None:
        """What becomes of a job that could not be done. A fault that is `passing` is the machine's, not the video's."""
        reason = str(error) or type(error).__name__
        pause = 0.0
        if isinstance(error, StorageFull | Unavailable) if passing is None else passing:
            pause = min(self._timing.pause_seconds * 2**self._faults, self._timing.longest_pause_seconds)
            self._faults = min(self._faults + 1, 10)
        log.warning("a video could not be embedded", video=video.id, reason=reason, again_in_seconds=pause or None)
        with self._db.write() as connection:
            if not jobs.owns(connection, video.key, owner):
                return
            if pause:
                jobs.postpone(connection, video.key, reason, pause)
            elif isinstance(error, Undecodable | InvalidInput):
                jobs.fail(connection, video.key, reason)
            else:
                jobs.retry(connection, video.key, reason, self._timing.backoff_seconds)
        figures.CLIPS.labels("put off" if pause else "failed").inc()


def _still_active(connection: sa.Connection, embedder: Embedder) -> None:
    active = generation_rows.active_generation(connection)
    if active is None or active.id != embedder.generation.id:
        raise Unavailable("another model took over just now; try again")
