"""Writes the library's vectors to a folder: per category, per video, `.npy` files and a JSON of the metadata.

FOLDER/<category>/<title>-<id>/frame.npy        (N, D) float32, unit length
                               aggregated.npy   (D,)
                               text.npy         (D,), only where there is a caption
                               metadata.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from service import catalog
from service.domain import Generation, Kind, Vectors, Video
from service.runtime import Runtime

UNCATEGORISED = "_uncategorised"
_PAGE = 256


def export_folder(runtime: Runtime, folder: Path, on_done: Callable[[Video], None] = lambda _: None) -> int:
    """Write every ready video below `folder`, over what an earlier export wrote; their number.

    Raises ConfigurationError where nothing was ever embedded.
    """
    generation = runtime.follower.generation
    count, before = 0, None
    while True:
        with runtime.db.read() as connection:
            page = catalog.list_videos(connection, status="ready", before=before, limit=_PAGE)
            for video in page:
                kinds: dict[str, Kind] = {
                    "frame": "frame",
                    "aggregated": runtime.settings.aggregation,
                    "text": "text",
                }
                vectors = {
                    name: catalog.vectors(connection, video.key, generation, kind) for name, kind in kinds.items()
                }
                _write(folder, video, generation, vectors)
                on_done(video)
                count += 1
        if len(page) < _PAGE:
            return count
        before = page[-1].key


def _write(folder: Path, video: Video, generation: Generation, vectors: dict[str, Vectors | None]) -> None:
    # A title is a stranger's words; a category cannot hold a slash or begin with a dot (`clean_category`).
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
