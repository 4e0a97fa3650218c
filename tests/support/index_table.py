"""A plain table of the expected contents of an index, to compare an index with."""

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
    """Generate rows in 40 clusters: a fifth without a caption, in three categories or none."""
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
    """Return the entries at the given rows."""
    text = None if all_of_them.text is None else all_of_them.text[rows]
    names = tuple(np.array(all_of_them.categories, dtype=object)[rows])
    return Entries(all_of_them.video_pks[rows], all_of_them.visual[rows], text, all_of_them.has_text[rows], names)


class Table:
    """The rows that an index should contain, by video primary key."""

    def __init__(self, layout: Layout, rows: Entries) -> None:
        self.layout = layout
        self.rows = dict(zip(rows.video_pks.tolist(), layout.join(rows.visual, rows.text, rows.has_text), strict=True))
        self.names = dict(zip(rows.video_pks.tolist(), rows.categories, strict=True))

    def check(self, index: Index, where: CategoryFilter = EVERY_CATEGORY, count: int = 20, seed: int = 9) -> None:
        """Check that searches in the index equal NumPy's exact search over the rows.

        The dot products must agree within 1e-5. The vectors returned by the index must equal the inserted rows exactly.
        """
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
