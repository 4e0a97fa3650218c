"""Tests of both index engines against NumPy, through the protocol that they share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.index import base
from service.index.base import Index
from service.index.compressed import CompressedIndex
from service.index.files import digest
from service.index.flat import FlatIndex
from service.index.layout import Layout
from service.models import EVERY_CATEGORY, CategoryFilter, Entries
from tests.support.index_table import FILTERS, NOBODY, D, Make, Table, entries, some


@pytest.fixture(params=["flat", "compressed"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return a factory that builds an index of this engine and fills it with the given rows."""

    def made(layout: Layout, rows: Entries) -> Index:
        index: Index = FlatIndex(layout)
        if request.param == "compressed":
            sample = layout.join(rows.visual, rows.text, rows.has_text)
            index = CompressedIndex.train(layout, tmp_path / "index", sample, len(sample))
        index.replace(NOBODY, rows)
        return index

    return made


def test_searches_filters_changes_and_snapshots(make: Make, tmp_path: Path) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(600)
    index, table = make(layout, rows), Table(layout, rows)
    for where in FILTERS:
        table.check(index, where)
    gone = np.array([3, 5, 8, 599, 4000])
    index.replace(gone, some(entries(4000, seed=2), [3, 8, 700]))
    for key in (3, 5, 8, 599):
        del table.rows[key]
    later = Table(layout, some(entries(4000, seed=2), [3, 8, 700]))
    table.rows.update(later.rows)
    table.names.update(later.names)
    assert (len(index), index.rows) == (599, 603)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    write = index.freeze()
    index.replace(np.array([10]), some(rows, [10]))  # changes after `freeze` are not in the snapshot
    state, files = write(folder if index.kind == "flat" else tmp_path / "index")
    where_files = folder if index.kind == "flat" else tmp_path / "index"
    for file in files:
        assert digest(where_files / file.name, file.size_bytes) == file.sha256
    loaded = type(index).load(layout, where_files, json.loads(json.dumps(state)))
    for one in (index, loaded):
        for where in FILTERS:
            table.check(one, where)
        assert sorted(one.video_pks(one.rows_of(np.array([3, 5, 8, 700])))) == [3, 8, 700]
    assert loaded.rows == 603
    loaded.replace(np.array([20]), some(rows, [20]))  # a loaded index does not own its files
    table.check(loaded)
    for name, mine, its in zip(
        "vt", index.similarity(*rows.visual[:2]), loaded.similarity(*rows.visual[:2]), strict=True
    ):
        assert mine == pytest.approx(its), name
    again = loaded.entries(0, loaded.rows)
    assert {key: table.names[key] for key in again.video_pks.tolist()} == dict(
        zip(again.video_pks.tolist(), again.categories, strict=True)
    )
    assert sorted(again.video_pks.tolist()) == sorted(table.rows)
    index.close()
    loaded.close()


def test_rows_are_joined_and_split_as_they_came() -> None:
    rows = entries(6)
    both, seen = Layout(D, has_text=True), Layout(D, has_text=False)
    assert (both.width, seen.width) == (2 * D + 1, D)
    joined = both.join(rows.visual, rows.text, rows.has_text)
    assert (joined.shape, joined.dtype) == ((6, 2 * D + 1), np.dtype(np.float32))
    assert joined[:, -1].tolist() == [0.0 if there else 1.0 for there in rows.has_text]
    for mine, its in zip(both.split(joined), (rows.visual, rows.text, rows.has_text), strict=True):
        np.testing.assert_array_equal(mine, its)
    wide = seen.join(rows.visual.astype(np.float64)[::-1], None, rows.has_text)
    assert (wide.dtype, wide.flags.c_contiguous) == (np.dtype(np.float32), True)
    visual, text, has_text = seen.split(wide)
    np.testing.assert_array_equal(visual, rows.visual[::-1])
    assert (text.shape, text.any(), has_text.shape, has_text.any()) == ((6, D), False, (6,), False)
    assert has_text.dtype == np.bool_


