"""The choice of the video to keep among several near-duplicates of one recording.

The criteria, in order; a later one decides only between the videos that all earlier ones leave:

1. Length. A part must not replace the whole.
2. Pixels, unless the picture was enlarged. Enlarging adds pixels but hardly any bits. A video is taken for an enlarged
   copy, and left out, if a smaller one has too many times its bits per pixel; see `ENLARGED_RATIO`.
3. Bits per pixel and second. A copy that was encoded again usually has fewer.
4. Sound.
5. Age. The oldest is the likeliest original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from service.models import Video

Reason = Literal["longer", "more pixels", "more bits per pixel", "sound", "older"]
"""The criterion that decided between the video to keep and the last of the others."""

ENLARGED_RATIO = 1.5
"""How many times the bits per pixel of a video a smaller one must have, relative to the ratio of their sides.

At equal quality, twice the side means at least half the bits per pixel. Measured on 9 clips at three qualities and 540
resized copies of them, from a third of the size to twice the size. All 243 reduced copies of at most the original's
quality were recognised as worse, and 103 of 162 enlarged ones; the other 59 had too many bits. Copies of a better
quality than the original's (135) mislead: 43 of 81 reduced ones were recognised, and no enlarged one.
"""

# Lengths that differ by less count as equal: containers round them, and encoders drop frames at either end.
_SECONDS = 0.25
_SHARE_OF_LENGTH = 0.01
# Bits per pixel that differ by less count as equal: another container, or the sound, changes them as much.
_SHARE_OF_BITS = 0.1
# How many times the bits of H.264 a codec needs for the same picture. Measured on 9 clips: MJPEG 2 to 8, median 4; GIF
# 4 to 58, median 26, with fewer colours. Codecs that predict a frame from others lie between 0.4 and 2.5 and are not
# distinguished. A copy without loss keeps its advantage, because it cannot be worse than any other.
_RELATIVE_BITS = {"mjpeg": 5, "dvvideo": 5, "dnxhd": 5, "jpeg2000": 5, "prores": 5, "gif": 60}


def choose(videos: Sequence[Video], has_sound: Callable[[Video], bool]) -> tuple[Video, Reason]:
    """Return the video to keep among at least two near-duplicates of one recording, and the reason.

    `has_sound` is called only if sound decides.
    """
    criteria: tuple[tuple[Reason, Callable[[Sequence[Video]], Sequence[Video]]], ...] = (
        ("longer", _longest),
        ("more bits per pixel", _not_enlarged),
        ("more pixels", _largest),
        ("more bits per pixel", _densest),
        ("sound", lambda remaining: [video for video in remaining if has_sound(video)] or remaining),
        ("older", _oldest),
    )
    remaining, because = videos, criteria[-1][0]
    for reason, leave in criteria:
        before, remaining = len(remaining), leave(remaining)
        if len(remaining) < before:
            because = reason
        if len(remaining) == 1:
            break
    return remaining[0], because


def _longest(videos: Sequence[Video]) -> Sequence[Video]:
    longest = max(_seconds(video) for video in videos)
    least = longest - max(_SECONDS, _SHARE_OF_LENGTH * longest)
    return [video for video in videos if _seconds(video) >= least]


def _not_enlarged(videos: Sequence[Video]) -> Sequence[Video]:
    return [video for video in videos if not any(_is_enlarged(video, other) for other in videos)]


def _is_enlarged(video: Video, other: Video) -> bool:
    """Return whether a video is probably an enlarged or spoiled copy of another, smaller one."""
    longer_sides = math.sqrt(_pixels(video) / _pixels(other))
    return longer_sides > 1 and _density(other) >= ENLARGED_RATIO * longer_sides * _density(video) > 0


def _largest(videos: Sequence[Video]) -> Sequence[Video]:
    most = max(_pixels(video) for video in videos)
    return [video for video in videos if _pixels(video) == most]


def _densest(videos: Sequence[Video]) -> Sequence[Video]:
    most = max(_density(video) for video in videos)
    return [video for video in videos if _density(video) >= (1 - _SHARE_OF_BITS) * most]


def _oldest(videos: Sequence[Video]) -> Sequence[Video]:
    return [min(videos, key=lambda video: (video.created_at, video.id))]


def _seconds(video: Video) -> float:
    return video.duration_seconds or 0.0


def _pixels(video: Video) -> int:
    return video.width * video.height


def _density(video: Video) -> float:
    """Return bits per pixel and second, as H.264 would need them; 0 if the length is not known."""
    if not video.duration_seconds:
        return 0.0
    bits = video.size_bytes * 8 / _RELATIVE_BITS.get(video.codec, 1)
    return bits / (_pixels(video) * video.duration_seconds)
