"""Both engines behind one protocol against NumPy, and what only the compressed one has to show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain import EVERY_CATEGORY, Categories, Entries
from service.index import compressed
from service.index import rows as index_rows
from service.index.compressed import CompressedIndex
from service.index.files import digest
from service.index.flat import FlatIndex
from service.index.rows import Index, Layout
from service.vectors import normalise

D = 16
NOBODY = np.zeros(0, dtype=np.int64)
Make = Callable[[Layout, Entries], Index]


def entries(count: int, seed: int = 0, captions: bool = True, dimension: int = D) -> Entries:
    """Made-up rows: clusters, a fifth without a caption, three categories and none."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, dimension))
    near = centres[rng.integers(40, size=count)]
    captioned = rng.random(count) > 0.2 if captions else np.zeros(count, dtype=np.bool_)
    texts = normalise(near + rng.standard_normal((count, dimension))) * captioned[:, None]
    return Entries(
        np.arange(count),
        normalise(near + rng.standard_normal((count, dimension))),
        texts.astype(np.float32) if captions else None,
        captioned,
        tuple(np.array(["a", "b", "c", None], dtype=object)[rng.integers(4, size=count)]),
    )


def some(all_of_them: Entries, rows: Any) -> Entries:
    """A part."""
    captions = None if all_of_them.captions is None else all_of_them.captions[rows]
    names = tuple(np.array(all_of_them.categories, dtype=object)[rows])
    return Entries(all_of_them.keys[rows], all_of_them.pictures[rows], captions, all_of_them.captioned[rows], names)


