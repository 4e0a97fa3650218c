"""Every kind of question against the oracle, over Milvus."""

from __future__ import annotations

import pytest

from tests.support import services
from tests.support.recommend_properties import MilvusAt, RecommendProperties


class TestOverMilvusLite(RecommendProperties):
    """In this process."""

    def examples(self, wanted: int) -> int:
        """To make collections takes a tenth of a second a library."""
        return wanted // 5

    @pytest.fixture
    def milvus_at(self) -> MilvusAt:
        """A file of its own for each library."""
        return lambda folder: str(folder / "vectors.db")


class TestOverAServer(RecommendProperties):
    """All libraries on one server."""

    def examples(self, wanted: int) -> int:
        """To make collections takes the server three seconds a library."""
        return min(2, wanted)

    @pytest.fixture
    def milvus_at(self, milvus: services.Milvus) -> MilvusAt:
        """The server's."""
        return lambda _: milvus.uri
