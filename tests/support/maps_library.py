"""A library of vectors and their projections."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from service.database import change_log, db, generation_rows, vector_rows, video_rows
from service.database.db import Database
from service.database.projection_rows import Embedding, Projection
from service.models import Generation
from service.projections.projections import Projections
from service.projections.reduction import Method
from service.vectors import aggregate, normalise
from tests.support.rows import add_row

D = 16
GENERATION = Generation("g1", "made-up", D, "float32")


@cache
def empty() -> Path:
    path = Path(mkdtemp()) / "reelsrs.db"
    db.upgrade(f"sqlite:///{path}")
    return path


class Library:
    """Library of generated vectors around four centres, with projections."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(empty(), folder / "reelsrs.db")
        self.db = Database(f"sqlite:///{folder}/reelsrs.db")
        with self.db.write() as connection:
            generation_rows.activate_generation(connection, GENERATION)
        self.folder = folder / "atlas"
        self.projections = Projections(self.db, self.folder, lambda: GENERATION, "mean")
        self.random = np.random.default_rng(5)
        self.centres = normalise(self.random.normal(size=(4, D)))
        self.video_pks: dict[str, int] = {}
        self.count = 0

    def add(self, count: int = 1, *, near: np.ndarray | None = None, category: str | None = None) -> list[str]:
        """Add ready videos of three frames, every other one with a caption; return their ids.

        The vectors lie around the centres in turn. If `near` is given, all frame vectors equal `near`.
        """
        made = []
        with self.db.write() as connection:
            for _ in range(count):
                number = self.count
                self.count += 1
                centre = self.centres[number % 4] if near is None else near
                frames = normalise(centre + 0.1 * self.random.normal(size=(3, D)))
                if near is not None:
                    frames[:] = near
                video = add_row(connection, number, category=category, frames=3)
                text = frames[0] if number % 2 else None
                vector_rows.put_embeddings(connection, video.pk, GENERATION, aggregate(frames, text))
                video_rows.update_video(connection, video.pk, status="ready", frame_times=[0.5, 1.5, 2.5])
                change_log.record_change(connection, video.pk)
                self.video_pks[video.id] = video.pk
                made.append(video.id)
        return made

    def delete(self, video_id: str) -> None:
        with self.db.write() as connection:
            video_rows.delete_video(connection, self.video_pks.pop(video_id))

    def fitted(self, embedding: Embedding = "aggregated", method: Method = "pca", dimensions: int = 2) -> Projection:
        """Fit a projection of the library as the command `visualize` does, and wait for the fit."""
        return self.projections.fit_and_wait(self.projections.spec(embedding, method, dimensions))

    def coordinates(self, state: Projection) -> dict[tuple[str, int], tuple[float, ...]]:
        """Return the coordinates of a projection by (video id, frame)."""
        found = self.projections.points(state)
        rows = zip(found.ids, found.frames.tolist(), found.coordinates.tolist(), strict=True)
        return {(video, frame): tuple(at) for video, frame, at in rows}
