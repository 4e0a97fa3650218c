"""Tests of machine faults against a real server: refusals, what still works, and the state afterwards.

The data folder is a separate file system. Tests fill it (tmpfs) or report an error to it (ext4). On an error, ext4
becomes read-only under the open files, as after a real fault. The model fails because its towers are told to.
"""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.bootstrap import Runtime
from service.database import change_log, db, generation_rows, vector_rows, video_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.errors import Unavailable
from service.index.compressed import CompressedIndex
from service.index.sync import SyncedIndex
from service.media import Decoder
from service.models import Embeddings, Generation
from service.storage import FolderStore
from service.timing import Timing
from tests.support.clips import ClipMaker, numbered
from tests.support.disks import fill, mount, mounted
from tests.support.faulty_library import (
    QUICK,
    FailingModel,
    Library,
    nothing_half_written,
    refused,
    tried_in_vain,
)
from tests.support.library import settings_for
from tests.support.rows import add_row
from tests.support.server import logged, serving, serving_here
from tests.support.wait import until


@pytest.fixture
def clip(make_clip: ClipMaker) -> bytes:
    """Return a clip of half a second."""
    return make_clip("a.mp4", numbered(5)).read_bytes()


def test_a_full_disk(small_disk: Path, tmp_path: Path, clip: bytes, tiny: Encoder, decoder: Decoder) -> None:
    settings = settings_for(small_disk / "data")
    with (
        logged(tmp_path / "log") as log,
        serving_here(settings, tiny, decoder, timing=QUICK) as server,
        Library(server, clip) as library,
    ):
        for _ in range(3):
            assert library.upload(wait=60).status_code == 201
        library.reads()
        # The disk fills while clips are queued: acknowledged uploads must be embedded later.
        for _ in range(12):
            assert library.upload().status_code == 202
        ballast = fill(small_disk)
        for _ in range(3):
            refused(library.upload(), 507)
            library.reads()
        refused(library.client.patch(f"/v1/videos/{library.known[0]}", json={"caption": "x"}), 507)
        status, checks = library.checks()
        assert status == "degraded"
        assert "No space left" in checks["storage"]
        waits = "worker paused after a fault"  # more often than a job may be attempted
        until(lambda: log.read_text().count(waits) > 10, 60, lambda: log.read_text()[-2000:])
        library.reads()
        nothing_half_written(server.data_dir / "media")
        ballast.unlink()
        library.recovered()
        assert "Traceback" not in log.read_text()


def test_a_nearly_full_disk_leaves_nothing_behind(
    small_disk: Path, clip: bytes, tiny: Encoder, decoder: Decoder
) -> None:
    """Leave only some kilobytes free, in growing amounts, so that each step of an upload is refused once."""
    settings = settings_for(small_disk / "data")
    with (
        serving_here(settings, tiny, decoder, timing=QUICK) as server,
        Library(server, clip) as library,
    ):
        for _ in range(2):
            assert library.upload(wait=60).status_code == 201
        statuses = set()
        for leave in range(0, 200, 8):
            ballast = fill(small_disk, leave << 10)
            statuses.add(library.upload().status_code)
            library.reads(words=False)
            ballast.unlink()
        assert statuses == {202, 507}
        library.recovered()
        stored = [folder.name for folder in (server.data_dir / "media").glob("[0-9a-f][0-9a-f]/*")]
        assert len(stored) == len(library.known), "bytes without a row"
        assert not list((server.data_dir / "media" / "incoming").iterdir())


def test_a_clip_can_be_deleted_to_make_room(small_disk: Path, clip: bytes, tiny: Encoder, decoder: Decoder) -> None:
    settings = settings_for(small_disk / "data")
    with (
        serving_here(settings, tiny, decoder, timing=QUICK) as server,
        Library(server, clip) as library,
    ):
        for _ in range(4):
            assert library.upload(wait=60).status_code == 201
        fill(small_disk, 64 << 10)  # SQLite writes its changes to the disk first
        gone = library.known.pop()
        assert library.client.delete(f"/v1/videos/{gone}").status_code == 204
        assert library.client.get(f"/v1/videos/{gone}").status_code == 404
        library.reads()


