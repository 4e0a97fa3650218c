"""Pipeline that decodes, embeds and stores clips; the three stages run at the same time.

A `Sink` decides what happens to the results. `uploads.py` has the sink of uploads, and `generations/reembed.py` the
sink of the whole library when the model changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog

from service import telemetry
from service.database import video_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.media import Decoder, Sample
from service.models import Vectors, Video
from service.storage import Store

log = structlog.get_logger(__name__)

AHEAD_FRAMES = 128  # 25 MB; captions are also several times as fast in a batch
_POLL_SECONDS = 0.2  # while a long clip is decoded, other jobs may arrive


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A clip with the (N, D) float32 vectors of its frames.

    `texts` holds the (D,) text vectors of all captions that were embedded in the same batch, by caption.
    """

    video: Video
    sample: Sample
    frames: Vectors
    texts: dict[str, Vectors]


class Sink(Protocol):
    """Receives the results of a pipeline."""

    def on_decoded(self, video: Video) -> None:
        """Take note that the frames of a video are decoded. Called in one of several threads."""

    def store(self, clip: Embedded) -> None:
        """Store an embedded clip. An error raised here is passed to `fail`."""

    def fail(self, video: Video, error: Exception, *, transient: bool | None = None) -> None:
        """Handle a video that could not be embedded. An error raised here ends the run.

        `transient` is True for a fault of the machine, and False for one of the video. None leaves it to the type of
        `error`.
        """


class Pipeline:
    """Three stages: decoders in child processes, the model in this process, and one thread that stores."""

    def __init__(
        self, db: Database, files: Store, decoder: Decoder, embedder: Callable[[], Encoder], *, threads: int
    ) -> None:
        """Create a pipeline that decodes `threads` clips at a time."""
        self._db = db
        self._files = files
        self._decoder = decoder
        self._embedder = embedder
        self._threads = threads

    def run(self, claim: Callable[[], list[int]], sink: Sink) -> None:
        """Embed videos as long as `claim` returns primary keys, and pass each result to `sink`.

        Decoders work on the next clips while the model embeds all frames that are decoded, and the clips before are
        stored. Only as many clips are claimed as keep the model busy, so neither a long queue nor a long clip takes
        more memory. An error of one video does not affect the others.
        """
        batch = self._embedder().batch
        running: dict[Future[Sample], Video] = {}
        storing: Future[None] | None = None
        with ThreadPoolExecutor(self._threads, "decode") as decoders, ThreadPoolExecutor(1, "store") as store:
            while True:
                while self._needs_more_clips(running, batch) and (keys := claim()):
                    with self._db.read() as connection:
                        videos = video_rows.videos_by_pk(connection, keys)
                    running |= {decoders.submit(self._decode, video, sink): video for video in videos.values()}
                if not running:
                    break
                done, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                decoded = list(self._results({future: running.pop(future) for future in done}, sink))
                if decoded:
                    embedded = self._embed(decoded, sink)
                    if storing:
                        storing.result()  # at most one batch waits to be stored
                    storing = store.submit(_store, embedded, sink)
            if storing:
                storing.result()

    def _needs_more_clips(self, running: dict[Future[Sample], Video], batch: int) -> bool:
        """Return whether the clips in decoding might leave a decoder or the model without work."""
        frames = sum(video.sampling.num_frames for video in running.values())
        return len(running) <= self._threads or frames < max(2 * batch, AHEAD_FRAMES)

    def _decode(self, video: Video, sink: Sink) -> Sample:
        with telemetry.SECONDS.labels("decode").time():
            sample = self._decoder.sample(self._files.video(video.sha256), video.sampling, self._embedder().image_spec)
        sink.on_decoded(video)
        return sample

    def _results(self, done: dict[Future[Sample], Video], sink: Sink) -> Iterator[tuple[Video, Sample]]:
        """Yield the decoded clips, and pass errors to the sink."""
        for future, video in done.items():
            try:
                yield video, future.result()
            except Exception as error:
                sink.fail(video, error)

    def _embed(self, batch: list[tuple[Video, Sample]], sink: Sink) -> list[Embedded]:
        """Embed clips as one batch; if that fails, embed each clip by itself."""
        embedder = self._embedder()
        try:
            pixels = np.concatenate([sample.pixels for _, sample in batch])
            with telemetry.SECONDS.labels("embed").time():
                frames = embedder.embed_images(pixels)
            telemetry.FRAMES.inc(len(frames))
            telemetry.BATCH_FILL.observe(len(frames) / embedder.batch)
            captions = list({video.caption: None for video, _ in batch if video.caption})
            texts = dict(zip(captions, embedder.embed_texts(captions), strict=True)) if captions else {}
        except Exception as error:
            if len(batch) > 1:  # one clip may be too large; the others must not fail with it
                return [embedded for one in batch for embedded in self._embed([one], sink)]
            sink.fail(batch[0][0], error, transient=not self._model_works())
            return []
        ends = np.cumsum([len(sample.times) for _, sample in batch])
        own = np.split(frames, ends[:-1])
        return [Embedded(video, sample, rows, texts) for (video, sample), rows in zip(batch, own, strict=True)]

    def _model_works(self) -> bool:
        """Return whether the model embeds a blank image and a word.

        If so, an earlier error was the fault of the video, else the fault of the model.
        """
        embedder = self._embedder()
        try:
            embedder.embed_images(np.zeros((1, embedder.image_spec.height, embedder.image_spec.width, 3), np.uint8))
            embedder.embed_texts(["word"])
        except Exception as error:
            log.warning("model fails on every input", reason=str(error))
            return False
        return True


def _store(batch: list[Embedded], sink: Sink) -> None:
    for one in batch:
        try:
            with telemetry.SECONDS.labels("store").time():
                sink.store(one)
        except Exception as error:
            sink.fail(one.video, error)
