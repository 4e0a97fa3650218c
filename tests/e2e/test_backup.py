"""Tests of backups: taken under traffic, restored, and refused if damaged or malicious."""

from __future__ import annotations

import io
import json
import random
import shlex
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bootstrap import Runtime
from service.database import video_rows
from service.database.db import Database
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.operations import backup
from tests.support.cli import run
from tests.support.clips import ClipMaker, numbered
from tests.support.disks import fill
from tests.support.library import PreparedLibrary, settings_for
from tests.support.rows import check_against_rows, items_of_rows, settled
from tests.support.server import Service, serving_here


def _select(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def _traffic(server: Service, clip: bytes, stop: threading.Event, seed: int) -> None:
    """Upload, edit and delete videos as one client until `stop` is set."""
    rng = random.Random(seed)
    mine: list[str] = []
    with server.client() as client, suppress(httpx.TransportError):
        while not stop.is_set():
            data = clip + b"\x00\x00\x00\x18free" + rng.randbytes(16)
            form = {"caption": f"clip {rng.randrange(1000)}", "category": rng.choice("ab")}
            answer = client.post("/v1/videos", files={"file": ("a.mp4", data)}, data=form)
            assert answer.status_code == 202, answer.text
            mine.append(answer.json()["id"])
            stop.wait(0.1)  # leave time so that uploads are embedded before the end
            if rng.random() < 0.6:
                client.patch(f"/v1/videos/{rng.choice(mine)}", json={"caption": f"edited {rng.randrange(1000)}"})
            if rng.random() < 0.6:
                client.delete(f"/v1/videos/{mine.pop(rng.randrange(len(mine)))}")


def _restored(file: Path, data: Path) -> None:
    done = run("restore", str(file), cwd=data.parent, REELSRS_DATA_DIR=str(data))
    assert done.returncode == 0, done.stderr


def _verified(data: Path) -> None:
    done = run("index", "verify", "--deep", "--json", cwd=data.parent, REELSRS_DATA_DIR=str(data))
    assert done.returncode == 0, done.stdout + done.stderr


def test_backups_taken_under_traffic_are_whole(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder, soak: bool
) -> None:
    clients, backups = (3, 3) if soak else (1, 1)
    clip = make_clip("a.mp4", numbered(8)).read_bytes()
    files = []
    with serving_here(settings_for(tmp_path / "live"), tiny, decoder) as server, server.client() as client:
        client.timeout = httpx.Timeout(120)  # longer than any wait here
        for number in range(4):
            form = {"caption": f"first {number}"}
            first = {"file": ("a.mp4", clip + b"\x00\x00\x00\x0cfree" + number.to_bytes(4, "big"))}
            assert client.post("/v1/videos", files=first, data=form, params={"wait": 60}).status_code == 201
        stop = threading.Event()
        threads = [threading.Thread(target=_traffic, args=(server, clip, stop, seed)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        for number in range(backups):
            file = tmp_path / f"{number}.tar"
            done = run("backup", str(file), cwd=tmp_path, REELSRS_DATA_DIR=str(server.data_dir))
            assert done.returncode == 0, done.stderr
            files.append(file)
        stop.set()
        for thread in threads:
            thread.join()
        settled(client)
        checked = run("index", "verify", "--deep", cwd=tmp_path, REELSRS_DATA_DIR=str(server.data_dir))
        assert checked.returncode == 0, checked.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.mp4",
        "live",
        *(f"{number}.tar" for number in range(backups)),
    }
    for file in files:
        data = tmp_path / f"restored {file.stem}"
        _restored(file, data)
        assert {path.name for path in data.iterdir()} == {"media", "reelsrs.db"}
        _verified(data)
        with serving_here(settings_for(data), tiny, decoder) as server, server.client() as client:
            videos = {video["id"]: video for video in settled(client)}
            assert {video["status"] for video in videos.values()} == {"ready"}
            assert len([video for video in videos.values() if "first" in video["caption"]]) == 4
            for name in videos:
                for part in ("content", "thumbnail", "frames/0"):
                    assert client.get(f"/v1/videos/{name}/{part}").status_code == 200
            database = Database(f"sqlite:///{data}/reelsrs.db")
            with database.read() as connection:
                check_against_rows(client, items_of_rows(connection, videos))
            database.close()
        _verified(data)


@pytest.fixture(scope="module")
def library(
    tmp_path_factory: pytest.TempPathFactory, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Path:
    """Return a folder with the data folder of the synthetic clips and its backup `backup.tar`."""
    folder = tmp_path_factory.mktemp("backup")
    prepared.copied(folder / "data", drawn, tiny, decoder)
    done = run("backup", "backup.tar", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("12 videos, ")
    return folder


def _refused(file: Path, data: Path, words: str, *, code: int = 2) -> None:
    before = data.exists()
    done = run("restore", str(file), cwd=data.parent, REELSRS_DATA_DIR=str(data))
    assert done.returncode == code, done.stdout + done.stderr
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert data.exists() == before
    assert not before or not list(data.iterdir())


def test_through_pipes_into_a_folder_that_is_there(library: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    command = f"{shlex.quote(sys.executable)} -m service"
    line = f"cd {library} && {command} backup - | (cd {tmp_path} && {command} restore -)"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _verified(tmp_path / "data")


def test_only_an_empty_folder_is_filled(library: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "mine").write_text("mine")
    done = run("restore", str(library / "backup.tar"), cwd=tmp_path)
    assert (done.returncode, [path.name for path in data.iterdir()]) == (1, ["mine"])
    assert "data is not empty" in " ".join(done.stderr.split())


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.99])
def test_what_is_cut_off_is_refused(library: Path, tmp_path: Path, share: float) -> None:
    data = (library / "backup.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data) * share)])
    _refused(tmp_path / "cut.tar", tmp_path / "data", "not a complete backup")


def test_what_was_changed_is_refused(library: Path, tmp_path: Path) -> None:
    data = (library / "backup.tar").read_bytes()
    with tarfile.open(library / "backup.tar") as tar:
        members = tar.getmembers()
    media = next(one for one in members if one.name.endswith("/video"))
    chosen = {one.name: one for one in members if not one.name.startswith("media/")} | {"media": media}
    assert len(chosen) == 5
    for number, one in enumerate(chosen.values()):
        for place in (one.offset + 10, one.offset_data + one.size // 2):
            changed = bytearray(data)
            changed[place] ^= 1
            (tmp_path / "changed.tar").write_bytes(changed)
            _refused(tmp_path / "changed.tar", tmp_path / f"data{number}", "not a complete backup")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(random.Random(1).randbytes(100_000))
    _refused(tmp_path / "x", tmp_path / "data", "not a complete backup")
    with tarfile.open(tmp_path / "y", "w") as tar:
        tar.add(tmp_path / "x", "x")
    (tmp_path / "data").mkdir()
    _refused(tmp_path / "y", tmp_path / "data", "unexpected member 'x'")
    _refused(tmp_path / "nothing", tmp_path / "data", "there is no file")


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"harm"))

    return add


CLIP = f"media/ab/ab{'0' * 62}/video"


@pytest.mark.parametrize(
    "member",
    [
        _member("../harm"),
        _member("/tmp/harm"),
        _member("media/../../harm"),
        _member("media/ab/../harm"),
        _member(f"media/cd/ab{'0' * 62}/video"),
        _member("media\\..\\harm"),
        _member("reelsrs.db\n"),
        _member(CLIP, tarfile.SYMTYPE, "/etc/passwd"),
        _member(CLIP, tarfile.LNKTYPE, "reelsrs.json"),
        _member("media", tarfile.SYMTYPE, "/tmp"),
        _member(CLIP, tarfile.CHRTYPE),
        _member(CLIP, tarfile.FIFOTYPE),
        _member(CLIP, tarfile.DIRTYPE),
        _member("reelsrs.json"),
    ],
)
def test_a_file_that_is_made_to_harm_is_refused(tmp_path: Path, member: Callable[[tarfile.TarFile], None]) -> None:
    file, data = tmp_path / "harm.tar", tmp_path / "inner" / "data"
    data.parent.mkdir()
    with tarfile.open(file, "w") as tar:
        header = json.dumps({"format": 1}).encode()
        info = tarfile.TarInfo("reelsrs.json")
        info.size = len(header)
        tar.addfile(info, io.BytesIO(header))
        member(tar)
    _refused(file, data, "not a complete backup")
    assert {path.name for path in tmp_path.rglob("*")} == {"harm.tar", "inner"}
    assert not Path("/tmp/harm").exists()


def test_a_row_without_its_bytes_is_refused(library: Path, tmp_path: Path) -> None:
    """The manifest of the backup is valid."""
    with tarfile.open(library / "backup.tar") as tar:
        content = {one.name: tar.extractfile(one).read() for one in tar.getmembers()}  # type: ignore[union-attr]
    gone = next(name for name in content if name.endswith("/video"))
    del content[gone]
    listed = json.loads(content["manifest.json"])
    del listed["files"][gone]
    content["manifest.json"] = json.dumps(listed).encode()
    content["manifest.sha256"] = backup.hashlib.sha256(content["manifest.json"]).hexdigest().encode()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _refused(tmp_path / "x.tar", tmp_path / "data", "the bytes of clip")


def test_a_damaged_clip_is_named_and_a_missing_one_left_out(library: Path, tmp_path: Path) -> None:
    _restored(library / "backup.tar", tmp_path / "data")
    first, second, *_ = sorted((tmp_path / "data" / "media").rglob("video"))
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    rows = _select(tmp_path / "data" / "reelsrs.db", "SELECT sha256, id FROM videos")
    names = {dict(rows)[path.parent.name] for path in (first, second)}
    checked = run("index", "verify", cwd=tmp_path)
    assert checked.returncode == 1
    done = run("backup", "again.tar", cwd=tmp_path)
    assert done.returncode == 3
    for name in names:
        assert f"video {name}: the stored clip is missing or damaged" in done.stderr
        assert f"video {name}: " in checked.stdout
    _restored(tmp_path / "again.tar", tmp_path / "other")
    kept = _select(tmp_path / "other" / "reelsrs.db", "SELECT count(*) FROM videos")[0]
    assert kept == (11,)


def test_a_clip_that_goes_while_a_backup_is_taken_is_left_out(
    library: Path, tmp_path: Path, tiny: Encoder, decoder: Decoder
) -> None:
    _restored(library / "backup.tar", tmp_path / "data")
    settings = settings_for(tmp_path / "data")
    runtime = Runtime(settings, model=tiny, decoder=decoder)
    with runtime.db.read() as connection:
        first, *_, last = video_rows.list_videos(connection, status="ready", limit=100)
    gone = []

    def step(number: int, _: int) -> None:
        """Delete two videos after the database is copied and before any file is copied."""
        if number == 0:
            for video in (first, last):
                runtime.ingest.delete(video.id)
                gone.append(video.id)

    summary = backup.back_up(settings, tmp_path / "x.tar", step)
    runtime.close()
    assert (summary.videos, summary.damaged) == (10, [])
    _restored(tmp_path / "x.tar", tmp_path / "other")
    _verified(tmp_path / "other")
    kept = _select(tmp_path / "other" / "reelsrs.db", "SELECT id FROM videos")
    assert len(kept) == 10
    assert not {name for (name,) in kept} & set(gone)


def test_a_full_disk_leaves_nothing_half_done(library: Path, tmp_path: Path, small_disk: Path) -> None:
    size = (library / "backup.tar").stat().st_size
    fill(small_disk, size // 2)
    done = run("backup", str(small_disk / "b.tar"), cwd=library)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    data = small_disk / "data"
    done = run("restore", str(library / "backup.tar"), cwd=tmp_path, REELSRS_DATA_DIR=str(data))
    assert done.returncode == 1
    assert "full" in done.stderr or "No space left" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_there_must_be_a_library(tmp_path: Path) -> None:
    done = run("backup", "x.tar", cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "no library in" in done.stderr
