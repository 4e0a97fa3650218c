"""Near-duplicates: the same recording again, re-encoded, resized, with black bars, cut or played backwards.

The caller proposes candidates; this module decides which of them are near-duplicates. Embeddings cannot decide,
because two clips of one person in one place have nearly the same. Pixels can. A clip's fingerprint is its frames as
16 x 16 grey images, without borders and without blank frames. A decoder process makes the fingerprint when it is first
needed, and the store keeps it beside the clip.

A is a near-duplicate of B if B explains A: every frame of A lies close to a frame of B, or to the straight line between
two successive frames of B. The order of the frames does not count. Closeness is measured relative to how much A itself
moves, so that a background that both share proves nothing. A clip that has only blank frames has an empty
fingerprint and no near-duplicates.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import structlog

from service.database import video_rows
from service.database.db import Database
from service.errors import InvalidInput, NotFound, NotReady, ReelsError, Undecodable
from service.media import FINGERPRINT_SIDE, Decoder, Fingerprint, Pixels
from service.models import Video
from service.search.keeping import Reason, choose
from service.storage import Store

log = structlog.get_logger(__name__)

Frames = npt.NDArray[np.float32]
"""(N, 256) float32: one frame per row, each with mean 0 and standard deviation 1."""

THRESHOLD = 0.88
"""Least similarity of a near-duplicate.

Measured on 114 clips and 252 near-duplicates of 21 of them. The worst near-duplicate scores 0.93 (the same clip at a
hundredth of its bytes). The best other pair scores 0.80 (one man in one stance, who signs "no" and then "yes"), the
next 0.76 (two test patterns) and 0.53 (two other signs). Of 114 harsher near-duplicates of 19 other clips, 4 fell below
the threshold: some were 80 pixels wide and heavily compressed as well; another was a cut of a black night with bars on
all sides.
"""

# Least motion that a difference is compared with, as energy relative to the clip's contrast. Without this limit, the
# encoding noise of a clip that hardly moves would make it differ from its own near-duplicate.
_MIN_MOTION = 0.1
# Weight of a difference that is the same in every frame. A crop that is off by a fraction of a pixel causes up to 0.04
# of the contrast, another scene more than 1.
_CONSTANT_WEIGHT = 0.5
_BLOCKS = FINGERPRINT_SIDE // 2  # a block is 2 x 2 pixels

_FORMAT = b"reelsrs fingerprint 3\n"  # new number if `media.fingerprint` yields other images or facts
_CACHE_SIZE = 512  # fingerprints in memory, at most 256 kB each, twice that with borders
_PAGE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Near-duplicate of another video.

    One of the two may be a near-duplicate of only a part of the other. `similarity` is from THRESHOLD to 1.
    """

    video: Video
    similarity: float


@dataclass(frozen=True, slots=True)
class Keep:
    """The video that is proposed to keep, of several near-duplicates, and the reason."""

    video: Video
    because: Reason


@dataclass(frozen=True, slots=True)
class Found:
    """The near-duplicates of a video, most similar first.

    `keep` proposes one of them or the video itself; None if there are no near-duplicates.
    """

    near_duplicates: tuple[Duplicate, ...]
    keep: Keep | None


@dataclass(frozen=True, slots=True)
class Group:
    """Near-duplicates of one recording: the video to keep, and the others, most similar first."""

    keep: Keep
    near_duplicates: tuple[Duplicate, ...]

    @property
    def best(self) -> Video:
        """The video to keep."""
        return self.keep.video


def similarity(a: Fingerprint, b: Fingerprint) -> float:
    """Return how much of one clip the other explains, from 0 to 1, in the better of both directions.

    The result is 0 if a fingerprint is empty.
    """
    if not a.images.size or not b.images.size:
        return 0.0
    # The apparent border of a dark scene may not be detected in the clip that the scene was cut from. A clip with a
    # border and a clip without are therefore compared with and without the border. Two clips with borders are compared
    # without them only, because the borders alone would make them similar.
    variants = 1 if len(a.images) == len(b.images) else 2
    return max(_similarity(one, other) for one in a.images[:variants] for other in b.images[:variants])


def _similarity(a: Pixels, b: Pixels) -> float:
    """Return the similarity of two fingerprints' frames, (N, 16, 16) uint8, in the better direction."""
    first, second = _normalise(a), _normalise(b)
    distances = (first**2).sum(axis=1)[:, None] - 2 * first @ second.T + (second**2).sum(axis=1)
    unexplained = min(
        _unexplained(first, second, distances.argmin(axis=1)),
        _unexplained(second, first, distances.argmin(axis=0)),
    )
    return max(0.0, 1.0 - unexplained)


