"""Several processes over one SQLite file."""

from tests.support.database_properties import DatabaseAcrossProcesses


class TestProcesses(DatabaseAcrossProcesses):
    """With the fixture `url`."""
