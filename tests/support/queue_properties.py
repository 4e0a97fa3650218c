"""What the queue of jobs holds, whichever database keeps it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service import catalog, db, dialects, jobs
from service.db import Database
from service.domain import Probe, Sampling, Video


def _queued(database: Database, name: str = "a") -> Video:
    with database.write() as connection:
        video = catalog.add_video(
            connection,
            sha256=name,
            size_bytes=1,
            filename="",
            title="",
            caption=None,
            category=None,
            sampling=Sampling(1),
            probe=Probe("video/mp4", "h264", 1, 1, None, None),
        )
        jobs.enqueue(connection, video.key)
    return video


def _status(database: Database, video: Video) -> tuple[str, str | None]:
    with database.read() as connection:
        now = catalog.video_by_key(connection, video.key)
    return now.status, now.error


def _claim(database: Database, owner: str, limit: int = 8) -> list[int]:
    with database.write() as connection:
        return jobs.claim(connection, owner, limit)


def _at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Move the clock that the queue looks at."""
    monkeypatch.setattr(db, "now", lambda connection: dialects.of(connection).now(connection) + seconds)


class QueueProperties:
    """Give a fixture `url`: the address of a database without a schema."""

    @pytest.fixture
    def database(self, url: str) -> Iterator[Database]:
        """An empty one, of either kind."""
        db.upgrade(url)
        opened = Database(url)
        yield opened
        opened.close()

    def test_each_job_is_claimed_once_oldest_first(self, database: Database) -> None:
        videos = [_queued(database, name) for name in "abc"]
        assert _claim(database, "one", 2) == [videos[0].key, videos[1].key]
        assert _claim(database, "two") == [videos[2].key]
        assert _claim(database, "three") == []
        assert _status(database, videos[0]) == ("processing", None)

    def test_a_lease_runs_out_unless_it_is_renewed(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        video = _queued(database)
        _claim(database, "dead")
        _at(monkeypatch, jobs.LEASE_SECONDS - 5)
        with database.write() as connection:
            jobs.renew(connection, "dead")
        _at(monkeypatch, jobs.LEASE_SECONDS + 5)
        assert _claim(database, "other") == []
        _at(monkeypatch, 2 * jobs.LEASE_SECONDS + 5)
        assert _claim(database, "other") == [video.key]
        with database.read() as connection:
            assert not jobs.owns(connection, video.key, "dead")
            assert jobs.owns(connection, video.key, "other")

    def test_a_job_that_kills_every_worker_is_given_up(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        video = _queued(database)
        for attempt in range(jobs.MAX_ATTEMPTS):
            _at(monkeypatch, attempt * 100)
            assert _claim(database, f"worker {attempt}") == [video.key]
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
            assert _claim(database, "worker") == [video.key]
            with database.write() as connection:
                jobs.retry(connection, video.key, "the disk is full")
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
        assert _claim(database, "two") == [video.key]

    def test_deleting_a_video_takes_its_job_along(self, database: Database) -> None:
        video = _queued(database)
        _claim(database, "one")
        with database.write() as connection:
            catalog.delete_video(connection, video.key)
            assert jobs.depth(connection) == 0
            assert not jobs.owns(connection, video.key, "one")
