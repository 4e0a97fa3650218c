"""Tests of embedding arithmetic against NumPy on the whole set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models import Embeddings
from service.vectors import VectorStats, aggregate, normalise, pack, unpack


def _unit(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    return normalise(rng.standard_normal((count, dimension)))


def test_what_is_packed_comes_back() -> None:
    vectors = _unit(np.random.default_rng(0), 3, 5)
    assert np.array_equal(unpack(pack(vectors), 5), vectors)
    with pytest.raises(ValueError, match="reshape"):
        unpack(pack(vectors)[:-4], 5)


def test_aggregates_are_unit_vectors_of_mean_and_maximum() -> None:
    frames = _unit(np.random.default_rng(1), 7, 16)
    made = aggregate(frames, None)
    mean, largest = frames.mean(axis=0), frames.max(axis=0)
    np.testing.assert_allclose(made.mean, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(made.max, largest / np.linalg.norm(largest), atol=1e-6)
    assert made.text is None
    assert made.mean.dtype == np.float32


def test_vectors_of_other_shapes_do_not_pass() -> None:
    frames = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="shape"):
        Embeddings(frames, frames[0], frames[0], np.ones(3, np.float32))


def test_a_zero_vector_stays_zero() -> None:
    assert not normalise(np.zeros((1, 4))).any()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), steps=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_moments_stay_exact_through_adding_and_removing(seed: int, steps: list[int]) -> None:
    rng = np.random.default_rng(seed)
    stats, kept = VectorStats(8), np.zeros((0, 8), np.float32)
    for step in steps:
        if len(kept) > step and rng.random() < 0.4:
            stats.add(kept[:step], -1)
            kept = kept[step:]
        else:
            new = _unit(rng, step, 8)
            stats.add(new)
            kept = np.concatenate([kept, new])
        query = _unit(rng, 1, 8)[0]
        similarities = kept.astype(np.float64) @ query.astype(np.float64)
        mean, std = stats.similarity(query)
        assert mean == pytest.approx(similarities.mean(), abs=1e-9)
        assert std == pytest.approx(similarities.std(), abs=1e-6)


def test_no_vectors_have_no_spread() -> None:
    assert VectorStats(4).similarity(np.ones(4, np.float32)) == (0.0, 0.0)
