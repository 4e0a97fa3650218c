"""Job queue tests on PostgreSQL."""

from __future__ import annotations

from tests.support.queue_properties import QueueProperties


class TestQueue(QueueProperties):
    """Use the fixture `url` of this folder's conftest."""
