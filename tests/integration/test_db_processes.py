"""Tests of several processes that share one SQLite file."""

from tests.support.database_properties import DatabaseAcrossProcesses


class TestProcesses(DatabaseAcrossProcesses):
    """Run the multi-process properties with the fixture `url`."""
