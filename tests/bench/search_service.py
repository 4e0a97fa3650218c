"""Measure the service around the index: rows, changes, searches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from service.database import change_log, db, generation_rows, vector_rows, video_rows
from service.database.db import Database
from service.errors import ReelsError
from service.index.sync import SyncedIndex
from service.models import (
    Entries,
    Generation,
    Probe,
    Sampling,
    Weights,
)
from service.search.query import Reference, SearchQuery
from service.search.recommender import Recommender
from service.vectors import aggregate, pack
from tests.bench.measuring import stopwatch
from tests.bench.search_library import PAIRS, D, Figures, K, Library, Pair, percentiles

GENERATION = Generation("g-bench", "bench", D, "float32")
PROBE = Probe("video/mp4", "h264", 640, 360, 1.0, 25.0)


class Service:
    """A database that holds the library, and its index; video primary keys are row numbers + 1."""

    def __init__(self, library: Library, folder: Path) -> None:
        self.library, self._folder = library, folder
        url = f"sqlite:///{folder / 'reelsrs.db'}"
        db.upgrade(url)
        self.db = Database(url)
        self._next = library.count

    def fill(self) -> None:
        """Put the library into the database, many rows per statement."""
        with self.db.write() as connection:
            generation_rows.activate_generation(connection, GENERATION)
        for start, stop in self.library.slices():
            entries = self.library.entries(start, stop)
            with self.db.write() as connection:
                connection.execute(
                    sa.insert(db.videos), [_video(row, entries, row - start) for row in range(start, stop)]
                )
                connection.execute(sa.insert(db.embeddings), list(_embeddings(entries)))
                connection.execute(sa.insert(db.changes), [{"video_key": row + 1} for row in range(start, stop)])

    def follow(self) -> SyncedIndex:
        """Open the index, which builds or loads it."""
        return SyncedIndex(self.db, self._folder / "index", GENERATION, "mean")

    def upload(self) -> tuple[int, str]:
        """Commit one more video as a decoded and embedded upload; return its primary key and id."""
        row, self._next = self._next, self._next + 1
        entries = self.library.entries(row, row + 1)
        with self.db.write() as connection:
            video = video_rows.add_video(
                connection,
                sha256=f"{row:064x}",
                size_bytes=1,
                filename=f"{row}.mp4",
                title=str(row),
                caption="caption" if entries.has_text[0] else None,
                category=entries.categories[0],
                sampling=Sampling(1),
                probe=PROBE,
            )
        assert entries.text is not None
        text = entries.text[0] if entries.has_text[0] else None
        embeddings = aggregate(entries.visual, text)
        with self.db.write() as connection:
            vector_rows.put_embeddings(connection, video.pk, GENERATION, embeddings)
            video_rows.update_video(connection, video.pk, status="ready", progress=1.0, frame_times=[0.0])
            change_log.record_change(connection, video.pk)
        return video.pk, video.id


def _name(row: int) -> str:
    return f"{row:016x}"


def _video(row: int, entries: Entries, place: int) -> Figures:
    now = datetime(2026, 1, 1)
    return {
        "key": row + 1,
        "id": _name(row),
        "sha256": f"{row:064x}",
        "size_bytes": 1,
        "filename": f"{row}.mp4",
        "title": str(row),
        "caption": "caption" if entries.has_text[place] else None,
        "category": entries.categories[place],
        "status": "ready",
        "progress": 1.0,
        "num_frames": 1,
        "media_type": PROBE.media_type,
        "codec": PROBE.codec,
        "width": PROBE.width,
        "height": PROBE.height,
        "duration_seconds": PROBE.duration_seconds,
        "frames_per_second": PROBE.frames_per_second,
        "frame_times": [0.0],
        "created_at": now,
        "updated_at": now,
    }


def _embeddings(entries: Entries) -> Iterator[dict[str, Any]]:
    assert entries.text is not None
    for place, row in enumerate(entries.video_pks.tolist()):
        kinds = {"frame": entries.visual[place], "mean": entries.visual[place]}
        if entries.has_text[place]:
            kinds["text"] = entries.text[place]
        for kind, vector in kinds.items():
            yield {"video_key": row + 1, "generation": GENERATION.id, "kind": kind, "vectors": pack(vector)}


def whole_service(library_folder: Path, folder: Path) -> Figures:
    """Measure a start, a second start, uploads and searches, with and without concurrent changes."""
    library, figures = Library.open(library_folder), Figures()
    service = Service(library, folder)
    with stopwatch(figures, "fill_seconds"):
        service.fill()
    figures["database_bytes_per_video"] = round((folder / "reelsrs.db").stat().st_size / library.count, 1)
    with stopwatch(figures, "start_from_database_seconds"):
        follower = service.follow()
    with stopwatch(figures, "close_seconds"):
        follower.close()
    with stopwatch(figures, "start_seconds"):
        follower = service.follow()
    recommender = Recommender(follower, lambda: follower, "mean")
    figures["searchable_after_seconds"] = _searchable_after(service, follower, recommender)
    names = [_name(row) for row in library.queries().tolist()]
    quiet, _ = _answers(recommender, names)
    figures["answer"] = percentiles(quiet)
    changed = _Changes(service)
    with changed:
        busy, errors = _answers(recommender, names)
    figures["answer_while_changing"] = {
        **percentiles(busy),
        "changes_per_second": round(changed.count / changed.seconds, 1),
        "errors": [*errors, *changed.errors],
    }
    follower.close()
    service.db.close()
    return figures


def _searchable_after(service: Service, follower: SyncedIndex, recommender: Recommender) -> dict[str, float]:
    """Measure seconds from a commit to search results that include the new video."""
    seconds = []
    for pair in PAIRS * 4:
        before = _rows(follower)
        key, name = service.upload()
        started = time.perf_counter()
        _answer(recommender, name, pair if _has_caption(service, key) else (1.0, 0.0))
        seconds.append(time.perf_counter() - started)
        with follower.current() as (index, connection):
            assert len(index) == before + 1
            picture = vector_rows.vectors(connection, key, GENERATION, "mean")
            assert picture is not None
            query = np.concatenate([picture[0], np.zeros(D + 1, dtype=np.float32)])
            assert key in index.video_pks(index.search(query, 1)[0]), "the upload is not found by its own picture"
    return {"first": round(seconds[0], 4), "p50": round(float(np.median(seconds)), 4), "max": round(max(seconds), 4)}


def _rows(follower: SyncedIndex) -> int:
    with follower.current() as (index, _):
        return len(index)


def _has_caption(service: Service, key: int) -> bool:
    return bool(service.library.captioned[key - 1])


def _answer(recommender: Recommender, name: str, pair: Pair) -> None:
    recommender.search(SearchQuery(references=(Reference(name),), weights=Weights(*pair), fusion="cosine", k=K))


def _answers(recommender: Recommender, names: list[str]) -> tuple[list[float], list[str]]:
    """Return the milliseconds of whole searches, and the errors."""
    milliseconds, errors = [], []
    for number, name in enumerate(names * 3):
        started = time.perf_counter()
        try:
            _answer(recommender, name, PAIRS[number % len(PAIRS)])
        except (ReelsError, RuntimeError, ValueError) as error:
            errors.append(repr(error))
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds, errors


class _Changes:
    """Inside the block, a thread commits uploads and deletes the same videos, at most 20 changes per second."""

    def __init__(self, service: Service) -> None:
        self.count, self.seconds = 0, 0.0
        self.errors: list[str] = []
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                key, _ = self._service.upload()
                self._over.wait(0.05)
                with self._service.db.write() as connection:
                    video_rows.delete_video(connection, key)
                self._over.wait(0.05)
                self.count += 2
        except Exception as error:
            self.errors.append(repr(error))
