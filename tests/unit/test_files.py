"""Tests of stored bytes in a folder: each object is complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import NotFound
from service.storage import FolderStore, Store
from tests.support.store_properties import StoreProperties, store


class TestStore(StoreProperties):
    """Run the store properties against a folder."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Store:
        """Return an empty folder store."""
        return FolderStore(tmp_path)


def test_a_folder_has_a_place_for_each_clip_and_nothing_else(tmp_path: Path) -> None:
    files = FolderStore(tmp_path / "media")
    sha256 = store(files, b"clip")
    assert files.video(sha256).path == tmp_path / "media" / sha256[:2] / sha256 / "video"
    files.commit_thumbnails(sha256, [b"a", b"b"])
    assert files.thumbnail(sha256, 1, 0.5).path == tmp_path / "media" / sha256[:2] / sha256 / "0001.jpg"
    files.commit_thumbnails(sha256, [b"d"])
    with pytest.raises(NotFound):
        files.thumbnail(sha256, 1, 0.5)
    files.delete(sha256)
    assert [path.name for path in (tmp_path / "media").rglob("*")] == ["incoming"]
    with pytest.raises(NotFound):
        files.commit_thumbnails(sha256, [b"late"])


def test_pictures_that_were_sent_need_only_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FolderStore(tmp_path)
    sha256 = store(files, b"clip")
    folder = tmp_path / sha256[:2] / sha256
    files.upload_thumbnails(sha256, [0.0], [b"of a worker that lost the job"])
    files.upload_thumbnails(sha256, [0.0, 0.5, 1.0], [b"a", b"b", b"a"])
    written: list[Path] = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path) or write(path, data))
    files.commit_thumbnails(sha256, [b"a", b"b", b"a"])
    assert len(written) == 1, "the same picture twice"
    assert sorted(path.name for path in folder.iterdir()) == ["0000.jpg", "0001.jpg", "0002.jpg", "video"]
    assert (folder / "0002.jpg").read_bytes() == b"a"
    files.delete(sha256)
    files.upload_thumbnails(sha256, [0.0], [b"late"])
    assert not folder.exists()


def test_deleting_one_leaves_its_neighbour(tmp_path: Path) -> None:
    files = FolderStore(tmp_path)
    first, second = store(files, b"one"), store(files, b"two")
    neighbour = tmp_path / first[:2] / second
    (tmp_path / second[:2] / second).rename(neighbour)
    files.delete(first)
    assert (neighbour / "video").read_bytes() == b"two"
