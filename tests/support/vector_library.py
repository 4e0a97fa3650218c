"""A library of generated vectors without clips, with the same data for the oracle."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.database import change_log, db, generation_rows, vector_rows, video_rows
from service.database.db import Database
from service.index.factory import VectorIndex
from service.index.milvus import MilvusIndex
from service.index.sync import EXACT_UP_TO, SyncedIndex
from service.models import Generation, Weights
from service.search.recommender import Recommender
from service.search.results import SearchResults
from service.vectors import aggregate, normalise
from tests.support.oracle import Item, rank, same
from tests.support.rows import add_row

D = 12
GENERATION = Generation("g-test", "test", D, "float32")


@functools.cache
def _empty_database() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    db.upgrade(f"sqlite:///{folder}/reelsrs.db")
    return folder / "reelsrs.db"


class VectorLibrary:
    """Library of generated vectors; `items` holds the same data for the oracle."""

    def __init__(self, folder: Path, exact_up_to: int = EXACT_UP_TO, milvus: str = "") -> None:
        shutil.copy(_empty_database(), folder / "reelsrs.db")  # made once: hypothesis needs hundreds
        self.db = Database(f"sqlite:///{folder}/reelsrs.db")
        with self.db.write() as connection:
            generation_rows.activate_generation(connection, GENERATION)
        self.follower: VectorIndex
        self.frames: VectorIndex
        if milvus:
            self.follower = MilvusIndex(self.db, milvus, GENERATION, "mean", exact_up_to=exact_up_to)
            self.frames = MilvusIndex(self.db, milvus, GENERATION, "frame", exact_up_to=exact_up_to)
        else:
            self.follower = SyncedIndex(self.db, folder / "index", GENERATION, "mean", exact_up_to=exact_up_to)
            self.frames = SyncedIndex(self.db, folder / "index", GENERATION, "frame", exact_up_to=exact_up_to)
        self.recommender = Recommender(self.follower, lambda: self.frames, "mean")
        self.items: dict[str, Item] = {}
        self.keys: dict[str, int] = {}
        self._count = 0

    def add(
        self, v: np.ndarray, t: np.ndarray | None, category: str | None = None, frames: np.ndarray | None = None
    ) -> str:
        """Add a ready video with one frame per second; return its id.

        Without `frames` the video has the single frame `v`. With `frames` (N, D) float32 its vector is their mean.
        """
        self._count += 1
        shown = v[None] if frames is None else frames
        embeddings = aggregate(shown, t)
        times = [n + 0.5 for n in range(len(shown))]
        with self.db.write() as connection:
            video = add_row(
                connection,
                self._count,
                caption=None if t is None else "caption",
                category=category,
                frames=len(shown),
                seconds=float(len(shown)),
            )
            vector_rows.put_embeddings(connection, video.pk, GENERATION, embeddings)
            video_rows.update_video(connection, video.pk, status="ready", frame_times=times)
            change_log.record_change(connection, video.pk)
        whole = v if frames is None else embeddings.mean
        pairs = list(zip(times, shown, strict=True))
        self.items[video.id] = Item(video.id, whole, t, category, pairs, float(len(shown)))
        self.keys[video.id] = video.pk
        return video.id

    def caption(self, name: str, t: np.ndarray | None) -> None:
        """Change the text vector of a video; None removes the caption."""
        with self.db.write() as connection:
            vector_rows.put_text(connection, self.keys[name], GENERATION, t)
            change_log.record_change(connection, self.keys[name])
        self.items[name] = replace(self.items[name], t=t)

    def categorise(self, name: str, category: str | None) -> None:
        """Change the category of a video."""
        with self.db.write() as connection:
            video_rows.update_video(connection, self.keys[name], category=category)
            change_log.record_change(connection, self.keys[name])
        self.items[name] = replace(self.items[name], category=category)

    def delete(self, name: str) -> None:
        """Delete a video."""
        with self.db.write() as connection:
            video_rows.delete_video(connection, self.keys[name])
        del self.items[name]

    def expect(
        self,
        answer: SearchResults,
        name: str,
        w_v: float,
        w_t: float,
        fusion: str,
        k: int,
        keep: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        """Check that the search results equal the oracle's and that every score breakdown adds up."""
        query = self.items[name]
        expected = rank(list(self.items.values()), query.v, query.t, w_v, w_t, fusion=fusion, without=name, keep=keep)[
            :k
        ]
        same([(hit.video.id, hit.score) for hit in answer.hits], expected)
        for hit in answer.hits:
            assert hit.visual.contribution + hit.text.contribution == pytest.approx(hit.score, abs=1e-5)
            assert hit.text.imputed == (self.items[hit.video.id].t is None)
        assert [hit.rank for hit in answer.hits] == list(range(1, len(answer.hits) + 1))
        assert answer.weights == Weights(w_v, 0.0 if query.t is None else w_t)
        assert answer.exact

    def close(self) -> None:
        """Close both indexes and the database."""
        self.follower.close()
        self.frames.close()
        self.db.close()


def unit(rng: np.random.Generator) -> np.ndarray:
    return normalise(rng.standard_normal(D))


def fill(library: VectorLibrary, rng: np.random.Generator, count: int) -> list[str]:
    """Add random videos, a third without a caption and some identical to others; return their ids."""
    names: list[str] = []
    for _ in range(count):
        copied = library.items[rng.choice(names)] if names and rng.random() < 0.15 else None
        v = copied.v if copied else unit(rng)
        t = copied.t if copied else None if rng.random() < 0.33 else unit(rng)
        names.append(library.add(v, t, rng.choice(["a", "b", "c", None])))
    return names


def change(library: VectorLibrary, rng: np.random.Generator) -> None:
    name = str(rng.choice(list(library.items)))
    kind = rng.integers(5)
    if kind == 0 or len(library.items) < 4:
        library.add(unit(rng), unit(rng), "a", np.stack([unit(rng) for _ in range(3)]))
    elif kind == 1:
        library.delete(name)
    elif kind == 2:
        library.categorise(name, str(rng.choice(["a", "b"])))
    else:
        library.caption(name, None if kind == 3 else unit(rng))
