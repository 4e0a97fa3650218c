"""Tests of every kind of query against the reference implementation, over FAISS."""

from __future__ import annotations

from tests.support.recommend_properties import RecommendProperties


class TestRecommend(RecommendProperties):
    """Run the recommendation properties with the exact and the compressed index."""
