"""Recommendations from a video, and search by words."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.domain import Weights
from service.routes.common import Service, VideoId, problems
from service.schemas import Answer, RecommendationParameters, TextSearch

router = APIRouter(tags=["search"])


@router.get(
    "/v1/videos/{video_id}/recommendations",
    summary="More like this video",
    responses=problems(404, 409, 503),
)
def recommendations(
    service: Service, video_id: VideoId, parameters: Annotated[RecommendationParameters, Query()]
) -> Answer:
    """The most similar videos, by what is seen and what is written, in the proportion of the two weights; the
    video itself is not among them. Without a caption its `text_weight` is 0; `weights` says what was used."""
    return Answer.of(
        service.recommender.like_video(
            video_id,
            weights=Weights(parameters.video_weight, parameters.text_weight),
            fusion=parameters.fusion,
            k=parameters.k,
            scope=parameters.scope,
        )
    )


@router.post("/v1/search/text", summary="Search by words", responses=problems(503))
def search_text(service: Service, search: TextSearch) -> Answer:
    """Videos that show what the query says, or whose captions say it. By default the two similarities are compared
    as z-scores, for captions resemble a query far more than pictures do and would drown them."""
    return Answer.of(
        service.recommender.by_text(
            search.query,
            weights=Weights(search.video_weight, search.text_weight),
            fusion=search.fusion,
            k=search.k,
            scope=search.scope,
        )
    )
