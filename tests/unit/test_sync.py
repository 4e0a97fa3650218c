"""Tests of the index that follows the database: snapshots, crashes and changes by other processes."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from service.database import db
from service.errors import StorageFull
from service.index import sync
from service.index.sync import SyncedIndex
from service.models import Entries, Weights
from service.search.recommender import Recommender
from tests.support.followed import follow, keys_of, names_in
from tests.support.queries import like_video
from tests.support.vector_library import GENERATION, VectorLibrary, fill, unit


def _again(library: VectorLibrary, folder: Path, aggregation: str = "mean") -> tuple[SyncedIndex, Recommender]:
    """Return the index and the recommender that a new process would build."""
    follower = SyncedIndex(library.db, folder / "index", GENERATION, aggregation)  # type: ignore[arg-type]
    return follower, Recommender(follower, lambda: library.frames, aggregation)  # type: ignore[arg-type]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[VectorLibrary, Path]]:
    """Yield a library of forty videos and its folder."""
    library = VectorLibrary(tmp_path)
    fill(library, np.random.default_rng(3), 40)
    yield library, tmp_path
    library.close()


def _check(library: VectorLibrary, recommender: Recommender) -> None:
    for name in list(library.items)[:5]:
        if library.items[name].t is not None:
            answer = like_video(recommender, name, weights=Weights(0.6, 0.4), fusion="zscore", k=40)
            library.expect(answer, name, 0.6, 0.4, "zscore", 40)


def test_a_snapshot_is_loaded_and_caught_up(
    filled: tuple[VectorLibrary, Path], caplog: pytest.LogCaptureFixture
) -> None:
    library, folder = filled
    with library.follower.current():
        pass
    library.follower.save()
    rng = np.random.default_rng(4)
    library.delete(next(iter(library.items)))
    library.add(unit(rng), unit(rng))
    library.caption(list(library.items)[3], unit(rng))
    follower, recommender = _again(library, folder)
    assert follower.saved_change, "the snapshot was not used"
    _check(library, recommender)
    with follower.current() as (index, _):
        assert len(index) == len(library.items)


def test_nothing_is_written_where_nothing_changed(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    with library.follower.current():
        pass
    library.follower.save()
    files = {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir()}
    assert len(files) == 4
    library.follower.save()
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir()}
    library.add(unit(np.random.default_rng(1)), None)
    with library.follower.current():
        pass
    library.follower.save()
    assert len(list((folder / "index").iterdir())) == 4, "the old snapshot stays behind"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest", "missing", "other library", "newer"])
def test_a_snapshot_that_is_not_right_is_not_used(filled: tuple[VectorLibrary, Path], damage: str) -> None:
    library, folder = filled
    with library.follower.current():
        pass
    library.follower.save()
    index = next((folder / "index").glob("*.flat"))
    manifest = next((folder / "index").glob("*.json"))
    data = bytearray(index.read_bytes())
    words = json.loads(manifest.read_text())
    if damage == "truncated":
        index.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        index.write_bytes(data)
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "missing":
        index.unlink()
    elif damage == "other library":
        manifest.write_text(json.dumps({**words, "library": "another"}))
    else:
        manifest.write_text(json.dumps({**words, "seen": words["seen"] + 1000}))
    follower, recommender = _again(library, folder)
    assert follower.saved_change is None, "the snapshot was used"
    _check(library, recommender)


def test_another_aggregation_is_another_index_without_any_decoding(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    name = next(item.id for item in library.items.values() if item.t is not None)
    _, by_max = _again(library, folder, "max")
    # One frame each: mean and max are the same vector, so the results are the same too.
    library.expect(like_video(by_max, name, weights=Weights(1, 1), k=40), name, 1, 1, "cosine", 40)


def test_searches_and_changes_from_many_threads(filled: tuple[VectorLibrary, Path]) -> None:
    library, _ = filled
    stop = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                like_video(library.recommender, kept, weights=Weights(0.5, 0.5), k=20)
            except BaseException as error:
                failures.append(error)
                return

    kept = next(item.id for item in library.items.values() if item.t is not None)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(5)
    for _ in range(60):
        library.add(unit(rng), unit(rng))
        library.delete(next(name for name in library.items if name != kept))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    library.expect(like_video(library.recommender, kept, weights=Weights(1, 1), k=99), kept, 1, 1, "cosine", 99)


def _falsify(follower: SyncedIndex, keys: list[int], change: Callable[[Entries], Entries]) -> None:
    """Replace the rows of these videos in the index by rows that differ from the database."""
    with follower.current() as (index, _):
        made: Any = index
        rows_now = made.entries_at(made.rows_of(np.array(keys)))
        made.replace(np.array(keys), change(rows_now))


def test_an_index_is_built_of_what_is_ready(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    gone = next(iter(library.items))
    library.delete(gone)
    follower = follow(library, folder)
    assert keys_of(follower) == sorted(library.keys[name] for name in library.items)
    assert follower.generation is GENERATION
    assert follower.saved_change is None
    assert follower.snapshot_error is None, "there was none to refuse"
    with follower.current() as (index, _):
        assert index.serving  # type: ignore[attr-defined]
    follower.close(save=False)
    assert not list((folder / "index").glob("*.json"))


def test_what_an_index_differs_in_is_said_number_by_number(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = follow(library, folder)
    assert follower.differences() == []
    rng = np.random.default_rng(8)
    names = list(library.items)
    visual, text, category = (
        library.keys[name] for name in [next(name for name in names if library.items[name].t is not None), *names[5:7]]
    )
    text = next(library.keys[name] for name in names[7:] if library.items[name].t is not None)

    def wrong(now: Entries) -> Entries:
        now.visual[now.video_pks == visual] = unit(rng)
        now.text[now.video_pks == text] = unit(rng)  # type: ignore[index]
        other = tuple(
            "other" if key == category else name for key, name in zip(now.video_pks, now.categories, strict=True)
        )
        return replace(now, categories=other)

    _falsify(follower, [visual, text, category], wrong)
    assert sorted(follower.differences()) == sorted(
        [
            f"index and database have different vectors for video {visual}",
            f"index and database have different vectors for video {text}",
            f"index and database have different categories for video {category}",
        ]
    )


def test_differences_of_every_batch_are_found(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    monkeypatch.setattr(sync, "_BATCH_SIZE", 8)
    follower = follow(library, folder)
    keys = sorted(library.keys.values())
    changed = [keys[0], keys[7], keys[8], keys[-1]]

    def wrong(now: Entries) -> Entries:
        return replace(now, categories=("other",) * len(now.video_pks))

    assert follower.differences() == []
    for key in changed:
        _falsify(follower, [key], wrong)
    assert follower.differences() == [
        f"index and database have different categories for video {key}" for key in changed
    ]


def test_videos_that_an_index_misses_or_keeps_are_said(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = follow(library, folder)
    strange, missing = (library.keys[name] for name in list(library.items)[4:6])
    with follower.current() as (index, _):
        made: Any = index
        made.replace(np.array([missing]), made.entries(0, 0))
    assert follower.differences() == [f"index and database have different rows for video {missing}"]
    with library.db.write() as connection:  # removed without a change log entry
        connection.execute(sa.update(db.videos).where(db.videos.c.key == strange).values(status="failed"))
    assert sorted(follower.differences()) == sorted(
        [
            f"index and database have different rows for video {strange}",
            f"index and database have different rows for video {missing}",
            f"the index contains video {strange}, which is not ready or does not exist",
        ]
    )


def test_a_caption_that_is_only_said_to_be_there_is_a_difference(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = follow(library, folder)
    key = next(library.keys[item.id] for item in library.items.values() if item.t is None)
    _falsify(follower, [key], lambda now: replace(now, has_text=np.array([True])))
    assert follower.differences() == [f"index and database have different vectors for video {key}"]


def test_a_snapshot_that_is_refused_says_why(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.check()
    library.follower.save()
    manifest = next((folder / "index").glob("*-mean.json"))
    words = json.loads(manifest.read_text())
    file = next((folder / "index").glob("*.flat"))
    other = "the manifest cannot be read, or belongs to another index"
    for broken, why in (
        ({**words, "library": "another"}, other),
        ({**words, "generation": "another"}, other),
        ({**words, "kind": "max"}, other),
        ([words], other),
        ({**words, "seen": words["seen"] + 1}, "the snapshot is newer than the database"),
        ({**words, "index": "odd"}, "'odd'"),
        ({**words, "files": [[file.name, 3, "0" * 64]]}, f"the checksum of {file.name} is wrong"),
        ({name: value for name, value in words.items() if name != "state"}, "'state'"),
    ):
        manifest.write_text(json.dumps(broken))
        follower = follow(library, folder)
        assert (follower.snapshot_error, follower.saved_change) == (why, None)
        assert keys_of(follower) == sorted(library.keys.values())
    manifest.write_text(json.dumps(words))
    follower = follow(library, folder)
    assert (follower.snapshot_error, follower.saved_change) == (None, words["seen"])
    fresh = follow(library, folder, fresh=True)
    assert fresh.saved_change is None, "it was to look at no snapshot"
    assert keys_of(fresh) == keys_of(follower)


def test_one_process_writes_and_the_others_let_it(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.check()
    library.follower.save()
    before = names_in(folder)
    library.add(unit(np.random.default_rng(1)), None)
    other = follow(library, folder)
    assert keys_of(other) == sorted(library.keys.values())
    other.save()
    assert names_in(folder) == before
    other.replace_snapshot()
    assert names_in(folder) > before, "the files of the snapshot before may be in use"
    assert follow(library, folder).saved_change == other.saved_change
    library.follower.close()
    library.add(unit(np.random.default_rng(2)), None)
    keys_of(other)
    other.save()
    assert follow(library, folder).saved_change == other.saved_change, "who looked after it has gone"
    other.close()


def test_a_snapshot_that_cannot_be_written_costs_nothing_else(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    follower = follow(library, folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        follower.save()
        with pytest.raises(StorageFull):
            follower.replace_snapshot()
    assert follower.saved_change is None
    assert not {name for name in names_in(folder) if not name.endswith(".lock")}, "half a snapshot was left"
    follower.save()
    assert follow(library, folder).saved_change == follower.saved_change is not None


def test_files_that_nobody_names_are_swept_after_a_week(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.save()
    kept = names_in(folder)
    old, new = folder / "index" / "old.flat", folder / "index" / "new.flat"
    week = 7 * 24 * 3600
    for path, age in ((old, week + 60), (new, week - 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    for path in (folder / "index").iterdir():
        if path.name in kept:
            os.utime(path, (time.time() - 2 * week,) * 2)
    follow(library, folder)
    assert names_in(folder) == kept | {"new.flat"}


def test_a_database_that_cannot_be_read_is_said(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    with closing(sqlite3.connect(folder / "reelsrs.db", isolation_level=None)) as other:
        other.execute("update embeddings set vectors = x'00' where kind = 'mean'")
    with pytest.raises(ValueError, match=r"reshape|buffer"):
        follow(library, folder)
