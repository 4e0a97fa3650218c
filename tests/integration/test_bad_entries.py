"""Tests that one bad entry costs itself: old spellings are found, and loops over people's rows and files go on."""

from __future__ import annotations

import shutil
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.bootstrap import Runtime
from service.database import db, spellings, video_rows
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.models import Video, Weights
from service.operations import backup
from service.operations.copy_library import copy
from service.operations.export import export_folder, export_table
from service.operations.hashed_files import HashedReader, PaddedReader
from service.search.query import Scope, SearchQuery
from tests.support.library import PreparedLibrary, settings_for

NFC = "Café 한국어"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def library(
    tmp_path: Path, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Iterator[Runtime]:
    """Yield a library of twelve drawn clips, which the test may damage."""
    data = prepared.copied(tmp_path / "data", drawn, tiny, decoder)
    runtime = Runtime(settings_for(data), model=tiny, decoder=decoder)
    runtime.initialise()
    yield runtime
    runtime.close()


def _videos(library: Runtime) -> list[Video]:
    with library.db.read() as connection:
        return video_rows.list_videos(connection, limit=100)


def _hits(library: Runtime, category: str) -> set[str]:
    vector = library.serving.query_encoder.text("a red circle")
    query = SearchQuery(vectors=(vector,), weights=Weights(0.7, 0.3), fusion="zscore", scope=Scope((category,)))
    return {hit.video.id for hit in library.serving.recommender.search(query).hits}


def test_old_spellings_of_a_category_are_found_after_the_next_start(library: Runtime) -> None:
    first, second, third = _videos(library)[:3]
    before = library.projections.fit_and_wait(library.projections.spec("aggregated", "pca", 2, category=first.category))
    with library.db.write() as connection:  # as earlier versions wrote them
        for video in (first, second):
            video_rows.update_video(connection, video.pk, category=NFD)
        video_rows.update_video(connection, third.pk, category=NFC)
        spec = replace(before.spec, category=NFD)
        values = {"category": NFD, "digest": spec.digest}
        connection.execute(sa.update(db.projections).where(db.projections.c.key == before.pk).values(values))
    spellings.normalise_categories(library.db)
    for category in (NFC, NFD):
        with library.db.read() as connection:
            assert len(video_rows.list_videos(connection, category=category, limit=100)) == 3
        assert _hits(library, category) >= {first.id, second.id}, "the index has caught up"
        renamed = library.projections.request(library.projections.spec("aggregated", "pca", 2, category=category))
        assert (renamed[0].id, renamed[1]) == (before.id, False), "the map is the same one"
    with library.db.read() as connection:
        assert [count for name, count in video_rows.categories(connection) if name == NFC] == [3]
        number = connection.execute(sa.select(sa.func.max(db.changes.c.number))).scalar()
    spellings.normalise_categories(library.db)
    with library.db.read() as connection:
        assert connection.execute(sa.select(sa.func.max(db.changes.c.number))).scalar() == number, "only once"


def test_an_export_names_what_it_cannot_write_and_goes_on(library: Runtime, tmp_path: Path) -> None:
    videos = _videos(library)
    blocked = {video.id for video in videos if video.category == videos[0].category}
    out = tmp_path / "out"
    out.mkdir()
    (out / str(videos[0].category)).write_text("a file where the folder of the category belongs")
    report = export_folder(library, out)
    assert {name for name, _ in report.failures} == blocked
    assert all("exists" in reason or "Not a directory" in reason for _, reason in report.failures)
    assert report.videos == len(list(out.rglob("metadata.json"))) == 12 - len(blocked)
    with library.db.write() as connection:  # as of an upload: the file of its import does not count
        connection.execute(sa.delete(db.sources).where(db.sources.c.video_key == videos[3].pk))
    shutil.rmtree(library.files.video(videos[3].sha256).path.parent)  # type: ignore[union-attr]
    table = export_table(library, tmp_path / "out.parquet")
    assert (table.videos, [name for name, _ in table.failures]) == (11, [videos[3].id])


def test_long_names_fit_a_file_system(library: Runtime, tmp_path: Path) -> None:
    video = _videos(library)[0]
    library.ingest.edit(video.id, {"category": "猫" * 200, "title": "長" * 200})
    report = export_folder(library, tmp_path / "out")
    assert (report.videos, report.failures) == (12, [])


def test_a_backup_and_a_copy_leave_out_what_they_cannot_read(library: Runtime, tmp_path: Path) -> None:
    first, second = _videos(library)[:2]
    path = library.files.video(first.sha256).path
    assert path is not None
    thumbnail = path.with_name("0000.jpg")
    thumbnail.unlink()
    thumbnail.mkdir()  # cannot be read as a file
    report = backup.back_up(library.settings, tmp_path / "b.tar")
    assert (report.videos, report.damaged) == (11, [first.id])
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert any(second.sha256 in name for name in tar.getnames())
    restored = settings_for(tmp_path / "restored")
    assert backup.restore(restored, tmp_path / "b.tar").videos == 11
    copied = copy(library.settings, f"sqlite:///{tmp_path}/to/reelsrs.db", str(tmp_path / "to" / "media"))
    assert (copied.videos, copied.damaged) == (11, [first.id])


def test_bytes_that_cannot_be_read_keep_their_size_and_change_their_sum() -> None:
    with closing(Path("/proc/self/mem").open("rb", buffering=0)) as unreadable:
        reader = PaddedReader(unreadable)  # type: ignore[arg-type]
        assert reader.read(1000) == bytes(1000)
    with closing(Path(__file__).open("rb")) as file:
        whole = HashedReader(file).read()
    with closing(Path(__file__).open("rb")) as file:
        padded = PaddedReader(file)
        assert padded.read(len(whole)) + padded.read(5) == whole + bytes(5)