def test_a_disk_that_goes_read_only(tmp_path: Path, clip: bytes, tiny: Encoder, decoder: Decoder) -> None:
    """ext4 becomes read-only when it detects damage, under all open files."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(tmp_path / "disk", "-o", "loop,errors=remount-ro", str(image)) as disk:
        device = disk.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        trigger = Path(f"/sys/fs/ext4/{name}/trigger_fs_error")
        if not os.access(trigger, os.W_OK):
            pytest.skip("this kernel cannot be told to find a file system damaged")
        settings = settings_for(disk / "data")
        with serving_here(settings, tiny, decoder, timing=QUICK) as server, Library(server, clip) as library:
            for _ in range(3):
                assert library.upload(wait=60).status_code == 201
            library.reads()
            trigger.write_text("a test")
            for _ in range(3):
                refused(library.upload(), 507)
                library.reads()
            refused(library.client.delete(f"/v1/videos/{library.known[0]}"), 507)
            refused(library.client.patch(f"/v1/videos/{library.known[0]}", json={"title": "x"}), 507)
            status, checks = library.checks()
            assert status == "degraded"
            assert "Read-only" in checks["storage"]
            library.reads()


def test_a_store_that_is_read_only_for_a_while(tmp_path: Path, clip: bytes, tiny: Encoder, decoder: Decoder) -> None:
    """Only the clips are on this disk, so that it can become writable again while the service runs."""
    with (
        mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk,
        serving_here(
            settings_for(tmp_path / "data", storage_url=str(disk / "media")), tiny, decoder, timing=QUICK
        ) as server,
        Library(server, clip) as library,
    ):
        for _ in range(3):
            assert library.upload(wait=60).status_code == 201
        library.reads()
        for _ in range(4):
            assert library.upload().status_code == 202
        mount("-o", "remount,ro", str(disk))
        refused(library.upload(), 507)
        refused(library.client.delete(f"/v1/videos/{library.known[0]}"), 507)
        assert library.checks()[0] == "degraded"
        library.reads()
        tried_in_vain(server.data_dir)
        library.reads()
        mount("-o", "remount,rw", str(disk))
        library.recovered()


def test_a_locked_database(tmp_path: Path, clip: bytes, tiny: Encoder, decoder: Decoder) -> None:
    def hurried(runtime: Runtime) -> None:
        runtime.db.lock_seconds = 1

    settings = settings_for(tmp_path / "data")
    with (
        serving_here(settings, tiny, decoder, timing=QUICK, before=hurried) as server,
        Library(server, clip) as library,
    ):
        for _ in range(3):
            assert library.upload(wait=60).status_code == 201
        library.reads()
        for _ in range(4):
            assert library.upload().status_code == 202
        other = sqlite3.connect(server.data_dir / "reelsrs.db", isolation_level=None, timeout=10)
        other.execute("BEGIN EXCLUSIVE")

        def timed() -> tuple[httpx.Response, float]:
            started = time.monotonic()
            return library.upload(), time.monotonic() - started

        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(timed) for _ in range(6)]
            while not all(one.done() for one in answers):
                library.reads()
        for one in answers:
            answer, seconds = one.result()
            refused(answer, 503)
            assert seconds < 5, "one after another they waited"
        status, checks = library.checks()
        assert (status, checks["writing"]) == ("degraded", "the database is busy; try again")
        other.execute("ROLLBACK")
        other.close()
        library.recovered()
        assert len(library.known) == 7  # eight uploaded, one deleted


@pytest.fixture(scope="module")
def failing() -> FailingModel:
    """Return a failing model for these tests."""
    return FailingModel()


@pytest.mark.parametrize("how", ["all", "memory", "some", "device"])
def test_a_model_that_fails(tmp_path: Path, clip: bytes, failing: FailingModel, decoder: Decoder, how: str) -> None:
    failing.how = ""
    settings = settings_for(tmp_path / "data")
    # If every third call fails, the three attempts of a video must not be used up within a second.
    timing = replace(QUICK, backoff_seconds=2) if how == "some" else QUICK
    with serving_here(settings, failing.model, decoder, timing=timing) as server, Library(server, clip) as library:
        for _ in range(3):
            assert library.upload(wait=60).status_code == 201
        failing.how, failing.failures = how, 0
        for _ in range(6):
            assert library.upload().status_code == 202, "it can wait until the model works again"
        library.reads(words=False)
        if how in ("all", "memory"):
            until(lambda: failing.failures > 60, 60, "more tries than a video has")
            status, checks = library.checks()
            assert status == "degraded"
            assert "the model failed" in checks["model"]
            refused(library.client.post("/v1/search/text", json={"query": "words"}), 503)
            refused(library.client.patch(f"/v1/videos/{library.known[0]}", json={"caption": "x"}), 503)
            assert library.client.patch(f"/v1/videos/{library.known[0]}", json={"title": "x"}).status_code == 200
            library.reads(words=False)
        else:
            for _ in range(10):
                asked = library.client.post("/v1/search/text", json={"query": f"words {random.random()}"})
                assert asked.status_code in (200, 503)
        failing.how = ""
        library.recovered()


def test_a_clip_that_the_model_fails_at_fails_alone(
    tmp_path: Path, clip: bytes, make_clip: ClipMaker, failing: FailingModel, decoder: Decoder
) -> None:
    failing.how = "bright"
    bright = make_clip("bright.mp4", [frame * 0 + 255 for frame in numbered(5)]).read_bytes()
    settings = settings_for(tmp_path / "data")
    with serving_here(settings, failing.model, decoder, timing=QUICK) as server, Library(server, clip) as library:
        answer = library.client.post("/v1/videos", files={"file": ("bright.mp4", bright)})
        for _ in range(5):
            assert library.upload().status_code == 202
        address = f"/v1/videos/{answer.json()['id']}"
        until(lambda: library.client.get(address).json()["status"] == "failed", 60, "it is given up")
        assert "gave up after 3 attempts: the model failed: too bright" in library.client.get(address).json()["error"]
        library.client.delete(address)
        library.recovered()


def test_the_compressed_index_goes_on_in_memory(small_disk: Path, tmp_path: Path) -> None:
    """Fill only the disk of the index: committed rows are found, and a snapshot is complete or absent."""
    url = f"sqlite:///{tmp_path}/reelsrs.db"
    db.upgrade(url)
    library = Database(url)
    generation = Generation("g", "m", 64, "float32")
    rng = np.random.default_rng(1)

    def vector() -> np.ndarray:
        wide = rng.normal(size=64)
        return (wide / np.linalg.norm(wide)).astype(np.float32)

    def add(number: int) -> np.ndarray:
        v = vector()
        with library.write() as connection:
            generation_rows.activate_generation(connection, generation)
            video = add_row(connection, number)
            vector_rows.put_embeddings(connection, video.pk, generation, Embeddings(v[None], v, v, None))
            video_rows.set_status(connection, video.pk, "ready", 1.0)
            change_log.record_change(connection, video.pk)
        return v

    for number in range(300):
        add(number)
    index = small_disk / "index"
    follower = SyncedIndex(library, index, generation, "mean", exact_up_to=100, timing=Timing(renewal_pause_seconds=0))

    def found(v: np.ndarray) -> float:
        with follower.current() as (now, _):
            query = np.concatenate([v, np.zeros(65, np.float32)])
            return float(now.search(query, 1)[1][0])

    follower.save()
    before = sorted(path.name for path in index.iterdir())
    ballast = fill(small_disk)
    for number in range(300, 700):
        assert found(add(number)) == pytest.approx(1, abs=1e-5)
    follower.save()
    assert sorted(path.name for path in index.iterdir()) == before, "half a snapshot was left"
    with follower.current() as (now, _):
        assert isinstance(now, CompressedIndex)
        assert now.in_memory
    ballast.unlink()
    last = add(700)
    assert found(last) == pytest.approx(1, abs=1e-5)

    def on_disk() -> bool:
        with follower.current() as (now, _):  # a search restarts the renewal that failed before
            assert isinstance(now, CompressedIndex)
            return not now.in_memory

    until(on_disk, 60, "the rows are on the disk again")
    follower.close()
    again = SyncedIndex(library, index, generation, "mean", exact_up_to=100)
    assert again.saved_change, "the snapshot was not used"
    with again.current() as (now, _):
        assert len(now) == 701
    again.close()
    library.close()


def test_a_broken_database_is_said_and_not_a_500(tmp_path: Path, clip: bytes) -> None:
    with serving(tmp_path / "data") as server, Library(server, clip) as library:
        assert library.upload(wait=60).status_code == 201
        path = server.data_dir / "reelsrs.db"
        closing = sqlite3.connect(path)
        closing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        closing.close()
        size = path.stat().st_size
        with path.open("r+b") as file:
            for page in range(1, size // 4096):
                file.seek(page * 4096)
                file.write(b"\xff" * 4096)
        for _ in range(5):
            answer = library.client.get("/v1/videos")
            assert answer.status_code in (200, 503), answer.text
            assert library.upload().status_code in (202, 503, 507)
        assert library.client.get("/livez").status_code == 200


def test_too_many_open_files_are_said(tmp_path: Path) -> None:
    files = FolderStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(Unavailable, match="Too many open files"):
            files.receive(10)
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
