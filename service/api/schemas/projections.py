"""Schemas of projections (maps of the embedding space) and their points."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.examples import VIDEO_ID, examples
from service.database import projection_rows
from service.database.projection_rows import Embedding as EmbeddingType
from service.database.projection_rows import ProjectionStatus
from service.models import MAX_SEED, Method

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


class ProjectionRequest(BaseModel):
    """A request for a map of the embedding space.

    Identical requests return the same map, as long as the active generation does not change.
    """

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
    """How well a map preserves neighbourhoods, measured on a sample of its points when the map was fitted."""

    trustworthiness: float = Field(description="1: whoever is near on the map is near in the space (Venna, Kaski 2001)")
    neighbourhood_overlap: float = Field(description="share of the nearest in the space that are nearest on the map")
    neighbours: int = Field(description="how many nearest")
    sample: int = Field(description="points looked at")


class Projection(BaseModel):
    """A map of the embedding space, its status and its progress."""

    model_config = examples(_PROJECTION)

    id: str = Field(description="opaque")
    embedding: EmbeddingType
    method: Method
    dimensions: int
    seed: int
    parameters: dict[str, float]
    category: str | None
    generation: str
    status: ProjectionStatus
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
    def from_row(cls, state: projection_rows.Projection) -> Projection:
        """Build the response from a row of the projections table."""
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
            placed=state.transformed,
            missing=state.missing,
            version=str(state.version),
            quality=None if state.quality is None else Quality.model_validate(state.quality),
            created_at=state.created_at,
            fitted_at=state.fitted_at,
            points_url=f"/v1/projections/{state.id}/points",
        )


class ProjectionList(BaseModel):
    """All maps of the active generation, newest first."""

    model_config = examples({"items": [_PROJECTION], "next_cursor": None})

    items: list[Projection]
    next_cursor: str | None = None


class Point(BaseModel):
    """A point of a map: the position of one embedding."""

    video_id: str
    frame: int | None = Field(description="null where the point is a whole video or its caption")
    time: float | None = Field(description="of the frame: seconds from the clip's start")
    category: str | None
    coordinates: list[float] = Field(description="two or three, to six digits; Arrow has all of them")


class PointList(BaseModel):
    """All points of a map, in one response."""

    model_config = examples(
        {
            "items": [
                {"video_id": VIDEO_ID, "frame": None, "time": None, "category": "animals", "coordinates": [4.21, -0.77]}
            ],
            "next_cursor": None,
        }
    )

    items: list[Point]
    next_cursor: str | None = None
