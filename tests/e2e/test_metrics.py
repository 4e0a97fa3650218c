"""What Prometheus is shown by services and workers, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support import services
from tests.support.clips import ClipMaker, numbered
from tests.support.paths import ROOT
from tests.support.processes import CHILD_ENVIRONMENT
from tests.support.server import Service, serving

DASHBOARD = ROOT / "service" / "grafana.json"


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in\n{text}"
    return float(found[1])


def test_a_worker_shows_what_it_does_and_the_dashboard_knows_it(tmp_path: Path, make_clip: ClipMaker) -> None:
    port = services.free_port()
    data = tmp_path / "data"
    with serving(data, "--no-worker") as server, server.client() as client:
        with make_clip("a.mp4", numbered(5)).open("rb") as file:
            assert client.post("/v1/videos", files={"file": ("a.mp4", file)}).status_code == 202
        time.sleep(1)
        waiting = client.get("/metrics").text
        assert _value(waiting, "reelsrs_jobs") == 1
        assert _value(waiting, "reelsrs_oldest_job_seconds") >= 1
        environment = {"REELSRS_MODEL": "tiny", "REELSRS_DATA_DIR": str(data), **services.environment(data)}
        worker = subprocess.Popen(
            [sys.executable, "-m", "service", "worker", "--metrics", f"127.0.0.1:{port}"],
            env={**CHILD_ENVIRONMENT, **environment},
        )
        try:
            shown = _shown(client, port)
        finally:
            worker.terminate()
            worker.wait(30)
        assert _value(shown, 'reelsrs_worker_clips_total{outcome="ready"}') == 1
        assert _value(shown, "reelsrs_worker_frames_total") == 5
        assert _value(shown, "reelsrs_worker_batch_fill_count") == 1
        assert _value(shown, "reelsrs_worker_lag_seconds_count") == 1
        assert _value(shown, "reelsrs_worker_lag_seconds_sum") >= 1
        for step in ("decode", "embed", "store"):
            assert _value(shown, f'reelsrs_worker_seconds_count{{step="{step}"}}') == 1
        after = client.get("/metrics").text
        assert _value(after, "reelsrs_jobs") == _value(after, "reelsrs_oldest_job_seconds") == 0
        assert _value(after, "reelsrs_index_videos") == 1
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"reelsrs_\w+", target["expr"])
    }
    there = set(re.findall(r"^(reelsrs_\w+)", shown + after, re.MULTILINE))
    assert asked <= there, asked - there
    assert {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in there} == {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked
    }, "a figure is on no panel"


def _shown(client: httpx.Client, port: int) -> str:
    for _ in range(600):
        if client.get("/v1/videos").json()["items"][0]["status"] == "ready":
            return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        time.sleep(0.1)
    raise AssertionError("the clip was not embedded")


@pytest.mark.parametrize("address", ["9100", "127.0.0.1:", ":9100", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "worker", "--metrics", address],
        env=CHILD_ENVIRONMENT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert "--metrics" in done.stderr


def test_an_address_that_is_taken_is_named(service: Service, tmp_path: Path) -> None:
    taken = service.url.removeprefix("http://")
    done = subprocess.run(
        [sys.executable, "-m", "service", "worker", "--metrics", taken],
        env={**CHILD_ENVIRONMENT, "REELSRS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 1
    assert f"{taken} cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr
