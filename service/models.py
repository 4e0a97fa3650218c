"""Shared data classes of ReelsRS, and checks of the values that they hold.

Units are part of the names: `duration_seconds`, `size_bytes`. Times of frames are seconds from the start of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput
from service.names import has_controls, normalised, one_line

Status = Literal["queued", "processing", "ready", "failed"]
Aggregation = Literal["mean", "max"]
Method = Literal["umap", "tsne", "pca"]
"""Method by which a projection is fitted."""
Kind = Literal["frame", "mean", "max", "text"]
Precision = Literal["auto", "float32", "float16", "bfloat16", "int8"]
Fusion = Literal["cosine", "zscore"]
CategoryMode = Literal["any", "same", "other"]

Vectors = npt.NDArray[np.float32]
"""(N, D) or (D,) float32."""
VideoPks = npt.NDArray[np.int64]
"""(N,) int64: primary keys of videos, which are never shown to clients."""
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
    """Stored bytes, read on demand.

    `read(start, length)` returns `length` bytes from the offset `start`, fewer at the end. `path` is their file on this
    machine, None if they are stored elsewhere.
    """

    size_bytes: int
    read: Callable[[int, int], bytes]
    path: Path | None = None

    def pieces(self, start: int = 0, stop: int | None = None, *, piece_bytes: int = 8 << 20) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop` (None: the end) in pieces of at most `piece_bytes`.

        End early if fewer bytes are stored.
        """
        stop = self.size_bytes if stop is None else stop
        while start < stop and (piece := self.read(start, min(piece_bytes, stop - start))):
            start += len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class Sampling:
    """Rule that selects the frames of a clip.

    `frame_interval` None: `num_frames` frames spread evenly over the whole clip. N: every Nth frame from the start, at
    most `num_frames`.
    """

    num_frames: int
    frame_interval: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise InvalidInput("num_frames", f"must be from 1 to {MAX_FRAMES}, not {self.num_frames}")
        if self.frame_interval is not None and not 1 <= self.frame_interval <= MAX_FRAME_INTERVAL:
            raise InvalidInput("frame_interval", f"must be from 1 to {MAX_FRAME_INTERVAL}, not {self.frame_interval}")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Image format that a model expects, as described by the preprocessing of open_clip. Sizes are pixels."""

    height: int
    width: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Metadata in the container of a clip. Width and height are as displayed, after rotation and aspect ratio."""

    media_type: str
    codec: str
    width: int
    height: int
    duration_seconds: float | None
    frames_per_second: float | None


@dataclass(frozen=True, slots=True)
class Video:
    """One uploaded clip: a row of the videos table. `pk` is the internal primary key; `id` is public."""

    pk: int
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
        """Number of the middle frame, because first and last frames are often black; None without frames."""
        return len(self.frame_times) // 2 if self.frame_times else None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """All vectors of one video in one generation, float32, of unit length.

    frames (N, D), mean (D,), max (D,); text (D,), None if the video has no caption.
    """

    frames: Vectors
    mean: Vectors
    max: Vectors
    text: Vectors | None

    def __post_init__(self) -> None:
        count, dimension = self.frames.shape
        if count == 0:
            raise ValueError("frames: must have at least one row")
        for vector in (self.mean, self.max, self.text):
            if vector is not None and vector.shape != (dimension,):
                raise ValueError(f"mean, max and text: must have shape ({dimension},), not {vector.shape}")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest neighbours of N points, nearest first.

    rows (N, k) int32: row numbers in the set that was searched. distances (N, k) float32: Euclidean distances of unit
    vectors, from 0 to 2.
    """

    rows: npt.NDArray[np.int32]
    distances: Vectors

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != self.distances.shape:
            raise ValueError(
                f"rows and distances: must have the same shape (N, k), not {self.rows.shape} and {self.distances.shape}"
            )


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows to add to an index: one for each video, or one for each frame.

    video_pks (N,): primary keys of the videos, repeated for each row of a video. visual (N, D): visual vectors. text
    (N, D): text vectors, zero if `has_text` (N,) is False; None for an index without text vectors. categories: N names,
    None for a video without a category.
    """

    video_pks: VideoPks
    visual: Vectors
    text: Vectors | None
    has_text: Flags
    categories: tuple[str | None, ...]

    def __post_init__(self) -> None:
        count = len(self.video_pks)
        shapes = {len(self.visual), len(self.has_text), len(self.categories)}
        if shapes != {count} or (self.text is not None and self.text.shape != self.visual.shape):
            raise ValueError(
                f"all arrays must have {count} rows like video_pks, and text the shape of visual {self.visual.shape}"
            )


@dataclass(frozen=True, slots=True)
class CategoryFilter:
    """Category filter of a search: one of `include` (None: any), and none of `exclude`.

    None among the names stands for videos without a category.
    """

    include: frozenset[str | None] | None = None
    exclude: frozenset[str | None] = frozenset()

    def __contains__(self, name: str | None) -> bool:
        return (self.include is None or name in self.include) and name not in self.exclude


EVERY_CATEGORY = CategoryFilter()


@dataclass(frozen=True, slots=True)
class Generation:
    """All embeddings made with one model, weights, preprocessing and precision.

    `id` is derived from these, so the same configuration finds its vectors again.
    """

    id: str
    model: str
    dimension: int
    precision: str


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the visual (`video`) and the text similarity, each from 0 to MAX_WEIGHT and not both 0."""

    video: float
    text: float

    def __post_init__(self) -> None:
        for field, weight in (("video_weight", self.video), ("text_weight", self.text)):
            if not 0 <= weight <= MAX_WEIGHT:  # also refuses NaN and infinity
                raise InvalidInput(field, f"must be a number from 0 to {MAX_WEIGHT:.0f}, not {weight}")
        if self.video == 0 and self.text == 0:
            raise InvalidInput("video_weight", "must be greater than 0 if text_weight is 0")


