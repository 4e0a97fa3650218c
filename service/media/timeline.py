"""Select frames of a clip by time stamp, and reach them with as little decoding as possible.

Frames are spread evenly in time over the whole clip, each in the middle of its share. Neither a black first frame nor
the end is selected that way. Alternatively, every Nth frame from the start is selected. A frame is found exactly, by
its time stamp: all packets are listed first, without decoding. For each target, the decoder reads on or seeks to a
keyframe, if one in between saves more than the seek costs. Skipped frames that no other frame refers to are not
decoded.
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

_SEEK_COST_FRAMES = 4  # frames; decoding fewer is cheaper than a seek


def select_frames(times: npt.NDArray[np.float64], end: float, sampling: Sampling) -> npt.NDArray[np.intp]:
    """Return the indices of the sampled frames, in ascending order.

    With `frame_interval`, take every Nth frame, at most `num_frames`. Otherwise take the frame on screen in the middle
    of each of `num_frames` equal shares of the clip. If the frame rate varies and two shares show the same frame, the
    later share takes the next frame. The result has as many different frames as requested, or as the clip has.

    Args:
        times: (N,) times at which the frames are shown, ascending.
        end: Time at which the clip ends, in the same unit.
        sampling: How many frames to select, and how.
    """
    if sampling.frame_interval is not None:
        return np.arange(0, len(times), sampling.frame_interval)[: sampling.num_frames]
    return _evenly(times, end, sampling.num_frames)


def _evenly(times: npt.NDArray[np.float64], end: float, wanted: int) -> npt.NDArray[np.intp]:
    """Return the indices of `wanted` frames, evenly spread in time; of all frames if there are fewer."""
    count = len(times)
    wanted = min(wanted, count)
    middles = times[0] + (np.arange(wanted) + 0.5) * (end - times[0]) / wanted
    chosen = np.clip(np.searchsorted(times, middles, side="right") - 1, 0, count - 1)
    steps = np.arange(wanted)
    chosen = np.maximum.accumulate(chosen - steps) + steps  # strictly ascending
    fitting: npt.NDArray[np.intp] = np.minimum(chosen, count - wanted + steps)  # leave room for the frames that follow
    return fitting


class Timeline:
    """Time stamps of all frames of a clip, read from its packets without decoding.

    Stamps are in units of the stream's time base. If they are not trusted, they are right as a list, but which packet
    produces which frame is unknown.
    """

    def __init__(self, stamps: array[int], keyframes: array[int], length: int, time_base: float, trusted: bool) -> None:
        every = np.unique(np.array(stamps, dtype=np.int64))
        self._keyframes = np.unique(np.array(keyframes, dtype=np.int64))
        self._origin = int(every[0]) if len(every) else 0
        # A carelessly cut clip begins with frames that refer to missing frames. Those cannot be shown.
        self.stamps = every[every >= self._keyframes[0]] if len(self._keyframes) else every
        self._time_base = time_base
        self._trusted = trusted
        gaps = np.diff(self.stamps)
        last = length or (int(np.median(gaps)) if len(gaps) else 0)
        self._end = int(self.stamps[-1]) + last if len(self.stamps) else 0

    @classmethod
    def read(cls, clip: Clip) -> Timeline:
        """List the time stamps of all packets, to the end of the container."""
        stamps, keyframes = array("q"), array("q")  # C integers, to save memory: an hour has a hundred thousand
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
                continue  # before the start of an edit: decoded as a reference, but not shown
            stamps.append(stamp)
            if last is None or stamp > last:
                last, length = stamp, packet.duration or 0
            elif clip.container.format.name == "avi":
                trusted = False  # AVI stores no time stamps, so they are guessed in streams with B-frames
        return cls(stamps, keyframes, length, float(clip.stream.time_base or 0), trusted)

    @property
    def duration_seconds(self) -> float | None:
        """Seconds from the start of the first frame to the end of the last; None if unknown."""
        if not len(self.stamps):
            return None
        return float(self._end - self._origin) * self._time_base or None

    def sampled(self, sampling: Sampling, *, keyframes: bool = False) -> list[int]:
        """Return the time stamps of the frames that `sampling` selects.

        With `keyframes`, return those of the nearest keyframes instead. They are fewer if the clip has fewer keyframes.
        """
        if not len(self.stamps):
            return []
        chosen = self.stamps[select_frames(self.stamps.astype(np.float64), float(self._end), sampling)]
        if keyframes and len(shown := np.intersect1d(self._keyframes, self.stamps)):
            chosen = shown[np.unique(np.searchsorted((shown[1:] + shown[:-1]) / 2, chosen))]
        stamps: list[int] = chosen.tolist()
        return stamps

    def spread(self, count: int) -> list[int]:
        """Return the time stamps of `count` evenly spread frames, or of all frames if there are fewer."""
        if not len(self.stamps):
            return []
        stamps: list[int] = self.stamps[_evenly(self.stamps.astype(np.float64), float(self._end), count)].tolist()
        return stamps

    def frames_to_decode(self, stamps: list[int]) -> int:
        """Return how many frames must be decoded, at most, to show those at `stamps` (ascending)."""
        if not stamps:
            return 0
        index_of = self.stamps.searchsorted
        if not (self._trusted and len(self._keyframes)):
            return int(index_of(stamps[-1])) + 1
        return sum(int(index_of(targets[-1]) - index_of(start)) + 1 for start, targets in self._runs(stamps))

    def frames(self, clip: Clip, stamps: list[int]) -> Iterator[tuple[float, VideoFrame]]:
        """Yield the frames at `stamps` (ascending), each with its time in seconds from the first frame.

        A damaged frame is replaced by the next intact one. At the end of a damaged clip, there may be fewer frames.
        """
        wanted = deque(stamps)
        # Seeking requires that each packet's frame is known. A seek misses a frame if the clip is damaged or a packet
        # is wrongly flagged as a keyframe. The rest is then read from the start, which is slow but right.
        seekable = self._trusted and len(self._keyframes)
        for decode in (self._by_keyframes, self._from_the_start) if seekable else (self._from_the_start,):
            for stamp, frame in decode(clip, wanted):
                if wanted and stamp >= wanted[0]:
                    while wanted and wanted[0] <= stamp:
                        wanted.popleft()
                    yield float(stamp - self._origin) * self._time_base, frame
            if not wanted:
                return

    def _from_the_start(self, clip: Clip, wanted: deque[int]) -> Stamped:
        """Yield every frame with its time stamp, from the start until `wanted` is empty."""
        clip.reopen()
        for number, frame in enumerate(clip.read()):
            if not wanted:
                return
            if not self._trusted and number < len(self.stamps):
                yield int(self.stamps[number]), frame  # the decoder returns frames in display order
            elif frame.pts is not None:
                yield frame.pts, frame

    def _by_keyframes(self, clip: Clip, wanted: deque[int]) -> Stamped:
        """Yield the frames decoded from the keyframes before the targets; stop if a target is missed."""
        for keyframe, targets in self._runs(list(wanted)):
            missing = set(targets)
            for packet in self._packets_from(clip, keyframe):
                if packet is None:
                    break
                # Some decoders open on a keyframe and read this setting only then.
                here = packet.is_keyframe or packet.pts in missing
                clip.stream.codec_context.skip_frame = "DEFAULT" if here else "NONREF"
                yield from _stamped(clip.decode(packet))
                missing.discard(packet.pts)
                if not missing:
                    break
            # The decoder already has every packet that the targets need: flush it instead of reading on.
            yield from _stamped(clip.decode(None))
            if wanted and wanted[0] <= targets[-1]:
                return  # a target was missed

    def _runs(self, stamps: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Group the targets into runs that are read without a seek; yield the start keyframe and targets of each."""
        starts = self._keyframes[np.maximum(np.searchsorted(self._keyframes, stamps, side="right") - 1, 0)]
        saved = np.searchsorted(self.stamps, starts[1:]) - np.searchsorted(self.stamps, stamps[:-1])
        first = 0
        for n in (*(np.flatnonzero(saved > _SEEK_COST_FRAMES) + 1).tolist(), len(stamps)):
            yield int(starts[first]), stamps[first:n]
            first = n

    def _packets_from(self, clip: Clip, keyframe: int) -> Iterator[Packet[VideoStream] | None]:
        """Yield the packets from this keyframe on; none if it cannot be reached."""
        if not clip.seek(keyframe) and keyframe == self._keyframes[0]:
            clip.reopen()  # for later keyframes, the packets before them are read but not decoded
        found = False
        for packet in clip.packets():
            found = found or (packet is not None and packet.pts == keyframe)
            if found:
                yield packet
            elif packet is not None and packet.is_keyframe and packet.pts is not None and packet.pts > keyframe:
                return  # the container's index led past the keyframe


def _stamped(frames: list[VideoFrame]) -> Stamped:
    return ((frame.pts, frame) for frame in frames if frame.pts is not None)
