"""The queue of embedding work, one row per video in the same database. Knows nothing of how work is done.

A worker claims a job with a lease that it renews; when the worker dies the lease runs out and another claims
the job. A job that outlives MAX_ATTEMPTS claims is given up, with the reason in the video's `error`.
"""

from __future__ import annotations

import sqlalchemy as sa

from service.database import catalog, change_log, db
from service.database.leases import FREE, LEASE_SECONDS, Leases
from service.timing import Timing, backoff

MAX_ATTEMPTS = 3
BACKOFF_SECONDS = Timing().backoff_seconds
_LEASES = Leases(db.jobs, db.jobs.c.video_key)


def add(connection: sa.Connection, key: int) -> None:
    """The job of a video that was added just now, in the same transaction. No index knows it yet, so none is told."""
    connection.execute(sa.insert(db.jobs).values(video_key=key, attempts=0, available_at=db.now(connection), **FREE))


def enqueue(connection: sa.Connection, key: int) -> None:
    """Queue a video again, in the transaction that changes it. One that is queued already starts afresh."""
    fresh = {"attempts": 0, "available_at": db.now(connection), **FREE}
    connection.execute(
        db.insert(connection, db.jobs)
        .values(video_key=key, **fresh)
        .on_conflict_do_update(index_elements=["video_key"], set_=fresh)
    )
    catalog.set_status(connection, key, "queued", 0.0)
    change_log.record_change(connection, key)  # not searchable until it is ready (again)


def waiting(connection: sa.Connection) -> bool:
    """Whether a claim would find something; cheap, for a worker's idle loop."""
    query = sa.select(db.jobs.c.video_key).where(_claimable(db.now(connection))).limit(1)
    return connection.execute(query).first() is not None


def claim(connection: sa.Connection, owner: str, limit: int, lease_seconds: float = LEASE_SECONDS) -> list[int]:
    """Keys of at most `limit` videos, oldest first, that `owner` now holds for `lease_seconds`."""
    now = db.now(connection)
    rows = connection.execute(
        sa.select(db.jobs).where(_claimable(now)).order_by(db.jobs.c.available_at, db.jobs.c.video_key).limit(limit)
    ).all()
    claimed = []
    for row in rows:
        if row.attempts >= MAX_ATTEMPTS:
            fail(connection, row.video_key, f"gave up after {row.attempts} attempts: the worker died each time")
            continue
        _LEASES.take(connection, row.video_key, owner, now + lease_seconds, attempts=row.attempts + 1)
        catalog.set_status(connection, row.video_key, "processing", 0.05)
        claimed.append(row.video_key)
    return claimed


def renew(connection: sa.Connection, owner: str, lease_seconds: float = LEASE_SECONDS) -> None:
    """Hold on to everything that `owner` has claimed, for `lease_seconds` from now on."""
    _LEASES.renew(connection, owner, lease_seconds)


def owns(connection: sa.Connection, key: int, owner: str) -> bool:
    """Whether the job is still `owner`'s; not so once it was deleted, queued afresh or claimed by another."""
    return _LEASES.owns(connection, key, owner)


def finish(connection: sa.Connection, key: int) -> None:
    """Take the job off the queue, in the transaction that stores its result."""
    connection.execute(sa.delete(db.jobs).where(db.jobs.c.video_key == key))


def fail(connection: sa.Connection, key: int, reason: str) -> None:
    """The end of a job whose video is at fault, or whose attempts are used up."""
    finish(connection, key)
    catalog.set_status(connection, key, "failed", 1.0, reason)


def retry(connection: sa.Connection, key: int, reason: str, backoff_seconds: float = BACKOFF_SECONDS) -> None:
    """Something else is at fault: try again after so long, twice as late each time, until MAX_ATTEMPTS."""
    attempts = connection.execute(sa.select(db.jobs.c.attempts).where(db.jobs.c.video_key == key)).scalar_one()
    if attempts >= MAX_ATTEMPTS:
        fail(connection, key, f"gave up after {attempts} attempts: {reason}")
        return
    later = db.now(connection) + backoff(attempts, backoff_seconds)
    connection.execute(sa.update(db.jobs).where(db.jobs.c.video_key == key).values(**FREE, available_at=later))
    catalog.set_status(connection, key, "queued", 0.0, f"attempt {attempts} failed: {reason}")


def postpone(connection: sa.Connection, key: int, reason: str, seconds: float) -> None:
    """The machine is at fault, not the video: try again in `seconds`. It does not count, however often."""
    _take_back(connection, db.jobs.c.video_key == key)
    connection.execute(
        sa.update(db.jobs).where(db.jobs.c.video_key == key).values(**FREE, available_at=db.now(connection) + seconds)
    )
    catalog.set_status(connection, key, "queued", 0.0, reason)


def release(connection: sa.Connection, owner: str, *, counts: bool = True) -> None:
    """Give back everything that `owner` holds, at once; the attempt counts where it may be what killed it."""
    if not counts:
        _take_back(connection, db.jobs.c.owner == owner)
    keys = connection.execute(sa.select(db.jobs.c.video_key).where(db.jobs.c.owner == owner)).scalars().all()
    for key in keys:
        connection.execute(sa.update(db.jobs).where(db.jobs.c.video_key == key).values(**FREE))
        catalog.set_status(connection, key, "queued", 0.0)


def depth(connection: sa.Connection) -> int:
    """Number of jobs that are not finished."""
    return connection.execute(sa.select(sa.func.count()).select_from(db.jobs)).scalar_one()


def age(connection: sa.Connection, key: int | None = None) -> float:
    """Seconds since this job, or the oldest of all, could have been begun; 0 where there is none."""
    since = sa.select(sa.func.min(db.jobs.c.available_at))
    found = connection.execute(since if key is None else since.where(db.jobs.c.video_key == key)).scalar()
    return 0.0 if found is None else max(0.0, db.now(connection) - found)


def _take_back(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    attempts = sa.case((db.jobs.c.attempts > 0, db.jobs.c.attempts - 1), else_=0)
    connection.execute(sa.update(db.jobs).where(which).values(attempts=attempts))


def _claimable(now: float) -> sa.ColumnElement[bool]:
    return sa.and_(db.jobs.c.available_at <= now, _LEASES.free(now))
