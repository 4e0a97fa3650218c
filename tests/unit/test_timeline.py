"""Tests of frame selection by time stamp and of the number of frames to decode.

The packets are synthetic; test_sampling reads real clips.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.media import select_frames
from service.media.timeline import Timeline
from service.models import Sampling


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
    assert select_frames(times, 4.0, Sampling(1)).tolist() == [2]
    assert select_frames(times, 4.0, Sampling(2)).tolist() == [1, 3]
    assert select_frames(times, 5.9, Sampling(1)).tolist() == [2], "the last frame is shown longest"
    assert select_frames(times, 9.0, Sampling(2)).tolist() == [2, 3]
    assert select_frames(np.array([10.0, 11.0, 12.0, 13.0]), 14.0, Sampling(2)).tolist() == [1, 3]
    # If two shares show the same frame, the later one takes the next; enough frames remain for the others.
    assert select_frames(np.array([0.0, 1.0, 1.1, 1.2, 1.3]), 10.0, Sampling(3)).tolist() == [2, 3, 4]
    assert select_frames(np.array([0.0, 8.0, 9.0]), 10.0, Sampling(3)).tolist() == [0, 1, 2]
    assert select_frames(np.array([0.0, 7.0, 8.0, 9.0]), 10.0, Sampling(2)).tolist() == [0, 1]
    assert select_frames(times, 4.0, Sampling(9)).tolist() == [0, 1, 2, 3]


def test_every_nth_frame() -> None:
    times = np.arange(10.0)
    assert select_frames(times, 10.0, Sampling(3, 4)).tolist() == [0, 4, 8]
    assert select_frames(times, 10.0, Sampling(2, 4)).tolist() == [0, 4]
    assert select_frames(times, 10.0, Sampling(30, 5)).tolist() == [0, 5]


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
    # A keyframe that is not displayed is not selected.
    assert _timeline([0, 1, 3, 4], [0, 2]).sampled(Sampling(1), keyframes=True) == [0]


def test_effort_counts_from_the_keyframe_that_is_worth_a_seek() -> None:
    assert EVERY_TEN.frames_to_decode([]) == 0
    assert EVERY_TEN.frames_to_decode([0]) == 1
    assert EVERY_TEN.frames_to_decode([15]) == 6
    assert EVERY_TEN.frames_to_decode([15, 18]) == 9
    # A seek to the keyframe 20 saves five frames from 15, but only four from 16.
    assert EVERY_TEN.frames_to_decode([15, 22]) == 6 + 3
    assert EVERY_TEN.frames_to_decode([16, 22]) == 13
    assert EVERY_TEN.frames_to_decode([15, 22, 95]) == 6 + 3 + 6
    assert _timeline(list(range(100)), [0]).frames_to_decode([15, 95]) == 96
    assert _timeline(list(range(50)), [0, 30]).frames_to_decode([12, 35]) == 13 + 6


def test_effort_is_all_up_to_the_last_where_packets_and_frames_cannot_be_told_apart() -> None:
    assert _timeline(list(range(0, 100, 2)), list(range(0, 100, 10)), trusted=False).frames_to_decode([30, 90]) == 46
    assert _timeline(list(range(100)), []).frames_to_decode([30, 90]) == 91


# --- packets


@dataclass
class MadeUpPacket:
    """A packet that makes one frame."""

    pts: int | None
    is_keyframe: bool = False
    dts: int | None = None
    duration: int | None = 1
    is_discard: bool = False


class MadeUpClip:
    """Packets of a synthetic container, each decoded to the frame of its time stamp.

    If `frames` is given, only the packets with these time stamps decode.

    Args:
        packets: The packets in decoding order.
        seeks: The packet that a seek to each time stamp leads to; other seeks fail.
        frames: The time stamps of the packets that decode; None for all.
        container_format: The name of the container format.
        time_base: Seconds per time stamp unit.

    `decoded` lists the time stamps of the decoded packets, each with whether only reference frames were requested.
    """

    def __init__(
        self,
        packets: list[MadeUpPacket],
        seeks: dict[int, int] | None = None,
        *,
        frames: list[int] | None = None,
        container_format: str = "mp4",
        time_base: float | None = 0.1,
    ) -> None:
        self._packets = packets
        self._frames = frames
        self._seeks = seeks or {}
        self._place = 0
        self.decoded: list[tuple[int | None, bool]] = []
        self.reopened = 0
        self.container = SimpleNamespace(format=SimpleNamespace(name=container_format))
        self.stream = SimpleNamespace(time_base=time_base, codec_context=SimpleNamespace(skip_frame="DEFAULT"))

    def reopen(self) -> None:
        self.reopened += 1
        self._place = 0

    def seek(self, stamp: int) -> bool:
        self._place = self._seeks.get(stamp, self._place)
        return stamp in self._seeks

    def packets(self) -> Iterator[MadeUpPacket | None]:
        while self._place < len(self._packets):
            self._place += 1
            yield self._packets[self._place - 1]
        yield None

    def decode(self, packet: MadeUpPacket | None) -> list[Any]:
        if packet is None:
            return []
        self.decoded.append((packet.pts, self.stream.codec_context.skip_frame == "NONREF"))
        if self._frames is not None and packet.pts not in self._frames:
            return []
        return [SimpleNamespace(pts=packet.pts)]

    def read(self) -> Iterator[Any]:
        for packet in self.packets():
            yield from self.decode(packet)


def _packets(count: int, *keyframes: int) -> list[MadeUpPacket]:
    return [MadeUpPacket(number, number in keyframes) for number in range(count)]


def _read(packets: list[MadeUpPacket], **options: Any) -> tuple[Timeline, MadeUpClip]:
    clip = MadeUpClip(packets, **options)
    timeline = Timeline.read(clip)  # type: ignore[arg-type]
    clip.reopen()
    clip.reopened = 0
    return timeline, clip


def _shown(timeline: Timeline, clip: MadeUpClip, stamps: list[int]) -> list[int]:
    shown = []
    for time_seconds, frame in timeline.frames(clip, stamps):  # type: ignore[arg-type]
        assert time_seconds == pytest.approx((frame.pts - int(timeline.stamps[0])) * 0.1)
        shown.append(frame.pts)
    return shown


def test_packets_are_listed_to_the_end() -> None:
    # In decoding order: the last packet is not the frame that is displayed last.
    order = [(0, True, 1), (3, False, 7), (1, False, 2), (2, False, 2)]
    timeline, _ = _read([MadeUpPacket(pts, key, duration=length) for pts, key, length in order])
    assert timeline.stamps.tolist() == [0, 1, 2, 3]
    assert timeline.duration_seconds == pytest.approx(1.0), "3 and its own length of 7"
    assert timeline.frames_to_decode([3]) == 4


@pytest.mark.parametrize("length", [None, 0])
def test_a_last_frame_without_a_length_lasts_as_long_as_the_others(length: int | None) -> None:
    timeline, _ = _read([MadeUpPacket(4 * n, n == 0, duration=length) for n in range(3)])
    assert timeline.duration_seconds == pytest.approx(1.2)
    timeline, _ = _read([MadeUpPacket(-5, True, duration=5), MadeUpPacket(-5, duration=9)])
    assert timeline.duration_seconds == pytest.approx(0.5), "the first of two with one time stamp"


def test_a_clip_without_a_time_base_has_no_duration() -> None:
    assert _read(_packets(3, 0), time_base=None)[0].duration_seconds is None


def test_a_packet_without_a_time_stamp_of_its_own_is_known_by_its_order() -> None:
    packets = [MadeUpPacket(None, n % 10 == 0, dts=n) for n in range(40)]
    timeline, _ = _read(packets)
    assert timeline.stamps.tolist() == list(range(40))
    assert timeline.frames_to_decode([35]) == 36, "no packet is trusted to make a certain frame"
    timeline, _ = _read([MadeUpPacket(None), *_packets(40, 0, 30)])
    assert timeline.stamps.tolist() == list(range(40)), "one with neither is passed over"
    assert timeline.frames_to_decode([35]) == 36


def test_packets_before_an_edit_are_not_shown_and_can_be_begun_at() -> None:
    packets = _packets(40, 0, 20)
    for packet in packets[:25]:
        packet.is_discard = True
    timeline, clip = _read(packets, seeks={20: 20})
    assert timeline.stamps.tolist() == list(range(25, 40))
    assert timeline.duration_seconds == pytest.approx(1.5)
    assert _shown(timeline, clip, [27]) == [27]
    assert [stamp for stamp, _ in clip.decoded] == list(range(20, 28))


def test_stamps_of_an_avi_that_go_back_are_guesses() -> None:
    backward = [MadeUpPacket(pts, pts % 10 == 0) for pts in (0, 2, 1, *range(3, 40))]
    assert _read(backward)[0].frames_to_decode([35]) == 6
    assert _read(backward, container_format="avi")[0].frames_to_decode([35]) == 36
    assert _read(_packets(40, 0, 10, 20, 30), container_format="avi")[0].frames_to_decode([35]) == 6


# --- reading


def test_only_what_a_frame_needs_is_decoded() -> None:
    timeline, clip = _read(_packets(40, 0, 10, 30), seeks={0: 0, 10: 10, 30: 30})
    assert _shown(timeline, clip, [12, 33]) == [12, 33]
    assert clip.decoded == [
        *((10, False), (11, True), (12, False)),  # frames in between are decoded only if other frames refer to them
        *((30, False), (31, True), (32, True), (33, False)),
    ]
    assert clip.reopened == 0


def test_one_reads_on_where_a_seek_saves_little() -> None:
    timeline, clip = _read(_packets(40, 0, 10, 20, 30), seeks={0: 0, 10: 10, 20: 20, 30: 30})
    assert _shown(timeline, clip, [16, 22, 35]) == [16, 22, 35]
    assert [stamp for stamp, _ in clip.decoded] == [*range(10, 23), *range(30, 36)]


def test_a_frame_before_every_keyframe_is_read_from_the_first() -> None:
    timeline, clip = _read(_packets(40, 0, 30), seeks={0: 0, 30: 30})
    assert _shown(timeline, clip, [0, 39]) == [0, 39]
    assert [stamp for stamp, _ in clip.decoded] == [0, *range(30, 40)]


def test_a_seek_that_leads_too_far_back_decodes_nothing_before_the_keyframe() -> None:
    timeline, clip = _read(_packets(40, 0, 10, 30), seeks={30: 3, 0: 0})
    assert _shown(timeline, clip, [33]) == [33]
    assert [stamp for stamp, _ in clip.decoded] == [30, 31, 32, 33]


def test_a_seek_that_leads_too_far_is_given_up_for_reading_from_the_start() -> None:
    timeline, clip = _read(_packets(40, 0, 10, 20, 30), seeks={0: 0, 10: 20, 20: 20, 30: 30})
    assert _shown(timeline, clip, [12, 33]) == [12, 33]
    assert clip.reopened == 1
    assert [stamp for stamp, _ in clip.decoded] == list(range(35)), "nothing was decoded on the wrong way"


def test_a_container_that_cannot_seek_is_read_from_where_it_stands() -> None:
    timeline, clip = _read(_packets(40, 0, 10, 30))
    assert _shown(timeline, clip, [2, 33]) == [2, 33]
    assert clip.reopened == 1, "for the first keyframe only"
    assert [stamp for stamp, _ in clip.decoded] == [0, 1, 2, 30, 31, 32, 33]
    clip.decoded.clear()
    timeline, clip = _read(_packets(40, 0, 10, 30))
    assert _shown(timeline, clip, [33]) == [33]
    assert clip.reopened == 0


def test_a_damaged_frame_is_replaced_by_the_next() -> None:
    frames = [n for n in range(40) if n not in (12, 13, 33)]
    timeline, clip = _read(_packets(40, 0, 10, 30), seeks={0: 0, 10: 10, 30: 30}, frames=frames)
    assert _shown(timeline, clip, [12, 33]) == [14, 34]
    assert clip.reopened == 1
    # One frame that replaces two is returned once.
    timeline, clip = _read(_packets(40, 0, 10, 30), seeks={0: 0, 10: 10, 30: 30}, frames=frames)
    assert _shown(timeline, clip, [12, 13, 33]) == [14, 34]
    timeline, clip = _read(_packets(40, 0), seeks={0: 0}, frames=list(range(20)))
    assert _shown(timeline, clip, [5, 25, 30]) == [5], "at the end there may be fewer"


def test_frames_come_in_their_order_where_packets_do_not_tell() -> None:
    packets = [MadeUpPacket(pts, pts == 0) for pts in (0, 2, 1, 4, 3, 6, 5)]
    timeline, clip = _read(packets, container_format="avi")
    shown = [
        (round(time_seconds, 3), frame.pts)
        for time_seconds, frame in timeline.frames(clip, [1, 4])  # type: ignore[arg-type]
    ]
    assert shown == [(0.1, 2), (0.4, 3)], "the second frame and the fifth, whatever their stamps"
    assert clip.reopened == 1
    # More frames than time stamps: extra frames use their own time stamps.
    timeline, _ = _read(
        [MadeUpPacket(0, True), MadeUpPacket(0), MadeUpPacket(1), MadeUpPacket(0)], container_format="avi"
    )
    longer = MadeUpClip([MadeUpPacket(n) for n in (0, 0, 5, 6)])
    found = [frame.pts for _, frame in timeline.frames(longer, [1, 6])]  # type: ignore[arg-type]
    assert found == [0, 6]
