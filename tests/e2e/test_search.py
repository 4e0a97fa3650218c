"""Tests of every kind of search over REST."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from service.bootstrap import Runtime
from service.models import Sampling
from tests.support.search_properties import SearchProperties


class TestSearch(SearchProperties):
    """Run the search properties with all data in files."""


def test_the_same_example_is_embedded_once(runtime: Runtime, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = sorted(drawn.rglob("*.mp4"))[:2]
    Image.new("RGB", (64, 64), "red").save(drawn.parent / "red.png")
    sampling = Sampling(3)
    first = runtime.serving.query_encoder.clip(clips[0], "a caption", sampling, 2.0)
    words, picture = (
        runtime.serving.query_encoder.text("red"),
        runtime.serving.query_encoder.image(drawn.parent / "red.png"),
    )
    embedder = runtime.serving.encoder()

    def never(*_: object) -> None:
        raise AssertionError("embedded again")

    with monkeypatch.context() as patch:
        for name in ("embed_images", "embed_texts"):
            patch.setattr(embedder, name, never)
        again = runtime.serving.query_encoder.clip(clips[0], "a caption", sampling, -1.0)
        assert (again.weight, again.visual is first.visual, again.text is first.text) == (-1.0, True, True)
        assert runtime.serving.query_encoder.text("red").visual is words.visual
        assert runtime.serving.query_encoder.image(drawn.parent / "red.png").visual is picture.visual
        for other in (
            lambda: runtime.serving.query_encoder.clip(clips[1], "a caption", sampling),
            lambda: runtime.serving.query_encoder.clip(clips[0], "another", sampling),
            lambda: runtime.serving.query_encoder.clip(clips[0], "a caption", Sampling(4)),
            lambda: runtime.serving.query_encoder.text("blue"),
        ):
            with pytest.raises(AssertionError, match="embedded again"):
                other()
