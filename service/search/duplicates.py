"""Near-duplicates: the same recording once more, re-encoded, resized, with black bars, cut or played backwards. Knows
no HTTP and no index: who might be a copy it is told, who is one it decides.

Embeddings cannot decide it, for two clips of one person in one place have nearly the same; pixels can. A clip's
fingerprint is its frames at 16 x 16 grey without borders and blank frames; it is made when first asked for, in a
decoder's process, and kept beside the clip. A is a copy of B where B explains A: every frame of A lies close to
one of B, or to the way from one to the next, whatever their order. Close is measured against how much A itself
moves, so that a background which both share proves nothing. A clip without any picture that shows something has an
empty fingerprint, and no copies.
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

from service.database import catalog
from service.database.db import Database
from service.errors import InvalidInput, NotFound, NotReady, ReelsError, Undecodable
from service.media import FINGERPRINT_SIDE, Decoder, Fingerprint, Pixels
from service.models import Video
from service.storage import Store

log = structlog.get_logger(__name__)

Frames = npt.NDArray[np.float32]
"""(N, 256) float32: pictures as rows, each of mean 0 and standard deviation 1."""

THRESHOLD = 0.88
"""The least similarity of a copy. Measured on 114 clips and 252 copies of 21 of them: the worst copy scores 0.93 (the
same clip at a hundredth of its bytes), the best that is none 0.80 (one man in one stance, who signs "no" and then
"yes"), the next 0.76 (two test patterns) and 0.53 (two other signs). Of 114 harsher copies of 19 other clips, 4 fell
below: some 80 pixels wide that were ground down as well, and a cut of a black night with bars on all sides."""

# How much of its contrast a clip's liveliest spot moves at least, as far as the comparison is concerned. A clip that
# moves less is measured against this, or the noise of its encoding would make it differ from its own copy.
_LEAST_MOTION = 0.1
# What a difference counts that is the same in every frame. A crop that is off by a fraction of a pixel makes one of up
# to 0.04 of the contrast, another scene one above 1.
_CONSTANT_WEIGHT = 0.5
_BLOCKS = FINGERPRINT_SIDE // 2  # a block is 2 x 2 pixels

_FORMAT = b"reelsrs fingerprint 1\n"  # another number whenever `video.fingerprint` gives other pictures
_CACHED = 512  # fingerprints in memory: 256 kB each at most
_PAGE = 1024


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A video that is a copy of another, or of a part of it, or the other way round. `similarity` is from THRESHOLD
    to 1."""

    video: Video
    similarity: float


@dataclass(frozen=True, slots=True)
class Group:
    """Videos that are one recording: the one to keep, and its copies, best first."""

    best: Video
    copies: tuple[Duplicate, ...]


def similarity(a: Fingerprint, b: Fingerprint) -> float:
    """How much of one clip the other explains, from 0 to 1, whichever way round is more; 0 where one is empty."""
    if not a.pictures.size or not b.pictures.size:
        return 0.0
    # What seems to be the border of a dark scene may be none in the clip that it was cut from, so that clips with and
    # without are compared in both ways. Two with borders are not: their borders alone would make them similar.
    ways = 1 if len(a.pictures) == len(b.pictures) else 2
    return max(_similarity(one, other) for one in a.pictures[:ways] for other in b.pictures[:ways])


def _similarity(a: Pixels, b: Pixels) -> float:
    first, second = _normalised(a), _normalised(b)
    distances = (first**2).sum(axis=1)[:, None] - 2 * first @ second.T + (second**2).sum(axis=1)
    unexplained = min(
        _unexplained(first, second, distances.argmin(axis=1)),
        _unexplained(second, first, distances.argmin(axis=0)),
    )
    return max(0.0, 1.0 - unexplained)


