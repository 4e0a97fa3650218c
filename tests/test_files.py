"""Bytes on disk: whole or not there."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from service.errors import NotFound, TooLarge
from service.files import Files


def _store(files: Files, data: bytes) -> str:
    with files.receive(1000) as incoming:
        incoming.write(data)
        incoming.finish()
        files.place(incoming)
        return incoming.sha256


def test_bytes_lie_under_their_hash_and_leave_nothing_else(tmp_path: Path) -> None:
    files = Files(tmp_path / "media")
    sha256 = _store(files, b"clip")
    assert sha256 == hashlib.sha256(b"clip").hexdigest()
    assert files.video(sha256).read_bytes() == b"clip"
    assert files.video(sha256) == tmp_path / "media" / sha256[:2] / sha256 / "video"
    assert list((tmp_path / "media" / "incoming").iterdir()) == []
    assert _store(files, b"clip") == sha256  # a second time changes nothing


def test_what_is_not_placed_is_gone(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.receive(1000) as incoming:
        incoming.write(b"half")
    assert list((tmp_path / "incoming").iterdir()) == []


def test_the_limit_strikes_on_the_way(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.receive(10) as incoming:
        incoming.write(b"0123456789")
        with pytest.raises(TooLarge, match="larger than 10 bytes"):
            incoming.write(b"x")
        assert incoming.path.stat().st_size <= 10


def test_pictures_follow_their_clip(tmp_path: Path) -> None:
    files = Files(tmp_path)
    sha256 = _store(files, b"clip")
    files.put_pictures(sha256, [b"a", b"b", b"c"])
    files.put_pictures(sha256, [b"d"])
    assert files.picture(sha256, 0).read_bytes() == b"d"
    with pytest.raises(NotFound):
        files.picture(sha256, 1)
    files.delete(sha256)
    files.delete(sha256)
    assert [path.name for path in tmp_path.rglob("*")] == ["incoming"]
    with pytest.raises(NotFound):
        files.put_pictures(sha256, [b"late"])
    with pytest.raises(NotFound):
        files.video(sha256)


def test_deleting_one_leaves_its_neighbour(tmp_path: Path) -> None:
    files = Files(tmp_path)
    first, second = _store(files, b"one"), _store(files, b"two")
    neighbour = tmp_path / first[:2] / second
    (tmp_path / second[:2] / second).rename(neighbour)
    files.delete(first)
    assert (neighbour / "video").read_bytes() == b"two"


def test_only_strays_are_swept_that_nobody_writes_any_more(tmp_path: Path) -> None:
    files = Files(tmp_path)
    old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
    for stray in (old, young):
        stray.write_bytes(b"")
    os.utime(old, (time.time() - 90,) * 2)
    with files.receive(100) as slow:
        os.utime(slow.path, (time.time() - 90,) * 2)
        files.sweep()
        assert {path.name for path in (tmp_path / "incoming").iterdir()} == {"young", slow.path.name}


def test_a_mark_stays_where_the_work_was_not_finished(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.unsettled("ab12"):
        assert files.doubtful() == ["ab12"]
    assert files.doubtful() == []
    with pytest.raises(RuntimeError), files.unsettled("ab12"):
        raise RuntimeError
    files.sweep()
    assert files.doubtful() == ["ab12"]
    files.settle("ab12")
    assert files.doubtful() == []
