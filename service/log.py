"""Structured logs on stderr: JSON lines, or coloured text on a terminal. Knows nothing of requests."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

_KEY = re.compile(r"reelsrs_[A-Za-z0-9_-]{43}")


def configure(level: int = logging.INFO) -> None:
    """Send structlog and the standard library's loggers to stderr in one format. Idempotent."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    # The console's own tracebacks show local variables, and one of them may be a key.
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render, _without_keys],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # open_clip and the hub client narrate every load at INFO; uvicorn's access log is replaced by ours. By levels:
    # a library that configures logging when it is imported enables every logger again.
    for name in ("httpx", "httpcore", "huggingface_hub", "PIL", "alembic", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_keys(_logger: object, _method: str, line: Any) -> str:
    """A key belongs into a header; where a client puts it into an address, or an error quotes it, it still is one."""
    return _KEY.sub("reelsrs_***", line)
