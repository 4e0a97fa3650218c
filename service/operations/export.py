"""Export the library's vectors to a folder, or to one table.

A folder holds, for each category and video, vectors as `.npy` files and metadata as JSON. All vectors are float32 and
of unit length:

FOLDER/<category>/<title>-<id>/frame.npy        (N, D)
                               aggregated.npy   (D,)
                               text.npy         (D,), only if the video has a caption
                               metadata.json

A table is a Parquet file with one row for each video (`arrow.write_parquet`), optionally with its coordinates on a
projection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from service.bootstrap import Runtime
from service.database import vector_rows, video_rows
from service.database.projection_rows import Projection
from service.models import Blob, Generation, Kind, Vectors, Video
from service.projections.arrow import write_parquet

UNCATEGORISED = "_uncategorised"
_PAGE_VIDEOS = 256


def export_folder(runtime: Runtime, folder: Path, on_done: Callable[[Video], None] = lambda _: None) -> int:
    """Write every ready video below `folder`, and return the number of videos.

    Files of an earlier export are overwritten. `on_done` is called after each video. Raises ConfigurationError if
    nothing was ever embedded.
    """
    generation = runtime.generation()
    count = 0
    for connection, page in _pages(runtime):
        for video in page:
            _write(folder, video, generation, _vectors(runtime, connection, video, generation))
            on_done(video)
            count += 1
    return count


def export_table(
    runtime: Runtime, path: Path, state: Projection | None = None, on_done: Callable[[Video], None] = lambda _: None
) -> int:
    """Write every ready video to one Parquet file, and return the number of videos.

    The file appears under its name only once it is complete.

    Args:
        runtime: The library to export.
        path: The Parquet file to write; missing parent folders are created.
        state: A projection of aggregated embeddings; adds columns x, y and, in 3D, z.
        on_done: Called with each video after its row was read.

    Raises:
        ConfigurationError: Nothing was ever embedded.
    """
    generation = runtime.generation()
    coordinates: dict[int, Vectors] = {}
    if state is not None:
        points = runtime.projections.points(state)
        coordinates = dict(zip(points.video_pks.tolist(), points.coordinates, strict=True))
    axes = () if state is None else ("x", "y", "z")[: state.spec.dimensions]
    count = 0

    def batches() -> Iterator[list[dict[str, Any]]]:
        nonlocal count
        for connection, page in _pages(runtime):
            rows = []
            for video in page:
                row = _row(runtime, connection, video, generation)
                if video.pk in coordinates:
                    row |= dict(zip(axes, coordinates[video.pk].tolist(), strict=True))
                rows.append(row)
                on_done(video)
            count += len(page)
            yield rows

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        write_parquet(aside, generation.dimension, axes, batches())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def _pages(runtime: Runtime) -> Iterator[tuple[sa.Connection, list[Video]]]:
    before = None
    while True:
        with runtime.db.read() as connection:
            page = video_rows.list_videos(connection, status="ready", before=before, limit=_PAGE_VIDEOS)
            yield connection, page
        if len(page) < _PAGE_VIDEOS:
            return
        before = page[-1].pk


def _vectors(
    runtime: Runtime, connection: sa.Connection, video: Video, generation: Generation
) -> dict[str, Vectors | None]:
    kinds: dict[str, Kind] = {"frame": "frame", "aggregated": runtime.settings.aggregation, "text": "text"}
    return {name: vector_rows.vectors(connection, video.pk, generation, kind) for name, kind in kinds.items()}


def _path(blob: Blob) -> str | None:
    return None if blob.path is None else str(blob.path.absolute())


def _row(runtime: Runtime, connection: sa.Connection, video: Video, generation: Generation) -> dict[str, Any]:
    vectors = _vectors(runtime, connection, video, generation)
    frames, aggregated, text = vectors["frame"], vectors["aggregated"], vectors["text"]
    sources = [path for path in video_rows.source_paths(connection, video.pk) if Path(path).is_file()]
    return {
        "id": video.id,
        "title": video.title,
        "category": video.category,
        "caption": video.caption,
        "filename": video.filename,
        # The imported file, if it still exists: its name has an extension, which tools rely on.
        "path": sources[0] if sources else _path(runtime.files.video(video.sha256)),
        "sha256": video.sha256,
        "duration": video.duration_seconds,
        "width": video.width,
        "height": video.height,
        "created_at": video.created_at,
        "frame_times": list(video.frame_times),
        "aggregated": None if aggregated is None else aggregated[0].tolist(),
        "text": None if text is None else text[0].tolist(),
        "frames": None if frames is None else frames.tolist(),
    }


def _write(folder: Path, video: Video, generation: Generation, vectors: dict[str, Vectors | None]) -> None:
    # The title is untrusted text; a category cannot contain a slash or start with a dot (`clean_category`).
    title = re.sub(r"[^\w\- ]+", "_", video.title).strip(" ._")[:80] or "video"
    target = folder / (video.category or UNCATEGORISED) / f"{title}-{video.id}"
    target.mkdir(parents=True, exist_ok=True)
    for name, array in vectors.items():
        path = target / f"{name}.npy"
        if array is None:
            path.unlink(missing_ok=True)
        else:
            np.save(path, array if name == "frame" else array[0], allow_pickle=False)
    metadata = {
        "id": video.id,
        "title": video.title,
        "category": video.category,
        "caption": video.caption,
        "filename": video.filename,
        "sha256": video.sha256,
        "duration": video.duration_seconds,
        "width": video.width,
        "height": video.height,
        "frame_times": list(video.frame_times),
        "generation": asdict(generation),
        "created_at": video.created_at.isoformat(),
    }
    (target / "metadata.json").write_text(json.dumps(metadata, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
