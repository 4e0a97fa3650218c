"""The nouns of ReelsRS as frozen dataclasses, and the rules that a value must keep. Knows no library but NumPy.

Units are in the names: `duration_seconds`, `size_bytes`. Times of frames are seconds from the clip's start.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput

Status = Literal["queued", "processing", "ready", "failed"]
Aggregation = Literal["mean", "max"]
Method = Literal["umap", "tsne", "pca"]
"""How a map is laid out."""
Kind = Literal["frame", "mean", "max", "text"]
Precision = Literal["auto", "float32", "float16", "bfloat16", "int8"]
Fusion = Literal["cosine", "zscore"]
CategoryMode = Literal["any", "same", "other"]

Vectors = npt.NDArray[np.float32]
"""(N, D) or (D,) float32."""
Keys = npt.NDArray[np.int64]
"""(N,) int64: the integer keys of videos, which never leave the service."""
Flags = npt.NDArray[np.bool_]
"""(N,) bool."""

MAX_CAPTION_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 200
MAX_FRAMES = 256
MAX_FRAME_INTERVAL = 1_000_000
MAX_K = 1_000
MAX_WEIGHT = 1e6
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are kept somewhere. `read(start, length)` gives some of them, fewer at the end; `path` is where they
    lie on this machine, None where they do not."""

    size_bytes: int
    read: Callable[[int, int], bytes]
    path: Path | None = None

    def pieces(self, start: int = 0, stop: int | None = None, *, piece_bytes: int = 8 << 20) -> Iterator[bytes]:
        """All of them, or those from `start` to before `stop`, some at a time; fewer where they are not there."""
        stop = self.size_bytes if stop is None else stop
        while start < stop and (piece := self.read(start, min(piece_bytes, stop - start))):
            start += len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a clip are taken.

    `frame_interval` None: `num_frames` frames spread evenly over the whole clip; N: every Nth frame from the
    start, at most `num_frames`.
    """

    num_frames: int
    frame_interval: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise InvalidInput("num_frames", f"must be from 1 to {MAX_FRAMES}, not {self.num_frames}")
        if self.frame_interval is not None and not 1 <= self.frame_interval <= MAX_FRAME_INTERVAL:
            raise InvalidInput("frame_interval", f"must be from 1 to {MAX_FRAME_INTERVAL}, not {self.frame_interval}")


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture that a model wants, as open_clip's preprocessing describes it. Sizes are pixels."""

    height: int
    width: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """What a container says of itself. Width and height are as displayed, after rotation and aspect."""

    media_type: str
    codec: str
    width: int
    height: int
    duration_seconds: float | None
    frames_per_second: float | None


@dataclass(frozen=True, slots=True)
class Video:
    """One uploaded clip: a row of the catalogue. `key` is internal, `id` is what users see."""

    key: int
    id: str
    sha256: str
    size_bytes: int
    filename: str
    title: str
    caption: str | None
    category: str | None
    status: Status
    progress: float
    error: str | None
    sampling: Sampling
    media_type: str
    codec: str
    width: int
    height: int
    duration_seconds: float | None
    frames_per_second: float | None
    frame_times: tuple[float, ...]
    created_at: datetime
    updated_at: datetime

    @property
    def thumbnail_frame(self) -> int | None:
        """The middle frame: first and last frames are often black."""
        return len(self.frame_times) // 2 if self.frame_times else None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """All vectors of one video in one generation, unit length.

    frames (N, D), mean (D,), max (D,), text (D,) or None where there is no caption; float32.
    """

    frames: Vectors
    mean: Vectors
    max: Vectors
    text: Vectors | None

    def __post_init__(self) -> None:
        count, dimension = self.frames.shape
        if count == 0:
            raise ValueError("a video has at least one frame")
        for vector in (self.mean, self.max, self.text):
            if vector is not None and vector.shape != (dimension,):
                raise ValueError(f"expected shape ({dimension},), got {vector.shape}")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest neighbours of N points, nearest first.

    rows (N, k) int32: the numbers of the rows they were sought among; distances (N, k) float32: Euclidean distances of
    unit vectors, from 0 to 2.
    """

    rows: npt.NDArray[np.int32]
    distances: Vectors

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != self.distances.shape:
            raise ValueError(f"{self.rows.shape} rows do not fit {self.distances.shape} distances")


