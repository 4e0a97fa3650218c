"""Search results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.models import Fusion, Video, Weights

MatchLevel = Literal["strong", "weak", "none"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """Contribution of one modality, visual or text, to a score.

    Attributes:
        similarity: Similarity of query and video; None if the query has no vector of this modality.
        weight: Weight of the modality in the query.
        contribution: Summand of the score.
        imputed: Whether the video has no caption, so that its similarity is the average of the library.
    """

    similarity: float | None
    weight: float
    contribution: float
    imputed: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """Best matching frame of a hit, and the time span around it. Times are seconds from the start of the clip.

    `start` and `end` enclose the neighbouring frames that match nearly as well. They are set with group_by=moment only.
    """

    time: float
    frame: int
    similarity: float
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Video with its score, which is the sum of the contributions of the two parts."""

    video: Video
    score: float
    visual: Contribution
    text: Contribution


@dataclass(frozen=True, slots=True)
class Hit(Candidate):
    """Candidate in the search results, with its rank, from 1, and its best matching frame."""

    rank: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Match:
    """How well the best hit fits the query. `score`: deviations above random words; None without any hit."""

    level: MatchLevel
    score: float | None


@dataclass(frozen=True, slots=True)
class SearchResults:
    """Hits, best first, and how they were found.

    Attributes:
        hits: Hits of this page.
        weights: Weights that were used: the text weight is 0 if the query has no text vector.
        fusion: How the similarities became a score.
        generation: Id of the generation that was searched.
        exact: Whether the index compared every vector.
        next_cursor: Cursor of the next page; None if this page is the last.
        match: How well the best hit fits; None if that is not known: on later pages, in searches for moments, and
            unless the query is one text.
    """

    hits: tuple[Hit, ...]
    weights: Weights
    fusion: Fusion
    generation: str
    exact: bool
    next_cursor: str | None
    match: Match | None = None
