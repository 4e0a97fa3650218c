"""The tables of projections of the embedding space and of their points.

A point is deleted with its video, and when the vector that it stands for changes. Fits are queued in
`projection_jobs.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa

from service.database import change_log, db, vector_rows, video_rows
from service.database.common import chunks
from service.errors import NotFound
from service.models import Kind, Method, Vectors, VideoPks
from service.vectors import pack, unpack

Embedding = Literal["frame", "aggregated", "text"]
METHODS: tuple[Method, ...] = ("umap", "tsne", "pca")
ProjectionStatus = Literal["queued", "running", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """Everything that determines the coordinates of a projection.

    Attributes:
        embedding: what is projected, under the name that users see.
        kind: the kind of vectors that are projected.
        parameters: all parameters of the method, defaults included.
        category: only videos of this category; None for every category.
    """

    generation: str
    embedding: Embedding
    kind: Kind
    method: Method
    dimensions: int
    seed: int
    parameters: Mapping[str, float]
    category: str | None

    @property
    def digest(self) -> str:
        """SHA-256 of the specification, as hex digits.

        Equal specifications have equal digests.
        """
        parts = {**asdict(self), "parameters": dict(sorted(self.parameters.items()))}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Projection:
    """A row of the projections table: a projection and its state.

    `points`, `transformed` and `missing` are 0 if the function that returned the row does not count.

    Attributes:
        pk: primary key.
        progress: progress of the fit, from 0 to 1.
        version: incremented when the points change.
        applied_change: number of the last change that the points reflect.
        points: number of points.
        transformed: number of points that were transformed into the projection after the fit.
        missing: number of ready videos that have vectors of this kind and no points.
    """

    pk: int
    id: str
    spec: ProjectionSpec
    status: ProjectionStatus
    progress: float
    error: str | None
    version: int
    applied_change: int
    points: int
    transformed: int
    missing: int
    quality: dict[str, float] | None
    created_at: datetime
    fitted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Points:
    """The N points of a projection, ordered by video, then by frame.

    Attributes:
        video_pks: (N,) int64 video primary keys.
        ids: N public ids of videos.
        categories: N categories; None for a video without one.
        frames: (N,) int16 frame numbers; -1 if the point stands for a whole video.
        times: (N,) float32 seconds; NaN if the point stands for a whole video.
        coordinates: (N, 2) or (N, 3) float32.
        transformed: (N,) bool, whether the point was transformed into the projection after the fit.
    """

    video_pks: VideoPks
    ids: list[str]
    categories: list[str | None]
    frames: np.ndarray
    times: np.ndarray
    coordinates: Vectors
    transformed: np.ndarray

    def __post_init__(self) -> None:
        sizes = {len(column) for column in (self.ids, self.categories, self.frames, self.times, self.coordinates)}
        if sizes != {len(self.video_pks)}:
            raise ValueError(f"each column must have {len(self.video_pks)} rows, not {sorted(sizes)}")


def by_id(connection: sa.Connection, projection_id: str) -> Projection:
    """Return a projection by its public id, with its points counted. Raises NotFound.

    Counting 100,000 points takes a tenth of a second.
    """
    return _with_counts(connection, row_by_id(connection, projection_id))


def row_by_id(connection: sa.Connection, projection_id: str) -> Projection:
    """Return a projection by its public id, without counting its points. Raises NotFound.

    `points`, `transformed` and `missing` are 0.
    """
    return _one(connection, db.projections.c.id == projection_id, f"projection {projection_id!r} does not exist")


def by_pk(connection: sa.Connection, projection_pk: int) -> Projection:
    """Return a projection by its primary key, with its points counted. Raises NotFound."""
    return _with_counts(connection, row_by_pk(connection, projection_pk))


def row_by_pk(connection: sa.Connection, projection_pk: int) -> Projection:
    """Return a projection by its primary key, without counting its points. Raises NotFound.

    `points`, `transformed` and `missing` are 0.
    """
    return _one(connection, db.projections.c.key == projection_pk, "the projection was deleted")


def all_of(connection: sa.Connection, generation: str) -> list[Projection]:
    """Return all projections of a generation, newest first, with their points counted."""
    query = sa.select(db.projections).where(db.projections.c.generation == generation)
    rows = connection.execute(query.order_by(db.projections.c.key.desc())).all()
    return [_with_counts(connection, _projection(row)) for row in rows]


def delete(connection: sa.Connection, projection_pk: int) -> None:
    """Delete a projection and its points. Call inside a write transaction."""
    connection.execute(sa.delete(db.projections).where(db.projections.c.key == projection_pk))


def out_of_date(connection: sa.Connection, generation: str) -> list[int]:
    """Return the primary keys of ready projections whose points do not reflect the last change."""
    query = sa.select(db.projections.c.key).where(
        db.projections.c.generation == generation,
        db.projections.c.status == "ready",
        db.projections.c.seen < change_log.last_change(connection, generation),
    )
    return list(connection.execute(query).scalars())


def stored_fit(connection: sa.Connection, projection_pk: int) -> tuple[str, bytes]:
    """Return `basis` and `model` of a projection, as `projection_jobs.finish` stored them.

    Raises NotFound if the projection was deleted or never fitted.
    """
    columns = (db.projections.c.basis, db.projections.c.model)
    row = connection.execute(sa.select(*columns).where(db.projections.c.key == projection_pk)).first()
    if row is None or row.model is None:
        raise NotFound("the projection was deleted or never fitted")
    return row.basis, row.model


def vectors_digests(connection: sa.Connection) -> set[str]:
    """Return the `basis` of every fitted projection: the digests of the vectors that were fitted."""
    query = sa.select(db.projections.c.basis).where(db.projections.c.basis.is_not(None))
    return set(connection.execute(query).scalars())


def is_fitting(connection: sa.Connection) -> bool:
    """Return whether a fit of any projection is running."""
    running = sa.select(db.projections.c.key).where(db.projections.c.status == "running")
    return connection.execute(running.limit(1)).first() is not None


def of_category(connection: sa.Connection, category: str) -> list[Projection]:
    """Return the projections of one category, without the numbers of their points."""
    query = sa.select(db.projections).where(db.projections.c.category == category)
    return [_projection(row) for row in connection.execute(query)]


def delete_points_outside(connection: sa.Connection, video_pk: int, category: str | None) -> None:
    """Delete the points of a video from projections of other categories, after its category changed.

    `category` is the new category. Call inside a write transaction.
    """
    others: sa.ColumnElement[bool] = db.projections.c.category.is_not(None)
    if category is not None:
        others = sa.and_(others, db.projections.c.category != category)
    vector_rows.delete_points(connection, video_pk, others)


def pks_without_points(connection: sa.Connection, spec: ProjectionSpec, projection_pk: int) -> list[int]:
    """Return the primary keys of ready videos with the vectors of `spec` and no points, ascending."""
    return list(
        connection.execute(_without_points(spec, projection_pk, db.videos.c.key).order_by(db.videos.c.key)).scalars()
    )


def pks_with_points(connection: sa.Connection, projection_pk: int, video_pks: Sequence[int]) -> set[int]:
    """Return those of these videos that have points on the projection, as primary keys."""
    found: set[int] = set()
    for chunk in chunks(video_pks):
        query = sa.select(db.coordinates.c.video_key).where(
            db.coordinates.c.projection_key == projection_pk, db.coordinates.c.video_key.in_(chunk)
        )
        found.update(connection.execute(query).scalars())
    return found


def add_transformed(connection: sa.Connection, projection_pk: int, points: Iterable[tuple[int, Vectors]]) -> None:
    """Insert points that were transformed into a fitted projection, by video primary key.

    Call inside a write transaction.
    """
    insert_points(connection, projection_pk, points, transformed=True)


def record_applied_change(connection: sa.Connection, projection_pk: int, applied_change: int, *, changed: bool) -> None:
    """Record that the points of a projection reflect every change up to number `applied_change`.

    If `changed`, the points themselves changed, and the version is incremented. Call inside a write transaction.
    """
    values: dict[str, Any] = {"seen": applied_change}
    if changed:
        values["version"] = db.projections.c.version + 1
    update_projection(connection, projection_pk, **values)


def points(connection: sa.Connection, state: Projection) -> Points:
    """Return all points of a projection, with the ids, categories and frame times of their videos."""
    whole = state.spec.embedding != "frame"
    # Unconverted: converting 100,000 rows one by one takes longer than reading them.
    raw = [sa.type_coerce(column, sa.types.NullType()) for column in (db.coordinates.c.points, db.coordinates.c.placed)]
    columns = [db.videos.c.key, db.videos.c.id, db.videos.c.category, *raw]
    if not whole:
        columns.append(db.videos.c.frame_times)
    rows = connection.execute(
        sa.select(*columns)
        .join(db.coordinates, db.coordinates.c.video_key == db.videos.c.key)
        .where(db.coordinates.c.projection_key == state.pk)
        .order_by(db.videos.c.key)
    ).all()
    dimensions = state.spec.dimensions
    counts = np.array([len(row[3]) // (4 * dimensions) for row in rows], dtype=np.int64)
    row_numbers = np.arange(len(rows)).repeat(counts)
    if whole:
        frames = np.full(len(row_numbers), -1, dtype=np.int16)
        times = np.full(len(row_numbers), np.nan, dtype=np.float32)
    else:
        frames = np.concatenate([np.arange(0), *map(np.arange, counts)]).astype(np.int16)
        times = np.array([time for row, count in zip(rows, counts, strict=True) for time in row[5][:count]], np.float32)
    return Points(
        video_pks=np.array([row[0] for row in rows], dtype=np.int64)[row_numbers],
        ids=[rows[number][1] for number in row_numbers.tolist()],
        categories=[rows[number][2] for number in row_numbers.tolist()],
        frames=frames,
        times=times,
        coordinates=unpack(b"".join(row[3] for row in rows), dimensions),
        transformed=np.array([row[4] for row in rows], dtype=np.bool_)[row_numbers],
    )


def _without_points(spec: ProjectionSpec, projection_pk: int, column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Select `column` of ready videos that have the vectors of `spec` and no points on this projection."""
    present = sa.and_(db.coordinates.c.projection_key == projection_pk, db.coordinates.c.video_key == db.videos.c.key)
    query = (
        sa.select(column)
        .join(db.embeddings, db.embeddings.c.video_key == db.videos.c.key)
        .outerjoin(db.coordinates, present)
        .where(
            db.videos.c.status == "ready",
            db.embeddings.c.generation == spec.generation,
            db.embeddings.c.kind == spec.kind,
            db.coordinates.c.video_key.is_(None),
        )
    )
    return query if spec.category is None else query.where(db.videos.c.category == spec.category)


