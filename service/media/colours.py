"""Convert the colours of a frame to RGB as players do.

Most clips do not say by which matrix their colours are to be read. Players then choose by the size of the picture, and
so does this module. Everything that looks at a frame converts it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import Interpolation, VideoReformatter

Pixels = npt.NDArray[np.uint8]

# Shown through transparent pixels, as 8-bit grey. White is what a web page shows under a video or image, and what lay
# under the images that CLIP models are trained on: img2dataset, which made LAION and DataComp, puts alpha on white. The
# colours that a file hides under transparent pixels never count.
BACKGROUND = 255
_OPAQUE = 255
_STRIP_ROWS = 64  # mixed at a time: 32-bit integers of a whole 8K frame would take 600 MB
_HD_LINES = 720  # without a tag, frames of at least this height are read by BT.709, smaller ones by BT.601
_LIMITED = 1  # AVCOL_RANGE_MPEG: black is 16 and white is 235
# AVCOL_SPC_BT709, _FCC, _BT470BG, _SMPTE170M, _SMPTE240M and _BT2020_NCL: the matrices that libswscale knows
_KNOWN_MATRICES = (1, 4, 5, 6, 7, 9)
_BT2020_CONSTANT = 10  # AVCOL_SPC_BT2020_CL, which differs little from _BT2020_NCL


def to_rgb(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, interpolation: Interpolation
) -> Pixels:
    """Return (H, W, 3) uint8 RGB: the frame scaled to this size, not turned and not tone-mapped.

    Args:
        reformatter: PyAV's `VideoReformatter`, which keeps its filter for the next frame of the same size.
        frame: The frame as decoded.
        width: Width before rotation, in pixels.
        height: Height before rotation, in pixels.
        interpolation: PyAV's `Interpolation`, with flags.
    """
    if _has_alpha(frame):
        frame = _opaque(frame, interpolation)
    matrix = _matrix(frame)
    scaled = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,  # has no effect on RGB, but a value that libswscale does not know is an error
        interpolation=interpolation,
        threads=1,  # an image takes a millisecond; starting threads takes longer
    )
    pixels: Pixels = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
    if frame.color_range == _LIMITED and _is_grey(frame):
        return _full_range()[pixels]  # libswscale takes grey for full range, whatever its tag
    return pixels


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def _opaque(frame: VideoFrame, interpolation: Interpolation) -> VideoFrame:
    """Return a frame with an alpha channel on the background, as RGB in its own size.

    The frame is not scaled before, because scaling would mix the hidden colours into their neighbours.
    """
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

    matrix = _matrix(frame)
    whole = VideoReformatter().reformat(
        frame,
        format="rgba",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        interpolation=interpolation,
        threads=1,
    )
    rgba = np.asarray(whole.to_ndarray(), dtype=np.uint8)
    shown = np.ascontiguousarray(rgba[..., :3])
    if rgba[..., 3].min() < _OPAQUE:
        for row in range(0, len(rgba), _STRIP_ROWS):
            strip = rgba[row : row + _STRIP_ROWS].astype(np.uint32)
            alpha = strip[..., 3:]
            mixed = strip[..., :3] * alpha + BACKGROUND * (_OPAQUE - alpha)
            shown[row : row + _STRIP_ROWS] = (mixed + _OPAQUE // 2) // _OPAQUE
    return VideoFrame.from_ndarray(shown, format="rgb24")


def _matrix(frame: VideoFrame) -> int | None:
    """Return the matrix to read the colours by, as a number of libswscale; None for the frame's own tag."""
    from av.video.reformatter import Colorspace

    if frame.format.is_rgb or frame.colorspace in _KNOWN_MATRICES:
        return None
    if frame.colorspace == _BT2020_CONSTANT:
        return int(Colorspace.BT2020)
    return int(Colorspace.ITU709 if frame.height >= _HD_LINES else Colorspace.ITU601)


def _is_grey(frame: VideoFrame) -> bool:
    return len(frame.format.components) < 3 and not frame.format.has_palette


def _full_range() -> Pixels:
    """Return the (256,) uint8 table from limited to full range."""
    levels: Pixels = np.rint(np.clip((np.arange(256) - 16) * (255 / 219), 0, 255)).astype(np.uint8)
    return levels
