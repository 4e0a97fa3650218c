"""Tests of index renewal: a new index is built beside the one in use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.index import base
from service.index import sync as module
from service.index.compressed import CompressedIndex
from service.timing import Timing
from tests.support.followed import follow, keys_of, kind_of
from tests.support.vector_library import VectorLibrary, fill, unit


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[VectorLibrary, Path]]:
    """Yield a library of forty videos and its folder."""
    library = VectorLibrary(tmp_path)
    fill(library, np.random.default_rng(3), 40)
    yield library, tmp_path
    library.close()


def test_changes_beyond_a_number_are_saved_beside(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, _ = filled
    library.follower.check()
    library.follower.save()
    first = library.follower.saved_change
    assert first is not None
    monkeypatch.setattr(module, "_SAVE_EVERY_CHANGES", 3)
    rng = np.random.default_rng(1)
    for _ in range(3):
        library.add(unit(rng), None)
    library.follower.check()
    library.follower.settle()  # type: ignore[attr-defined]
    assert library.follower.saved_change == first
    library.add(unit(rng), None)
    library.follower.check()
    library.follower.settle()  # type: ignore[attr-defined]
    assert library.follower.saved_change == first + 4


def test_an_index_that_outgrows_a_scan_is_compressed_and_back_well_below(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    monkeypatch.setattr(module, "_BATCH_SIZE", 16)
    follower = follow(library, folder, exact_up_to=40)
    assert kind_of(follower) == "flat"
    rng = np.random.default_rng(1)
    library.add(unit(rng), unit(rng))
    assert kind_of(follower) == "flat", "the question that finds out does not wait"
    follower.settle()
    assert kind_of(follower) == "compressed"
    assert follower.differences() == []
    assert follower.saved_change is not None, "it is saved when it is there"
    assert kind_of(follow(library, folder, exact_up_to=40)) == "compressed"
    names = list(library.items)
    for name in names[:20]:
        library.delete(name)
    follower.check()
    follower.settle()
    assert kind_of(follower) == "compressed", "half of it is not yet well below"
    library.delete(names[20])
    follower.check()
    follower.settle()
    assert kind_of(follower) == "flat"
    assert follower.differences() == []
    assert kind_of(follow(library, folder, fresh=True, exact_up_to=19)) == "compressed", "at a start at once"
    follower.close()


def test_an_index_that_is_mostly_dead_is_rebuilt(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = filled
    follower = follow(library, folder)
    rng = np.random.default_rng(1)
    name = next(iter(library.items))
    monkeypatch.setattr(base, "_ALLOWED_DEAD_ROWS", 20)
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
    monkeypatch.setattr(module, "_BATCH_SIZE", 8)
    follower = follow(library, folder, exact_up_to=40)
    train = CompressedIndex.train
    rng = np.random.default_rng(1)

    def slow(*arguments: Any) -> CompressedIndex:
        """During training, add more than one batch of videos, change some and delete one."""
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
    assert kind_of(follower) == "compressed"
    assert len(keys_of(follower)) == 60
    assert follower.differences() == []
    follower.close()


def test_a_renewal_that_fails_is_begun_again_after_a_pause(
    filled: tuple[VectorLibrary, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library, folder = filled
    follower = follow(library, folder, exact_up_to=40, timing=Timing(renewal_pause_seconds=60))
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
        return len(tries), kind_of(follower)

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
    follower = follow(library, folder, exact_up_to=40)
    follower.close()
    saved = follower.saved_change
    assert saved is not None
    assert follow(library, folder).saved_change == saved
    library.follower.check()
    library.follower.save()  # `close` released the lock
    assert library.follower.saved_change == saved
