"""Clients that upload, search, edit and delete concurrently, and record what the service acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from tests.support.server import Server

UPLOADERS = 8


@dataclass
class Known:
    """What the service acknowledged, and changes that may have been made without a response."""

    captions: dict[str, set[str]] = field(default_factory=dict)  # by video id: the captions that it may have
    deleted: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)  # deletions without a response
    answers: int = 0
    uploads: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Traffic:
    """Client threads of one run of the server: 8 upload, the others search, edit and delete.

    Each thread ends at the first connection error or after `stop`.
    """

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
        """Stop the client threads and wait for them."""
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
            self._known.captions.get(name, set()).add(caption)  # may be written although the response is lost
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
