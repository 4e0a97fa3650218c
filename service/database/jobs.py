"""The queue of embedding jobs: one row per video, in the same database.

A worker claims a job with a lease, which it renews. If the worker dies, the lease expires and another worker claims the
job. After MAX_ATTEMPTS claims a job is given up, and the video's `error` holds the reason.
"""

from __future__ import annotations

import sqlalchemy as sa

from service.database import change_log, db, video_rows
from service.database.leases import FREE, LEASE_SECONDS, Leases
from service.timing import Timing, backoff

MAX_ATTEMPTS = 3
BACKOFF_SECONDS = Timing().backoff_seconds
_LEASES = Leases(db.jobs, db.jobs.c.video_key)


def add(connection: sa.Connection, video_pk: int) -> None:
    """Insert the job of a new video, in the transaction that adds the video.

    No index holds the video yet, so no change is recorded.
    """
    connection.execute(
        sa.insert(db.jobs).values(video_key=video_pk, attempts=0, available_at=db.now(connection), **FREE)
    )


def enqueue(connection: sa.Connection, video_pk: int) -> None:
    """Queue a video again, in the write transaction that changes it.

    A job that is queued or running already starts again, with all its attempts.
    """
    fresh = {"attempts": 0, "available_at": db.now(connection), **FREE}
    connection.execute(
        db.insert(connection, db.jobs)
        .values(video_key=video_pk, **fresh)
        .on_conflict_do_update(index_elements=["video_key"], set_=fresh)
    )
    video_rows.set_status(connection, video_pk, "queued", 0.0)
    change_log.record_change(connection, video_pk)  # not searchable until it is ready again


def waiting(connection: sa.Connection) -> bool:
    """Return whether a claim would find a job now. Cheap enough for a worker's idle loop."""
    query = sa.select(db.jobs.c.video_key).where(_claimable(db.now(connection))).limit(1)
    return connection.execute(query).first() is not None


def claim(connection: sa.Connection, owner: str, limit: int, lease_seconds: float = LEASE_SECONDS) -> list[int]:
    """Claim at most `limit` jobs, oldest first; return the primary keys of their videos.

    `owner` then holds the jobs for `lease_seconds`. A job without attempts left is marked as failed instead. Call
    inside a write transaction.
    """
    now = db.now(connection)
    rows = connection.execute(
        sa.select(db.jobs).where(_claimable(now)).order_by(db.jobs.c.available_at, db.jobs.c.video_key).limit(limit)
    ).all()
    claimed = []
    for row in rows:
        if row.attempts >= MAX_ATTEMPTS:
            fail(connection, row.video_key, f"gave up after {row.attempts} attempts: the worker died each time")
            continue
        _LEASES.assign(connection, row.video_key, owner, now + lease_seconds, attempts=row.attempts + 1)
        video_rows.set_status(connection, row.video_key, "processing", 0.05)
        claimed.append(row.video_key)
    return claimed


def renew(connection: sa.Connection, owner: str, lease_seconds: float = LEASE_SECONDS) -> None:
    """Extend the leases of all jobs of `owner` to `lease_seconds` from now. Call inside a write transaction."""
    _LEASES.renew(connection, owner, lease_seconds)


def owns(connection: sa.Connection, video_pk: int, owner: str) -> bool:
    """Return whether `owner` still holds the job.

    False if the job was deleted, queued again or claimed by another worker.
    """
    return _LEASES.owns(connection, video_pk, owner)


def finish(connection: sa.Connection, video_pk: int) -> None:
    """Delete the job of a video, in the write transaction that stores its result."""
    connection.execute(sa.delete(db.jobs).where(db.jobs.c.video_key == video_pk))


def fail(connection: sa.Connection, video_pk: int, reason: str) -> None:
    """Delete the job of a video, and mark the video as failed with `reason`.

    For a video that cannot be embedded, or whose attempts are used up. Call inside a write transaction.
    """
    finish(connection, video_pk)
    video_rows.set_status(connection, video_pk, "failed", 1.0, reason)


def retry(connection: sa.Connection, video_pk: int, reason: str, backoff_seconds: float = BACKOFF_SECONDS) -> None:
    """Queue a job again, after an error for which the video may not be to blame.

    The pause is `backoff_seconds`, and doubles with each attempt. After MAX_ATTEMPTS the video is marked as failed.
    Call inside a write transaction.
    """
    attempts = connection.execute(sa.select(db.jobs.c.attempts).where(db.jobs.c.video_key == video_pk)).scalar_one()
    if attempts >= MAX_ATTEMPTS:
        fail(connection, video_pk, f"gave up after {attempts} attempts: {reason}")
        return
    later = db.now(connection) + backoff(attempts, backoff_seconds)
    connection.execute(sa.update(db.jobs).where(db.jobs.c.video_key == video_pk).values(**FREE, available_at=later))
    video_rows.set_status(connection, video_pk, "queued", 0.0, f"attempt {attempts} failed: {reason}")


def postpone(connection: sa.Connection, video_pk: int, reason: str, seconds: float) -> None:
    """Queue a job again in `seconds`, after a fault of the machine and not of the video.

    The attempt does not count, however often this happens. Call inside a write transaction.
    """
    _uncount_attempt(connection, db.jobs.c.video_key == video_pk)
    connection.execute(
        sa.update(db.jobs)
        .where(db.jobs.c.video_key == video_pk)
        .values(**FREE, available_at=db.now(connection) + seconds)
    )
    video_rows.set_status(connection, video_pk, "queued", 0.0, reason)


def release(connection: sa.Connection, owner: str, *, count_attempt: bool = True) -> None:
    """Release all jobs of `owner` at once, so that they can be claimed again.

    This includes owners whose name starts with `owner` and a colon. Pass `count_attempt` as False if the jobs cannot
    have killed the worker: the attempt then does not count. Call inside a write transaction.
    """
    held = _LEASES.held_by(owner)
    if not count_attempt:
        _uncount_attempt(connection, held)
    video_pks = connection.execute(sa.select(db.jobs.c.video_key).where(held)).scalars().all()
    for video_pk in video_pks:
        connection.execute(sa.update(db.jobs).where(db.jobs.c.video_key == video_pk).values(**FREE))
        video_rows.set_status(connection, video_pk, "queued", 0.0)


def depth(connection: sa.Connection) -> int:
    """Return the number of unfinished jobs."""
    return connection.execute(sa.select(sa.func.count()).select_from(db.jobs)).scalar_one()


def age(connection: sa.Connection, video_pk: int | None = None) -> float:
    """Return the seconds since a job could first be claimed, or 0 if there is no such job.

    Without `video_pk`, this is the job that has been available longest.
    """
    since = sa.select(sa.func.min(db.jobs.c.available_at))
    found = connection.execute(since if video_pk is None else since.where(db.jobs.c.video_key == video_pk)).scalar()
    return 0.0 if found is None else max(0.0, db.now(connection) - found)


def _uncount_attempt(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Do not count the last attempt at the jobs that match the condition `which`."""
    attempts = sa.case((db.jobs.c.attempts > 0, db.jobs.c.attempts - 1), else_=0)
    connection.execute(sa.update(db.jobs).where(which).values(attempts=attempts))


def _claimable(now: float) -> sa.ColumnElement[bool]:
    return sa.and_(db.jobs.c.available_at <= now, _LEASES.is_free(now))
