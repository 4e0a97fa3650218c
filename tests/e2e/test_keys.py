"""Tests of API keys: the rights of every operation, and keys created and revoked while a server runs."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.api.access import check_address, is_loopback
from service.config import Settings
from service.database import api_keys, db
from service.embedding.encoder import Encoder
from service.errors import ConfigurationError, InvalidInput, NotFound
from service.media import Decoder
from tests.support import services
from tests.support.cli import run
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.openapi import document
from tests.support.paths import ROOT
from tests.support.server import Service, logged, serving_here

# These searches use POST because of the length of the query; they change nothing.
QUESTIONS = ("/v1/recommendations", "/v1/search/text", "/v1/search/image", "/v1/search/video")
OPEN = ("/", "/livez", "/readyz", "/metrics")


def needed(verb: str, path: str) -> str | None:
    """Return the right that an operation requires; None if it needs no API key."""
    if path in OPEN:
        return None
    if path.startswith("/v1/generations") and verb != "get":
        return "admin"
    return "read" if verb == "get" or path in QUESTIONS else "write"


def make(data_dir: Path, name: str, right: str) -> str:
    """Create an API key by the command line and return it."""
    done = run("keys", "create", name, "--rights", right, cwd=data_dir.parent, REELSRS_DATA_DIR=str(data_dir))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() not in done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, tiny: Encoder, decoder: Decoder
) -> Iterator[tuple[Service, dict[str, str]]]:
    """Yield a service that requires API keys, with one key of each right and one from the settings.

    Its log is beside its data.
    """
    data = tmp_path_factory.mktemp("keys") / "data"
    settings = settings_for(data, api_keys="of-the-settings")
    with serving_here(settings, tiny, decoder) as running:
        given = {right: make(data, f"a-{right}", right) for right in api_keys.RIGHTS}
        yield running, {**given, "settings": "of-the-settings"}


def call(client: httpx.Client, verb: str, path: str, key: str | None) -> httpx.Response:
    """Send a request for things that do not exist: it passes the key check or fails there, and changes nothing."""
    address = path.replace("{video_id}", "of-nobody").replace("{projection_id}", "of-nobody").replace("{n}", "0")
    address = address.replace("{generation_id}", "of-nobody")
    headers = {} if key is None else {"X-API-Key": key}
    return client.request(verb, address, headers=headers, content=b"{" if verb not in ("get", "delete") else None)


def operations() -> list[tuple[str, str]]:
    """Return the method and path of every operation in the OpenAPI document."""
    return [(verb, path) for path, verbs in document()["paths"].items() for verb in verbs]


@pytest.mark.parametrize(("verb", "path"), operations())
def test_every_operation_asks_for_its_right(guarded: tuple[Service, dict[str, str]], verb: str, path: str) -> None:
    server, given = guarded
    right = needed(verb, path)
    with server.client() as client:
        statuses = {None: call(client, verb, path, None).status_code}
        answers = {name: call(client, verb, path, key) for name, key in given.items()}
        unknown = call(client, verb, path, api_keys.PREFIX + "x" * 43)
    if right is None:
        assert statuses[None] not in (401, 403)
        assert not [name for name, answer in answers.items() if answer.status_code in (401, 403)]
        return
    assert (statuses[None], unknown.status_code) == (401, 403)
    assert unknown.headers["content-type"] == "application/problem+json"
    for name, answer in answers.items():
        held = "admin" if name == "settings" else name
        if api_keys.RIGHTS.index(held) >= api_keys.RIGHTS.index(right):
            assert answer.status_code not in (401, 403, 500), (name, answer.text)
        else:
            assert answer.status_code == 403, (name, answer.text)
            assert f"`{right}`" in answer.json()["detail"]
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_counts_and_ends_at_once(guarded: tuple[Service, dict[str, str]]) -> None:
    server, _ = guarded
    secret = make(server.data_dir, "short-lived", "read")
    with server.client() as client:
        for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}):
            assert client.get("/v1/videos", headers=headers).status_code == 200
        done = run("keys", "revoke", "short-lived", cwd=server.data_dir.parent, REELSRS_DATA_DIR=str(server.data_dir))
        assert done.returncode == 0
        assert client.get("/v1/videos", headers={"X-API-Key": secret}).status_code == 403


def test_an_upload_needs_its_key_before_its_bytes(
    guarded: tuple[Service, dict[str, str]], make_clip: ClipMaker
) -> None:
    server, given = guarded
    clip = make_clip("a.mp4", numbered(9)).read_bytes()
    with server.client() as client:
        files = {"file": ("a.mp4", clip)}
        assert client.post("/v1/videos", files=files).status_code == 401
        assert client.post("/v1/videos", files=files, headers={"X-API-Key": given["read"]}).status_code == 403
        made = client.post("/v1/videos", files=files, headers={"X-API-Key": given["write"]})
        assert made.status_code == 202
        address = f"/v1/videos/{made.json()['id']}"
        assert client.delete(address, headers={"X-API-Key": given["read"]}).status_code == 403
        assert client.delete(address, headers={"X-API-Key": given["write"]}).status_code == 204


def test_the_log_has_no_key(guarded: tuple[Service, dict[str, str]], tmp_path: Path) -> None:
    """An API key is sent in a header, in a query, in an address, and in bodies that cannot be parsed."""
    server, given = guarded
    with logged(tmp_path / "log") as log, server.client() as client:
        for key in given.values():
            client.get("/v1/videos", headers={"X-API-Key": key})
            client.get("/v1/videos", headers={"Authorization": f"Bearer {key}"})
            client.get("/v1/videos", params={"api_key": key, "cursor": key}, headers={"X-API-Key": key})
            client.post("/v1/search/text", json={"query": key, "k": key}, headers={"X-API-Key": key})
            client.post("/v1/videos", content=key, headers={"X-API-Key": key, "Content-Type": key})
            client.get("/nowhere", headers={"X-API-Key": key})
        for right in api_keys.RIGHTS:  # our own keys have a known prefix, so the log masks them even in a path
            client.get(f"/v1/videos/{given[right]}", headers={"X-API-Key": given[right]})
    text = log.read_text()
    assert '"path": "/nowhere"' in text
    assert all("request_id" in line for line in text.splitlines() if '"event": "request"' in line)
    for key in given.values():
        assert key not in text
    stored = b"".join(path.read_bytes() for path in server.data_dir.glob("reelsrs.db*"))
    database = db.Database(services.database_url(server.data_dir))
    with database.read() as connection:
        stored += repr(connection.execute(sa.select(db.keys)).all()).encode()
    database.close()
    for right in api_keys.RIGHTS:
        assert given[right].encode() not in stored


def test_an_unexpected_error_shows_no_key_on_a_terminal_either() -> None:
    """The default console tracebacks would print local variables."""
    code = (
        "import sys; sys.stderr.isatty = lambda: True\n"
        "import structlog; from service import telemetry; telemetry.configure_logging()\n"
        "def handle(header):\n"
        "    try:\n"
        f"        raise RuntimeError('no use for {api_keys.PREFIX}{'k' * 43}')\n"
        "    except RuntimeError:\n"
        "        structlog.get_logger('x').exception('unexpected error')\n"
        "handle(' '.join(['of', 'the', 'settings']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "RuntimeError: no use for reelsrs_***" in done.stderr
    assert "of the settings" not in done.stderr


# --- the commands


def test_the_commands(tmp_path: Path) -> None:
    secret = make(tmp_path / "data", "ci.robot-1", "write")
    assert secret.startswith("reelsrs_")
    assert len(secret) == len("reelsrs_") + 43

    def on_keys(*arguments: str) -> Any:
        return run("keys", *arguments, cwd=tmp_path, REELSRS_DATA_DIR=str(tmp_path / "data"))

    listed = json.loads(on_keys("list", "--json").stdout)["items"]
    assert [(row["name"], row["rights"]) for row in listed] == [("ci.robot-1", "write")]
    table = on_keys("list").stdout
    assert "ci.robot-1" in table
    assert secret not in table
    again = on_keys("create", "ci.robot-1", "--rights", "read")
    assert (again.returncode, "already" in again.stderr, again.stdout) == (2, True, "")
    for bad in ("", "two words", "-x", "ü", "n" * 65):
        assert on_keys("create", "--rights", "read", "--", bad).returncode == 2, bad
    assert on_keys("create", "x", "--rights", "root").returncode == 2
    assert on_keys("create", "x").returncode == 2
    gone = on_keys("revoke", "ci.robot-1")
    assert (gone.returncode, "no API key is left" in gone.stderr) == (0, True)
    missing = on_keys("revoke", "ci.robot-1")
    assert (missing.returncode, "API key ci.robot-1 does not exist" in missing.stderr) == (1, True)
    assert "there are no API keys" in on_keys("list").stderr


def test_what_is_stored_opens_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    db.upgrade(url)
    database = db.Database(url)
    with database.write() as connection:
        secret = api_keys.create(connection, "one", "read")
    with sqlite3.connect(tmp_path / "keys.db") as raw:
        (stored,) = raw.execute("SELECT sha256 FROM keys").fetchone()
    raw.close()
    with database.write() as connection:
        found = api_keys.look_up(connection, secret)
        assert found is not None
        assert (found.name, found.right) == ("one", "read")
        for other in (stored, secret[:-1], secret + "x", "", "ü"):
            assert api_keys.look_up(connection, other) is None
        with pytest.raises(InvalidInput, match="already"):
            api_keys.create(connection, "one", "admin")
        api_keys.revoke(connection, "one")
        assert api_keys.look_up(connection, secret) is None
        with pytest.raises(NotFound):
            api_keys.revoke(connection, "one")
    database.close()


# --- addresses without API keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "10.0.0.1", "0", "no-such-name.invalid", "x" * 300])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_ways_out_of_a_refusal() -> None:
    with pytest.raises(ConfigurationError, match=r"reelsrs keys create.*REELSRS_ALLOW_ANYONE=true"):
        check_address(Settings(host="0.0.0.0"), any_key=False)
    check_address(Settings(host="0.0.0.0"), any_key=True)
    check_address(Settings(host="0.0.0.0", api_keys="one"), any_key=False)  # type: ignore[arg-type]
    check_address(Settings(host="0.0.0.0", allow_anyone=True), any_key=False)
    check_address(Settings(), any_key=False)


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_where_others_could_come_in_it_does_not_start(tmp_path: Path, command: str) -> None:
    done = run(command, "--host", "0.0.0.0", "--port", "0", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert done.returncode == 1
    assert "reelsrs keys create NAME" in done.stderr
    assert "REELSRS_ALLOW_ANYONE=true" in done.stderr
    assert "running on" not in done.stderr


def test_the_last_key_gone_lets_nobody_in_where_others_can_come(tmp_path: Path, tiny: Encoder) -> None:
    """No socket is opened: the settings give the address that the service would listen on."""
    from fastapi.testclient import TestClient

    from service.api.app import create_app, start_runtime

    for settings, status in (
        (Settings(data_dir=tmp_path / "a", model="tiny", host="0.0.0.0", allow_anyone=True), 200),
        (Settings(data_dir=tmp_path / "b", model="tiny"), 200),
        (Settings(data_dir=tmp_path / "c", model="tiny", host="0.0.0.0"), 401),
    ):
        settings.data_dir.mkdir()
        db.upgrade(settings.database)
        database = db.Database(settings.database)
        with database.write() as connection:
            secret = api_keys.create(connection, "last", "read")
        started = start_runtime(settings, model=tiny)
        with database.write() as connection:
            api_keys.revoke(connection, "last")
        database.close()
        with TestClient(create_app(settings, worker=None, runtime=started)) as client:
            assert client.get("/v1/videos").status_code == status
            assert client.get("/v1/videos", headers={"X-API-Key": secret}).status_code == (
                403 if status == 401 else 200
            )
