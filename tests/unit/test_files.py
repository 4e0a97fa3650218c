"""Stored bytes: whole or not there, in a folder and in an object store."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path

import pytest

from service.domain import Blob
from service.errors import ConfigurationError, NotFound, TooLarge, Unavailable
from service.files import FolderStore, Store, open_store
from tests.support import services


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of either kind, whose uploads come in through tmp_path / "incoming"."""
    if request.param == "folder":
        return FolderStore(tmp_path)
    objects: services.ObjectStore = request.getfixturevalue("objects")
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(objects.url(secrets.token_hex(4)), tmp_path)


def _store(files: Store, data: bytes) -> str:
    with files.receive(100 << 20) as incoming:
        incoming.write(data)
        incoming.finish()
        files.send(incoming, "video/mp4")
        files.place(incoming, "video/mp4")
        return incoming.sha256


def _bytes(blob: Blob) -> bytes:
    return blob.read(0, blob.size_bytes)


def test_bytes_lie_under_their_hash(files: Store, tmp_path: Path) -> None:
    sha256 = _store(files, b"clip")
    assert sha256 == hashlib.sha256(b"clip").hexdigest()
    assert _bytes(files.video(sha256)) == b"clip"
    assert list((tmp_path / "incoming").iterdir()) == []
    assert _store(files, b"clip") == sha256  # a second time changes nothing
    assert _bytes(files.video(sha256)) == b"clip"


def test_any_range_of_a_large_one_is_read(files: Store) -> None:
    data = os.urandom((20 << 20) + 7)  # more than one part
    blob = files.video(_store(files, data))
    assert blob.size_bytes == len(data)
    for start, length in ((0, 1), (12_345_678, 1000), (len(data) - 3, 10), (len(data), 5), (8 << 20, 9 << 20)):
        assert blob.read(start, length) == data[start : start + length]


def test_what_is_not_placed_is_gone(files: Store, tmp_path: Path) -> None:
    with files.receive(1000) as incoming:
        incoming.write(b"half")
    assert list((tmp_path / "incoming").iterdir()) == []


def test_the_limit_strikes_on_the_way(files: Store) -> None:
    with files.receive(10) as incoming:
        incoming.write(b"0123456789")
        with pytest.raises(TooLarge, match="larger than 10 bytes"):
            incoming.write(b"x")
        assert incoming.path.stat().st_size <= 10


def test_pictures_follow_their_clip(files: Store) -> None:
    sha256 = _store(files, b"clip")
    for times, jpegs in (([0.0, 0.1, 1.5], [b"a", b"b", b"c"]), ([0.0], [b"a"]), ([1.5, 2.0], [b"c", b"d"])):
        files.send_pictures(sha256, times, jpegs)
        files.put_pictures(sha256, jpegs)
        assert [_bytes(files.picture(sha256, n, seconds)) for n, seconds in enumerate(times)] == jpegs
    with pytest.raises(NotFound):
        files.picture(sha256, 7, 7.0)
    files.delete(sha256)
    files.delete(sha256)
    with pytest.raises(NotFound):
        files.picture(sha256, 0, 1.5)
    with pytest.raises(NotFound):
        files.video(sha256)


def test_a_fingerprint_is_kept_with_its_clip(files: Store) -> None:
    sha256 = _store(files, b"clip")
    assert files.fingerprint(sha256) is None
    files.put_fingerprint(sha256, b"one")
    files.put_fingerprint(sha256, b"another")
    assert files.fingerprint(sha256) == b"another"
    files.delete(sha256)
    assert files.fingerprint(sha256) is None


def test_a_clip_that_was_deleted_before_its_row_came_is_placed_again(files: Store) -> None:
    with files.receive(1000) as incoming:
        incoming.write(b"clip")
        incoming.finish()
        files.send(incoming, "video/mp4")
        files.delete(incoming.sha256)
        files.place(incoming, "video/mp4")
        assert _bytes(files.video(incoming.sha256)) == b"clip"


def test_only_strays_are_swept_that_nobody_writes_any_more(files: Store, tmp_path: Path) -> None:
    old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
    for stray in (old, young):
        stray.write_bytes(b"")
    os.utime(old, (time.time() - 90,) * 2)
    with files.receive(100) as slow:
        os.utime(slow.path, (time.time() - 90,) * 2)
        files.sweep()
        assert {path.name for path in (tmp_path / "incoming").iterdir()} == {"young", slow.path.name}


def test_a_mark_stays_where_the_work_was_not_finished(files: Store) -> None:
    with files.unsettled("ab12"):
        assert files.doubtful() == ["ab12"]
    assert files.doubtful() == []
    with pytest.raises(RuntimeError), files.unsettled("ab12"):
        raise RuntimeError
    files.sweep()
    files.check_writable()
    assert files.doubtful() == ["ab12"]
    files.settle("ab12")
    assert files.doubtful() == []


# --- in a folder


def test_a_folder_has_a_place_for_each_clip_and_nothing_else(tmp_path: Path) -> None:
    files = FolderStore(tmp_path / "media")
    sha256 = _store(files, b"clip")
    assert files.video(sha256).path == tmp_path / "media" / sha256[:2] / sha256 / "video"
    files.put_pictures(sha256, [b"a", b"b"])
    assert files.picture(sha256, 1, 0.5).path == tmp_path / "media" / sha256[:2] / sha256 / "0001.jpg"
    files.put_pictures(sha256, [b"d"])
    with pytest.raises(NotFound):
        files.picture(sha256, 1, 0.5)
    files.delete(sha256)
    assert [path.name for path in (tmp_path / "media").rglob("*")] == ["incoming"]
    with pytest.raises(NotFound):
        files.put_pictures(sha256, [b"late"])


def test_deleting_one_leaves_its_neighbour(tmp_path: Path) -> None:
    files = FolderStore(tmp_path)
    first, second = _store(files, b"one"), _store(files, b"two")
    neighbour = tmp_path / first[:2] / second
    (tmp_path / second[:2] / second).rename(neighbour)
    files.delete(first)
    assert (neighbour / "video").read_bytes() == b"two"


# --- in a bucket


def test_a_bucket_that_cannot_be_had_is_named(
    tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="s3://no-such-bucket/x cannot be used: NoSuchBucket"):
        open_store("s3://no-such-bucket/x", tmp_path).check_writable()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{services.free_port()}")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="s3://bucket cannot be used"):
        open_store("s3://bucket", tmp_path).check_writable()
    assert time.monotonic() - began < 30, "whoever waits is told soon"
    with pytest.raises(ConfigurationError, match="names no bucket"):
        open_store("s3:///x", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: must start with"):
        open_store("s3://bucket", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert "amazonaws.com/" in (open_store("s3://bucket", tmp_path, link_seconds=9).link("0" * 64) or "")


def test_two_prefixes_are_two_stores(
    tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    one, other = (open_store(objects.url(name), tmp_path) for name in ("team-a", "team-ab"))
    sha256 = _store(one, b"clip")
    with pytest.raises(NotFound):
        other.video(sha256)
    other.delete(sha256)
    assert _bytes(one.video(sha256)) == b"clip"
    with other.unsettled(sha256):
        assert one.doubtful() == []