class Duplicates:
    """Finds copies in one library. `candidates` proposes the ready videos that might be copies of one; what it does
    not propose is not found."""

    def __init__(
        self, db: Database, files: Store, decoder: Decoder, candidates: Callable[[Video], Sequence[Video]]
    ) -> None:
        self._db = db
        self._files = files
        self._decoder = decoder
        self._candidates = candidates
        self._cached = lru_cache(_CACHED)(self._load)

    def of(self, video_id: str) -> tuple[Duplicate, ...]:
        """The copies of a video, best first. The first question about a clip decodes it and its candidates, about
        half a second each. Raises NotFound, NotReady."""
        with self._db.read() as connection:
            video = catalog.video(connection, video_id)
        if video.status != "ready":
            raise NotReady(video.id, video.status)
        return self._copies(video, self._candidates(video))

    def groups(self, progress: Callable[[], None] | None = None) -> tuple[Group, ...]:
        """All copies in the library. `progress` is called once for each ready video.

        The best video is the one with most pixels, then the longest, then the oldest. Groups are in that order of
        their best.
        """
        # Not connected components: in a compilation, clips that have nothing in common would become copies of each
        # other. Here the best of all takes its own copies, the best of what is left takes its own, and so on. So
        # whoever keeps the best of each group keeps a copy of everything, and no two copies.
        videos = self._ready()
        neighbours = self._neighbours(videos)
        found: list[Group] = []
        waiting = {video.key: video for video in sorted(videos, key=_rank)}
        for key in list(waiting):
            if progress is not None:
                progress()
            best = waiting.pop(key, None)
            if best is None:
                continue
            copies = self._copies(best, (waiting[near] for near in sorted(neighbours[key]) if near in waiting))
            if copies:
                found.append(Group(best, copies))
            for copy in copies:
                del waiting[copy.video.key]
        return tuple(found)

    def _ready(self) -> list[Video]:
        videos: list[Video] = []
        while True:
            with self._db.read() as connection:
                before = videos[-1].key if videos else None
                page = catalog.list_videos(connection, status="ready", before=before, limit=_PAGE)
            videos += page
            if len(page) < _PAGE:
                return videos

    def _neighbours(self, videos: Iterable[Video]) -> dict[int, set[int]]:
        """Keys of who might be a copy of whom. One that proposes another is also proposed by it: of many copies, not
        all find room among each other's candidates."""
        neighbours: dict[int, set[int]] = {video.key: set() for video in videos}
        for video in videos:
            for candidate in self._candidates(video):
                if candidate.key in neighbours:  # and not made ready, or deleted, since the list was read
                    neighbours[video.key].add(candidate.key)
                    neighbours[candidate.key].add(video.key)
        return neighbours

    def _copies(self, video: Video, candidates: Iterable[Video]) -> tuple[Duplicate, ...]:
        others = [other for other in candidates if other.key != video.key]
        if not others or (own := self._fingerprint(video)) is None:
            return ()
        found: list[Duplicate] = []
        with ThreadPoolExecutor(self._decoder.processes, thread_name_prefix="fingerprint") as pool:
            # Compared here and not in the pool: a product of matrices has threads of its own.
            for other, theirs in zip(others, pool.map(self._fingerprint, others), strict=True):
                if theirs is not None and (score := similarity(own, theirs)) >= THRESHOLD:
                    found.append(Duplicate(other, score))
        # Rounded, or the order of a sum would decide between equal copies.
        return tuple(sorted(found, key=lambda copy: (-round(copy.similarity, 6), copy.video.id)))

    def _fingerprint(self, video: Video) -> Fingerprint | None:
        """None where the clip cannot be decoded any more, or was deleted meanwhile: a loss of this one only."""
        try:
            return self._cached(video.sha256)
        except (Undecodable, InvalidInput, NotFound) as error:
            log.warning("a video was not compared with others", video=video.id, reason=str(error))
            return None

    def _load(self, sha256: str) -> Fingerprint:
        kept = _unpack(self._files.fingerprint(sha256))
        if kept is not None:
            return kept
        made = self._decoder.fingerprint(self._files.video(sha256))
        try:
            with self._db.write() as connection:  # the lock under which files come and go
                if catalog.video_by_sha256(connection, sha256) is not None:
                    self._files.put_fingerprint(sha256, _pack(made))
        except ReelsError as error:  # a full disk is no reason not to answer
            log.warning("a fingerprint was not kept", sha256=sha256, reason=str(error))
        return made


def _normalised(pictures: Pixels) -> Frames:
    """Brightness and contrast taken out of each picture: they change with an encoder, and in a fade."""
    rows: Frames = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(rows.std(axis=1, keepdims=True), 1)
    return rows


def _unexplained(a: Frames, b: Frames, nearest: npt.NDArray[np.intp]) -> float:
    """What is left of A once B was subtracted, as a share of A's own motion; from 0, and above 1 for strangers.

    `nearest` (N,) is the frame of B that is closest to each of A's.
    """
    left = np.full_like(a, np.inf)
    least = np.full(len(a), np.inf, dtype=np.float32)
    difference = a - b[nearest]
    for step in (-1, 1):
        # Copies of another frame rate or with another beginning show moments between two of B's frames.
        way = b[np.clip(nearest + step, 0, len(b) - 1)] - b[nearest]
        part = (difference * way).sum(axis=1) / np.maximum((way**2).sum(axis=1), 1e-6)
        rest = difference - np.clip(part, 0, 1)[:, None] * way
        size = (rest**2).sum(axis=1)
        closer = size < least
        left[closer], least[closer] = rest[closer], size[closer]
    constant = left.mean(axis=0, keepdims=True)
    motion = max(_liveliest(a - a.mean(axis=0)), _LEAST_MOTION)
    return _liveliest(left - constant) / motion + _CONSTANT_WEIGHT * _liveliest(constant)


def _liveliest(rows: Frames) -> float:
    """The energy of each picture's liveliest block, on average over the pictures.

    Another gesture is a strong difference in one spot, compression a weak one everywhere. Over whole pictures the two
    can weigh the same.
    """
    squares = (rows**2).reshape(len(rows), _BLOCKS, 2, _BLOCKS, 2)
    blocks = squares[:, :, 0, :, 0] + squares[:, :, 0, :, 1] + squares[:, :, 1, :, 0] + squares[:, :, 1, :, 1]
    return float(blocks.max(axis=(1, 2)).mean()) / 4


def _pack(fingerprint: Fingerprint) -> bytes:
    return _FORMAT + bytes([len(fingerprint.pictures)]) + zlib.compress(fingerprint.pictures.tobytes(), 1)


def _unpack(data: bytes | None) -> Fingerprint | None:
    """None where there is none, or one of another version, or one that a power cut left broken (zlib has a sum)."""
    if data is None or not data.startswith(_FORMAT):
        return None
    ways, packed = data[len(_FORMAT) :][:1], data[len(_FORMAT) + 1 :]
    try:
        pictures = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    except zlib.error:
        return None
    return Fingerprint(pictures.reshape(ways[0], -1, FINGERPRINT_SIDE, FINGERPRINT_SIDE))


def _rank(video: Video) -> tuple[int, float, int]:
    """From the best to the worst: most pixels, then the longest, then the oldest."""
    return -video.width * video.height, -(video.duration_seconds or 0.0), video.key
