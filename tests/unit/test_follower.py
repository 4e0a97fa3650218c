"""The index follows the catalogue: through snapshots, crashes and other people's changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.domain import Weights
from service.follower import Follower
from service.recommend import Recommender
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
