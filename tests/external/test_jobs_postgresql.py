"""The queue in PostgreSQL."""

from __future__ import annotations

from tests.support.queue_properties import QueueProperties


class TestQueue(QueueProperties):
    """With the `url` of this folder."""
