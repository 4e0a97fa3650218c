"""Tests of matches: whether anything in a library fits a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.index.layout import Layout
from service.models import Weights
from service.search.match import MATCHED_HITS, STRONG, WEAK, match_of
from service.search.query import QueryVector
from tests.support.queries import like, like_video
from tests.support.vector_library import D, VectorLibrary, fill, unit

WEIGHTS = Weights(0.7, 0.3)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[VectorLibrary]:
    """Yield a library of forty videos."""
    made = VectorLibrary(tmp_path)
    fill(made, np.random.default_rng(3), 40)
    yield made
    made.close()


def _noise(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    return np.stack([unit(rng) for _ in range(count)])


def _by_hand(vector: np.ndarray, query: np.ndarray, noise: np.ndarray) -> float:
    others = [sum(float(a) * float(b) for a, b in zip(vector, one, strict=True)) for one in noise]
    mean = sum(others) / len(others)
    deviation = (sum((other - mean) ** 2 for other in others) / len(others)) ** 0.5
    return (sum(float(a) * float(b) for a, b in zip(vector, query, strict=True)) - mean) / deviation


def test_the_score_is_in_deviations_above_random_words() -> None:
    rng = np.random.default_rng(1)
    query, noise, layout = unit(rng), _noise(rng), Layout(D, has_text=True)
    visual, text = _noise(rng, 5), _noise(rng, 5)
    has_text = np.array([True, False, True, False, True])
    rows = layout.join(visual, text, has_text)
    seen = max(_by_hand(one, query, noise) for one in visual)
    written = max(_by_hand(one, query, noise) for one, there in zip(text, has_text, strict=True) if there)
    assert seen != pytest.approx(written)
    for options, expected in (
        ({}, max(seen, written)),
        ({"text": False}, seen),
        ({"visual": False}, written),
    ):
        assert match_of(query, noise, rows, layout, **options).score == pytest.approx(expected, abs=1e-5)
    without = layout.join(visual, text, np.zeros(5, dtype=np.bool_))
    assert match_of(query, noise, without, layout).score == pytest.approx(seen, abs=1e-5)


def test_the_level_follows_from_the_score() -> None:
    """Noise along one axis with deviation 1/s lets the score be any number."""
    layout = Layout(2, has_text=False)
    row = np.array([[1.0, 0.0]], dtype=np.float32)
    for score, level in ((WEAK - 0.1, "none"), (WEAK + 0.1, "weak"), (STRONG - 0.1, "weak"), (STRONG + 0.1, "strong")):
        noise = np.array([[1 / score, 0.0], [-1 / score, 0.0]], dtype=np.float32)
        match = match_of(np.array([1.0, 0.0], dtype=np.float32), noise, row, layout)
        assert (match.level, match.score) == (level, pytest.approx(score, rel=1e-5))


def test_an_answer_to_one_text_says_how_well_it_fits(library: VectorLibrary) -> None:
    rng = np.random.default_rng(2)
    query = unit(rng)
    example = QueryVector(query, query, noise=_noise(rng))
    results = like(library.recommender, example, weights=WEIGHTS, k=40)
    best = [library.items[hit.video.id] for hit in results.hits[:MATCHED_HITS]]
    expected = [_by_hand(one.v, query, example.noise) for one in best]  # type: ignore[arg-type]
    expected += [_by_hand(one.t, query, example.noise) for one in best if one.t is not None]  # type: ignore[arg-type]
    assert results.match is not None
    assert results.match.score == pytest.approx(max(expected), abs=1e-4)
    assert like(library.recommender, example, weights=WEIGHTS, k=10).match == results.match
    by_picture = like(library.recommender, example, weights=Weights(1, 0), k=40)
    assert by_picture.match is not None
    assert by_picture.match.score == pytest.approx(
        max(_by_hand(library.items[hit.video.id].v, query, example.noise) for hit in by_picture.hits[:MATCHED_HITS]),  # type: ignore[arg-type]
        abs=1e-4,
    )
    nothing = like(library.recommender, example, weights=WEIGHTS, min_score=1e6)
    assert nothing.match is not None
    assert (nothing.match.level, nothing.match.score) == ("none", None)


def test_other_queries_say_nothing_of_a_match(library: VectorLibrary) -> None:
    rng = np.random.default_rng(2)
    query = unit(rng)
    example = QueryVector(query, query, noise=_noise(rng))
    first = like(library.recommender, example, weights=WEIGHTS, k=5)
    assert first.match is not None
    for results in (
        like_video(library.recommender, next(iter(library.items)), weights=WEIGHTS),
        like(library.recommender, example, example, weights=WEIGHTS),
        like(library.recommender, replace(example, weight=-1.0), weights=WEIGHTS),
        like(library.recommender, replace(example, noise=None), weights=WEIGHTS),
        like(library.recommender, example, weights=WEIGHTS, k=5, cursor=first.next_cursor),
        like(library.recommender, example, weights=WEIGHTS, group_by="moment"),
    ):
        assert results.hits
        assert results.match is None
