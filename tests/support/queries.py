"""Search queries with short calls; everything else has the service's defaults."""

from __future__ import annotations

from typing import Any

from service.models import Weights
from service.search.query import QueryVector, Reference, SearchQuery
from service.search.recommender import Recommender
from service.search.results import SearchResults


def like_video(
    recommender: Recommender, name: str, *, weights: Weights, fusion: str = "cosine", **rest: Any
) -> SearchResults:
    """Search for videos similar to one library video."""
    return recommender.search(SearchQuery(references=(Reference(name),), weights=weights, fusion=fusion, **rest))  # type: ignore[arg-type]


def like(
    recommender: Recommender, *examples: QueryVector, weights: Weights, fusion: str = "zscore", **rest: Any
) -> SearchResults:
    """Search for videos similar to the given query vectors."""
    return recommender.search(SearchQuery(vectors=examples, weights=weights, fusion=fusion, **rest))  # type: ignore[arg-type]
