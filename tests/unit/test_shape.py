"""Tests of shape: size, aspect of the pixels, rotation and mirroring belong to each frame."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from service.media import Decoder, Limits, fingerprint, probe, sample
from service.models import ImageSpec, Sampling
from tests.support import services
from tests.support.clips import quarters
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=4_000_000)
WHOLE = ImageSpec(64, 64, resize_mode="longest")
LENGTH = 20  # frames of each part
PAUSE = 5  # frames between the parts, whose time stamps would overlap by the delay of the encoder


def square_on_grey(width: int, height: int, aspect: Fraction = Fraction(1)) -> np.ndarray:
    """Return a grey image with a bright square in the middle, as it must be stored to be shown as a square."""
    image = np.full((height, width, 3), 60, np.uint8)
    side = min(width * aspect, height) / 2
    half_width, half_height = round(side / aspect / 2), round(side / 2)
    top, left = height // 2, width // 2
    image[top - half_height : top + half_height, left - half_width : left + half_width] = 220
    return image


def part(codec: str, size: tuple[int, int], aspect: Fraction, start: int, container_format: str) -> bytes:
    """Encode one part of a stream, in which a square is shown."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        options = {"bf": "2", "qscale": "2"} if codec == "mpeg2video" else {"b:v": "2M"}
        stream = container.add_stream(codec, rate=25, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(LENGTH):
            frame = av.VideoFrame.from_ndarray(square_on_grey(*size, aspect), format="rgb24")
            frame.pts, frame.time_base = start + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def joined(path: Path, codec: str, parts: list[tuple[tuple[int, int], Fraction]]) -> Path:
    """Join parts of different shapes into one stream of a transport stream, or of Matroska."""
    container_format = "mpegts" if path.suffix == ".ts" else "matroska"
    encoded = [
        part(codec, size, aspect, number * (LENGTH + PAUSE), container_format)
        for number, (size, aspect) in enumerate(parts)
    ]
    if path.suffix == ".ts":
        path.write_bytes(b"".join(encoded))
        return path
    with av.open(str(path), "w") as target:
        copied = None
        for data in encoded:
            with av.open(io.BytesIO(data)) as source:
                stream = source.streams.video[0]
                copied = copied or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.stream = copied
                        target.mux(packet)
    return path


def square_of(pixels: np.ndarray) -> tuple[int, int]:
    """Return the (width, height) of the bright square."""
    bright = pixels.mean(axis=2) > 140
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


def check_squares(clip: Path, sizes: list[tuple[int, int]]) -> None:
    """Check that every frame shows a square, and that thumbnails have these displayed sizes, each equally often."""
    found = sample(clip, Sampling(2 * len(sizes)), WHOLE, LIMITS)
    assert len(found.times) == 2 * len(sizes)
    for pixels in found.pixels:
        width, height = square_of(pixels)
        assert abs(width - height) <= 2, (width, height)
    thumbnails = [Image.open(io.BytesIO(jpeg)) for jpeg in found.thumbnails]
    for thumbnail in thumbnails:
        width, height = square_of(np.asarray(thumbnail))
        assert abs(width - height) <= max(thumbnail.size) / 40, (width, height, thumbnail.size)
    assert [thumbnail.size for thumbnail in thumbnails] == [size for size in sizes for _ in range(2)]
    assert (found.probe.width, found.probe.height) == sizes[0]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_stream_that_turns_midway(tmp_path: Path, codec: str) -> None:
    parts = [((320, 180), Fraction(1)), ((180, 320), Fraction(1)), ((160, 160), Fraction(1))]
    check_squares(joined(tmp_path / "a.webm", codec, parts), [(320, 180), (180, 320), (160, 160)])


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_a_broadcast_that_changes_its_size(tmp_path: Path, codec: str) -> None:
    parts = [((320, 240), Fraction(1)), ((640, 360), Fraction(1))]
    check_squares(joined(tmp_path / "a.ts", codec, parts), [(320, 240), (640, 360)])


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_a_broadcast_that_changes_the_aspect_of_its_pixels(tmp_path: Path, codec: str) -> None:
    """From 4:3 to 16:9 and back, at the frame where it changes."""
    narrow, wide = Fraction(16, 15), Fraction(64, 45)
    clip = joined(tmp_path / "a.ts", codec, [((360, 288), narrow), ((360, 288), wide), ((360, 288), narrow)])
    check_squares(clip, [(384, 288), (512, 288), (384, 288)])
    every = sample(clip, Sampling(3 * LENGTH), WHOLE, LIMITS)
    shapes = [Image.open(io.BytesIO(jpeg)).size for jpeg in every.thumbnails]
    assert shapes == [(384, 288)] * LENGTH + [(512, 288)] * LENGTH + [(384, 288)] * LENGTH


def test_the_fingerprint_of_a_stream_that_turns(tmp_path: Path) -> None:
    parts = [((320, 180), Fraction(1)), ((180, 320), Fraction(1))]
    images = fingerprint(joined(tmp_path / "a.webm", "libvpx", parts), LIMITS).images
    assert images.shape[1:] == (2 * LENGTH, 16, 16)


# --- matrices

MATRICES = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): np.rot90,
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda image: np.rot90(image.transpose(1, 0, 2), 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_mirrored_and_turned_pictures(
    tmp_path: Path, decoder: Decoder, matrix: tuple[int, int, int, int], name: str
) -> None:
    path = tmp_path / name
    a, b, c, d = (value << 16 for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = np.ascontiguousarray(MATRICES[matrix](quarters()))
    found = sample(path, Sampling(1), ImageSpec(48, 48, resize_mode="squash"), LIMITS)
    stretched = np.asarray(Image.fromarray(expected).resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(found.pixels[0].astype(int), stretched.astype(int), atol=40)
    assert np.abs(found.pixels[0].astype(int) - stretched).mean() < 3
    assert (probe(path, LIMITS).width, probe(path, LIMITS).height) == expected.shape[1::-1]
    assert np.array_equal(
        decoder.sample(path, Sampling(1), WHOLE).pixels, sample(path, Sampling(1), WHOLE, LIMITS).pixels
    )


def test_the_decoders_process_measures_the_aspect_too(tmp_path: Path, decoder: Decoder) -> None:
    parts = [((360, 288), Fraction(16, 15)), ((360, 288), Fraction(64, 45))]
    clip = joined(tmp_path / "a.ts", "mpeg2video", parts)
    there, here = decoder.sample(clip, Sampling(8), WHOLE), sample(clip, Sampling(8), WHOLE, LIMITS)
    assert np.array_equal(there.pixels, here.pixels)


def test_the_case_handed_over_stays_square() -> None:
    case = SHARED / "cases" / "03_turns_midway.webm"
    if not case.is_file():
        services.missing(f"the shared cases are not here: {case}")
    check_squares(case, [(320, 180), (180, 320)])
