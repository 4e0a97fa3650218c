"""Tests of the ranking arithmetic with exact numbers."""

from __future__ import annotations

import numpy as np
import pytest

from service.models import Weights
from service.search.ranking import FrameSpan, Line, interval, lines, rounded, select_diverse, sort_key, spans

PLAIN = (Line(1.0, 0.0, 0.0), Line(0.0, 0.0, 0.0))
NOTHING = (np.zeros((0, 2)), np.zeros((0, 2)))


def _at(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_cosine_fusion_is_the_weighted_mean_of_both_similarities() -> None:
    visual, text = lines(((0.2, 0.1), (0.4, 0.3)), Weights(3, 1), "cosine")
    assert (visual, text) == (Line(0.75, 0.0, 0.2), Line(0.25, 0.0, 0.4))
    assert visual(np.array([0.5])) + text(np.array([0.1])) == pytest.approx([0.75 * 0.5 + 0.25 * 0.1])


def test_zscore_fusion_counts_standard_deviations_from_the_mean() -> None:
    visual, text = lines(((0.2, 0.1), (0.4, 0.5)), Weights(1, 3), "zscore")
    assert (visual.a, visual.b, visual.mean) == (pytest.approx(2.5), 0.2, 0.2)
    assert (text.a, text.b, text.mean) == (pytest.approx(1.5), 0.4, 0.4)
    assert visual(np.array([0.3])) == pytest.approx([0.25])


def test_a_modality_in_which_all_are_alike_does_not_count() -> None:
    without, least = lines(((0.2, 0.99e-6), (0.4, 1e-6)), Weights(1, 1), "zscore")
    assert without.a == 0.0
    assert least.a == pytest.approx(0.5e6)


def test_hits_are_ordered_by_score_then_name_then_frame() -> None:
    hits = [(0.5, "b", 1), (0.7, "c", 0), (0.5, "b", 0), (0.5 + 4e-10, "a", 9), (0.5 + 6e-10, "z", 0)]
    assert sorted(hits, key=lambda hit: sort_key(*hit)) == [
        (0.7, "c", 0),
        (0.5 + 6e-10, "z", 0),
        (0.5 + 4e-10, "a", 9),
        (0.5, "b", 0),
        (0.5, "b", 1),
    ]
    assert sort_key(0.25, "a") == (-0.25, "a", 0)
    assert rounded(np.array([0.5, 0.5 + 4e-10, 0.5 + 6e-10])).tolist() == [0.5, 0.5, 0.500000001]


def test_diverse_selections_trade_relevance_against_what_was_taken() -> None:
    relevance = np.array([1.0, 0.95, 0.5, 0.4])
    visual, text = _at(0, 10, 90, 180), np.zeros((4, 2))

    def take(diversity: float, count: int = 4) -> list[int]:
        return select_diverse(relevance, visual, text, PLAIN, diversity, count, NOTHING)

    assert take(0.0) == [0, 1, 2, 3]
    # After 0: 1 scores 0.5 x 0.95 - 0.5 x cos 10°, nearly 0; 2 scores 0.25; 3 scores 0.2 + 0.5.
    assert take(0.5) == [0, 3, 2, 1]
    assert take(0.5, 2) == [0, 3]
    # 0.8 x relevance - 0.2 x similarity: 0.563, 0.4 and 0.52 after the first; then 0.366 and 0.52 remain.
    assert take(0.2) == [0, 1, 3, 2]
    assert take(1.0, 9) == [0, 3, 2, 1]


def test_diverse_selections_measure_on_both_lines() -> None:
    relevance = np.array([1.0, 0.9, 0.9])
    visual, text = _at(0, 0, 60), _at(0, 120, 0)
    # In text, the second differs most (cos 120°); visually, the third does (cos 60°).
    for slope, expected in ((0.1, [0, 2, 1]), (2.0, [0, 1, 2])):
        both_lines = (Line(1.0, 0.0, 0.0), Line(slope, 0.0, 0.0))
        assert select_diverse(relevance, visual, text, both_lines, 0.5, 3, NOTHING) == expected


def test_a_page_of_a_diverse_selection_goes_on_from_what_was_shown() -> None:
    relevance = np.array([0.9, 0.8])
    visual, text = _at(0, 90), np.zeros((2, 2))
    assert select_diverse(relevance, visual, text, PLAIN, 0.5, 2, NOTHING) == [0, 1]
    shown = (_at(90, 0), np.zeros((2, 2)))
    assert select_diverse(relevance, visual, text, PLAIN, 0.5, 2, (_at(0), np.zeros((1, 2)))) == [1, 0]
    assert select_diverse(relevance, visual, text, PLAIN, 0.5, 2, shown) == [0, 1]


def test_a_tie_within_rounding_goes_to_the_more_relevant() -> None:
    relevance = np.array([0.5, 0.5 + 4e-10])
    assert select_diverse(relevance, _at(0, 0), np.zeros((2, 2)), PLAIN, 0.0, 2, NOTHING) == [0, 1]


def test_moments_reach_over_neighbours_that_answer_nearly_as_well() -> None:
    similarities = np.array([0.1, 0.9, 1.0, 0.8, 0.4, 0.75, 0.7])
    # Half of 0.4 below the peak includes 0.8, but nothing lower; then 0.75 is the best remaining frame.
    cut = [FrameSpan(1, 3, 2), FrameSpan(5, 6, 5), FrameSpan(4, 4, 4), FrameSpan(0, 0, 0)]
    assert spans(similarities, 0.4, 0.5) == cut
    assert spans(similarities, 0.0, 0.5)[0] == FrameSpan(2, 2, 2)
    assert spans(similarities, 2.0, 0.5) == [FrameSpan(0, 6, 2)]


def test_a_moment_reaches_as_far_as_frames_answer_nearly_as_well() -> None:
    similarities = np.full(12, 0.1)
    similarities[2:10] = 0.9
    similarities[6] = 1.0
    assert spans(similarities, 0.4, 0.5)[0] == FrameSpan(2, 9, 6)


def test_frames_that_answer_alike_are_moments_in_their_order() -> None:
    apart = np.array([0.5, 0.1] * 40)
    assert [span.best for span in spans(apart, 0.0, 0.5)] == [*range(0, 80, 2), *range(1, 80, 2)]


def test_a_moment_does_not_reach_into_another() -> None:
    # The span of the second peak would include the frame of 0.85, but that frame may belong to the first.
    cut = [FrameSpan(0, 0, 0), FrameSpan(1, 2, 2), FrameSpan(3, 3, 3)]
    assert spans(np.array([1.0, 0.85, 0.9, 0.2]), 0.2, 0.5) == cut
    assert spans(np.array([1.0, 0.9, 0.7, 0.85]), 0.4, 0.5) == [FrameSpan(0, 1, 0), FrameSpan(2, 3, 3)]


def test_the_first_of_equal_frames_is_the_best_of_its_moment() -> None:
    assert spans(np.array([0.5, 0.5 + 4e-10]), 1.0, 0.5) == [FrameSpan(0, 1, 0)]
    assert spans(np.array([]), 1.0, 0.5) == []


def test_a_moment_lasts_half_way_to_its_neighbours() -> None:
    times = [0.5, 1.5, 3.5, 4.0]
    assert interval(times, FrameSpan(0, 0, 0), 5.0) == (0.0, 1.0)
    assert interval(times, FrameSpan(1, 2, 1), 5.0) == (1.0, 3.75)
    assert interval(times, FrameSpan(2, 3, 2), 5.0) == (2.5, 5.0)
    assert interval(times, FrameSpan(2, 3, 2), None) == (2.5, 4.0)
    assert interval(times, FrameSpan(3, 3, 3), 3.0) == (3.75, 4.0), "it does not end before its last frame"
    assert interval([0.5], FrameSpan(0, 0, 0), 2.0) == (0.0, 2.0)
    assert interval([0.5], FrameSpan(0, 0, 0), None) == (0.0, 0.5)
