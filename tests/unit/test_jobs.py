"""The queue: leases, attempts, and the end of both."""

from __future__ import annotations

from tests.support.queue_properties import QueueProperties


class TestQueue(QueueProperties):
    """In SQLite, which the fixture `url` gives."""
