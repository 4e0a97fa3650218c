"""Logs and metrics.

Logs go to stderr: JSON lines, or coloured text on a terminal. Metrics for Prometheus are counted by a worker: clips,
frames, batch fill, and durations of the steps. Counting costs microseconds, so it is always on; `reelsrs worker
--metrics` serves the metrics.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import prometheus_client as prometheus
import structlog

REGISTRY = prometheus.CollectorRegistry()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)

CLIPS = prometheus.Counter("reelsrs_worker_clips", "clips processed, by outcome", ["outcome"], registry=REGISTRY)
FRAMES = prometheus.Counter("reelsrs_worker_frames", "frames embedded", registry=REGISTRY)
BATCH_FILL = prometheus.Histogram(
    "reelsrs_worker_batch_fill",
    "frames ready to be embedded together, as a share of the batch size of the model",
    buckets=(0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4),
    registry=REGISTRY,
)
SECONDS = prometheus.Histogram(
    "reelsrs_worker_seconds",
    "seconds to decode a clip, to embed a batch and to store a clip, by step",
    ["step"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
LAG = prometheus.Histogram(
    "reelsrs_worker_lag_seconds",
    "seconds from the upload or the last change of a clip until it is ready",
    buckets=(0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400),
    registry=REGISTRY,
)


def serve_metrics(host: str, port: int) -> None:
    """Serve the metrics to Prometheus in a background thread. Raises OSError if the address cannot be used."""
    prometheus.start_http_server(port, host, registry=REGISTRY)


_API_KEY = re.compile(r"reelsrs_[A-Za-z0-9_-]{43}")


def configure_logging(level: int = logging.INFO) -> None:
    """Send logs of structlog and of the standard library to stderr, in one format. Idempotent."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    # The default tracebacks on a console show local variables, which may include an API key.
    render: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    if not terminal:  # the console renderer formats tracebacks itself
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render, _mask_api_keys],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # open_clip and the Hugging Face client log every load at INFO; uvicorn's access log is replaced by ours. Levels are
    # set, not `disabled`, because a library that configures logging on import enables every logger again.
    for name in ("httpx", "httpcore", "huggingface_hub", "PIL", "alembic", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _mask_api_keys(_logger: object, _method: str, line: Any) -> str:
    """Mask API keys in a log line: a client may put one into a URL instead of a header, or an error may quote one."""
    return _API_KEY.sub("reelsrs_***", line)
