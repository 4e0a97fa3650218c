"""Compute the fingerprint of a clip: small grey images of its frames.

`search/duplicates.py` compares fingerprints to find near-duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from service.media.colours import Pixels, to_rgb
from service.media.container import Clip, Limits, check_frame, no_frame
from service.media.pixels import orient, to_sdr
from service.media.shape import display_matrix, displayed_size, turns_sideways
from service.media.timeline import Timeline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

FINGERPRINT_SIDE = 16
_FINGERPRINT_FRAMES = 1024  # every frame of half a minute; 256 KiB
_WORKING_SIDE = 256  # pixels; fine enough to find the edge of a black bar
_BLACK_LEVEL = 16  # of 255; the mean of a row of a black bar is lower, even with compression noise
_BLANK_DEVIATION = 6.0  # of 255; an image with a lower standard deviation counts as blank


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Small grey images of a clip's frames, in display order, without the blank ones.

    `images` is (V, N, 16, 16) uint8; each frame is stretched to a square. V is 1, or 2 if the clip has black borders:
    first without them, then with them. N is 0 if every frame is blank. `sound` says whether the clip has sound; it
    takes no part in the comparison.
    """

    images: Pixels
    sound: bool

    def __post_init__(self) -> None:
        side = FINGERPRINT_SIDE
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[0] not in (1, 2) or shape[2:] != (side, side):
            raise ValueError(
                f"images: must be uint8 of shape (1 or 2, N, {side}, {side}), not {self.images.dtype} of shape {shape}"
            )


def fingerprint(source: Path | BinaryIO, limits: Limits, *, threads: int = 0) -> Fingerprint:
    """Compute the fingerprint of a clip, from all frames or from 1,024 evenly spread ones.

    Raises:
        Undecodable: If the clip cannot be decoded.
        InvalidInput: If the clip exceeds `limits`.
    """
    from av.video.reformatter import VideoReformatter

    images: list[Pixels] = []
    reformatter = VideoReformatter()
    size = (0, 0)
    with Clip(source, limits, threads) as clip:
        sound = clip.has_sound
        timeline = Timeline.read(clip)
        for _, frame in timeline.frames(clip, timeline.spread(_FINGERPRINT_FRAMES)):
            check_frame(frame, limits)
            if not images:  # a stream may change its size or turn midway; the first frame's size is used for all
                width, height = displayed_size(frame, 1.0)  # the squares at the end have no aspect
                scale = min(1.0, _WORKING_SIDE / max(width, height))
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
            images.append(_small_grey(reformatter, frame, size))
    if not images:
        raise no_frame()
    squares = _squares(np.stack(images))
    return Fingerprint(squares[:, squares[0].std(axis=(1, 2)) >= _BLANK_DEVIATION], sound)


def _small_grey(reformatter: VideoReformatter, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
    """Return (H, W) uint8: the frame in grey, upright and in standard dynamic range.

    `size` is the (width, height) of the result. The frame is scaled down first, which makes a
    fingerprint cheap. An interlaced frame becomes the mean of its fields that way.
    """
    from av.video.reformatter import Interpolation
    from PIL import Image as PillowImage

    matrix = display_matrix(frame)
    width, height = reversed(size) if turns_sideways(matrix) else size
    small = to_rgb(reformatter, frame, width, height, Interpolation.AREA)
    pixels = orient(to_sdr(small, frame.color_trc), matrix)
    return np.asarray(PillowImage.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _squares(images: Pixels) -> Pixels:
    """Reduce (N, H, W) grey images to (V, N, 16, 16) uint8, the means of the cells of a grid.

    The first variant leaves out the black borders. If there are any, a second variant includes them. A border is black
    in every frame and equally wide on both sides, so a dark corner of a scene is not a border. A dark scene can still
    appear to have one, which is why the images with borders are kept too.
    """
    height, width = images.shape[1:]
    top, bottom = _edges(images.mean(axis=2).max(axis=0))
    rows = images[:, int(top) : int(np.ceil(bottom))]
    left, right = _edges(rows.mean(axis=1).max(axis=0))
    variants = [(_averaging_matrix(top, bottom, height), _averaging_matrix(left, right, width))]
    if (top, left) != (0, 0):
        variants.append((_averaging_matrix(0, height, height), _averaging_matrix(0, width, width)))
    squares = np.array([[down @ image @ across.T for image in images] for down, across in variants])
    rounded: Pixels = np.rint(np.clip(squares, 0, 255)).astype(np.uint8)
    return rounded


def _edges(brightness: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the row numbers between which the image lies, without black borders.

    `brightness` (N,) is the maximum brightness of each row over all frames. The result is exact to a fraction of a row:
    a row that is half black is half as bright as its neighbour. With an error of a quarter row, a scene that hardly
    moves would differ more from its near-duplicate than from another gesture.
    """
    count = len(brightness)
    lit = np.flatnonzero(brightness > _BLACK_LEVEL)
    if not len(lit):
        return 0.0, float(count)

    def border(first: int, inner: int, black: int) -> float:
        if not 0 <= inner < count:
            return float(black)
        return black + 1 - min(1.0, float(brightness[first] / max(brightness[inner], 1)))

    begin, end = int(lit[0]), int(lit[-1])
    width = min(border(begin, begin + 1, begin), border(end, end - 1, count - 1 - end))
    return width, count - width


def _averaging_matrix(begin: float, end: float, count: int) -> npt.NDArray[np.float32]:
    """Return the (16, count) float32 matrix that averages rows `begin` to `end` in 16 equal shares.

    The first and the last share include all of a row that is partly border, because black adds nothing to a sum.
    """
    share = (end - begin) / FINGERPRINT_SIDE
    bounds = begin + share * np.arange(FINGERPRINT_SIDE + 1)
    lower, upper = bounds[:-1].copy(), bounds[1:].copy()
    lower[0], upper[-1] = np.floor(begin), np.ceil(end)
    rows = np.arange(count)
    overlap = np.minimum(upper[:, None], rows + 1) - np.maximum(lower[:, None], rows)
    weights: npt.NDArray[np.float32] = (np.clip(overlap, 0, None) / share).astype(np.float32)
    return weights
