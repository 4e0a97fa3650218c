"""Schemas of the service itself: information, limits, health and errors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.api.schemas.examples import examples


class IndexInfo(BaseModel):
    """The state of the vector index."""

    kind: str = Field(
        description="`flat`: every vector is compared. `compressed`: codes of all vectors are compared, then the best "
        "candidates exactly. `milvus flat`, `milvus hnsw`: Milvus compares every vector, or uses a graph."
    )
    size: int = Field(description="Videos in the index.")
    exact: bool
    approximate_from: int = Field(description="Number of videos from which the index is approximate.")


class Limits(BaseModel):
    """The limits of uploads and searches."""

    max_upload_bytes: int
    max_duration_seconds: float
    max_pixels: int
    max_caption_characters: int
    max_frames: int
    max_k: int


class Info(BaseModel):
    """Version, model, index and limits of this service."""

    model_config = examples(
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
    videos: dict[str, int] = Field(description="Number of videos by status.")
    index: IndexInfo
    score: str = Field(description="What a score means, and what it does not.")
    limits: Limits


class Welcome(BaseModel):
    """Links to the main resources of the service."""

    model_config = examples(
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
    """The health of the service.

    `checks` gives the state of each part. It is empty if only the process is checked.
    """

    model_config = examples({"status": "ok", "checks": {"database": "ok", "model": "ok", "worker": "ok"}})

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}


class FieldError(BaseModel):
    """One invalid parameter."""

    field: str
    message: str


class Problem(BaseModel):
    """An error in the format of RFC 9457 (`application/problem+json`)."""

    model_config = examples(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "video 'nope' does not exist",
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
    errors: list[FieldError] | None = Field(None, description="With status 422: each invalid parameter.")
    video_status: str | None = Field(None, description="With status 409: the status of the video that is not ready.")
