"""Searches of every kind over REST."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from service.bootstrap import Runtime
from service.models import Sampling
from tests.support.search_properties import SearchProperties


class TestSearch(SearchProperties):
    """With everything in files."""


def test_the_same_example_is_embedded_once(runtime: Runtime, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = sorted(drawn.rglob("*.mp4"))[:2]
    Image.new("RGB", (64, 64), "red").save(drawn.parent / "red.png")
    sampling = Sampling(3)
    first = runtime.serving.examples.clip(clips[0], "a caption", sampling, 2.0)
    words, picture = runtime.serving.examples.text("red"), runtime.serving.examples.picture(drawn.parent / "red.png")
    embedder = runtime.serving.embedder()

    def never(*_: object) -> None:
        raise AssertionError("embedded again")

    with monkeypatch.context() as patch:
        for name in ("embed_pictures", "embed_texts"):
            patch.setattr(embedder, name, never)
        again = runtime.serving.examples.clip(clips[0], "a caption", sampling, -1.0)
        assert (again.weight, again.picture is first.picture, again.caption is first.caption) == (-1.0, True, True)
        assert runtime.serving.examples.text("red").picture is words.picture
        assert runtime.serving.examples.picture(drawn.parent / "red.png").picture is picture.picture
        for other in (
            lambda: runtime.serving.examples.clip(clips[1], "a caption", sampling),
            lambda: runtime.serving.examples.clip(clips[0], "another", sampling),
            lambda: runtime.serving.examples.clip(clips[0], "a caption", Sampling(4)),
            lambda: runtime.serving.examples.text("blue"),
        ):
            with pytest.raises(AssertionError, match="embedded again"):
                other()
