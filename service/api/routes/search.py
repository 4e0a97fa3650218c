"""Routes for recommendations, near-duplicates, and searches by text, image and clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.api.routes.common import SearchLimiter, Service, VideoId, problems
from service.api.routes.upload import Form, receive_form
from service.api.schemas import (
    Answer,
    ClipSearch,
    DuplicateList,
    Parameters,
    PictureSearch,
    RecommendationParameters,
    RecommendationRequest,
    TextSearch,
)
from service.bootstrap import Runtime
from service.models import Sampling
from service.search.query import QueryVector, Reference
from service.search.results import SearchResults
from service.serving import Serving

router = APIRouter(tags=["search"])

_Search = TypeVar("_Search", PictureSearch, ClipSearch)
_LISTS = frozenset({"category", "exclude_category"})


def _form(model: type[Parameters], what: str) -> dict[str, Any]:
    """Return the OpenAPI documentation of a form with a file and the fields of this model."""
    properties: dict[str, Any] = {"file": {"type": "string", "format": "binary", "description": what}}
    for name, field in model.model_json_schema()["properties"].items():
        # The docs page pre-fills every field. A field that is omitted by default must stay empty there.
        properties[name] = {**field, "example": ""} if field["default"] is None else field
    schema = {"type": "object", "required": ["file"], "properties": properties}
    example = {"file": "(dog.jpg)", "k": 5, "category": ["animals"]}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema, "example": example}}}
    }


@router.get(
    "/v1/videos/{video_id}/recommendations",
    summary="Recommendations for a video",
    response_model=Answer,
    responses=problems(404, 409, 410, 503),
)
async def recommendations(
    limiter: SearchLimiter,
    service: Service,
    video_id: VideoId,
    parameters: Annotated[RecommendationParameters, Query()],
) -> Response:
    """Return the videos that are most similar to this video.

    Visual and text similarity are combined in the proportion of `video_weight` and `text_weight`. The video itself is
    never a hit. If it has no caption, `text_weight` counts as 0; `weights` gives the weights that were used.
    """
    query = parameters.to_query(parameters.fusion, references=(Reference(video_id),))
    return await _search_response(limiter, lambda: service.serving.recommender.search(query))


@router.post(
    "/v1/recommendations",
    summary="Recommendations for several videos",
    response_model=Answer,
    responses=problems(404, 409, 410, 503),
)
async def recommend(limiter: SearchLimiter, service: Service, request: RecommendationRequest) -> Response:
    """Return videos that are similar to several reference videos.

    The similarity of a hit is the weighted mean of its similarities to all reference videos. Similarities to `negative`
    videos count as negative. Neither the reference videos nor the videos in `exclude` are hits.
    """
    query = request.to_query(request.fusion, references=request.references, exclude=tuple(request.exclude))
    return await _search_response(limiter, lambda: service.serving.recommender.search(query))


@router.get(
    "/v1/videos/{video_id}/duplicates",
    summary="Near-duplicates of a video",
    responses=problems(404, 409, 503),
)
def duplicates(service: Service, video_id: VideoId) -> DuplicateList:
    """Return the near-duplicates of this video, best match first.

    Near-duplicates are videos of the same recording, or of a part of it: encoded again, resized, with black bars,
    trimmed, or played backwards. Pixels are compared, so two different clips of one scene are not near-duplicates. The
    first request for a clip decodes the clip and its candidates, which takes seconds. Later requests are fast.

    `keep` proposes which of the videos to keep: the longest, then the one with the most pixels, then the most bits per
    pixel, then one with sound, then the oldest.
    """
    return DuplicateList.from_found(service.serving.duplicates.find(video_id))


@router.post("/v1/search/text", summary="Search by text", response_model=Answer, responses=problems(410, 503))
async def search_text(limiter: SearchLimiter, service: Service, search: TextSearch) -> Response:
    """Return videos that show what the text says, or whose captions say it.

    By default the two similarities are compared as z-scores. Captions resemble a text far more than frames do, so with
    plain cosines the captions would outweigh the frames.
    """

    def run() -> SearchResults:
        serving = service.serving
        vector = serving.query_encoder.text(search.query)
        query = search.to_query(search.fusion, vectors=(vector,), group_by=search.group_by)
        return serving.recommender.search(query)

    return await _search_response(limiter, run)


@router.post(
    "/v1/search/image",
    summary="Search by image",
    response_model=Answer,
    responses=problems(410, 413, 415, 503),
    openapi_extra=_form(PictureSearch, "The query image: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."),
)
async def search_image(request: Request, limiter: SearchLimiter, service: Service) -> Response:
    """Return videos that look like the image, or whose captions describe it.

    With `group_by=moment` the hits are moments within videos. The image is not stored.
    """

    def embed(serving: Serving, form: Form, _: PictureSearch) -> QueryVector:
        return serving.query_encoder.image(form.incoming.path)

    return await _with_file(request, limiter, service, PictureSearch, embed)


@router.post(
    "/v1/search/video",
    summary="Search by clip",
    response_model=Answer,
    responses=problems(410, 413, 415, 503),
    openapi_extra=_form(ClipSearch, "The clip. It is embedded, not stored."),
)
async def search_video(request: Request, limiter: SearchLimiter, service: Service) -> Response:
    """Return videos that are similar to a clip outside the library.

    The clip is sampled and embedded like an upload, and then discarded.
    """

    def embed(serving: Serving, form: Form, search: ClipSearch) -> QueryVector:
        default = service.settings.sampling
        sampling = Sampling(search.num_frames or default.num_frames, search.frame_interval or default.frame_interval)
        return serving.query_encoder.clip(form.incoming.path, search.caption, sampling)

    return await _with_file(request, limiter, service, ClipSearch, embed)


async def _search_response(limiter: CapacityLimiter, run: Callable[[], SearchResults]) -> Response:
    """Run the search and write its results in a thread, which leaves the event loop free to send bytes."""
    body = await to_thread.run_sync(lambda: Answer.from_results(run()).model_dump_json().encode(), limiter=limiter)
    return Response(body, media_type="application/json")


async def _with_file(
    request: Request,
    limiter: CapacityLimiter,
    service: Runtime,
    model: type[_Search],
    embed: Callable[[Serving, Form, _Search], QueryVector],
) -> Response:
    """Read the form, embed its file, and search with the vector."""
    async with receive_form(request, service.ingest, frozenset(model.model_fields)) as form:
        # An HTML form sends a field that was left empty as empty text.
        filled = {name: list(filter(None, values)) for name, values in form.values.items()}
        given = {name: kept if name in _LISTS else kept[-1] for name, kept in filled.items() if kept}
        try:
            search = model.model_validate(given)
        except ValidationError as error:
            raise _wrong_fields(error) from error
        # Both steps use the same `serving`, because the active model may change in between. The file is embedded
        # outside the limiter of searches: decoding a clip takes seconds, and no other search should wait for it.
        serving = service.serving
        vector = await run_in_threadpool(embed, serving, form, search)
    query = search.to_query(search.fusion, vectors=(vector,), group_by=search.group_by)
    return await _search_response(limiter, lambda: serving.recommender.search(query))


def _wrong_fields(error: ValidationError) -> RequestValidationError:
    """Convert the errors of a form's fields to errors of the request body."""
    return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
