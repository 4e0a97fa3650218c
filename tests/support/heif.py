"""Make HEIC files by hand: single images, grids of tiles, and motion photos.

No encoder of HEIC files is a dependency. The boxes are those of ISO/IEC 23008-12; the images are HEVC frames.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np


def heic(tiles: list[list[np.ndarray]], *, quarters: int = 0, offset: int = 0, brand: bytes = b"heic") -> bytes:
    """Return a HEIC file of equal RGB tiles (H, W, 3), row by row; one tile makes an image without a grid.

    `quarters` turns the image counterclockwise. `offset` is the number of bytes that will stand before the result, and
    an empty `brand` leaves out the first box.
    """
    flat = [_hevc(tile) for row in tiles for tile in row]
    height, width = tiles[0][0].shape[:2]
    rows, columns = len(tiles), len(tiles[0])
    grid = rows * columns > 1
    primary = len(flat) + 1 if grid else 1
    configuration, samples = flat[0][0], [sample for _, sample in flat]
    head = _box(b"ftyp", brand + bytes(4) + b"mif1" + b"heic") if brand else b""

    def meta(data_at: int) -> bytes:
        items = [_infe(number + 1, b"hvc1", hidden=grid) for number in range(len(samples))]
        if grid:
            items.append(_infe(primary, b"grid"))
        places, at = [], data_at
        for number, sample in enumerate(samples):
            places.append(struct.pack(">HHHHII", number + 1, 0, 0, 1, at, len(sample)))
            at += len(sample)
        layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * width, rows * height)
        if grid:
            places.append(struct.pack(">HHHHII", primary, 1, 0, 1, 0, len(layout)))
        turn = _box(b"irot", bytes([quarters]))
        whole = _full(b"ispe", struct.pack(">II", columns * width, rows * height))
        tile = _full(b"ispe", struct.pack(">II", width, height))
        properties = _box(b"ipco", _box(b"hvcC", configuration) + tile + whole + turn)
        of_tile, of_whole = bytes([2, 0x81, 2]), (bytes([2, 3, 0x84]) if grid else bytes([3, 0x81, 2, 0x84]))
        associated = [struct.pack(">H", number + 1) + of_tile for number in range(len(samples))]
        associated = [*associated, struct.pack(">H", primary) + of_whole] if grid else [b"\0\1" + of_whole]
        parts = [
            _full(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            _full(b"pitm", struct.pack(">H", primary)),
            _full(b"iloc", struct.pack(">BBH", 0x44, 0, len(places)) + b"".join(places), version=1),
            _full(b"iinf", struct.pack(">H", len(items)) + b"".join(items)),
            _box(b"iprp", properties + _full(b"ipma", struct.pack(">I", len(associated)) + b"".join(associated))),
        ]
        if grid:
            parts.append(
                _full(
                    b"iref",
                    _box(b"dimg", struct.pack(f">HH{len(samples)}H", primary, len(samples), *range(1, primary))),
                )
            )
            parts.append(_box(b"idat", layout))
        return _full(b"meta", b"".join(parts))

    before = offset + len(head) + len(meta(0)) + 8
    return head + meta(before) + _box(b"mdat", b"".join(samples))


def motion_photo(photo: bytes, clip: bytes) -> bytes:
    """Return a photo with a clip in a box of its own, as phones write it."""
    return photo + _box(b"mpvd", clip)


def photo_with_sequence(photo: np.ndarray, clip: bytes) -> bytes:
    """Return the MP4 file `clip`, whose first box is of 4 brands or more, with a photo beside its track."""
    branded = clip[:8] + b"msf1" + clip[12:16] + b"mif1heic" + clip[24:]
    return branded + heic([[photo]], offset=len(clip), brand=b"")


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def _full(kind: bytes, content: bytes, *, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags) + content)


def _infe(number: int, kind: bytes, *, hidden: bool = False) -> bytes:
    return _full(b"infe", struct.pack(">HH", number, 0) + kind + b"\0", version=2, flags=int(hidden))


def _hevc(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """Return the decoder's configuration and the one sample of an RGB image."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        options = {"x265-params": "log-level=none", "crf": "4"}
        stream = container.add_stream("libx265", rate=10, options=options)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        stream = container.streams.video[0]
        sample = next(bytes(packet) for packet in container.demux(stream) if packet.size)
        configuration = stream.codec_context.extradata
    assert configuration is not None
    return configuration, sample
