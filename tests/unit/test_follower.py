"""The index follows the catalogue: through snapshots, crashes and other people's changes."""

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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from service.database import db
from service.domain import Entries, Weights
from service.errors import StorageFull
from service.index import follower as module
from service.index import rows
from service.index.compressed import CompressedIndex
from service.index.follower import Follower
from service.search.recommend import Recommender
from service.timing import Timing
from tests.support.queries import like_video
from tests.support.vector_library import GENERATION, VectorLibrary, fill, unit


def _again(library: VectorLibrary, folder: Path, aggregation: str = "mean") -> tuple[Follower, Recommender]:
    """What a new process would build."""
    follower = Follower(library.db, folder / "index", GENERATION, aggregation)  # type: ignore[arg-type]
    return follower, Recommender(follower, lambda: library.frames, aggregation)  # type: ignore[arg-type]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[VectorLibrary, Path]]:
    """A library of forty videos."""
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
    assert follower.saved, "the snapshot was not used"
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
    assert follower.saved is None, "the snapshot was used"
    _check(library, recommender)


def test_another_aggregation_is_another_index_without_any_decoding(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    name = next(item.id for item in library.items.values() if item.t is not None)
    _, by_max = _again(library, folder, "max")
    # One frame each: mean and max are the same vector, so the answers are the same too.
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


def _follow(library: VectorLibrary, folder: Path, **options: Any) -> Follower:
    return Follower(library.db, folder / "index", GENERATION, "mean", **options)


def _keys(follower: Follower) -> list[int]:
    with follower.current() as (index, _):
        return index.keys(index.alive()).tolist()  # type: ignore[attr-defined, no-any-return]


def _kind(follower: Follower) -> str:
    with follower.current() as (index, _):
        return index.kind


def _falsify(follower: Follower, keys: list[int], change: Callable[[Entries], Entries]) -> None:
    """Put other rows of these videos into the index than the database has."""
    with follower.current() as (index, _):
        made: Any = index
        rows_now = made.entries_at(made.rows_of(np.array(keys)))
        made.replace(np.array(keys), change(rows_now))


def _names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "index").iterdir()}


