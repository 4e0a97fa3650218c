"""Routes of the service itself: welcome, health, metrics, information and categories."""

from __future__ import annotations

import threading
import time

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service import __version__
from service.api.request_limits import RequestLimits
from service.api.routes.common import Service, require_key
from service.api.schemas import Category, CategoryList, Health, IndexInfo, Info, Limits, Welcome
from service.bootstrap import Runtime
from service.database import generation_rows, video_rows
from service.errors import ReelsError
from service.models import MAX_CAPTION_CHARACTERS, MAX_FRAMES, MAX_K

_TRIAL_LOCK = threading.Lock()
_TRIAL_INTERVAL_SECONDS = 1.0
_LOCK_TIMEOUT_SECONDS = 0.5  # for the write lock: a readiness probe does not wait long

open_router = APIRouter(tags=["service"])
router = APIRouter(tags=["service"], dependencies=[Depends(require_key)])


@open_router.get("/", summary="Links to the main resources", response_model=Welcome)
def welcome(request: Request) -> Response:
    """Return links to the main resources. A browser is redirected to the explorer page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/explore", headers={"Vary": "Accept"})
    links = {
        "explore": "/explore",
        "guide": "/guide",
        "docs": "/docs",
        "openapi": "/openapi.json",
        "videos": "/v1/videos",
        "projections": "/v1/projections",
        "info": "/v1/info",
    }
    body = Welcome(message="Welcome to ReelsRS", version=__version__, links=links)
    return JSONResponse(body.model_dump(), headers={"Vary": "Accept"})


@open_router.get("/livez", summary="Liveness check")
def livez() -> Health:
    """Report that the process answers."""
    return Health(status="ok")


@open_router.get(
    "/readyz",
    summary="Readiness check",
    responses={503: {"model": Health, "description": "A required part does not work. `checks` says which."}},
)
def readyz(request: Request, service: Service, response: Response) -> Health:
    """Report whether the service can answer requests, with the state of each part in `checks`.

    `unavailable` (status 503): the database does not answer, the index cannot be searched, the worker has died, or the
    service is near its request limit.

    `degraded` (status 200): the model does not work, or clips or rows cannot be written. The service still answers
    searches that do not need these parts, so keep sending requests to it.
    """
    checks = {"worker": "ok", "load": "ok"}
    name = "database"
    try:
        with service.db.read() as connection:
            generation_rows.active_generation(connection)
        checks[name], name = "ok", "index"
        service.serving.index.check()
        checks[name] = "ok"
    except ReelsError as error:
        checks[name] = str(error)
    checks |= _run_trials(request, service)
    if service.switch_error is not None:
        checks["model"] = service.switch_error
    worker = request.app.state.worker
    if worker is None:
        checks["worker"] = "not started here"
    elif not worker.alive:
        checks["worker"] = "exited; it is being restarted"
    request_limits: RequestLimits = request.app.state.request_limits
    if request_limits.is_busy:
        checks["load"] = (
            f"near the limit: {request_limits.requests.in_use} of at most {request_limits.requests.limit} requests"
        )
    ready = all(checks.get(name) in ("ok", "not started here") for name in ("database", "index", "worker", "load"))
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    degraded = any(checks[name] != "ok" for name in ("model", "storage", "writing"))
    return Health(status="unavailable" if not ready else "degraded" if degraded else "ok", checks=checks)


def _run_trials(request: Request, service: Runtime) -> dict[str, str]:
    """Try to embed a text, to write to the store and to write to the database; return `ok` or the error of each.

    The trials run at most once a second, and in one thread at a time. Anyone may call `/readyz`, and each trial syncs a
    file and takes the database's write lock.
    """
    state = request.app.state
    with _TRIAL_LOCK:
        if time.monotonic() - getattr(state, "trials_at", -_TRIAL_INTERVAL_SECONDS) >= _TRIAL_INTERVAL_SECONDS:
            state.trials = {}
            for name, check in (
                ("model", lambda: service.serving.encoder().embed_texts(["ready"])),
                ("storage", service.files.check_writable),
                ("writing", lambda: service.db.check_writable(_LOCK_TIMEOUT_SECONDS)),
            ):
                try:
                    check()
                    state.trials[name] = "ok"
                except ReelsError as error:
                    state.trials[name] = str(error)
            state.trials_at = time.monotonic()
        found: dict[str, str] = dict(state.trials)
    return found


@open_router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Return the metrics of the service in the text format of Prometheus.

    They count requests by route and status, their durations, videos by status, waiting jobs and videos in the index.
    """
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


SCORE = (
    "A score is a weighted sum of cosines (fusion=cosine) or of z-scores (fusion=zscore: standard deviations above "
    "the library's mean for this query). It orders the hits of one query. It is not a probability and not a "
    "percentage. With one model, 0.3 may be a perfect match between a text and an image, and 0.8 a chance "
    "similarity of two images. Scores of different queries, weights, fusions or models are not comparable, so "
    "choose a min_score for one query only. Between queries, z-scores compare best."
)


@router.get("/v1/info", summary="Service information")
def info(service: Service) -> Info:
    """Return version, model, device, index and limits of the service, and the meaning of a score."""
    settings, serving = service.settings, service.serving
    with serving.index.current() as (index, connection):
        size, kind, exact = len(index), index.kind, index.exact
        videos = video_rows.status_counts(connection)
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
        index=IndexInfo(kind=kind, size=size, exact=exact, approximate_from=serving.index.exact_up_to + 1),
        limits=Limits(
            max_upload_bytes=settings.max_upload_bytes,
            max_duration_seconds=settings.max_duration_seconds,
            max_pixels=settings.max_pixels,
            max_caption_characters=MAX_CAPTION_CHARACTERS,
            max_frames=MAX_FRAMES,
            max_k=MAX_K,
        ),
    )


@router.get("/v1/categories", summary="List categories")
def categories(service: Service) -> CategoryList:
    """Return every category with its number of videos. The name null stands for videos without a category."""
    with service.db.read() as connection:
        found = video_rows.categories(connection)
    return CategoryList(items=[Category(name=name, count=count) for name, count in found])