class Duplicates:
    """Finds near-duplicates in one library.

    `candidates` returns the ready videos that might be near-duplicates of a video. Others are not found.
    """

    def __init__(
        self, db: Database, files: Store, decoder: Decoder, candidates: Callable[[Video], Sequence[Video]]
    ) -> None:
        self._db = db
        self._files = files
        self._decoder = decoder
        self._candidates = candidates
        self._load_cached = lru_cache(_CACHE_SIZE)(self._load)

    def find(self, video_id: str) -> Found:
        """Return the near-duplicates of a video, and which of all to keep. Raises NotFound, NotReady.

        The first search for a clip decodes the clip and its candidates, which takes about half a second each.
        """
        with self._db.read() as connection:
            video = video_rows.video(connection, video_id)
        if video.status != "ready":
            raise NotReady(video.id, video.status)
        near_duplicates = self._near_duplicates(video, self._candidates(video))
        return Found(near_duplicates, self._keep(video, near_duplicates) if near_duplicates else None)

    def groups(self, progress: Callable[[], None] | None = None) -> tuple[Group, ...]:
        """Return all near-duplicates in the library, in groups, the longest videos first.

        `keeping.choose` selects the best video of a group. `progress` is called once for each ready video.
        """
        # Connected components would be wrong: a compilation would join clips that have nothing in common. Instead, the
        # longest video and its near-duplicates choose the best of them, which takes its own near-duplicates. Then the
        # longest of the remaining videos does the same, and so on. To keep the best of each group is to keep every
        # recording, and none twice.
        videos = self._ready()
        neighbours = self._neighbours(videos)
        found: list[Group] = []
        waiting = {video.pk: video for video in sorted(videos, key=_rank)}
        for pk in list(waiting):
            if progress is not None:
                progress()
            if pk not in waiting:
                continue
            group = self._group(waiting[pk], neighbours, waiting)
            if group is None:
                del waiting[pk]
                continue
            found.append(group)
            for video in (group.best, *(duplicate.video for duplicate in group.near_duplicates)):
                del waiting[video.pk]
        return tuple(found)

    def _group(self, first: Video, neighbours: dict[int, set[int]], waiting: dict[int, Video]) -> Group | None:
        """Return the group that the longest of the waiting videos leads to; None if it has no near-duplicates."""

        def near_duplicates(video: Video) -> tuple[Duplicate, ...]:
            near = (waiting[pk] for pk in sorted(neighbours[video.pk]) if pk in waiting)
            return self._near_duplicates(video, near)

        found = near_duplicates(first)
        if not found:
            return None
        keep = self._keep(first, found)
        return Group(keep, found if keep.video.pk == first.pk else near_duplicates(keep.video))

    def _keep(self, video: Video, near_duplicates: Iterable[Duplicate]) -> Keep:
        videos = [video, *(duplicate.video for duplicate in near_duplicates)]
        return Keep(*choose(videos, self._has_sound))

    def _has_sound(self, video: Video) -> bool:
        found = self._fingerprint(video)
        return found is not None and found.sound

    def _ready(self) -> list[Video]:
        videos: list[Video] = []
        while True:
            with self._db.read() as connection:
                before = videos[-1].pk if videos else None
                page = video_rows.list_videos(connection, status="ready", before=before, limit=_PAGE_SIZE)
            videos += page
            if len(page) < _PAGE_SIZE:
                return videos

    def _neighbours(self, videos: Iterable[Video]) -> dict[int, set[int]]:
        """Return, by video primary key, the primary keys of possible near-duplicates, in both directions.

        If a video proposes another, the reverse counts as proposed: of many near-duplicates, not all fit into each
        other's candidates.
        """
        neighbours: dict[int, set[int]] = {video.pk: set() for video in videos}
        for video in videos:
            for candidate in self._candidates(video):
                if candidate.pk in neighbours:  # otherwise it became ready after the list was read
                    neighbours[video.pk].add(candidate.pk)
                    neighbours[candidate.pk].add(video.pk)
        return neighbours

    def _near_duplicates(self, video: Video, candidates: Iterable[Video]) -> tuple[Duplicate, ...]:
        others = [other for other in candidates if other.pk != video.pk]
        if not others or (own := self._fingerprint(video)) is None:
            return ()
        found: list[Duplicate] = []
        with ThreadPoolExecutor(self._decoder.processes, thread_name_prefix="fingerprint") as pool:
            # Compare here, not in the pool, because a matrix product already uses several threads.
            for other, theirs in zip(others, pool.map(self._fingerprint, others), strict=True):
                if theirs is not None and (score := similarity(own, theirs)) >= THRESHOLD:
                    found.append(Duplicate(other, score))
        # Rounded; otherwise the order of a sum would decide between equal near-duplicates.
        return tuple(sorted(found, key=lambda duplicate: (-round(duplicate.similarity, 6), duplicate.video.id)))

    def _fingerprint(self, video: Video) -> Fingerprint | None:
        """Return the fingerprint; None if the clip cannot be decoded any more or was deleted meanwhile.

        Only this clip is then missing from the comparison.
        """
        try:
            return self._load_cached(video.sha256)
        except (Undecodable, InvalidInput, NotFound) as error:
            log.warning("video not compared for near-duplicates", video=video.id, reason=str(error))
            return None

    def _load(self, sha256: str) -> Fingerprint:
        stored = _unpack(self._files.fingerprint(sha256))
        if stored is not None:
            return stored
        made = self._decoder.fingerprint(self._files.video(sha256))
        try:
            with self._db.write() as connection:  # files are added and removed under this lock
                if video_rows.video_by_sha256(connection, sha256) is not None:
                    self._files.put_fingerprint(sha256, _pack(made))
        except ReelsError as error:  # a full disk must not fail the search
            log.warning("fingerprint not stored", sha256=sha256, reason=str(error))
        return made