def check_k(k: int) -> int:
    """Return `k` if it is from 1 to `MAX_K`; raise InvalidInput otherwise."""
    if not 1 <= k <= MAX_K:
        raise InvalidInput("k", f"must be from 1 to {MAX_K}, not {k}")
    return k


def check_seed(seed: int) -> int:
    """Return `seed` if it is from 0 to `MAX_SEED`; raise InvalidInput otherwise."""
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput("seed", f"must be from 0 to {MAX_SEED}, not {seed}")
    return seed


def clean_caption(caption: str | None) -> str | None:
    """Return the caption in NFC without NUL characters and surrounding white space; None if nothing is left.

    Raises InvalidInput if the caption is longer than MAX_CAPTION_CHARACTERS, or is not Unicode text.
    """
    text = normalised((caption or "").replace("\x00", " ")).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a character, which no database stores
        raise InvalidInput("caption", f"is not Unicode text: it has a lone surrogate at {error.start}") from None
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise InvalidInput("caption", f"must have at most {MAX_CAPTION_CHARACTERS:,} characters, not {len(text):,}")
    return text or None


def clean_category(category: str | None) -> str | None:
    """Return the category in NFC without surrounding white space; None if it is empty.

    Raises InvalidInput if the category cannot name a folder on every system, because imports and exports use it as a
    folder name: slashes, control characters, a dot at the start or end, more than MAX_NAME_CHARACTERS.
    """
    text = normalised(category or "").strip()
    if not text:
        return None
    if "/" in text or "\\" in text or has_controls(text):
        raise InvalidInput(
            "category", f"must not contain slashes or control characters: {text[:MAX_NAME_CHARACTERS]!r}"
        )
    if text.startswith(".") or text.endswith("."):
        raise InvalidInput("category", f"must not start or end with a dot: {text[:MAX_NAME_CHARACTERS]!r}")
    return _limited("category", text)


def clean_title(title: str | None) -> str | None:
    """Return the title in NFC on one line; None if it is empty.

    Raises InvalidInput if the title is longer than MAX_NAME_CHARACTERS.
    """
    text = one_line(title or "")
    return _limited("title", text) if text else None


def clean_filename(filename: str | None) -> str:
    """Return the last part of a file name sent by a client, in NFC, never a path.

    The result is for display only. If it is too long, only the end is kept. An empty name becomes `video`.
    """
    last = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return one_line(last)[-MAX_NAME_CHARACTERS:] or "video"


def _limited(field: str, text: str) -> str:
    if len(text) > MAX_NAME_CHARACTERS:
        raise InvalidInput(field, f"must have at most {MAX_NAME_CHARACTERS} characters, not {len(text)}")
    return text
