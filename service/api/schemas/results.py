"""Schemas of search results and near-duplicates."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.api.schemas.examples import HIT, SHORT, examples
from service.api.schemas.videos import VideoSummary
from service.models import Fusion
from service.search.duplicates import Duplicate as DomainDuplicate
from service.search.duplicates import Found as DomainFound
from service.search.duplicates import Group as DomainGroup
from service.search.duplicates import Keep as DomainKeep
from service.search.keeping import Reason
from service.search.results import Hit as DomainHit
from service.search.results import MatchLevel, SearchResults


class Breakdown(BaseModel):
    """Contribution of the visual similarity to a score."""

    similarity: float | None = Field(description="Cosine similarity. null if the query has no such vector.")
    weight: float
    contribution: float


class TextBreakdown(Breakdown):
    """Contribution of the text similarity to a score."""

    imputed: bool = Field(description="Whether the video has no caption, so that the average text similarity counts.")


class Breakdowns(BaseModel):
    """Contributions of the visual and the text similarity. They add up to the score."""

    video: Breakdown
    text: TextBreakdown


class Moment(BaseModel):
    """The frame of a hit that matches the query best and, with `group_by=moment`, the time span around it."""

    time: float = Field(description="Seconds from the start of the clip.")
    frame: int
    similarity: float
    start: float | None = Field(description="With `group_by=moment`: where the moment starts, in seconds.")
    end: float | None = Field(description="With `group_by=moment`: where the moment ends, in seconds.")


class Hit(BaseModel):
    """One result of a search or a recommendation."""

    model_config = examples(HIT)

    rank: int
    score: float
    video: VideoSummary
    breakdown: Breakdowns
    moment: Moment

    @classmethod
    def from_hit(cls, hit: DomainHit) -> Hit:
        """Build the response from a hit of the search package."""
        visual, text = hit.visual, hit.text
        return cls(
            rank=hit.rank,
            score=hit.score,
            video=VideoSummary.from_video(hit.video),
            breakdown=Breakdowns(
                video=Breakdown(similarity=visual.similarity, weight=visual.weight, contribution=visual.contribution),
                text=TextBreakdown(
                    similarity=text.similarity,
                    weight=text.weight,
                    contribution=text.contribution,
                    imputed=text.imputed,
                ),
            ),
            moment=Moment(
                time=hit.moment.time,
                frame=hit.moment.frame,
                similarity=hit.moment.similarity,
                start=hit.moment.start,
                end=hit.moment.end,
            ),
        )


class Weights(BaseModel):
    """The weights that were used.

    `text` is 0 if the query has no caption, and in a search for moments.
    """

    video: float
    text: float


class Answer(BaseModel):
    """A page of hits, best first, with the weights, the fusion and the generation that were used."""

    model_config = examples(
        {
            "items": [HIT],
            "weights": {"video": 0.7, "text": 0.3},
            "fusion": "cosine",
            "generation": "g0123456789abcdef",
            "exact": True,
            "next_cursor": None,
            "match": "strong",
            "match_score": 9.1,
        }
    )

    items: list[Hit]
    weights: Weights
    fusion: Fusion
    generation: str
    exact: bool = Field(description="Whether the results are exact over the whole library.")
    next_cursor: str | None = Field(description="Send it as `cursor`, with the same parameters, for the next page.")
    match: MatchLevel | None = Field(
        description="Whether anything fits the text: `none` means that the library probably has nothing of the kind. "
        "null unless the query is one text, on later pages, and for moments."
    )
    match_score: float | None = Field(
        description="How far the best hit stands above random words, in standard deviations. null if `match` is null."
    )

    @classmethod
    def from_results(cls, results: SearchResults) -> Answer:
        """Build the response from the results of the search package."""
        return cls(
            items=[Hit.from_hit(hit) for hit in results.hits],
            weights=Weights(video=results.weights.video, text=results.weights.text),
            fusion=results.fusion,
            generation=results.generation,
            exact=results.exact,
            next_cursor=results.next_cursor,
            match=results.match.level if results.match else None,
            match_score=results.match.score if results.match else None,
        )


class Duplicate(BaseModel):
    """A video of the same recording. Either of the two videos may show only a part of it."""

    video: VideoSummary
    similarity: float = Field(description="Share of the pixels of one clip that the other explains, from 0 to 1.")

    @classmethod
    def from_duplicate(cls, duplicate: DomainDuplicate) -> Duplicate:
        """Build the response from a near-duplicate of the search package."""
        return cls(video=VideoSummary.from_video(duplicate.video), similarity=duplicate.similarity)


class Keep(BaseModel):
    """The video that is proposed to keep."""

    video: VideoSummary
    because: Reason = Field(description="What decided between this video and the last of the others.")

    @classmethod
    def from_keep(cls, keep: DomainKeep) -> Keep:
        """Build the response from a proposal of the search package."""
        return cls(video=VideoSummary.from_video(keep.video), because=keep.because)


class DuplicateList(BaseModel):
    """The near-duplicates of a video, best match first."""

    model_config = examples(
        {
            "items": [{"video": SHORT, "similarity": 0.97}],
            "keep": {"video": SHORT, "because": "more bits per pixel"},
            "next_cursor": None,
        }
    )

    items: list[Duplicate]
    keep: Keep | None = Field(
        default=None,
        description="Which to keep, of the near-duplicates and the requested video. null without near-duplicates.",
    )
    next_cursor: str | None = None

    @classmethod
    def from_found(cls, found: DomainFound) -> DuplicateList:
        """Build the response from the near-duplicates of the search package."""
        return cls(
            items=[Duplicate.from_duplicate(one) for one in found.near_duplicates],
            keep=None if found.keep is None else Keep.from_keep(found.keep),
        )


class DuplicateGroup(BaseModel):
    """Near-duplicates of one recording."""

    best: VideoSummary
    copies: list[Duplicate]
    keep: Keep

    @classmethod
    def from_group(cls, group: DomainGroup) -> DuplicateGroup:
        """Build the output from a group of the search package."""
        return cls(
            best=VideoSummary.from_video(group.best),
            copies=[Duplicate.from_duplicate(one) for one in group.near_duplicates],
            keep=Keep.from_keep(group.keep),
        )
