"""The REST service: `create_app(settings)`. Nothing is built at import.

Holds what belongs to HTTP alone: the table from the core's errors to statuses, request ids, logs, metrics, the
docs page. Starting loads the text tower and the index before the first request is answered, so that `/readyz`
never lies and the first search is as quick as the second.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from http import HTTPStatus
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__, errors, faults
from service.api.guard import Gates, Guard, Patience, check_address, only_here
from service.api.routes import generations, projections, search, system, videos
from service.api.routes.common import compressed, problems, require_key, require_read
from service.api.schemas import FieldError, Problem
from service.config import Settings
from service.database import catalog, jobs, keys
from service.embedding.embedder import Embedder
from service.errors import ReelsError
from service.media import Decoder
from service.runtime import Runtime
from service.timing import Timing
from service.worker.worker import StartWorker, WorkerProcess

log = structlog.get_logger(__name__)

STATUSES: dict[type[ReelsError], int] = {
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.NotReady: 409,
    errors.TooLarge: 413,
    errors.TooSlow: 408,
    errors.Undecodable: 415,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.InternalError: 500,
    errors.ConfigurationError: 503,
}

_METHODS = frozenset(("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"))
_PAGE = Path(__file__).parents[1] / "explore"

# Of every answer that does not say otherwise: what a browser is not to do with it.
_CAUTION = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}

_DESCRIPTION = """
Upload short clips, get back "more like this": CLIP embeddings of frames and captions, searched by weighted
similarity over what is seen and what is written.

**In three calls:** `POST /v1/videos?wait=30` with a clip as the form's `file`, another clip, then
`GET /v1/videos/{id}/recommendations`. Errors are `application/problem+json`; lists are `{items, next_cursor}`;
times are seconds, sizes bytes.

A `score` orders the hits of one answer. It is a weighted sum of cosines (or of z-scores), not a probability, and
scores of different questions are not to be compared.
"""


def create_app(
    settings: Settings,
    *,
    worker: StartWorker | None = WorkerProcess,
    started: Runtime | None = None,
    patience: Patience | None = None,
) -> FastAPI:
    """The application. `worker` starts what embeds; None leaves that to other processes. `started` is what `start`
    gave, built when the application starts where it is left out, and closed with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runtime = started if started is not None else await run_in_threadpool(start, settings)
        app.state.runtime = runtime
        app.state.metrics.watch(runtime)
        app.state.worker = None if worker is None else await run_in_threadpool(worker, settings, runtime)
        following = asyncio.create_task(_following(runtime))
        model = runtime.serving.generation.model
        log.info("ready", version=__version__, model=model, data=str(settings.data_dir))
        try:
            yield
        finally:
            following.cancel()
            if app.state.worker is not None:
                await run_in_threadpool(app.state.worker.stop)
            await run_in_threadpool(runtime.close)

    app = FastAPI(
        title="ReelsRS",
        version=__version__,
        summary="Video recommendations as a service.",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=[
            {
                "name": "videos",
                "description": "Upload, list, change, delete; bytes, pictures, vectors, progress.",
            },
            {
                "name": "search",
                "description": "More like this, search by words, picture or clip, moments, copies.",
            },
            {"name": "projections", "description": "Maps of the embedding space, in two or three dimensions."},
            {
                "name": "generations",
                "description": "Another model, embedded beside the one that answers, then switched to.",
            },
            {"name": "service", "description": "Categories, health, figures."},
        ],
        responses={
            401: {"model": Problem, "description": "an API key is needed"},
            403: {"model": Problem, "description": "the API key is not known, or lacks the right that is named"},
            422: {"model": Problem, "description": "a wrong parameter; `errors` names it"},
            **problems(429),
        },
    )
    app.state.metrics = _Metrics()
    app.state.gates = gates = Gates(settings, patience or Patience())
    # Whether nobody needs a key where there is none. On an address that others reach the last key may be revoked while
    # this runs, and that must not let everyone in.
    app.state.open = settings.allow_anyone or only_here(settings.host)
    for resource in (videos.router, projections.router):
        app.include_router(resource, dependencies=[Depends(require_key)])
    for resource in (search.router, generations.router):
        app.include_router(resource, dependencies=[Depends(require_read)])
    app.include_router(system.router)
    app.include_router(system.open_router)
    _add_pages(app)
    app.add_exception_handler(ReelsError, _on_reels_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Guard, gates=gates, answer=_on_reels_error)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "X-Request-Id", "Retry-After"],
        )
    app.add_middleware(_Observed, metrics=app.state.metrics)
    _document_problems(app)
    return app


