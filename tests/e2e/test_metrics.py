"""Tests of the Prometheus metrics of services and workers, and that the dashboard uses only these."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from service.database import db
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support import services
from tests.support.cli import run
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.paths import ROOT
from tests.support.processes import CHILD_ENVIRONMENT, tied
from tests.support.server import Service, serving_here
from tests.support.wait import until

DASHBOARD = ROOT / "service" / "grafana.json"


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in\n{text}"
    return float(found[1])


def test_a_worker_shows_what_it_does_and_the_dashboard_knows_it(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder
) -> None:
    port = services.free_port()
    data = tmp_path / "data"
    settings = settings_for(data)
    with serving_here(settings, tiny, decoder, worker=False) as service, service.client() as client:
        with make_clip("a.mp4", numbered(5)).open("rb") as file:
            assert client.post("/v1/videos", files={"file": ("a.mp4", file)}).status_code == 202
        database = Database(settings.database)
        with database.write() as connection:  # as if the job had waited for a second
            connection.execute(sa.update(db.jobs).values(available_at=db.jobs.c.available_at - 1))
        database.close()
        waiting = client.get("/metrics").text
        assert _value(waiting, "reelsrs_jobs") == 1
        assert _value(waiting, "reelsrs_oldest_job_seconds") >= 1
        environment = {"REELSRS_MODEL": "tiny", "REELSRS_DATA_DIR": str(data), **services.environment(data)}
        worker = subprocess.Popen(
            tied(sys.executable, "-m", "service", "worker", "--metrics", f"127.0.0.1:{port}"),
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
    until(lambda: client.get("/v1/videos").json()["items"][0]["status"] == "ready", what="the clip is embedded")
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


@pytest.mark.parametrize("address", ["9100", "127.0.0.1:", ":9100", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_named(tmp_path: Path, address: str) -> None:
    done = run("worker", "--metrics", address, cwd=tmp_path)
    assert done.returncode == 2
    assert "--metrics" in done.stderr


def test_an_address_that_is_taken_is_named(service: Service, tmp_path: Path) -> None:
    taken = service.url.removeprefix("http://")
    done = run("worker", "--metrics", taken, cwd=tmp_path)
    assert done.returncode == 1
    assert f"cannot listen on {taken}" in done.stderr
    assert "Traceback" not in done.stderr
