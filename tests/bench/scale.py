"""Benchmark scaling: clips per second through PostgreSQL and an object store with 1, 2 and 4 workers, in one run.

    python -m tests.bench.scale [--frames-per-second 20] [--clips 60] [--workers 1 2 4]

A substitute for the model takes a fixed time for each frame and computes nothing. This measures the rest: claims,
decoding of ranges, rows, thumbnails, and contention between workers. Everything else is real: PostgreSQL with fsync, an
S3 server, worker processes. Clips have ten frames each.

`clips_per_second` counts from the first to the last quarter of the queued clips, while all workers are busy. `linear`
divides that rate by the rate of one worker times the number of workers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from service.bootstrap import Runtime
from service.config import Settings
from service.database import db
from service.database.db import Database
from service.ingestion.ingest import check_metadata
from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import distinct_scenes
from service.models import Sampling
from tests.bench.model_patch import stand_in
from tests.support.services import ObjectStore, PostgreSQL

STAND_IN = """
import os, time

def install(module):
    import numpy as np
    cost = float(os.environ["STAND_IN_SECONDS"])

    def embed_images(self, pixels):
        time.sleep(cost * len(pixels))
        rng = np.random.default_rng(0)
        found = rng.standard_normal((len(pixels), self.generation.dimension)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    module.Encoder.embed_images = embed_images
"""


def fill(settings: Settings, clip: bytes, count: int, start: int) -> None:
    """Queue `count` clips, each with unique bytes."""
    runtime = Runtime(settings)
    runtime.initialise()
    for number in range(start, start + count):
        with runtime.ingest.receive() as incoming:
            incoming.write(clip + b"\x00\x00\x00\x0cfree" + number.to_bytes(4, "big"))
            incoming.finish()
            runtime.ingest.accept(
                incoming, check_metadata(f"{number}.mp4", sampling=Sampling(10), caption=f"clip {number}")
            )
    runtime.close()


def ready(database: Database) -> int:
    """Return the number of ready videos."""
    with database.read() as connection:
        return connection.execute(
            sa.select(sa.func.count()).select_from(db.videos).where(db.videos.c.status == "ready")
        ).scalar_one()


def measure(folder: Path, environment: dict[str, str], database: Database, workers: int, clips: int) -> float:
    """Start this number of workers, return the clips per second, and stop the workers."""
    before = ready(database)
    processes = []
    for number in range(workers):
        with (folder / f"worker-{number}.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "service", "worker"],
                    env={**environment, "REELSRS_DATA_DIR": str(folder / f"worker-{number}")},
                    stdout=log,
                    stderr=log,
                )
            )
    times: list[float] = []
    while len(times) < clips:
        done = ready(database) - before
        times += [time.perf_counter()] * (done - len(times))
        time.sleep(0.02)
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
    low, high = clips // 4, clips * 3 // 4
    return (high - low) / (times[high] - times[low])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames-per-second", type=float, default=20.0, help="of the stand-in, a worker")
    parser.add_argument("--clips", type=int, default=60, help="for each worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    postgresql, objects = PostgreSQL(durable=True), ObjectStore()
    os.environ.update(objects.environment)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_clip(distinct_scenes(1, seed=1)[0], folder / "clip.mp4", seconds=2, fps=10, width=160, height=120)
            clip = (folder / "clip.mp4").read_bytes()
            url, store = postgresql.url("library"), objects.url("library")
            settings = Settings(
                data_dir=folder / "data", model="tiny", device="cpu", database_url=url, storage_url=store
            )
            environment = {
                **os.environ,
                **stand_in(folder / "stand-in", STAND_IN),
                "STAND_IN_SECONDS": str(1 / arguments.frames_per_second),
                "OMP_NUM_THREADS": "1",
                "REELSRS_MODEL": "tiny",
                "REELSRS_DEVICE": "cpu",
                "REELSRS_DATABASE_URL": url,
                "REELSRS_STORAGE_URL": store,
            }
            rates: dict[int, float] = {}
            queued = 0
            for workers in arguments.workers:
                fill(settings, clip, arguments.clips * workers, queued)
                queued += arguments.clips * workers
                database = Database(url)
                rates[workers] = measure(folder, environment, database, workers, arguments.clips * workers)
                database.close()
                one = rates[arguments.workers[0]] / arguments.workers[0]
                print(
                    f"{workers} workers: {rates[workers]:.2f} clips/s, {rates[workers] / workers / one:.2f} of linear"
                )
    finally:
        postgresql.remove()
        objects.remove()
    one = rates[arguments.workers[0]] / arguments.workers[0]
    linear = {workers: round(rate / workers / one, 3) for workers, rate in rates.items()}
    print(json.dumps({"clips_per_second": rates, "linear": linear, "stand_in": arguments.frames_per_second}))


if __name__ == "__main__":
    main()
