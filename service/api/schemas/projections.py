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

    embedding: EmbeddingType = Field(
        "aggregated",
        description="`aggregated`: a point for each video. `frame`: for each frame. `text`: for each caption.",
    )
    method: Method = "umap"
    dimensions: Literal[2, 3] = 2
    seed: int = Field(0, ge=0, le=MAX_SEED, description="The same seed gives the same map.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="`umap`: `n_neighbors` (15), `min_dist` (0.1). `tsne`: `perplexity` (30). `pca` has none.",
    )
    category: str | None = Field(None, description="Only videos in this category. null: all videos.")


class Quality(BaseModel):
    """How well a map preserves neighbourhoods, measured on a sample of its points when the map was fitted."""

    trustworthiness: float = Field(
        description="1: neighbours on the map are also neighbours in the embedding space (Venna and Kaski, 2001)."
    )
    neighbourhood_overlap: float = Field(
        description="Share of the nearest neighbours in the embedding space that are nearest neighbours on the map."
    )
    neighbours: int = Field(description="Number of nearest neighbours that were compared.")
    sample: int = Field(description="Number of points that were measured.")


class Projection(BaseModel):
    """A map of the embedding space, its status and its progress."""

    model_config = examples(_PROJECTION)

    id: str = Field(description="Opaque string.")
    embedding: EmbeddingType
    method: Method
    dimensions: int
    seed: int
    parameters: dict[str, float]
    category: str | None
    generation: str
    status: ProjectionStatus
    progress: float = Field(description="Progress of the current fit, from 0 to 1.")
    error: str | None = Field(description="Why the status is `failed`.")
    points: int = Field(description="Points available now, also while the map is fitted again.")
    placed: int = Field(description="How many of these points were placed since the fit.")
    missing: int = Field(description="Videos with such an embedding that are not on the map, or not yet.")
    version: str = Field(description="Changes whenever the points change.")
    quality: Quality | None = Field(description="null for maps of few points.")
    created_at: datetime
    fitted_at: datetime | None = Field(description="When the map was last fitted. null before the first fit.")
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
    frame: int | None = Field(description="null if the point is a whole video or its caption.")
    time: float | None = Field(description="Of the frame: seconds from the start of the clip.")
    category: str | None
    coordinates: list[float] = Field(description="Two or three float32 values.")


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
