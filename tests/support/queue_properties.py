"""Tests that the job queue must pass on every database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from service.database import change_log, db, dialects, jobs, video_rows
from service.database.db import Database
from service.models import Video
from tests.support.rows import add_row


def _queued(database: Database, name: str = "a") -> Video:
    with database.write() as connection:
        video = add_row(connection, ord(name))
        jobs.enqueue(connection, video.pk)
    return video


def _status(database: Database, video: Video) -> tuple[str, str | None]:
    with database.read() as connection:
        now = video_rows.video_by_pk(connection, video.pk)
    return now.status, now.error


def _claim(database: Database, owner: str, limit: int = 8) -> list[int]:
    with database.write() as connection:
        return jobs.claim(connection, owner, limit)


def _at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the queue's clock to the real time plus `seconds`."""
    monkeypatch.setattr(db, "now", lambda connection: dialects.dialect_of(connection).now(connection) + seconds)


class Clock:
    """The time that the queue reads, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0


def _waiting(database: Database) -> bool:
    with database.read() as connection:
        return jobs.waiting(connection)


def _claimable(database: Database) -> list[int]:
    """Return the jobs that a claim would return, in its order, without leaving them claimed."""
    with database.write() as connection:
        found = jobs.claim(connection, "nobody", 8)
        jobs.release(connection, "nobody", count_attempt=False)
    return found


def _progress(database: Database, video: Video) -> float:
    with database.read() as connection:
        return video_rows.video_by_pk(connection, video.pk).progress


def _attempts(connection: sa.Connection) -> list[int]:
    return list(connection.execute(sa.select(db.jobs.c.attempts).order_by(db.jobs.c.video_key)).scalars())


class QueueProperties:
    """Job queue tests. A subclass gives a fixture `url`: the address of a database without a schema."""

    @pytest.fixture
    def database(self, url: str) -> Iterator[Database]:
        """Open an empty database at `url`."""
        db.upgrade(url)
        opened = Database(url)
        yield opened
        opened.close()

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Replace the queue's clock by one that stands still unless a test moves the clock."""
        made = Clock()
        monkeypatch.setattr(db, "now", lambda _: made.now)
        return made

    def test_each_job_is_claimed_once_oldest_first(self, database: Database) -> None:
        videos = [_queued(database, name) for name in "abc"]
        assert _claim(database, "one", 2) == [videos[0].pk, videos[1].pk]
        assert _claim(database, "two") == [videos[2].pk]
        assert _claim(database, "three") == []
        assert _status(database, videos[0]) == ("processing", None)

    def test_a_lease_lasts_as_long_as_it_says(self, database: Database, clock: Clock) -> None:
        video = _queued(database)
        _claim(database, "one")
        clock.now += jobs.LEASE_SECONDS
        assert _claim(database, "two") == []
        assert not _waiting(database)
        clock.now += 0.001
        assert _waiting(database)
        assert _claim(database, "two") == [video.pk]
        clock.now += 10
        with database.write() as connection:
            jobs.renew(connection, "one")
            jobs.renew(connection, "two")
        clock.now += jobs.LEASE_SECONDS
        assert _claim(database, "three") == []
        clock.now += 0.001
        assert _claim(database, "three") == [video.pk]

    def test_renewing_holds_on_to_ones_own_jobs_only(self, database: Database, clock: Clock) -> None:
        first, second = _queued(database, "a"), _queued(database, "b")
        assert _claim(database, "one", 1) == [first.pk]
        assert _claim(database, "two", 1) == [second.pk]
        clock.now += 20
        with database.write() as connection:
            jobs.renew(connection, "one")
        clock.now += 20
        assert _claim(database, "three") == [second.pk]

    def test_the_first_that_can_be_begun_is_the_first_begun(self, database: Database, clock: Clock) -> None:
        videos = [_queued(database, name) for name in "abc"]
        assert _waiting(database)
        _claim(database, "one", 1)
        with database.write() as connection:
            jobs.retry(connection, videos[0].pk, "it failed", 5.0)
        assert _claim(database, "one", 3) == [videos[1].pk, videos[2].pk]
        assert not _waiting(database)
        clock.now += 5
        assert _waiting(database)
        assert _claim(database, "one", 3) == [videos[0].pk]

    def test_a_failed_attempt_waits_twice_as_long_each_time(self, database: Database, clock: Clock) -> None:
        video = _queued(database)
        for attempt, wait in ((1, 3.0), (2, 6.0)):
            assert _claim(database, "one") == [video.pk]
            with database.write() as connection:
                jobs.retry(connection, video.pk, "it failed", 3.0)
            assert _status(database, video) == ("queued", f"attempt {attempt} failed: it failed")
            with database.read() as connection:
                assert not jobs.owns(connection, video.pk, "one")
            clock.now += wait - 0.001
            assert _claim(database, "one") == []
            clock.now += 0.001
        assert _claim(database, "one") == [video.pk]
        with database.write() as connection:
            jobs.retry(connection, video.pk, "it failed", 3.0)
            assert jobs.depth(connection) == 0
        assert _status(database, video) == ("failed", "gave up after 3 attempts: it failed")

    def test_one_that_cannot_be_worked_on_waits_and_does_not_count(self, database: Database, clock: Clock) -> None:
        video, other = _queued(database, "a"), _queued(database, "b")
        for _ in range(2 * jobs.MAX_ATTEMPTS):
            assert _claim(database, "one", 1) == [video.pk]
            with database.write() as connection:
                jobs.postpone(connection, video.pk, "the disk is full", 4.0)
            assert _status(database, video) == ("queued", "the disk is full")
            assert _claim(database, "one", 1) == [other.pk]
            with database.write() as connection:
                jobs.release(connection, "one", count_attempt=False)
            clock.now += 3.999
            assert _claimable(database) == [other.pk]
            clock.now += 0.001
            assert _claimable(database) == [other.pk, video.pk]
            with database.write() as connection:
                jobs.postpone(connection, other.pk, "", 0.0)
        with database.read() as connection:
            assert _attempts(connection) == [0, 0]

    def test_what_is_given_back_counts_unless_it_is_said_not_to(self, database: Database) -> None:
        videos = [_queued(database, name) for name in "abc"]
        with database.write() as connection:
            jobs.postpone(connection, videos[2].pk, "not yet", 0.0)  # never claimed: no attempt is taken back
        for owner, count in (("one", 1), ("two", 2)):
            _claim(database, owner, count)
        for owner, counts, expected in (("one", True, [1, 1, 1]), ("two", False, [1, 0, 0])):
            with database.write() as connection:
                jobs.release(connection, owner, count_attempt=counts)
                assert _attempts(connection) == expected
        assert {_status(database, video)[0] for video in videos} == {"queued"}
        assert sorted(_claim(database, "three")) == [video.pk for video in videos]

    def test_one_that_is_queued_again_has_all_its_attempts(self, database: Database, clock: Clock) -> None:
        video, other = _queued(database, "a"), _queued(database, "b")
        _claim(database, "one", 1)
        clock.now += 1
        with database.write() as connection:
            before = change_log.last_change(connection, "")
            jobs.enqueue(connection, video.pk)
            assert change_log.last_change(connection, "") > before, "no index is told"
            assert jobs.depth(connection) == 2
            row = connection.execute(sa.select(db.jobs).where(db.jobs.c.video_key == video.pk)).one()
        assert (row.attempts, row.owner, row.lease_expires_at) == (0, None, None)
        assert _status(database, video) == ("queued", None)
        assert _claim(database, "two") == [other.pk, video.pk], "it is behind what waited before"

    def test_a_finished_job_is_gone_and_others_are_not(self, database: Database) -> None:
        video, other = _queued(database, "a"), _queued(database, "b")
        assert _claim(database, "one") == [video.pk, other.pk]
        with database.write() as connection:
            jobs.finish(connection, video.pk)
            assert jobs.depth(connection) == 1
            assert jobs.owns(connection, other.pk, "one")
            jobs.fail(connection, other.pk, "it is no clip")
            assert jobs.depth(connection) == 0
        assert _status(database, video)[0] == "processing", "the caller records the result"
        assert _status(database, other) == ("failed", "it is no clip")

    def test_the_age_is_that_of_the_oldest(self, database: Database, clock: Clock) -> None:
        with database.read() as connection:
            assert jobs.age(connection) == 0.0
        first = _queued(database, "a")
        clock.now += 7
        second = _queued(database, "b")
        clock.now += 2
        with database.read() as connection:
            assert jobs.age(connection) == pytest.approx(9, abs=0.5)
            assert jobs.age(connection, first.pk) == pytest.approx(9, abs=0.5)
            assert jobs.age(connection, second.pk) == pytest.approx(2, abs=0.5)
            assert jobs.age(connection, 12345) == 0.0
        with database.write() as connection:
            for video in (first, second):
                jobs.postpone(connection, video.pk, "", 60.0)
            assert jobs.age(connection) == 0.0

    def test_how_far_a_job_is_is_said_at_every_step(self, database: Database, clock: Clock) -> None:
        video = _queued(database)
        assert _progress(database, video) == 0.0
        for give_up, progress in (
            (lambda connection: jobs.postpone(connection, video.pk, "", 0.0), 0.0),
            (lambda connection: jobs.release(connection, "one", count_attempt=False), 0.0),
            (lambda connection: jobs.retry(connection, video.pk, "", 0.0), 0.0),
            (lambda connection: jobs.enqueue(connection, video.pk), 0.0),
            (lambda connection: jobs.fail(connection, video.pk, ""), 1.0),
        ):
            assert _claim(database, "one") == [video.pk]
            assert _progress(database, video) == 0.05
            with database.write() as connection:
                give_up(connection)
            assert _progress(database, video) == progress
            with database.read() as connection:
                assert not jobs.owns(connection, video.pk, "one"), "it is nobody's"
            clock.now += 0.001

    def test_what_befalls_one_job_does_not_befall_the_others(self, database: Database) -> None:
        videos = [_queued(database, name) for name in "abc"]
        for owner in ("one", "two", "three"):
            assert len(_claim(database, owner, 1)) == 1
        with database.write() as connection:
            jobs.postpone(connection, videos[0].pk, "", 0.0)
            assert _attempts(connection) == [0, 1, 1]
            jobs.release(connection, "two")
            assert _attempts(connection) == [0, 1, 1], "it counts unless it is said not to"
            assert jobs.owns(connection, videos[2].pk, "three")
            jobs.finish(connection, videos[1].pk)
            assert _attempts(connection) == [0, 1]

    def test_a_name_releases_the_jobs_of_all_that_begin_with_it(self, database: Database) -> None:
        videos = [_queued(database, name) for name in "abc"]
        for owner in ("host:1:ab", "host:12:cd", "host:1"):
            assert len(_claim(database, owner, 1)) == 1
        with database.write() as connection:
            jobs.release(connection, "host:1")
            assert not jobs.owns(connection, videos[0].pk, "host:1:ab")
            assert jobs.owns(connection, videos[1].pk, "host:12:cd"), "another process"
            assert not jobs.owns(connection, videos[2].pk, "host:1")

    def test_giving_one_up_does_not_keep_the_next_from_being_begun(self, database: Database, clock: Clock) -> None:
        hopeless, sound = _queued(database, "a"), _queued(database, "b")
        for _ in range(jobs.MAX_ATTEMPTS):
            assert _claim(database, "dead", 1) == [hopeless.pk]
            clock.now += jobs.LEASE_SECONDS + 1
        assert _claim(database, "other", 2) == [sound.pk]
        assert _status(database, hopeless) == ("failed", "gave up after 3 attempts: the worker died each time")

    def test_a_lease_runs_out_unless_it_is_renewed(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        video = _queued(database)
        _claim(database, "dead")
        _at(monkeypatch, jobs.LEASE_SECONDS - 5)
        with database.write() as connection:
            jobs.renew(connection, "dead")
        _at(monkeypatch, jobs.LEASE_SECONDS + 5)
        assert _claim(database, "other") == []
        _at(monkeypatch, 2 * jobs.LEASE_SECONDS + 5)
        assert _claim(database, "other") == [video.pk]
        with database.read() as connection:
            assert not jobs.owns(connection, video.pk, "dead")
            assert jobs.owns(connection, video.pk, "other")

    def test_a_job_that_kills_every_worker_is_given_up(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        video = _queued(database)
        for attempt in range(jobs.MAX_ATTEMPTS):
            _at(monkeypatch, attempt * 100)
            assert _claim(database, f"worker {attempt}") == [video.pk]
        _at(monkeypatch, 1000)
        assert _claim(database, "last") == []
        status, error = _status(database, video)
        assert status == "failed"
        assert error is not None
        assert "3 attempts" in error
        with database.read() as connection:
            assert jobs.depth(connection) == 0

    def test_retries_wait_longer_each_time_and_end(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        video = _queued(database)
        later = 0.0
        for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
            _at(monkeypatch, later)
            assert _claim(database, "worker") == [video.pk]
            with database.write() as connection:
                jobs.retry(connection, video.pk, "the disk is full")
            assert _claim(database, "worker") == []
            later += 2.0 * 2 ** (attempt - 1) + 0.1
        status, error = _status(database, video)
        assert (status, error) == ("failed", "gave up after 3 attempts: the disk is full")

    def test_what_a_worker_gives_back_is_there_at_once(self, database: Database) -> None:
        video = _queued(database)
        _claim(database, "one")
        with database.write() as connection:
            jobs.release(connection, "one")
        assert _status(database, video) == ("queued", None)
        assert _claim(database, "two") == [video.pk]

    def test_deleting_a_video_takes_its_job_along(self, database: Database) -> None:
        video = _queued(database)
        _claim(database, "one")
        with database.write() as connection:
            video_rows.delete_video(connection, video.pk)
            assert jobs.depth(connection) == 0
            assert not jobs.owns(connection, video.pk, "one")
