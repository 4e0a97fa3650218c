"""Tests of the real service with real clips: parallel uploads, a kill, a restart, and the command line."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.embedding.encoder import Encoder
from service.media import SUFFIXES, Decoder
from tests.support import services
from tests.support.cli import run
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.rest import check_recommendations, items, upload
from tests.support.rows import settled
from tests.support.server import serving, serving_here

# Files that PyAV cannot decode: three are not videos, one is only audio.
UNREADABLE = {"audio_only_mp4.mp4", "broken_mp4.mp4", "empty_flv.flv", "wrong_file_mp4.mp4"}
# Re-encoded or cut clips, and the original of each in another folder.
ORIGINALS = {
    "red_flower_webm": "red_flower",
    "toy_frog_webm": "toy_frog",
    "carphone_distorted": "carphone",
    "pool_cleaning_1s": "pool_cleaning",
}


def _upload_all(client: httpx.Client, clips: list[Path], wait: float) -> list[httpx.Response]:
    def send(clip: Path) -> httpx.Response:
        text = clip.with_suffix(".txt")
        form = {"category": clip.parent.name}
        if text.exists():
            form["caption"] = text.read_text(encoding="utf-8")
        return upload(client, clip, wait=wait, **form)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(send, clips))


def test_two_folders_eight_at_a_time_through_a_kill(tmp_path: Path, shared_clips: Path) -> None:
    clips = [
        clip
        for folder in ("objects_indoor", "food_cooking", "people_talking")
        for clip in sorted((shared_clips / folder).iterdir())
        if clip.suffix in SUFFIXES
    ]
    assert len(clips) == 20
    data = tmp_path / "data"
    with serving(data) as server, server.client() as client:
        answers = _upload_all(client, clips, wait=120)
        assert [answer.status_code for answer in answers] == [201] * 20, [answer.text for answer in answers]
        names = [answer.json()["id"] for answer in answers]
        everything = items(client)
        assert len(everything) == 20
        check_recommendations(client, everything, names)
        before = [client.get(f"/v1/videos/{name}/recommendations").json() for name in names]
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with serving(data) as server, server.client() as client:
        after = [client.get(f"/v1/videos/{name}/recommendations").json() for name in names]
        assert after == before
        for answer in answers:
            video = answer.json()
            assert client.delete(f"/v1/videos/{video['id']}").status_code == 204
            assert video["sha256"] not in services.clips(data)
        assert client.get("/v1/videos").json()["items"] == []
    assert services.stored(data) == set()


def test_what_was_acknowledged_outlives_a_kill(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder
) -> None:
    """The service is killed after the acknowledgement; queued uploads are embedded after the restart."""
    data = tmp_path / "data"
    clips = [make_clip(f"{count}.mp4", numbered(count)) for count in range(10, 22)]
    with serving(data, "--no-worker") as server, server.client() as client:
        answers = _upload_all(client, clips, wait=0)
        assert {answer.status_code for answer in answers} == {202}
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with serving_here(settings_for(data), tiny, decoder) as service, service.client() as client:
        videos = settled(client)
        assert {video["id"] for video in videos} == {answer.json()["id"] for answer in answers}
        assert [video["status"] for video in videos] == ["ready"] * 12


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, make_clip: ClipMaker) -> None:
    with serving(tmp_path / "data") as server, server.client() as client:
        first = upload(client, make_clip("a.mp4", numbered(10)))
        assert first.status_code == 201
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not list a process's children")
        for child in children.read_text().split():
            if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
        second = upload(client, make_clip("b.mp4", numbered(11)), wait=90)
        assert second.status_code == 201, second.text
        assert client.get("/readyz").status_code == 200


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, shared_clips: Path) -> Path:
    """Return a folder where `reelsrs embed` ran over all shared clips; its output is in `said.json`."""
    folder = tmp_path_factory.mktemp("shared")
    done = run("embed", "--data-folder", str(shared_clips), "--json", cwd=folder, REELSRS_MODEL="tiny")
    (folder / "said.json").write_text(done.stdout)
    assert done.returncode == 3, done.stderr
    return folder


def test_every_clip_is_embedded_or_named(library: Path, shared_clips: Path) -> None:
    said = json.loads((library / "said.json").read_text())
    clips = [path for path in shared_clips.glob("*/*") if path.suffix in SUFFIXES]
    assert {Path(failure["path"]).name for failure in said["failures"]} == UNREADABLE
    assert all(failure["reason"] for failure in said["failures"])
    assert said["embedded"] + len(said["duplicates"]) == len(clips) - len(UNREADABLE)
    again = run("embed", "--data-folder", str(shared_clips), "--json", cwd=library, REELSRS_MODEL="tiny")
    assert again.returncode == 3
    assert (json.loads(again.stdout)["embedded"], json.loads(again.stdout)["unchanged"]) == (0, said["embedded"])


def test_near_duplicates_have_their_original_first(library: Path, shared_clips: Path) -> None:
    found = 0
    for clip in sorted((shared_clips / "near_duplicates").iterdir()):
        if clip.stem not in ORIGINALS or clip.suffix == ".txt":
            continue
        done = run("similar", str(clip), "--k", "1", "--video-weight", "1", "--text-weight", "0", "--json", cwd=library)
        found += json.loads(done.stdout)["items"][0]["video"]["title"] == ORIGINALS[clip.stem]
    print(f"originals first: {found} of {len(ORIGINALS)}")
    assert found / len(ORIGINALS) >= 0.7


def test_search_and_export_answer(library: Path) -> None:
    done = run("search", "a dog on a beach", "--k", "5", "--json", cwd=library)
    assert len(json.loads(done.stdout)["items"]) == 5
    exported = run("export", "out", cwd=library)
    assert exported.returncode == 0
    said = json.loads((library / "said.json").read_text())
    assert len(list((library / "out").rglob("aggregated.npy"))) == said["embedded"]
