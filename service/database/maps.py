"""Maps of the embedding space: their rows and their points in the database. Knows not how a map is laid out.

A map is asked for (`queued`), laid out by whoever claims it with a lease (`running`), and from then on (`ready`) kept:
videos that come later are placed into it. A map that is laid out anew serves its old points until the new ones are
there. Points go with their video, and with the embedding that they stand for.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa

from service.database import catalog, db
from service.domain import Keys, Kind, Method, Vectors
from service.errors import NotFound
from service.timing import Timing
from service.vectors import pack, unpack

Embedding = Literal["frame", "aggregated", "text"]
METHODS: tuple[Method, ...] = ("umap", "tsne", "pca")
MapStatus = Literal["queued", "running", "ready", "failed"]

LEASE_SECONDS = Timing().lease_seconds
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that decides where points come to lie. `embedding` is as users name it, `kind` whose vectors those
    are; `parameters` are the method's own, all of them; `category` None: every category."""

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
        """The same for the same map."""
        parts = {**asdict(self), "parameters": dict(sorted(self.parameters.items()))}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Map:
    """A row: the map, and how far it is. `version` changes with its points; `seen` is the number of the last change of
    the catalogue that they know of; `points` counts them, `placed` those of them that came after the fit; `missing`
    counts videos that have such embeddings and no points."""

    key: int
    id: str
    spec: Spec
    status: MapStatus
    progress: float
    error: str | None
    version: int
    seen: int
    points: int
    placed: int
    missing: int
    quality: dict[str, float] | None
    created_at: datetime
    fitted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Points:
    """The N points of a map, video by video, frame by frame.

    keys (N,), ids, categories and times N each; frames (N,) int16, -1 where a point is a whole video; times are
    seconds, NaN where a point is a whole video; coordinates (N, 2 or 3) float32.
    """

    keys: Keys
    ids: list[str]
    categories: list[str | None]
    frames: np.ndarray
    times: np.ndarray
    coordinates: Vectors
    placed: np.ndarray

    def __post_init__(self) -> None:
        sizes = {len(column) for column in (self.ids, self.categories, self.frames, self.times, self.coordinates)}
        if sizes != {len(self.keys)}:
            raise ValueError(f"{len(self.keys)} points, but columns of {sorted(sizes)}")


# --- asking for maps


def ask(connection: sa.Connection, spec: Spec) -> tuple[Map, bool]:
    """The map of this spec, and whether it was queued by this: where it is new, or had failed."""
    row = connection.execute(
        sa.select(db.projections.c.key, db.projections.c.status).where(db.projections.c.digest == spec.digest)
    ).first()
    if row is None:
        values = asdict(spec)
        key = connection.execute(
            sa.insert(db.projections)
            .values(
                id=secrets.token_hex(8),
                digest=spec.digest,
                **values,
                status="queued",
                progress=0.0,
                version=0,
                seen=0,
                created_at=_now(),
            )
            .returning(db.projections.c.key)
        ).scalar_one()
        return by_key(connection, key), True
    if row.status == "failed":
        queue(connection, row.key)
    return by_key(connection, row.key), row.status == "failed"


def by_id(connection: sa.Connection, map_id: str) -> Map:
    """With its points counted, which takes a tenth of a second for 100,000. Raises NotFound."""
    return _counted(connection, row_by_id(connection, map_id))


def row_by_id(connection: sa.Connection, map_id: str) -> Map:
    """Without counting: `points`, `placed` and `missing` are 0. Raises NotFound."""
    return _one(connection, db.projections.c.id == map_id, f"there is no projection {map_id!r}")


def by_key(connection: sa.Connection, key: int) -> Map:
    """With its points counted. Raises NotFound."""
    return _counted(connection, row_by_key(connection, key))


def row_by_key(connection: sa.Connection, key: int) -> Map:
    """Without counting. Raises NotFound."""
    return _one(connection, db.projections.c.key == key, "the projection was deleted")


def all_of(connection: sa.Connection, generation: str) -> list[Map]:
    """Every map of a generation, the newest first."""
    query = sa.select(db.projections).where(db.projections.c.generation == generation)
    rows = connection.execute(query.order_by(db.projections.c.key.desc())).all()
    return [_counted(connection, _map(row)) for row in rows]


