"""Deinterlace frames whose lines were taken at two moments, as players do."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_FILTER, _OPTIONS = "yadif", "mode=send_frame:deint=interlaced"
_SMALLEST_SIDE = 4  # pixels; the filter refuses smaller frames


def progressive(frame: VideoFrame) -> VideoFrame:
    """Return an interlaced frame without combs, at the moment of its first field; return others unchanged.

    Only this frame is known to the filter, because the frames around it are mostly not decoded. The filter then takes
    the missing lines from the lines above and below. It costs some milliseconds.
    """
    from av.filter import Graph
    from av.video.frame import VideoFrame

    if not frame.interlaced_frame or min(frame.width, frame.height) < _SMALLEST_SIDE:
        return frame
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    deinterlacer = graph.add(_FILTER, _OPTIONS)
    sink = graph.add("buffersink")
    source.link_to(deinterlacer)
    deinterlacer.link_to(sink)
    graph.configure()
    source.push(frame)
    source.push(None)  # no frame follows, so that this one is returned
    whole = sink.pull()
    assert isinstance(whole, VideoFrame)
    return whole
