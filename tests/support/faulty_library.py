"""A library during a machine fault: client, checks during the fault, and checks after recovery."""

from __future__ import annotations

import random
import time
from pathlib import Path

import httpx
import numpy as np
import sqlalchemy as sa
import torch

from service.database import db, jobs
from service.database.db import Database
from service.embedding.loading import load
from service.embedding.towers import Tower
from service.timing import Timing
from tests.support import services
from tests.support.rows import check_against_rows, items_of_rows
from tests.support.server import Service
from tests.support.wait import until

RECOVERY_SECONDS = 60
QUICK = Timing(0.02, fault_pause_seconds=0.05, max_fault_pause_seconds=0.2, backoff_seconds=0.05)


class Library:
    """HTTP client of a server that remembers the ids of the acknowledged uploads."""

    def __init__(self, server: Service, clip: bytes) -> None:
        self.server = server
        self.client = server.client()
        self.client.timeout = httpx.Timeout(120)  # Seconds; longer than any wait in these tests.
        self.known: list[str] = []
        self._clip = clip
        self._rng = random.Random(5)

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def upload(self, **parameters: int) -> httpx.Response:
        """Upload a clip with unique bytes and a caption; remember its id if the upload succeeded."""
        number = self._rng.randrange(1 << 30)
        data = self._clip + b"\x00\x00\x00\x18free" + number.to_bytes(16, "big")
        form = {"caption": f"clip {number}", "category": "a"}
        answer = self.client.post("/v1/videos", files={"file": ("a.mp4", data)}, data=form, params=parameters)
        if answer.is_success:
            self.known.append(answer.json()["id"])
        return answer

    def reads(self, *, words: bool = True) -> None:
        """Check that all read requests succeed, including text search if `words`."""
        one = self.known[0]
        for path in ("", "/recommendations", "/content", "/thumbnail", "/frames", "/embeddings", "/duplicates"):
            answer = self.client.get(f"/v1/videos/{one}{path}")
            assert answer.status_code == 200, (path, answer.text)
        for path in ("/v1/videos", "/v1/categories", "/v1/info", "/v1/projections", "/livez", "/metrics"):
            assert self.client.get(path).status_code == 200, path
        if words:
            for group in ("video", "moment"):
                asked = {"query": f"clip {self._rng.random()}", "group_by": group}
                answer = self.client.post("/v1/search/text", json=asked)
                assert answer.status_code == 200, answer.text

    def checks(self) -> tuple[str, dict[str, str]]:
        """Return the status and the checks that /readyz reports."""
        answer = self.client.get("/readyz")
        assert answer.status_code == 200, answer.text
        return answer.json()["status"], answer.json()["checks"]

    def recovered(self) -> None:
        """Check that the library has recovered from a fault.

        Uploads, edits and deletions work. Every acknowledged video is ready within `RECOVERY_SECONDS`.
        The recommendations equal NumPy's over the database rows.
        """
        assert self.upload(wait=60).status_code == 201
        deadline = time.monotonic() + RECOVERY_SECONDS
        videos = {}
        while time.monotonic() < deadline:
            items = self.client.get("/v1/videos", params={"limit": 500}).json()["items"]
            videos = {video["id"]: video for video in items}
            if all(video["status"] == "ready" for video in videos.values()):
                break
            time.sleep(0.2)
        assert {video["status"] for video in videos.values()} == {"ready"}, videos
        assert not set(self.known) - videos.keys(), "acknowledged, and lost"
        self.reads()
        until(lambda: self.checks()[0] == "ok", 10, self.checks)  # The service checks again at most once a second.
        database = Database(services.database_url(self.server.data_dir))
        with database.read() as connection:
            assert jobs.depth(connection) == 0
            check_against_rows(self.client, items_of_rows(connection, videos))
        database.close()
        edited = self.client.patch(f"/v1/videos/{self.known[0]}", json={"caption": "new words"})
        assert edited.status_code == 200, edited.text
        assert self.client.delete(f"/v1/videos/{self.known.pop()}").status_code == 204


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("retry-after" in answer.headers) == (status == 503)


def tried_in_vain(data_dir: Path) -> None:
    """Wait until the worker has postponed and retried jobs more than 30 times."""
    database = Database(services.database_url(data_dir))
    put_off: set[float] = set()

    def often() -> bool:
        with database.read() as connection:
            put_off.update(connection.execute(sa.select(db.jobs.c.available_at)).scalars())
        return len(put_off) > 30

    until(often, 60, lambda: f"jobs were put off {len(put_off)} times")
    database.close()


def nothing_half_written(folder: Path) -> None:
    """Check that no temporary file remains.

    The worker may be writing now, so only a file that still exists seconds later counts.
    """
    seen = set(folder.rglob("*.tmp"))
    deadline = time.monotonic() + 5
    while seen and time.monotonic() < deadline:
        time.sleep(0.05)
        seen &= set(folder.rglob("*.tmp"))
    assert not seen, "half a file was left"


class FailingModel:
    """Small model whose towers fail according to `how`.

    Values of `how`: "" (no failure), "all" (every call), "some" (every third call), "memory" (MemoryError),
    "device" (out of device memory for batches larger than 1), "bright" (bright images only).
    """

    def __init__(self) -> None:
        self.how = ""
        self.failures = 0
        self._calls = 0
        self.model = load("tiny", device="cpu")
        self.model.image_tower = self._failing(self.model.image_tower)
        self.model.text_tower = self._failing(self.model.text_tower)

    def _failing(self, honest: Tower) -> Tower:
        def tower(inputs: np.ndarray) -> object:
            self._calls += 1
            error = self._error(inputs)
            if error is not None:
                self.failures += 1
                raise error
            return honest(inputs)

        return tower

    def _error(self, inputs: np.ndarray) -> Exception | None:
        if self.how == "all" or (self.how == "some" and self._calls % 3 == 0):
            return RuntimeError("the model is out of sorts")
        if self.how == "memory":
            return MemoryError()
        if self.how == "device" and len(inputs) > 1:
            return torch.OutOfMemoryError("no memory on the device")
        if self.how == "bright" and inputs.ndim == 4 and (inputs > 230).mean(axis=(1, 2, 3)).max() > 0.5:
            return RuntimeError("too bright")
        return None
