"""Tests of images searched with: the same image, whatever its format, depth, colour model and orientation."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInput, Undecodable
from service.media import Decoder, Limits, resize_and_crop
from service.media.images import read_image
from service.models import ImageSpec
from tests.support import services
from tests.support.clips import quarters
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
SMALL = ImageSpec(32, 32)
ORIENTATION = 0x0112
SHARP = {"quality": 100, "subsampling": 0}  # as good as lossless


def fitted(pixels: np.ndarray) -> np.ndarray:
    """Return an image (H, W) or (H, W, 3) as the model sees it."""
    image = Image.fromarray(pixels).convert("RGB")
    return resize_and_crop(image, SMALL, image.size)


def read(image: Image.Image, path: Path, kind: str, **options: object) -> np.ndarray:
    """Save an image as a file, and return it as the model sees it."""
    image.save(path, kind, **options)
    return read_image(path, SMALL, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_fitted_whatever_its_format(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    shown = Image.fromarray(quarters())
    shown.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(path) as saved:
        expected = resize_and_crop(saved.convert("RGB"), SMALL, (64, 48))
    assert np.array_equal(read_image(path, SMALL, LIMITS), expected)
    with path.open("rb") as file:
        assert np.array_equal(read_image(file, SMALL, LIMITS), expected)


def test_a_picture_of_any_mode_is_taken(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1", "LA"):
        Image.fromarray(quarters()).convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", SMALL, LIMITS).shape == (32, 32, 3)


def test_a_picture_beyond_the_limit_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 10_000)).save(path)  # more than Pillow accepts without a warning
    words = "file: the image has 20,000 x 10,000 pixels; at most 2,000,000 are allowed"
    with pytest.raises(InvalidInput, match=f"^{re.escape(words)}$"):
        read_image(path, SMALL, LIMITS)
    Image.new("L", (2_000, 1_000)).save(path)
    assert read_image(path, SMALL, LIMITS).shape == (32, 32, 3)
    Image.new("L", (2_001, 1_000)).save(path)
    with pytest.raises(InvalidInput, match=r"the image has 2,001 x 1,000 pixels"):
        read_image(path, SMALL, LIMITS)
    Image.new("1", (14_000, 14_000)).save(path)
    assert read_image(path, SMALL, replace(LIMITS, max_pixels=14_000 * 14_000)).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["empty", "text", "ICO", "cut"])
def test_what_is_not_a_picture_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture" if kind == "text" else b"")
    if kind in ("ICO", "cut"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
            path, "ICO" if kind == "ICO" else "PNG"
        )
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:4000])
    words = "the file is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image that can be read"
    with pytest.raises(Undecodable, match=f"^{words}$"):
        read_image(path, SMALL, LIMITS)


# --- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, np.fliplr),
        (3, lambda image: np.rot90(image, 2)),
        (4, np.flipud),
        (5, lambda image: np.rot90(np.fliplr(image), 1)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(np.fliplr(image), -1)),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, kind: str, orientation: int, turned: object) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sharp = {"WEBP": {"lossless": True}, "JPEG": SHARP, "AVIF": {**SHARP, "subsampling": "4:4:4"}}.get(kind, {})
    found = read(Image.fromarray(quarters()), tmp_path / "a", kind, exif=exif, **sharp)
    expected = fitted(np.ascontiguousarray(turned(quarters())))  # type: ignore[operator]
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)


def test_a_deep_picture_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    grey = np.asarray(Image.fromarray(quarters()).convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(read(deep, tmp_path / "a.png", "PNG", exif=exif), fitted(np.rot90(grey, -1).copy()))


# --- depth and colour model

RAMP = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8) * 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(read(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / "a", kind), fitted(RAMP))


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    dark = RAMP // 8
    assert np.array_equal(read(Image.fromarray(dark.astype(np.uint16) * 257), tmp_path / "a", "PNG"), fitted(dark))


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0])
def test_floats_are_read_by_their_white(tmp_path: Path, white: float) -> None:
    ramp = RAMP.copy()
    ramp[0, 0] = 255
    floats = ramp.astype(np.float32) / 255 * np.float32(white)
    assert np.array_equal(read(Image.fromarray(floats), tmp_path / "a", "TIFF"), fitted(ramp))


def test_floats_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    floats = RAMP.astype(np.float32) / 255
    floats[0, :3] = (np.nan, np.inf, -np.inf)
    ramp = RAMP.copy()
    ramp[0, :3] = 0
    assert np.array_equal(read(Image.fromarray(floats), tmp_path / "a", "TIFF"), fitted(ramp))


@pytest.mark.parametrize("factor", [1, 257])
def test_integers_of_32_bits_are_read_by_their_white(tmp_path: Path, factor: int) -> None:
    ramp = RAMP.copy()
    ramp[0, 0] = 255
    assert np.array_equal(read(Image.fromarray(ramp.astype(np.int32) * factor), tmp_path / "a", "TIFF"), fitted(ramp))


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path: Path) -> None:
    deep = Image.fromarray((255 - RAMP).astype(np.uint16) * 257)
    assert np.array_equal(read(deep, tmp_path / "a", "TIFF", tiffinfo={262: 0}), fitted(RAMP))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printing_colours_are_converted(tmp_path: Path, kind: str) -> None:
    options = SHARP if kind == "JPEG" else {}
    found = read(Image.fromarray(quarters()).convert("CMYK"), tmp_path / "a", kind, **options)
    np.testing.assert_allclose(found.astype(int), fitted(quarters()).astype(int), atol=3)


# --- transparency


def hidden() -> tuple[np.ndarray, np.ndarray]:
    """Return an RGBA image whose right half hides noise, and the RGB image that is shown: white on the right."""
    noise = np.random.default_rng(5).integers(0, 255, (48, 32, 3), np.uint8)
    shown = quarters()
    shown[:, 32:] = 255
    rgba = np.dstack([shown, np.full((48, 64), 255, np.uint8)])
    rgba[:, 32:, :3], rgba[:, 32:, 3] = noise, 0
    return rgba, shown


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_hidden_colours_do_not_count(tmp_path: Path, kind: str) -> None:
    rgba, shown = hidden()
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(
        kind, {}
    )
    found = read(Image.fromarray(rgba), tmp_path / "a", kind, **options)
    assert (found[:, 18:] == 255).all()
    np.testing.assert_allclose(found[:, :14].astype(int), fitted(shown)[:, :14].astype(int), atol=3)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    rgba = np.full((48, 64, 4), (200, 40, 0, 128), np.uint8)
    expected = np.array([200, 40, 0]) * 128 / 255 + 127
    np.testing.assert_allclose(read(Image.fromarray(rgba), tmp_path / "a", "PNG")[16, 16], expected, atol=1)


def test_grey_with_alpha_and_transparent_keys(tmp_path: Path) -> None:
    grey = np.full((48, 64), 80, np.uint8)
    grey[:, 32:] = 7
    shown = grey.copy()
    shown[:, 32:] = 255
    alpha = np.where(grey == 7, 0, 255).astype(np.uint8)
    assert np.array_equal(
        read(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), tmp_path / "a.png", "PNG"),
        fitted(shown),
    )
    assert np.array_equal(read(Image.fromarray(grey), tmp_path / "b.png", "PNG", transparency=7), fitted(shown))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(read(deep, tmp_path / "c.png", "PNG", transparency=7 * 257), fitted(shown))
    colour = Image.fromarray(np.stack([grey] * 3, axis=2))
    assert np.array_equal(read(colour, tmp_path / "d.png", "PNG", transparency=(7, 7, 7)), fitted(shown))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_transparency(tmp_path: Path, kind: str) -> None:
    indices = np.zeros((48, 64), np.uint8)
    indices[:, 32:] = 1
    image = Image.frombytes("P", (64, 48), indices.tobytes())
    image.putpalette([10, 200, 30, 90, 90, 90])
    shown = np.where(indices[..., None] == 0, np.array([10, 200, 30]), 255).astype(np.uint8)
    assert np.array_equal(read(image, tmp_path / "a", kind, transparency=1), fitted(shown))


# --- inside the sandbox


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_decoders_process_reads_every_format(decoder: Decoder, tmp_path: Path, kind: str) -> None:
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    here = read(Image.fromarray(quarters(640, 480)), tmp_path / "a", kind, **options)
    assert np.array_equal(decoder.image(tmp_path / "a", SMALL), here)


# --- the cases handed over


def test_the_cases_handed_over_are_the_same_picture_twice(decoder: Decoder) -> None:
    deep, grey = SHARED / "cases" / "08_grey16.png", SHARED / "cases" / "08_grey8.png"
    if not deep.is_file():
        services.missing(f"the shared cases are not here: {deep}")
    there, here = decoder.image(deep, SMALL), decoder.image(grey, SMALL)
    np.testing.assert_allclose(there.astype(int), here.astype(int), atol=1)
    assert there.std() > 10
