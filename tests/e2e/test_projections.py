"""Tests of projections over REST, fitted by a real worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support.clips import ClipMaker, numbered
from tests.support.library import PreparedLibrary, settings_for
from tests.support.server import Server, serving, serving_here
from tests.support.wait import until

ARROW = "application/vnd.apache.arrow.stream"


def _state(client: httpx.Client, url: str, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the state of a projection once `met` returns true for it."""
    states: list[dict[str, Any]] = []

    def asked() -> bool:
        states.append(client.get(url).raise_for_status().json())
        return met(states[-1])

    until(asked, 300, lambda: states[-1], every=0.05)
    return states[-1]


def _ready(client: httpx.Client, **wanted: object) -> dict[str, Any]:
    answer = client.post("/v1/projections", json=wanted)
    assert answer.status_code in (200, 202), answer.text
    state: dict[str, Any] = _state(
        client, answer.headers["location"], lambda state: state["status"] in ("ready", "failed")
    )
    assert state["status"] == "ready", state
    return state


def test_a_map_is_asked_for_watched_and_drawn(client: httpx.Client) -> None:
    wanted = {"embedding": "aggregated", "method": "tsne", "dimensions": 2, "seed": 3}
    asked = client.post("/v1/projections", json=wanted)
    assert asked.status_code == 202
    state = asked.json()
    assert asked.headers["location"] == f"/v1/projections/{state['id']}"
    assert state["parameters"] == {"perplexity": 30.0}
    assert client.post("/v1/projections", json=wanted).status_code == 200
    early = client.get(state["points_url"])
    if early.status_code != 200:  # the worker may already have finished
        assert early.status_code == 409
        assert "projection" in early.json()["detail"]
    state = _ready(client, **wanted)
    assert (state["progress"], state["error"], state["placed"], state["missing"]) == (1.0, None, 0, 0)
    ready = client.get("/v1/videos", params={"status": "ready", "limit": 500}).json()["items"]
    points = client.get(state["points_url"]).json()["items"]
    assert len(points) == state["points"] <= len(ready)
    category = {video["id"]: video["category"] for video in ready}
    for point in points:
        assert point["category"] == category[point["video_id"]]
        assert (point["frame"], point["time"], len(point["coordinates"])) == (None, None, 2)
    assert state["id"] in [one["id"] for one in client.get("/v1/projections").json()["items"]]


