"""Benchmark HTTP: latency and throughput of the service, compared with the same calls in the process, in one run.

    python tests/bench/serve.py FOLDER [--videos 10000] [--precision float32]

A library of generated videos of 512 + 512 numbers and ten frames each, spread around real CLIP text vectors if
--vectors names a folder of them. The model is a ViT-B-32 with random weights. Other processes on the same cores send
requests to a real server:

    recommendations   GET, one after another over one connection, in milliseconds; `Recommender.search` for the same
                      videos in a separate process, in turn with the server; then eight connections at a time (by wrk,
                      else by Python), in requests per second
    ingesting         the same, and searches by new and by repeated words, 20 per second: first idle, then while the
                      clips of FOLDER (`<category>/<clip>`) are uploaded and embedded; 99th percentiles

The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))
from ingest import model_folder

from service.bootstrap import Runtime
from service.config import Settings
from service.database import db
from service.models import Generation, Weights
from service.operations.folder_scan import scan
from service.search.query import Reference, SearchQuery
from service.vectors import normalise, pack

FRAMES = 10


def fill(runtime: Runtime, count: int, vectors: Path | None) -> list[str]:
    """Put generated videos into the database, many rows per statement; return their ids."""
    generation: Generation = runtime.initialise()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, generation.dimension)).astype(np.float32)
    if vectors is not None:
        real = [np.load(path) for path in sorted(vectors.glob("*.npy"))]
        known = [one if one.shape[1] == generation.dimension else one.T for one in real]
        centres = np.concatenate([one for one in known if one.shape[1] == generation.dimension]).astype(np.float32)
    centres = normalise(centres)
    ids = [f"{number:016x}" for number in range(1, count + 1)]
    noise = 0.6 / np.sqrt(generation.dimension)
    for first in range(0, count, 1000):
        rows, vectors_of = [], []
        for number in range(first, min(first + 1000, count)):
            centre = centres[number % len(centres)]
            frames = normalise(centre + noise * rng.standard_normal((FRAMES, generation.dimension)).astype(np.float32))
            mean = normalise(frames.mean(axis=0, keepdims=True))
            text = normalise((centre + noise * rng.standard_normal(generation.dimension).astype(np.float32))[None])
            rows.append(_row(number, ids[number]))
            for kind, value in (("frame", frames), ("mean", mean), ("max", mean), ("text", text)):
                if kind != "text" or number % 5:
                    key = {"video_key": number + 1, "generation": generation.id, "kind": kind}
                    vectors_of.append({**key, "vectors": pack(value)})
        with runtime.db.write() as connection:
            connection.execute(sa.insert(db.videos), rows)
            connection.execute(sa.insert(db.embeddings), vectors_of)
            connection.execute(
                sa.insert(db.changes), [{"video_key": number + 1} for number in range(first, number + 1)]
            )
    return ids


def _row(number: int, video_id: str) -> dict[str, Any]:
    now = datetime(2026, 1, 1)
    return {
        "key": number + 1,
        "id": video_id,
        "sha256": f"{number:064x}",
        "size_bytes": 1,
        "filename": f"{number}.mp4",
        "title": f"clip {number}",
        "caption": f"what clip {number} shows #made #up" if number % 5 else None,
        "category": f"category {number % 20}",
        "status": "ready",
        "progress": 1.0,
        "num_frames": FRAMES,
        "media_type": "video/mp4",
        "codec": "h264",
        "width": 1280,
        "height": 720,
        "duration_seconds": 10.0,
        "frames_per_second": 25.0,
        "frame_times": [place + 0.5 for place in range(FRAMES)],
        "created_at": now,
        "updated_at": now,
    }


@contextmanager
def server(settings: Settings) -> Iterator[tuple[str, int]]:
    """Start a service over this library and wait until it is ready; yield host and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with subprocess.Popen(
        command,
        env={**os.environ, **settings.environ(), "REELSRS_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                        if answer.status == 200:
                            break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                time.sleep(0.2)
            yield "127.0.0.1", port
        finally:
            process.terminate()
            process.wait()


class Client:
    """HTTP client with one connection that stays open."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port)

    def ask(self, method: str, path: str, body: Any = None) -> float:
        """Send a request; return the milliseconds until the response is read. Raises RuntimeError if not status 200."""
        data = None if body is None else json.dumps(body)
        started = time.perf_counter()
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return (time.perf_counter() - started) * 1000


def in_process(settings: Settings, pipe: Any) -> None:
    """In a separate process: search for each video id received, and send back the milliseconds."""
    runtime = Runtime(settings, image_tower=False)
    recommender = runtime.serving.recommender
    pipe.send("ready")
    while (video := pipe.recv()) is not None:
        started = time.perf_counter()
        recommender.search(SearchQuery(weights=Weights(0.7, 0.3), fusion="cosine", references=(Reference(video),)))
        pipe.send((time.perf_counter() - started) * 1000)
    runtime.close()


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile of milliseconds."""
    return {f"p{point}": round(float(np.percentile(values, point)), 2) for point in (50, 95, 99)}


def recommendations(settings: Settings, ids: list[str], asked: int) -> dict[str, Any]:
    """Measure single requests over HTTP and in the process, in turn; then many at a time."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=in_process, args=(settings, theirs))
    worker.start()
    ours.recv()
    chosen = [ids[place] for place in np.random.default_rng(1).integers(0, len(ids), asked)]
    over_http, inside = [], []
    with server(settings) as (host, port):
        client = Client(host, port)
        for number, video in enumerate(chosen):
            elapsed = client.ask("GET", f"/v1/videos/{video}/recommendations")
            ours.send(video)
            within = ours.recv()
            if number >= 20:  # the first requests warm up caches
                over_http.append(elapsed)
                inside.append(within)
        ours.send(None)
        worker.join()
        rate = many(host, port, chosen)
    return {
        "over_http": percentiles(over_http),
        "in_the_process": percentiles(inside),
        "p50_above_the_process": round(float(np.median(over_http) - np.median(inside)), 2),
        **rate,
    }


def many(host: str, port: int, ids: list[str], seconds: int = 10) -> dict[str, Any]:
    """Measure requests per second from eight connections."""
    if shutil.which("wrk"):
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            paths = ",".join(f'"/v1/videos/{video}/recommendations"' for video in ids)
            script.write(f"local paths = {{{paths}}}\nlocal n = 0\n")
            script.write('request = function() n = n % #paths + 1; return wrk.format("GET", paths[n]) end\n')
            script.flush()
            command = ["wrk", "-t1", "-c8", f"-d{seconds}s", "--latency", "-s", script.name, f"http://{host}:{port}"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(said, file=sys.stderr)
        if "Non-2xx" in said:
            raise RuntimeError(said)
        return {"requests_per_second": float(said.split("Requests/sec:")[1].split()[0]), "asked_by": "wrk"}
    count, stop = [0] * 8, time.monotonic() + seconds

    def ask(number: int) -> None:
        client = Client(host, port)
        while time.monotonic() < stop:
            client.ask("GET", f"/v1/videos/{ids[count[number] % len(ids)]}/recommendations")
            count[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"requests_per_second": round(sum(count) / seconds, 1), "asked_by": "python"}


def asking(host: str, port: int, ids: list[str], until: Callable[[], bool]) -> dict[str, list[float]]:
    """Send 20 requests per second of three kinds, in turn; return the milliseconds by kind."""
    client = Client(host, port)
    found: dict[str, list[float]] = {"recommendations": [], "search_new_words": [], "search_same_words": []}
    number, due = 0, time.perf_counter()
    while not until():
        number += 1
        due = max(due + 0.05, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
        kind = list(found)[number % 3]
        if kind == "recommendations":
            elapsed = client.ask("GET", f"/v1/videos/{ids[number % len(ids)]}/recommendations")
        else:
            words = f"clip number {number}" if kind == "search_new_words" else "a dog on a beach"
            elapsed = client.ask("POST", "/v1/search/text", {"query": words})
        if number > 15:
            found[kind].append(elapsed)
    return found


def upload(host: str, port: int, clip: Path) -> None:
    """Upload one clip as a form. The statuses 415 and 422 are accepted."""
    edge = "----clip"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{clip.name}"\r\n\r\n'.encode()
    body = head + clip.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(
        f"http://{host}:{port}/v1/videos", body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
    )
    try:
        urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as error:
        if error.code not in (415, 422):
            raise


def while_ingesting(settings: Settings, ids: list[str], clips: list[Path], seconds: float) -> dict[str, Any]:
    """Measure the same requests while the service is idle, then while it embeds clips."""
    with server(settings) as (host, port):
        end = time.monotonic() + seconds
        idle = asking(host, port, ids, lambda: time.monotonic() > end)
        uploader = threading.Thread(target=lambda: [upload(host, port, clip) for clip in clips])
        uploader.start()
        time.sleep(3)  # until the worker has loaded its model
        end = time.monotonic() + seconds

        def done() -> bool:
            return time.monotonic() > end

        busy = asking(host, port, ids, done)
        with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
            left = next(
                line.split()[-1] for line in answer.read().decode().splitlines() if line.startswith("reelsrs_jobs")
            )
        uploader.join()
    return {
        "jobs_left_at_the_end": float(left),
        "milliseconds": {kind: {"idle": percentiles(idle[kind]), "busy": percentiles(busy[kind])} for kind in idle},
        "p99_busy_to_idle": {
            kind: round(percentiles(busy[kind])["p99"] / percentiles(idle[kind])["p99"], 2) for kind in idle
        },
    }


def main() -> None:
    """Run both measurements and print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--videos", type=int, default=10_000)
    arguments.add_argument("--precision", default="float32")
    arguments.add_argument("--vectors", type=Path, help="a folder of .npy files of CLIP vectors")
    arguments.add_argument("--asked", type=int, default=500)
    arguments.add_argument("--seconds", type=float, default=30.0, help="of idle and of busy questions each")
    arguments.add_argument("--skip-ingesting", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder("ViT-B-32", Path(scratch))
        settings = Settings(data_dir=Path(scratch) / "data", model=model, precision=given.precision)
        runtime = Runtime(settings, image_tower=False)
        ids = fill(runtime, given.videos, given.vectors)
        runtime.close()
        result = {"videos": given.videos, **recommendations(settings, ids, given.asked)}
        print(result, file=sys.stderr)
        if not given.skip_ingesting:
            clips = [entry.path for entry in scan(given.folder)]
            result["ingesting"] = while_ingesting(settings, ids, clips, given.seconds)
    print(json.dumps({"benchmark": "serve", "cores": os.cpu_count(), **result}))


if __name__ == "__main__":
    main()
