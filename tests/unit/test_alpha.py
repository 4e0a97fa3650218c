"""Tests of clips with an alpha channel: the colours under transparent pixels never count."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from service.media import Decoder, Limits, fingerprint, sample
from service.models import ImageSpec, Sampling
from tests.support import services
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=4_000_000)
SMALL = ImageSpec(32, 32)
COLOUR = (200, 40, 10)
FORMATS = [
    ("a.mov", "qtrle", "argb", {}),
    ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
    ("a.mov", "png", "rgba", {}),
    ("a.mkv", "ffv1", "yuva420p", {}),
    ("a.mkv", "ffv1", "bgra", {}),
    ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b:v": "0"}),
    ("a.webm", "libvpx", "yuva420p", {"crf": "4", "b:v": "2M", "auto-alt-ref": "0"}),
]


def write(
    path: Path,
    codec: str,
    pixel_format: str,
    options: dict[str, str],
    *,
    alpha: int = 0,
    size: tuple[int, int] = (64, 48),
    frames: int = 6,
) -> Path:
    """Write frames whose right half has this alpha and hides noise; the left half is opaque, in COLOUR."""
    width, height = size
    noise = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for number in range(frames):
            pixels = np.full((height, width, 4), (*COLOUR, 255), np.uint8)
            pixels[:, width // 2 :, :3] = noise.integers(0, 255, (height, width // 2, 3)) if alpha == 0 else COLOUR
            pixels[:, width // 2 :, 3] = alpha
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "pixel_format", "options"), FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (640, 360)])
def test_transparent_pixels_are_white(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str], size: tuple[int, int]
) -> None:
    clip = write(tmp_path / name, codec, pixel_format, options, size=size)
    found = sample(clip, Sampling(3), SMALL, LIMITS)
    assert len(found.times) == 3
    np.testing.assert_allclose(found.pixels[:, 4:28, 4:14].mean(axis=(1, 2)), [COLOUR] * 3, atol=8)
    assert found.pixels[:, :, 19:].min() > 245
    thumbnail = np.asarray(Image.open(io.BytesIO(found.thumbnails[1])))
    assert thumbnail[:, size[0] * 5 // 8 :].min() > 235
    # The hidden noise differs from frame to frame; the fingerprint does not.
    images = fingerprint(clip, LIMITS).images[0]
    assert images.shape[0] == 6
    assert np.ptp(images[:, :, 10:].astype(int), axis=0).max() <= 2


@pytest.mark.parametrize(("name", "codec", "pixel_format", "options"), FORMATS)
def test_half_transparent_pixels_are_mixed_with_white(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    clip = write(tmp_path / name, codec, pixel_format, options, alpha=128)
    found = sample(clip, Sampling(2), SMALL, LIMITS)
    expected = np.array(COLOUR) * 128 / 255 + 127
    np.testing.assert_allclose(found.pixels[:, 4:28, 20:].mean(axis=(1, 2)), [expected] * 2, atol=8)


@pytest.mark.parametrize(("name", "codec", "pixel_format", "options"), FORMATS)
def test_an_opaque_alpha_channel_changes_nothing(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    found = sample(write(tmp_path / name, codec, pixel_format, options, alpha=255), Sampling(2), SMALL, LIMITS)
    np.testing.assert_allclose(found.pixels.mean(axis=(1, 2)), [COLOUR] * 2, atol=8)


def test_a_transparent_gif_is_white_behind(tmp_path: Path) -> None:
    frames = []
    for number in range(4):
        image = Image.new("P", (64, 48), 1)
        image.putpalette([*COLOUR, 0, 0, 0, 10, 20, 240])
        image.paste(0, (0, 0, 20 + number, 48))
        frames.append(image)
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], transparency=1, duration=100, disposal=2)
    found = sample(path, Sampling(2), SMALL, LIMITS)
    np.testing.assert_allclose(found.pixels[:, 4:28, 1:6].mean(axis=(1, 2)), [COLOUR] * 2, atol=3)
    assert found.pixels[:, :, 16:].min() == 255


def test_alpha_of_vp9_is_found_by_seeking_too(tmp_path: Path, decoder: Decoder) -> None:
    """The decoder that gives the alpha channel is not the stream's own, and is flushed before a seek."""
    options = {"crf": "20", "b:v": "0", "g": "20", "cpu-used": "8"}
    clip = write(tmp_path / "a.webm", "libvpx-vp9", "yuva420p", options, frames=120)
    here, there = sample(clip, Sampling(4), SMALL, LIMITS), decoder.sample(clip, Sampling(4), SMALL)
    np.testing.assert_allclose(here.times, [1.5, 4.5, 7.5, 10.5], atol=0.01)
    assert np.array_equal(here.pixels, there.pixels)
    assert here.pixels[:, :, 19:].min() > 245


def test_the_case_handed_over_shows_no_noise() -> None:
    case = SHARED / "cases" / "07_alpha_qtrle.mov"
    if not case.is_file():
        services.missing(f"the shared cases are not here: {case}")
    with av.open(str(case)) as container:
        alphas = [frame.to_ndarray(format="rgba")[..., 3] for frame in container.decode(video=0)]
    found = sample(case, Sampling(len(alphas)), SMALL, LIMITS)
    for pixels, alpha in zip(found.pixels, alphas, strict=True):
        # One pixel of the model's image is 3 x 3 pixels; its neighbours count a little, too.
        surroundings = ImageFilter.MaxFilter(9)
        transparent = (
            np.asarray(Image.fromarray(alpha).filter(surroundings).resize((32, 32), Image.Resampling.BOX)) == 0
        )
        assert transparent.any()
        assert pixels[transparent].min() > 250
