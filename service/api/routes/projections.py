"""Routes of projections (maps of the embedding space): request, watch and fetch them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import orjson
from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import JSONResponse

from service.api.routes.blobs import gzip_response
from service.api.routes.common import Service, problems
from service.api.schemas import PointList, Projection, ProjectionList, ProjectionRequest
from service.database import projection_rows
from service.database.projection_rows import Points
from service.projections.arrow import points_stream

router = APIRouter(prefix="/v1/projections", tags=["projections"])

ARROW = "application/vnd.apache.arrow.stream"

ProjectionId = Annotated[str, Path(description="The `id` of a map.", examples=["a41f09c25d7be836"])]


@router.post(
    "",
    summary="Request a map",
    status_code=202,
    response_model=Projection,
    responses={
        200: {"model": Projection, "description": "The map exists already, or is being fitted."},
        202: {"model": Projection, "description": "The map is queued. Poll `Location`."},
    },
)
def ask(service: Service, body: ProjectionRequest) -> JSONResponse:
    """Request a map of the embedding space.

    The map is fitted in a process of its own and then stored. Later videos are placed into it one by one, and no other
    point moves. Only a map of fewer than 100 points is fitted again, each time it has doubled. A map that failed is
    queued again.
    """
    spec = service.projections.spec(
        body.embedding,
        body.method,
        body.dimensions,
        seed=body.seed,
        parameters=body.parameters,
        category=body.category,
    )
    state, queued = service.projections.request(spec)
    return _response(state, 202 if queued else 200)


@router.get("", summary="List maps")
def every_map(service: Service) -> ProjectionList:
    """Return the maps of the active generation, newest first."""
    return ProjectionList(items=[Projection.from_row(state) for state in service.projections.all()])


@router.get("/{projection_id}", summary="Get a map", responses=problems(404))
def one_map(service: Service, projection_id: ProjectionId) -> Projection:
    """Return the status, progress and quality of a map, and how many points were placed since it was fitted."""
    return Projection.from_row(service.projections.find(projection_id))


@router.delete("/{projection_id}", summary="Delete a map", status_code=204, responses=problems(404))
def delete_map(service: Service, projection_id: ProjectionId) -> Response:
    """Delete a map, even while it is being fitted. The videos stay."""
    service.projections.delete(projection_id)
    return Response(status_code=204)


@router.post(
    "/{projection_id}/fit",
    summary="Fit a map again",
    status_code=202,
    response_model=Projection,
    responses=problems(404),
)
def refit(service: Service, projection_id: ProjectionId) -> JSONResponse:
    """Fit a map again, from all videos that are in the library now.

    The old points stay available until the new ones are ready.
    """
    return _response(service.projections.refit(projection_id), 202)


@router.delete("/{projection_id}/fit", summary="Cancel a fit", responses=problems(404))
def cancel(service: Service, projection_id: ProjectionId) -> Projection:
    """Cancel a fit that is queued or running.

    A map that was fitted before keeps its points. Any other map gets the status `failed`.
    """
    return Projection.from_row(service.projections.cancel(projection_id))


@router.get(
    "/{projection_id}/points",
    summary="Get the points of a map",
    response_model=PointList,
    responses={
        200: {"content": {ARROW: {}}},
        304: {"description": "The points have not changed: `If-None-Match` names their ETag."},
        **problems(404, 409),
    },
)
def points(
    service: Service,
    projection_id: ProjectionId,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    accept_encoding: Annotated[str, Header(include_in_schema=False)] = "",
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return all points of a map at once.

    The format is JSON, or with `Accept: application/vnd.apache.arrow.stream` an Arrow IPC stream. The stream has the
    columns video_id, frame, time, category, x, y and, in three dimensions, z.
    """
    arrow = ARROW in accept
    tag, body = service.encoded_points.get(projection_id, points_stream if arrow else _encode_json)
    return gzip_response(
        tag,
        body,
        ARROW if arrow else "application/json",
        vary="Accept, Accept-Encoding",
        accept_encoding=accept_encoding,
        if_none_match=if_none_match,
    )


def _response(state: projection_rows.Projection, status: int) -> JSONResponse:
    content = Projection.from_row(state).model_dump(mode="json")
    return JSONResponse(content, status, headers={"Location": f"/v1/projections/{state.id}"})


def _encode_json(found: Points) -> bytes:
    # Write plain values: a model object for each of 100,000 points would take seconds. orjson writes a float32 with no
    # more digits than it needs.
    whole = len(found.ids) == 0 or found.frames[0] < 0
    nothing = [None] * len(found.ids)
    columns = (
        found.ids,
        nothing if whole else found.frames.tolist(),
        nothing if whole else np.round(found.times.astype(float), 4).tolist(),
        found.categories,
        np.ascontiguousarray(found.coordinates),
    )
    names = ("video_id", "frame", "time", "category", "coordinates")
    items = [dict(zip(names, point, strict=True)) for point in zip(*columns, strict=True)]
    return orjson.dumps({"items": items, "next_cursor": None}, option=orjson.OPT_SERIALIZE_NUMPY)
