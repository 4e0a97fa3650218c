"""Search tests against the oracle, with vectors in Milvus."""

from __future__ import annotations

import pytest

from tests.support import services
from tests.support.recommend_properties import MilvusAt, RecommendProperties


class TestOverMilvusLite(RecommendProperties):
    """Use Milvus Lite in this process."""

    def examples(self, wanted: int) -> int:
        """Return a fifth, because creating the collections takes a tenth of a second per library."""
        return wanted // 5

    @pytest.fixture
    def milvus_at(self) -> MilvusAt:
        """Return a function that gives each library its own file."""
        return lambda folder: str(folder / "vectors.db")


class TestOverAServer(RecommendProperties):
    """Keep all libraries on one Milvus server."""

    def examples(self, wanted: int) -> int:
        """Return at most 2, because creating the collections takes the server three seconds per library."""
        return min(2, wanted)

    @pytest.fixture
    def milvus_at(self, milvus: services.Milvus) -> MilvusAt:
        """Return the server's address for every library."""
        return lambda _: milvus.uri
