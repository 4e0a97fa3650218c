"""Read image files as model input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from service.errors import InvalidInput, Undecodable
from service.media.colours import BACKGROUND, Pixels
from service.media.container import Limits
from service.media.pixels import resize_and_crop
from service.models import ImageSpec

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
_WHITE_INTEGERS = (255, 65_535)  # white in files of integers, by the smallest that no pixel exceeds
_WHITE_FLOATS = (1.0, 255.0, 65_535.0)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0


def read_image(source: Path | BinaryIO, image_spec: ImageSpec, limits: Limits) -> Pixels:
    """Read an image file; return (H, W, 3) uint8 RGB, upright, at the model's size.

    An animation is read as its first frame. Transparent pixels show `colours.BACKGROUND`.

    Raises:
        Undecodable: If the file is not a readable image of a known format.
        InvalidInput: If it has more pixels than `limits` allows; checked before any pixel is decompressed.
    """
    from PIL import Image as PillowImage
    from PIL import ImageOps

    PillowImage.MAX_IMAGE_PIXELS = None  # checked below instead, with an error that names the limit
    try:
        with PillowImage.open(source, formats=_FORMATS) as image:
            if image.width * image.height > limits.max_pixels:
                size = f"{image.width:,} x {image.height:,}"
                raise InvalidInput("file", f"the image has {size} pixels; at most {limits.max_pixels:,} are allowed")
            shown = _opaque(_eight_bits(ImageOps.exif_transpose(image), _tiff_tags(image)))
    except InvalidInput:
        raise
    except Exception as error:  # each format's reader raises its own errors
        raise Undecodable(f"the file is not a {_NAMES} image that can be read") from error
    return resize_and_crop(shown, image_spec, shown.size)


def _tiff_tags(image: Image) -> tuple[int | None, bool]:
    """Return the bits per sample that a TIFF file declares, and whether 0 is white; (None, False) for other formats."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None, False
    return int(tags.get(_BITS_PER_SAMPLE, (8,))[0]), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _eight_bits(image: Image, tiff: tuple[int | None, bool]) -> Image:
    """Return a grey image of more than 8 bits with 8 bits, and every other image unchanged.

    Pillow clips such pixels: all but the darkest would be white. `tiff` is the result of `_tiff_tags`.
    """
    from PIL import Image as PillowImage

    if not image.mode.startswith(("I", "F")):
        return image
    levels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    bits, inverted = tiff
    if image.mode.startswith("I;16"):
        white = float(2 ** (bits or 16) - 1)
    else:
        white = _white(float(levels.max()), _WHITE_FLOATS if image.mode == "F" else _WHITE_INTEGERS)
    grey = np.rint(np.clip(levels / white, 0, 1) * 255)
    if inverted and image.mode.startswith("I;16"):  # Pillow inverts only samples of 8 bits and fewer
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[levels == key] = BACKGROUND
    return PillowImage.fromarray(grey.astype(np.uint8))


def _white(maximum: float, candidates: tuple[float, ...]) -> float:
    """Return the value of white, which neither 32-bit integers nor floats define, from the brightest pixel."""
    return next((white for white in candidates if maximum <= white), maximum)


def _opaque(image: Image) -> Image:
    """Return the image as RGB on the background, so that colours under transparent pixels do not count."""
    from PIL import Image as PillowImage

    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    shown = PillowImage.new("RGBA", image.size, (BACKGROUND,) * 3 + (255,))
    shown.alpha_composite(image.convert("RGBA"))
    return shown.convert("RGB")
