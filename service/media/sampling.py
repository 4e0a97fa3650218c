"""Clips and still pictures to what a model takes: the sampled frames, at its size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput, Undecodable
from service.media.container import Clip, Limits, check_frame, no_frame
from service.media.pixels import Pixels, Scaler, fit
from service.media.timeline import Timeline
from service.models import Picture, Probe, Sampling

_FRAME_PIXELS = 100_000  # what the smallest frame costs to decode, as so many pixels of a large one
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, slots=True)
class Sample:
    """The sampled frames of a clip, in order.

    times (N,) float64, seconds from the clip's first frame; pixels (N, H, W, 3) uint8 RGB at the model's size;
    jpegs N pictures to look at, whole frames, at most 640 pixels long.
    """

    probe: Probe
    times: npt.NDArray[np.float64]
    pixels: Pixels
    jpegs: tuple[bytes, ...]

    def __post_init__(self) -> None:
        count = len(self.times)
        if count == 0 or self.pixels.shape[0] != count or len(self.jpegs) != count or self.pixels.shape[3] != 3:
            raise ValueError(f"{count} times, pixels {self.pixels.shape}, {len(self.jpegs)} pictures do not fit")


def sample(
    source: Path | BinaryIO,
    sampling: Sampling,
    picture: Picture,
    limits: Limits,
    *,
    keyframes: bool = False,
    threads: int = 0,
) -> Sample:
    """The frames of a clip that `sampling` names, at the size that `picture` asks for; with `keyframes` the keyframes
    next to those. `threads` are the decoder's, 0: as many as there are cores.

    Raises Undecodable, and InvalidInput where the clip is beyond `limits`.
    """
    times: list[float] = []
    pixels: list[Pixels] = []
    jpegs: list[bytes] = []
    described: Probe | None = None
    scaler = Scaler(picture)
    with Clip(source, limits, threads) as clip:
        timeline = Timeline.read(clip)
        stamps = timeline.sampled(sampling, keyframes=keyframes)
        _check_effort(timeline.effort(stamps), clip, limits)
        for time_seconds, frame in timeline.frames(clip, stamps):
            check_frame(frame, limits)
            described = described or clip.header.describe(frame)
            display = (described.width, described.height)
            times.append(time_seconds)
            pixels.append(scaler.model(frame, display))
            jpegs.append(scaler.jpeg(frame, display))
    if described is None:
        raise no_frame()
    if timeline.duration_seconds:  # what the frames say, not what is claimed of them
        described = replace(described, duration_seconds=timeline.duration_seconds)
    return Sample(described, np.array(times), np.stack(pixels), tuple(jpegs))


def _check_effort(frames: int, clip: Clip, limits: Limits) -> None:
    """An hour of one still is a small file, and minutes of work for a core where only its first frame is a keyframe."""
    width, height = clip.stream.codec_context.width, clip.stream.codec_context.height
    if frames * (width * height + _FRAME_PIXELS) > limits.max_decoded_pixels:
        raise InvalidInput(
            "file",
            f"it has so few keyframes that {frames:,} frames of {width} x {height} must be decoded to show a few; "
            "encode it with a keyframe every few seconds, or cut it",
        )


def still(source: Path | BinaryIO, picture: Picture, limits: Limits) -> Pixels:
    """(H, W, 3) uint8: a picture file, upright, at the size that `picture` asks for; of an animation the first frame.

    Raises Undecodable, and InvalidInput where it has more pixels than `limits` allows, before any is unpacked.
    """
    from PIL import Image as PillowImage
    from PIL import ImageOps

    PillowImage.MAX_IMAGE_PIXELS = None  # the limit is ours, and named in our error
    try:
        with PillowImage.open(source, formats=_PICTURES) as image:
            if image.width * image.height > limits.max_pixels:
                size = f"{image.width:,} x {image.height:,}"
                raise InvalidInput("file", f"the picture has {size} pixels; at most {limits.max_pixels:,} are taken")
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except InvalidInput:
        raise
    except Exception as error:  # each format's reader raises its own
        raise Undecodable("the file is not a JPEG, PNG, WebP, GIF or BMP picture that can be read") from error
    return fit(shown, picture, shown.size)
