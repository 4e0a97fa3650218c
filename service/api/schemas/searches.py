"""Schemas of the parameters of searches and recommendations.

The limits are defined in `service.models` and checked twice. The check here lets a response of status 422 name every
invalid field, and puts the limits into the OpenAPI document. The core checks them again, because the command line calls
it without these schemas.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.examples import VIDEO_ID
from service.models import MAX_FRAME_INTERVAL, MAX_FRAMES, MAX_K, MAX_WEIGHT, CategoryMode, Fusion
from service.models import Weights as DomainWeights
from service.search.query import MAX_CURSOR_CHARACTERS, GroupBy, QueryVector, Reference, Scope, SearchQuery

Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_K)]
Name = Annotated[str, Field(max_length=200)]


class Parameters(BaseModel):
    """Parameters of every search and recommendation."""

    model_config = ConfigDict(extra="forbid")

    k: Count = Field(10, description="number of hits on a page")
    video_weight: Weight = Field(0.7, description="weight of what is seen")
    text_weight: Weight = Field(0.3, description="weight of what is written")
    category: list[Name] = Field([], max_length=100, description="only videos in one of these")
    exclude_category: list[Name] = Field([], max_length=100, description="no videos in any of these")
    category_mode: CategoryMode = Field(
        "any", description="`same` or `other` category as the videos to be like; needs such a video"
    )
    diversity: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="0: the best hits; towards 1: hits unlike those before them (maximal marginal relevance)"
    )
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="leave out hits with a lower score; what is low differs from question to question"
    )
    cursor: str | None = Field(None, max_length=MAX_CURSOR_CHARACTERS, description="`next_cursor` of the page before")

    def to_query(
        self,
        fusion: Fusion,
        *,
        references: tuple[Reference, ...] = (),
        vectors: tuple[QueryVector, ...] = (),
        exclude: tuple[str, ...] = (),
        group_by: GroupBy = "video",
    ) -> SearchQuery:
        """Build the query from these parameters.

        Args:
            fusion: How visual and text similarity are combined.
            references: Reference videos; hits should differ from those with a negative weight.
            vectors: Query vectors of texts, images or clips outside the library.
            exclude: Ids of videos that must not be hits.
            group_by: Whether a hit is a video or a moment.

        Raises:
            InvalidInput: If values are invalid or contradict each other.
        """
        return SearchQuery(
            weights=DomainWeights(self.video_weight, self.text_weight),
            fusion=fusion,
            references=references,
            vectors=vectors,
            exclude=exclude,
            k=self.k,
            scope=Scope(tuple(self.category), tuple(self.exclude_category), self.category_mode),
            diversity=self.diversity,
            min_score=self.min_score,
            group_by=group_by,
            cursor=self.cursor,
        )


_FUSION = "how the two similarities are brought together"
_GROUP_BY = "`video`: a hit a video; `moment`: a hit a moment of a video, over the frames of all"


class RecommendationParameters(Parameters):
    """Parameters of a recommendation from one video."""

    fusion: Fusion = Field("cosine", description=_FUSION)


class ExampleVideo(BaseModel):
    """A reference video: a library video that hits should resemble, or differ from."""

    model_config = ConfigDict(extra="forbid")

    id: Name
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = 1.0


class RecommendationRequest(Parameters):
    """A recommendation from several reference videos."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"positive": [{"id": VIDEO_ID, "weight": 2}], "negative": [], "exclude": [], "k": 5}]
        },
    )

    positive: list[ExampleVideo] = Field([], max_length=100, description="more like these")
    negative: list[ExampleVideo] = Field([], max_length=100, description="less like these")
    exclude: list[Name] = Field([], max_length=1000, description="ids that are no answer; unknown ones are ignored")
    fusion: Fusion = Field("cosine", description=_FUSION)

    @property
    def references(self) -> tuple[Reference, ...]:
        """Reference videos of both lists; those from `negative` get a negative weight."""
        return (
            *(Reference(one.id, one.weight) for one in self.positive),
            *(Reference(one.id, -one.weight) for one in self.negative),
        )


class TextSearch(Parameters):
    """A search by text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"query": "a dog on a beach", "k": 5}, {"query": "snow", "category": ["animals"]}]
        },
    )

    query: str = Field(min_length=1, max_length=10_000)
    fusion: Fusion = Field("zscore", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)


class PictureSearch(Parameters):
    """A search by image: the fields of the form beside its file."""

    fusion: Fusion = Field("zscore", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)


class ClipSearch(Parameters):
    """A search by clip: the fields of the form beside its file."""

    caption: str | None = Field(None, description="what the clip shows; without one only what is seen counts")
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(None, description="frames sampled of it")
    frame_interval: Annotated[int, Field(ge=1, le=MAX_FRAME_INTERVAL)] | None = Field(
        None, description="every Nth frame from the start; left out: spread evenly"
    )
    fusion: Fusion = Field("cosine", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)
