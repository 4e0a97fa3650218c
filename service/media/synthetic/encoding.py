"""Encode images as an MP4 file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from service.media.colours import Pixels


def encode(images: Iterable[Pixels], path: Path, *, fps: int, width: int, height: int, crf: int = 20) -> None:
    """Encode RGB images, each (H, W, 3) uint8, as an MP4 file that browsers play; the same images give the same bytes.

    Width and height must be even. `crf` is the quality of H.264, from 0, the best, to 51.
    """
    import av  # imported here, so that drawing alone does not need FFmpeg
    from av.codec.codec import UnknownCodecError

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any
        try:
            stream = container.add_stream("libx264", rate=fps)
            stream.options = {"crf": str(crf), "preset": "veryfast"}
        except UnknownCodecError:  # FFmpeg built without GPL parts
            stream = container.add_stream("mpeg4", rate=fps)
            stream.options = {"q": str(max(1, crf * 3 // 20))}
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1  # several clips are written at once, each on one core
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
