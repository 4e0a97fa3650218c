"""Generations: another model, embedded beside the one that answers, and the switch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse

from service.api.routes.common import Service, problems, require_admin
from service.api.schemas import Generation, GenerationList, GenerationRequest
from service.generations import generations
from service.generations.generations import State

router = APIRouter(prefix="/v1/generations", tags=["generations"])

GenerationId = Annotated[str, Path(description="a generation's `id`", examples=["g0123456789abcdef"])]


@router.get("", summary="The generations")
def every_generation(service: Service) -> GenerationList:
    """All that the library has vectors of, the newest first; one of them is `active`."""
    with service.db.read() as connection:
        found = generations.states(connection)
    return GenerationList(items=[Generation.of(state) for state in found])


@router.get("/{generation_id}", summary="One generation", responses=problems(404))
def one_generation(service: Service, generation_id: GenerationId) -> Generation:
    """How far it is, and what stands in its way."""
    with service.db.read() as connection:
        return Generation.of(generations.state(connection, generation_id))


@router.post(
    "",
    summary="Ask for another model",
    status_code=202,
    dependencies=[Depends(require_admin)],
    response_model=Generation,
    responses={
        200: {"model": Generation, "description": "it is active, or on its way already"},
        202: {"model": Generation, "description": "everything is embedded by it; `Location` is where to ask"},
        **problems(503),
    },
)
def ask(service: Service, wanted: GenerationRequest) -> JSONResponse:
    """Its weights are loaded once before this answers, which may take as long as fetching them does. Then every video
    is embedded by it, behind uploads and at a low priority, while the active one goes on answering. One at a time:
    another that was on its way is given up, and keeps what it has."""
    state, news = service.propose(wanted.model, wanted.precision, activate=wanted.activate)
    return _told(state, 202 if news and not state.active else 200)


@router.put(
    "/{generation_id}/activation",
    summary="Answer with it",
    dependencies=[Depends(require_admin)],
    responses=problems(404, 409, 503),
)
def activate(service: Service, generation_id: GenerationId) -> Generation:
    """From the next question on, in one step, and back the same way. Only one that was complete once (`ready`) is
    switched to; what it lacks, because it came in since, is queued as an upload is. Other processes of the service
    follow within seconds."""
    return Generation.of(service.switch(generation_id))


def _told(state: State, status: int) -> JSONResponse:
    body = Generation.of(state).model_dump(mode="json")
    return JSONResponse(body, status, headers={"Location": f"/v1/generations/{state.generation.id}"})
