"""Which frames are taken of which time stamps, and how many must be decoded for them. No clip is read here."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from service.domain import Sampling
from service.video import choose
from service.video.timeline import Timeline


def _timeline(
    stamps: list[int],
    keyframes: list[int],
    *,
    length: int = 0,
    time_base: float = 0.1,
    trusted: bool = True,
) -> Timeline:
    return Timeline(array("q", stamps), array("q", keyframes), length, time_base, trusted)


EVERY_TEN = _timeline(list(range(0, 100, 1)), list(range(0, 100, 10)))


def test_each_share_shows_what_is_on_the_screen_in_its_middle() -> None:
    times = np.array([0.0, 1.0, 2.0, 3.0])
    assert choose(times, 4.0, Sampling(1)).tolist() == [2]
    assert choose(times, 4.0, Sampling(2)).tolist() == [1, 3]
    assert choose(times, 5.9, Sampling(1)).tolist() == [2], "the last frame is shown longest"
    assert choose(times, 9.0, Sampling(2)).tolist() == [2, 3]
    assert choose(np.array([10.0, 11.0, 12.0, 13.0]), 14.0, Sampling(2)).tolist() == [1, 3]
    # Where shares show the same frame, the later takes the next one, and there is room for all.
    assert choose(np.array([0.0, 1.0, 1.1, 1.2, 1.3]), 10.0, Sampling(3)).tolist() == [2, 3, 4]
    assert choose(np.array([0.0, 8.0, 9.0]), 10.0, Sampling(3)).tolist() == [0, 1, 2]
    assert choose(np.array([0.0, 7.0, 8.0, 9.0]), 10.0, Sampling(2)).tolist() == [0, 1]
    assert choose(times, 4.0, Sampling(9)).tolist() == [0, 1, 2, 3]


def test_every_nth_frame() -> None:
    times = np.arange(10.0)
    assert choose(times, 10.0, Sampling(3, 4)).tolist() == [0, 4, 8]
    assert choose(times, 10.0, Sampling(2, 4)).tolist() == [0, 4]
    assert choose(times, 10.0, Sampling(30, 5)).tolist() == [0, 5]


def test_a_clip_lasts_to_the_end_of_its_last_frame() -> None:
    assert _timeline([0, 2, 4], [0], length=3).duration_seconds == pytest.approx(0.7)
    assert _timeline([5, 7, 9], [5]).duration_seconds == pytest.approx(0.6), "by the usual gap"
    assert _timeline([0, 1, 2, 3, 13], [0]).duration_seconds == pytest.approx(1.4), "which is the median"
    assert _timeline([4], [4]).duration_seconds is None
    assert _timeline([], []).duration_seconds is None
    assert _timeline([0, 1], [0], time_base=0.0).duration_seconds is None


def test_stamps_are_put_in_order_and_counted_once() -> None:
    timeline = _timeline([6, 2, 4, 2, 0], [0])
    assert timeline.stamps.tolist() == [0, 2, 4, 6]
    assert timeline.duration_seconds == pytest.approx(0.8)


def test_frames_before_the_first_keyframe_cannot_be_shown() -> None:
    timeline = _timeline([0, 1, 2, 3, 4, 5], [4, 2])
    assert timeline.stamps.tolist() == [2, 3, 4, 5]
    assert timeline.duration_seconds == pytest.approx(0.6), "the clip begins where its first frame would"
    assert timeline.sampled(Sampling(2)) == [3, 5]
    assert _timeline([0, 1, 2], []).stamps.tolist() == [0, 1, 2]


def test_sampled_stamps() -> None:
    assert EVERY_TEN.sampled(Sampling(4)) == [12, 37, 62, 87]
    assert EVERY_TEN.sampled(Sampling(3, 30)) == [0, 30, 60]
    assert EVERY_TEN.sampled(Sampling(4), keyframes=True) == [10, 40, 60, 90]
    assert EVERY_TEN.spread(2) == [25, 75]
    assert len(EVERY_TEN.spread(1000)) == 100
    assert all(type(stamp) is int for stamp in EVERY_TEN.sampled(Sampling(4)))
    nothing = _timeline([], [])
    assert (nothing.sampled(Sampling(4)), nothing.spread(4)) == ([], [])


def test_keyframes_are_the_nearest_and_each_once() -> None:
    timeline = _timeline(list(range(20)), [0, 11])
    assert timeline.sampled(Sampling(4), keyframes=True) == [0, 11]
    assert timeline.sampled(Sampling(20), keyframes=True) == [0, 11]
    assert timeline.sampled(Sampling(1), keyframes=True) == [11]
    assert _timeline(list(range(20)), []).sampled(Sampling(2), keyframes=True) == [5, 15]
    # One that is not shown is not taken.
    assert _timeline([0, 1, 3, 4], [0, 2]).sampled(Sampling(1), keyframes=True) == [0]


def test_effort_counts_from_the_keyframe_that_is_worth_a_seek() -> None:
    assert EVERY_TEN.effort([]) == 0
    assert EVERY_TEN.effort([0]) == 1
    assert EVERY_TEN.effort([15]) == 6
    assert EVERY_TEN.effort([15, 18]) == 9
    # From 15 to the keyframe 20 five frames would be saved, from 16 only four.
    assert EVERY_TEN.effort([15, 22]) == 6 + 3
    assert EVERY_TEN.effort([16, 22]) == 13
    assert EVERY_TEN.effort([15, 22, 95]) == 6 + 3 + 6
    assert _timeline(list(range(100)), [0]).effort([15, 95]) == 96
    assert _timeline(list(range(50)), [0, 30]).effort([12, 35]) == 13 + 6


def test_effort_is_all_up_to_the_last_where_packets_and_frames_cannot_be_told_apart() -> None:
    assert _timeline(list(range(0, 100, 2)), list(range(0, 100, 10)), trusted=False).effort([30, 90]) == 46
    assert _timeline(list(range(100)), []).effort([30, 90]) == 91
