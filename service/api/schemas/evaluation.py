"""Schemas of evaluations: how good search and recommendations are with one generation, or with two."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.api.schemas.examples import examples
from service.operations.evaluation import evaluate
from service.operations.evaluation.figures import Measure, Ranking

_FIGURE = {
    "measure": "captions",
    "ranking": "visual",
    "name": "recall@5",
    "value": 0.823,
    "low": 0.726,
    "high": 0.919,
    "queries": 62,
    "left_out": 0,
    "chance": 0.081,
}
_DIFFERENCE = {**_FIGURE, "value": 0.081, "low": 0.012, "high": 0.145, "chance": None, "verdict": "better"}
_EVALUATION = {
    "videos": 62,
    "ready_videos": 70,
    "captioned_videos": 62,
    "categories": 12,
    "seed": 0,
    "generations": [
        {"id": "gfedcba9876543210", "model": "tiny", "precision": "float32", "figures": [_FIGURE]},
        {"id": "g0123456789abcdef", "model": "tiny", "precision": "bfloat16", "figures": [_FIGURE]},
    ],
    "differences": [{"generation": "g0123456789abcdef", "minus": "gfedcba9876543210", "figures": [_DIFFERENCE]}],
}


class EvaluationFigure(BaseModel):
    """Mean of a measure over its queries, with its 95 % interval from `low` to `high`."""

    measure: Measure
    ranking: Ranking = Field(description="`visual`: weights (1, 0). `text`: (0, 1). `fused`: the default weights.")
    name: str = Field(description="`recall@k`, `precision@k`, or `mrr`.")
    value: float
    low: float
    high: float
    queries: int
    left_out: int = Field(description="Videos that cannot be such a query.")
    chance: float | None = Field(description="What a random ranking reaches on average.")


class EvaluationDifference(EvaluationFigure):
    """Difference of two generations in a figure, on the same queries."""

    verdict: Literal["better", "worse", "no clear difference"] = Field(
        description="`no clear difference` if the interval contains 0."
    )


class EvaluatedGeneration(BaseModel):
    """Figures of one generation."""

    id: str
    model: str
    precision: str
    figures: list[EvaluationFigure]


class GenerationDifference(BaseModel):
    """Figures of one generation minus those of another."""

    generation: str
    minus: str
    figures: list[EvaluationDifference]


class Evaluation(BaseModel):
    """Evaluation of the active generation and, if it is another one, of the requested generation."""

    model_config = examples(_EVALUATION)

    videos: int = Field(description="Videos that were compared: at most 2,000 with vectors in each generation.")
    ready_videos: int = Field(description="Videos that can be searched.")
    captioned_videos: int
    categories: int
    seed: int = Field(description="Seed of the sample and of the intervals.")
    generations: list[EvaluatedGeneration] = Field(description="The active generation first.")
    differences: list[GenerationDifference]

    @classmethod
    def from_evaluation(cls, found: evaluate.Evaluation) -> Evaluation:
        """Build the response from an evaluation."""
        return cls.model_validate(evaluate.as_json(found))
