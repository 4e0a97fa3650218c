"""Read clips as model input: sampled frames at the model's size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput
from service.media.colours import Pixels
from service.media.container import Clip, Limits, check_frame, no_frame
from service.media.fields import progressive
from service.media.pixels import Scaler
from service.media.timeline import Timeline
from service.models import ImageSpec, Probe, Sampling

_FRAME_PIXELS = 100_000  # fixed cost of decoding any frame, in pixels of a large frame


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled frames of one clip, in display order.

    Attributes:
        probe: Properties of the clip.
        times: (N,) float64, seconds from the clip's first frame.
        pixels: (N, H, W, 3) uint8 RGB at the model's size.
        thumbnails: N thumbnails, JPEGs of the whole frames; the longer side has at most 640 pixels.
    """

    probe: Probe
    times: npt.NDArray[np.float64]
    pixels: Pixels
    thumbnails: tuple[bytes, ...]

    def __post_init__(self) -> None:
        count = len(self.times)
        if count == 0 or self.pixels.shape[0] != count or len(self.thumbnails) != count or self.pixels.shape[3] != 3:
            raise ValueError(
                f"inconsistent sample: {count} times, pixels {self.pixels.shape}, {len(self.thumbnails)} thumbnails"
            )


def sample(
    source: Path | BinaryIO,
    sampling: Sampling,
    image_spec: ImageSpec,
    limits: Limits,
    *,
    keyframes: bool = False,
    threads: int = 0,
) -> Sample:
    """Decode the frames of a clip that `sampling` selects, at the model's size.

    Args:
        source: The clip; an open file is closed afterwards.
        sampling: Which frames to select.
        image_spec: Image size and preprocessing that the model expects.
        limits: What the clip may cost.
        keyframes: Take the keyframes nearest to the selected frames instead.
        threads: Number of decoder threads; 0 means one per core.

    Raises:
        Undecodable: If the clip cannot be decoded.
        InvalidInput: If the clip exceeds `limits`.
    """
    times: list[float] = []
    pixels: list[Pixels] = []
    thumbnails: list[bytes] = []
    probe: Probe | None = None
    scaler = Scaler(image_spec)
    with Clip(source, limits, threads) as clip:
        timeline = Timeline.read(clip)
        stamps = timeline.sampled(sampling, keyframes=keyframes)
        _check_frames_to_decode(timeline.frames_to_decode(stamps), clip, limits)
        for time_seconds, frame in timeline.frames(clip, stamps):
            check_frame(frame, limits)
            display = clip.displayed_size(frame)
            probe = probe or clip.header.probe(display)
            whole = progressive(frame)
            times.append(time_seconds)
            pixels.append(scaler.model_input(whole, display))
            thumbnails.append(scaler.thumbnail(whole, display))
    if probe is None:
        raise no_frame()
    if timeline.duration_seconds:  # measured from the frames, not declared by the container
        probe = replace(probe, duration_seconds=timeline.duration_seconds)
    return Sample(probe, np.array(times), np.stack(pixels), tuple(thumbnails))


def _check_frames_to_decode(frames: int, clip: Clip, limits: Limits) -> None:
    """Raise InvalidInput if too many frames must be decoded to reach the sampled ones.

    An hour of a still image is a small file. If only its first frame is a keyframe, decoding takes minutes on one core.
    """
    width, height = clip.stream.codec_context.width, clip.stream.codec_context.height
    if frames * (width * height + _FRAME_PIXELS) > limits.max_decoded_pixels:
        raise InvalidInput(
            "file",
            f"the clip has too few keyframes: {frames:,} frames of {width} x {height} must be decoded to sample a few; "
            "encode it with a keyframe every few seconds, or shorten it",
        )
