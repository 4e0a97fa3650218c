"""Tests of re-embedding over REST: requested, run beside the active generation under traffic, and killed once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support.checkpoints import small_vit
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.processes import family
from tests.support.rest import check_recommendations, items, upload
from tests.support.server import Server, Service, serving, serving_here
from tests.support.wait import until


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a checkpoint of another architecture: random weights and another vector dimension."""
    return small_vit(tmp_path_factory.mktemp("vit"), seed=0)


def _state(client: httpx.Client, url: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    states: list[dict[str, Any]] = []

    def asked() -> bool:
        states.append(client.get(url).json())
        return condition(states[-1])

    until(asked, 240, lambda: states[-1])
    return states[-1]


def _begin(server: Server, clips: list[Path], model: str) -> str:
    """Upload clips, request another model and kill the server during re-embedding; return the address of its state."""
    with server.client() as client:
        for clip in clips:
            assert upload(client, clip, wait=0, caption=f"clip {clip.stem}").status_code == 202
        _state(client, "/v1/info", lambda info: info["videos"].get("ready") == len(clips))
        wrong = client.post("/v1/generations", json={"model": "no-such/model"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "model")
        asked = client.post("/v1/generations", json={"model": model})
        assert asked.status_code == 202, asked.text
        url = asked.headers["location"]
        assert client.post("/v1/generations", json={"model": model}).status_code == 200
        early = client.put(f"{url}/activation")
        assert (early.status_code, early.headers["content-type"]) == (409, "application/problem+json")
        seen = _state(client, url, lambda state: state["embedded"] > 0)["embedded"]
        for pid in family(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
    print(f"{seen} of {len(clips)} were embedded by the other model when the plug was pulled")
    return url


@contextmanager
def _asking(server: Service, least: int) -> Iterator[None]:
    """Search in a loop during the block and check that each search succeeds."""
    wrong: list[str] = []
    done = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not done.is_set():
                answer = client.post("/v1/search/text", json={"query": "grey", "k": 50})
                if answer.status_code != 200 or len(answer.json()["items"]) < least:
                    wrong.append(answer.text)
                done.wait(0.2)  # leave CPU time for the re-embedding

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert wrong == []


def test_a_model_is_changed_under_traffic_and_a_kill(
    tmp_path: Path, make_clip: ClipMaker, checkpoint: str, tiny: Encoder, decoder: Decoder
) -> None:
    data = tmp_path / "data"
    clips = [make_clip(f"{count}.mp4", numbered(count)) for count in range(8, 28)]
    with serving(data) as server:
        url = _begin(server, clips[:16], checkpoint)
    settings = settings_for(data)
    with serving_here(settings, tiny, decoder) as server, server.client() as client, _asking(server, 16):
        everything = items(client)
        first = client.get("/v1/info").json()["generation"]
        for clip in clips[16:]:
            assert upload(client, clip, wait=60, caption=f"clip {clip.stem}").status_code == 201
        check_recommendations(client, items(client), [everything[0].id])
        state = _state(client, url, lambda state: state["status"] == "ready" and state["embedded"] == 20)
        assert (state["progress"], state["total"], state["error"]) == (1.0, 20, None)
        evaluated = client.get(f"{url}/evaluation").json()
        assert [one["id"] for one in evaluated["generations"]] == [first, state["id"]], "the active one first"
        assert (evaluated["videos"], evaluated["ready_videos"], evaluated["captioned_videos"]) == (20, 20, 20)
        (difference,) = evaluated["differences"]
        assert {one["verdict"] for one in difference["figures"]} <= {"better", "worse", "no clear difference"}
        alone = client.get(f"/v1/generations/{first}/evaluation").json()
        assert (alone["generations"], alone["differences"]) == (evaluated["generations"][:1], [])
        assert client.get("/v1/generations/g0/evaluation").status_code == 404
        recommendations = f"/v1/videos/{everything[0].id}/recommendations"
        before = client.get(recommendations).json()
        assert client.put(f"{url}/activation").json()["status"] == "active"
        info = client.get("/v1/info").json()
        assert (info["model"], info["dimension"]) == (checkpoint, state["dimension"])
        assert info["index"]["size"] == 20, "in one step"
        now = items(client)
        assert len(now[0].v) == state["dimension"] != len(everything[0].v)
        check_recommendations(client, now, [item.id for item in now[:5]])
        assert client.put(f"/v1/generations/{first}/activation").status_code == 200
        assert client.get(recommendations).json() == before
        assert client.put(f"{url}/activation").status_code == 200
        assert upload(client, make_clip("after.mp4", numbered(50)), wait=60).status_code == 201
        names = {one["id"]: one["status"] for one in client.get("/v1/generations").json()["items"]}
        assert names == {first: "ready", state["id"]: "active"}
    with serving_here(settings, tiny, decoder) as server, server.client() as client:  # unchanged settings: no switch
        assert client.get("/v1/info").json()["model"] == checkpoint
        now = items(client)
        assert len(now) == 21
        check_recommendations(client, now, [now[0].id])