@pytest.fixture(params=["flat", "compressed"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """An engine with these rows in it."""

    def made(layout: Layout, rows: Entries) -> Index:
        index: Index = FlatIndex(layout)
        if request.param == "compressed":
            sample = layout.join(rows.pictures, rows.captions, rows.captioned)
            index = CompressedIndex.train(layout, tmp_path / "index", sample, len(sample))
        index.replace(NOBODY, rows)
        return index

    return made


class Table:
    """What should be in an index."""

    def __init__(self, layout: Layout, rows: Entries) -> None:
        self.layout = layout
        self.rows = dict(
            zip(rows.keys.tolist(), layout.join(rows.pictures, rows.captions, rows.captioned), strict=True)
        )
        self.names = dict(zip(rows.keys.tolist(), rows.categories, strict=True))

    def check(self, index: Index, where: Categories = EVERY_CATEGORY, count: int = 20, seed: int = 9) -> None:
        """The best keys and products are NumPy's, and are bit by bit those of the rows that were put in."""
        rng = np.random.default_rng(seed)
        kept = [key for key in self.rows if self.names[key] in where]
        matrix = np.array([self.rows[key] for key in kept]).reshape(-1, self.layout.width)
        for _ in range(5):
            query = rng.standard_normal(self.layout.width).astype(np.float32)
            rows, products = index.search(query, count, where)
            expected = np.sort(-(matrix @ query))[:count]
            np.testing.assert_allclose(-products, expected, atol=1e-5)
            for key, row in zip(index.keys(rows).tolist(), index.get(rows), strict=True):
                np.testing.assert_array_equal(row, self.rows[key])


FILTERS = [
    EVERY_CATEGORY,
    Categories(include=frozenset({"a"})),
    Categories(include=frozenset({"a", None}), exclude=frozenset({"a"})),
    Categories(exclude=frozenset({None, "b"})),
    Categories(include=frozenset({"nobody"})),
    Categories(include=frozenset()),
]


def test_searches_filters_changes_and_snapshots(make: Make, tmp_path: Path) -> None:
    layout = Layout(D, captions=True)
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
    index.replace(np.array([10]), some(rows, [10]))  # what comes after `freeze` is not in it
    state, files = write(folder if index.kind == "flat" else tmp_path / "index")
    where_files = folder if index.kind == "flat" else tmp_path / "index"
    for file in files:
        assert digest(where_files / file.name, file.size_bytes) == file.sha256
    loaded = type(index).load(layout, where_files, json.loads(json.dumps(state)))
    for one in (index, loaded):
        for where in FILTERS:
            table.check(one, where)
        assert sorted(one.keys(one.rows_of(np.array([3, 5, 8, 700])))) == [3, 8, 700]
    assert loaded.rows == 603
    loaded.replace(np.array([20]), some(rows, [20]))  # on top of files that are not its own
    table.check(loaded)
    for name, mine, its in zip(
        "vt", index.similarity(*rows.pictures[:2]), loaded.similarity(*rows.pictures[:2]), strict=True
    ):
        assert mine == pytest.approx(its), name
    again = loaded.entries(0, loaded.rows)
    assert {key: table.names[key] for key in again.keys.tolist()} == dict(
        zip(again.keys.tolist(), again.categories, strict=True)
    )
    assert sorted(again.keys.tolist()) == sorted(table.rows)
    index.close()
    loaded.close()


def test_rows_are_joined_and_split_as_they_came() -> None:
    rows = entries(6)
    both, seen = Layout(D, captions=True), Layout(D, captions=False)
    assert (both.width, seen.width) == (2 * D + 1, D)
    joined = both.join(rows.pictures, rows.captions, rows.captioned)
    assert (joined.shape, joined.dtype) == ((6, 2 * D + 1), np.dtype(np.float32))
    assert joined[:, -1].tolist() == [0.0 if there else 1.0 for there in rows.captioned]
    for mine, its in zip(both.split(joined), (rows.pictures, rows.captions, rows.captioned), strict=True):
        np.testing.assert_array_equal(mine, its)
    wide = seen.join(rows.pictures.astype(np.float64)[::-1], None, rows.captioned)
    assert (wide.dtype, wide.flags.c_contiguous) == (np.dtype(np.float32), True)
    pictures, captions, captioned = seen.split(wide)
    np.testing.assert_array_equal(pictures, rows.pictures[::-1])
    assert (captions.shape, captions.any(), captioned.shape, captioned.any()) == ((6, D), False, (6,), False)
    assert captioned.dtype == np.bool_


def test_an_empty_index_answers_with_nothing(make: Make) -> None:
    layout = Layout(D, captions=True)
    rows = entries(40)
    empty = FlatIndex(layout)
    assert (len(empty), empty.rows, empty.stale, empty.serving) == (0, 0, False, False)
    index = make(layout, rows)
    for one, where, count in (
        (empty, EVERY_CATEGORY, 3),
        (index, EVERY_CATEGORY, 0),
        (index, Categories(include=frozenset({"nobody"})), 3),
    ):
        found, products = one.search(np.ones(layout.width, np.float32), count, where)
        assert (found.dtype, products.dtype, len(found), len(products)) == (np.int64, np.float32, 0, 0)
    assert not empty.mean_caption.any()
    assert empty.similarity(np.ones(D), np.ones(D)) == ((0.0, 0.0), (0.0, 0.0))
    empty.replace(np.array([1, 2]), some(rows, slice(0, 0)))
    assert len(empty) == 0


def test_no_more_rows_are_answered_than_there_are(make: Make) -> None:
    layout = Layout(D, captions=True)
    rows = entries(40)
    index = make(layout, rows)
    index.replace(np.array([7]), some(rows, slice(0, 0)))
    assert sorted(index.keys(index.search(np.ones(layout.width, np.float32), 99)[0]).tolist()) == [
        key for key in range(40) if key != 7
    ]


def test_means_without_deviations(make: Make) -> None:
    index = make(Layout(D, captions=True), entries(300))
    q = np.random.default_rng(1).standard_normal((2, D))
    seen, read = index.similarity(q[0], q[1])
    assert index.similarity(q[0], q[1], deviations=False) == ((seen[0], 0.0), (read[0], 0.0))
    assert seen[1] > 0
    assert read[1] > 0


def test_rows_of_one_video_stay_in_their_order(make: Make) -> None:
    layout = Layout(D, captions=False)
    rows = entries(90, captions=False)
    keys = np.concatenate([np.full(30, 8), np.full(30, 3), np.full(30, 5)])
    index = make(layout, Entries(keys, rows.pictures, None, rows.captioned, rows.categories))
    assert index.alive().tolist() == [*range(30, 60), *range(60, 90), *range(30)]
    assert index.rows_of(np.array([5, 8, 77])).tolist() == [*range(30), *range(60, 90)]
    index.replace(np.array([3]), some(rows, slice(0, 0)))
    assert index.alive().tolist() == [*range(60, 90), *range(30)]
    assert index.rows_of(np.array([3])).tolist() == []
    part = index.entries(25, 65)
    assert part.keys.tolist() == [*[8] * 5, *[5] * 5]
    assert part.captions is None
    np.testing.assert_array_equal(part.pictures, rows.pictures[[*range(25, 30), *range(60, 65)]])
    assert part.categories == tuple(rows.categories[row] for row in [*range(25, 30), *range(60, 65)])
    assert not part.captioned.any()


def test_a_random_part_is_of_what_is_alive(make: Make) -> None:
    rows = entries(200)
    index = make(Layout(D, captions=True), rows)
    index.replace(np.arange(0, 200, 2), some(rows, slice(0, 0)))
    chosen = index.some(30)
    assert (len(chosen), len(set(chosen.tolist())), sorted(chosen.tolist())) == (30, 30, chosen.tolist())
    assert (chosen % 2 == 1).all()
    assert index.some(30).tolist() == chosen.tolist() != index.some(30, seed=1).tolist()
    assert index.some(1000).tolist() == list(range(1, 200, 2))


def test_too_much_that_is_dead_makes_an_index_stale(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_rows, "_DEAD_ANYWAY", 10)
    rows = entries(100)
    index = make(Layout(D, captions=True), rows)
    for stop, stale in ((10, False), (25, False), (26, True)):
        index.replace(np.arange(stop), some(rows, slice(0, 0)))
        assert (len(index), index.rows, index.stale) == (100 - stop, 100, stale)
    few = make(Layout(D, captions=True), some(rows, slice(0, 20)))
    few.replace(np.arange(10), some(rows, slice(0, 0)))
    assert not few.stale, "so few cost nothing"
    few.replace(np.arange(11), some(rows, slice(0, 0)))
    assert few.stale


def test_filters_are_right_after_every_change_and_however_many_there_were(make: Make) -> None:
    layout = Layout(D, captions=True)
    rows = entries(200)
    index, table = make(layout, rows), Table(layout, rows)
    where = Categories(include=frozenset({"a"}))
    for number in range(40):  # more than are remembered
        table.check(index, Categories(exclude=frozenset({"b", f"nobody {number}"})), count=5)
    table.check(index, where)
    gone = next(key for key in table.rows if table.names[key] == "a")
    index.replace(np.array([gone]), some(rows, slice(0, 0)))
    del table.rows[gone]
    table.check(index, where)
    assert gone not in index.keys(index.search(np.ones(layout.width, np.float32), 200, where)[0])
    late = Entries(np.array([500]), rows.pictures[:1], rows.captions[:1], rows.captioned[:1], ("late",))  # type: ignore[index]
    index.replace(NOBODY, late)
    only = Categories(include=frozenset({"late"}))
    assert index.keys(index.search(np.ones(layout.width, np.float32), 200, only)[0]).tolist() == [500]


def test_a_video_that_is_put_in_again_is_in_once(make: Make) -> None:
    layout = Layout(D, captions=True)
    rows = entries(50)
    index = make(layout, rows)
    for _ in range(3):
        index.replace(np.array([49, 48]), some(rows, [49, 48]))  # the last keys are as well known as the first
    assert (len(index), index.rows) == (50, 56)
    Table(layout, rows).check(index)


def test_columns_grow_past_what_they_began_with(tmp_path: Path) -> None:
    layout = Layout(D, captions=True)
    rows = entries(3000)
    index = FlatIndex(layout)
    for start, stop in ((0, 1000), (1000, 1024), (1024, 1025), (1025, 3000)):
        index.replace(NOBODY, some(rows, slice(start, stop)))
    Table(layout, rows).check(index)
    assert index.keys(np.arange(3000)).tolist() == rows.keys.tolist()
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
    with pytest.raises(ValueError, match=r"^10 vectors of 3000 rows$"):
        FlatIndex.load(layout, tmp_path, state)


def test_moments_follow_through_changes(make: Make) -> None:
    layout = Layout(D, captions=True)
    rows = entries(300)
    index = make(layout, rows)
    index.replace(rows.keys[:100], some(entries(1000, seed=5), slice(500, 550)))
    left, new = some(rows, slice(100, None)), some(entries(1000, seed=5), slice(500, 550))
    pictures = np.concatenate([left.pictures, new.pictures]).astype(np.float64)
    captions = np.concatenate([left.captions[left.captioned], new.captions[new.captioned]])  # type: ignore[index]
    q = np.random.default_rng(1).standard_normal((2, D))
    seen, read = index.similarity(q[0], q[1])
    assert seen == pytest.approx((np.mean(pictures @ q[0]), np.std(pictures @ q[0])), abs=1e-9)
    assert read == pytest.approx((np.mean(captions @ q[1]), np.std(captions @ q[1])), abs=1e-9)
    np.testing.assert_allclose(index.mean_caption, captions.mean(axis=0), atol=1e-7)


def test_frames_are_rows_without_captions(make: Make) -> None:
    layout = Layout(D, captions=False)
    rows = entries(200, captions=False)
    owners = Entries(rows.keys // 4, rows.pictures, None, rows.captioned, rows.categories)
    index = make(layout, owners)
    query = rows.pictures[41]
    best, products = index.search(query, 3)
    assert (index.keys(best)[0], products[0]) == (10, pytest.approx(1, abs=1e-6))
    index.replace(np.array([10]), some(owners, slice(0, 0)))
    assert len(index) == 196
    assert 10 not in index.keys(index.search(query, 196)[0])


def test_recall_of_the_scan_at_every_weight_and_filter(tmp_path: Path) -> None:
    """Over two segments and far more rows than are looked at closely."""
    wide = 64
    layout = Layout(wide, captions=True)
    rows = entries(80_000, seed=4, dimension=wide)
    rows = Entries(
        rows.keys,
        rows.pictures,
        rows.captions,
        rows.captioned,
        tuple(np.where(np.arange(80_000) % 100 == 0, "percent", np.where(np.arange(80_000) % 2, "half", "rest"))),
    )
    joined = layout.join(rows.pictures, rows.captions, rows.captioned)
    index = CompressedIndex.train(layout, tmp_path, joined[::4], len(joined))
    exact = FlatIndex(layout)
    for one in (index, exact):
        for start in range(0, len(joined), 8192):
            one.replace(NOBODY, some(rows, slice(start, start + 8192)))
        one.replace(np.arange(0, 80_000, 50), some(rows, slice(0, 0)))
    rng = np.random.default_rng(3)
    for where in (EVERY_CATEGORY, Categories(include=frozenset({"half"})), Categories(exclude=frozenset({"half"}))):
        for a, b in ((1, 0), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0, 1)):
            found = 0
            for n in rng.integers(80_000, size=20):
                query = np.concatenate([a * joined[n, :wide], b * joined[n, wide:-1], [0.1 * b]]).astype(np.float32)
                rows_found, products = index.search(query, 10, where)
                _, best = exact.search(query, 10, where)
                found += int(np.count_nonzero(products >= best[-1] - 1e-6))
                assert all(index.keys(rows_found) % 50)
            assert found >= 0.99 * 200, (where, a, b)
    assert index.stale is False
    index.close()
    assert not list(tmp_path.iterdir()), "files that no snapshot names stay behind"


def test_a_disk_that_is_full_on_the_way_leaves_the_index_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(D, captions=True)
    rows = entries(500)
    index = CompressedIndex.train(layout, tmp_path, layout.join(rows.pictures, rows.captions, rows.captioned), 500)
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
    index.replace(np.arange(250, 500), some(rows, slice(250, 500)))  # as the follower tries again
    Table(layout, rows).check(index)
    assert len(index) == 500
    index.close()


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    layout = Layout(D, captions=True)
    rows = entries(100)
    index = CompressedIndex.train(layout, tmp_path, layout.join(rows.pictures, rows.captions, rows.captioned), 100)
    index.replace(NOBODY, rows)
    state, _ = index.freeze()(tmp_path)
    index.close()
    for broken in ({}, {**state, "segments": []}, {**state, "codec": state["table"]}):
        with pytest.raises((ValueError, KeyError, OSError)):
            CompressedIndex.load(layout, tmp_path, broken)
    with pytest.raises(ValueError, match="segments do not fit its table"):
        CompressedIndex.load(layout, tmp_path, {**state, "segments": []})
    for name in (state["table"], state["codec"]):  # what is unpickled may run anything
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
    """Segments of 200 rows, of which a scan takes 64, and at first 25 of each."""
    for name, value in {
        "_SEGMENT_ROWS": 200,
        "_WORTH_KEEPING": 50,
        "_SCAN": 64,
        "_SCAN_PER_ANSWER": 1,
        "_SHARE": 8,
    }.items():
        monkeypatch.setattr(compressed, name, value)


@pytest.mark.usefixtures("small_segments")
def test_the_scan_goes_on_in_a_segment_that_holds_all_of_the_best(tmp_path: Path) -> None:
    layout = Layout(D, captions=True)
    rows = entries(1000)
    query = np.concatenate([normalise(np.random.default_rng(1).standard_normal(D)), np.zeros(D + 1)]).astype(np.float32)
    joined = layout.join(rows.pictures, rows.captions, rows.captioned)
    order = np.argsort(-(joined @ query))
    places = np.concatenate([order[200:600], order[:200], order[600:]])  # the best are the third segment
    rows, joined = some(rows, places), joined[places]
    categories = np.where(np.arange(1000) < 200, "first", np.where(np.arange(1000) % 2, "odd", "even"))
    rows = Entries(np.arange(1000), rows.pictures, rows.captions, rows.captioned, tuple(categories))
    index = CompressedIndex.train(layout, tmp_path, joined, len(joined))
    index.replace(NOBODY, rows)
    for where, kept in (
        (EVERY_CATEGORY, np.ones(1000, dtype=np.bool_)),
        (Categories(include=frozenset({"odd"})), categories == "odd"),  # nobody in the first segment
    ):
        found, products = index.search(query, 40, where)
        best = np.flatnonzero(kept)[np.argsort(-(joined[kept] @ query))][:40]
        assert kept[index.keys(found)].all()
        for keys in (best, index.keys(found)):
            assert np.isin(keys, np.arange(400, 600)).all()
        assert len(set(index.keys(found).tolist()) & set(best.tolist())) >= 25
        np.testing.assert_allclose(products, joined[index.keys(found)] @ query, atol=1e-5)
        assert (found.dtype, products.dtype) == (np.int64, np.float32)
    index.close()


@pytest.mark.usefixtures("small_segments")
def test_a_filter_may_leave_fewer_in_a_scan_than_are_looked_at(tmp_path: Path) -> None:
    layout = Layout(D, captions=True)
    rows = entries(1000)
    categories = tuple(np.where(np.arange(1000) < 70, "few", "many"))  # all of them in one segment
    rows = Entries(rows.keys, rows.pictures, rows.captions, rows.captioned, categories)
    joined = layout.join(rows.pictures, rows.captions, rows.captioned)
    index = CompressedIndex.train(layout, tmp_path, joined, len(joined))
    index.replace(NOBODY, rows)
    query = joined[3]
    found, _ = index.search(query, 40, Categories(include=frozenset({"few"})))
    assert index.keys(found)[0] == 3
    best = np.argsort(-(joined[:70] @ query))[:40]
    assert len(set(index.keys(found).tolist()) & set(best.tolist())) >= 30, "no more than 25 come of one look"
    index.close()


def test_a_loaded_index_is_written_again_only_as_far_as_it_changed(tmp_path: Path) -> None:
    """Of more rows than are copied at once; when it is stale goes with it."""
    layout = Layout(D, captions=True)
    rows = entries(5000)
    joined = layout.join(rows.pictures, rows.captions, rows.captioned)
    index = CompressedIndex.train(layout, tmp_path, joined[:1300], 1300)
    index.replace(NOBODY, rows)
    state, _ = index.freeze()(tmp_path)
    loaded = CompressedIndex.load(layout, tmp_path, state)
    assert not loaded.stale
    again, _ = loaded.freeze()(tmp_path)
    assert again["segments"] == state["segments"], "nothing of a segment has changed"
    more = entries(300, seed=8)
    loaded.replace(NOBODY, replace(more, keys=more.keys + 10_000))
    np.testing.assert_array_equal(loaded.get(np.arange(5000)), joined)
    assert loaded.stale, "more than four times as many as it was fitted to"
    third, _ = loaded.freeze()(tmp_path)
    assert third["segments"] != state["segments"]
    for one in (index, loaded):
        one.close()
