"""Request ids, log lines, metrics and security headers of all requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bootstrap import Runtime
from service.database import jobs, video_rows
from service.errors import ReelsError

log = structlog.get_logger(__name__)


_METHODS = frozenset(("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"))
# Security headers of every response that does not set them itself.
_SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class Metrics(Collector):
    """Prometheus metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reelsrs_http_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "reelsrs_http_request_seconds", "seconds to answer", ["method", "route"], registry=self.registry
        )
        self._runtime: Runtime | None = None

    def watch(self, runtime: Runtime) -> None:
        """Report the state of the library too, read at each scrape."""
        if self._runtime is None:
            self.registry.register(self)
        self._runtime = runtime

    def collect(self) -> Iterable[Any]:
        """Yield gauges with values from the database and the index."""
        if self._runtime is None:
            return
        with self._runtime.db.read() as connection:
            counts, depth, age = video_rows.status_counts(connection), jobs.depth(connection), jobs.age(connection)
        videos_by_status = GaugeMetricFamily("reelsrs_videos", "videos by status", labels=["status"])
        for status in ("queued", "processing", "ready", "failed"):
            videos_by_status.add_metric([status], counts.get(status, 0))
        yield videos_by_status
        yield GaugeMetricFamily("reelsrs_jobs", "unfinished jobs", value=depth)
        yield GaugeMetricFamily("reelsrs_oldest_job_seconds", "seconds since the oldest job could start", value=age)
        with suppress(ReelsError):  # an unavailable index must not hide the other metrics
            with self._runtime.serving.index.current() as (index, _):
                size = len(index)
            yield GaugeMetricFamily("reelsrs_index_videos", "videos in the index", value=size)


class ObservabilityMiddleware:
    """ASGI middleware that gives every request an id and a log line, and counts it in the metrics.

    Every response gets the id as `X-Request-Id`, and security headers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = secrets.token_hex(8)
        # Kept if no response starts: the client disconnected before, for which nginx logs 499.
        started, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                missing = ((name, value) for name, value in _SECURITY_HEADERS.items() if name not in present)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *missing]
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
                # Clients can invent methods, and each would become a permanent series of its own.
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
