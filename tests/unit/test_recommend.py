"""Every kind of question against the oracle, over FAISS."""

from __future__ import annotations

from tests.support.recommend_properties import RecommendProperties


class TestRecommend(RecommendProperties):
    """With the exact and the compressed index."""