def test_an_empty_index_answers_with_nothing(make: Make) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(40)
    empty = FlatIndex(layout)
    assert (len(empty), empty.rows, empty.stale, empty.serving) == (0, 0, False, False)
    index = make(layout, rows)
    for one, where, count in (
        (empty, EVERY_CATEGORY, 3),
        (index, EVERY_CATEGORY, 0),
        (index, CategoryFilter(include=frozenset({"nobody"})), 3),
    ):
        found, products = one.search(np.ones(layout.width, np.float32), count, where)
        assert (found.dtype, products.dtype, len(found), len(products)) == (np.int64, np.float32, 0, 0)
    assert not empty.mean_text.any()
    assert empty.similarity(np.ones(D), np.ones(D)) == ((0.0, 0.0), (0.0, 0.0))
    empty.replace(np.array([1, 2]), some(rows, slice(0, 0)))
    assert len(empty) == 0


def test_no_more_rows_are_answered_than_there_are(make: Make) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(40)
    index = make(layout, rows)
    index.replace(np.array([7]), some(rows, slice(0, 0)))
    assert sorted(index.video_pks(index.search(np.ones(layout.width, np.float32), 99)[0]).tolist()) == [
        key for key in range(40) if key != 7
    ]


def test_means_without_deviations(make: Make) -> None:
    index = make(Layout(D, has_text=True), entries(300))
    q = np.random.default_rng(1).standard_normal((2, D))
    seen, read = index.similarity(q[0], q[1])
    assert index.similarity(q[0], q[1], deviations=False) == ((seen[0], 0.0), (read[0], 0.0))
    assert seen[1] > 0
    assert read[1] > 0


def test_rows_of_one_video_stay_in_their_order(make: Make) -> None:
    layout = Layout(D, has_text=False)
    rows = entries(90, captions=False)
    keys = np.concatenate([np.full(30, 8), np.full(30, 3), np.full(30, 5)])
    index = make(layout, Entries(keys, rows.visual, None, rows.has_text, rows.categories))
    assert index.alive().tolist() == [*range(30, 60), *range(60, 90), *range(30)]
    assert index.rows_of(np.array([5, 8, 77])).tolist() == [*range(30), *range(60, 90)]
    index.replace(np.array([3]), some(rows, slice(0, 0)))
    assert index.alive().tolist() == [*range(60, 90), *range(30)]
    assert index.rows_of(np.array([3])).tolist() == []
    part = index.entries(25, 65)
    assert part.video_pks.tolist() == [*[8] * 5, *[5] * 5]
    assert part.text is None
    np.testing.assert_array_equal(part.visual, rows.visual[[*range(25, 30), *range(60, 65)]])
    assert part.categories == tuple(rows.categories[row] for row in [*range(25, 30), *range(60, 65)])
    assert not part.has_text.any()


def test_a_random_part_is_of_what_is_alive(make: Make) -> None:
    rows = entries(200)
    index = make(Layout(D, has_text=True), rows)
    index.replace(np.arange(0, 200, 2), some(rows, slice(0, 0)))
    chosen = index.sample_rows(30)
    assert (len(chosen), len(set(chosen.tolist())), sorted(chosen.tolist())) == (30, 30, chosen.tolist())
    assert (chosen % 2 == 1).all()
    assert index.sample_rows(30).tolist() == chosen.tolist() != index.sample_rows(30, seed=1).tolist()
    assert index.sample_rows(1000).tolist() == list(range(1, 200, 2))


