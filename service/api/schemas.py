"""What goes over the wire: requests and answers as pydantic models, with the examples that the docs page shows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.database.maps import Embedding as EmbeddingType
from service.database.maps import Map, MapStatus
from service.domain import (
    MAX_FRAME_INTERVAL,
    MAX_FRAMES,
    MAX_K,
    MAX_SEED,
    CategoryMode,
    Fusion,
    Method,
    Precision,
    Status,
)
from service.domain import Video as DomainVideo
from service.domain import Weights as DomainWeights
from service.generations.generations import State
from service.search.duplicates import Duplicate as DomainDuplicate
from service.search.question import MAX_CURSOR_CHARACTERS, Example, GroupBy, Like, Question, Scope
from service.search.recommend import Answer as DomainAnswer
from service.search.recommend import Hit as DomainHit

_ID = "5f2d9c31ab047e68"
_URLS = {
    "content_url": f"/v1/videos/{_ID}/content",
    "thumbnail_url": f"/v1/videos/{_ID}/thumbnail",
}
_SHORT = {
    "id": _ID,
    "title": "dog_jumps_log",
    "category": "animals",
    "caption": "a brown dog jumps over a fallen log in the woods",
    "duration": 3.2,
    **_URLS,
}
_VIDEO = {
    **_SHORT,
    "filename": "dog_jumps_log.mp4",
    "status": "ready",
    "progress": 1.0,
    "error": None,
    "size": 229745,
    "sha256": "9f6d81c2e1ac6b0cf5f2f35d8a9cfb6f9a2ad6d8a8b8a9f7a3d5b1c0e4f6a7b8",
    "media_type": "video/mp4",
    "codec": "h264",
    "width": 848,
    "height": 464,
    "frame_rate": 30.0,
    "num_frames": 10,
    "frame_interval": None,
    "created_at": "2026-11-22T10:00:00Z",
    "updated_at": "2026-11-22T10:00:02Z",
}
_HIT = {
    "rank": 1,
    "score": 0.812,
    "video": _SHORT,
    "breakdown": {
        "video": {"similarity": 0.86, "weight": 0.7, "contribution": 0.602},
        "text": {"similarity": 0.7, "weight": 0.3, "contribution": 0.21, "imputed": False},
    },
    "moment": {"time": 1.44, "frame": 4, "similarity": 0.83, "start": None, "end": None},
}

_PROJECTION = {
    "id": "a41f09c25d7be836",
    "embedding": "aggregated",
    "method": "umap",
    "dimensions": 2,
    "seed": 0,
    "parameters": {"n_neighbors": 15, "min_dist": 0.1},
    "category": None,
    "generation": "g0123456789abcdef",
    "status": "ready",
    "progress": 1.0,
    "error": None,
    "points": 1204,
    "placed": 4,
    "missing": 0,
    "version": "3",
    "quality": {"trustworthiness": 0.971, "neighbourhood_overlap": 0.42, "neighbours": 15, "sample": 1000},
    "created_at": "2026-11-22T10:00:00Z",
    "fitted_at": "2026-11-22T10:00:09Z",
    "points_url": "/v1/projections/a41f09c25d7be836/points",
}


def _examples(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class VideoSummary(BaseModel):
    """The part of a video that a hit carries."""

    model_config = _examples(_SHORT)

    id: str = Field(description="opaque")
    title: str
    category: str | None
    caption: str | None
    duration: float | None = Field(description="seconds")
    content_url: str
    thumbnail_url: str | None = Field(description="null until the video is ready")

    @classmethod
    def of(cls, video: DomainVideo) -> VideoSummary:
        """From a row of the catalogue."""
        return cls(**_summary(video))


class Video(VideoSummary):
    """One uploaded clip."""

    model_config = _examples(_VIDEO)

    filename: str = Field(description="as the client named it, for display")
    status: Status
    progress: float = Field(description="0 to 1")
    error: str | None = Field(description="why the status is `failed`, or why the last attempt was given up")
    size: int = Field(description="bytes")
    sha256: str
    media_type: str
    codec: str
    width: int = Field(description="pixels, as displayed")
    height: int = Field(description="pixels, as displayed")
    frame_rate: float | None = Field(description="frames per second")
    num_frames: int = Field(description="frames asked for")
    frame_interval: int | None = Field(description="null: spread evenly; N: every Nth frame")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, video: DomainVideo) -> Video:
        """From a row of the catalogue."""
        return cls(
            **_summary(video),
            filename=video.filename,
            status=video.status,
            progress=video.progress,
            error=video.error,
            size=video.size_bytes,
            sha256=video.sha256,
            media_type=video.media_type,
            codec=video.codec,
            width=video.width,
            height=video.height,
            frame_rate=video.frames_per_second,
            num_frames=video.sampling.num_frames,
            frame_interval=video.sampling.frame_interval,
            created_at=video.created_at,
            updated_at=video.updated_at,
        )


class VideoPage(BaseModel):
    """A page of videos, the newest first."""

    model_config = _examples({"items": [_VIDEO], "next_cursor": None})

    items: list[Video]
    next_cursor: str | None = Field(description="hand it in as `cursor` for the next page; null on the last")


class VideoEdit(BaseModel):
    """What to change; what is left out stays. null takes the caption or the category away."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"caption": "a dog leaps over a log", "category": "dogs"}]},
    )

    caption: str | None = None
    category: str | None = None
    title: str | None = None