def _document_problems(app: FastAPI) -> None:
    """FastAPI documents an error as of the same media type as the answer; it is application/problem+json."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            late = {
                "408": {"description": "the body came too slowly", "content": schema},
                "413": {"description": "the body is larger than is taken", "content": schema},
            }
            for verbs in generate()["paths"].values():
                for operation in verbs.values():
                    if "requestBody" in operation:  # the guard reads it, or cuts it off
                        operation["responses"] = {**late, **operation["responses"]}
                    for answer in operation["responses"].values():
                        for content in answer.get("content", {}).values():
                            if content.get("schema") == {"$ref": "#/components/schemas/Problem"}:
                                answer["content"] = {"application/problem+json": content}
                                break
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def start(
    settings: Settings,
    *,
    model: Embedder | None = None,
    decoder: Decoder | None = None,
    timing: Timing | None = None,
) -> Runtime:
    """Everything that answers need, loaded and warm. `model`, `decoder` and `timing` as Runtime takes them. Raises
    ReelsError where it cannot be had."""
    runtime = Runtime(settings, pictures=False, model=model, decoder=decoder, timing=timing)
    check_access(runtime)
    runtime.ingest.repair()
    runtime.adopt()
    runtime.serving.warm()
    return runtime


async def _following(runtime: Runtime) -> None:
    """Another process may have switched to another model; until it is loaded here, the one before answers."""
    while True:
        await asyncio.sleep(runtime.timing.follow_seconds)
        try:
            await run_in_threadpool(runtime.follow, warm=True)
            runtime.trouble = None
        except ReelsError as error:
            if runtime.trouble is None:
                log.warning("whether another model took over, or what that is, cannot be had", reason=str(error))
            runtime.trouble = str(error)


def check_access(runtime: Runtime) -> None:
    """Raises ConfigurationError where strangers could reach the service and nobody would need a key."""
    with runtime.db.read() as connection:
        check_address(runtime.settings, any_key=keys.exist(connection))


def _add_pages(app: FastAPI) -> None:
    # Swagger UI comes out of an installed package, so that the docs page needs no other host.
    assets = Path(str(package_files("fastapi_offline"))) / "static"
    app.mount("/docs/assets", StaticFiles(directory=assets), name="docs-assets")
    app.mount("/explore/assets", StaticFiles(directory=_PAGE), name="explore-assets")

    @app.get("/explore/plotly.js", include_in_schema=False)
    def plotly(
        accept_encoding: Annotated[str, Header()] = "", if_none_match: Annotated[str, Header()] = ""
    ) -> Response:
        """Out of the installed package, compressed once: 4.8 MB are 1.4."""
        tag, body = _plotly()
        return compressed(
            tag,
            body,
            "text/javascript",
            vary="Accept-Encoding",
            accept_encoding=accept_encoding,
            if_none_match=if_none_match,
        )

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ReelsRS API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )
        # Its one inline script is let in by its hash, whatever the framework's next release writes there.
        script = bytes(page.body).split(b"<script>")[1].split(b"</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        page.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
        )
        return page

    @app.get("/explore", include_in_schema=False)
    def explore(request: Request) -> Response:
        # The rest of its policy stands in the page; this part counts only in a header.
        headers = {"Content-Security-Policy": "frame-ancestors 'none'"}
        link = request.app.state.runtime.files.link("0" * 64)
        if link is None:
            return FileResponse(_PAGE / "index.html", media_type="text/html", headers=headers)
        # Clips come from the store: the page's policy lets them in from there.
        scheme, host, *_ = urlsplit(link)
        page = (_PAGE / "index.html").read_text().replace("media-src 'self'", f"media-src 'self' {scheme}://{host}")
        return HTMLResponse(page, headers=headers)


@cache
def _plotly() -> tuple[str, bytes]:
    script = (Path(str(package_files("plotly"))) / "package_data" / "plotly.min.js").read_bytes()
    return hashlib.sha256(script).hexdigest(), gzip.compress(script, mtime=0)


# --- errors


async def _on_reels_error(request: Request, error: Exception) -> Response:
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {}
    wrong = None
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after_seconds", 5))
    if isinstance(error, errors.InvalidInput):
        wrong = [FieldError(field=error.field, message=error.message)]
    video_status = error.status if isinstance(error, errors.NotReady) and error.kind == "video" else None
    return _problem(request, status, str(error), headers=headers, wrong=wrong, video_status=video_status)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = []
    for item in error.errors():
        # ("query", "k") and ("body", "query"): where it stood says less than what it is called.
        field = ".".join(str(part) for part in item["loc"][1:] if not isinstance(part, int)) or str(item["loc"][0])
        wrong.append(FieldError(field=field, message=item["msg"]))
    detail = "; ".join(f"{one.field}: {one.message}" for one in wrong)
    return _problem(request, 422, detail, wrong=wrong)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, (ValueError, RecursionError)):  # a body that is no text, or nested without end
        wrong = [FieldError(field="body", message="must be JSON in UTF-8")]
        return _problem(request, 422, "body: must be JSON in UTF-8", wrong=wrong)
    return _problem(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _on_os_error(request: Request, error: Exception) -> Response:
    # The files that are sent are opened by the framework: too many of them, say, is nobody's mistake.
    fault = faults.of(error, "the file cannot be read now")
    return await (_on_bug(request, error) if fault is None else _on_reels_error(request, fault))


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return _problem(request, 500, "something went wrong inside the service; its log says what")


def _problem(
    request: Request,
    status: int,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    wrong: list[FieldError] | None = None,
    video_status: str | None = None,
) -> Response:
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request.scope.get("request_id", ""),
        errors=wrong,
        video_status=video_status,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


# --- what an operator sees


class _Metrics(Collector):
    """Figures of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reelsrs_http_requests",
            "requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "reelsrs_http_request_seconds", "time to answer", ["method", "route"], registry=self.registry
        )
        self._runtime: Runtime | None = None

    def watch(self, runtime: Runtime) -> None:
        """Report the state of the library too, read when it is asked for."""
        if self._runtime is None:
            self.registry.register(self)
        self._runtime = runtime

    def collect(self) -> Iterable[Any]:
        """Gauges, from the database and the index."""
        if self._runtime is None:
            return
        with self._runtime.db.read() as connection:
            counts, depth, age = catalog.status_counts(connection), jobs.depth(connection), jobs.age(connection)
        videos_by_status = GaugeMetricFamily("reelsrs_videos", "videos by status", labels=["status"])
        for status in ("queued", "processing", "ready", "failed"):
            videos_by_status.add_metric([status], counts.get(status, 0))
        yield videos_by_status
        yield GaugeMetricFamily("reelsrs_jobs", "jobs not finished", value=depth)
        yield GaugeMetricFamily("reelsrs_oldest_job_seconds", "time since the oldest job could be begun", value=age)
        with suppress(ReelsError):  # vectors that are away take no other figure along
            with self._runtime.follower.current() as (index, _):
                size = len(index)
            yield GaugeMetricFamily("reelsrs_index_videos", "videos in the index", value=size)


class _Observed:
    """Gives every request an id, a log line and its place in the metrics, and every answer its security headers."""

    def __init__(self, app: ASGIApp, metrics: _Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = secrets.token_hex(8)
        # Until there is another: the client went away before it was answered, which nginx counts as 499.
        started, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = {name for name, _ in message["headers"]}
                caution = ((name, value) for name, value in _CAUTION.items() if name not in said)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *caution]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                status = 500
                raise
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "none")
                # A client may make up methods; each would be a series of its own for ever.
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(method, route, str(status)).inc()
                self._metrics.seconds.labels(method, route).observe(seconds)
                if route not in ("/livez", "/readyz", "/metrics"):
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=status,
                        milliseconds=round(seconds * 1000, 1),
                    )