def insert_points(
    connection: sa.Connection, projection_pk: int, points: Iterable[tuple[int, Vectors]], *, transformed: bool
) -> None:
    """Insert points of a projection, (N, 2) or (N, 3) float32 by video primary key.

    N is the number of frames, or 1 for a whole video. A video that has points keeps them. `transformed` marks points
    that were added after the fit. Call inside a write transaction.
    """
    # A video may have been deleted since its coordinates were computed. Its points are not stored.
    packed = {video: pack(rows) for video, rows in points}
    existing = video_rows.existing_pks(connection, packed)
    values = [
        {"projection_key": projection_pk, "video_key": video, "points": data, "placed": transformed}
        for video, data in packed.items()
        if video in existing
    ]
    if values:
        connection.execute(
            db.insert(connection, db.coordinates).on_conflict_do_nothing(),
            values,
        )


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool], otherwise: str) -> Projection:
    row = connection.execute(sa.select(db.projections).where(condition)).first()
    if row is None:
        raise NotFound(otherwise)
    return _projection(row)


def _with_counts(connection: sa.Connection, projection: Projection) -> Projection:
    count = sa.func.length(db.coordinates.c.points) // (4 * projection.spec.dimensions)
    totals = [
        sa.func.coalesce(sa.func.sum(one), 0) for one in (count, sa.case((db.coordinates.c.placed, count), else_=0))
    ]
    own = db.coordinates.c.projection_key == projection.pk
    points, transformed = connection.execute(sa.select(*totals).where(own)).one()
    missing = connection.execute(_without_points(projection.spec, projection.pk, sa.func.count())).scalar_one()
    return replace(projection, points=int(points), transformed=int(transformed), missing=missing)


def _projection(row: sa.Row[Any]) -> Projection:
    spec = ProjectionSpec(
        generation=row.generation,
        embedding=row.embedding,
        kind=row.kind,
        method=row.method,
        dimensions=row.dimensions,
        seed=row.seed,
        parameters=row.parameters,
        category=row.category,
    )
    return Projection(
        pk=row.key,
        id=row.id,
        spec=spec,
        status=row.status,
        progress=row.progress,
        error=row.error,
        version=row.version,
        applied_change=row.seen,
        points=0,
        transformed=0,
        missing=0,
        quality=row.quality,
        created_at=row.created_at.replace(tzinfo=UTC),
        fitted_at=None if row.fitted_at is None else row.fitted_at.replace(tzinfo=UTC),
    )


def update_projection(connection: sa.Connection, projection_pk: int, **values: Any) -> None:
    """Set columns of a projection. Call inside a write transaction."""
    connection.execute(sa.update(db.projections).where(db.projections.c.key == projection_pk).values(values))