def queue(connection: sa.Connection, key: int) -> None:
    """Have a map laid out (again); one that is being laid out starts afresh."""
    _set(connection, key, status="queued", progress=0.0, error=None, owner=None, lease_expires_at=None)


def cancel(connection: sa.Connection, key: int) -> None:
    """Give up the layout that is queued or running. A map that has points keeps them; another one has failed."""
    state = row_by_key(connection, key)
    if state.status not in ("queued", "running"):
        return
    if state.fitted_at is None:
        end: dict[str, Any] = {"status": "failed", "error": CANCELLED}
    else:
        end = {"status": "ready", "error": None}
    _set(connection, key, **end, progress=1.0, owner=None, lease_expires_at=None)


def delete(connection: sa.Connection, key: int) -> None:
    """Remove a map and its points."""
    connection.execute(sa.delete(db.projections).where(db.projections.c.key == key))


# --- laying out


def waiting(connection: sa.Connection, methods: Collection[Method] = METHODS, key: int | None = None) -> int | None:
    """The key of the oldest map that waits to be laid out by one of these methods, or this one if it does; None where
    there is none."""
    query = sa.select(db.projections.c.key).where(_claimable(connection), db.projections.c.method.in_(methods))
    if key is not None:
        query = query.where(db.projections.c.key == key)
    found: int | None = connection.execute(query.order_by(db.projections.c.key).limit(1)).scalar()
    return found


