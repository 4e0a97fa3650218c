"""Vectors of one generation or of several, read from the database in one state.

Several generations are compared on the same videos: those that have vectors in all of them. A generation that is still
being embedded has fewer. A caption counts only if each of the generations has its text vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from service.database import vector_rows, video_rows
from service.errors import InvalidInput
from service.models import Aggregation, Flags, Generation, Vectors, VideoPks
from service.operations.evaluation.measures import NO_CATEGORY, Catalogue, Rows

_PAGE_VIDEOS = 2_000
_PAGE_FRAMES = 8_000
_MAX_BYTES_IN_MEMORY = 256 << 20  # of one matrix; a greater one is a temporary file


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """Videos that are compared: those with vectors in each of the generations.

    Attributes:
        video_pks: Primary keys, (N,), ascending.
        has_text: Whether each has a text vector in each of the generations, (N,).
        categories: Number of each category, (N,); `NO_CATEGORY` for none.
        names: Names of the categories, by number.
        ready: Number of videos of the library that can be searched.
    """

    video_pks: VideoPks
    has_text: Flags
    categories: Rows
    names: tuple[str, ...]
    ready: int


@dataclass(frozen=True, slots=True, eq=False)
class FramePage:
    """Frames of V videos: the row of each in the catalogue, the first frame of each, and all vectors, (F, D)."""

    rows: Rows
    starts: Rows
    frames: Vectors


def common_videos(
    connection: sa.Connection, generations: Sequence[Generation], limit: int | None = None, seed: int = 0
) -> Common:
    """Return the videos that have vectors in each of the generations, or a seeded sample of at most `limit` of them.

    Raises InvalidInput if there are none.
    """
    ready = video_rows.ready_pks(connection)
    embedded = set.intersection(*(vector_rows.embedded_pks(connection, one, "frame") for one in generations))
    captioned = set.intersection(*(vector_rows.embedded_pks(connection, one, "text") for one in generations))
    if not embedded:
        ids = " and ".join(one.id for one in generations)
        raise InvalidInput("generation", f"no video has vectors of {ids} yet; try again when some are embedded")
    video_pks = np.array(sorted(embedded), dtype=np.int64)
    if limit is not None:
        video_pks = video_pks[sample_rows(np.arange(len(video_pks)), limit, seed)]
    categories = vector_rows.categories_of(connection, video_pks.tolist())
    names = tuple(sorted({name for name in categories.values() if name is not None}))
    numbers = {name: number for number, name in enumerate(names)}
    return Common(
        video_pks,
        np.array([pk in captioned for pk in video_pks.tolist()], dtype=np.bool_),
        np.array([numbers.get(categories[pk] or "", NO_CATEGORY) for pk in video_pks.tolist()], dtype=np.int64),
        names,
        len(ready),
    )


def sample_rows(rows: Rows, count: int, seed: int) -> Rows:
    """Return at most `count` of these rows, ascending; the same seed gives the same ones."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def read_catalogue(
    connection: sa.Connection, generation: Generation, common: Common, aggregation: Aggregation
) -> Catalogue:
    """Read the visual and the text vectors of these videos."""
    count = len(common.video_pks)
    visual, text = _matrix(count, generation.dimension), _matrix(count, generation.dimension)
    for start in range(0, count, _PAGE_VIDEOS):
        video_pks = common.video_pks[start : start + _PAGE_VIDEOS].tolist()
        seen = vector_rows.vectors_of(connection, video_pks, generation, aggregation)
        read = vector_rows.vectors_of(connection, video_pks, generation, "text")
        for row, pk in enumerate(video_pks, start):
            visual[row] = seen[pk][0]
            if common.has_text[row]:
                text[row] = read[pk][0]
    return Catalogue(visual, text, common.has_text, common.categories)


def read_texts(connection: sa.Connection, generation: Generation, common: Common, rows: Rows) -> Vectors:
    """Return the text vectors of the videos in these rows, which all have one, (Q, D)."""
    video_pks = common.video_pks[rows].tolist()
    found = vector_rows.vectors_of(connection, video_pks, generation, "text")
    return np.stack([found[pk][0] for pk in video_pks])


def frame_pages(
    connection: sa.Connection, generation: Generation, common: Common, rows: Rows | None = None
) -> Iterator[FramePage]:
    """Yield the frames of all videos, or of those in these rows, some videos at a time."""
    rows = np.arange(len(common.video_pks)) if rows is None else rows
    waiting: list[tuple[int, Vectors]] = []
    for start in range(0, len(rows), _PAGE_VIDEOS):
        page = rows[start : start + _PAGE_VIDEOS]
        frames = vector_rows.vectors_of(connection, common.video_pks[page].tolist(), generation, "frame")
        for row in page.tolist():
            waiting.append((row, frames[int(common.video_pks[row])]))
            if sum(len(one) for _, one in waiting) >= _PAGE_FRAMES:
                yield _page(waiting)
                waiting = []
    if waiting:
        yield _page(waiting)


def _page(found: list[tuple[int, Vectors]]) -> FramePage:
    counts = np.array([len(frames) for _, frames in found])
    return FramePage(
        np.array([row for row, _ in found], dtype=np.int64),
        np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64),
        np.concatenate([frames for _, frames in found]),
    )


def _matrix(rows: int, width: int) -> Vectors:
    """Return a zero matrix in memory, or in a temporary file that the system may leave on disk."""
    if rows * width * 4 <= _MAX_BYTES_IN_MEMORY:
        return np.zeros((rows, width), dtype=np.float32)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the array keeps it open; it is removed with the array
    return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, width))
