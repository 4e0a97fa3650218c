"""Uploads without HTTP: into a runtime, as the service's handler does."""

from __future__ import annotations

from pathlib import Path

from service.bootstrap import Runtime
from service.database import video_rows
from service.ingestion.ingest import Outcome, check_metadata
from service.models import Sampling, Video


def offer(
    runtime: Runtime, clip: Path, *, sampling: Sampling | None = None, **words: str | None
) -> tuple[Video, Outcome]:
    """Take a clip in, to be embedded later; and whether it was there."""
    with runtime.ingest.receive() as incoming:
        incoming.write(clip.read_bytes())
        incoming.finish()
        return runtime.ingest.accept(incoming, check_metadata(clip.name, sampling=sampling or Sampling(4), **words))


def accept(runtime: Runtime, clip: Path, *, sampling: Sampling | None = None, **words: str | None) -> Video:
    """Take a clip in, to be embedded later."""
    return offer(runtime, clip, sampling=sampling, **words)[0]


def status_of(runtime: Runtime, video: Video) -> Video:
    """The video as it is now."""
    with runtime.db.read() as connection:
        return video_rows.video(connection, video.id)
