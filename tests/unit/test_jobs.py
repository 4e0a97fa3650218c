"""Tests of the job queue: leases, attempts and their expiry."""

from __future__ import annotations

from tests.support.queue_properties import QueueProperties


class TestQueue(QueueProperties):
    """Run the queue properties against SQLite, which the fixture `url` provides."""