@dataclass(frozen=True, slots=True)
class Entries:
    """What an index takes in: rows of videos, or of their frames.

    keys (N,), a video's as often as it has rows; pictures (N, D); captions (N, D), zero where `captioned` (N,) is
    False, or None in an index that holds no captions; categories N names, None for a video without one.
    """

    keys: Keys
    pictures: Vectors
    captions: Vectors | None
    captioned: Flags
    categories: tuple[str | None, ...]

    def __post_init__(self) -> None:
        count = len(self.keys)
        shapes = {len(self.pictures), len(self.captioned), len(self.categories)}
        if shapes != {count} or (self.captions is not None and self.captions.shape != self.pictures.shape):
            raise ValueError(f"{count} keys do not fit {self.pictures.shape} pictures and what belongs to them")


@dataclass(frozen=True, slots=True)
class Categories:
    """Which categories may be answered: one of `include` (None: any), none of `exclude`. None among the names
    stands for videos without a category."""

    include: frozenset[str | None] | None = None
    exclude: frozenset[str | None] = frozenset()

    def __contains__(self, name: str | None) -> bool:
        return (self.include is None or name in self.include) and name not in self.exclude


EVERY_CATEGORY = Categories()


@dataclass(frozen=True, slots=True)
class Generation:
    """All embeddings made with one model, weights, preprocessing and precision.

    `id` follows from the rest, so the same set-up finds its vectors again.
    """

    id: str
    model: str
    dimension: int
    precision: str


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of the two modalities, each >= 0 and not both 0."""

    video: float
    text: float

    def __post_init__(self) -> None:
        for field, weight in (("video_weight", self.video), ("text_weight", self.text)):
            if not 0 <= weight <= MAX_WEIGHT:  # also refuses NaN and infinity
                raise InvalidInput(field, f"must be a number from 0 to {MAX_WEIGHT:.0f}, not {weight}")
        if self.video == 0 and self.text == 0:
            raise InvalidInput("video_weight", "video_weight and text_weight must not both be 0")


def check_k(k: int) -> int:
    """`k` itself if it is from 1 to `MAX_K`; raises InvalidInput otherwise."""
    if not 1 <= k <= MAX_K:
        raise InvalidInput("k", f"must be from 1 to {MAX_K}, not {k}")
    return k


def check_seed(seed: int) -> int:
    """`seed` itself if it is from 0 to `MAX_SEED`; raises InvalidInput otherwise."""
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput("seed", f"must be from 0 to {MAX_SEED}, not {seed}")
    return seed


def clean_caption(caption: str | None) -> str | None:
    """The caption without surrounding white space, None where nothing is left.

    Raises InvalidInput above MAX_CAPTION_CHARACTERS.
    """
    text = (caption or "").replace("\x00", " ").strip()
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise InvalidInput("caption", f"must have at most {MAX_CAPTION_CHARACTERS:,} characters, not {len(text):,}")
    return text or None


def clean_category(category: str | None) -> str | None:
    """The category, None where it is empty. A category is a folder's name, in imports and in exports.

    Raises InvalidInput for one that cannot be a folder's name everywhere: slashes, control characters, a dot
    at its start or end, or more than MAX_NAME_CHARACTERS.
    """
    text = (category or "").strip()
    if not text:
        return None
    if "/" in text or "\\" in text or any(unicodedata.category(c).startswith("C") for c in text):
        raise InvalidInput(
            "category", f"must not contain slashes or control characters: {text[:MAX_NAME_CHARACTERS]!r}"
        )
    if text.startswith(".") or text.endswith("."):
        raise InvalidInput("category", f"must not start or end with a dot: {text[:MAX_NAME_CHARACTERS]!r}")
    return _limited("category", text)


def clean_title(title: str | None) -> str | None:
    """The title on one line, None where it is empty. Raises InvalidInput above MAX_NAME_CHARACTERS."""
    text = _one_line(title or "")
    return _limited("title", text) if text else None


def clean_filename(filename: str | None) -> str:
    """The last part of a file name that a client sent, never a path; shortened, for display only."""
    last = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return _one_line(last)[-MAX_NAME_CHARACTERS:] or "video"


def _one_line(text: str) -> str:
    printable = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)
    return " ".join(printable.split())


def _limited(field: str, text: str) -> str:
    if len(text) > MAX_NAME_CHARACTERS:
        raise InvalidInput(field, f"must have at most {MAX_NAME_CHARACTERS} characters, not {len(text)}")
    return text
