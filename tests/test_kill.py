"""The plug is pulled, again and again, under uploads, searches, edits and deletions.

After every start: what was acknowledged is there, nothing is stuck, the index answers as NumPy does over the rows, and
no file lies about that no row refers to. `pytest tests/test_kill.py --kills 100` for the long form; the moments are
drawn from the number of the kill.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service import catalog, db, jobs
from service.db import Database
from tests import backends
from tests.conftest import ClipMaker, Server, family, numbered, serving
from tests.oracle import Item, best, same, score

UPLOADERS = 8


@dataclass
class Known:
    """What the service has acknowledged, and what it may have done without a word before it died."""

    captions: dict[str, set[str]] = field(default_factory=dict)  # by id: the ones that may be
    deleted: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)  # deletions without an answer
    answers: int = 0
    uploads: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Traffic:
    """Clients of one run of the server; each ends when the server is gone."""

    def __init__(self, server: Server, known: Known, clip: bytes, number: int) -> None:
        self._server, self._known, self._clip, self._number = server, known, clip, number
        self._stop = threading.Event()
        work: list[Callable[[httpx.Client, random.Random], None]] = [
            *[self._upload] * UPLOADERS,
            self._search,
            self._edit,
            self._delete,
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(job, number * 100 + place)) for place, job in enumerate(work)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for all of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, job: Callable[[httpx.Client, random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        with self._server.client() as client, suppress(httpx.TransportError):
            while not self._stop.is_set():
                job(client, rng)

    def _answered(self, answer: httpx.Response) -> None:
        with self._known.lock:
            self._known.answers += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                self._known.wrong.append(f"{answer.request.method} {answer.request.url}: {answer.text}")

    def _upload(self, client: httpx.Client, rng: random.Random) -> None:
        unique = b"\x00\x00\x00\x18free" + rng.randbytes(16)
        caption = f"clip {rng.randrange(1000)}"
        form = {"caption": caption, "category": rng.choice(["a", "b"])}
        answer = client.post("/v1/videos", files={"file": ("a.mp4", self._clip + unique)}, data=form)
        self._answered(answer)
        if answer.is_success:
            with self._known.lock:
                self._known.captions[answer.json()["id"]] = {caption}
                self._known.uploads += 1

    def _one(self, rng: random.Random) -> str | None:
        with self._known.lock:
            return rng.choice(list(self._known.captions)) if self._known.captions else None

    def _search(self, client: httpx.Client, rng: random.Random) -> None:
        name = self._one(rng)
        if name and rng.random() < 0.5:
            self._answered(client.get(f"/v1/videos/{name}/recommendations"))
        else:
            self._answered(client.post("/v1/search/text", json={"query": f"clip {rng.randrange(9)}"}))

    def _edit(self, client: httpx.Client, rng: random.Random) -> None:
        name = self._one(rng)
        if name is None:
            return
        caption = f"edited {rng.randrange(1_000_000)}"
        with self._known.lock:
            self._known.captions.get(name, set()).add(caption)  # it may be written, and the answer lost
        answer = client.patch(f"/v1/videos/{name}", json={"caption": caption})
        self._answered(answer)
        if answer.is_success:
            with self._known.lock:
                if name in self._known.captions:
                    self._known.captions[name] = {caption}

    def _delete(self, client: httpx.Client, rng: random.Random) -> None:
        time.sleep(0.2)
        name = self._one(rng)
        if name is None:
            return
        with self._known.lock:
            self._known.doubtful.add(name)
        answer = client.delete(f"/v1/videos/{name}")
        self._answered(answer)
        if answer.is_success or answer.status_code == 404:
            with self._known.lock:
                self._known.doubtful.discard(name)
                self._known.deleted.add(name)
                self._known.captions.pop(name, None)


def _wait_for(known: Known, uploads: int) -> None:
    for _ in range(600):
        if known.uploads >= uploads:
            return
        time.sleep(0.1)
    raise AssertionError("no upload was acknowledged within a minute")


def _pull_the_plug(server: Server, rng: random.Random) -> None:
    """The service alone, or all of its processes at once."""
    everybody = {server.process.pid} if rng.random() < 0.5 else family(server.process.pid)
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()


def _settled(client: httpx.Client) -> list[dict[str, Any]]:
    """All videos, once none is on its way."""
    for _ in range(1200):
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = client.get("/v1/videos", params={"limit": 100, **({"cursor": cursor} if cursor else {})}).json()
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        if all(video["status"] in ("ready", "failed") for video in found):
            return found
        time.sleep(0.1)
    raise AssertionError([video for video in found if video["status"] not in ("ready", "failed")])


def _check(server: Server, known: Known) -> int:
    """Everything that was promised; how many videos there are."""
    with server.client() as client:
        videos = {video["id"]: video for video in _settled(client)}
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
        database = Database(backends.database_url(server.data_dir))
        with database.read() as connection:
            rows = set(connection.execute(sa.select(db.videos.c.sha256)).scalars())
            assert jobs.depth(connection) == 0
            items = _items(connection, videos)
        database.close()
        _ask(client, items)
    assert backends.clips(server.data_dir) == rows, "files without rows, or rows without files"
    assert not [name for name in backends.stored(server.data_dir) if "unsettled" in name]
    return len(videos)


def _items(connection: sa.Connection, videos: dict[str, dict[str, Any]]) -> list[Item]:
    """The oracle's view of the rows."""
    generation = catalog.active_generation(connection)
    assert generation is not None
    keys = {row.id: row.key for row in connection.execute(sa.select(db.videos.c.id, db.videos.c.key))}
    items = []
    for name in videos:
        mean = catalog.vectors(connection, keys[name], generation, "mean")
        text = catalog.vectors(connection, keys[name], generation, "text")
        assert mean is not None
        assert text is not None
        items.append(Item(name, mean[0], text[0]))
    return items


