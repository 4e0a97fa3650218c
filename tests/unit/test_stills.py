"""Tests of photos uploaded as videos: refused with a clear text, unless a moving stream lies beside the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import Undecodable
from service.media import Decoder, Limits, probe, sample
from service.models import ImageSpec, Sampling
from tests.support import services
from tests.support.clips import ClipMaker, numbered, quarters
from tests.support.heif import heic, motion_photo, photo_with_sequence
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=4_000_000)
SMALL = ImageSpec(32, 32)
TILE = quarters(128, 128)


def refused(path: Path, kind: str) -> None:
    """Check that a file is refused as a photo of this kind."""
    for ask in (probe, lambda path, limits: sample(path, Sampling(2), SMALL, limits)):
        with pytest.raises(Undecodable, match=rf"^the file is a photo \({kind}\), not a video"):
            ask(path, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_is_a_photo(tmp_path: Path, kind: str, mode: str) -> None:
    if (kind, mode) == ("JPEG", "RGBA"):
        mode = "L"
    Image.fromarray(quarters()).convert(mode).save(tmp_path / "a.mp4", kind)
    refused(tmp_path / "a.mp4", kind)


@pytest.mark.parametrize("tiles", [[[TILE]], [[TILE, TILE], [TILE, TILE], [TILE, TILE]]])
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heic_image_and_its_tiles_are_a_photo(tmp_path: Path, tiles: list[list[np.ndarray]], brand: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(heic(tiles, brand=brand))
    refused(tmp_path / "a.mp4", "HEIC")


def test_a_motion_photo_is_a_photo(tmp_path: Path, make_clip: ClipMaker) -> None:
    """Its clip lies in a box, or behind the end of the image, where no player finds it."""
    clip = make_clip("a.mp4", numbered(10)).read_bytes()
    (tmp_path / "b.mp4").write_bytes(motion_photo(heic([[TILE]]), clip))
    refused(tmp_path / "b.mp4", "HEIC")
    Image.fromarray(TILE).save(tmp_path / "c.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes() + clip)
    refused(tmp_path / "c.jpg", "JPEG")


def test_a_sequence_beside_a_photo_is_a_video(tmp_path: Path, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(10))
    (tmp_path / "b.mp4").write_bytes(photo_with_sequence(TILE, clip.read_bytes()))
    found, expected = (sample(path, Sampling(3), SMALL, LIMITS) for path in (tmp_path / "b.mp4", clip))
    assert found.probe.codec == "h264"
    assert np.array_equal(found.pixels, expected.pixels)


def test_an_animated_avif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in numbered(5)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=200)
    found = sample(tmp_path / "a.avif", Sampling(5), SMALL, LIMITS)
    np.testing.assert_allclose(found.pixels.mean(axis=(1, 2, 3)), [20, 70, 120, 170, 220], atol=6)


def test_a_clip_of_one_frame_is_a_video(make_clip: ClipMaker) -> None:
    assert probe(make_clip("a.mp4", numbered(1)), LIMITS).codec == "h264"


def test_the_case_handed_over_is_a_photo_and_can_be_searched_with(decoder: Decoder) -> None:
    case = SHARED / "cases" / "06_still.avif"
    if not case.is_file():
        services.missing(f"the shared cases are not here: {case}")
    with pytest.raises(Undecodable, match=r"^the file is a photo \(AVIF\), not a video"):
        decoder.probe(case)
    assert decoder.image(case, SMALL).std() > 5