class Frame(BaseModel):
    """One sampled frame."""

    n: int
    time: float = Field(description="seconds from the clip's start")
    url: str


class FrameList(BaseModel):
    """The sampled frames of a video, in order."""

    model_config = _examples(
        {"items": [{"n": 0, "time": 0.16, "url": f"/v1/videos/{_ID}/frames/0"}], "next_cursor": None}
    )

    items: list[Frame]
    next_cursor: str | None = None


class Embedding(BaseModel):
    """Vectors of one kind of one video, unit length."""

    model_config = _examples(
        {
            "video_id": _ID,
            "type": "aggregated",
            "generation": "g0123456789abcdef",
            "shape": [1, 512],
            "times": None,
            "vectors": [[0.031, -0.012]],
        }
    )

    video_id: str
    type: Literal["frame", "aggregated", "text"]
    generation: str
    # A list and not a tuple: what makes clients from the document often knows no `prefixItems`.
    shape: list[int] = Field(min_length=2, max_length=2, description="number of vectors, dimension")
    times: list[float] | None = Field(description="for frames: seconds from the clip's start")
    vectors: list[list[float]]


class Category(BaseModel):
    """A category with its number of videos; the name null stands for videos without one."""

    name: str | None
    count: int


class CategoryList(BaseModel):
    """Every category."""

    model_config = _examples({"items": [{"name": "animals", "count": 11}], "next_cursor": None})

    items: list[Category]
    next_cursor: str | None = None


class Breakdown(BaseModel):
    """What the pictures added to a score."""

    similarity: float | None = Field(description="cosine; null where the query has no such vector")
    weight: float
    contribution: float


class TextBreakdown(Breakdown):
    """What the captions added to a score."""

    imputed: bool = Field(description="the video has no caption, and counts as one of average similarity")


class Breakdowns(BaseModel):
    """The contributions add up to the score."""

    video: Breakdown
    text: TextBreakdown


class Moment(BaseModel):
    """The frame of a hit that answers best."""

    time: float = Field(description="seconds from the clip's start")
    frame: int
    similarity: float
    start: float | None = Field(description="with `group_by=moment`: seconds at which it begins")
    end: float | None = Field(description="with `group_by=moment`: seconds at which it ends")


