"""Clips, near-duplicates made of them, and a library that detects near-duplicates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from service.database import db, video_rows
from service.database.db import Database
from service.media import Decoder, Limits
from service.models import Sampling, Video
from service.search.duplicates import Duplicates
from service.storage import FolderStore

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
GOOD = {"crf": "26", "preset": "veryfast"}
FAIR = {"crf": "33", "preset": "veryfast"}
BAD = {"crf": "40", "preset": "veryfast"}
Frames = list[np.ndarray]


def scene(seed: int, count: int = 36, *, place: int = 0, width: int = 160, height: int = 96) -> Frames:
    """Draw a clip in which a textured spot moves over a textured background.

    Args:
        seed: Chooses the path of the spot.
        count: Number of frames.
        place: Chooses the textures of background and spot.
        width: Frame width in pixels.
        height: Frame height in pixels.

    Returns:
        `count` frames, each (height, width, 3) uint8.
    """
    background = texture(place, height, width)
    spot = texture(1000 + place, height // 4, width // 8)
    rng = np.random.default_rng(seed)
    stations = rng.uniform(0, 1, (5, 2)) * (height - height // 4, width - width // 8)
    frames = []
    for moment in np.linspace(0, 4, count):
        leg = min(int(moment), 3)
        top, left = (stations[leg] + (moment - leg) * (stations[leg + 1] - stations[leg])).astype(int)
        frame = background.copy()
        frame[top : top + len(spot), left : left + spot.shape[1]] = spot
        frames.append(frame)
    return frames


def texture(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(30, 230, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def resized(frames: Frames, factor: float) -> Frames:
    """Resize each frame by `factor`, to even numbers of pixels."""
    height, width = (max(2, round(side * factor) // 2 * 2) for side in frames[0].shape[:2])
    return [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]


def barred(frames: Frames, rows: int, columns: int) -> Frames:
    """Add black bars: `rows` pixels above and below, `columns` pixels left and right."""
    return [np.pad(frame, ((rows, rows), (columns, columns), (0, 0))) for frame in frames]


def read_frames(path: Path) -> Frames:
    """Return at most the first 60 frames of a clip, at most 480 pixels wide, with even sides."""
    with av.open(str(path)) as container:
        frames = [
            np.asarray(frame.to_image().convert("RGB")) for frame in itertools.islice(container.decode(video=0), 60)
        ]
    return resized(frames, min(1.0, 480 / frames[0].shape[1]))


def black(frames: Frames, count: int) -> Frames:
    """Return `count` black frames of the size of the first frame."""
    return [np.zeros_like(frames[0])] * count


COPIES: dict[str, Callable[[Frames], Frames]] = {
    "half": lambda frames: resized(frames, 0.5),
    "letterboxed": lambda frames: barred(resized(frames, 0.7), 14, 0),
    "pillarboxed": lambda frames: barred(resized(frames, 0.7), 0, 22),
    "first part": lambda frames: frames[: len(frames) * 3 // 5],
    "middle": lambda frames: frames[len(frames) // 3 : len(frames) * 2 // 3],
    "reversed": lambda frames: frames[::-1],
    "black intro": lambda frames: black(frames, 12) + frames,
    "half the frames": lambda frames: frames[1::2],
    "cut, small and reversed": lambda frames: resized(frames, 0.5)[len(frames) // 4 :][::-1],
    "cut and letterboxed": lambda frames: barred(resized(frames, 0.7), 18, 0)[: len(frames) // 2],
    "dimmer": lambda frames: [(frame * 0.7).astype(np.uint8) for frame in frames],
}


# --- a library


class Library:
    """Library with a near-duplicate detector; its videos are ready but were never embedded.

    The detector gets all ready videos as candidates, instead of the nearest ones.
    """

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        url = f"sqlite:///{folder}/reelsrs.db"
        db.upgrade(url)
        self.db = Database(url)
        self.files = FolderStore(folder / "media")
        self.decoder = decoder
        self.videos: dict[str, Video] = {}
        self.forget()

    def forget(self) -> None:
        """Replace the detector by a new one, as a restart does: only files on disk remain."""
        self.duplicates = Duplicates(self.db, self.files, self.decoder, self._others)

    def _others(self, _: Video) -> list[Video]:
        with self.db.read() as connection:
            return video_rows.list_videos(connection, status="ready", limit=1000)

    def add(self, clip: Path) -> str:
        """Store the clip, add its row with the status ready, and return the video's id."""
        probe = self.decoder.probe(clip)
        with self.files.receive(1 << 30) as incoming, self.db.write() as connection:
            incoming.write(clip.read_bytes())
            incoming.finish()
            self.files.commit(incoming, "video/mp4")
            video = video_rows.add_video(
                connection,
                sha256=incoming.sha256,
                size_bytes=incoming.size_bytes,
                filename=clip.name,
                title=clip.stem,
                caption=None,
                category=None,
                sampling=Sampling(1),
                probe=probe,
            )
            video_rows.update_video(connection, video.pk, status="ready", frame_times=[0.0])
        self.videos[video.id] = video
        return video.id

    def fingerprint_file(self, video_id: str) -> Path:
        """Return the path of the video's stored fingerprint."""
        return self.files.folder(self.videos[video_id].sha256) / "fingerprint"

    def copies(self, video_id: str) -> list[str]:
        """Return the titles of the video's near-duplicates, in the detector's order."""
        return [copy.video.title for copy in self.duplicates.find(video_id).near_duplicates]