def _ask(client: httpx.Client, items: list[Item]) -> None:
    """Recommendations equal NumPy's over the rows."""
    for one in items[:: max(1, len(items) // 5)]:
        found = client.get(f"/v1/videos/{one.id}/recommendations", params={"k": 50}).json()["items"]
        scores = score(items, [(one.v, one.t, 1.0)], 0.7, 0.3)
        expected = best({name: value for name, value in scores.items() if name != one.id})[:50]
        same([(hit["video"]["id"], hit["score"]) for hit in found], expected)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the service's processes are found in /proc")
def test_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path, make_clip: ClipMaker, pytestconfig: pytest.Config
) -> None:
    known = Known()
    clip = make_clip("a.mp4", numbered(8)).read_bytes()
    slowest = 0.0
    for number in range(pytestconfig.getoption("kills")):
        rng = random.Random(number)
        started = time.monotonic()
        with serving(tmp_path / "data") as server:
            slowest = max(slowest, time.monotonic() - started)
            traffic = Traffic(server, known, clip, number)
            if number % 4:  # most in the middle of it, however slow the machine
                _wait_for(known, known.uploads + 1)
            time.sleep(rng.uniform(0.05, 4))
            _pull_the_plug(server, rng)
            traffic.stop()
        assert known.wrong == []
        with serving(tmp_path / "data") as server:
            count = _check(server, known)
    incoming = list(backends.incoming(tmp_path / "data").iterdir())
    print(f"{known.answers} answers, {known.uploads} uploads, {count} videos, {len(incoming)} strays")
    print(f"slowest start {slowest:.1f} s")
    assert known.uploads > 0
    assert known.answers > known.uploads
    for stray in incoming:  # as if a minute had passed
        os.utime(stray, (time.time() - 90,) * 2)
    with serving(tmp_path / "data") as server:
        assert _check(server, known) == count
    assert not list(backends.incoming(tmp_path / "data").iterdir())
