"""Tests of behaviour specific to the compressed index: its scan, its files and its segments."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.index import compressed
from service.index.compressed import CompressedIndex
from service.index.flat import FlatIndex
from service.index.layout import Layout
from service.models import EVERY_CATEGORY, CategoryFilter, Entries
from service.vectors import normalise
from tests.support.index_table import NOBODY, D, Table, entries, some


def test_recall_of_the_scan_at_every_weight_and_filter(tmp_path: Path) -> None:
    """Use two segments and far more rows than the scan compares exactly."""
    wide = 64
    layout = Layout(wide, has_text=True)
    rows = entries(80_000, seed=4, dimension=wide)
    rows = Entries(
        rows.video_pks,
        rows.visual,
        rows.text,
        rows.has_text,
        tuple(np.where(np.arange(80_000) % 100 == 0, "percent", np.where(np.arange(80_000) % 2, "half", "rest"))),
    )
    joined = layout.join(rows.visual, rows.text, rows.has_text)
    index = CompressedIndex.train(layout, tmp_path, joined[::4], len(joined))
    exact = FlatIndex(layout)
    for one in (index, exact):
        for start in range(0, len(joined), 8192):
            one.replace(NOBODY, some(rows, slice(start, start + 8192)))
        one.replace(np.arange(0, 80_000, 50), some(rows, slice(0, 0)))
    rng = np.random.default_rng(3)
    for where in (
        EVERY_CATEGORY,
        CategoryFilter(include=frozenset({"half"})),
        CategoryFilter(exclude=frozenset({"half"})),
    ):
        for a, b in ((1, 0), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0, 1)):
            found = 0
            for n in rng.integers(80_000, size=20):
                query = np.concatenate([a * joined[n, :wide], b * joined[n, wide:-1], [0.1 * b]]).astype(np.float32)
                rows_found, products = index.search(query, 10, where)
                _, best = exact.search(query, 10, where)
                found += int(np.count_nonzero(products >= best[-1] - 1e-6))
                assert all(index.video_pks(rows_found) % 50)
            assert found >= 0.99 * 200, (where, a, b)
    assert index.stale is False
    index.close()
    assert not list(tmp_path.iterdir()), "files that no snapshot names stay behind"


def test_a_disk_that_is_full_on_the_way_leaves_the_index_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(500)
    index = CompressedIndex.train(layout, tmp_path, layout.join(rows.visual, rows.text, rows.has_text), 500)
    monkeypatch.setattr(compressed, "_SEGMENT_ROWS", 300)
    index.replace(NOBODY, some(rows, slice(0, 250)))
    real, left = os.pwrite, [3]

    def full(descriptor: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        index.replace(NOBODY, some(rows, slice(250, 500)))
    monkeypatch.setattr(os, "pwrite", real)
    Table(layout, some(rows, slice(0, index.rows))).check(index)
    index.replace(np.arange(250, 500), some(rows, slice(250, 500)))  # the follower retries the same rows
    Table(layout, rows).check(index)
    assert len(index) == 500
    index.close()


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(100)
    index = CompressedIndex.train(layout, tmp_path, layout.join(rows.visual, rows.text, rows.has_text), 100)
    index.replace(NOBODY, rows)
    state, _ = index.freeze()(tmp_path)
    index.close()
    for broken in ({}, {**state, "segments": []}, {**state, "codec": state["table"]}):
        with pytest.raises((ValueError, KeyError, OSError)):
            CompressedIndex.load(layout, tmp_path, broken)
    with pytest.raises(ValueError, match=r"segments and the table .* have different numbers of rows"):
        CompressedIndex.load(layout, tmp_path, {**state, "segments": []})
    for name in (state["table"], state["codec"]):  # unpickling could run arbitrary code
        whole = (tmp_path / name).read_bytes()
        with np.load(tmp_path / name) as arrays:
            pickled = {key: values.astype(object) for key, values in arrays.items()}
        with (tmp_path / name).open("wb") as file:
            np.savez(file, **pickled)
        with pytest.raises(ValueError, match="allow_pickle"):
            CompressedIndex.load(layout, tmp_path, state)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / state["segments"][0]["rows"][0]).write_bytes(b"short")
    with pytest.raises(ValueError, match="shorter"):
        CompressedIndex.load(layout, tmp_path, state)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use segments of 200 rows; the scan passes on 64 rows and first takes 25 from each segment."""
    for name, value in {
        "_SEGMENT_ROWS": 200,
        "_COPY_BELOW_ROWS": 50,
        "_MIN_SCAN_ROWS": 64,
        "_SCAN_ROWS_PER_RESULT": 1,
        "_MIN_SEGMENT_ROWS_SCANNED": 8,
    }.items():
        monkeypatch.setattr(compressed, name, value)


