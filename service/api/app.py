"""The FastAPI application of the REST API: `create_app(settings)`.

Nothing is built at import. Startup loads the text tower and the index before the first request is answered. So
`/readyz` never reports readiness too early, and the first search is as fast as the second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool

from service import __version__
from service.api.access import check_address, is_loopback
from service.api.guide import add_guide
from service.api.observability import Metrics, ObservabilityMiddleware
from service.api.pages import add_pages
from service.api.problems import add_handlers, document_problems, on_reels_error
from service.api.request_limits import RequestLimits, RequestLimitsMiddleware
from service.api.routes import generations, projections, search, system, videos
from service.api.routes.common import problems, require_key, require_read
from service.api.schemas import Problem
from service.api.timeouts import ClientTimeouts
from service.bootstrap import Runtime
from service.config import Settings
from service.database import api_keys
from service.embedding.encoder import Encoder
from service.errors import ReelsError
from service.media import Decoder
from service.timing import Timing
from service.worker.supervisor import StartWorker, WorkerProcess

log = structlog.get_logger(__name__)
_DESCRIPTION = """
Upload short clips and get recommendations. Frames and captions are embedded with CLIP, and searched by a weighted sum
of visual and text similarity.

**In three calls:** `POST /v1/videos?wait=30` with a clip as the form's `file`, the same with another clip, then
`GET /v1/videos/{id}/recommendations`.

Errors are `application/problem+json`. Lists are `{items, next_cursor}`. Times are in seconds, sizes in bytes.

A `score` orders the hits of one query. It is a weighted sum of cosines or of z-scores, not a probability. Scores of
different queries are not comparable.

The [guide](/guide) explains searches, scores, maps, operation and the architecture.
"""

_TAGS = [
    {
        "name": "videos",
        "description": "Upload, list, change and delete videos; get their clips, frames, vectors and progress.",
    },
    {
        "name": "search",
        "description": "Recommendations, searches by text, image or clip, moments, and near-duplicates.",
    },
    {"name": "projections", "description": "Maps of the embedding space in two or three dimensions."},
    {
        "name": "generations",
        "description": "Re-embed the library with another model while the active one answers, then switch.",
    },
    {"name": "service", "description": "Categories, information, health and metrics."},
]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "An API key is required."},
    403: {"model": Problem, "description": "The API key is unknown, or lacks the right that `detail` names."},
    422: {"model": Problem, "description": "A parameter is invalid. `errors` names it."},
    **problems(429),
}


def create_app(
    settings: Settings,
    *,
    worker: StartWorker | None = WorkerProcess,
    runtime: Runtime | None = None,
    timeouts: ClientTimeouts | None = None,
) -> FastAPI:
    """Return the FastAPI application.

    Args:
        settings: The settings of the service.
        worker: Starts the embedding worker. None leaves embedding to other processes.
        runtime: The runtime that `start_runtime` returned. If None, the application builds one when it starts. The
            application closes it when it stops.
        timeouts: Time limits for clients; None for the defaults.
    """
    app = FastAPI(
        title="ReelsRS",
        version=__version__,
        summary="A service that recommends short video clips.",
        description=_DESCRIPTION,
        lifespan=lambda app: _lifespan(app, settings, worker, runtime),
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        responses=_PROBLEMS,
    )
    app.state.metrics = Metrics()
    app.state.request_limits = request_limits = RequestLimits(settings, timeouts or ClientTimeouts())
    # Whether requests are allowed without an API key while there is none. On an address that others can reach, revoking
    # the last key of a running service must not open it to everyone.
    app.state.open_without_key = settings.allow_anyone or is_loopback(settings.host)
    _add_routes(app)
    add_pages(app)
    add_guide(app)
    add_handlers(app)
    app.add_middleware(RequestLimitsMiddleware, request_limits=request_limits, to_response=on_reels_error)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "X-Request-Id", "Retry-After"],
        )
    app.add_middleware(ObservabilityMiddleware, metrics=app.state.metrics)
    document_problems(app)
    return app


@asynccontextmanager
async def _lifespan(
    app: FastAPI, settings: Settings, worker: StartWorker | None, runtime: Runtime | None
) -> AsyncIterator[None]:
    """Run the application: start its parts, and stop them when the block ends."""
    app.state.search_limiter, app.state.key_limiter = CapacityLimiter(os.cpu_count() or 1), CapacityLimiter(1)
    app.state.evaluation_limiter = CapacityLimiter(1)
    if runtime is None:
        runtime = await run_in_threadpool(start_runtime, settings)
    app.state.runtime = runtime
    app.state.metrics.watch(runtime)
    app.state.worker = None if worker is None else await run_in_threadpool(worker, settings, runtime)
    follow_task = asyncio.create_task(_follow_active_generation(runtime))
    model = runtime.serving.generation.model
    log.info("ready", version=__version__, model=model, data=str(settings.data_dir))
    try:
        yield
    finally:
        follow_task.cancel()
        if app.state.worker is not None:
            await run_in_threadpool(app.state.worker.stop)
        await run_in_threadpool(runtime.close)


def _add_routes(app: FastAPI) -> None:
    for router in (videos.router, projections.router):
        app.include_router(router, dependencies=[Depends(require_key)])
    for router in (search.router, generations.router):
        app.include_router(router, dependencies=[Depends(require_read)])
    app.include_router(system.router)
    app.include_router(system.open_router)


def start_runtime(
    settings: Settings,
    *,
    model: Encoder | None = None,
    decoder: Decoder | None = None,
    timing: Timing | None = None,
) -> Runtime:
    """Return a runtime that is ready to answer requests: its model and its index are loaded.

    Checks the access without API keys and removes what an earlier crash left. `model`, `decoder` and `timing` are
    passed to `Runtime`. Raises ReelsError if a necessary part cannot be loaded.
    """
    runtime = Runtime(settings, image_tower=False, model=model, decoder=decoder, timing=timing)
    check_access(runtime)
    runtime.ingest.repair()
    runtime.initialise()
    runtime.serving.warm()
    return runtime


async def _follow_active_generation(runtime: Runtime) -> None:
    """Keep switching to the active generation, because another process may have changed it.

    Until the model of the new generation is loaded here, the previous generation answers.
    """
    while True:
        await asyncio.sleep(runtime.timing.generation_check_seconds)
        try:
            await run_in_threadpool(runtime.follow, warm=True)
            runtime.switch_error = None
        except ReelsError as error:
            if runtime.switch_error is None:
                log.warning("active generation unknown", reason=str(error))
            runtime.switch_error = str(error)


def check_access(runtime: Runtime) -> None:
    """Raise ConfigurationError if other machines can reach the service and no API key is needed."""
    with runtime.db.read() as connection:
        check_address(runtime.settings, any_key=api_keys.any_api_key(connection))