def test_an_index_is_built_of_what_is_ready(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    gone = next(iter(library.items))
    library.delete(gone)
    follower = _follow(library, folder)
    assert _keys(follower) == sorted(library.keys[name] for name in library.items)
    assert follower.generation is GENERATION
    assert follower.saved is None
    assert follower.refused is None, "there was none to refuse"
    with follower.current() as (index, _):
        assert index.serving  # type: ignore[attr-defined]
    follower.close(save=False)
    assert not list((folder / "index").glob("*.json"))


def test_what_an_index_differs_in_is_said_number_by_number(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = _follow(library, folder)
    assert follower.differences() == []
    rng = np.random.default_rng(8)
    names = list(library.items)
    pictures, captions, category = (
        library.keys[name] for name in [next(name for name in names if library.items[name].t is not None), *names[5:7]]
    )
    captions = next(library.keys[name] for name in names[7:] if library.items[name].t is not None)

    def wrong(now: Entries) -> Entries:
        now.pictures[now.keys == pictures] = unit(rng)
        now.captions[now.keys == captions] = unit(rng)  # type: ignore[index]
        other = tuple("other" if key == category else name for key, name in zip(now.keys, now.categories, strict=True))
        return replace(now, categories=other)

    _falsify(follower, [pictures, captions, category], wrong)
    assert sorted(follower.differences()) == sorted(
        [
            f"the index has other vectors of video {pictures}",
            f"the index has other vectors of video {captions}",
            f"the index has another category of video {category}",
        ]
    )


def test_videos_that_an_index_misses_or_keeps_are_said(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = _follow(library, folder)
    strange, missing = (library.keys[name] for name in list(library.items)[4:6])
    with follower.current() as (index, _):
        made: Any = index
        made.replace(np.array([missing]), made.entries(0, 0))
    assert follower.differences() == [f"the index and the database differ in the rows of video {missing}"]
    with library.db.write() as connection:  # gone, and nobody was told
        connection.execute(sa.update(db.videos).where(db.videos.c.key == strange).values(status="failed"))
    assert sorted(follower.differences()) == sorted(
        [
            f"the index and the database differ in the rows of video {strange}",
            f"the index and the database differ in the rows of video {missing}",
            f"the index holds video {strange}, which is not ready or not there",
        ]
    )


def test_a_caption_that_is_only_said_to_be_there_is_a_difference(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = _follow(library, folder)
    key = next(library.keys[item.id] for item in library.items.values() if item.t is None)
    _falsify(follower, [key], lambda now: replace(now, captioned=np.array([True])))
    assert follower.differences() == [f"the index has other vectors of video {key}"]


def test_a_snapshot_that_is_refused_says_why(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.check()
    library.follower.save()
    manifest = next((folder / "index").glob("*-mean.json"))
    words = json.loads(manifest.read_text())
    file = next((folder / "index").glob("*.flat"))
    other = "it cannot be read, or belongs to another library"
    for broken, why in (
        ({**words, "library": "another"}, other),
        ({**words, "generation": "another"}, other),
        ({**words, "kind": "max"}, other),
        ([words], other),
        ({**words, "seen": words["seen"] + 1}, "it is newer than the database"),
        ({**words, "index": "odd"}, "'odd'"),
        ({**words, "files": [[file.name, 3, "0" * 64]]}, f"the checksum of {file.name} is wrong"),
        ({name: value for name, value in words.items() if name != "state"}, "'state'"),
    ):
        manifest.write_text(json.dumps(broken))
        follower = _follow(library, folder)
        assert (follower.refused, follower.saved) == (why, None)
        assert _keys(follower) == sorted(library.keys.values())
    manifest.write_text(json.dumps(words))
    follower = _follow(library, folder)
    assert (follower.refused, follower.saved) == (None, words["seen"])
    fresh = _follow(library, folder, fresh=True)
    assert fresh.saved is None, "it was to look at no snapshot"
    assert _keys(fresh) == _keys(follower)


def test_one_process_writes_and_the_others_let_it(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.check()
    library.follower.save()
    before = _names(folder)
    library.add(unit(np.random.default_rng(1)), None)
    other = _follow(library, folder)
    assert _keys(other) == sorted(library.keys.values())
    other.save()
    assert _names(folder) == before
    other.replace_snapshot()
    assert _names(folder) > before, "the files of the snapshot before may be in use"
    assert _follow(library, folder).saved == other.saved
    library.follower.close()
    library.add(unit(np.random.default_rng(2)), None)
    _keys(other)
    other.save()
    assert _follow(library, folder).saved == other.saved, "who looked after it has gone"
    other.close()


def test_a_snapshot_that_cannot_be_written_costs_nothing_else(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    follower = _follow(library, folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        follower.save()
        with pytest.raises(StorageFull):
            follower.replace_snapshot()
    assert follower.saved is None
    assert not {name for name in _names(folder) if not name.endswith(".lock")}, "half a snapshot was left"
    follower.save()
    assert _follow(library, folder).saved == follower.saved is not None


def test_files_that_nobody_names_are_swept_after_a_week(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    library.follower.save()
    kept = _names(folder)
    old, new = folder / "index" / "old.flat", folder / "index" / "new.flat"
    week = 7 * 24 * 3600
    for path, age in ((old, week + 60), (new, week - 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    for path in (folder / "index").iterdir():
        if path.name in kept:
            os.utime(path, (time.time() - 2 * week,) * 2)
    _follow(library, folder)
    assert _names(folder) == kept | {"new.flat"}


def test_changes_beyond_a_number_are_saved_beside(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, _ = filled
    library.follower.check()
    library.follower.save()
    first = library.follower.saved
    assert first is not None
    monkeypatch.setattr(module, "_SAVE_EVERY", 3)
    rng = np.random.default_rng(1)
    for _ in range(3):
        library.add(unit(rng), None)
    library.follower.check()
    library.follower.settle()  # type: ignore[attr-defined]
    assert library.follower.saved == first
    library.add(unit(rng), None)
    library.follower.check()
    library.follower.settle()  # type: ignore[attr-defined]
    assert library.follower.saved == first + 4


def test_an_index_that_outgrows_a_scan_is_compressed_and_back_well_below(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    monkeypatch.setattr(module, "_BATCH", 16)
    follower = _follow(library, folder, exact_up_to=40)
    assert _kind(follower) == "flat"
    rng = np.random.default_rng(1)
    library.add(unit(rng), unit(rng))
    assert _kind(follower) == "flat", "the question that finds out does not wait"
    follower.settle()
    assert _kind(follower) == "compressed"
    assert follower.differences() == []
    assert follower.saved is not None, "it is saved when it is there"
    assert _kind(_follow(library, folder, exact_up_to=40)) == "compressed"
    names = list(library.items)
    for name in names[:20]:
        library.delete(name)
    follower.check()
    follower.settle()
    assert _kind(follower) == "compressed", "half of it is not yet well below"
    library.delete(names[20])
    follower.check()
    follower.settle()
    assert _kind(follower) == "flat"
    assert follower.differences() == []
    assert _kind(_follow(library, folder, fresh=True, exact_up_to=19)) == "compressed", "at a start at once"
    follower.close()


def test_an_index_that_is_mostly_dead_is_rebuilt(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    follower = _follow(library, folder)
    rng = np.random.default_rng(1)
    name = next(iter(library.items))
    monkeypatch.setattr(rows, "_DEAD_ANYWAY", 20)
    for number in range(21):
        library.caption(name, unit(rng))
        follower.check()
        follower.settle()
        with follower.current() as (index, _):
            assert index.rows == (41 + number if number < 20 else 40)  # type: ignore[attr-defined]
    assert follower.differences() == []
    follower.close()


def test_what_changes_while_another_index_is_built_is_in_it(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    monkeypatch.setattr(module, "_BATCH", 8)
    follower = _follow(library, folder, exact_up_to=40)
    train = CompressedIndex.train
    rng = np.random.default_rng(1)

    def slow(*arguments: Any) -> CompressedIndex:
        """In the meantime more than a batch of videos come, some change, and one goes."""
        for _ in range(20):
            library.add(unit(rng), unit(rng))
        for name in list(library.items)[:3]:
            library.caption(name, unit(rng))
        library.delete(list(library.items)[5])
        follower.check()
        return train(*arguments)

    monkeypatch.setattr(CompressedIndex, "train", slow)
    library.add(unit(rng), unit(rng))
    follower.check()
    follower.settle()
    assert _kind(follower) == "compressed"
    assert len(_keys(follower)) == 60
    assert follower.differences() == []
    follower.close()


def test_a_renewal_that_fails_is_begun_again_after_a_pause(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library, folder = filled
    follower = _follow(library, folder, exact_up_to=40, timing=Timing(renewal_pause_seconds=60))
    train = CompressedIndex.train
    tries = []

    def failing(*_: Any) -> CompressedIndex:
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CompressedIndex, "train", failing)
    now = [time.monotonic()]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter, time=time.time)
    monkeypatch.setattr(module, "time", clock)
    library.add(unit(np.random.default_rng(1)), None)

    def ask(later: float) -> tuple[int, str]:
        now[0] += later
        follower.check()
        follower.settle()
        return len(tries), _kind(follower)

    assert ask(0) == (1, "flat")
    assert follower.differences() == [], "the old one serves on"
    assert ask(59.9) == (1, "flat")
    assert ask(0.2) == (2, "flat"), "though nothing changed"
    monkeypatch.setattr(CompressedIndex, "train", train)
    assert ask(59.9) == (2, "flat")
    assert ask(0.2) == (2, "compressed")
    follower.close()


def test_nothing_is_begun_once_it_is_closed(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    follower = _follow(library, folder, exact_up_to=40)
    follower.close()
    saved = follower.saved
    assert saved is not None
    assert _follow(library, folder).saved == saved
    library.follower.check()
    library.follower.save()  # the lock was let go of
    assert library.follower.saved == saved


def test_a_database_that_cannot_be_read_is_said(filled: tuple[VectorLibrary, Path]) -> None:
    library, folder = filled
    with closing(sqlite3.connect(folder / "reelsrs.db", isolation_level=None)) as other:
        other.execute("update embeddings set vectors = x'00' where kind = 'mean'")
    with pytest.raises(ValueError, match=r"reshape|buffer"):
        _follow(library, folder)
