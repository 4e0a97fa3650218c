"""Make test clips: encoded frames, and scenes drawn by the project's own generator."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import distinct_scenes

ClipMaker = Callable[..., Path]


def encode(
    path: Path,
    frames: list[np.ndarray],
    *,
    codec: str = "libx264",
    rate: int = 10,
    stamps: list[int] | None = None,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    metadata: dict[str, str] | None = None,
    transfer: int | None = None,
    container_format: str | None = None,
) -> Path:
    """Encode RGB uint8 frames (H, W, 3) into a clip; return its path."""
    with av.open(str(path), "w", format=container_format) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate, options=options or {"qp": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_sound(clip: Path, path: Path) -> Path:
    """Copy a clip's video packets into `path` beside a quiet tone of the same length; return `path`."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        video = source.streams.video[0]
        copied = target.add_stream_from_template(video)
        sound = target.add_stream("aac", rate=8000, layout="mono", bit_rate=8000)
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
        tone = 0.01 * np.sin(np.arange(round(8000 * source.duration / 1e6)) * 0.2)
        frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 8000
        target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    return path


def numbered(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Return `count` grey frames (height, width, 3) uint8: frame i of n has the brightness 20 + 200 i / (n - 1)."""
    return [
        np.full((height, width, 3), 20 + round(200 * number / max(1, count - 1)), np.uint8) for number in range(count)
    ]


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """Return an image with quarters in red, green (upper left, right), blue and white (lower left, right)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (220, 20, 20)
    image[: height // 2, width // 2 :] = (20, 200, 20)
    image[height // 2 :, : width // 2] = (20, 20, 220)
    image[height // 2 :, width // 2 :] = (240, 240, 240)
    return image


def draw_captioned(folder: Path, count: int, *, seed: int, seconds: float) -> list[Path]:
    """Draw `<category>/<clip>` files of 24 frames, each with a caption; return the clips in scene order."""
    clips = []
    for number, scene in enumerate(distinct_scenes(count, seed=seed)):
        clip = folder / scene.category / f"clip{number:02d}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_clip(scene, clip, seconds=seconds, fps=round(24 / seconds), width=128, height=128)
        clip.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")
        clips.append(clip)
    return clips


def draw_folder(folder: Path, count: int = 12, *, seed: int = 11) -> Path:
    """Draw `<category>/<clip>` files of one second into `folder`; every third clip has no caption."""
    for number, scene in enumerate(distinct_scenes(count, seed=seed)):
        clip = folder / scene.category / f"clip{number:02d}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_clip(scene, clip, seconds=1.0, fps=8, width=128, height=128)
        if number % 3:
            clip.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")
    return folder
