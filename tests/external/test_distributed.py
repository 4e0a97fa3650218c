"""Several services and workers over one PostgreSQL, one Milvus and one object store, under failures.

Each of these servers and workers dies or becomes unreachable during work. One more service has its own index.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from service.database import db, jobs
from service.database.db import Database
from tests.support.clips import ClipMaker, numbered
from tests.support.cluster import Cluster
from tests.support.wait import until

LONG = (200, 6)  # uploads, kills
SHORT = (24, 2)
AWAY_SECONDS = 4.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the services, without a worker."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
def clip(make_clip: ClipMaker) -> bytes:
    """Make a clip of half a second."""
    return make_clip("a.mp4", numbered(5)).read_bytes()


def _upload(client: httpx.Client, clip: bytes, number: int) -> httpx.Response:
    data = clip + b"\x00\x00\x00\x18free" + number.to_bytes(16, "big")
    form = {"caption": f"clip {number}", "category": "ab"[number % 2]}
    return client.post("/v1/videos", files={"file": ("a.mp4", data)}, data=form)


def _found(client: httpx.Client, words: str = "clip") -> list[dict[str, Any]]:
    """Return every searchable video, best first."""
    answer = client.post("/v1/search/text", json={"query": words, "k": 1000})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def _watch(client: httpx.Client, seen: dict[str, float], stop: threading.Event, every: float) -> None:
    """Record when this service first found each video."""
    while not stop.is_set():
        for hit in _found(client):
            seen.setdefault(hit["video"]["id"], time.monotonic())
        stop.wait(every)  # responses with hundreds of hits take time that workers need


def _agree(cluster: Cluster, ids: set[str]) -> None:
    """Check that every video is ready exactly once and that every service gives the same responses."""
    clients = cluster.clients()
    database = Database(cluster.url)
    with database.read() as connection:
        assert jobs.depth(connection) == 0
        status = sa.select(db.videos.c.id, db.videos.c.status, db.videos.c.error)
        assert {tuple(row) for row in connection.execute(status)} == {(name, "ready", None) for name in ids}
        kinds = sa.select(db.embeddings.c.video_key, sa.func.count()).group_by(db.embeddings.c.video_key)
        assert {count for _, count in connection.execute(kinds)} == {4}
    database.close()
    for words in ("clip", "a dog", "17"):
        one, *others = (_found(client, words) for client in clients)
        for other in others:
            assert [hit["video"] for hit in one] == [hit["video"] for hit in other]
            # The sums behind a z-score were added in a different order.
            assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-9)
        assert [hit["video"]["id"] for hit in one] == list(dict.fromkeys(hit["video"]["id"] for hit in one))
        assert {hit["video"]["id"] for hit in one} == ids
    some = sorted(ids)[0]
    for path in ("", "/recommendations?k=20", "/duplicates", "/frames", "/embeddings", "/frames/2", "/content"):
        answers = [client.get(f"/v1/videos/{some}{path}") for client in clients]
        assert {answer.status_code for answer in answers} == {200}, path
        assert len({answer.content for answer in answers}) == 1, path


def test_every_upload_is_ready_once_though_workers_die(cluster: Cluster, clip: bytes, soak: bool) -> None:
    wanted, kills = LONG if soak else SHORT
    rng = random.Random(7)
    cluster.kill_all()
    before = cluster.ids()
    for _ in range(3):
        cluster.work()
    cluster.started()
    stop, killed = threading.Event(), threading.Event()
    numbers = count()
    seen: list[dict[str, float]] = [{}, {}, {}]
    acknowledged: dict[str, float] = {}

    def upload() -> None:
        while (number := next(numbers)) < wanted or not killed.is_set():
            began = time.monotonic()
            answer = _upload(clients[number % 2], clip, number)
            assert answer.status_code == 202, answer.text
            acknowledged[answer.json()["id"]] = began
            if number >= wanted:  # keep the workers busy, but do not overload them
                killed.wait(2)

    clients = cluster.clients()
    watchers = [
        threading.Thread(target=_watch, args=(client, found, stop, 0.2 if soak else 1))
        for client, found in zip(clients, seen, strict=True)
    ]
    for watcher in watchers:
        watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            uploading = [pool.submit(upload) for _ in range(4)]
            try:
                for _ in range(kills):
                    time.sleep(rng.uniform(1, 4) if soak else 0)
                    until(cluster.busy, 120, "no worker holds a job", every=0.1)
                    cluster.kill(rng.choice(cluster.busy() or list(cluster.workers)))
                    cluster.work()
            finally:
                killed.set()
            for one in uploading:
                one.result()
        until(lambda: all(acknowledged.keys() <= found.keys() for found in seen), 300, "not all are found by all")
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()
    took = [max(found[name] for found in seen) - began for name, began in acknowledged.items()]
    behind = [max(found[name] for found in seen) - min(found[name] for found in seen) for name in acknowledged]
    print(f"searchable by all after {np.percentile(took, 50):.2f} s (p50), {np.percentile(took, 99):.2f} s (p99)")
    print(
        f"the last after the first by {np.percentile(behind, 50):.2f} s (p50), {np.percentile(behind, 99):.2f} s (p99)"
    )
    assert len(acknowledged) >= wanted
    _agree(cluster, before | set(acknowledged))


def test_what_goes_away_comes_back(cluster: Cluster, clip: bytes) -> None:  # noqa: PLR0915 one story, told in order
    """Stop the object store, Milvus, the database and all workers in turn, during uploads and searches."""
    if not cluster.workers:
        cluster.work()
    cluster.started()
    first, second, alone = cluster.clients()
    known = cluster.ids()
    number = 10_000

    def upload(expected: int) -> None:
        nonlocal number
        number += 1
        answer = _upload((first, second)[number % 2], clip, number)
        assert answer.status_code == expected, answer.text
        if answer.is_success:
            known.add(answer.json()["id"])
            return
        assert answer.headers["content-type"] == "application/problem+json"
        assert "retry-after" in answer.headers

    for _ in range(6):
        upload(202)
    until(lambda: _found(first), 60, "nothing is embedded")

    # Object store away: known videos are still searchable; clips can be neither uploaded nor downloaded.
    cluster.cable.cut()
    try:
        upload(503)
        assert _found(first)
        answer = second.get(f"/v1/videos/{min(known)}/content")
        assert answer.status_code == 503, answer.text
        assert "s3://" in answer.json()["detail"]
        health = first.get("/readyz").json()
        assert health["status"] == "degraded"
        assert "s3://" in health["checks"]["storage"]
        time.sleep(AWAY_SECONDS)
    finally:
        cluster.cable.mend()
    upload(202)

    # Milvus away: services that use it refuse searches; clips are still accepted and embedded.
    cluster.vectors.cut()
    try:
        for client in (first, second):
            answer = client.post("/v1/search/text", json={"query": "clip"})
            assert answer.status_code == 503, answer.text
            assert "the vector store cannot be reached" in answer.json()["detail"]
            assert "retry-after" in answer.headers
            health = client.get("/readyz")
            assert (health.status_code, health.json()["checks"]["database"]) == (503, "ok")
            assert client.get(f"/v1/videos/{min(known)}").status_code == 200
        for _ in range(2):
            upload(202)
        assert "reelsrs_jobs" in first.get("/metrics").text
        until(lambda: {hit["video"]["id"] for hit in _found(alone)} == known, 120, "not embedded meanwhile")
        time.sleep(AWAY_SECONDS)
    finally:
        cluster.vectors.mend()
    until(lambda: first.get("/readyz").status_code == second.get("/readyz").status_code == 200, 60, "not ready again")
    assert {hit["video"]["id"] for hit in _found(first)} == known

    # Database away: all requests that need it get a 503.
    cluster.postgresql.stop("immediate")
    try:
        upload(503)
        for client in (first, second, alone):
            answer = client.post("/v1/search/text", json={"query": "clip"})
            assert answer.status_code == 503, answer.text
            assert "database" in answer.json()["detail"]
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 200
        time.sleep(AWAY_SECONDS)
    finally:
        cluster.postgresql.start()
    until(lambda: first.get("/readyz").status_code == second.get("/readyz").status_code == 200, 60, "not ready again")
    upload(202)

    # No workers: clips are accepted and wait in the queue.
    cluster.kill_all()
    for _ in range(4):
        upload(202)
    cluster.work()
    cluster.started()
    everyone = (first, second, alone)
    until(lambda: all({hit["video"]["id"] for hit in _found(one)} == known for one in everyone), 180, "late")
    _agree(cluster, known)
    for service in cluster.services:
        assert service.process.poll() is None
        assert "Traceback" not in service.log.read_text()


def test_a_worker_that_is_asked_to_stop_gives_back_what_it_holds(cluster: Cluster, clip: bytes) -> None:
    cluster.kill_all()
    client = cluster.clients()[0]
    ids = {_upload(client, clip, 20_000 + number).json()["id"] for number in range(12)}
    cluster.work()
    cluster.started()
    until(lambda: any(client.get(f"/v1/videos/{name}").json()["status"] != "queued" for name in ids), 60, "idle")
    _, process = cluster.workers.popitem()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    states = {client.get(f"/v1/videos/{name}").json()["status"] for name in ids}
    assert states <= {"queued", "ready"}, states
    cluster.work()
    cluster.started()
    until(lambda: all(client.get(f"/v1/videos/{name}").json()["status"] == "ready" for name in ids), 60, "not taken up")