def _normalise(frames: Pixels) -> Frames:
    """Return frames as rows without brightness and contrast, (N, 256) float32.

    Both change with an encoder and in a fade.
    """
    rows: Frames = frames.reshape(len(frames), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(rows.std(axis=1, keepdims=True), 1)
    return rows


def _unexplained(a: Frames, b: Frames, nearest: npt.NDArray[np.intp]) -> float:
    """Return what remains of A after B is subtracted, as a share of A's own motion.

    The result is 0 if B explains A, and above 1 for unrelated clips. `nearest`, (N,), is the frame of B that is closest
    to each frame of A. The remainder has two parts. The part that changes over time is divided by the motion of A; the
    part that is the same in every frame is weighted with `_CONSTANT_WEIGHT`.
    """
    left = np.full_like(a, np.inf)
    least = np.full(len(a), np.inf, dtype=np.float32)
    difference = a - b[nearest]
    for step in (-1, 1):
        # A near-duplicate with another frame rate or start shows instants between two frames of B.
        direction = b[np.clip(nearest + step, 0, len(b) - 1)] - b[nearest]
        part = (difference * direction).sum(axis=1) / np.maximum((direction**2).sum(axis=1), 1e-6)
        rest = difference - np.clip(part, 0, 1)[:, None] * direction
        size = (rest**2).sum(axis=1)
        closer = size < least
        left[closer], least[closer] = rest[closer], size[closer]
    constant = left.mean(axis=0, keepdims=True)
    motion = max(_peak_energy(a - a.mean(axis=0)), _MIN_MOTION)
    return _peak_energy(left - constant) / motion + _CONSTANT_WEIGHT * _peak_energy(constant)


def _peak_energy(rows: Frames) -> float:
    """Return the energy of each frame's most energetic block of 2 x 2 pixels, averaged over the frames.

    Another gesture is a strong difference in one spot; compression is a weak difference everywhere. Over whole frames,
    both can have the same energy.
    """
    squares = (rows**2).reshape(len(rows), _BLOCKS, 2, _BLOCKS, 2)
    blocks = squares[:, :, 0, :, 0] + squares[:, :, 0, :, 1] + squares[:, :, 1, :, 0] + squares[:, :, 1, :, 1]
    return float(blocks.max(axis=(1, 2)).mean()) / 4


def _pack(fingerprint: Fingerprint) -> bytes:
    facts = bytes([len(fingerprint.images), fingerprint.sound])
    return _FORMAT + facts + zlib.compress(fingerprint.images.tobytes(), 1)


def _unpack(data: bytes | None) -> Fingerprint | None:
    """Return the stored fingerprint; None if there is none, or if it has another version or is damaged.

    A power cut can damage a file. zlib's checksum detects this.
    """
    if data is None or not data.startswith(_FORMAT):
        return None
    facts, packed = data[len(_FORMAT) :][:2], data[len(_FORMAT) + 2 :]
    try:
        pictures = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    except zlib.error:
        return None
    return Fingerprint(pictures.reshape(facts[0], -1, FINGERPRINT_SIDE, FINGERPRINT_SIDE), bool(facts[1]))


def _rank(video: Video) -> tuple[float, int, int]:
    """Return the sort key of a video: the longest first, then the one with the most pixels, then the oldest."""
    return -(video.duration_seconds or 0.0), -video.width * video.height, video.pk
