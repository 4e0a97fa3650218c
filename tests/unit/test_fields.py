"""Tests of deinterlacing: no combs in what was taken at two moments, and nothing else changes."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from service.media import Decoder, Limits, sample
from service.models import ImageSpec, Sampling
from tests.support.clips import encode, numbered

LIMITS = Limits(max_duration_seconds=600, max_pixels=4_000_000)
SMALL = ImageSpec(32, 32)
INTERLACED = {
    "mpeg2video": {"flags": "+ildct+ilme", "qscale": "2"},
    "libx264": {"flags": "+ildct+ilme", "x264-params": "tff=1", "qp": "4"},
}
DARK, BRIGHT, WIDTH, STEP = 40, 220, 100, 10


def moving_bar(number: int, *, fields: bool) -> np.ndarray:
    """Return a frame with a bar that moves by STEP columns a field."""
    image = np.full((240, 320, 3), DARK, np.uint8)
    for field in range(2):
        left = 10 + (2 * number + (field if fields else 0)) * STEP
        image[field::2, left : left + WIDTH] = BRIGHT
    return image


def write(path: Path, codec: str, options: dict[str, str], *, fields: bool) -> Path:
    """Write ten frames of the moving bar."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(moving_bar(number, fields=fields), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def thumbnails(clip: Path) -> list[np.ndarray]:
    """Return the thumbnails of five frames, in grey and in the clip's own size."""
    found = sample(clip, Sampling(5), SMALL, LIMITS)
    return [np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(int) for jpeg in found.thumbnails]


def combs(image: np.ndarray) -> float:
    """Return how much each line differs from the mean of its neighbours."""
    return float(np.abs(image[1:-1] - (image[:-2] + image[2:]) / 2).mean())


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
@pytest.mark.parametrize("codec", INTERLACED)
def test_interlaced_frames_show_one_moment(tmp_path: Path, codec: str, name: str) -> None:
    assert combs(moving_bar(3, fields=True)[..., 0].astype(int)) > 8
    for image in thumbnails(write(tmp_path / name, codec, INTERLACED[codec], fields=True)):
        assert combs(image) < 1.5
        # One bar, as wide as it is, with no half-bright stripe beside it.
        assert abs(int((image > 190).sum(axis=1)[20:-20].mean()) - WIDTH) <= 3
        assert abs(int((image < 70).sum(axis=1)[20:-20].mean()) - (320 - WIDTH)) <= 6


@pytest.mark.parametrize("codec", INTERLACED)
def test_a_still_scene_that_is_flagged_keeps_its_picture(tmp_path: Path, codec: str) -> None:
    flagged = thumbnails(write(tmp_path / "a.ts", codec, INTERLACED[codec], fields=False))
    plain = thumbnails(write(tmp_path / "b.ts", codec, {"qscale": "2", "qp": "4"}, fields=False))
    for image, expected in zip(flagged, plain, strict=True):
        assert np.abs(image - expected).mean() < 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p"])
@pytest.mark.parametrize(("matrix", "color_range"), [(1, 1), (1, 2), (5, 1), (9, 2)])
def test_tags_of_colour_survive(tmp_path: Path, matrix: int, color_range: int, pixel_format: str) -> None:
    colours = []
    for codec_options in (INTERLACED["libx264"], {"qp": "4"}):
        path = tmp_path / f"{len(colours)}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options=codec_options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
            for number in range(3):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (180, 60, 20), np.uint8), format="rgb24")
                frame = frame.reformat(format=pixel_format)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                frame.colorspace, frame.color_range = matrix, color_range
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        colours.append(sample(path, Sampling(1), SMALL, LIMITS).pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(colours[0], colours[1], atol=1)


def test_frames_of_one_line_are_left_alone(tmp_path: Path) -> None:
    options = INTERLACED["libx264"]
    clip = encode(tmp_path / "a.mkv", numbered(3, 64, 2), options=options, pixel_format="yuv444p")
    assert len(sample(clip, Sampling(2), SMALL, LIMITS).times) == 2


def test_frames_without_the_flag_are_left_alone(tmp_path: Path) -> None:
    for image in thumbnails(write(tmp_path / "a.mkv", "ffv1", {}, fields=True)):
        assert combs(image) > 6


def test_an_interlaced_clip_is_upright_and_the_decoders_process_agrees(tmp_path: Path, decoder: Decoder) -> None:
    clip = encode(tmp_path / "a.mp4", numbered(10), options=INTERLACED["libx264"], rotation=90)
    there, here = decoder.sample(clip, Sampling(3), SMALL), sample(clip, Sampling(3), SMALL, LIMITS)
    assert (here.probe.width, here.probe.height) == (48, 64)
    assert Image.open(io.BytesIO(here.thumbnails[0])).size == (48, 64)
    assert there.thumbnails == here.thumbnails