def test_points_of_frames_as_json_and_as_arrow(client: httpx.Client) -> None:
    state = _ready(client, embedding="frame", method="pca", dimensions=3)
    points = client.get(state["points_url"]).json()["items"]
    answer = client.get(state["points_url"], headers={"Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column_names == ["video_id", "frame", "time", "category", "x", "y", "z"]
    rows = table.to_pylist()
    assert len(rows) == len(points) == state["points"]
    for row, point in zip(rows, points, strict=True):
        assert (row["video_id"], row["frame"], row["category"]) == (
            point["video_id"],
            point["frame"],
            point["category"],
        )
        assert row["time"] == pytest.approx(point["time"], abs=1e-4)
        assert [row["x"], row["y"], row["z"]] == pytest.approx(point["coordinates"], rel=1e-5)
    beside = sum(table.column(name).nbytes for name in table.column_names if name != "video_id")
    assert beside <= 24 * len(rows) + 200  # category names, and null masks
    times = {row["frame"]: row["time"] for row in rows if row["video_id"] == rows[0]["video_id"]}
    frames = client.get(f"/v1/videos/{rows[0]['video_id']}/frames").json()["items"]
    assert times == pytest.approx({frame["n"]: frame["time"] for frame in frames})


def test_points_are_sent_once_and_compressed(client: httpx.Client) -> None:
    state = _ready(client, embedding="frame", method="pca")
    for kind in ("application/json", ARROW):
        first = client.get(state["points_url"], headers={"Accept": kind})
        assert first.headers["content-encoding"] == "gzip"
        tag = first.headers["etag"]
        again = client.get(state["points_url"], headers={"Accept": kind, "If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = client.get(state["points_url"], headers={"Accept": kind, "If-None-Match": '"another"'})
        assert other.status_code == 200
        plain = client.get(state["points_url"], headers={"Accept": kind, "Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == first.content
    assert "Accept" in first.headers["vary"]


@pytest.mark.parametrize("method", ["umap", "tsne", "pca"])
def test_a_map_that_is_laid_out_again_is_the_same_bytes(client: httpx.Client, method: str) -> None:
    state = _ready(client, embedding="frame", method=method, seed=1)
    before = client.get(state["points_url"], headers={"Accept": ARROW}).content
    again = client.post(f"/v1/projections/{state['id']}/fit")
    assert again.status_code == 202
    after = _state(client, again.headers["location"], lambda now: now["fitted_at"] != state["fitted_at"])
    assert after["version"] != state["version"]
    if after["points"] == state["points"]:  # other tests share this server
        assert client.get(state["points_url"], headers={"Accept": ARROW}).content == before


def test_a_map_is_deleted_and_a_layout_cancelled(client: httpx.Client) -> None:
    done = _ready(client, method="pca", seed=11)
    queued = [client.post("/v1/projections", json={"method": "umap", "seed": seed}).json() for seed in (21, 22)]
    for state in queued:
        cancelled = client.delete(f"/v1/projections/{state['id']}/fit").json()
        assert (cancelled["status"], cancelled["error"]) == ("failed", "cancelled")
        assert client.get(state["points_url"]).status_code == 409
    kept = client.delete(f"/v1/projections/{done['id']}/fit").json()
    assert (kept["status"], kept["points"]) == ("ready", done["points"])
    for state in (done, *queued):
        url = f"/v1/projections/{state['id']}"
        assert client.delete(url).status_code == 204
        assert client.get(url).status_code == 404
        assert client.get(f"{url}/points").status_code == 404
        assert client.delete(url).status_code == 404


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("method", {"method": "mds"}),
        ("embedding", {"embedding": "audio"}),
        ("dimensions", {"dimensions": 4}),
        ("seed", {"seed": -1}),
        ("seeds", {"seeds": 1}),
        ("parameters.perplexity", {"method": "tsne", "parameters": {"perplexity": 1}}),
        ("parameters.n_neighbors", {"parameters": {"n_neighbors": "many"}}),
        ("parameters.depth", {"parameters": {"depth": 1}}),
    ],
)
def test_a_wrong_question_is_named(client: httpx.Client, field: str, wanted: dict[str, Any]) -> None:
    answer = client.post("/v1/projections", json=wanted)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_maps_grow_with_the_library(
    tmp_path: Path, make_clip: ClipMaker, drawn: Path, tiny: Encoder, decoder: Decoder
) -> None:
    """Start with an empty library: a small projection is fitted again each time it doubles."""
    with serving_here(settings_for(tmp_path / "data"), tiny, decoder) as running, running.client() as client:
        empty = _ready(client, method="tsne")
        assert (empty["points"], client.get(empty["points_url"]).json()["items"]) == (0, [])
        url = f"/v1/projections/{empty['id']}"
        for number in range(3):
            _upload(client, make_clip(f"{number}.mp4", numbered(6 + 5 * number)))
        grown = _state(client, url, lambda state: state["status"] == "ready" and state["points"] == 3)
        assert grown["missing"] == 0
        for clip in sorted(drawn.rglob("*.mp4")):
            _upload(client, clip)
        _state(client, url, lambda state: state["status"] == "ready" and state["points"] == 15)


def test_a_map_outlives_a_worker_and_a_restart(
    tmp_path: Path, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> None:
    """A worker killed during a fit is replaced, and so is the whole service."""
    data = prepared.copied(tmp_path / "data", drawn, tiny, decoder)
    with serving(data) as running, running.client() as client:
        asked = client.post("/v1/projections", json={"method": "tsne", "seed": 5}).json()
        url = f"/v1/projections/{asked['id']}"
        _state(client, url, lambda state: state["status"] == "running")
        _kill_worker(running)
        first = _state(client, url, lambda state: state["status"] == "ready")
        assert first["points"] == 12
        client.post(f"{url}/fit")
        _state(client, url, lambda state: state["status"] == "running")
    with serving_here(settings_for(data), tiny, decoder) as service, service.client() as client:
        again = _state(client, url, lambda state: state["status"] == "ready")
        assert again["fitted_at"] > first["fitted_at"]
        assert again["points"] == 12


def _upload(client: httpx.Client, clip: Path) -> None:
    with clip.open("rb") as file:
        answer = client.post("/v1/videos", params={"wait": 60}, files={"file": (clip.name, file)})
    assert answer.status_code == 201, answer.text


def _kill_worker(server: Server) -> None:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for child in children:
        if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)


def test_a_failed_video_is_tried_again(client: httpx.Client) -> None:
    ready = client.get("/v1/videos", params={"status": "ready", "limit": 1}).json()["items"][0]
    answer = client.post(f"/v1/videos/{ready['id']}/retry")
    assert (answer.status_code, answer.json()) == (200, ready)  # the video had not failed
    assert client.post("/v1/videos/of-nobody/retry").status_code == 404