def claim(
    connection: sa.Connection,
    owner: str,
    methods: Collection[Method] = METHODS,
    key: int | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> int | None:
    """Claim what `waiting` finds for `owner`, for `lease_seconds`. Return its key, None if there is nothing."""
    found = waiting(connection, methods, key)
    if found is not None:
        _set(
            connection,
            found,
            status="running",
            progress=0.0,
            error=None,
            owner=owner,
            lease_expires_at=db.now(connection) + lease_seconds,
        )
    return found


def renew(
    connection: sa.Connection,
    key: int,
    owner: str,
    progress: float | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> bool:
    """Hold on to a claim for `lease_seconds` from now on, and say how far it is. False once it is not `owner`'s any
    more: cancelled, deleted, queued again, or claimed by another worker after the lease expired."""
    values: dict[str, Any] = {"lease_expires_at": db.now(connection) + lease_seconds}
    if progress is not None:
        values["progress"] = progress
    mine = sa.and_(db.projections.c.key == key, db.projections.c.owner == owner)
    return connection.execute(sa.update(db.projections).where(mine).values(values)).rowcount == 1


def release(connection: sa.Connection, owner: str) -> None:
    """Give back what `owner` holds, under that name or one that goes on after a colon, to be laid out by another."""
    names = db.projections.c.owner
    connection.execute(
        sa.update(db.projections)
        .where(sa.or_(names == owner, names.startswith(f"{owner}:", autoescape=True)))
        .values(status="queued", progress=0.0, owner=None, lease_expires_at=None)
    )


def owns(connection: sa.Connection, key: int, owner: str) -> bool:
    """Whether the layout is still `owner`'s to make."""
    held = connection.execute(sa.select(db.projections.c.owner).where(db.projections.c.key == key)).scalar()
    return held == owner


def fail(connection: sa.Connection, key: int, owner: str | None, reason: str) -> None:
    """The end of a layout of `owner`'s that could not be made, or with None of a placement. Points that are there
    stay."""
    connection.execute(
        sa.update(db.projections)
        .where(db.projections.c.key == key, db.projections.c.owner == owner)
        .values(status="failed", progress=1.0, error=reason, owner=None, lease_expires_at=None)
    )


def finish(
    connection: sa.Connection,
    key: int,
    *,
    points: Iterable[tuple[int, Vectors]],
    seen: int,
    basis: str,
    model: bytes,
    quality: dict[str, float] | None,
) -> None:
    """Put a layout in place of the one before: coordinates by video key, as of the change `seen`. Videos that have
    changed since are left out, to be placed by what they are now. `basis` names what was laid out, `model` is what
    placing more into it needs."""
    generation = connection.execute(
        sa.select(db.projections.c.generation).where(db.projections.c.key == key)
    ).scalar_one()
    changed = set(catalog.changed_since(connection, seen, generation))
    connection.execute(sa.delete(db.coordinates).where(db.coordinates.c.projection_key == key))
    _insert(connection, key, ((video, rows) for video, rows in points if video not in changed), placed=False)
    version = sa.select(db.projections.c.version).where(db.projections.c.key == key).scalar_subquery()
    _set(
        connection,
        key,
        status="ready",
        progress=1.0,
        error=None,
        owner=None,
        lease_expires_at=None,
        version=version + 1,
        seen=seen,
        basis=basis,
        model=model,
        quality=quality,
        fitted_at=_now(),
    )


# --- placing


def behind(connection: sa.Connection, generation: str) -> list[int]:
    """Keys of the maps whose points do not know of the last change."""
    query = sa.select(db.projections.c.key).where(
        db.projections.c.generation == generation,
        db.projections.c.status == "ready",
        db.projections.c.seen < catalog.last_change(connection, generation),
    )
    return list(connection.execute(query).scalars())


def fit_of(connection: sa.Connection, key: int) -> tuple[str, bytes]:
    """`basis` and `model` as `finish` was given them. Raises NotFound where the map is gone or was never laid out."""
    columns = (db.projections.c.basis, db.projections.c.model)
    row = connection.execute(sa.select(*columns).where(db.projections.c.key == key)).first()
    if row is None or row.model is None:
        raise NotFound("the projection is not there any more")
    return row.basis, row.model


def bases(connection: sa.Connection) -> set[str]:
    """Every basis that a map stands on."""
    query = sa.select(db.projections.c.basis).where(db.projections.c.basis.is_not(None))
    return set(connection.execute(query).scalars())


def being_laid_out(connection: sa.Connection) -> bool:
    """Whether any map is."""
    running = sa.select(db.projections.c.key).where(db.projections.c.status == "running")
    return connection.execute(running.limit(1)).first() is not None


def moved(connection: sa.Connection, video_key: int, category: str | None) -> None:
    """A video is in this category now: it leaves the maps of others."""
    others: sa.ColumnElement[bool] = db.projections.c.category.is_not(None)
    if category is not None:
        others = sa.and_(others, db.projections.c.category != category)
    catalog.take_off_maps(connection, video_key, others)


def unplaced(connection: sa.Connection, spec: Spec, key: int) -> list[int]:
    """Keys of the videos that have such embeddings and no points, ascending."""
    return list(connection.execute(_without_points(spec, key, db.videos.c.key).order_by(db.videos.c.key)).scalars())


def on_map(connection: sa.Connection, key: int, videos: Sequence[int]) -> set[int]:
    """Which of these videos have points."""
    found: set[int] = set()
    for start in range(0, len(videos), 10_000):
        query = sa.select(db.coordinates.c.video_key).where(
            db.coordinates.c.projection_key == key, db.coordinates.c.video_key.in_(videos[start : start + 10_000])
        )
        found.update(connection.execute(query).scalars())
    return found


def put(connection: sa.Connection, key: int, points: Iterable[tuple[int, Vectors]]) -> None:
    """Add points that were placed, by video key."""
    _insert(connection, key, points, placed=True)


def caught_up(connection: sa.Connection, key: int, seen: int, *, changed: bool) -> None:
    """The points know of every change up to `seen`; `changed`: they are others than before."""
    values: dict[str, Any] = {"seen": seen}
    if changed:
        values["version"] = db.projections.c.version + 1
    _set(connection, key, **values)


def points(connection: sa.Connection, state: Map) -> Points:
    """Every point of a map, with what is known of its video."""
    whole = state.spec.embedding != "frame"
    # As SQLite gives them: to convert 100,000 rows one by one takes longer than to read them.
    raw = [sa.type_coerce(column, sa.types.NullType()) for column in (db.coordinates.c.points, db.coordinates.c.placed)]
    wanted = [db.videos.c.key, db.videos.c.id, db.videos.c.category, *raw]
    if not whole:
        wanted.append(db.videos.c.frame_times)
    rows = connection.execute(
        sa.select(*wanted)
        .join(db.coordinates, db.coordinates.c.video_key == db.videos.c.key)
        .where(db.coordinates.c.projection_key == state.key)
        .order_by(db.videos.c.key)
    ).all()
    dimensions = state.spec.dimensions
    counts = np.array([len(row[3]) // (4 * dimensions) for row in rows], dtype=np.int64)
    place = np.arange(len(rows)).repeat(counts)
    if whole:
        frames = np.full(len(place), -1, dtype=np.int16)
        times = np.full(len(place), np.nan, dtype=np.float32)
    else:
        frames = np.concatenate([np.arange(0), *map(np.arange, counts)]).astype(np.int16)
        times = np.array([time for row, count in zip(rows, counts, strict=True) for time in row[5][:count]], np.float32)
    return Points(
        keys=np.array([row[0] for row in rows], dtype=np.int64)[place],
        ids=[rows[number][1] for number in place.tolist()],
        categories=[rows[number][2] for number in place.tolist()],
        frames=frames,
        times=times,
        coordinates=unpack(b"".join(row[3] for row in rows), dimensions),
        placed=np.array([row[4] for row in rows], dtype=np.bool_)[place],
    )


# --- inside


def _claimable(connection: sa.Connection) -> sa.ColumnElement[bool]:
    rows = db.projections.c
    return sa.or_(
        rows.status == "queued",
        sa.and_(rows.status == "running", sa.or_(rows.owner.is_(None), rows.lease_expires_at < db.now(connection))),
    )


def _without_points(spec: Spec, key: int, column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    present = sa.and_(db.coordinates.c.projection_key == key, db.coordinates.c.video_key == db.videos.c.key)
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


def _insert(connection: sa.Connection, key: int, points: Iterable[tuple[int, Vectors]], *, placed: bool) -> None:
    # A video may have been deleted since its coordinates were computed: what refers to nothing is not stored.
    found = {video: pack(rows) for video, rows in points}
    alive = catalog.existing_keys(connection, found)
    values = [
        {"projection_key": key, "video_key": video, "points": data, "placed": placed}
        for video, data in found.items()
        if video in alive
    ]
    if values:
        connection.execute(
            db.insert(connection, db.coordinates).on_conflict_do_nothing(),
            values,
        )


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool], otherwise: str) -> Map:
    row = connection.execute(sa.select(db.projections).where(condition)).first()
    if row is None:
        raise NotFound(otherwise)
    return _map(row)


def _counted(connection: sa.Connection, found: Map) -> Map:
    dots = sa.func.length(db.coordinates.c.points) // (4 * found.spec.dimensions)
    totals = [
        sa.func.coalesce(sa.func.sum(one), 0) for one in (dots, sa.case((db.coordinates.c.placed, dots), else_=0))
    ]
    own = db.coordinates.c.projection_key == found.key
    points, placed = connection.execute(sa.select(*totals).where(own)).one()
    missing = connection.execute(_without_points(found.spec, found.key, sa.func.count())).scalar_one()
    return replace(found, points=int(points), placed=int(placed), missing=missing)


def _map(row: sa.Row[Any]) -> Map:
    spec = Spec(
        generation=row.generation,
        embedding=row.embedding,
        kind=row.kind,
        method=row.method,
        dimensions=row.dimensions,
        seed=row.seed,
        parameters=row.parameters,
        category=row.category,
    )
    return Map(
        key=row.key,
        id=row.id,
        spec=spec,
        status=row.status,
        progress=row.progress,
        error=row.error,
        version=row.version,
        seen=row.seen,
        points=0,
        placed=0,
        missing=0,
        quality=row.quality,
        created_at=row.created_at.replace(tzinfo=UTC),
        fitted_at=None if row.fitted_at is None else row.fitted_at.replace(tzinfo=UTC),
    )


def _set(connection: sa.Connection, key: int, **values: Any) -> None:
    connection.execute(sa.update(db.projections).where(db.projections.c.key == key).values(values))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
