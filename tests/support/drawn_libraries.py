"""Libraries that hypothesis draws, for properties of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.index.sync import EXACT_UP_TO
from tests.support.vector_library import VectorLibrary

WEIGHTS = st.tuples(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5]), st.sampled_from([0.0, 0.3, 0.7, 1.0])).filter(any)
FUSIONS = st.sampled_from(["cosine", "zscore"])
# Exact, and an index that is renewed as compressed once there are a few videos. So few are all compared exactly.
SIZES = st.sampled_from([EXACT_UP_TO, 18])
MilvusAt = Callable[[Path], str]
"""The address of a Milvus for a library in this folder; empty where FAISS keeps the vectors."""


def through_libraries(max_examples: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property of libraries that hypothesis draws; of each a new one is made. The class says how many examples it
    tries of `max_examples`."""

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        def test(self: Any, tmp_path_factory: pytest.TempPathFactory, milvus_at: MilvusAt) -> None:
            def one(size: int, **drawn: Any) -> None:
                folder = tmp_path_factory.mktemp("library")
                uri = milvus_at(folder)
                library = VectorLibrary(folder, EXACT_UP_TO if uri else size, uri)
                body(self, library, **drawn)
                library.close()

            settings(deadline=None, max_examples=self.examples(max_examples))(given(size=SIZES, **strategies)(one))()

        test.__name__, test.__doc__ = body.__name__, body.__doc__
        return test

    return decorate
