"""Measure the figures for planning beyond one machine.

They are: the cost of a clip for the database's single writer, the cost of a row for a search in Milvus, and the effect
of many shards on the slowest responses.

    python -m tests.bench.plan [--clips 2000] [--rows 50000]

Starts a PostgreSQL and a Milvus server. Prints figures, and as its last line all of them as JSON.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import sqlalchemy as sa

from service.database import change_log, db, generation_rows, jobs, vector_rows, video_rows
from service.database.db import Database
from service.index.milvus import MilvusIndex
from service.models import Generation, Probe, Sampling
from service.vectors import aggregate, normalise
from tests.support import services

D, FRAMES = 512, 10
GENERATION = Generation("bench", "bench", D, "float32")
PROBE = Probe("video/mp4", "h264", 640, 360, 10.0, 30.0)


def main() -> None:
    """Start the servers, measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    postgresql, milvus = services.PostgreSQL(durable=True), services.Milvus()
    try:
        url = postgresql.url("plan")
        db.upgrade(url)
        database = Database(url)
        found = {
            "clips a second through the one writer": {
                n: round(writer(database, options.clips, n)) for n in (1, 2, 4, 8)
            },
            "bytes a clip in the database": size(database),
            **search(database, milvus.uri, options.rows),
        }
        database.close()
    finally:
        milvus.remove()
        postgresql.remove()
    print(json.dumps(found))


def writer(database: Database, count: int, threads: int) -> float:
    """Measure how many clips per second pass through the database from `threads` threads, each acting as a process.

    A clip needs: adding the row and its job, claim, storing the vectors, and finishing. Nothing is decoded or embedded.
    """
    rng = np.random.default_rng(threads)
    embeddings = [
        aggregate(normalise(rng.standard_normal((FRAMES, D))), normalise(rng.standard_normal(D))) for _ in range(50)
    ]
    with database.write() as connection:
        generation_rows.activate_generation(connection, GENERATION)
    names = iter(range(count))
    lock = threading.Lock()

    def work(number: int) -> None:
        owner = f"worker-{threads}-{number}"
        while True:
            with lock:
                name = next(names, None)
            if name is None:
                return
            with database.write() as connection:  # the service
                video = video_rows.add_video(
                    connection,
                    sha256=f"{threads:032x}{name:032x}",
                    size_bytes=1,
                    filename="a.mp4",
                    title="a",
                    caption="a caption of some words, as people write them",
                    category="sport",
                    sampling=Sampling(FRAMES),
                    probe=PROBE,
                )
                jobs.enqueue(connection, video.pk)
            with database.write() as connection:  # the worker, from here on; a real worker claims four at a time
                keys = jobs.claim(connection, owner, 1)
            for key in keys:
                with database.write() as connection:
                    video_rows.set_status(connection, key, "processing", 0.5)
                with database.write() as connection:
                    vector_rows.put_embeddings(connection, key, GENERATION, embeddings[name % 50])
                    video_rows.update_video(
                        connection, key, status="ready", progress=1.0, frame_times=[float(n) for n in range(FRAMES)]
                    )
                    jobs.finish(connection, key)
                    change_log.record_change(connection, key)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()
    speed = count / (time.perf_counter() - began)
    print(f"{threads} at a time: {speed:.0f} clips a second")
    return speed


def size(database: Database) -> dict[str, int]:
    """Return bytes per clip of each table with its indexes, after a vacuum."""
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("VACUUM FULL"))
        count = connection.execute(sa.select(sa.func.count()).select_from(db.videos)).scalar_one()
        found = {
            table: round(connection.execute(sa.text(f"SELECT pg_total_relation_size('{table}')")).scalar_one() / count)
            for table in ("videos", "embeddings", "changes")
        }
    engine.dispose()
    print(f"bytes a clip: {found}")
    return found


def search(database: Database, uri: str, rows: int) -> dict[str, object]:
    """Time exact Milvus searches over `rows` rows, and simulate the same searches over many shards at once."""
    rng = np.random.default_rng(0)
    follower = MilvusIndex(database, uri, GENERATION, "mean", exact_up_to=10**9)
    with follower.current() as (view, _):
        there = len(view)
        name = view.name
    client = follower.client
    for start in range(there, rows, 1000):
        batch = normalise(rng.standard_normal((min(1000, rows - start), 2 * D + 1)))
        some = [
            {"id": 10**9 + start + n, "video": 10**9 + start + n, "category": "", "vector": row}
            for n, row in enumerate(batch)
        ]
        client.insert(name, some)
    follower.collections.await_visible(name)
    query = normalise(rng.standard_normal(2 * D + 1)).tolist()
    took = []
    for _ in range(400):
        began = time.perf_counter()
        client.search(name, [query], limit=64, output_fields=["id"], consistency_level="Bounded")
        took.append(time.perf_counter() - began)
    follower.close()
    milliseconds = 1000 * np.array(took[50:])
    # A response from many shards is complete when the slowest shard has responded. With a second try, sent after the
    # 95th percentile of the first, the faster of both counts (Dean and Barroso, The Tail at Scale, 2013).
    shards: dict[int, dict[str, float]] = {}
    for count in (1, 10, 100, 1000):
        drawn = rng.choice(milliseconds, (2000, count))
        late = np.percentile(milliseconds, 95)
        again = np.minimum(drawn, late + rng.choice(milliseconds, drawn.shape))
        shards[count] = {
            "p50": round(float(np.median(drawn.max(axis=1))), 1),
            "p99": round(float(np.percentile(drawn.max(axis=1), 99)), 1),
            "p99 with a second try": round(float(np.percentile(again.max(axis=1), 99)), 1),
        }
    print(f"one search over {rows} rows: {np.median(milliseconds):.1f} ms; of shards {shards}")
    return {"rows of a shard": rows, "milliseconds of answers from shards": shards}


if __name__ == "__main__":
    main()
