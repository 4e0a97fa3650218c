"""Schemas of generations: the sets of embeddings of the library, one per model."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.examples import examples
from service.generations.generations import State
from service.models import Precision

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
    """A request to embed the library with another model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "tiny", "activate": False}]},
    )

    model: str = Field(
        min_length=1, max_length=1000, description="As in the setting REELSRS_MODEL: NAME/WEIGHTS of open_clip."
    )
    precision: Precision = Field("auto", description="As in the setting REELSRS_PRECISION.")
    activate: bool = Field(False, description="Activate the generation as soon as it is complete.")


class Generation(BaseModel):
    """All embeddings made with one model, its weights, its preprocessing and one precision."""

    model_config = examples(_GENERATION)

    id: str
    model: str
    precision: str
    dimension: int
    status: Literal["active", "ready", "embedding", "stopped"] = Field(
        description="`active`: answers searches. `ready`: was complete once and can be activated. `embedding`: is "
        "being embedded. `stopped`: was stopped before it was complete, because another model was requested."
    )
    progress: float = Field(description="Share of the videos with vectors in this generation, from 0 to 1.")
    embedded: int = Field(description="Videos with vectors in this generation.")
    total: int = Field(description="Videos that can be searched.")
    activate: bool = Field(description="Whether it is activated as soon as it is complete.")
    error: str | None = Field(
        description="Why it is not complete: the error that stopped it, or the videos without vectors."
    )
    created_at: datetime
    completed_at: datetime | None = Field(description="When it first had vectors of every video.")

    @classmethod
    def from_state(cls, state: State) -> Generation:
        """Build the response from the state of a generation."""
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
    """All generations, newest first."""

    model_config = examples({"items": [_GENERATION], "next_cursor": None})

    items: list[Generation]
    next_cursor: str | None = None
