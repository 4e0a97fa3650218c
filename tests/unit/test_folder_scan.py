"""Tests of searching a folder for clips: links, system folders, patterns, and everything that is left out."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest

from service.errors import InvalidInput
from service.operations.folder_scan import Found, find


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with one clip, which is not read here."""
    return _put(tmp_path / "Data" / "cats" / "a.mp4").parents[1]


def _put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"clip")
    return path


def _names(found: Found, data: Path) -> list[str]:
    return [entry.path.relative_to(data).as_posix() for entry in found.entries]


def _left(pairs: list[tuple[Path, str]], data: Path) -> dict[str, str]:
    return {path.relative_to(data).as_posix(): reason for path, reason in pairs}


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__MACOSX",
        ".Trashes",
        "@Recycle",
    ],
)
def test_folders_of_systems_are_left_out_and_said(data: Path, name: str) -> None:
    _put(data / name / "x.mp4")
    _put(data / "cats" / name.swapcase() / "deep" / "y.mp4")
    found = find(data)
    assert _names(found, data) == ["cats/a.mp4"]
    reason = "hidden" if name.startswith(".") else "made by a system"
    assert _left(found.skipped, data) == {name: reason, f"cats/{name.swapcase()}": reason}


def test_every_file_is_a_clip_its_sidecar_or_named(data: Path) -> None:
    for name in ("top.mp4", "cats/._a.mp4", "cats/.DS_Store", "cats/Thumbs.db", "cats/notes.md", "cats/alone.txt"):
        _put(data / name)
    _put(data / "cats" / "a.SRT")
    os.mkfifo(data / "cats" / "pipe.mp4")
    found = find(data)
    assert _names(found, data) == ["cats/a.mp4"]
    assert _left(found.skipped, data) == {
        "top.mp4": "not in the folder of a category",
        "cats/._a.mp4": "hidden",
        "cats/.DS_Store": "hidden",
        "cats/Thumbs.db": "made by a system",
        "cats/notes.md": "not a clip, by the ending of its name",
        "cats/alone.txt": "not a clip, by the ending of its name",
        "cats/pipe.mp4": "not a regular file",
    }
    assert found.failures == []


def test_links_are_followed_once_and_never_in_a_loop(data: Path, tmp_path: Path) -> None:
    _put(tmp_path / "elsewhere" / "deep" / "b.mp4")
    (data / "abroad").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (data / "aaa").symlink_to("cats", target_is_directory=True)  # before its target by name: the folder itself counts
    (data / "cats" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(data, target_is_directory=True)
    (data / "dogs").mkdir()
    (data / "dogs" / "again.mp4").symlink_to("../cats/a.mp4")
    (data / "dogs" / "c.mp4").symlink_to(_put(tmp_path / "c.mp4"))
    found = find(data)
    assert _names(found, data) == ["abroad/deep/b.mp4", "cats/a.mp4", "dogs/c.mp4"]
    assert [entry.category for entry in found.entries] == ["abroad", "cats", "dogs"]
    skipped = _left(found.skipped, data)
    assert skipped.keys() == {"aaa", "cats/up", "abroad/back", "dogs/again.mp4"}
    assert all(reason.startswith("linked again: the same f") for reason in skipped.values())
    assert found.failures == []


def test_links_that_lead_nowhere_fail_by_name(data: Path) -> None:
    (data / "gone").symlink_to("nowhere", target_is_directory=True)
    (data / "cats" / "gone.mp4").symlink_to("nowhere.mp4")
    (data / "cats" / "self.mp4").symlink_to("self.mp4")
    found = find(data)
    failed = _left(found.failures, data)
    assert failed.keys() == {"gone", "cats/gone.mp4", "cats/self.mp4"}
    assert failed["cats/gone.mp4"] == "a link that leads nowhere: nowhere.mp4"
    assert _names(found, data) == ["cats/a.mp4"]


def test_names_of_any_bytes_are_categories_that_can_be_stored(data: Path) -> None:
    _put(data / os.fsdecode(b"\xe9t\xe9") / os.fsdecode(b"\xff.mp4"))
    _put(data / unicodedata.normalize("NFD", "Café") / "b.mp4")
    found = find(data)
    assert {entry.category for entry in found.entries} == {"cats", "%E9t%E9", "Café"}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("raw", {"cats/raw"}),
        ("raw/", {"cats/raw"}),
        ("/cats/raw", {"cats/raw"}),
        ("cats/raw", {"cats/raw"}),
        ("*_draft.mp4", {"cats/a_draft.mp4", "cats/raw/b_draft.mp4"}),
        ("cats/*_draft.mp4", {"cats/a_draft.mp4"}),
        ("cats/**/*_draft.mp4", {"cats/a_draft.mp4", "cats/raw/b_draft.mp4"}),
        ("cats/raw/**", {"cats/raw/b_draft.mp4"}),
        ("?_draft.mp[45]", {"cats/a_draft.mp4", "cats/raw/b_draft.mp4"}),
        ("[!a]_draft.mp4", {"cats/raw/b_draft.mp4"}),
        ("\u00e9t\u00e9*", {"cats/e\u0301te\u0301.mp4"}),
        ("a.mp", set()),
        ("raw*/x", set()),
    ],
)
def test_patterns_leave_out_by_name_or_by_path(data: Path, pattern: str, left: set[str]) -> None:
    for name in ("cats/a_draft.mp4", "cats/raw/b_draft.mp4", "cats/e\u0301te\u0301.mp4"):
        _put(data / name)
    found = find(data, [pattern])
    assert _left(found.skipped, data) == dict.fromkeys(left, "excluded")
    assert "cats/a.mp4" in _names(found, data)


def test_a_folder_without_clips_is_said_with_what_failed(data: Path) -> None:
    (data / "cats" / "a.mp4").unlink()
    (data / "gone").symlink_to("nowhere")
    with pytest.raises(InvalidInput, match=re.escape("no clips found") + ".*a link that leads nowhere"):
        find(data)
    with pytest.raises(InvalidInput, match="brackets"):
        find(data, ["[z-a]"])