def test_too_much_that_is_dead_makes_an_index_stale(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_ALLOWED_DEAD_ROWS", 10)
    rows = entries(100)
    index = make(Layout(D, has_text=True), rows)
    for stop, stale in ((10, False), (25, False), (26, True)):
        index.replace(np.arange(stop), some(rows, slice(0, 0)))
        assert (len(index), index.rows, index.stale) == (100 - stop, 100, stale)
    few = make(Layout(D, has_text=True), some(rows, slice(0, 20)))
    few.replace(np.arange(10), some(rows, slice(0, 0)))
    assert not few.stale, "so few cost nothing"
    few.replace(np.arange(11), some(rows, slice(0, 0)))
    assert few.stale


def test_filters_are_right_after_every_change_and_however_many_there_were(make: Make) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(200)
    index, table = make(layout, rows), Table(layout, rows)
    where = CategoryFilter(include=frozenset({"a"}))
    for number in range(40):  # more filters than the index caches
        table.check(index, CategoryFilter(exclude=frozenset({"b", f"nobody {number}"})), count=5)
    table.check(index, where)
    gone = next(key for key in table.rows if table.names[key] == "a")
    index.replace(np.array([gone]), some(rows, slice(0, 0)))
    del table.rows[gone]
    table.check(index, where)
    assert gone not in index.video_pks(index.search(np.ones(layout.width, np.float32), 200, where)[0])
    late = Entries(np.array([500]), rows.visual[:1], rows.text[:1], rows.has_text[:1], ("late",))  # type: ignore[index]
    index.replace(NOBODY, late)
    only = CategoryFilter(include=frozenset({"late"}))
    assert index.video_pks(index.search(np.ones(layout.width, np.float32), 200, only)[0]).tolist() == [500]


def test_a_video_that_is_put_in_again_is_in_once(make: Make) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(50)
    index = make(layout, rows)
    for _ in range(3):
        index.replace(np.array([49, 48]), some(rows, [49, 48]))  # the last primary keys are tracked like the first
    assert (len(index), index.rows) == (50, 56)
    Table(layout, rows).check(index)


def test_columns_grow_past_what_they_began_with(tmp_path: Path) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(3000)
    index = FlatIndex(layout)
    for start, stop in ((0, 1000), (1000, 1024), (1024, 1025), (1025, 3000)):
        index.replace(NOBODY, some(rows, slice(start, stop)))
    Table(layout, rows).check(index)
    assert index.video_pks(np.arange(3000)).tolist() == rows.video_pks.tolist()
    state, files = index.freeze()(tmp_path)
    assert (
        {state["vectors"], state["table"]}
        == {file.name for file in files}
        == {path.name for path in tmp_path.iterdir()}
    )
    loaded = FlatIndex.load(layout, tmp_path, state)
    Table(layout, rows).check(loaded)
    loaded.replace(np.array([2999, 3000]), some(rows, [2999]))
    assert len(loaded) == 3000
    np.fromfile(tmp_path / state["vectors"], dtype=np.float32)[: 10 * layout.width].tofile(tmp_path / state["vectors"])
    with pytest.raises(ValueError, match=r"^the snapshot has 10 vectors for 3000 rows$"):
        FlatIndex.load(layout, tmp_path, state)


def test_moments_follow_through_changes(make: Make) -> None:
    layout = Layout(D, has_text=True)
    rows = entries(300)
    index = make(layout, rows)
    index.replace(rows.video_pks[:100], some(entries(1000, seed=5), slice(500, 550)))
    left, new = some(rows, slice(100, None)), some(entries(1000, seed=5), slice(500, 550))
    visual = np.concatenate([left.visual, new.visual]).astype(np.float64)
    text = np.concatenate([left.text[left.has_text], new.text[new.has_text]])  # type: ignore[index]
    q = np.random.default_rng(1).standard_normal((2, D))
    seen, read = index.similarity(q[0], q[1])
    assert seen == pytest.approx((np.mean(visual @ q[0]), np.std(visual @ q[0])), abs=1e-9)
    assert read == pytest.approx((np.mean(text @ q[1]), np.std(text @ q[1])), abs=1e-9)
    np.testing.assert_allclose(index.mean_text, text.mean(axis=0), atol=1e-7)


def test_frames_are_rows_without_captions(make: Make) -> None:
    layout = Layout(D, has_text=False)
    rows = entries(200, captions=False)
    owners = Entries(rows.video_pks // 4, rows.visual, None, rows.has_text, rows.categories)
    index = make(layout, owners)
    query = rows.visual[41]
    best, products = index.search(query, 3)
    assert (index.video_pks(best)[0], products[0]) == (10, pytest.approx(1, abs=1e-6))
    index.replace(np.array([10]), some(owners, slice(0, 0)))
    assert len(index) == 196
    assert 10 not in index.video_pks(index.search(query, 196)[0])
