"""What a worker counts, for Prometheus: how full its batches are, and what takes how long. Knows no work.

Counting costs microseconds, so it is always done; `reelsrs worker --metrics-port` shows it.
"""

from __future__ import annotations

import prometheus_client as prometheus

REGISTRY = prometheus.CollectorRegistry()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)

CLIPS = prometheus.Counter("reelsrs_worker_clips", "clips brought to an end", ["outcome"], registry=REGISTRY)
FRAMES = prometheus.Counter("reelsrs_worker_frames", "frames embedded", registry=REGISTRY)
BATCH_FILL = prometheus.Histogram(
    "reelsrs_worker_batch_fill",
    "frames that were there to be embedded at once, as a share of what the model takes at a time",
    buckets=(0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4),
    registry=REGISTRY,
)
SECONDS = prometheus.Histogram(
    "reelsrs_worker_seconds",
    "time for a clip's decoding, a batch's embedding, a clip's storing",
    ["step"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
LAG = prometheus.Histogram(
    "reelsrs_worker_lag_seconds",
    "from a clip's upload, or from its last change, to its being ready",
    buckets=(0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400),
    registry=REGISTRY,
)


def show(host: str, port: int) -> None:
    """Answer Prometheus on this address from now on, in a thread. Raises OSError."""
    prometheus.start_http_server(port, host, registry=REGISTRY)
