"""How well the near-duplicate detector recognises copies, which are made of some clips of the library.

A second, temporary library holds these clips, some others, and the copies: encoded again, at half the size, and cut.
It is embedded with the model of a generation, and its detector is asked about each copy. The evaluated library is only
read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from service.bootstrap import Runtime
from service.database import video_rows
from service.errors import ReelsError
from service.media import Pixels
from service.media.synthetic.encoding import encode
from service.models import Generation, ImageSpec, Sampling, Video
from service.operations.evaluation.figures import Group
from service.operations.evaluation.library import Common
from service.operations.folder_import import FolderImport
from service.operations.folder_scan import scan
from service.search.duplicates import Duplicates

log = structlog.get_logger(__name__)

MAX_CLIPS = 10
"""Clips that are copied, at most."""
_MAX_OTHERS = 20  # clips beside them, which should not be found
_FRAMES = Sampling(96)  # of a copy
_SIDE = 480  # pixels of the longer side of a copy, at most
_SMALLEST_SIDE = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """One way to copy a clip: factor of the size, first and last part that is kept, and quality of H.264."""

    scale: float
    start: float
    end: float
    crf: int


COPIES = {"encoded": Copy(1.0, 0.0, 1.0, 34), "resized": Copy(0.5, 0.0, 1.0, 28), "trimmed": Copy(1.0, 0.2, 0.8, 28)}


def copies(
    runtime: Runtime,
    generations: Sequence[Generation],
    common: Common,
    seed: int,
    on_done: Callable[[str], None] = lambda _: None,
) -> list[Group]:
    """Measure which share of a clip's copies is found, and which share finds no wrong video, for each generation.

    A video is wrong if it is neither the clip, nor another copy of it, nor a near-duplicate of the clip itself. A clip
    that cannot be decoded any more is left out.

    Raises:
        ConfigurationError: The model of a generation cannot be used.
        ModelUnavailable: The weights of a generation cannot be loaded.
    """
    wanted = np.random.default_rng(seed).permutation(common.video_pks)[: MAX_CLIPS + _MAX_OTHERS].tolist()
    with runtime.db.read() as connection:
        found = video_rows.videos_by_pk(connection, wanted)
    videos = [found[pk] for pk in wanted if pk in found]
    with tempfile.TemporaryDirectory(prefix="reelsrs-copies-") as name:
        folder = Path(name)
        copied = _write(runtime, videos, folder / "clips", on_done)
        values = []
        for generation in generations:
            on_done(f"searching copies with {generation.model}")
            values.append(_embed_and_search(runtime, generation, folder, copied) if copied else {})
    # The same clips for all generations, because differences are paired.
    whole = [one for one in copied if all(one in by_clip for by_clip in values)]
    left_out = min(MAX_CLIPS, len(wanted)) - len(whole)
    return [
        Group(
            "copies",
            "pixels",
            ("found", "no wrong hit"),
            np.array([by_clip[one] for one in whole], dtype=np.float64).reshape(-1, 2),
            left_out,
            (None, None),
        )
        for by_clip in values
    ]


def _embed_and_search(
    runtime: Runtime, generation: Generation, folder: Path, copied: list[str]
) -> dict[str, tuple[float, float]]:
    """Embed the clips in `<folder>/clips` into a library of their own, and search it for the copies."""
    encoder = runtime.load(generation, image_tower=True)
    settings = runtime.settings.model_copy(
        update={
            "data_dir": folder / generation.id,
            "database_url": None,
            "storage_url": None,
            "vector_store": "faiss",
            "model": generation.model,
            "precision": generation.precision,
        }
    )
    scratch = Runtime(settings, model=encoder, decoder=runtime.decoder)
    try:
        FolderImport(scratch, settings.sampling).run(scan(folder / "clips"))
        return _search(scratch, copied)
    finally:
        scratch.close()


def _write(runtime: Runtime, videos: list[Video], folder: Path, on_done: Callable[[str], None]) -> list[str]:
    """Write clips to `<folder>/clips`, and copies of the first ones to `<folder>/copies`; return the ids of those."""
    (folder / "clips").mkdir(parents=True)
    (folder / "copies").mkdir()
    copied = []
    for number, video in enumerate(videos):
        on_done(f"copying {video.title}")
        try:
            with (folder / "clips" / f"{video.id}.mp4").open("wb") as file:
                file.writelines(runtime.files.video(video.sha256).pieces())
            if number < MAX_CLIPS:
                for name, pixels, copy, fps in _copies(runtime, video):
                    height, width = pixels.shape[1:3]
                    path = folder / "copies" / f"{video.id}-{name}.mp4"
                    encode(pixels, path, fps=fps, width=width, height=height, crf=copy.crf)
                copied.append(video.id)
        except Exception as error:  # deleted meanwhile, or not decodable or encodable any more: counted as left out
            log.warning("clip not copied", video=video.id, reason=str(error))
    return copied


def _copies(runtime: Runtime, video: Video) -> Iterator[tuple[str, Pixels, Copy, int]]:
    """Yield name, frames (N, H, W, 3), kind and frame rate of each copy."""
    clip = runtime.files.video(video.sha256)
    for name, copy in COPIES.items():
        factor = copy.scale * min(1.0, _SIDE / max(video.width, video.height))
        height, width = (max(_SMALLEST_SIDE, round(side * factor / 2) * 2) for side in (video.height, video.width))
        sample = runtime.decoder.sample(clip, _FRAMES, ImageSpec(height, width, resize_mode="squash"))
        count = len(sample.times)
        seconds = float(sample.times[-1] - sample.times[0])
        fps = max(1, round((count - 1) / seconds)) if seconds > 0 else 1
        first, last = int(copy.start * count), max(int(copy.start * count) + 1, round(copy.end * count))
        yield name, sample.pixels[first:last], copy, fps


def _search(scratch: Runtime, copied: list[str]) -> dict[str, tuple[float, float]]:
    """Return the share of copies that is found, and the share without a wrong hit, by copied clip."""
    with scratch.db.read() as connection:
        videos = video_rows.list_videos(connection, status="ready", limit=len(COPIES) * MAX_CLIPS + 100)
    by_title = {video.title: video for video in videos}
    duplicates = scratch.serving.duplicates
    values: dict[str, tuple[float, float]] = {}
    for name in copied:
        family = [name, *(f"{name}-{kind}" for kind in COPIES)]
        if not all(title in by_title for title in family):
            continue  # the clip or a copy was refused
        try:
            near, *others = (_titles(duplicates, by_title[title]) for title in family)
        except ReelsError as error:  # of this clip or its copies: the others are measured
            log.warning("clip not copied", video=name, reason=str(error))
            continue
        found, clean = [], []
        for titles in others:
            found.append(name in titles)
            clean.append(all(one.startswith(name) for one in titles - near))
        values[name] = (float(np.mean(found)), float(np.mean(clean)))
    return values


def _titles(duplicates: Duplicates, video: Video) -> set[str]:
    return {one.video.title for one in duplicates.find(video.id).near_duplicates}
