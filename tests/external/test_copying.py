"""A library copied from files to servers and back is the same library."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from tests.support.server import serving_here


def _rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    database = Database(url)
    with database.read() as connection:
        found = {
            table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for table in db.metadata.sorted_tables
            if table is not db.collections  # derived data, which the target makes itself
        }
    database.close()
    return found


def _answers(client: httpx.Client) -> list[Any]:
    some = client.get("/v1/videos", params={"limit": 1}).json()["items"][0]["id"]
    paths = (
        "",
        "/recommendations?k=50",
        "/content",
        "/frames/1",
        "/thumbnail",
        "/duplicates",
        "/embeddings",
    )
    found: list[Any] = [client.get(f"/v1/videos/{some}{path}").content for path in paths]
    for words in ("clip 3", "a dog"):
        answer = client.post("/v1/search/text", json={"query": words, "k": 100})
        assert answer.status_code == 200
        found.append([(hit["video"]["id"], round(hit["score"], 6)) for hit in answer.json()["items"]])
    return found


def _upload(client: httpx.Client, clip: bytes, number: int, **parameters: int) -> str:
    data = clip + b"\x00\x00\x00\x0cfree" + number.to_bytes(4, "big")
    form = {"caption": f"clip {number}", "category": "ab"[number % 2]}
    answer = client.post("/v1/videos", files={"file": ("a.mp4", data)}, data=form, params=parameters)
    assert answer.is_success, answer.text
    name: str = answer.json()["id"]
    return name


def test_from_files_to_servers_and_back(
    tmp_path: Path,
    make_clip: ClipMaker,
    postgresql: services.PostgreSQL,
    objects: services.ObjectStore,
    milvus: services.Milvus,
    tiny: Encoder,
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    clip = make_clip("a.mp4", numbered(8)).read_bytes()
    servers = {
        **objects.environment,
        "REELSRS_DATABASE_URL": postgresql.url("copied"),
        "REELSRS_STORAGE_URL": objects.url("copied"),
        "REELSRS_VECTOR_STORE": f"milvus+{milvus.uri}",
    }
    files = f"sqlite:///{tmp_path}/data/reelsrs.db"
    back = {"REELSRS_DATABASE_URL": f"sqlite:///{tmp_path}/back/reelsrs.db", "REELSRS_STORAGE_URL": "back/media"}

    def copied(target: dict[str, str], **environment: str) -> str:
        to = ("--to-database", target["REELSRS_DATABASE_URL"], "--to-storage", target["REELSRS_STORAGE_URL"])
        done = run("copy", *to, cwd=tmp_path, **{**objects.environment, **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout

    with serving_here(settings_for(tmp_path / "data"), tiny, decoder) as server, server.client() as client:
        for number in range(8):
            _upload(client, clip, number, wait=60)
        gone = _upload(client, clip, 8, wait=60)
        asked = client.post("/v1/projections", json={"method": "pca", "embedding": "aggregated"})
        for _ in range(300):
            if client.get(asked.headers["location"]).json()["status"] == "ready":
                break
            time.sleep(0.1)
        client.delete(f"/v1/videos/{gone}")
        assert run("keys", "create", "app", "--rights", "read", cwd=tmp_path).returncode == 0
        assert run("keys", "revoke", "app", cwd=tmp_path).returncode == 0
        before = _answers(client)
        assert copied(servers).startswith("8 videos")
    now, then = _rows(servers["REELSRS_DATABASE_URL"]), _rows(files)
    for name, rows in then.items():
        assert len(now[name]) == len(rows), name
    assert then["coordinates"]
    for name in ("videos", "embeddings", "changes", "generations", "library", "coordinates"):
        assert now[name] == then[name], name

    verified = run("index", "verify", "--deep", cwd=tmp_path, REELSRS_DATA_DIR="there", **servers)
    assert verified.returncode == 0, verified.stdout
    assert "8 rows, milvus flat" in verified.stdout
    there = settings_for(
        tmp_path / "there",
        database_url=servers["REELSRS_DATABASE_URL"],
        storage_url=servers["REELSRS_STORAGE_URL"],
        vector_store=servers["REELSRS_VECTOR_STORE"],
    )
    with serving_here(there, tiny, decoder) as server, server.client() as client:
        assert _answers(client) == before
        new = _upload(client, clip, 20, wait=60)  # primary keys continue from the last
        assert client.get(f"/v1/videos/{new}/recommendations").status_code == 200
        assert client.delete(f"/v1/videos/{new}").status_code == 204

    again = run(
        "copy",
        *("--to-database", servers["REELSRS_DATABASE_URL"], "--to-storage", servers["REELSRS_STORAGE_URL"]),
        cwd=tmp_path,
        **objects.environment,
    )
    assert (again.returncode, "already" in again.stderr) == (1, True)

    assert copied(back, **{name: servers[name] for name in servers if name.startswith("REELSRS")}).startswith(
        "8 videos"
    )
    verified = run("index", "verify", "--deep", cwd=tmp_path, REELSRS_DATA_DIR="back")
    assert verified.returncode == 0, verified.stdout
    with serving_here(settings_for(tmp_path / "back"), tiny, decoder) as server, server.client() as client:
        assert _answers(client) == before
        newer = _upload(client, clip, 21, wait=60)
        keys = {row[1]: row[0] for row in _rows(back["REELSRS_DATABASE_URL"])["videos"]}
        assert keys[newer] == max(keys.values()) == 11, "a number was given twice"
