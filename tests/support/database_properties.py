"""Tests that every database (SQLite, PostgreSQL) must pass."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from service.database import change_log, db, dialects, generation_rows, projection_jobs, projection_rows
from service.errors import ConfigurationError, Unavailable
from service.models import Generation


class DatabaseProperties:
    """Database tests. A subclass gives a fixture `url`: the address of a database without a schema."""

    def test_upgrading_makes_the_schema_that_the_code_describes(self, url: str) -> None:
        db.upgrade(url)
        db.upgrade(url)  # A second upgrade changes nothing.
        config = Config()
        config.set_main_option("script_location", str(db.migrations_folder()))
        config.attributes["url"] = url
        command.check(config)  # Raises if the models and the migrated schema differ.

    def test_a_database_of_the_first_release_is_upgraded_and_keeps_what_it_holds(self, url: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(db.migrations_folder()))
        config.attributes["url"] = url
        if url.startswith("sqlite"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir()
        command.upgrade(config, "0001")
        generation = Generation("g", "model", 4, "float32")
        first = db.Database(url)
        with first.write() as connection:
            for statement in (
                "INSERT INTO generations VALUES ('g', 'model', 4, 'float32', '2026-11-01 12:00:00')",
                "INSERT INTO library VALUES ('l', 'g')",
                "INSERT INTO changes (video_key) VALUES (7), (8)",
                "DELETE FROM changes WHERE video_key = 8",
            ):
                connection.execute(sa.text(statement))
        first.close()
        db.upgrade(url)
        now = db.Database(url)
        with now.write() as connection:
            assert generation_rows.active_generation(connection) == generation
            assert change_log.changed_since(connection, 0, "g") == [7]
            change_log.record_change(connection, 9)
            assert change_log.last_change(connection, "g") == 3, "a number was given twice"
            change_log.record_change(connection, 9, "another")
            assert change_log.changed_since(connection, 0, "g") == [7, 9]
            assert change_log.changed_since(connection, 3, "another") == [9]
            spec = projection_rows.ProjectionSpec("g", "aggregated", "mean", "pca", 2, 0, {}, None)
            state, queued = projection_jobs.request(connection, spec)
            assert (queued, state.points, projection_rows.by_id(connection, state.id)) == (True, 0, state)
        now.close()

    def test_a_database_of_a_newer_version_is_refused(self, url: str) -> None:
        db.upgrade(url)
        database = db.Database(url)
        with database.write() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        database.close()
        with pytest.raises(ConfigurationError, match="revision that this version does not support"):
            db.upgrade(url)

    def test_many_writers_take_turns_and_lose_nothing(self, url: str) -> None:
        db.upgrade(url)
        # Two Database objects stand for two processes: the only lock they share is the database's.
        databases = [db.Database(url), db.Database(url)]

        def read_then_write(number: int) -> None:
            with databases[number % 2].write() as connection:
                seen = change_log.last_change(connection, "g")
                change_log.record_change(connection, number)
                assert change_log.last_change(connection, "g") == seen + 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_then_write, range(200)))
        with databases[0].read() as connection:
            assert change_log.changed_since(connection, 0, "g")
            assert len(change_log.changed_since(connection, 0, "g")) == 200
        for database in databases:
            database.close()

    def test_readers_do_not_wait_for_the_writer(self, url: str) -> None:
        db.upgrade(url)
        database = db.Database(url)
        with database.write() as writing:
            change_log.record_change(writing, 1)
            with database.read() as reading:
                assert change_log.last_change(reading, "g") == 0
        with database.read() as reading:
            assert change_log.last_change(reading, "g") == 1
        database.close()

    def test_a_block_that_fails_leaves_nothing_behind(self, url: str) -> None:
        db.upgrade(url)
        database = db.Database(url)
        with pytest.raises(RuntimeError), database.write() as connection:
            change_log.record_change(connection, 1)
            raise RuntimeError
        with database.read() as connection:
            assert change_log.last_change(connection, "g") == 0
        database.close()

    def test_a_lock_that_cannot_be_had_says_try_again(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        db.upgrade(url)
        monkeypatch.setattr(dialects, "BUSY_TIMEOUT_SECONDS", 0.1)
        holder, waiter = db.Database(url), db.Database(url)
        entered = threading.Event()
        leave = threading.Event()

        def hold() -> None:
            with holder.write():
                entered.set()
                leave.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait(10)
        with pytest.raises(Unavailable, match="busy"), waiter.write():
            pass
        leave.set()
        thread.join()
        for database in (holder, waiter):
            database.close()

    def test_more_readers_than_connections_are_told_to_come_again(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dialects, "BUSY_TIMEOUT_SECONDS", 0.1)
        db.upgrade(url)
        database = db.Database(url)
        with ExitStack() as stack, pytest.raises(Unavailable, match="try again"):
            for _ in range(100):
                stack.enter_context(database.read())
        with database.read() as connection:
            assert connection.execute(sa.select(1)).scalar() == 1
        database.close()


class DatabaseAcrossProcesses:
    """Database tests with several processes at once. A subclass gives the same fixture `url`."""

    def test_processes_that_start_at_once_upgrade_in_turn(self, url: str) -> None:
        if url.startswith("sqlite"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir()
        upgrade = "import sys; from service.database import db; db.upgrade(sys.argv[1])"
        started = [subprocess.Popen([sys.executable, "-c", upgrade, url]) for _ in range(4)]
        assert [process.wait(60) for process in started] == [0] * 4
        assert db.revision(url) == db.newest_revision()

    def test_one_at_a_time_is_alone_in_whatever_process(self, url: str) -> None:
        db.upgrade(url)
        one, other = db.Database(url), db.Database(url)
        with (
            one.try_lock("work") as mine,
            other.try_lock("work") as theirs,
            other.try_lock("something else") as another,
        ):
            assert (mine, theirs, another) == (True, False, True)
            with one.write() as connection:  # The named lock does not block writers.
                change_log.record_change(connection, 1)
        with other.try_lock("work") as theirs, one.try_lock("work") as mine:
            assert (mine, theirs) == (False, True)
        hold = (
            "import sys, time\nfrom service.database import db\n"
            "with db.Database(sys.argv[1]).try_lock('work') as mine:\n    print(mine, flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", hold, url], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            with one.try_lock("work") as mine:
                assert not mine
            process.kill()
        for _ in range(100):
            with one.try_lock("work") as mine:
                if mine:
                    break
            time.sleep(0.1)
        assert mine, "it went with its process"
        for database in (one, other):
            database.close()
