"""Libraries drawn by hypothesis, for property tests of search results."""

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
# An exact index, and an index that is rebuilt as a compressed index at 18 videos. So few are all compared exactly.
SIZES = st.sampled_from([EXACT_UP_TO, 18])
MilvusAt = Callable[[Path], str]
"""Function from a library's folder to the address of its Milvus; an empty address means FAISS."""


def through_libraries(max_examples: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a property test so that it runs on libraries drawn by hypothesis, a new library per example.

    The test class reduces `max_examples` by its method `examples`.
    """

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
