"""Routes of generations: embed the library with another model, compare, and switch to its vectors."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse

from service.api.routes.common import EvaluationLimiter, Service, problems, require_admin
from service.api.schemas import Evaluation, Generation, GenerationList, GenerationRequest
from service.bootstrap import Runtime
from service.errors import NotReady
from service.generations import generations
from service.generations.generations import State
from service.operations.evaluation.evaluate import evaluate
from service.operations.evaluation.figures import Options

router = APIRouter(prefix="/v1/generations", tags=["generations"])

_EVALUATED_VIDEOS = 2_000
"""Videos of an evaluation, at most, so that it takes seconds and little memory in a library of any size."""

GenerationId = Annotated[str, Path(description="The `id` of a generation.", examples=["g0123456789abcdef"])]


@router.get("", summary="List generations")
def every_generation(service: Service) -> GenerationList:
    """Return all generations of the library, newest first. One of them is `active`."""
    with service.db.read() as connection:
        found = generations.states(connection)
    return GenerationList(items=[Generation.from_state(state) for state in found])


@router.get("/{generation_id}", summary="Get a generation", responses=problems(404))
def one_generation(service: Service, generation_id: GenerationId) -> Generation:
    """Return the status and the progress of a generation, and its error, if there is one."""
    with service.db.read() as connection:
        return Generation.from_state(generations.state(connection, generation_id))


@router.get("/{generation_id}/evaluation", summary="Evaluate a generation", responses=problems(404, 409))
async def evaluation(limiter: EvaluationLimiter, service: Service, generation_id: GenerationId) -> Evaluation:
    """Measure how good search is with this generation, and compare it with the active one on the same videos.

    A generation that is still being embedded is compared on the videos that have its vectors. In a large library, a
    sample of 2,000 videos is evaluated. One evaluation runs at a time; others wait.
    """
    return await to_thread.run_sync(_evaluate, service, generation_id, limiter=limiter)


def _evaluate(service: Runtime, generation_id: str) -> Evaluation:
    active = service.serving.generation
    with service.db.read() as connection:
        state = generations.state(connection, generation_id)
    if not state.embedded:
        raise NotReady(generation_id, "empty", "generation")
    compared = [active] if state.generation == active else [active, state.generation]
    options = Options(aggregation=service.settings.aggregation, sample=_EVALUATED_VIDEOS, candidates=_EVALUATED_VIDEOS)
    return Evaluation.from_evaluation(evaluate(service.db, compared, options))


@router.post(
    "",
    summary="Re-embed with another model",
    status_code=202,
    dependencies=[Depends(require_admin)],
    response_model=Generation,
    responses={
        200: {"model": Generation, "description": "The generation is active, or is being embedded already."},
        202: {"model": Generation, "description": "The library is being embedded with the model. Poll `Location`."},
        **problems(503),
    },
)
def ask(service: Service, body: GenerationRequest) -> JSONResponse:
    """Embed the library with another model.

    The model is loaded before the response is sent, which may include a download of its weights. Then every video is
    embedded with it at low priority, after new uploads, while the active generation keeps answering. Only one
    generation is embedded at a time: a previous one that is incomplete is stopped, and keeps its vectors.
    """
    state, is_new = service.request_model(body.model, body.precision, activate=body.activate)
    return _response(state, 202 if is_new and not state.active else 200)


@router.put(
    "/{generation_id}/activation",
    summary="Activate a generation",
    dependencies=[Depends(require_admin)],
    responses=problems(404, 409, 503),
)
def activate(service: Service, generation_id: GenerationId) -> Generation:
    """Make this generation the one that answers.

    The switch takes effect in one step, from the next search on, and can be reversed in the same way. Only a generation
    that was complete once (`ready`) can be activated. Videos that it lacks because they were uploaded later are queued
    like uploads. Other processes of the service follow within seconds.
    """
    return Generation.from_state(service.switch(generation_id))


def _response(state: State, status: int) -> JSONResponse:
    content = Generation.from_state(state).model_dump(mode="json")
    return JSONResponse(content, status, headers={"Location": f"/v1/generations/{state.generation.id}"})
