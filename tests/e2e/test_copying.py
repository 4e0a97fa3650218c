"""Test of a library copied to other files; tests/external/test_copying.py copies to servers and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support.cli import run
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.rest import upload
from tests.support.server import serving_here


def test_a_clip_that_is_damaged_is_left_out_and_named(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder
) -> None:
    with serving_here(settings_for(tmp_path / "data"), tiny, decoder) as server, server.client() as client:
        clips = [make_clip(f"{number}.mp4", numbered(8 + number)) for number in range(3)]
        names = [upload(client, clip, caption=f"clip {clip.stem}").json()["id"] for clip in clips]
        sha256 = client.get(f"/v1/videos/{names[1]}").json()["sha256"]
    path = tmp_path / "data" / "media" / sha256[:2] / sha256 / "video"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    to = ("--to-database", f"sqlite:///{tmp_path}/new/reelsrs.db", "--to-storage", "new/media")
    done = run("copy", *to, cwd=tmp_path)
    assert done.returncode == 3
    assert names[1] in done.stderr
    verified = run("index", "verify", "--deep", cwd=tmp_path, REELSRS_DATA_DIR="new")
    assert verified.returncode == 0, verified.stdout
    with serving_here(settings_for(tmp_path / "new"), tiny, decoder) as server, server.client() as client:
        assert {video["id"] for video in client.get("/v1/videos").json()["items"]} == {names[0], names[2]}


@pytest.mark.parametrize("option", ["--to-database", "--to-storage"])
def test_where_to_is_said(tmp_path: Path, option: str) -> None:
    done = run("copy", option, "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--to-" in done.stderr
