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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from service import system_errors
from service.bootstrap import Runtime
from service.database import vector_rows, video_rows
from service.database.projection_rows import Projection
from service.errors import ReelsError, StorageFull, Unavailable
from service.models import Blob, Generation, Kind, Vectors, Video
from service.names import path_from_text, path_text
from service.projections.arrow import write_parquet

UNCATEGORISED = "_uncategorised"
_PAGE_VIDEOS = 256
_MAX_NAME_BYTES = 240  # of a folder; file systems allow 255


@dataclass
class ExportReport:
    """Number of exported videos; `failures` holds pairs of id and reason of those that were not exported completely."""

    videos: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def export_folder(runtime: Runtime, folder: Path, on_done: Callable[[Video], None] = lambda _: None) -> ExportReport:
    """Write every ready video below `folder`.

    Files of an earlier export are overwritten. `on_done` is called after each video. A video that cannot be written is
    reported, and the others are written.

    Raises:
        ConfigurationError: Nothing was ever embedded.
        StorageFull: There is no room for the files.
        Unavailable: The system temporarily refuses an operation.
    """
    generation = runtime.generation()
    report = ExportReport()
    for connection, page in _pages(runtime):
        for video in page:
            with _named(report, video):
                _write(folder, video, generation, _vectors(runtime, connection, video, generation))
                report.videos += 1
            on_done(video)
    return report


@contextmanager
def _named(report: ExportReport, video: Video) -> Iterator[None]:
    """Record an error of one video in the report. Faults of the machine, which concern all videos, are raised."""
    try:
        with system_errors.converted("the export cannot be written"):
            yield
    except (StorageFull, Unavailable):
        raise
    except OSError as error:
        report.failures.append((video.id, error.strerror or str(error)))
    except (ReelsError, ValueError) as error:
        report.failures.append((video.id, str(error)))


def export_table(
    runtime: Runtime, path: Path, state: Projection | None = None, on_done: Callable[[Video], None] = lambda _: None
) -> ExportReport:
    """Write every ready video to one Parquet file.

    The file appears under its name only once it is complete. A video whose vectors or stored clip cannot be read is
    reported, and the others are written.

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
    report = ExportReport()

    def batches() -> Iterator[list[dict[str, Any]]]:
        for connection, page in _pages(runtime):
            rows = []
            for video in page:
                with _named(report, video):
                    row = _row(runtime, connection, video, generation)
                    if video.pk in coordinates:
                        row |= dict(zip(axes, coordinates[video.pk].tolist(), strict=True))
                    rows.append(row)
                on_done(video)
            report.videos += len(rows)
            yield rows

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        write_parquet(aside, generation.dimension, axes, batches())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return report


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
    return None if blob.path is None else path_text(blob.path.absolute())


def _row(runtime: Runtime, connection: sa.Connection, video: Video, generation: Generation) -> dict[str, Any]:
    vectors = _vectors(runtime, connection, video, generation)
    frames, aggregated, text = vectors["frame"], vectors["aggregated"], vectors["text"]
    sources = [path for path in video_rows.source_paths(connection, video.pk) if path_from_text(path).is_file()]
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


def _cut(name: str, reserved_bytes: int = 0) -> str:
    """Return as much of a name as a file system allows, whose limit is in bytes."""
    return name.encode()[: _MAX_NAME_BYTES - reserved_bytes].decode(errors="ignore").rstrip()


def _write(folder: Path, video: Video, generation: Generation, vectors: dict[str, Vectors | None]) -> None:
    # The title is untrusted text; a category cannot contain a slash or start with a dot (`clean_category`).
    title = re.sub(r"[^\w\- ]+", "_", video.title).strip(" ._")[:80] or "video"
    target = folder / _cut(video.category or UNCATEGORISED) / f"{_cut(title, len(video.id) + 1)}-{video.id}"
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
