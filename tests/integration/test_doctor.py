"""Tests of the library check: each kind of damage is found and named, a sound library has no findings."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from service.operations import doctor
from tests.support.cli import run
from tests.support.library import PreparedLibrary, settings_for
from tests.support.server import Service


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Path:
    """Return the data folder of the twelve synthetic clips."""
    return prepared.copied(tmp_path_factory.mktemp("doctor") / "data", drawn, tiny, decoder)


def _rows(data: Path, *statements: str) -> None:
    connection = sqlite3.connect(data / "reelsrs.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def _first(data: Path) -> Path:
    return sorted((data / "media").rglob("video"))[0]


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _mark(data: Path) -> None:
    (data / "media" / "incoming" / f"{'a' * 64}.unsettled").touch()


FIRST = "(SELECT min(key) FROM videos)"
OF_FIRST = f"video_key = {FIRST}"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a vector": (
        lambda data: _rows(
            data, f"UPDATE embeddings SET vectors = zeroblob(length(vectors)) WHERE video_key = {FIRST}"
        ),
        "index and database have different vectors for video 1",
    ),
    "a category": (
        lambda data: _rows(data, f"UPDATE videos SET category = 'other' WHERE key = {FIRST}"),
        "index and database have different categories for video 1",
    ),
    "a status": (
        lambda data: _rows(data, f"UPDATE videos SET status = 'failed' WHERE key = {FIRST}"),
        "the index contains video 1",
    ),
    "a row": (lambda data: _rows(data, f"DELETE FROM videos WHERE key = {FIRST}"), "refers to a missing row of videos"),
    "a revision": (
        lambda data: _rows(data, "UPDATE alembic_version SET version_num = '0001'"),
        "schema revision 0001, this version needs",
    ),
    "the snapshot": (lambda data: _flip(next((data / "index").glob("*.flat")), 50), "its snapshot cannot be used"),
    "a length": (lambda data: _first(data).write_bytes(b"short"), "5 bytes are stored"),
    "a byte": (lambda data: _flip(_first(data), 100), "the stored bytes are not those that were uploaded"),
    "a file": (lambda data: _first(data).unlink(), "its bytes are not in the store"),
    "a mark": (_mark, "has a mark of an interrupted upload"),
    "the database": (
        lambda data: (data / "reelsrs.db").write_bytes(b"SQLite format 3\0" + bytes(5000)),
        "the database cannot be used",
    ),
}


def test_nothing_is_found_where_nothing_is_wrong(sound: Path) -> None:
    found = doctor.verify(settings_for(sound), deep=True)
    assert [(one.check, one.state) for one in found] == [("database", "ok"), ("index", "ok"), ("store", "ok")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_named(sound: Path, tmp_path: Path, damage: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    harm, words = DAMAGE[damage]
    harm(data)
    problems = [one for one in doctor.verify(settings_for(data), deep=True) if one.state == "problem"]
    assert problems
    assert any(words in one.message for one in problems), problems
    assert all(one.fix for one in problems)


def test_the_index_is_built_anew(sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    _flip(next((data / "index").glob("*.flat")), 50)
    assert run("index", "verify", cwd=tmp_path).returncode == 1
    done = run("index", "rebuild", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "index rebuilt: 12 videos\n"), done.stderr
    assert run("index", "verify", cwd=tmp_path).returncode == 0


def test_beside_a_service(service: Service) -> None:
    """The service keeps its index; the snapshot built by the command is valid."""
    environment = {"REELSRS_DATA_DIR": str(service.data_dir)}
    with service.client() as client:
        client.post("/v1/search/text", json={"query": "a", "group_by": "moment"})
        for command in ("verify", "rebuild", "verify"):
            done = run("index", command, cwd=service.data_dir.parent, **environment)
            assert done.returncode == 0, done.stdout + done.stderr
        assert client.post("/v1/search/text", json={"query": "b"}).status_code == 200


def test_the_doctor_says_all_of_it(sound: Path) -> None:
    done = run("doctor", "--json", cwd=sound.parent, REELSRS_MODEL="tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert set(found) == {
        *("settings", "versions", "open files", "data folder", "store", "database"),
        *("index", "queue", "decoder", "model"),
    }
    assert found["model"]["state"] == "ok"
    assert "sandbox" in found["decoder"]["said"]


def test_the_doctor_finds_what_is_wrong(sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    _rows(data, f"UPDATE videos SET status = 'failed', error = 'too dark' WHERE key = {FIRST}")
    done = run("doctor", cwd=tmp_path, REELSRS_MODEL="local-dir:/nowhere")
    assert done.returncode == 1
    assert "1 videos failed: too dark" in done.stdout
    assert "problem  model" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
