"""Uploads without HTTP: pass a clip to a runtime as the upload handler does."""

from __future__ import annotations

from pathlib import Path

from service.bootstrap import Runtime
from service.database import video_rows
from service.ingestion.ingest import Outcome, check_metadata
from service.models import Sampling, Video


def offer(
    runtime: Runtime, clip: Path, *, sampling: Sampling | None = None, **words: str | None
) -> tuple[Video, Outcome]:
    """Accept a clip and queue its job. Return the video and the outcome, such as "existing"."""
    with runtime.ingest.receive() as incoming:
        incoming.write(clip.read_bytes())
        incoming.finish()
        return runtime.ingest.accept(incoming, check_metadata(clip.name, sampling=sampling or Sampling(4), **words))


def accept(runtime: Runtime, clip: Path, *, sampling: Sampling | None = None, **words: str | None) -> Video:
    """Accept a clip and queue its job; return the video."""
    return offer(runtime, clip, sampling=sampling, **words)[0]


def status_of(runtime: Runtime, video: Video) -> Video:
    """Return the current row of the video."""
    with runtime.db.read() as connection:
        return video_rows.video(connection, video.id)
