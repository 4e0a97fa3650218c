"""The service itself: welcome, health, figures, categories."""

from __future__ import annotations

import threading
import time

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service import __version__
from service.api.guard import Gates
from service.api.routes.common import Service, require_key
from service.api.schemas import Category, CategoryList, Health, IndexInfo, Info, Limits, Welcome
from service.bootstrap import Runtime
from service.database import catalog, generation_rows
from service.errors import ReelsError
from service.models import MAX_CAPTION_CHARACTERS, MAX_FRAMES, MAX_K

_TRYING = threading.Lock()
_TRIAL_SECONDS = 1.0
_PATIENCE_SECONDS = 0.5  # whoever asks whether it is ready does not wait long for the answer

open_router = APIRouter(tags=["service"])
router = APIRouter(tags=["service"], dependencies=[Depends(require_key)])


@open_router.get("/", summary="Welcome", response_model=Welcome)
def welcome(request: Request) -> Response:
    """Links for a program; a browser is sent to the explorer."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/explore", headers={"Vary": "Accept"})
    links = {
        "explore": "/explore",
        "docs": "/docs",
        "openapi": "/openapi.json",
        "videos": "/v1/videos",
        "projections": "/v1/projections",
        "info": "/v1/info",
    }
    body = Welcome(message="Welcome to ReelsRS", version=__version__, links=links)
    return JSONResponse(body.model_dump(), headers={"Vary": "Accept"})


@open_router.get("/livez", summary="Alive")
def livez() -> Health:
    """The process answers."""
    return Health(status="ok")


@open_router.get(
    "/readyz",
    summary="Ready",
    responses={503: {"model": Health, "description": "a part is missing; `checks` says which"}},
)
def readyz(request: Request, service: Service, response: Response) -> Health:
    """The database answers, the text tower is loaded and works, the index is caught up, the worker runs, and there is
    room for more requests.

    Where clips and rows cannot be written, `status` is `degraded` and `checks` says why: searches are answered all the
    same, so the service stays where it gets requests."""
    checks = {"worker": "ok", "load": "ok"}
    name = "database"
    try:
        with service.db.read() as connection:
            generation_rows.active_generation(connection)
        checks[name], name = "ok", "index"
        service.serving.follower.check()
        checks[name] = "ok"
    except ReelsError as error:
        checks[name] = str(error)
    checks |= _tried(request, service)
    if service.trouble is not None:
        checks["model"] = service.trouble
    worker = request.app.state.worker
    if worker is None:
        checks["worker"] = "not started here"
    elif not worker.alive:
        checks["worker"] = "died; it is being started again"
    gates: Gates = request.app.state.gates
    if gates.busy:
        checks["load"] = f"{gates.requests.inside} of at most {gates.requests.limit} requests are being answered"
    ready = all(checks.get(name) in ("ok", "not started here") for name in ("database", "index", "worker", "load"))
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    degraded = any(checks[name] != "ok" for name in ("model", "storage", "writing"))
    return Health(status="unavailable" if not ready else "degraded" if degraded else "ok", checks=checks)


def _tried(request: Request, service: Runtime) -> dict[str, str]:
    """What embedding, storing and writing come to now. Tried once a second at most, by one at a time: anybody may ask,
    and each try syncs a file and holds the database's lock."""
    state = request.app.state
    with _TRYING:
        if time.monotonic() - getattr(state, "tried_at", -_TRIAL_SECONDS) >= _TRIAL_SECONDS:
            state.tried = {}
            for name, check in (
                ("model", lambda: service.serving.embedder().embed_texts(["ready"])),
                ("storage", service.files.check_writable),
                ("writing", lambda: service.db.check_writable(_PATIENCE_SECONDS)),
            ):
                try:
                    check()
                    state.tried[name] = "ok"
                except ReelsError as error:
                    state.tried[name] = str(error)
            state.tried_at = time.monotonic()
        found: dict[str, str] = dict(state.tried)
    return found


@open_router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
def metrics(request: Request) -> Response:
    """Requests by route and status, their durations, videos by status, jobs waiting, size of the index."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


SCORE = (
    "A score is a weighted sum of cosines (fusion=cosine) or of z-scores (fusion=zscore: standard deviations above "
    "the library's average for this question). It orders the hits of one answer. It is not a probability and not a "
    "share of agreement: with one model 0.3 may be a perfect match between words and a picture, and 0.8 a chance "
    "resemblance of two pictures. Scores of different questions, weights, fusions or models are not comparable, so "
    "a min_score is only right for the question that it was chosen with; between questions, z-scores travel best."
)


@router.get("/v1/info", summary="What runs here")
def info(service: Service) -> Info:
    """Version, model, device, index and limits, and what a score means."""
    settings, serving = service.settings, service.serving
    with serving.follower.current() as (index, connection):
        size, kind, exact = len(index), index.kind, index.exact
        videos = catalog.status_counts(connection)
    return Info(
        version=__version__,
        model=serving.generation.model,
        generation=serving.generation.id,
        dimension=serving.generation.dimension,
        device=serving.device,
        precision=serving.generation.precision,
        aggregation=settings.aggregation,
        videos=videos,
        score=SCORE,
        index=IndexInfo(kind=kind, size=size, exact=exact, approximate_from=serving.follower.exact_up_to + 1),
        limits=Limits(
            max_upload_bytes=settings.max_upload_bytes,
            max_duration_seconds=settings.max_duration_seconds,
            max_pixels=settings.max_pixels,
            max_caption_characters=MAX_CAPTION_CHARACTERS,
            max_frames=MAX_FRAMES,
            max_k=MAX_K,
        ),
    )


@router.get("/v1/categories", summary="Categories")
def categories(service: Service) -> CategoryList:
    """Every category with its number of videos; null stands for videos without one."""
    with service.db.read() as connection:
        found = catalog.categories(connection)
    return CategoryList(items=[Category(name=name, count=count) for name, count in found])
