"""Both engines behind one protocol against NumPy, and what only the compressed one has to show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain import EVERY_CATEGORY, Categories, Entries
from service.index import compressed
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
    (tmp_path / state["segments"][0]["rows"][0]).write_bytes(b"short")
    with pytest.raises(ValueError, match="shorter"):
        CompressedIndex.load(layout, tmp_path, state)