@pytest.mark.usefixtures("small_segments")
def test_the_scan_goes_on_in_a_segment_that_holds_all_of_the_best(tmp_path: Path) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(1000)
    query = np.concatenate([normalise(np.random.default_rng(1).standard_normal(D)), np.zeros(D + 1)]).astype(np.float32)
    joined = layout.join(rows.visual, rows.text, rows.has_text)
    order = np.argsort(-(joined @ query))
    places = np.concatenate([order[200:600], order[:200], order[600:]])  # the best rows are in the third segment
    rows, joined = some(rows, places), joined[places]
    categories = np.where(np.arange(1000) < 200, "first", np.where(np.arange(1000) % 2, "odd", "even"))
    rows = Entries(np.arange(1000), rows.visual, rows.text, rows.has_text, tuple(categories))
    index = CompressedIndex.train(layout, tmp_path, joined, len(joined))
    index.replace(NOBODY, rows)
    for where, kept in (
        (EVERY_CATEGORY, np.ones(1000, dtype=np.bool_)),
        (CategoryFilter(include=frozenset({"odd"})), categories == "odd"),  # no match in the first segment
    ):
        found, products = index.search(query, 40, where)
        best = np.flatnonzero(kept)[np.argsort(-(joined[kept] @ query))][:40]
        assert kept[index.video_pks(found)].all()
        for keys in (best, index.video_pks(found)):
            assert np.isin(keys, np.arange(400, 600)).all()
        assert len(set(index.video_pks(found).tolist()) & set(best.tolist())) >= 25
        np.testing.assert_allclose(products, joined[index.video_pks(found)] @ query, atol=1e-5)
        assert (found.dtype, products.dtype) == (np.int64, np.float32)
    index.close()


@pytest.mark.usefixtures("small_segments")
def test_a_filter_may_leave_fewer_in_a_scan_than_are_looked_at(tmp_path: Path) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(1000)
    categories = tuple(np.where(np.arange(1000) < 70, "few", "many"))  # all in one segment
    rows = Entries(rows.video_pks, rows.visual, rows.text, rows.has_text, categories)
    joined = layout.join(rows.visual, rows.text, rows.has_text)
    index = CompressedIndex.train(layout, tmp_path, joined, len(joined))
    index.replace(NOBODY, rows)
    query = joined[3]
    found, _ = index.search(query, 40, CategoryFilter(include=frozenset({"few"})))
    assert index.video_pks(found)[0] == 3
    best = np.argsort(-(joined[:70] @ query))[:40]
    assert len(set(index.video_pks(found).tolist()) & set(best.tolist())) >= 30, "no more than 25 come of one look"
    index.close()


def test_a_loaded_index_is_written_again_only_as_far_as_it_changed(tmp_path: Path) -> None:
    """Use more rows than are copied in one step; the training size behind `stale` is stored too."""
    layout = Layout(D, has_text=True)
    rows = entries(5000)
    joined = layout.join(rows.visual, rows.text, rows.has_text)
    index = CompressedIndex.train(layout, tmp_path, joined[:1300], 1300)
    index.replace(NOBODY, rows)
    state, _ = index.freeze()(tmp_path)
    loaded = CompressedIndex.load(layout, tmp_path, state)
    assert not loaded.stale
    again, _ = loaded.freeze()(tmp_path)
    assert again["segments"] == state["segments"], "nothing of a segment has changed"
    more = entries(300, seed=8)
    loaded.replace(NOBODY, replace(more, video_pks=more.video_pks + 10_000))
    np.testing.assert_array_equal(loaded.get(np.arange(5000)), joined)
    assert loaded.stale, "more than four times as many as it was fitted to"
    third, _ = loaded.freeze()(tmp_path)
    assert third["segments"] != state["segments"]
    for one in (index, loaded):
        one.close()