class Hit(BaseModel):
    """One answer of a search or a recommendation."""

    model_config = _examples(_HIT)

    rank: int
    score: float
    video: VideoSummary
    breakdown: Breakdowns
    moment: Moment

    @classmethod
    def of(cls, hit: DomainHit) -> Hit:
        """From the core's hit."""
        seen, read = hit.video_part, hit.text_part
        return cls(
            rank=hit.rank,
            score=hit.score,
            video=VideoSummary.of(hit.video),
            breakdown=Breakdowns(
                video=Breakdown(similarity=seen.similarity, weight=seen.weight, contribution=seen.contribution),
                text=TextBreakdown(
                    similarity=read.similarity,
                    weight=read.weight,
                    contribution=read.contribution,
                    imputed=read.imputed,
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
    """The weights that were used; text is 0 where the query has no caption."""

    video: float
    text: float


class Answer(BaseModel):
    """Hits, best first, and how they were found."""

    model_config = _examples(
        {
            "items": [_HIT],
            "weights": {"video": 0.7, "text": 0.3},
            "fusion": "cosine",
            "generation": "g0123456789abcdef",
            "exact": True,
            "next_cursor": None,
        }
    )

    items: list[Hit]
    weights: Weights
    fusion: Fusion
    generation: str
    exact: bool = Field(description="whether this is the exact answer over the whole catalogue")
    next_cursor: str | None = Field(description="hand it in as `cursor`, with the same parameters, for the next page")

    @classmethod
    def of(cls, answer: DomainAnswer) -> Answer:
        """From the core's answer."""
        return cls(
            items=[Hit.of(hit) for hit in answer.hits],
            weights=Weights(video=answer.weights.video, text=answer.weights.text),
            fusion=answer.fusion,
            generation=answer.generation,
            exact=answer.exact,
            next_cursor=answer.next_cursor,
        )


class ProjectionRequest(BaseModel):
    """A map of the embedding space. The same request is the same map."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"embedding": "aggregated", "method": "umap", "dimensions": 2}]},
    )

    embedding: EmbeddingType = Field("aggregated", description="a point a frame, a video, or a caption")
    method: Method = "umap"
    dimensions: Literal[2, 3] = 2
    seed: int = Field(0, ge=0, le=MAX_SEED, description="the same seed, the same map")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="umap: `n_neighbors` (15), `min_dist` (0.1); tsne: `perplexity` (30); pca has none",
    )
    category: str | None = Field(None, description="only this category; null: all of them")


class Quality(BaseModel):
    """How well a map keeps neighbourhoods, measured on a sample of its points when it was laid out."""

    trustworthiness: float = Field(description="1: whoever is near on the map is near in the space (Venna, Kaski 2001)")
    neighbourhood_overlap: float = Field(description="share of the nearest in the space that are nearest on the map")
    neighbours: int = Field(description="how many nearest")
    sample: int = Field(description="points looked at")


class Projection(BaseModel):
    """A map of the embedding space, and how far it is."""

    model_config = _examples(_PROJECTION)

    id: str = Field(description="opaque")
    embedding: EmbeddingType
    method: Method
    dimensions: int
    seed: int
    parameters: dict[str, float]
    category: str | None
    generation: str
    status: MapStatus
    progress: float = Field(description="0 to 1, of the layout that is being made")
    error: str | None = Field(description="why the status is `failed`")
    points: int = Field(description="points that can be had now, also while the map is laid out anew")
    placed: int = Field(description="of these, how many were placed since it was laid out")
    missing: int = Field(description="videos with such an embedding that are not on the map (yet)")
    version: str = Field(description="another one whenever its points have changed")
    quality: Quality | None = Field(description="null for maps of few points")
    created_at: datetime
    fitted_at: datetime | None = Field(description="when it was laid out; null before the first time")
    points_url: str

    @classmethod
    def of(cls, state: Map) -> Projection:
        """From a row of the database."""
        spec = state.spec
        return cls(
            id=state.id,
            embedding=spec.embedding,
            method=spec.method,
            dimensions=spec.dimensions,
            seed=spec.seed,
            parameters=dict(spec.parameters),
            category=spec.category,
            generation=spec.generation,
            status=state.status,
            progress=state.progress,
            error=state.error,
            points=state.points,
            placed=state.placed,
            missing=state.missing,
            version=str(state.version),
            quality=None if state.quality is None else Quality.model_validate(state.quality),
            created_at=state.created_at,
            fitted_at=state.fitted_at,
            points_url=f"/v1/projections/{state.id}/points",
        )


class ProjectionList(BaseModel):
    """Every map of the model in use, the newest first."""

    model_config = _examples({"items": [_PROJECTION], "next_cursor": None})

    items: list[Projection]
    next_cursor: str | None = None


class Point(BaseModel):
    """One embedding on a map."""

    video_id: str
    frame: int | None = Field(description="null where the point is a whole video or its caption")
    time: float | None = Field(description="of the frame: seconds from the clip's start")
    category: str | None
    coordinates: list[float] = Field(description="two or three, to six digits; Arrow has all of them")


class PointList(BaseModel):
    """Every point of a map, all at once."""

    model_config = _examples(
        {
            "items": [
                {"video_id": _ID, "frame": None, "time": None, "category": "animals", "coordinates": [4.21, -0.77]}
            ],
            "next_cursor": None,
        }
    )

    items: list[Point]
    next_cursor: str | None = None


class Duplicate(BaseModel):
    """A video that shows the same recording, or a part of it."""

    video: VideoSummary
    similarity: float = Field(description="how much of one the other explains, pixel by pixel; 1 is all")


class DuplicateList(BaseModel):
    """The near-duplicates of a video, best first."""

    model_config = _examples({"items": [{"video": _SHORT, "similarity": 0.97}], "next_cursor": None})

    items: list[Duplicate]
    next_cursor: str | None = None

    @classmethod
    def of(cls, found: tuple[DomainDuplicate, ...]) -> DuplicateList:
        """From the core's."""
        return cls(items=[Duplicate(video=VideoSummary.of(one.video), similarity=one.similarity) for one in found])


Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_K)]
Name = Annotated[str, Field(max_length=200)]


class Parameters(BaseModel):
    """What every search takes."""

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

    def question(
        self,
        fusion: Fusion,
        *,
        likes: tuple[Like, ...] = (),
        examples: tuple[Example, ...] = (),
        exclude: tuple[str, ...] = (),
        group_by: GroupBy = "video",
    ) -> Question:
        """For the core. Raises InvalidInput."""
        return Question(
            weights=DomainWeights(self.video_weight, self.text_weight),
            fusion=fusion,
            likes=likes,
            examples=examples,
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
    """Of a recommendation from a video."""

    fusion: Fusion = Field("cosine", description=_FUSION)


class ExampleVideo(BaseModel):
    """A video to be like, or unlike."""

    model_config = ConfigDict(extra="forbid")

    id: Name
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class RecommendationRequest(Parameters):
    """Of a recommendation from several videos."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"positive": [{"id": _ID, "weight": 2}], "negative": [], "exclude": [], "k": 5}]
        },
    )

    positive: list[ExampleVideo] = Field([], max_length=100, description="more like these")
    negative: list[ExampleVideo] = Field([], max_length=100, description="less like these")
    exclude: list[Name] = Field([], max_length=1000, description="ids that are no answer; unknown ones are ignored")
    fusion: Fusion = Field("cosine", description=_FUSION)

    @property
    def likes(self) -> tuple[Like, ...]:
        """The examples, for the core."""
        return (
            *(Like(one.id, one.weight) for one in self.positive),
            *(Like(one.id, -one.weight) for one in self.negative),
        )


class TextSearch(Parameters):
    """A search by words."""

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
    """A search by a picture, as the fields of a form."""

    fusion: Fusion = Field("zscore", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)


class ClipSearch(Parameters):
    """A search by a clip, as the fields of a form."""

    caption: str | None = Field(None, description="what the clip shows; without one only what is seen counts")
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(None, description="frames sampled of it")
    frame_interval: Annotated[int, Field(ge=1, le=MAX_FRAME_INTERVAL)] | None = Field(
        None, description="every Nth frame from the start; left out: spread evenly"
    )
    fusion: Fusion = Field("cosine", description=_FUSION)
    group_by: GroupBy = Field("video", description=_GROUP_BY)


_GENERATION = {
    "id": "g0123456789abcdef",
    "model": "ViT-B-16/datacomp_xl_s13b_b90k",
    "precision": "float32",
    "dimension": 512,
    "status": "embedding",
    "progress": 0.25,
    "embedded": 250,
    "total": 1000,
    "activate": False,
    "error": None,
    "created_at": "2026-11-24T12:00:00Z",
    "completed_at": None,
}


class GenerationRequest(BaseModel):
    """Another model for the library."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "tiny", "activate": False}]},
    )

    model: str = Field(
        min_length=1, max_length=1000, description="as in the setting REELSRS_MODEL: NAME/WEIGHTS of open_clip"
    )
    precision: Precision = Field("auto", description="as in the setting REELSRS_PRECISION")
    activate: bool = Field(False, description="switch to it as soon as it is complete")


class Generation(BaseModel):
    """All embeddings of one model, weights, preprocessing and precision."""

    model_config = _examples(_GENERATION)

    id: str
    model: str
    precision: str
    dimension: int
    status: Literal["active", "ready", "embedding", "stopped"] = Field(
        description="`active` answers; `ready` was complete once and can be switched to; `embedding` is on its way; "
        "`stopped` was given up for another before it was complete"
    )
    progress: float = Field(description="0 to 1: share of the videos that it has vectors of")
    embedded: int = Field(description="videos that it has vectors of")
    total: int = Field(description="videos that can be searched")
    activate: bool = Field(description="whether it is switched to as soon as it is complete")
    error: str | None = Field(description="what stands in its way, or which videos it lacks")
    created_at: datetime
    completed_at: datetime | None = Field(description="when it first had every video")

    @classmethod
    def of(cls, state: State) -> Generation:
        """From rows of the database."""
        generation = state.generation
        return cls(
            id=generation.id,
            model=generation.model,
            precision=generation.precision,
            dimension=generation.dimension,
            status=state.status,
            progress=round(state.embedded / state.total, 4) if state.total else 1.0,
            embedded=state.embedded,
            total=state.total,
            activate=state.activate,
            error=state.error,
            created_at=state.created_at,
            completed_at=state.completed_at,
        )


class GenerationList(BaseModel):
    """All of them, the newest first."""

    model_config = _examples({"items": [_GENERATION], "next_cursor": None})

    items: list[Generation]
    next_cursor: str | None = None


class IndexInfo(BaseModel):
    """The vector index."""

    kind: str = Field(
        description="`flat`: every vector is compared; `compressed`: codes of all, then the best exactly; "
        "`milvus flat`, `milvus hnsw`: in Milvus, every vector or by a graph"
    )
    size: int = Field(description="videos in it")
    exact: bool
    approximate_from: int = Field(description="number of videos from which it is approximate")


class Limits(BaseModel):
    """What an upload and a question may ask for."""

    max_upload_bytes: int
    max_duration_seconds: float
    max_pixels: int
    max_caption_characters: int
    max_frames: int
    max_k: int


class Info(BaseModel):
    """What runs here."""

    model_config = _examples(
        {
            "version": "0.2.0",
            "model": "ViT-B-32-256/datacomp_s34b_b86k",
            "generation": "g0123456789abcdef",
            "dimension": 512,
            "device": "cpu",
            "precision": "float32",
            "aggregation": "mean",
            "videos": {"ready": 110},
            "index": {"kind": "flat", "size": 110, "exact": True, "approximate_from": 50001},
            "score": "orders the hits of one answer",
            "limits": {
                "max_upload_bytes": 1073741824,
                "max_duration_seconds": 3600.0,
                "max_pixels": 35651584,
                "max_caption_characters": 10000,
                "max_frames": 256,
                "max_k": 1000,
            },
        }
    )

    version: str
    model: str
    generation: str
    dimension: int
    device: str
    precision: str
    aggregation: str
    videos: dict[str, int] = Field(description="number by status")
    index: IndexInfo
    score: str = Field(description="what a score is, and is not")
    limits: Limits


class Welcome(BaseModel):
    """Where to go from here."""

    model_config = _examples(
        {
            "message": "Welcome to ReelsRS",
            "version": "0.2.0",
            "links": {"explore": "/explore", "docs": "/docs", "openapi": "/openapi.json"},
        }
    )

    message: str
    version: str
    links: dict[str, str]


class Health(BaseModel):
    """Alive, or ready with the state of each part."""

    model_config = _examples({"status": "ok", "checks": {"database": "ok", "model": "ok", "worker": "ok"}})

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}


class FieldError(BaseModel):
    """One wrong parameter."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, after RFC 9457 (application/problem+json)."""

    model_config = _examples(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "there is no video 'nope'",
            "instance": "/v1/videos/nope",
            "request_id": "0c7f5d0e8d2b4c0f",
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldError] | None = Field(None, description="with 422: each wrong parameter")
    video_status: str | None = Field(None, description="with 409: the status of the video that is not ready")


def _summary(video: DomainVideo) -> dict[str, Any]:
    base = f"/v1/videos/{video.id}"
    return {
        "id": video.id,
        "title": video.title,
        "category": video.category,
        "caption": video.caption,
        "duration": video.duration_seconds,
        "content_url": f"{base}/content",
        "thumbnail_url": f"{base}/thumbnail" if video.status == "ready" else None,
    }
