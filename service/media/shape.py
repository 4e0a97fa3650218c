"""Find the shape in which players show a frame: its size, with the aspect of its pixels and its rotation.

The shape belongs to the frame: a stream may turn, change its size, or change the aspect of its pixels midway.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Matrix = tuple[int, int, int, int]

_ASPECT_UNITS = 4096  # the precision of a measured aspect


def displayed_size(frame: VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """Return the displayed (width, height) of a frame.

    `pixel_aspect` is the width of a pixel divided by its height.
    """
    width, height = frame.width, frame.height
    # Enlarge one side instead of shrinking the other, as players do, so that no pixel is lost.
    if pixel_aspect >= 1:
        width = max(1, round(width * pixel_aspect))
    else:
        height = max(1, round(height / pixel_aspect))
    return (height, width) if turns_sideways(display_matrix(frame)) else (width, height)


def display_matrix(frame: VideoFrame) -> Matrix:
    """Return (a, b, c, d), each -1, 0 or 1: pixel (x, y) is shown at (a x + c y, b x + d y).

    Rotations by anything but a multiple of 90 degrees are ignored.
    """
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    a, b, c, d = (int(np.sign(value)) if abs(value) > 0x8000 else 0 for value in matrix[[0, 1, 3, 4]])
    return (a, b, c, d) if (a and d and not b and not c) or (b and c and not a and not d) else (1, 0, 0, 1)


def turns_sideways(matrix: Matrix) -> bool:
    """Return whether a display matrix swaps width and height."""
    return matrix[1] != 0


def measured_pixel_aspect(frame: VideoFrame) -> float:
    """Return the width of a frame's pixels divided by their height, as the frame itself says; 1 if it does not say.

    PyAV does not show this field of a frame. FFmpeg's scaler does: two lines are scaled to a width that depends on it.
    This takes a millisecond.
    """
    from av.filter import Graph
    from av.video.frame import VideoFrame

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    scale = graph.add("scale", f"w=trunc({_ASPECT_UNITS}*sar):h=2:flags=neighbor:eval=frame")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(sink)
    graph.configure()
    source.push(frame)
    scaled = sink.pull()
    assert isinstance(scaled, VideoFrame)
    return scaled.width / _ASPECT_UNITS
