"""Tests of folder imports: the first run, a repeated run, and a run after changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.bootstrap import Runtime
from service.database import video_rows
from service.errors import InvalidInput
from service.models import Sampling, Video
from service.operations.folder_import import FolderImport, ImportReport
from service.operations.folder_scan import scan
from service.operations.sidecars import read_sidecar
from tests.support.clips import ClipMaker, numbered

SAMPLING = Sampling(3)


@pytest.fixture
def data(tmp_path: Path, make_clip: ClipMaker) -> Path:
    """Return a folder Data/<category>/<clip> with one broken clip and some other files."""
    folder = tmp_path / "Data"
    for category, name, count in (("cats", "a", 5), ("cats", "b", 6), ("dogs", "c", 7)):
        (folder / category).mkdir(parents=True, exist_ok=True)
        shutil.move(make_clip(f"{name}.mp4", numbered(count)), folder / category / f"{name}.mp4")
    (folder / "cats" / "a.txt").write_text("a cat\n", encoding="utf-8")
    (folder / "dogs" / "bad.mp4").write_bytes(b"not a clip")
    (folder / "dogs" / "notes.md").write_text("not a clip either")
    (folder / "top.mp4").write_bytes(b"in no category")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.mp4").write_bytes(b"hidden")
    return folder


def _import(runtime: Runtime, folder: Path, sampling: Sampling = SAMPLING) -> ImportReport:
    return FolderImport(runtime, sampling).run(scan(folder))


def _videos(runtime: Runtime) -> dict[str, Video]:
    with runtime.db.read() as connection:
        return {video.title: video for video in video_rows.list_videos(connection, limit=100)}


def test_a_folder_is_read_as_category_and_clip(data: Path) -> None:
    assert [(entry.category, entry.path.name) for entry in scan(data)] == [
        ("cats", "a.mp4"),
        ("cats", "b.mp4"),
        ("dogs", "bad.mp4"),
        ("dogs", "c.mp4"),
    ]
    assert read_sidecar(data / "cats" / "a.mp4").caption == "a cat"
    assert read_sidecar(data / "cats" / "b.mp4").caption is None


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_folder_and_no_clips_are_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=name):
        scan(tmp_path / name)


def test_a_bad_file_never_stops_the_folder_and_a_second_run_embeds_nothing(runtime: Runtime, data: Path) -> None:
    first = _import(runtime, data)
    assert (first.embedded, [path.name for path, _ in first.failures]) == (3, ["bad.mp4"])
    assert "not a video" in first.failures[0][1]
    videos = _videos(runtime)
    assert {title: (video.category, video.caption) for title, video in videos.items()} == {
        "a": ("cats", "a cat"),
        "b": ("cats", None),
        "c": ("dogs", None),
    }
    second = _import(runtime, data)
    assert (second.embedded, second.updated, second.unchanged, len(second.failures)) == (0, 0, 3, 1)
    assert _videos(runtime) == videos


def test_what_changed_is_brought_up_to_date(runtime: Runtime, data: Path, make_clip: ClipMaker) -> None:
    _import(runtime, data)
    before = _videos(runtime)
    (data / "cats" / "b.txt").write_text("new words", encoding="utf-8")
    (data / "cats" / "a.txt").unlink()
    shutil.move(make_clip("new.mp4", numbered(9)), data / "dogs" / "c.mp4")
    done = _import(runtime, data)
    assert (done.embedded, done.updated, done.unchanged) == (1, 2, 0)
    after = _videos(runtime)
    assert after["b"].caption == "new words"
    assert after["a"].caption is None
    assert after["b"].id == before["b"].id
    assert after["c"].id != before["c"].id
    assert len(after) == 3, "the video of the old bytes is gone"


def test_other_sampling_embeds_again(runtime: Runtime, data: Path) -> None:
    _import(runtime, data)
    done = _import(runtime, data, Sampling(2, 2))
    assert (done.embedded, done.unchanged) == (3, 0)
    assert [len(video.frame_times) for video in _videos(runtime).values()] == [2, 2, 2]
    assert _videos(runtime)["c"].frame_times == pytest.approx((0.0, 0.2))


def test_the_same_bytes_twice_are_one_video_and_named(runtime: Runtime, data: Path) -> None:
    shutil.copy(data / "cats" / "a.mp4", data / "dogs" / "z.mp4")
    for _ in range(2):
        done = _import(runtime, data)
        assert [(path.name, "a.mp4" in reason) for path, reason in done.duplicates] == [("z.mp4", True)]
    assert _videos(runtime)["a"].category == "cats"


def test_of_equal_files_the_first_by_name_decides_at_once_and_for_good(runtime: Runtime, data: Path) -> None:
    _import(runtime, data)
    shutil.copy(data / "dogs" / "c.mp4", data / "cats" / "0.mp4")
    first = _import(runtime, data)
    assert (first.updated, [path.name for path, _ in first.duplicates]) == (1, ["c.mp4"])
    second = _import(runtime, data)
    assert (second.updated, [path.name for path, _ in second.duplicates]) == (0, ["c.mp4"])
    assert _videos(runtime)["c"].category == "cats"


def test_a_caption_that_is_too_long_fails_its_clip_only(runtime: Runtime, data: Path) -> None:
    (data / "cats" / "b.txt").write_text("word " * 20_000, encoding="utf-8")
    done = _import(runtime, data)
    assert done.embedded == 2
    assert any(path.name == "b.mp4" and "10,000 characters" in reason for path, reason in done.failures)


def test_an_import_that_was_cut_off_is_taken_up_again(runtime: Runtime, data: Path) -> None:
    half = FolderImport(runtime, SAMPLING)
    runtime.initialise()
    for entry in scan(data)[:2]:
        half.import_clip(entry)  # the upload was accepted, then the machine stopped
    done = _import(runtime, data)
    assert (done.embedded, len(done.failures)) == (3, 1)
