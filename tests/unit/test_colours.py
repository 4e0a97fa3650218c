"""Tests of colours: every tag of matrix and range, and what players take where there is no tag."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from service.media import Limits, sample
from service.models import ImageSpec, Sampling
from tests.support import services
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=4_000_000)
SMALL = ImageSpec(32, 32)
# Kr and Kb of each matrix, by FFmpeg's code of the colour space
BT709, BT601_625, BT601_525, BT2020 = 1, 5, 6, 9
WEIGHTS = {BT709: (0.2126, 0.0722), BT601_625: (0.299, 0.114), BT601_525: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2
CODES = (90, 110, 180)  # Y, Cb and Cr of 8 bits: a reddish colour that every matrix shows differently


def expected(matrix: int, color_range: int) -> np.ndarray:
    """Return the RGB colour of CODES, by the formulas of ITU-R BT.601, BT.709 and BT.2020."""
    red, blue = WEIGHTS[matrix]
    full = color_range == FULL
    luma = CODES[0] / 255 if full else (CODES[0] - 16) / 219
    from_blue, from_red = ((code - 128) / (255 if full else 224) for code in CODES[1:])
    r = luma + 2 * (1 - red) * from_red
    b = luma + 2 * (1 - blue) * from_blue
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.array([r, g, b]) * 255, 0, 255)


def write(
    path: Path,
    size: tuple[int, int] = (64, 48),
    *,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    matrix: int | None = None,
    color_range: int | None = None,
) -> Path:
    """Write two frames of the colour CODES."""
    quiet = {"x265-params": "log-level=none:lossless=1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=quiet if codec == "libx265" else {"qp": "0"})
        (stream.width, stream.height), stream.pix_fmt = size, pixel_format
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for number in range(2):
            frame = av.VideoFrame(*size, pixel_format)
            for component, plane in zip(CODES, frame.planes, strict=False):
                wide = "10le" in pixel_format
                codes = np.full(plane.buffer_size // (2 if wide else 1), component << (2 if wide else 0))
                plane.update(codes.astype("<u2" if wide else np.uint8).tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 10)
            frame.colorspace = matrix or frame.colorspace
            frame.color_range = color_range or frame.color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(clip: Path) -> np.ndarray:
    """Return the colour of the middle of the first frame, as the model sees it; the thumbnail shows the same."""
    found = sample(clip, Sampling(2), SMALL, LIMITS)
    colour = found.pixels[0, 16, 16].astype(float)
    thumbnail = np.asarray(Image.open(io.BytesIO(found.thumbnails[0])))
    np.testing.assert_allclose(thumbnail[thumbnail.shape[0] // 2, thumbnail.shape[1] // 2], colour, atol=4)
    return colour


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p", "yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_tags_of_matrix_and_range_are_honoured(
    tmp_path: Path, matrix: int, color_range: int, pixel_format: str
) -> None:
    clip = write(tmp_path / "a.mp4", pixel_format=pixel_format, matrix=matrix, color_range=color_range)
    np.testing.assert_allclose(shown(clip), expected(matrix, color_range), atol=2)


@pytest.mark.parametrize("color_range", [None, LIMITED, FULL])
@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ((64, 48), BT601_525),
        ((720, 576), BT601_625),
        ((1278, 718), BT601_525),
        ((1280, 720), BT709),
        ((406, 720), BT709),
        ((1280, 718), BT601_525),
    ],
)
def test_without_a_tag_the_matrix_follows_from_the_size(
    tmp_path: Path, size: tuple[int, int], matrix: int, color_range: int | None
) -> None:
    clip = write(tmp_path / "a.mp4", size, color_range=color_range)
    np.testing.assert_allclose(shown(clip), expected(matrix, color_range or LIMITED), atol=2)


def test_a_tag_goes_before_the_size(tmp_path: Path) -> None:
    for size, matrix in (((1280, 720), BT601_525), ((64, 48), BT709)):
        clip = write(tmp_path / f"{matrix}.mp4", size, matrix=matrix)
        np.testing.assert_allclose(shown(clip), expected(matrix, LIMITED), atol=2)


@pytest.mark.parametrize(("size", "matrix"), [((64, 48), BT601_525), ((1280, 720), BT709)])
def test_formats_of_full_range_need_no_tag_of_range(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    clip = write(tmp_path / "a.mkv", size, pixel_format="yuvj420p")
    np.testing.assert_allclose(shown(clip), expected(matrix, FULL), atol=2)


@pytest.mark.parametrize("matrix", [3, 12, 14])
def test_a_tag_that_no_one_can_read_counts_as_none(tmp_path: Path, matrix: int) -> None:
    """FFmpeg's scaler refuses a reserved code, chromaticity-derived matrices and ICtCp."""
    clip = write(tmp_path / "a.mp4", matrix=matrix)
    np.testing.assert_allclose(shown(clip), expected(BT601_525, LIMITED), atol=2)


def test_constant_luminance_is_read_as_bt2020(tmp_path: Path) -> None:
    np.testing.assert_allclose(shown(write(tmp_path / "a.mp4", matrix=10)), expected(BT2020, LIMITED), atol=2)


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
@pytest.mark.parametrize(
    ("codec", "color_range", "grey"),
    [("libx265", LIMITED, (CODES[0] - 16) * 255 / 219), ("libx265", FULL, CODES[0]), ("ffv1", None, CODES[0])],
)
def test_grey_is_read_by_its_range(
    tmp_path: Path, codec: str, color_range: int | None, grey: float, pixel_format: str
) -> None:
    """Monochrome HEVC is limited unless tagged full, like its colour; grey without a tag is full, as of a picture."""
    clip = write(tmp_path / "a.mkv", pixel_format=pixel_format, codec=codec, color_range=color_range)
    np.testing.assert_allclose(shown(clip), [grey] * 3, atol=2)


def test_the_case_handed_over_is_red_as_players_show_it() -> None:
    case = SHARED / "cases" / "02_untagged_hd_red.mp4"
    if not case.is_file():
        services.missing(f"the shared cases are not here: {case}")
    np.testing.assert_allclose(shown(case), [224, 16, 32], atol=3)
