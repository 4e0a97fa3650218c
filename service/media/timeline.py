"""Which frames of a clip, and how to get at them with as little decoding as can be. Knows packets, and no pixel.

Frames are either spread evenly in time over the whole clip, each in the middle of its share (so that neither a black
first frame nor the end is taken), or every Nth from the start. A frame is found exactly, by its time stamp: the packets
are listed first, without decoding any. For each target the decoder then reads on or, where a keyframe lies between that
saves more than it costs, seeks to it. Frames on the way that no other frame refers to are not decoded.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from service.media.container import Clip
from service.models import Sampling

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Stamped = Iterator[tuple[int, "VideoFrame"]]

_WORTH_A_SEEK = 4  # frames: to skip fewer costs more than to decode them


def choose(times: npt.NDArray[np.float64], end: float, sampling: Sampling) -> npt.NDArray[np.intp]:
    """Indices of the sampled frames among frames shown at `times` (N,), ascending, of a clip that ends at `end`.

    Evenly spread: the frame on the screen in the middle of each of `num_frames` equal shares of the clip. Where
    the frame rate varies and two shares show the same frame, the later one takes the next, so that there are
    always as many different frames as were asked for, or as the clip has.
    """
    if sampling.frame_interval is not None:
        return np.arange(0, len(times), sampling.frame_interval)[: sampling.num_frames]
    return _evenly(times, end, sampling.num_frames)


def _evenly(times: npt.NDArray[np.float64], end: float, wanted: int) -> npt.NDArray[np.intp]:
    count = len(times)
    wanted = min(wanted, count)
    middles = times[0] + (np.arange(wanted) + 0.5) * (end - times[0]) / wanted
    chosen = np.clip(np.searchsorted(times, middles, side="right") - 1, 0, count - 1)
    steps = np.arange(wanted)
    chosen = np.maximum.accumulate(chosen - steps) + steps  # strictly ascending, and
    fitting: npt.NDArray[np.intp] = np.minimum(chosen, count - wanted + steps)  # leaving room for those that follow
    return fitting


class Timeline:
    """Every frame's time stamp, read from the packets without decoding any. Stamps that are not `trusted` are right as
    a list, but which packet makes which frame is not known."""

    def __init__(self, stamps: array[int], keyframes: array[int], length: int, time_base: float, trusted: bool) -> None:
        every = np.unique(np.array(stamps, dtype=np.int64))
        self._keyframes = np.unique(np.array(keyframes, dtype=np.int64))
        self._origin = int(every[0]) if len(every) else 0
        # A clip that was cut without care begins with frames that refer to ones cut off: they cannot be shown.
        self.stamps = every[every >= self._keyframes[0]] if len(self._keyframes) else every
        self._time_base = time_base
        self._trusted = trusted
        gaps = np.diff(self.stamps)
        last = length or (int(np.median(gaps)) if len(gaps) else 0)
        self._end = int(self.stamps[-1]) + last if len(self.stamps) else 0

    @classmethod
    def read(cls, clip: Clip) -> Timeline:
        """List the packets to the end of the container."""
        stamps, keyframes = array("q"), array("q")  # numbers as C has them: an hour has a hundred thousand
        last, length, trusted = None, 0, True
        for packet in clip.packets():
            if packet is None:
                break
            stamp = packet.pts
            if stamp is None:
                stamp, trusted = packet.dts, False
            if stamp is None:
                continue
            if packet.is_keyframe:
                keyframes.append(stamp)
            if packet.is_discard:
                continue  # before the beginning of an edit: decoded for what refers to it, and not shown
            stamps.append(stamp)
            if last is None or stamp > last:
                last, length = stamp, packet.duration or 0
            elif clip.container.format.name == "avi":
                trusted = False  # it stores none, so in a stream with B-frames they are guessed
        return cls(stamps, keyframes, length, float(clip.stream.time_base or 0), trusted)

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame's start to the last one's end."""
        if not len(self.stamps):
            return None
        return float(self._end - self._origin) * self._time_base or None

    def sampled(self, sampling: Sampling, *, keyframes: bool = False) -> list[int]:
        """The time stamps of the frames that `sampling` names; with `keyframes` of the keyframes nearest to those,
        which are fewer where a clip has fewer."""
        if not len(self.stamps):
            return []
        chosen = self.stamps[choose(self.stamps.astype(np.float64), float(self._end), sampling)]
        if keyframes and len(shown := np.intersect1d(self._keyframes, self.stamps)):
            chosen = shown[np.unique(np.searchsorted((shown[1:] + shown[:-1]) / 2, chosen))]
        stamps: list[int] = chosen.tolist()
        return stamps

    def spread(self, count: int) -> list[int]:
        """The time stamps of `count` frames, evenly spread; of all, where there are fewer."""
        if not len(self.stamps):
            return []
        stamps: list[int] = self.stamps[_evenly(self.stamps.astype(np.float64), float(self._end), count)].tolist()
        return stamps

    def effort(self, stamps: list[int]) -> int:
        """How many frames must be decoded, at most, to show the ones with these time stamps, ascending."""
        if not stamps:
            return 0
        place = self.stamps.searchsorted
        if not (self._trusted and len(self._keyframes)):
            return int(place(stamps[-1])) + 1
        return sum(int(place(targets[-1]) - place(start)) + 1 for start, targets in self._runs(stamps))

    def frames(self, clip: Clip, stamps: list[int]) -> Iterator[tuple[float, VideoFrame]]:
        """The frames with these time stamps, ascending, each with its time in seconds from the first.

        A frame that is damaged is replaced by the next that is not; at the end of a damaged clip there may be fewer.
        """
        wanted = deque(stamps)
        # The short way needs to know which packet makes which frame. Where it misses one, because the clip is damaged
        # or what it calls a keyframe is none, the rest is read from the start, which is slow and right.
        short = self._trusted and len(self._keyframes)
        for way in (self._by_keyframes, self._from_the_start) if short else (self._from_the_start,):
            for stamp, frame in way(clip, wanted):
                if wanted and stamp >= wanted[0]:
                    while wanted and wanted[0] <= stamp:
                        wanted.popleft()
                    yield float(stamp - self._origin) * self._time_base, frame
            if not wanted:
                return

    def _from_the_start(self, clip: Clip, wanted: deque[int]) -> Stamped:
        clip.reopen()
        for number, frame in enumerate(clip.read()):
            if not wanted:
                return
            if not self._trusted and number < len(self.stamps):
                yield int(self.stamps[number]), frame  # frames come out in the order in which they are shown
            elif frame.pts is not None:
                yield frame.pts, frame

    def _by_keyframes(self, clip: Clip, wanted: deque[int]) -> Stamped:
        for keyframe, targets in self._runs(list(wanted)):
            missing = set(targets)
            for packet in self._from(clip, keyframe):
                if packet is None:
                    break
                # A keyframe opens some decoders, which look at this once.
                here = packet.is_keyframe or packet.pts in missing
                clip.stream.codec_context.skip_frame = "DEFAULT" if here else "NONREF"
                yield from _stamped(clip.decode(packet))
                missing.discard(packet.pts)
                if not missing:
                    break
            # All that the targets need is in the decoder: it need not read on to let go of them.
            yield from _stamped(clip.decode(None))
            if wanted and wanted[0] <= targets[-1]:
                return  # missed

    def _runs(self, stamps: list[int]) -> Iterator[tuple[int, list[int]]]:
        """The targets in groups that are read in one go, each with the keyframe to begin at."""
        starts = self._keyframes[np.maximum(np.searchsorted(self._keyframes, stamps, side="right") - 1, 0)]
        saved = np.searchsorted(self.stamps, starts[1:]) - np.searchsorted(self.stamps, stamps[:-1])
        first = 0
        for n in (*(np.flatnonzero(saved > _WORTH_A_SEEK) + 1).tolist(), len(stamps)):
            yield int(starts[first]), stamps[first:n]
            first = n

    def _from(self, clip: Clip, keyframe: int) -> Iterator[Packet[VideoStream] | None]:
        """The packets from this keyframe on; none where there is no way to it."""
        if not clip.seek(keyframe) and keyframe == self._keyframes[0]:
            clip.reopen()  # anywhere else, the packets up to there are read and left alone
        found = False
        for packet in clip.packets():
            found = found or (packet is not None and packet.pts == keyframe)
            if found:
                yield packet
            elif packet is not None and packet.is_keyframe and packet.pts is not None and packet.pts > keyframe:
                return  # the container's index led past it


def _stamped(frames: list[VideoFrame]) -> Stamped:
    return ((frame.pts, frame) for frame in frames if frame.pts is not None)
