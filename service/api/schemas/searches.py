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

    k: Count = Field(10, description="Number of hits on a page.")
    video_weight: Weight = Field(0.7, description="Weight of the visual similarity (frames).")
    text_weight: Weight = Field(0.3, description="Weight of the text similarity (captions).")
    category: list[Name] = Field([], max_length=100, description="Only videos in one of these categories.")
    exclude_category: list[Name] = Field([], max_length=100, description="No videos in any of these categories.")
    category_mode: CategoryMode = Field(
        "any",
        description="`same`: only the categories of the reference videos. `other`: only other categories. "
        "Both need a reference video.",
    )
    diversity: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="0: the best hits. Towards 1: hits unlike those above them (maximal marginal relevance).",
    )
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Leave out hits with a lower score. Which scores are low depends on the query."
    )
    cursor: str | None = Field(
        None, max_length=MAX_CURSOR_CHARACTERS, description="`next_cursor` of the previous page."
    )

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


_FUSION = "How visual and text similarity are combined."
_GROUP_BY = "`video`: each hit is a video. `moment`: each hit is a time span in a clip, from the frames of all videos."


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

    positive: list[ExampleVideo] = Field([], max_length=100, description="Videos that hits should resemble.")
    negative: list[ExampleVideo] = Field([], max_length=100, description="Videos that hits should differ from.")
    exclude: list[Name] = Field([], max_length=1000, description="Ids that must not be hits. Unknown ids are ignored.")
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

    caption: str | None = Field(
        None, description="What the clip shows. Without a caption, only visual similarity counts."
    )
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="Frames sampled from the clip."
    )
    frame_interval: Annotated[int, Field(ge=1, le=MAX_FRAME_INTERVAL)] | None = Field(
        None, description="N: every Nth frame from the start. Default: REELSRS_FRAME_INTERVAL."
    )
    fusion: Fusion = Field("cosine", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)
