"""What a question is answered with."""

from __future__ import annotations

from dataclasses import dataclass

from service.models import Fusion, Video, Weights


@dataclass(frozen=True, slots=True)
class Part:
    """What one modality added to a score. `similarity` is None where the question has no such vector."""

    similarity: float | None
    weight: float
    contribution: float
    imputed: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """The frame of a hit that answers best. Seconds from the clip's start; `start` and `end` of the neighbouring
    frames that answer nearly as well are known with group_by=moment only."""

    time: float
    frame: int
    similarity: float
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video with its score, to which the contributions of the two parts add up."""

    video: Video
    score: float
    video_part: Part
    text_part: Part


@dataclass(frozen=True, slots=True)
class Hit(Candidate):
    """A candidate that is shown: its place, and the frame that answers best."""

    rank: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class SearchResults:
    """Hits, best first, and how they were found. `weights` are those that were used."""

    hits: tuple[Hit, ...]
    weights: Weights
    fusion: Fusion
    generation: str
    exact: bool
    next_cursor: str | None
