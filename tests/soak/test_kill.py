"""Kill the service repeatedly under uploads, searches, edits and deletions.

After every start: everything acknowledged is present, no job is stuck, searches equal NumPy's over the rows, and every
file belongs to a row. Twice by default, while jobs are held; a hundred times with `--soak`, at random moments seeded by
the number of the kill.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.database import db, jobs
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support import services
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.processes import family
from tests.support.rows import check_against_rows, end_leases, items_of_rows, owners, settled
from tests.support.server import Server, Service, serving, serving_here
from tests.support.traffic import Known, Traffic
from tests.support.wait import until


def _wait_for(known: Known, uploads: int) -> None:
    for _ in range(600):
        if known.uploads >= uploads:
            return
        time.sleep(0.1)
    raise AssertionError("no upload was acknowledged within a minute")


def _embed_one(server: Server, known: Known, clip: bytes, number: int) -> None:
    """Upload one clip and wait until it is ready, so that the worker has loaded its model, which takes seconds."""
    with server.client() as client:
        client.timeout = 120
        file = {"file": ("a.mp4", clip + b"\x00\x00\x00\x0cfree" + number.to_bytes(4, "big"))}
        answer = client.post("/v1/videos", files=file, data={"caption": "first"}, params={"wait": 60})
        assert answer.status_code == 201, answer.text
        known.captions[answer.json()["id"]] = {"first"}


def _pull_the_plug(server: Server, *, whole: bool) -> None:
    """Kill the service process alone, or with `whole` all of its processes at once."""
    everybody = family(server.process.pid) if whole else {server.process.pid}
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()


def _check(server: Service, known: Known) -> int:
    """Check everything that was acknowledged; return the number of videos."""
    with server.client() as client:
        videos = {video["id"]: video for video in settled(client)}
        assert {video["status"] for video in videos.values()} <= {"ready"}, "a sound clip failed"
        lost = known.captions.keys() - videos.keys() - known.doubtful
        assert not lost, f"acknowledged, and lost: {lost}"
        assert not known.deleted & videos.keys(), "deleted, and back"
        for name, captions in known.captions.items():
            if name in videos:
                assert videos[name]["caption"] in captions, name
                known.captions[name] = {videos[name]["caption"]}
        for name in known.doubtful - videos.keys():
            known.captions.pop(name, None)
            known.deleted.add(name)
        known.doubtful.clear()
        database = Database(services.database_url(server.data_dir))
        with database.read() as connection:
            rows = set(connection.execute(sa.select(db.videos.c.sha256)).scalars())
            assert jobs.depth(connection) == 0
            items = items_of_rows(connection, videos)
        database.close()
        check_against_rows(client, items)
    assert services.clips(server.data_dir) == rows, "files without rows, or rows without files"
    assert not [name for name in services.stored(server.data_dir) if "unsettled" in name]
    return len(videos)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the service's processes are found in /proc")
def test_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder, soak: bool
) -> None:
    known = Known()
    clip = make_clip("a.mp4", numbered(8)).read_bytes()
    data, kills, slowest = tmp_path / "data", 100 if soak else 2, 0.0
    for number in range(kills):
        rng = random.Random(number)
        started = time.monotonic()
        with serving(data) as server:
            slowest = max(slowest, time.monotonic() - started)
            assert known.wrong == []
            _check(server, known)
            if not soak:
                _embed_one(server, known, clip, number)
            traffic = Traffic(server, known, clip, number)
            if number % 4 or not soak:  # kill most in the middle of their work, also on a slow machine
                _wait_for(known, known.uploads + 1)
            if soak:
                time.sleep(rng.uniform(0.05, 4))
                whole = rng.random() < 0.5
            else:  # jobs are lost with their worker, or released by a worker that outlives the service
                whole = number == 0
                until(lambda: owners(services.database_url(data)), 60, "nobody holds a job")
            _pull_the_plug(server, whole=whole)
            traffic.stop()
        if whole and not soak:
            end_leases(services.database_url(data))
    assert known.wrong == []
    strays = list(services.incoming(data).iterdir())
    for stray in strays:  # as if a minute had passed
        os.utime(stray, (time.time() - 90,) * 2)
    with serving_here(settings_for(data), tiny, decoder) as service:
        count = _check(service, known)
    print(f"{known.answers} answers, {known.uploads} uploads, {count} videos, {len(strays)} strays")
    print(f"slowest start {slowest:.1f} s")
    assert known.uploads > 0
    assert known.answers > known.uploads
    assert not list(services.incoming(data).iterdir())
    with serving_here(settings_for(data), tiny, decoder) as service:
        assert _check(service, known) == count
