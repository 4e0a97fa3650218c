"""Convert frames to RGB images: upright, in standard dynamic range, at the size that a model expects."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from service.media.colours import Pixels, to_rgb
from service.media.shape import Matrix, display_matrix, turns_sideways
from service.models import ImageSpec

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from PIL.Image import Image

_THUMBNAIL_LONG_SIDE = 640
_SMALL_PIXELS = 1 << 17


class Scaler:
    """Scaler of one clip's frames: libswscale converts the decoder's pixels straight to a small image.

    The filter is built once per size. A frame with hardly more pixels than the model's input is converted at its own
    size and resized by Pillow. That is cheap for so few pixels. When the sizes are that similar, the two libraries
    differ in the order in which they clip and average colours that no screen can show.
    """

    def __init__(self, image_spec: ImageSpec) -> None:
        from av.video.reformatter import VideoReformatter

        self._image_spec = image_spec
        self._for_model, self._for_thumbnails = VideoReformatter(), VideoReformatter()

    def model_input(self, frame: VideoFrame, display: tuple[int, int]) -> Pixels:
        """Return (H, W, 3) uint8: the frame at the model's size.

        `display` is the displayed (width, height). The embedding has a cosine of at least 0.999 with the one that
        open_clip's own transform leads to.
        """
        if frame.width * frame.height <= _SMALL_PIXELS:
            return resize_and_crop(upright(frame), self._image_spec, display)
        return _crop_or_pad(
            self._scale(self._for_model, frame, resized_size(self._image_spec, display)), self._image_spec
        )

    def thumbnail(self, frame: VideoFrame, display: tuple[int, int]) -> bytes:
        """Return a thumbnail: the whole frame as a JPEG whose longer side has at most 640 pixels.

        `display` is the displayed (width, height).
        """
        from PIL import Image as PillowImage

        width, height = display
        scale = min(1.0, _THUMBNAIL_LONG_SIDE / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        buffer = io.BytesIO()
        PillowImage.fromarray(self._scale(self._for_thumbnails, frame, size)).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def _scale(self, reformatter: Any, frame: VideoFrame, size: tuple[int, int]) -> Pixels:
        matrix = display_matrix(frame)
        width, height = reversed(size) if turns_sideways(matrix) else size
        interpolation = self._image_spec.interpolation
        small = _rgb(reformatter, frame, interpolation, width, height)
        return np.ascontiguousarray(orient(to_sdr(small, frame.color_trc), matrix))


def upright(frame: VideoFrame) -> Image:
    """Return the frame as an RGB image, turned by its display matrix; HDR becomes standard dynamic range."""
    from av.video.reformatter import VideoReformatter
    from PIL import Image as PillowImage

    pixels = to_sdr(_rgb(VideoReformatter(), frame, "bicubic", frame.width, frame.height), frame.color_trc)
    return PillowImage.fromarray(np.ascontiguousarray(orient(pixels, display_matrix(frame))))


def _rgb(reformatter: Any, frame: VideoFrame, interpolation: str, width: int, height: int) -> Pixels:
    from av.video.reformatter import Interpolation

    # Without these flags, colour is taken from the nearest sample and rounded down: off by several levels.
    exactly = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return to_rgb(reformatter, frame, width, height, Interpolation[interpolation.upper()] | exactly)


def resize_and_crop(image: Image, image_spec: ImageSpec, display: tuple[int, int]) -> Pixels:
    """Resize and crop an image as open_clip would; return (H, W, 3) uint8.

    `display` is the displayed (width, height). The steps and Pillow filters are those of open_clip's `image_transform`,
    up to the normalisation, which runs on the device. Stretching to the displayed aspect ratio and resizing are one
    step.
    """
    from PIL import Image as PillowImage

    filters = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}
    size = resized_size(image_spec, display)
    resized = image if image.size == size else image.resize(size, filters[image_spec.interpolation])
    return _crop_or_pad(np.asarray(resized), image_spec)


def resized_size(image_spec: ImageSpec, display: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) to resize to, before the image is cropped to its centre or padded."""
    width, height = display
    if image_spec.resize_mode == "squash":
        return image_spec.width, image_spec.height
    if image_spec.resize_mode == "shortest" and image_spec.width == image_spec.height:
        # Like torchvision's Resize with one number: the long side is truncated, not rounded.
        side, short, long = image_spec.width, min(display), max(display)
        longer = int(side * long / short)
        return (side, longer) if width <= height else (longer, side)
    extreme = min if image_spec.resize_mode == "shortest" else max
    ratio = extreme(height / image_spec.height, width / image_spec.width)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def orient(pixels: Pixels, matrix: Matrix) -> Pixels:
    """Return the pixels as a display matrix shows them: a view, flipped or turned by quarters."""
    a, b, c, d = matrix
    if b:  # x and y are swapped: a quarter turn
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    return pixels[:: down or 1, :: right or 1]


_PQ, _HLG = 16, 18  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_REFERENCE_WHITE_NITS = 203.0  # ITU-R BT.2408
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)


def to_sdr(pixels: Pixels, transfer: int) -> Pixels:
    """Convert HDR pixels to standard dynamic range (SDR); return others unchanged.

    HDR images look grey and flat to a model that was trained on SDR images. Undo the transfer curve (ITU-R BT.2100),
    convert the primaries from BT.2020 to BT.709, and compress values brighter than reference white. `transfer` is
    FFmpeg's code of the transfer curve.
    """
    if transfer not in (_PQ, _HLG):
        return pixels
    code = np.arange(256, dtype=np.float32) / 255
    nits: npt.NDArray[np.floating]
    if transfer == _PQ:
        power = code ** np.float32(1 / 78.84375)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** np.float32(
            1 / 0.1593017578125
        )
    else:
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        nits = 1_000 * scene ** np.float32(1.2)
    shown = np.empty(pixels.shape, dtype=np.uint8)
    table = (nits / _REFERENCE_WHITE_NITS).astype(np.float32)
    for row in range(0, len(pixels), 64):  # in strips: floats of a whole 8K frame would take 400 MB
        linear = np.maximum(table[pixels[row : row + 64]] @ _BT2020_TO_BT709.T, 0)
        soft = np.where(linear <= 0.8, linear, 0.8 + 0.2 * (1 - np.exp((0.8 - linear) / 0.2)))
        shown[row : row + 64] = np.rint(255 * soft ** np.float32(1 / 2.2))
    return shown


def _crop_or_pad(pixels: Pixels, image_spec: ImageSpec) -> Pixels:
    """Crop to the centre, or pad around the image, as torchvision's CenterCrop does."""
    height, width = pixels.shape[:2]
    short_y, short_x = max(image_spec.height - height, 0), max(image_spec.width - width, 0)
    if short_y or short_x:
        around = ((short_y // 2, (short_y + 1) // 2), (short_x // 2, (short_x + 1) // 2), (0, 0))
        pixels = np.pad(pixels, around, constant_values=image_spec.fill_color)
        height, width = pixels.shape[:2]
    top, left = round((height - image_spec.height) / 2), round((width - image_spec.width) / 2)
    return np.ascontiguousarray(pixels[top : top + image_spec.height, left : left + image_spec.width])
