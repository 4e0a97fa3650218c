"""A plain table of what an index holds, to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from service.index.base import Index
from service.index.layout import Layout
from service.models import EVERY_CATEGORY, CategoryFilter, Entries
from service.vectors import normalise

D = 16
NOBODY = np.zeros(0, dtype=np.int64)
Make = Callable[[Layout, Entries], Index]


def entries(count: int, seed: int = 0, captions: bool = True, dimension: int = D) -> Entries:
    """Made-up rows: clusters, a fifth without a caption, three categories and none."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, dimension))
    near = centres[rng.integers(40, size=count)]
    has_text = rng.random(count) > 0.2 if captions else np.zeros(count, dtype=np.bool_)
    text = normalise(near + rng.standard_normal((count, dimension))) * has_text[:, None]
    return Entries(
        np.arange(count),
        normalise(near + rng.standard_normal((count, dimension))),
        text.astype(np.float32) if captions else None,
        has_text,
        tuple(np.array(["a", "b", "c", None], dtype=object)[rng.integers(4, size=count)]),
    )


def some(all_of_them: Entries, rows: Any) -> Entries:
    """A part."""
    text = None if all_of_them.text is None else all_of_them.text[rows]
    names = tuple(np.array(all_of_them.categories, dtype=object)[rows])
    return Entries(all_of_them.video_pks[rows], all_of_them.visual[rows], text, all_of_them.has_text[rows], names)


class Table:
    """What should be in an index."""

    def __init__(self, layout: Layout, rows: Entries) -> None:
        self.layout = layout
        self.rows = dict(zip(rows.video_pks.tolist(), layout.join(rows.visual, rows.text, rows.has_text), strict=True))
        self.names = dict(zip(rows.video_pks.tolist(), rows.categories, strict=True))

    def check(self, index: Index, where: CategoryFilter = EVERY_CATEGORY, count: int = 20, seed: int = 9) -> None:
        """The best keys and products are NumPy's, and are bit by bit those of the rows that were put in."""
        rng = np.random.default_rng(seed)
        kept = [key for key in self.rows if self.names[key] in where]
        matrix = np.array([self.rows[key] for key in kept]).reshape(-1, self.layout.width)
        for _ in range(5):
            query = rng.standard_normal(self.layout.width).astype(np.float32)
            rows, products = index.search(query, count, where)
            expected = np.sort(-(matrix @ query))[:count]
            np.testing.assert_allclose(-products, expected, atol=1e-5)
            for key, row in zip(index.video_pks(rows).tolist(), index.get(rows), strict=True):
                np.testing.assert_array_equal(row, self.rows[key])


FILTERS = [
    EVERY_CATEGORY,
    CategoryFilter(include=frozenset({"a"})),
    CategoryFilter(include=frozenset({"a", None}), exclude=frozenset({"a"})),
    CategoryFilter(exclude=frozenset({None, "b"})),
    CategoryFilter(include=frozenset({"nobody"})),
    CategoryFilter(include=frozenset()),
]
