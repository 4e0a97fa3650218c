"""Tests that every object store (folder, S3) must pass."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from service.errors import NotFound, TooLarge
from service.models import Blob
from service.storage import Store


def store(files: Store, data: bytes) -> str:
    with files.receive(100 << 20) as incoming:
        incoming.write(data)
        incoming.finish()
        files.upload(incoming, "video/mp4")
        files.commit(incoming, "video/mp4")
        return incoming.sha256


def read_all(blob: Blob) -> bytes:
    return blob.read(0, blob.size_bytes)


class StoreProperties:
    """Store tests. A subclass gives a fixture `files`: an empty store with its uploads in tmp_path / "incoming"."""

    def test_bytes_lie_under_their_hash(self, files: Store, tmp_path: Path) -> None:
        sha256 = store(files, b"clip")
        assert sha256 == hashlib.sha256(b"clip").hexdigest()
        assert read_all(files.video(sha256)) == b"clip"
        assert list((tmp_path / "incoming").iterdir()) == []
        assert store(files, b"clip") == sha256  # a second time changes nothing
        assert read_all(files.video(sha256)) == b"clip"

    def test_any_range_of_a_large_one_is_read(self, files: Store) -> None:
        data = os.urandom((20 << 20) + 7)  # more than one part
        blob = files.video(store(files, data))
        assert blob.size_bytes == len(data)
        for start, length in ((0, 1), (12_345_678, 1000), (len(data) - 3, 10), (len(data), 5), (8 << 20, 9 << 20)):
            assert blob.read(start, length) == data[start : start + length]

    def test_what_is_not_placed_is_gone(self, files: Store, tmp_path: Path) -> None:
        with files.receive(1000) as incoming:
            incoming.write(b"half")
        assert list((tmp_path / "incoming").iterdir()) == []

    def test_the_limit_strikes_on_the_way(self, files: Store) -> None:
        with files.receive(10) as incoming:
            incoming.write(b"0123456789")
            with pytest.raises(TooLarge, match="larger than the limit of 10 bytes"):
                incoming.write(b"x")
            assert incoming.path.stat().st_size <= 10

    def test_pictures_follow_their_clip(self, files: Store) -> None:
        sha256 = store(files, b"clip")
        for times, thumbnails in (([0.0, 0.1, 1.5], [b"a", b"b", b"c"]), ([0.0], [b"a"]), ([1.5, 2.0], [b"c", b"d"])):
            files.upload_thumbnails(sha256, times, thumbnails)
            files.commit_thumbnails(sha256, thumbnails)
            assert [read_all(files.thumbnail(sha256, n, seconds)) for n, seconds in enumerate(times)] == thumbnails
        with pytest.raises(NotFound):
            files.thumbnail(sha256, 7, 7.0)
        files.delete(sha256)
        files.delete(sha256)
        with pytest.raises(NotFound):
            files.thumbnail(sha256, 0, 1.5)
        with pytest.raises(NotFound):
            files.video(sha256)

    def test_a_fingerprint_is_kept_with_its_clip(self, files: Store) -> None:
        sha256 = store(files, b"clip")
        assert files.fingerprint(sha256) is None
        files.put_fingerprint(sha256, b"one")
        files.put_fingerprint(sha256, b"another")
        assert files.fingerprint(sha256) == b"another"
        files.delete(sha256)
        assert files.fingerprint(sha256) is None

    def test_a_clip_that_was_deleted_before_its_row_came_is_placed_again(self, files: Store) -> None:
        with files.receive(1000) as incoming:
            incoming.write(b"clip")
            incoming.finish()
            files.upload(incoming, "video/mp4")
            files.delete(incoming.sha256)
            files.commit(incoming, "video/mp4")
            assert read_all(files.video(incoming.sha256)) == b"clip"

    def test_only_strays_are_swept_that_nobody_writes_any_more(self, files: Store, tmp_path: Path) -> None:
        old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
        for stray in (old, young):
            stray.write_bytes(b"")
        os.utime(old, (time.time() - 90,) * 2)
        with files.receive(100) as slow:
            os.utime(slow.path, (time.time() - 90,) * 2)
            files.remove_stray_uploads()
            assert {path.name for path in (tmp_path / "incoming").iterdir()} == {"young", slow.path.name}

    def test_a_mark_stays_where_the_work_was_not_finished(self, files: Store) -> None:
        with files.mark("ab12"):
            assert files.marked() == ["ab12"]
        assert files.marked() == []
        with pytest.raises(RuntimeError), files.mark("ab12"):
            raise RuntimeError
        files.remove_stray_uploads()
        files.check_writable()
        assert files.marked() == ["ab12"]
        files.unmark("ab12")
        assert files.marked() == []
