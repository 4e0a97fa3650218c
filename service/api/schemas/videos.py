"""Schemas of videos, their frames, embeddings and categories."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.examples import SHORT, VIDEO, VIDEO_ID, examples
from service.models import Status
from service.models import Video as DomainVideo


class VideoSummary(BaseModel):
    """The main properties of a video, as part of a search hit or a near-duplicate."""

    model_config = examples(SHORT)

    id: str = Field(description="Opaque string.")
    title: str
    category: str | None
    caption: str | None
    duration: float | None = Field(description="Seconds.")
    content_url: str
    thumbnail_url: str | None = Field(description="null until the video is ready.")

    @classmethod
    def from_video(cls, video: DomainVideo) -> VideoSummary:
        """Build the summary from a row of the videos table."""
        return cls(**_summary(video))


class Video(VideoSummary):
    """An uploaded clip, its metadata and the status of its embedding."""

    model_config = examples(VIDEO)

    filename: str = Field(description="File name that the client sent, for display.")
    status: Status
    progress: float = Field(description="From 0 to 1.")
    error: str | None = Field(description="Why the status is `failed`, or why the last attempt was given up.")
    size: int = Field(description="Bytes.")
    sha256: str
    media_type: str
    codec: str
    width: int = Field(description="Pixels, as displayed.")
    height: int = Field(description="Pixels, as displayed.")
    frame_rate: float | None = Field(description="Frames per second.")
    num_frames: int = Field(description="Requested number of frames.")
    frame_interval: int | None = Field(description="null: frames are spread evenly. N: every Nth frame.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_video(cls, video: DomainVideo) -> Video:
        """Build the response from a row of the videos table."""
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
    """A page of videos, newest first."""

    model_config = examples({"items": [VIDEO], "next_cursor": None})

    items: list[Video]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page. null on the last page.")


class VideoEdit(BaseModel):
    """Changes to a video.

    Omitted fields keep their value. null removes the caption or the category; the title cannot be removed.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"caption": "a dog leaps over a log", "category": "dogs"}]},
    )

    caption: str | None = None
    category: str | None = None
    title: str | None = None


class Frame(BaseModel):
    """A sampled frame of a video."""

    n: int
    time: float = Field(description="Seconds from the start of the clip.")
    url: str


class FrameList(BaseModel):
    """The sampled frames of a video, in order."""

    model_config = examples(
        {"items": [{"n": 0, "time": 0.16, "url": f"/v1/videos/{VIDEO_ID}/frames/0"}], "next_cursor": None}
    )

    items: list[Frame]
    next_cursor: str | None = None


class Embedding(BaseModel):
    """The vectors of one type (frame, aggregated or text) of one video, each of unit length."""

    model_config = examples(
        {
            "video_id": VIDEO_ID,
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
    # A list, not a tuple: many client generators do not support `prefixItems`, the schema of a tuple.
    shape: list[int] = Field(min_length=2, max_length=2, description="Number of vectors and their dimension.")
    times: list[float] | None = Field(description="For frames: seconds from the start of the clip.")
    vectors: list[list[float]]


class Category(BaseModel):
    """A category and its number of videos.

    The name null stands for the videos without a category.
    """

    name: str | None
    count: int


class CategoryList(BaseModel):
    """All categories."""

    model_config = examples({"items": [{"name": "animals", "count": 11}], "next_cursor": None})

    items: list[Category]
    next_cursor: str | None = None


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
